"""Which policies count where: by selector at workloads and gateways, by target at gateways and waypoints.  Pure.

A policy with a target is for that target alone: sidecars never see it. A waypoint hears only of policies that name it,
its class, or a service behind it; selectors choose workloads, and it is none of those that it stands for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from controlplane.model.gateway_api import GATEWAY_NAME
from controlplane.model.labels import Labels, freeze, get, selects
from controlplane.model.mesh import Mesh
from controlplane.model.objects import Config
from controlplane.model.targets import target_refs

GATEWAY_GROUP: Final = "gateway.networking.k8s.io"


@dataclass(frozen=True, slots=True)
class Spot:
    """Where policies are enforced: a proxy in ``namespace`` with ``labels``; ``gateway`` is its Gateway's name."""

    namespace: str
    labels: Labels = ()
    gateway: str = ""

    @classmethod
    def of(cls, kind: str, namespace: str, labels: Labels) -> Spot:
        """The place of a client of node type ``kind``."""
        return cls(namespace, labels, get(labels, GATEWAY_NAME) if kind == "router" else "")


def attached(policies: Iterable[Config], mesh: Mesh, spot: Spot) -> list[Config]:
    """Return the policies in force at ``spot``: those of the root namespace first, as given within each."""
    chosen = [policy for policy in policies if _attaches(policy, mesh, spot)]
    return sorted(chosen, key=lambda policy: policy.meta.key.namespace != mesh.root_namespace)


def _attaches(policy: Config, mesh: Mesh, spot: Spot) -> bool:
    space = policy.meta.key.namespace
    targets = [target for _, target in target_refs(policy)]
    if targets:
        return space == spot.namespace and any(_is_gateway(target, spot.gateway) for target in targets)
    selector = freeze(policy.spec.selector.match_labels)
    return space in (spot.namespace, mesh.root_namespace) and selects(selector, spot.labels)


def _is_gateway(target: Any, name: str) -> bool:
    return bool(name) and (target.group, target.kind, target.name) == (GATEWAY_GROUP, "Gateway", name)
