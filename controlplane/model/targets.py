"""What policies say they are for, and whether there is such a thing.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from controlplane.model.gateway_objects import KubeGateway
from controlplane.model.mesh import Mesh
from controlplane.model.objects import Config, Key, Object
from controlplane.model.verdict import Note

#: Class of Gateways that are waypoints.
WAYPOINT_CLASS: Final = "istio-waypoint"
#: Kinds with targets that protect nothing, so that nobody is left unprotected without them.
_NO_POLICY: Final = ("EnvoyFilter", "Telemetry")


def target_refs(policy: Config) -> list[tuple[str, Any]]:
    """A policy's targets with their field paths; the older singular field counts too."""
    spec = policy.spec
    listed = [(f"targetRefs[{index}]", target) for index, target in enumerate(spec.target_refs)]
    older = "target_ref" in spec.DESCRIPTOR.fields_by_name and spec.HasField("target_ref")
    return [*listed, *([("targetRef", spec.target_ref)] if older else [])]


def review(mesh: Mesh, objects: Mapping[Key, Object]) -> Iterator[tuple[Key, Note]]:
    """Remarks on policies whose target is not there: nobody enforces them, and that must be said."""
    policies: Iterable[Config] = (
        *mesh.authorization_policies,
        *mesh.request_authentications,
        *mesh.envoy_filters,
        *mesh.telemetries,
    )
    aimed = [(policy, refs) for policy in policies if (refs := target_refs(policy))]
    if not aimed:
        return
    known = {("Gateway", *_name(item)) for item in objects.values() if isinstance(item, KubeGateway)}
    known |= {(service.kind, service.namespace, service.object) for service in mesh.services}
    ways = {("Gateway", item.namespace, item.name) for item in mesh.waypoints}
    bound = {name for waypoint in mesh.waypoints for name in waypoint.services}
    served = {
        (service.kind, service.namespace, service.object)
        for service in mesh.services
        if (service.namespace, service.hostname) in bound
    }
    for policy, refs in aimed:
        space = policy.meta.key.namespace
        for path, target in refs:
            name = (target.kind, space, target.name)
            if target.kind == "GatewayClass":
                if space != mesh.root_namespace or target.name != WAYPOINT_CLASS:
                    text = f"a GatewayClass is a target for policies of {mesh.root_namespace} and {WAYPOINT_CLASS} only"
                    yield policy.meta.key, Note(policy.line(path), "unknown-target", f"{text}: no effect")
            elif name in known and target.kind != "Gateway" and name not in served:
                text = f"{target.kind} {space}/{target.name} is bound to no waypoint: nobody enforces the policy"
                yield policy.meta.key, Note(policy.line(path), "no-waypoint", text)
            elif (name in served or name in ways) and policy.meta.key.kind not in _NO_POLICY:
                text = "enforced at the waypoint; sidecars and workloads of underpass-agent do not go through it"
                yield policy.meta.key, Note(policy.line(path), "waypoint-only", text)
            elif name not in known:
                text = f"there is no {target.kind} {space}/{target.name}: the policy has no effect there"
                yield policy.meta.key, Note(policy.line(path), "unknown-target", text)


def _name(item: KubeGateway) -> tuple[str, str]:
    return item.meta.key.namespace, item.meta.key.name
