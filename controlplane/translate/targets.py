"""Which policies count where: by selector at workloads and gateways, by target at gateways and waypoints.  Pure.

A policy with a target is for that target alone: sidecars never see it. A waypoint hears only of policies that name it,
its class, or a service behind it; selectors choose workloads, and it is none of those that it stands for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from controlplane.model.gateway_api import GATEWAY_NAME
from controlplane.model.labels import Labels, freeze, get, selects
from controlplane.model.mesh import Mesh, Service
from controlplane.model.objects import Config
from controlplane.model.targets import WAYPOINT_CLASS, target_refs


@dataclass(frozen=True, slots=True)
class Spot:
    """Where policies are enforced: a proxy in ``namespace`` with ``labels``; ``gateway`` is its Gateway's name."""

    namespace: str
    labels: Labels = ()
    gateway: str = ""
    #: A waypoint, in front of this service (or of workloads' own addresses, without one).
    waypoint: bool = False
    service: Service | None = None

    @classmethod
    def of(cls, kind: str, namespace: str, labels: Labels) -> Spot:
        """The place of a client of node type ``kind``."""
        gateway = get(labels, GATEWAY_NAME) if kind in ("router", "waypoint") else ""
        return cls(namespace, labels, gateway, kind == "waypoint")


def attached(policies: Iterable[Config], mesh: Mesh, spot: Spot) -> list[Config]:
    """Return the policies in force at ``spot``: those of the root namespace first, as given within each."""
    chosen = [policy for policy in policies if _attaches(policy, mesh, spot)]
    return sorted(chosen, key=lambda policy: policy.meta.key.namespace != mesh.root_namespace)


def _attaches(policy: Config, mesh: Mesh, spot: Spot) -> bool:
    space = policy.meta.key.namespace
    targets = [target for _, target in target_refs(policy)]
    if targets:
        return any(_meant(target, space, mesh, spot) for target in targets)
    if spot.waypoint:
        return False
    selector = freeze(policy.spec.selector.match_labels)
    return space in (spot.namespace, mesh.root_namespace) and selects(selector, spot.labels)


def _meant(target: Any, space: str, mesh: Mesh, spot: Spot) -> bool:
    """Whether a target of a policy of namespace ``space`` is this place."""
    if target.kind == "Gateway":
        return bool(spot.gateway) and space == spot.namespace and target.name == spot.gateway
    if target.kind == "GatewayClass":
        return spot.waypoint and space == mesh.root_namespace and target.name == WAYPOINT_CLASS
    service = spot.service
    return service is not None and (target.kind, space, target.name) == (
        service.kind,
        service.namespace,
        service.object,
    )
