"""Decisions over the fake's maps, by libcore: host, wildcard, weights, load balancing, and each reason for none."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from nodeagent.abi.codec import Record
from nodeagent.abi.layout import STRUCTS
from nodeagent.abi.numbers import ActionKind, Lb, Reason
from nodeagent.abi.records import (
    Action,
    Cluster,
    Endpoint,
    EndpointStat,
    Table,
    Vhost,
    VhostKey,
    Weight,
    address,
)
from nodeagent.bpf.abc import MapSpec, MapType
from nodeagent.bpf.fake import FakeKernel, FakeMap
from nodeagent.core.decide import Decider
from nodeagent.core.libcore import Core, HeadReader

pytestmark = pytest.mark.needs("core")

TABLE = 3


class World:
    """Maps, a decider, and numbers in place of chance."""

    def __init__(self) -> None:
        self.kernel, self.core = FakeKernel(), Core()
        sizes = {name: STRUCTS[name][0] for name in STRUCTS}
        array = {
            "tables": "up_table", "clusters": "up_cluster", "endpoints": "up_endpoint",
            "endpoint_stats": "up_endpoint_stat",
        }  # fmt: skip
        self.maps: dict[str, FakeMap] = {
            name: self.kernel.create_map(MapSpec(name, MapType.ARRAY, 4, sizes[struct], 32))
            for name, struct in array.items()
        }
        self.maps["vhosts"] = self.kernel.create_map(
            MapSpec("vhosts", MapType.HASH, sizes["up_vhost_key"], sizes["up_vhost"], 32)
        )
        self.maps["programs"] = self.kernel.create_map(MapSpec("programs", MapType.ARRAY_OF_MAPS, 4, 4, 8))
        self.random = (i * 2_654_435_761 & 0xFFFFFFFF for i in itertools.count())
        self.decider = Decider(self.core, self.kernel, self.maps, lambda: next(self.random))
        self.reader = HeadReader(self.core)
        self.put("tables", TABLE, Table(1 | 2 | 4 | 8))
        for number in range(1, 4):
            self.put("endpoints", number, Endpoint(address(f"10.0.0.{number}"), 80, 4, 1))
        self.put("clusters", 1, Cluster(n=2, lb=Lb.ROUND_ROBIN, live=1, slot=(1, 2)))
        self.put("clusters", 2, Cluster(n=1, live=1, slot=(3,)))

    def put(self, name: str, key: int, value: Record) -> None:
        self.maps[name].update(key.to_bytes(4, "little"), value.pack())

    def route(self, host: str, *to: tuple[int, int], reason: int = 0, kind: int = ActionKind.CLUSTERS) -> None:
        total, weights = 0, []
        for weight, cluster in to:
            total += weight
            weights.append(Weight(total, cluster))
        action = Action(9, ActionKind.PUNT if reason else kind, reason, len(to), 0, total, tuple(weights))
        self.maps["vhosts"].update(VhostKey(TABLE, host.encode()).pack(), Vhost(0, action).pack())

    def decide(self, host: str, table: int = TABLE) -> tuple[int, str, int, int]:
        head = self.reader.parse(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert head.reason == 0
        got = self.decider.decide(self.reader, table)
        return got.reason, got.domain.decode(), got.cluster, got.endpoint


@pytest.fixture
def world() -> World:
    return World()


def test_host_then_longest_wildcard_then_any(world: World) -> None:
    for host in ("a.b.c", "*.b.c", "*.c", "*"):
        world.route(host, (1, 2))
    assert world.decide("A.b.C:8080") == (0, "a.b.c", 2, 3)
    assert world.decide("x.b.c")[1] == "*.b.c"
    assert world.decide("y.x.b.c")[1] == "*.b.c"
    assert world.decide("b.c")[1] == "*.c"
    assert world.decide("c")[1] == "*"
    world.put("tables", TABLE, Table(1))
    assert world.decide("x.b.c")[0] == Reason.NO_VHOST
    assert world.decide("a.b.c")[0] == 0
    assert world.decide("a.b.c:80")[0] == Reason.BAD_HOST


def test_round_robin_and_weights(world: World) -> None:
    world.route("rr", (1, 1))
    assert [world.decide("rr")[3] for _ in range(4)] == [1, 2, 1, 2]
    world.route("w", (75, 1), (25, 2))
    split = Counter(world.decide("w")[2] for _ in range(400))
    assert 290 <= split[1] <= 310
    assert split[1] + split[2] == 400


def test_least_request_takes_the_idler(world: World) -> None:
    world.put("clusters", 1, Cluster(n=2, lb=Lb.LEAST_REQUEST, choices=2, live=1, slot=(1, 2)))
    world.put("endpoint_stats", 1, EndpointStat(active=5))
    world.route("lr", (1, 1))
    chosen = Counter(world.decide("lr")[3] for _ in range(40))
    assert chosen[2] > chosen[1]


def test_each_reason(world: World) -> None:
    world.route("dead", (1, 4))
    world.put("clusters", 4, Cluster(n=1, live=1, slot=(5,)))
    world.route("empty", (1, 5))
    world.put("clusters", 5, Cluster(live=1))
    world.route("absent", (1, 6))
    world.route("missing", (1, 0))
    world.route("punt", reason=Reason.ROUTE_REWRITE)
    world.route("none", kind=ActionKind.NONE)
    world.maps["vhosts"].update(VhostKey(TABLE, b"program").pack(), Vhost(7, Action()).pack())
    expected = {
        "dead": Reason.ENDPOINT_GONE, "empty": Reason.NO_ENDPOINT, "absent": Reason.NO_CLUSTER,
        "missing": Reason.NO_CLUSTER, "punt": Reason.ROUTE_REWRITE, "none": Reason.NO_ROUTE,
        "program": Reason.CAPACITY, "nobody": Reason.NO_VHOST,
    }  # fmt: skip
    assert {host: world.decide(host)[0] for host in expected} == expected
    assert world.decide("rr", table=4)[0] == Reason.NO_TABLE


def test_members_and_lines(world: World) -> None:
    world.put("clusters", 1, Cluster(n=4, live=1, slot=(2, 1, 2, 2)))
    assert world.decider.members(1) == [2, 1]
    assert world.decider.members(31) == []
    data = b"GET /p?q=1 HTTP/1.1\r\nHost: a\r\nX-Y: z w\r\n\r\nrest"
    head = world.reader.parse(data)
    assert (data[head.path : head.path_end], data[head.path : head.target_end]) == (b"/p", b"/p?q=1")
    assert data[head.size :] == b"rest"
    assert world.reader.header_lines(data) == [(b"Host", b"a"), (b"X-Y", b"z w")]
    assert world.reader.host() == b"a"
