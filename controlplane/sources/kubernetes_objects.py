"""Kubernetes documents to typed objects: only the fields that a mesh needs.  Pure; raises ``RejectedError`` only."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from controlplane.model.labels import Labels, freeze
from controlplane.model.objects import (
    ContainerPort,
    Key,
    KubeDeployment,
    KubeEndpointSlice,
    KubeNamespace,
    KubeNode,
    KubePod,
    KubePort,
    KubeService,
    KubeServiceAccount,
    Meta,
    Object,
    SliceEndpoint,
    SlicePort,
    SourceRef,
)
from controlplane.sources.rejection import RejectedError

_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_TRANSPORTS: Final = ("TCP", "UDP", "SCTP")


class Reader:
    """Typed access to a document's fields; a value of another type is a named rejection, an absent one a default."""

    def __init__(self, data: Any, path: str = "") -> None:
        if data is None:
            data = {}
        if not isinstance(data, dict):
            raise RejectedError("wrong-type", f"{path or 'the document'} must be a mapping, not {_kind(data)}", path)
        self._data: Mapping[str, Any] = data
        self._path = path

    def _at(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def _wrong(self, key: str, wanted: str, value: Any) -> RejectedError:
        return RejectedError("wrong-type", f"{self._at(key)} must be {wanted}, not {_kind(value)}", self._at(key))

    def has(self, key: str) -> bool:
        """Whether the field is there and not null."""
        return self._data.get(key) is not None

    def text(self, key: str, default: str = "") -> str:
        """Read a string."""
        value = self._data.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._wrong(key, "text", value)
        return value

    def number(self, key: str, default: int = 0) -> int:
        """Read an integer."""
        value = self._data.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, "an integer", value)
        return value

    def port(self, key: str, default: int = 0) -> int:
        """Read a port number."""
        value = self.number(key, default)
        if not (0 < value < 65536 or (value == default and not self.has(key))):
            raise RejectedError("bad-port", f"{self._at(key)} must be 1 to 65535, not {value}", self._at(key))
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """Read a boolean."""
        value = self._data.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def sub(self, key: str) -> Reader:
        """Read a mapping; an absent one is empty."""
        return Reader(self._data.get(key), self._at(key))

    def items(self, key: str) -> list[Reader]:
        """Read a list of mappings."""
        return [Reader(item, f"{self._at(key)}[{index}]") for index, item in enumerate(self._list(key))]

    def texts(self, key: str) -> tuple[str, ...]:
        """Read a list of strings."""
        values = self._list(key)
        for value in values:
            if not isinstance(value, str):
                raise self._wrong(key, "a list of text", value)
        return tuple(values)

    def _list(self, key: str) -> list[Any]:
        value = self._data.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong(key, "a list", value)
        return value

    def labels(self, key: str) -> Labels:
        """Read a map of strings."""
        value = self._data.get(key)
        if value is None:
            return ()
        if not isinstance(value, dict):
            raise self._wrong(key, "a mapping", value)
        for name, text in value.items():
            if not isinstance(text, str):
                raise self._wrong(f"{key}.{name}", "text (quote it)", text)
        return freeze(value)

    def mapping(self) -> Mapping[str, Any]:
        """Return the fields as they are."""
        return self._data

    def raw(self, key: str) -> Any:
        """Return the value as it is."""
        return self._data.get(key)


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    names: Mapping[type, str] = {
        str: "text",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "a mapping",
    }
    return names.get(type(value), type(value).__name__)


CLUSTER_SCOPED: Final = frozenset({"Namespace", "Node"})


def meta(document: Reader, kind: str, source: SourceRef, modified: float) -> Meta:
    """Read an object's metadata.  An object without ``creationTimestamp`` is as old as its file."""
    fields = document.sub("metadata")
    name = fields.text("name")
    if not name:
        raise RejectedError("no-name", "metadata.name is missing", "metadata")
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise RejectedError(
            "bad-name", f"metadata.name {name!r} is not a DNS name (lower case, digits, '-', '.')", "metadata.name"
        )
    namespace = "" if kind in CLUSTER_SCOPED else fields.text("namespace") or "default"
    if namespace and (len(namespace) > 63 or not _NAME.fullmatch(namespace)):
        raise RejectedError("bad-name", f"metadata.namespace {namespace!r} is not a DNS label", "metadata.namespace")
    created = modified
    stamp = fields.raw("creationTimestamp")
    if isinstance(stamp, str) and stamp:
        try:
            moment = datetime.fromisoformat(stamp.replace("Z", "+00:00"))
        except ValueError:
            raise RejectedError(
                "bad-time",
                f"metadata.creationTimestamp {stamp!r} is not an RFC 3339 time",
                "metadata.creationTimestamp",
            ) from None
        created = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    return Meta(Key(kind, namespace, name), source, created, fields.labels("labels"), fields.labels("annotations"))


def _ip(text: str, path: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise RejectedError("bad-address", f"{path}: {text!r} is not an IP address", path) from None


def _transport(reader: Reader) -> str:
    value = reader.text("protocol", "TCP")
    if value not in _TRANSPORTS:
        raise RejectedError("bad-protocol", f"protocol {value!r} is none of {', '.join(_TRANSPORTS)}")
    return value


def service(document: Reader, about: Meta) -> KubeService:
    """``v1/Service``."""
    spec = document.sub("spec")
    kind = spec.text("type", "ClusterIP")
    ports: list[KubePort] = []
    for item in spec.items("ports"):
        number = item.port("port")
        if not item.has("port"):
            raise RejectedError("no-port", "a port of the Service has no number", "spec.ports")
        target = item.raw("targetPort")
        is_port = isinstance(target, int) and not isinstance(target, bool) and 0 < target < 65536
        if target is not None and not (isinstance(target, str) or is_port):
            raise RejectedError("bad-port", f"targetPort {target!r} is neither a port number nor a name", "spec.ports")
        if isinstance(target, str) and target.isdigit():
            target = int(target)
        name = item.text("name")
        if any(port.name == name for port in ports):
            raise RejectedError("duplicate-port", f"two ports are named {name!r}", "spec.ports")
        ports.append(
            KubePort(
                name=name,
                number=number,
                target=number if target is None else target,
                transport=_transport(item),
                app_protocol=item.text("appProtocol"),
                node_port=item.number("nodePort"),
            )
        )
    claimed = list(spec.texts("clusterIPs"))
    if spec.text("clusterIP") and spec.text("clusterIP") not in claimed:
        claimed.insert(0, spec.text("clusterIP"))
    headless = "None" in claimed
    addresses = tuple(_ip(text, "spec.clusterIP") for text in claimed if text and text != "None")
    external_name = spec.text("externalName")
    if kind == "ExternalName" and not external_name:
        raise RejectedError("no-external-name", "type ExternalName needs spec.externalName", "spec")
    return KubeService(
        meta=about,
        ports=tuple(ports),
        selector=spec.labels("selector"),
        cluster_ips=tuple(dict.fromkeys(addresses)),
        headless=headless,
        type=kind,
        external_name=external_name if kind == "ExternalName" else "",
        external_ips=tuple(_ip(text, "spec.externalIPs") for text in spec.texts("externalIPs")),
        publish_not_ready=spec.flag("publishNotReadyAddresses"),
        internal_local=spec.text("internalTrafficPolicy") == "Local",
    )


def _owner(document: Reader, name: str, labels: Labels) -> str:
    """Name of the workload that made a pod.  A ReplicaSet's name is its Deployment's plus the template's hash."""
    for reference in document.sub("metadata").items("ownerReferences"):
        if not reference.flag("controller"):
            continue
        owner = reference.text("name")
        digest = dict(labels).get("pod-template-hash", "")
        if reference.text("kind") == "ReplicaSet" and digest:
            return owner.removesuffix(f"-{digest}")
        return owner or name
    return name


def pod(document: Reader, about: Meta) -> KubePod:
    """``v1/Pod``.  A pod whose status carries no conditions counts as ready when it runs."""
    spec, status = document.sub("spec"), document.sub("status")
    ips = [item.text("ip") for item in status.items("podIPs")]
    if status.text("podIP") and status.text("podIP") not in ips:
        ips.insert(0, status.text("podIP"))
    phase = status.text("phase", "Running" if ips else "Pending")
    conditions = {item.text("type"): item.text("status") for item in status.items("conditions")}
    ports = tuple(
        ContainerPort(port.text("name"), port.port("containerPort"), _transport(port))
        for container in [*spec.items("containers"), *spec.items("initContainers")]
        for port in container.items("ports")
        if port.has("containerPort")
    )
    deleted = document.sub("metadata").has("deletionTimestamp")
    return KubePod(
        meta=about,
        ips=tuple(dict.fromkeys(_ip(text, "status.podIPs") for text in ips if text)),
        service_account=spec.text("serviceAccountName") or spec.text("serviceAccount") or "default",
        node=spec.text("nodeName"),
        ready=phase == "Running" and not deleted and conditions.get("Ready", "True") == "True",
        terminal=phase in ("Succeeded", "Failed"),
        ports=ports,
        owner=_owner(document, about.key.name, about.labels),
        host_network=spec.flag("hostNetwork"),
    )


def endpoint_slice(document: Reader, about: Meta) -> KubeEndpointSlice:
    """``discovery.k8s.io/v1 EndpointSlice``."""
    owner = dict(about.labels).get("kubernetes.io/service-name", "")
    if not owner:
        raise RejectedError(
            "no-service",
            "an EndpointSlice names its Service in label kubernetes.io/service-name; this one has no such label",
            "metadata",
        )
    family = document.text("addressType")
    if family not in ("IPv4", "IPv6", "FQDN"):
        raise RejectedError("bad-address-type", f"addressType {family!r} is none of IPv4, IPv6, FQDN", "addressType")
    endpoints = []
    for index, item in enumerate(document.items("endpoints")):
        conditions = item.sub("conditions")
        ready = conditions.flag("ready", True)
        target = item.sub("targetRef")
        path = f"endpoints[{index}].addresses"
        addresses = item.texts("addresses")
        endpoints.append(
            SliceEndpoint(
                addresses=addresses if family == "FQDN" else tuple(_ip(text, path) for text in addresses),
                ready=ready,
                serving=conditions.flag("serving", ready),
                terminating=conditions.flag("terminating"),
                node=item.text("nodeName"),
                zone=item.text("zone"),
                pod=target.text("name") if target.text("kind") == "Pod" else "",
            )
        )
    return KubeEndpointSlice(
        meta=about,
        service=owner,
        address_type=family,
        ports=tuple(SlicePort(p.text("name"), p.port("port"), _transport(p)) for p in document.items("ports")),
        endpoints=tuple(endpoints),
    )


def deployment(document: Reader, about: Meta) -> KubeDeployment:
    """``apps/v1 Deployment`` (also StatefulSet, DaemonSet, ReplicaSet)."""
    spec = document.sub("spec")
    template = spec.sub("template")
    return KubeDeployment(
        meta=about,
        replicas=spec.number("replicas", 1),
        labels=template.sub("metadata").labels("labels"),
        service_account=template.sub("spec").text("serviceAccountName") or "default",
    )


#: kind -> (accepted API groups, converter).
KINDS: Final[Mapping[str, tuple[frozenset[str], Callable[[Reader, Meta], Object]]]] = {
    "Service": (frozenset({""}), service),
    "Pod": (frozenset({""}), pod),
    "EndpointSlice": (frozenset({"discovery.k8s.io"}), endpoint_slice),
    "Namespace": (frozenset({""}), lambda _, about: KubeNamespace(about)),
    "Node": (frozenset({""}), lambda _, about: KubeNode(about)),
    "ServiceAccount": (frozenset({""}), lambda _, about: KubeServiceAccount(about)),
    "Deployment": (frozenset({"apps", "extensions"}), deployment),
    "StatefulSet": (frozenset({"apps"}), deployment),
    "DaemonSet": (frozenset({"apps", "extensions"}), deployment),
    "ReplicaSet": (frozenset({"apps", "extensions"}), deployment),
}
