"""Map entries as records and lines: every map that can be dumped, ids as what they mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeagent.abi import numbers as n
from nodeagent.abi.codec import offset_of
from nodeagent.abi.layout import STRUCTS
from nodeagent.abi.records import HomeStat, InterfaceStat, PuntKey, RouteStat, Stock, StockKey, Tuple, address
from nodeagent.reconcile import MAPS
from tests.support.fake_node import SHOP, FakeNode, build
from underpass.cli.records import maps as records


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return build(tmp_path, SHOP, [("shop", "web", ("10.244.0.9", "fd00::9"))])


def context(node: FakeNode) -> records.Context:
    return records.Context(records.names(node.maps["names"].items()), {7: "veth-7"}, {99: "/cg/web"})


def lines(node: FakeNode, name: str) -> list[str]:
    return [records.line(e) for e in records.decode(name, node.maps[name].items(), context(node))]


def test_every_map_of_the_agent_can_be_dumped() -> None:
    assert set(MAPS) <= set(records.DECODERS)
    assert {"conns", "stocks"} <= set(records.DECODERS)


def test_configuration_maps(node: FakeNode) -> None:
    (view,) = node.intent.known.of(n.NameKind.VIEW)
    assert lines(node, "config") == [
        f"version={n.ABI_VERSION}  generation=0  home_generation=0  home=10.0.0.1:15001  home_kind=underpass-home"
    ]
    assert lines(node, "workloads") == [f"id=1  workload=shop/web  view={view}  addresses=10.244.0.9,fd00::9"]
    assert f"view={view}  address=10.96.0.10:80  kind=http  table=80 #1" in lines(node, "services")
    tcp = "kind=tcp  action=outbound|5432||db.shop.svc.cluster.local"
    assert f"view={view}  address=10.96.0.11:5432  {tcp}" in lines(node, "services")
    assert lines(node, "tables") == [f"id=1  table=80  view={view}  flags=live,any,ignore-port"]
    vhosts = lines(node, "vhosts")
    assert "table=80 #1  domain=api  program=api.shop.svc.cluster.local:80 #1" in vhosts
    assert "table=80 #1  domain=empty  action=outbound|80||empty.shop.svc.cluster.local" in vhosts
    assert "table=80 #1  domain=*  action=punt route-other" in vhosts
    cluster = next(line for line in lines(node, "clusters") if "|v1|" in line)
    assert cluster.endswith("balance=least-request  endpoints=10.244.0.1:8080")
    assert "workload=api-1  live=yes" in next(line for line in lines(node, "endpoints") if "10.244.0.1:" in line)
    assert "kind=view  id=1  text=" + view in lines(node, "names")


def test_a_route_program_is_summed_up(node: FakeNode) -> None:
    inner = node.maps["programs"].inner_id((1).to_bytes(4, "little"))
    assert inner is not None
    value = node.kernel.map_by_id(inner).lookup(bytes(4))
    assert value is not None
    (entry,) = records.decode("programs", [((1).to_bytes(4, "little"), value)], context(node))
    assert (entry["virtual_host"], entry["routes"], entry["headers"]) == (
        "api.shop.svc.cluster.local:80", 3, ["end-user"],
    )  # fmt: skip


def test_connections(node: FakeNode) -> None:
    def conn(**fields: int) -> bytes:
        value = bytearray(STRUCTS["up_conn"][0])
        for name, number in fields.items():
            at = offset_of("up_conn", name)
            value[at : at + (1 if name in ("kind", "state", "flags") else 4)] = number.to_bytes(
                1 if name in ("kind", "state", "flags") else 4, "little"
            )
        at = offset_of("up_conn", "peer")
        peer = Tuple(address("10.244.0.9"), address("10.244.0.1"), 5000, 8080).pack()
        value[at : at + len(peer)] = peer
        return bytes(value)

    endpoint = node.number(n.NameKind.ENDPOINT, "10.244.0.1:")
    client = Tuple(address("10.244.0.9"), address("10.0.0.1"), 4000, 15001)
    node.maps["conns"].update(
        client.pack(), conn(kind=1, state=1, flags=n.CF_TS, workload=1, table=1, endpoint=endpoint)
    )
    assert lines(node, "conns") == [
        (
            "kind=client  local=10.244.0.9:4000  remote=10.0.0.1:15001  state=away  flags=timestamps  workload=shop/web"
            "  peer=10.244.0.9:5000>10.244.0.1:8080  endpoint=10.244.0.1:8080  table=80"
        )
    ]
    node.maps["conns"].delete(client.pack())
    upstream = Tuple(address("fd00::9"), address("fd00::1"), 5000, 8080)
    node.maps["conns"].update(upstream.pack(), conn(kind=2, state=2, requests=3, workload=1, endpoint=endpoint))
    assert lines(node, "conns") == [
        (
            "kind=upstream  local=[fd00::9]:5000  remote=[fd00::1]:8080  state=free  workload=shop/web"
            "  endpoint=10.244.0.1:8080  requests=3"
        )
    ]


def test_counters(node: FakeNode) -> None:
    endpoint = node.number(n.NameKind.ENDPOINT, "10.244.0.1:")
    node.maps["stocks"].update(StockKey(1, endpoint).pack(), Stock(n=1, misses=4, port=(8, 9)).pack())
    assert lines(node, "stocks") == ["workload=shop/web  endpoint=10.244.0.1:8080  free=1  misses=4  ports=8"]
    slots = [RouteStat(kernel=2).pack(), RouteStat(kernel=1 << 40).pack()]
    total = records.summed("route_stats", slots)
    (entry,) = records.decode("route_stats", [((1).to_bytes(4, "little"), total)], context(node))
    assert entry["kernel"] == (1 << 40) + 2
    (entry,) = records.decode("punt_stats", [(PuntKey(0, n.Reason.UPGRADE).pack(), bytes(8))], context(node))
    assert entry == {"route": "(not known)", "reason": "upgrade", "count": 0}
    (entry,) = records.decode("home_stats", [(bytes(4), HomeStat(3, 2).pack())], context(node))
    assert entry == {"route": "(not known)", "requests": 3, "refused": 2}
    (entry,) = records.decode(
        "interface_stats", [((3).to_bytes(4, "little"), InterfaceStat(1, 2, 3, 4, 7).pack())], context(node)
    )
    assert entry["interface"] == "veth-7"
    (entry,) = records.decode(
        "cgroup_workload", [((99).to_bytes(8, "little"), (1).to_bytes(4, "little"))], context(node)
    )
    assert entry == {"cgroup": "/cg/web", "workload": "shop/web"}
    number = int(n.Counter.KERNEL).to_bytes(4, "little")
    assert list(records.decode("counters", [(number, (5).to_bytes(8, "little"))], context(node))) == [
        {"counter": "kernel", "count": 5}
    ]
    assert list(records.decode("counters", [((30).to_bytes(4, "little"), bytes(8))], context(node))) == []


def test_ids_that_nobody_knows_stay_numbers() -> None:
    nothing = records.Context()
    assert nothing.name(n.NameKind.CLUSTER, 5) == "#5"
    assert nothing.name(n.NameKind.CLUSTER, 0) == "-"
    assert records.Context({(n.NameKind.ROUTE, 1): "not json"}).name(n.NameKind.ROUTE, 1) == "#1"


def test_pressure() -> None:
    names = {(int(n.NameKind.CLUSTER), number): "x" for number in range(1, 8)}
    found = records.pressure({"clusters": 8, "conns": 10, "config": 1}, {"conns": 5}, names)
    assert [(item.map, item.used, item.limit, item.share) for item in found] == [
        ("clusters", 7, 7, 1.0),
        ("conns", 5, 10, 0.5),
    ]
