"""Which fields of Istio's objects have no effect here, and why.  What is not listed is honoured.  Pure.

One table, read twice: conversion puts a note on every object that sets such a field, and ``underpass analyze`` prints
it.  Golden pairs are the proof for the fields that are not listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import Message

from controlplane.model.objects import Config
from controlplane.model.verdict import Note

_NO_SECRETS: Final = "this control plane serves no secrets yet; give certificate files instead"

_NO_INJECTION: Final = "proxies are not started by this control plane; set it where they are"
_NO_REGISTRATION: Final = "workloads do not register themselves here; write a WorkloadEntry for each"

#: (kind, path without indices) -> reason.  A path covers everything below it.
UNSUPPORTED: Final[dict[tuple[str, str], str]] = {
    ("VirtualService", "tcp.match.sourceSubnet"): "Istio ignores it too; use sourceLabels",
    ("DestinationRule", "trafficPolicy.tls.credentialName"): _NO_SECRETS,
    ("DestinationRule", "trafficPolicy.loadBalancer.backendUtilization"): "load reports of endpoints are not used yet",
    ("DestinationRule", "trafficPolicy.loadBalancer.zoneAwareLbSetting"): "use localityLbSetting",
    ("DestinationRule", "trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes"): "only 5xx and gateway errors "
    "count as errors",
    ("DestinationRule", "trafficPolicy.outlierDetection.consecutiveErrors"): "deprecated; use consecutive5xxErrors",
    ("EnvoyFilter", "configPatches.patch.filterClass"): "name the filter to insert before",
    ("ProxyConfig", "concurrency"): _NO_INJECTION,
    ("ProxyConfig", "environmentVariables"): _NO_INJECTION,
    ("ProxyConfig", "image"): _NO_INJECTION,
    ("ProxyConfig", "selector"): _NO_INJECTION,
    ("ServiceEntry", "endpoints.network"): "there is one network",
    (
        "Telemetry",
        "metrics",
    ): "Istio's metrics are made by filters of istio-proxy; the agent's and Envoy's own are as they are",
    ("Telemetry", "tracing"): "no tracing provider can be configured yet",
    ("WorkloadEntry", "network"): "there is one network",
    ("WorkloadGroup", "metadata"): _NO_REGISTRATION,
    ("WorkloadGroup", "probe"): _NO_REGISTRATION,
    ("WorkloadGroup", "template"): _NO_REGISTRATION,
    ("Gateway", "servers.tls.credentialName"): f"{_NO_SECRETS}: this server is not configured",
    ("Gateway", "servers.tls.credentialNames"): f"{_NO_SECRETS}: this server is not configured",
    ("Gateway", "servers.tls.caCertCredentialName"): _NO_SECRETS,
    ("Gateway", "servers.tls.insecureSkipVerify"): "client certificates are always verified where they are asked for",
    ("Gateway", "servers.defaultEndpoint"): "Istio ignores it too",
    ("Sidecar", "ingress"): "inbound traffic is configured by the services that select the workload",
    ("Sidecar", "inboundConnectionPool"): "use a DestinationRule of the service",
    ("Sidecar", "egress.port"): "its hosts are imported for all ports",
    ("Sidecar", "egress.bind"): "its hosts are imported for all ports",
    ("Sidecar", "egress.captureMode"): "set by the client's INTERCEPTION_MODE",
}

#: Values, not fields, that have no effect: (kind, path, value) -> reason.
VALUES: Final[dict[tuple[str, str, str], str]] = {
    ("EnvoyFilter", "configPatches.applyTo", "BOOTSTRAP"): "a proxy's bootstrap is not this control plane's",
    (
        "EnvoyFilter",
        "configPatches.applyTo",
        "EXTENSION_CONFIG",
    ): "nothing is discovered by itself; give it where it is used",
    ("Gateway", "servers.tls.mode", "ISTIO_MUTUAL"): f"{_NO_SECRETS}: this server is not configured",
    ("Gateway", "servers.tls.mode", "AUTO_PASSTHROUGH"): "routes by VirtualService tls rules only",
    ("ServiceEntry", "resolution", "DYNAMIC_DNS"): "connections go where they were going; names are not resolved",
}


@dataclass(frozen=True, slots=True)
class FieldUse:
    """One field that an object sets.  ``reason`` is empty for one that is honoured."""

    path: str
    line: int
    reason: str = ""
    #: The part of the path that the reason is about; everything below it shares its fate.
    about: str = ""

    @property
    def honoured(self) -> bool:
        """Whether the field has an effect."""
        return not self.reason


def fields(config: Config) -> list[FieldUse]:
    """Every leaf field that an object sets, in the order of the schema, with whether it is honoured."""
    kind = config.meta.key.kind
    return [FieldUse(path, config.line(path), *_reason(kind, path, value)) for path, value in _walk(config.spec, "")]


def _walk(message: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for field, value in message.ListFields():
        path = f"{prefix}.{field.json_name}" if prefix else field.json_name
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            for key in sorted(value):
                if isinstance(value[key], Message):
                    yield from _below(value[key], f"{path}.{key}")
                else:
                    yield f"{path}.{key}", value[key]
        elif kind is not None and field.is_repeated:
            for index, item in enumerate(value):
                yield from _below(item, f"{path}[{index}]")
        elif kind is not None:
            yield from _below(value, path)
        else:
            yield path, field.enum_type.values_by_number[value].name if field.enum_type is not None else value


def _below(message: Any, path: str) -> Iterator[tuple[str, Any]]:
    if message.DESCRIPTOR.full_name.startswith("google.protobuf.") or not message.ListFields():
        yield path, message
    else:
        yield from _walk(message, path)


_INDEX: Final = re.compile(r"\[\d+\]")
#: A traffic policy is the same wherever it stands.
_POLICY: Final = re.compile(r"^(subsets\.)?trafficPolicy\.(portLevelSettings\.)?")


def _reason(kind: str, path: str, value: Any) -> tuple[str, str]:
    bare = _INDEX.sub("", path)
    if kind == "DestinationRule":
        bare = _POLICY.sub("trafficPolicy.", bare)
    found = VALUES.get((kind, bare, str(value)))
    while found is None and bare:
        found = UNSUPPORTED.get((kind, bare))
        if found is None:
            bare, path = bare.rpartition(".")[0], path.rpartition(".")[0]
    return (found, path) if found is not None else ("", "")


def notes(config: Config) -> list[Note]:
    """A note for each field that the object sets in vain."""
    vain = {use.about: use.reason for use in fields(config) if not use.honoured}
    return [Note(config.line(path), "not-honoured", f"{path} has no effect: {why}") for path, why in vain.items()]
