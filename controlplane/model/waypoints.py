"""Waypoints: which Gateways are some, and which services and workloads are bound to each.  Pure.

Binding is by the label ``istio.io/use-waypoint`` of a Service, ServiceEntry, pod or WorkloadEntry, else of a namespace;
``none`` is "no waypoint".  A waypoint says by ``istio.io/waypoint-for`` which kind of traffic it takes, and by
``allowedRoutes`` of its HBONE listener whom it serves outside its own namespace.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from controlplane.model.gateway_objects import KubeGateway, Listener
from controlplane.model.labels import Labels, freeze, get, selects
from controlplane.model.mesh import Service, Waypoint, Workload
from controlplane.model.objects import Key, KubeNamespace, Object
from controlplane.model.targets import WAYPOINT_CLASS as CLASS
from controlplane.model.verdict import Note

USE: Final = "istio.io/use-waypoint"
USE_NAMESPACE: Final = "istio.io/use-waypoint-namespace"
FOR: Final = "istio.io/waypoint-for"
_TRAFFIC: Final = ("service", "workload", "all", "none")
_NAME: Final = "kubernetes.io/metadata.name"


@dataclass(frozen=True, slots=True)
class Bound:
    """The waypoints with all that is bound to them, and remarks by object."""

    waypoints: tuple[Waypoint, ...] = ()
    notes: tuple[tuple[Key, Note], ...] = ()


def bind(objects: Mapping[Key, Object], services: Iterable[Service], members: Iterable[Workload]) -> Bound:
    """Find the waypoints and what is bound to them."""
    binder = _Binder(objects)
    for service in services:
        binder.service(service)
    for member in members:
        binder.workload(member)
    return binder.finish()


class _Binder:
    def __init__(self, objects: Mapping[Key, Object]) -> None:
        gateways = (item for item in objects.values() if isinstance(item, KubeGateway) and item.class_name == CLASS)
        self._gateways = {(item.meta.key.namespace, item.meta.key.name): item for item in gateways}
        self._spaces = {item.meta.key.name: item for item in objects.values() if isinstance(item, KubeNamespace)}
        self._services: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
        self._workloads: dict[tuple[str, str], list[Workload]] = defaultdict(list)
        self._notes: list[tuple[Key, Note]] = []
        for item in self._spaces.values():
            self._named(item.meta.labels, item.meta.key.name, item.meta.key, item.meta.source.line)

    def service(self, service: Service) -> None:
        key = Key(service.kind, service.namespace, service.object)
        found = self._bound(service.labels, service.namespace, key, service.source.line)
        if found is not None and _traffic(self._gateways[found]) in ("service", "all"):
            self._services[found].append((service.namespace, service.hostname))

    def workload(self, member: Workload) -> None:
        found = self._bound(member.labels, member.namespace, None, 0)
        if found is not None and _traffic(self._gateways[found]) in ("workload", "all"):
            self._workloads[found].append(member)

    def _bound(self, labels: Labels, space: str, key: Key | None, line: int) -> tuple[str, str] | None:
        if get(labels, USE):
            return self._named(labels, space, key, line)
        around = self._spaces.get(space)
        return self._named(around.meta.labels, space, None, 0) if around is not None else None

    def _named(self, labels: Labels, space: str, key: Key | None, line: int) -> tuple[str, str] | None:
        """The waypoint that labels name, if it is there and takes what is in ``space``."""
        name = get(labels, USE)
        if not name or name == "none":
            return None
        where = (get(labels, USE_NAMESPACE) or space, name)
        gateway = self._gateways.get(where)
        problem = ""
        if gateway is None:
            problem = f"there is no Gateway {where[0]}/{name} of class {CLASS}"
        elif not self._allows(gateway, space):
            problem = f"Gateway {where[0]}/{name} does not take other namespaces (allowedRoutes of its HBONE listener)"
        if problem and key is not None:
            text = f"{USE}: {problem}: no rule or policy of a waypoint is applied"
            self._notes.append((key, Note(line, "unknown-waypoint", text)))
        return None if problem else where

    def _allows(self, gateway: KubeGateway, space: str) -> bool:
        if space == gateway.meta.key.namespace:
            return True
        return any(self._takes(listener, space) for listener in gateway.listeners if listener.protocol == "HBONE")

    def _takes(self, listener: Listener, space: str) -> bool:
        if listener.from_namespaces != "Selector":
            return listener.from_namespaces == "All"
        around = self._spaces.get(space)
        labels = {_NAME: space, **(dict(around.meta.labels) if around is not None else {})}
        return selects(listener.selector, freeze(labels))

    def finish(self) -> Bound:
        return Bound(tuple(self._waypoints()), tuple(self._notes))

    def _waypoints(self) -> Iterator[Waypoint]:
        for where, gateway in sorted(self._gateways.items()):
            meta, asked = gateway.meta, get(gateway.meta.labels, FOR)
            if asked and asked not in _TRAFFIC:
                text = f"{FOR}: {asked!r} is none of {', '.join(_TRAFFIC)}: taken as service"
                self._notes.append((meta.key, Note(meta.source.line, "bad-label", text)))
            if not any(listener.protocol == "HBONE" for listener in gateway.listeners):
                text = "a waypoint needs a listener of protocol HBONE, port 15008"
                self._notes.append((meta.key, Note(meta.source.line, "no-hbone", text)))
            yield Waypoint(
                namespace=where[0],
                name=where[1],
                services=tuple(sorted(self._services[where])),
                workloads=tuple(sorted(self._workloads[where], key=lambda item: item.ips)),
            )


def _traffic(gateway: KubeGateway) -> str:
    asked = get(gateway.meta.labels, FOR)
    return asked if asked in _TRAFFIC else "service"
