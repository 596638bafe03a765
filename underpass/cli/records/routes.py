"""The rows of `underpass routes`: counters of one node or of several, as the issue fixes their JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from nodeagent.cache.resources import Source
from nodeagent.telemetry.read import RouteCount

#: Name of the row for requests that went to the home peer before anybody knew their route.
UNROUTED: Final = "unrouted"
_NOBODY: Final = Source(kind="", name="", namespace="")


@dataclass(frozen=True, slots=True)
class RouteRow:
    """One route with its requests.

    kernel: decided by the kernel; home: served by underpass-home; waypoint: left to an Envoy. `punts` says why the
    kernel did not decide; it counts at once, while home writes its own count about once a second. A request that
    comes split, say, is punted before its route is known (in the row UNROUTED) and then counted at its route as home's.
    """

    host: str
    route: str
    match: str
    cluster: str
    source: Source
    where: str = ""
    reason: str = ""
    kernel: int = 0
    home: int = 0
    waypoint: int = 0
    refused: int = 0
    punts: Mapping[str, int] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        """All requests whose outcome is known at this row."""
        return self.kernel + self.home + self.waypoint

    @property
    def identity(self) -> tuple[object, ...]:
        """What makes a row of one node the same as one of another."""
        return self.host, self.route, self.match, self.cluster, self.source


def rows(
    routes: Iterable[RouteCount], unrouted: Mapping[str, int], refused: int, *, envoy: bool = False
) -> list[RouteRow]:
    """The rows of one node.

    `unrouted`: punts without a route, by reason; `refused`: requests that home refused without one; `envoy`: the home
    peer is an Envoy, which counts for itself.
    """
    found = [
        RouteRow(
            host=route.host,
            route=route.route,
            match=route.match,
            cluster=route.cluster,
            source=route.source or _NOBODY,
            where=route.where,
            reason=route.reason,
            kernel=route.kernel,
            home=route.home,
            waypoint=route.waypoint,
            refused=route.refused,
            punts=dict(route.punts),
        )
        for route in routes
    ]
    if refused or any(unrouted.values()):
        waypoint = max(0, sum(unrouted.values()) - refused) if envoy else 0
        row = RouteRow("", UNROUTED, "", "", _NOBODY, home=refused, waypoint=waypoint, refused=refused)
        found.append(replace(row, punts=dict(unrouted)))
    return found


def merge(nodes: Iterable[Iterable[RouteRow]]) -> list[RouteRow]:
    """The rows of several nodes: equal routes are added up."""
    sums: dict[tuple[object, ...], RouteRow] = {}
    for found in nodes:
        seen: dict[tuple[object, ...], int] = {}
        for row in found:
            # A node may have two versions of a route, for views that differ: they stay two.
            ordinal = seen[row.identity] = seen.get(row.identity, -1) + 1
            key = (*row.identity, ordinal)
            sums[key] = _plus(sums[key], row) if key in sums else row
    return sorted(sums.values(), key=lambda row: (row.route == UNROUTED, row.host, row.source.rule, row.source.line))


def _plus(one: RouteRow, other: RouteRow) -> RouteRow:
    punts = {
        reason: one.punts.get(reason, 0) + other.punts.get(reason, 0) for reason in sorted({*one.punts, *other.punts})
    }
    return replace(
        one,
        kernel=one.kernel + other.kernel,
        home=one.home + other.home,
        waypoint=one.waypoint + other.waypoint,
        refused=one.refused + other.refused,
        punts=punts,
    )


def document(found: Iterable[RouteRow]) -> dict[str, Any]:
    """The JSON document. `source` is always an object; an empty kind means that no object of a user made the route."""
    return {
        "routes": [
            {
                "host": row.host,
                "route": row.route,
                "cluster": row.cluster,
                "kernel": row.kernel,
                "home": row.home,
                "waypoint": row.waypoint,
                "punts": {reason: count for reason, count in sorted(row.punts.items()) if count},
                "source": source_json(row.source),
            }
            for row in found
        ]
    }


def source_json(source: Source | None) -> dict[str, Any]:
    """A source as JSON; the empty one for None."""
    item = source or _NOBODY
    return {
        "kind": item.kind,
        "name": item.name,
        "namespace": item.namespace,
        "rule": item.rule,
        "file": item.file,
        "line": item.line,
    }


def source_text(source: Source | None) -> str:
    """`virtualservice/shop/catalog#0 catalog.yaml:11`: the object, the rule's index, the place."""
    if source is None or not source.kind:
        return "-"
    rule = f"#{source.rule}" if source.rule >= 0 else ""
    place = f" {source.file}:{source.line}" if source.file else ""
    return f"{source.kind}/{source.namespace}/{source.name}{rule}{place}"


def cluster_text(cluster: str) -> str:
    """A destination for people: `outbound|80|v1|catalog.shop.svc.cluster.local` is `catalog.shop:80 v1`.

    Several destinations, each with its weight, are separated by commas.
    """
    return ", ".join(_cluster(part) for part in cluster.split(", ")) if cluster else "-"


def _cluster(text: str) -> str:
    name, equals, weight = text.rpartition("=")
    if not equals or not weight.isdigit():
        name, weight = text, ""
    parts = name.split("|")
    if len(parts) == 4:
        subset = f" {parts[2]}" if parts[2] else ""
        name = f"{short_host(parts[3])}:{parts[1]}{subset}"
    return f"{name} ({weight})" if weight else name


def short_host(host: str) -> str:
    """A service's name and namespace; other hosts as they are."""
    name, dot, rest = host.partition(".svc.")
    return name if dot and rest else host


def cells(row: RouteRow) -> tuple[str, ...]:
    """A row of the table for people."""
    host, _, port = row.host.rpartition(":")
    shown = f"{short_host(host)}:{port}" if host else row.host
    punts = ", ".join(f"{reason} {count}" for reason, count in sorted(row.punts.items()) if count)
    if row.route == UNROUTED:
        shown, match = "(before a route was known)", "-"
    else:
        match = row.match or "-"
    return (
        shown,
        match,
        cluster_text(row.cluster),
        str(row.kernel),
        f"{row.home} ({row.refused} refused)" if row.refused else str(row.home),
        str(row.waypoint),
        punts or "-",
        source_text(row.source),
    )


COLUMNS: Final = ("HOST", "MATCH", "DESTINATION", "KERNEL", "HOME", "WAYPOINT", "PUNTS", "SOURCE")
NUMBERS: Final = ("KERNEL", "HOME", "WAYPOINT")
