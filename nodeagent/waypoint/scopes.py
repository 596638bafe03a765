"""Whose eyes the node's one Envoy sees with, and which workloads see the same.  Pure.

An Envoy is one client of the control plane and has one view of the mesh; a node's workloads may have several, by
namespace, `Sidecar`, `exportTo` and labels. So it stands for one of them, and takes the connections of those whose
outbound resources are the same, byte for byte. The others' stay with underpass-home.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nodeagent.cache.store import Resources

_INBOUND: Final = "virtualInbound"
_OUTBOUND: Final = "outbound|"


@dataclass(frozen=True, slots=True)
class Scope:
    """view: the key of the view that Envoy stands for; apart: those that see something else."""

    view: str
    apart: frozenset[str] = frozenset()


def choose(views: Mapping[str, Resources], current: str = "") -> Scope | None:
    """Whose view Envoy gets, and who is apart from it. None: there are no workloads.

    The current one as long as it is there, because another one costs a restart; else one of those that most agree with,
    the first by name.
    """
    if not views:
        return None
    seen = {key: _outbound(resources) for key, resources in views.items()}
    if current not in seen:
        agreeing = {key: sum(other == own for other in seen.values()) for key, own in seen.items()}
        current = min(seen, key=lambda key: (-agreeing[key], key))
    return Scope(current, frozenset(key for key, own in seen.items() if own != seen[current]))


def _outbound(resources: Resources) -> tuple[object, ...]:
    """What decides where a workload's requests go, without what is its own as a server.

    Values are decoded once per content, so that equal ones are mostly the same objects, and comparing is cheap.
    """
    clusters = {name: item for name, item in resources.clusters.items() if name.startswith(_OUTBOUND)}
    return (
        {name: item for name, item in resources.listeners.items() if name != _INBOUND},
        resources.routes,
        clusters,
        {c.eds_name: resources.assignments.get(c.eds_name) for c in clusters.values() if c.eds_name},
    )
