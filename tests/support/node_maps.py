"""The agent's maps, shaped as kernel/maps.h declares them, over any kernel: the fake for unit tests."""

from __future__ import annotations

from nodeagent.abi import numbers as n
from nodeagent.abi import records as r
from nodeagent.abi.layout import STRUCTS
from nodeagent.bpf.abc import Map, MapSpec, MapType
from nodeagent.bpf.fake import FakeKernel

_HASH, _ARRAY = MapType.HASH, MapType.ARRAY


def specs() -> list[MapSpec]:
    """Every map that the agent or an explanation touches.

    `cgroup_workload` is a plain hash here: its real kind needs cgroups.
    """
    return [
        MapSpec("config", _ARRAY, 4, r.Config.size(), 1),
        MapSpec("cgroup_workload", _HASH, 8, 4, 64),
        MapSpec("workloads", _ARRAY, 4, r.Workload.size(), n.WORKLOADS),
        MapSpec("services", _HASH, r.ServiceKey.size(), r.Service.size(), n.SERVICES),
        MapSpec("tables", _ARRAY, 4, r.Table.size(), n.TABLES),
        MapSpec("vhosts", _HASH, r.VhostKey.size(), r.Vhost.size(), n.VHOSTS),
        MapSpec("programs", MapType.ARRAY_OF_MAPS, 4, 4, n.PROGRAMS),
        MapSpec("clusters", _ARRAY, 4, r.Cluster.size(), n.CLUSTERS),
        MapSpec("endpoints", _ARRAY, 4, r.Endpoint.size(), n.ENDPOINTS),
        MapSpec("endpoint_stats", _ARRAY, 4, r.EndpointStat.size(), n.ENDPOINTS),
        MapSpec("endpoint_runs", _ARRAY, 4, r.EndpointRun.size(), n.ENDPOINTS),
        MapSpec("stocks", _HASH, r.StockKey.size(), r.Stock.size(), n.STOCKS),
        MapSpec("names", _HASH, r.NameKey.size(), r.NameText.size(), n.VHOSTS),
        MapSpec("counters", MapType.PERCPU_ARRAY, 4, 8, n.Counter.LAST),
        MapSpec("route_stats", MapType.PERCPU_ARRAY, 4, r.RouteStat.size(), n.ROUTE_IDS),
        MapSpec("punt_stats", MapType.PERCPU_HASH, r.PuntKey.size(), 8, n.ROUTE_IDS),
        MapSpec("reply_stats", MapType.PERCPU_HASH, r.PuntKey.size(), 8, n.ROUTE_IDS),
        MapSpec("replies", _HASH, 8, r.Reply.size(), n.REPLIES),
        MapSpec("home_stats", _HASH, 4, r.HomeStat.size(), n.ROUTE_IDS),
        MapSpec("home_rules", _HASH, 8, r.HomeRule.size(), n.RULES),
        MapSpec("flow_stats", MapType.PERCPU_HASH, r.FlowKey.size(), r.FlowStat.size(), n.FLOWS),
        MapSpec("interface_stats", MapType.PERCPU_ARRAY, 4, r.InterfaceStat.size(), n.INTERFACES),
    ]


def node_maps(kernel: FakeKernel, **entries: int) -> dict[str, Map]:
    """The maps by name; `entries` makes some of them smaller."""
    inner = MapSpec("program", _ARRAY, 4, STRUCTS["up_program"][0], 1)
    made: dict[str, Map] = {}
    for spec in specs():
        size = entries.get(spec.name, spec.max_entries)
        shape = MapSpec(spec.name, spec.type, spec.key_size, spec.value_size, size, spec.flags)
        made[spec.name] = kernel.create_map(shape, inner if spec.type.of_maps else None)
    return made
