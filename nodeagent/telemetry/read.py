"""Reading what the kernel, home and the agent left in the maps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nodeagent.abi.numbers import COUNTER_LABELS, REASON_LABELS, NameKind
from nodeagent.abi.records import (
    Config,
    Endpoint,
    EndpointStat,
    HomeStat,
    InterfaceStat,
    NameKey,
    PuntKey,
    RouteStat,
    address_text,
)
from nodeagent.bpf.abc import Kernel, Map
from nodeagent.bpf.errors import NotPinnedError
from nodeagent.bpf.kernel import LinuxKernel
from nodeagent.cache.resources import Source
from nodeagent.errors import NotRunningError

Counters = dict[str, int]
"""Kernel counters of the whole node by label (`enum up_counter`)."""


@dataclass(frozen=True, slots=True)
class RouteCount:
    """A route and its requests.

    kernel: decided in the kernel. home: served by underpass-home; refused: of those, the ones it answered itself with
    an error. waypoint: left to the home peer where that is an Envoy, and not served by underpass-home (for workloads
    that keep to it, or while Envoy was away). punts: why requests were left to the home peer, by reason. `where` is who
    decides it by configuration, `reason` and `features` why that is not the kernel.
    """

    id: int
    host: str
    route: str
    match: str
    clusters: tuple[tuple[str, int], ...]
    where: str
    reason: str
    features: tuple[str, ...]
    source: Source | None
    kernel: int = 0
    home: int = 0
    waypoint: int = 0
    refused: int = 0
    punts: Mapping[str, int] = field(default_factory=dict)

    @property
    def cluster(self) -> str:
        """The destination as text: the cluster, or each with its weight."""
        if len(self.clusters) == 1:
            return self.clusters[0][0]
        return ", ".join(f"{name}={weight}" for name, weight in self.clusters)


@dataclass(frozen=True, slots=True)
class EndpointCount:
    """An endpoint: address, whose it is, and its requests on wires of this node."""

    id: int
    address: str
    port: int
    workload: str
    live: bool
    active: int
    requests: int
    errors: int


@dataclass(frozen=True, slots=True)
class InterfaceCount:
    """Traffic at a workload's host interface."""

    ifindex: int
    to_pod_packets: int
    to_pod_bytes: int
    from_pod_packets: int
    from_pod_bytes: int


def read_routes(bpffs_dir: Path, kernel: Kernel | None = None) -> list[RouteCount]:
    """Every named route of a node, by host and match. `bpffs_dir`: /sys/fs/bpf/underpass/NODE.

    Raises NotRunningError when no agent has set the node up.
    """
    with _maps(bpffs_dir, ("names", "route_stats", "punt_stats", "home_stats", "config"), kernel) as maps:
        return routes_of(maps)


def read_unrouted(bpffs_dir: Path, kernel: Kernel | None = None) -> dict[str, int]:
    """Requests that were left to the home peer before a route was known, by reason."""
    with _maps(bpffs_dir, ("punt_stats",), kernel) as maps:
        return punts_of(maps).get(0, {})


def read_counters(bpffs_dir: Path, kernel: Kernel | None = None) -> Counters:
    """The node's counters by label."""
    with _maps(bpffs_dir, ("counters",), kernel) as maps:
        return counters_of(maps)


def read_endpoints(bpffs_dir: Path, kernel: Kernel | None = None) -> list[EndpointCount]:
    """Every endpoint that the node knows, the dead ones too."""
    with _maps(bpffs_dir, ("names", "endpoints", "endpoint_stats"), kernel) as maps:
        return endpoints_of(maps)


def read_interfaces(bpffs_dir: Path, kernel: Kernel | None = None) -> list[InterfaceCount]:
    """Traffic of every enrolled workload's host interface."""
    with _maps(bpffs_dir, ("interface_stats",), kernel) as maps:
        found = []
        for key in maps["interface_stats"].keys():  # noqa: SIM118 - a BPF map, not a dict
            rows = [InterfaceStat.unpack(v) for v in maps["interface_stats"].lookup_percpu(key) or []]
            if not rows or not rows[0].ifindex:
                continue
            found.append(
                InterfaceCount(
                    rows[0].ifindex,
                    sum(row.to_pod_packets for row in rows),
                    sum(row.to_pod_bytes for row in rows),
                    sum(row.from_pod_packets for row in rows),
                    sum(row.from_pod_bytes for row in rows),
                )
            )
        return sorted(found, key=lambda count: count.ifindex)


# ---- over open maps ----


def names_of(maps: Mapping[str, Map], kind: NameKind) -> dict[int, str]:
    """Name texts of one kind by id."""
    found = {}
    for key, text in maps["names"].items():
        name = NameKey.unpack(key)
        if name.kind == kind:
            found[name.id] = text.rstrip(b"\0").decode("utf-8", "replace")
    return found


def route_of(number: int, text: str) -> RouteCount:
    """A route by its name text, without counts. A text that is not ours still gives a row."""
    try:
        data: Any = json.loads(text)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        data = {"host": text}
    source = data.get("source")
    return RouteCount(
        id=number,
        host=str(data.get("host", "")),
        route=str(data.get("route", "")),
        match=str(data.get("match", "")),
        clusters=tuple((str(name), int(weight)) for name, weight in data.get("clusters", ())),
        where=str(data.get("where", "")),
        reason=str(data.get("reason", "")),
        features=tuple(str(feature) for feature in data.get("features", ())),
        source=_source(source),
    )


def _source(data: Any) -> Source | None:
    if not isinstance(data, list) or len(data) != 6:
        return None
    kind, namespace, name, rule, file, line = data
    return Source(kind=kind, name=name, namespace=namespace, rule=rule, file=file, line=line)


def routes_of(maps: Mapping[str, Map]) -> list[RouteCount]:
    """Every named route with its counts."""
    punts = punts_of(maps)
    config = maps["config"].lookup(bytes(4))
    envoy = config is not None and Config.unpack(config).home_kind == 1
    found = []
    for number, text in names_of(maps, NameKind.ROUTE).items():
        key = number.to_bytes(4, "little")
        rows = [RouteStat.unpack(value) for value in maps["route_stats"].lookup_percpu(key) or []]
        home = maps["home_stats"].lookup(key)
        served = HomeStat.unpack(home) if home is not None else HomeStat()
        route = route_of(number, text)
        found.append(
            RouteCount(
                route.id,
                route.host,
                route.route,
                route.match,
                route.clusters,
                route.where,
                route.reason,
                route.features,
                route.source,
                kernel=sum(row.kernel for row in rows),
                home=served.requests,
                waypoint=max(0, sum(punts.get(number, {}).values()) - served.requests) if envoy else 0,
                refused=served.refused,
                punts=punts.get(number, {}),
            )
        )
    return sorted(found, key=lambda r: (r.host, r.source.rule if r.source else -1, r.id))


def punts_of(maps: Mapping[str, Map]) -> dict[int, dict[str, int]]:
    """Punted requests by route id and reason."""
    found: dict[int, dict[str, int]] = {}
    stats = maps["punt_stats"]
    for key in stats.keys():  # noqa: SIM118 - a BPF map, not a dict
        punt = PuntKey.unpack(key)
        count = _total(stats.lookup_percpu(key) or [], _u64)
        label = REASON_LABELS.get(punt.reason, f"reason-{punt.reason}")
        reasons = found.setdefault(punt.route, {})
        reasons[label] = reasons.get(label, 0) + count
    return found


def counters_of(maps: Mapping[str, Map]) -> Counters:
    """The node's counters by label."""
    stats = maps["counters"]
    return {
        label: _total(stats.lookup_percpu(int(number).to_bytes(4, "little")) or [], _u64)
        for number, label in COUNTER_LABELS.items()
    }


def endpoints_of(maps: Mapping[str, Map]) -> list[EndpointCount]:
    """Every endpoint with its counts."""
    names = names_of(maps, NameKind.ENDPOINT)
    found = []
    for key, value in maps["endpoints"].items():
        record = Endpoint.unpack(value)
        number = int.from_bytes(key, "little")
        if not record.family:
            continue
        stat = maps["endpoint_stats"].lookup(key)
        counts = EndpointStat.unpack(stat) if stat is not None else EndpointStat()
        found.append(
            EndpointCount(
                number,
                address_text(record.addr),
                record.port,
                names.get(number, "").partition(" ")[2],
                bool(record.live),
                counts.active,
                counts.requests,
                counts.errors,
            )
        )
    return found


def _u64(data: bytes) -> int:
    return int.from_bytes(data[:8], "little")


def _total(values: Iterable[bytes], read: Callable[[bytes], int]) -> int:
    return sum(read(value) for value in values)


@contextmanager
def _maps(bpffs_dir: Path, names: Iterable[str], kernel: Kernel | None) -> Iterator[dict[str, Map]]:
    """Pinned maps by name, closed afterwards."""
    edge = kernel or LinuxKernel()
    opened: dict[str, Map] = {}
    try:
        for name in names:
            opened[name] = edge.pinned_map(bpffs_dir / "maps" / name)
        yield opened
    except NotPinnedError as error:
        raise NotRunningError(
            f"no maps are pinned under {bpffs_dir}", str(error), "start underpass-agent on this node, or name another"
        ) from error
    finally:
        for target in opened.values():
            target.close()
