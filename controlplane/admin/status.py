"""Configuration status: the verdict on every object, and the refusals of clients shown against it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from controlplane.model.verdict import Verdict
from controlplane.snapshot.resource import Resource
from controlplane.snapshot.state import Snapshot
from controlplane.snapshot.urls import CLUSTER, ENDPOINT, LISTENER, ROUTE, short
from controlplane.xds.events import Nacked
from underpass.api import envoy

#: ``/apis/<group>/<version>/namespaces/<ns>/<kind>/<name>``, the form of Istio's own metadata.
_CONFIG_PATH: Final = re.compile(r"^/apis/[^/]+/[^/]+/namespaces/([^/]+)/([^/]+)/([^/]+)$")
_KINDS: Final = {
    "virtual-service": "VirtualService",
    "destination-rule": "DestinationRule",
    "service-entry": "ServiceEntry",
    "gateway": "Gateway",
}

Owner = tuple[str, str, str]
"""Kind, namespace and name of an object."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A client's refusal of resources that an object yielded."""

    node: str
    type: str
    resources: tuple[str, ...]
    reason: str
    at: float
    owners: tuple[Owner, ...]


def blamed(nacked: Nacked) -> tuple[str, ...]:
    """The resources that a refusal is about: those that its text names, or all of the response when it names none.

    Envoy writes ``Error adding/updating listener(s) NAME: reason``, gRPC ``... listener name: reason``, ztunnel
    ``name: reason; ...``. A name counts only where it stands alone, so that ``a`` is not found in ``bad``.
    """
    named = tuple(name for name in nacked.names if _stands_alone(name, nacked.message))
    return named or nacked.names


def _stands_alone(name: str, message: str) -> bool:
    at = message.find(name)
    while name and at >= 0:
        before = message[at - 1 : at]
        after = message[at + len(name) : at + len(name) + 1]
        if not (before and (before.isalnum() or before in "-_.|")) and not (
            after and (after.isalnum() or after in "-_|")
        ):
            return True
        at = message.find(name, at + 1)
    return False


def owners(resource: Resource) -> tuple[Owner, ...]:
    """The objects that a resource was made from, by the metadata in it; each once, in order of appearance."""
    if resource.type_url == ROUTE:
        table = envoy.RouteConfiguration.FromString(resource.body)
        found = [owner for host in table.virtual_hosts for route in host.routes for owner in _owners(route.metadata)]
    elif resource.type_url == CLUSTER:
        found = list(_owners(envoy.Cluster.FromString(resource.body).metadata))
    elif resource.type_url == LISTENER:
        listener = envoy.Listener.FromString(resource.body)
        found = list(_owners(listener.metadata))
        for chain in listener.filter_chains:
            found += _owners(chain.metadata)
    else:
        return ()
    return tuple(dict.fromkeys(found))


def _owners(metadata: Any) -> Iterable[Owner]:
    fields = metadata.filter_metadata
    if "underpass" in fields:
        own = fields["underpass"].fields
        if own["kind"].string_value and own["name"].string_value:
            yield own["kind"].string_value, own["namespace"].string_value, own["name"].string_value
    if "istio" in fields:
        istio = fields["istio"].fields
        match = _CONFIG_PATH.match(istio["config"].string_value) if "config" in istio else None
        if match:
            yield _KINDS.get(match[2], match[2]), match[1], match[3]
        if "services" in istio:
            for value in istio["services"].list_value.values:
                service = value.struct_value.fields
                if service["name"].string_value:
                    yield "Service", service["namespace"].string_value, service["name"].string_value


def attribute(nacked: Nacked, snapshot: Snapshot, node: str, at: float) -> Refusal:
    """A refusal with the objects that its resources come from."""
    names = blamed(nacked)
    state = snapshot[nacked.type_url]
    found: dict[Owner, None] = {}
    for name in names:
        resource = state.find(name)
        if resource is None:
            continue
        made_from = owners(resource)
        if nacked.type_url == ENDPOINT:  # endpoints carry no metadata of their own; their cluster does
            cluster = snapshot[CLUSTER].get(name)
            made_from = owners(cluster) if cluster is not None else ()
        found.update(dict.fromkeys(made_from))
    return Refusal(node, short(nacked.type_url), names, nacked.message, at, tuple(found))


def lineage(owner: Owner, resources: Iterable[Resource]) -> list[Resource]:
    """Those of *resources* that were made from an object."""
    return [resource for resource in resources if owner in owners(resource)]


def report(verdicts: Sequence[Verdict], refusals: Iterable[Refusal]) -> list[dict[str, Any]]:
    """One entry per object, in the order of the verdicts, as ``/api/v1/config/status`` gives it."""
    by_owner: dict[Owner, list[Refusal]] = {}
    for refusal in refusals:
        for owner in refusal.owners:
            by_owner.setdefault(owner, []).append(refusal)
    return [_entry(verdict, by_owner) for verdict in verdicts]


def _entry(verdict: Verdict, by_owner: Mapping[Owner, list[Refusal]]) -> dict[str, Any]:
    refused = by_owner.get((verdict.kind, verdict.namespace, verdict.name), [])
    return {
        "kind": verdict.kind,
        "namespace": verdict.namespace,
        "name": verdict.name,
        "file": verdict.file,
        "line": verdict.line,
        "state": verdict.state,
        "code": verdict.code,
        "reason": verdict.reason,
        "lastGood": verdict.last_good,
        "notes": [{"line": note.line, "code": note.code, "message": note.message} for note in verdict.notes],
        "refusedBy": [
            {"node": r.node, "type": r.type, "resources": list(r.resources), "reason": r.reason, "at": r.at}
            for r in refused
        ],
    }
