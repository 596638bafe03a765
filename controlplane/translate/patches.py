"""EnvoyFilters: patches to what Envoys are sent, applied to finished resources.  Pure.

A patch is for clients that its object selects, in order of priority, then the root namespace's, then by age.  One whose
value no Envoy could read is not applied, and neither are the others of its object: half of a patch set may be worse
than none.  The kernel's agents are sent resources without any of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import re2
from google.protobuf import json_format

from controlplane.model.labels import Labels, freeze, selects
from controlplane.model.mesh import Mesh
from controlplane.model.objects import Config, Key
from controlplane.model.verdict import Note, Verdict
from controlplane.translate import names
from controlplane.translate.patch_listeners import Context, patch_cluster, patch_listener, patch_routes
from controlplane.translate.patch_parts import Patch
from controlplane.translate.resources import Message, Resources
from controlplane.translate.targets import Spot, attached
from underpass.api import envoy

_SHAPES: Final = {
    "LISTENER": "Listener",
    "FILTER_CHAIN": "FilterChain",
    "NETWORK_FILTER": "Filter",
    "HTTP_FILTER": "HttpFilter",
    "LISTENER_FILTER": "ListenerFilter",
    "ROUTE_CONFIGURATION": "RouteConfiguration",
    "VIRTUAL_HOST": "VirtualHost",
    "HTTP_ROUTE": "Route",
    "CLUSTER": "Cluster",
}


@dataclass(frozen=True, slots=True)
class Read:
    """One object's patches, or why they are not applied: (index of the patch, what is wrong with it)."""

    patches: tuple[Patch, ...] = ()
    problem: tuple[int, str] | None = None


@lru_cache(maxsize=1024)
def read(config: Config) -> Read:
    """Read an EnvoyFilter's values as Envoy's messages."""
    out: list[Patch] = []
    for index, item in enumerate(config.spec.config_patches):
        kind = _name(item, "apply_to")
        if kind not in _SHAPES:
            continue
        try:
            value = envoy.from_dict(_SHAPES[kind], json_format.MessageToDict(item.patch.value))
        except (envoy.SchemaError, ValueError, KeyError, TypeError, AttributeError) as error:
            # Which of the others json_format raises depends on the field's type and on the protobuf backend.
            return Read((), (index, f"no {kind} of an Envoy: {str(error).splitlines()[0][:300]}"))
        context = _name(item.match, "context")
        out.append(Patch(kind, _name(item.patch, "operation"), context, item.match, value))
    return Read(tuple(out))


def _name(message: Any, field: str) -> str:
    return str(message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number[getattr(message, field)].name)


def review(mesh: Mesh) -> Mapping[Key, Note]:
    """A note for each EnvoyFilter that is not applied."""
    out: dict[Key, Note] = {}
    for config in mesh.envoy_filters:
        problem = read(config).problem
        if problem is not None:
            path = f"configPatches[{problem[0]}]"
            text = f"{path}.patch.value: {problem[1]}: none of the object's patches is applied"
            out[config.meta.key] = Note(config.line(f"{path}.patch.value"), "bad-patch", text)
    return out


def remarked(verdicts: Iterable[Verdict], mesh: Mesh) -> tuple[Verdict, ...]:
    """Verdicts, with what only translation can say about their objects."""
    found = review(mesh)
    if not found:
        return tuple(verdicts)
    out: list[Verdict] = []
    for verdict in verdicts:
        note = found.get(Key(verdict.kind, verdict.namespace, verdict.name)) if verdict.state == "accepted" else None
        out.append(verdict if note is None else replace(verdict, notes=tuple(sorted({*verdict.notes, note}))))
    return tuple(out)


def chosen(mesh: Mesh, kind: str, namespace: str, labels: Labels, version: str = "") -> tuple[Patch, ...]:
    """The patches for a client, in order."""
    spot = Spot.of(kind, namespace, labels)
    mine = [config for config in mesh.envoy_filters if _selects(config, mesh, spot)]
    mine.sort(
        key=lambda config: (config.spec.priority, config.meta.key.namespace != mesh.root_namespace, config.meta.age)
    )
    return tuple(patch for config in mine for patch in read(config).patches if _for_version(patch, version))


def _selects(config: Config, mesh: Mesh, spot: Spot) -> bool:
    if config.spec.target_refs:
        return bool(attached([config], mesh, spot))
    selector = freeze(config.spec.workload_selector.labels)
    return config.meta.key.namespace in (spot.namespace, mesh.root_namespace) and selects(selector, spot.labels)


def _for_version(patch: Patch, version: str) -> bool:
    wanted = patch.match.proxy.proxy_version
    return not wanted or (bool(version) and re2.search(wanted, version) is not None)


def apply(resources: Resources, patches: Iterable[Patch], kind: str) -> Resources:
    """Patch a client's resources; what no patch concerns stays the same object.  ``kind`` is the client's node type."""
    listed = tuple(patches)
    out: dict[str, dict[str, Message]] = {url: dict(table) for url, table in resources.items()}
    for url, table, function in (
        (names.LISTENER, out.get(names.LISTENER), patch_listener),
        (names.ROUTE, out.get(names.ROUTE), patch_routes),
        (names.CLUSTER, out.get(names.CLUSTER), patch_cluster),
    ):
        if table is None:
            continue
        for name in list(table):
            made = function(table[name], listed, Context.of(kind, url, table[name]))
            if made is None:
                del table[name]
                if url == names.CLUSTER:
                    out.get(names.ENDPOINT, {}).pop(name, None)
            else:
                table[name] = made
    return {url: dict(sorted(table.items())) for url, table in out.items()}


def added(patches: Iterable[Patch], kind: str) -> Iterator[tuple[str, Message]]:
    """Listeners and clusters that patches add, with their type URLs."""
    own = {"router": "GATEWAY", "waypoint": "WAYPOINT"}.get(kind)
    for patch in patches:
        fits = patch.context == "ANY" or (patch.context == own if own else patch.context.startswith("SIDECAR"))
        if patch.operation == "ADD" and fits and patch.kind in ("LISTENER", "CLUSTER") and patch.value.name:
            yield (names.LISTENER if patch.kind == "LISTENER" else names.CLUSTER), patch.value
