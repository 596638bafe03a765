"""Laws and corners of the compiler: determinism, stable ids, sharing between views, and limits that are said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.abi import numbers as n
from nodeagent.abi.numbers import ActionKind, NameKind, Reason
from nodeagent.abi.records import Vhost, VhostKey
from nodeagent.cache.resources import (
    Assignment,
    Endpoint,
    Forward,
    Listener,
    Locality,
    PathKind,
    PathMatch,
    Route,
    RouteConfiguration,
    RouteMatch,
    StringKind,
    ValueMatch,
    VirtualHost,
    WeightedCluster,
)
from nodeagent.cache.store import Resources
from nodeagent.intent.compile import Compiler
from nodeagent.intent.ids import Known
from nodeagent.intent.model import NOT_CAPTURED, Intent, Table, Where
from tests.support.resources import Load, from_yaml

GOLDEN = Path(__file__).parents[3] / "golden" / "intent"


@pytest.fixture
def base() -> Resources:
    return from_yaml(GOLDEN / "routing.in.yaml")["view"]


def compiled(views: dict[str, Resources], known: Known | None = None) -> Intent:
    loads = [(Load(f"ns/{key}", (f"10.9.0.{i}",)), key) for i, key in enumerate(sorted(views), 1)]
    return Compiler().compile(views, loads, known)


def with_routes(base: Resources, *hosts: VirtualHost) -> Resources:
    return replace(base, routes={"80": RouteConfiguration("80", hosts, True)})


def route(name: str, match: RouteMatch, *clusters: str) -> Route:
    return Route(name, match, Forward(tuple(WeightedCluster(c, 1) for c in clusters or ("a",)), timeout=0.0))


def prefix(path: str, *headers: ValueMatch) -> RouteMatch:
    return RouteMatch(PathMatch(PathKind.PREFIX, path), headers)


def vhosts(intent: Intent) -> dict[str, Vhost]:
    return {VhostKey.unpack(k).host.decode(): Vhost.unpack(v) for k, v in intent.entries[Table.VHOSTS].items()}


def test_order_of_input_and_what_was_compiled_before_do_not_matter(base: Resources) -> None:
    turned = Resources(
        dict(reversed(list(base.listeners.items()))),
        dict(reversed(list(base.routes.items()))),
        dict(reversed(list(base.clusters.items()))),
        dict(reversed(list(base.assignments.items()))),
    )
    one, two = compiled({"a": base, "b": base}), compiled({"b": turned, "a": turned})
    assert one.entries == two.entries
    assert one.rejections == two.rejections
    used = Compiler()
    used.compile({"x": base}, [])
    loads = [(Load("ns/a", ("10.9.0.1",)), "a"), (Load("ns/b", ("10.9.0.2",)), "b")]
    again = used.compile({"a": base, "b": base}, loads)
    assert again.entries == one.entries


def test_equal_views_share_programs_clusters_and_routes_but_not_tables(base: Resources) -> None:
    alone, both = compiled({"a": base}), compiled({"a": base, "b": base})
    assert len(both.programs) == len(alone.programs) == 1
    assert both.entries[Table.CLUSTERS] == alone.entries[Table.CLUSTERS]
    assert len(both.entries[Table.TABLES]) == 2
    assert len(both.entries[Table.VHOSTS]) == 2 * len(alone.entries[Table.VHOSTS])


def test_views_that_differ_in_a_cluster_get_a_version_each(base: Resources) -> None:
    fewer = replace(base, assignments={**base.assignments, "a": Assignment("a", ())})
    both = compiled({"a": base, "b": fewer})
    names = both.known.of(NameKind.CLUSTER)
    assert sum(name.startswith("a # ") for name in names) == 2
    assert "a" not in names
    assert len(both.programs) == 2


def test_editing_weights_keeps_the_routes_id_and_its_counters(base: Resources) -> None:
    def weighted(one: int, two: int) -> Resources:
        clusters = (WeightedCluster("a", one), WeightedCluster("b", two))
        entry = Route("r", prefix("/"), Forward(clusters, timeout=0.0))
        return with_routes(base, VirtualHost("v", ("v",), (entry,)))

    first = compiled({"a": weighted(90, 10)})
    second = compiled({"a": weighted(50, 50)}, first.known)
    before, after = vhosts(first)["v"].direct, vhosts(second)["v"].direct
    assert before.route == after.route
    assert (before.total, after.total) == (100, 100)
    assert before.to != after.to


def test_a_rule_put_in_front_leaves_the_others_their_ids(base: Resources) -> None:
    old = route("", prefix("/old"))
    new = route("", prefix("/new"))
    last = route("", prefix("/"))
    first = compiled({"a": with_routes(base, VirtualHost("v", ("v",), (old, last)))})
    second = compiled({"a": with_routes(base, VirtualHost("v", ("v",), (new, old, last)))}, first.known)
    ids = {info.match: number for number, info in first.routes.items()}
    for number, info in second.routes.items():
        if info.match in ids:
            assert ids[info.match] == number


def test_routes_of_equal_names_in_two_tables_are_two(base: Resources) -> None:
    listener = next(iter(base.listeners.values()))
    chain = listener.chains[0]
    assert chain.http is not None
    other = replace(chain, http=replace(chain.http, rds="90"))
    resources = replace(
        base,
        listeners={"l": listener, "m": Listener("m", "outbound", (("10.96.0.7", 90),), (other,))},
        routes={
            "80": RouteConfiguration("80", (VirtualHost("v", ("v",), (route("", prefix("/"), "a"),)),), True),
            "90": RouteConfiguration("90", (VirtualHost("v", ("v",), (route("", prefix("/"), "b"),)),), True),
        },
    )
    intent = compiled({"a": resources})
    actions = {Vhost.unpack(value).direct.to[0].cluster for value in intent.entries[Table.VHOSTS].values()}
    assert len(actions) == 2


def test_too_many_routes_punt_the_virtual_host_and_say_so(base: Resources) -> None:
    many = tuple(route(f"r{i}", prefix(f"/p{i}/")) for i in range(n.ROUTES + 1))
    intent = compiled({"a": with_routes(base, VirtualHost("v", ("v",), many), VirtualHost("w", ("w",), many[:2]))})
    assert vhosts(intent)["v"].program == 0
    assert vhosts(intent)["v"].direct.kind == ActionKind.PUNT
    assert vhosts(intent)["v"].direct.reason == Reason.CAPACITY
    assert vhosts(intent)["w"].program != 0, "its neighbour is not touched"
    assert any("1025 routes, the kernel's route program holds 1024" in r.reason for r in intent.rejections)
    assert {info.where for info in intent.routes.values() if info.host == "v"} <= {Where.WAYPOINT}


def test_as_many_routes_as_fit_do_fit(base: Resources) -> None:
    many = tuple(route(f"r{i}", prefix(f"/p{i:04}/")) for i in range(n.ROUTES))
    intent = compiled({"a": with_routes(base, VirtualHost("v", ("v",), many))})
    assert vhosts(intent)["v"].program != 0
    assert {rejection.kind for rejection in intent.rejections} == {NOT_CAPTURED}  # the host has no address


@pytest.mark.parametrize(
    ("routes", "reason"),
    [
        (
            tuple(route(f"r{i}", prefix("/", ValueMatch(f"x-{i}", StringKind.EXACT, "1"))) for i in range(17)),
            "17 header names",
        ),
        (
            tuple(route(f"r{i}", prefix("/", ValueMatch("x", StringKind.EXACT, str(i)))) for i in range(65)),
            "more than 64 different header conditions",
        ),
        (
            tuple(route(f"r{i}", prefix("/", ValueMatch(":method", StringKind.EXACT, "PUT"))) for i in range(129)),
            "129 routes that one path can match",
        ),
        ((route("r", prefix("/", ValueMatch("x" * 65, StringKind.PRESENT))),), "longer than 64 bytes"),
    ],
)
def test_every_budget_is_a_named_rejection(base: Resources, routes: tuple[Route, ...], reason: str) -> None:
    intent = compiled({"a": with_routes(base, VirtualHost("v", ("v",), routes))})
    assert vhosts(intent)["v"].direct.reason == Reason.CAPACITY
    assert any(reason in r.reason for r in intent.rejections), [r.reason for r in intent.rejections]


def test_too_many_destinations_and_endpoints_punt(base: Resources) -> None:
    clusters = tuple(WeightedCluster("a", 1) for _ in range(n.WEIGHTS + 1))
    wide = Route("wide", prefix("/wide"), Forward(clusters, timeout=0.0))
    ends = tuple(Endpoint(f"10.1.{i // 250}.{i % 250 + 1}", 80) for i in range(n.CLUSTER_SLOTS + 1))
    big = replace(base, assignments={**base.assignments, "b": Assignment("b", (Locality("", "", "", 0, 0, ends),))})
    intent = compiled({"a": with_routes(big, VirtualHost("v", ("v",), (wide, route("big", prefix("/"), "b"))))})
    (program,) = intent.programs.values()
    assert [(a.kind, a.reason) for a in program.actions] == [(ActionKind.PUNT, Reason.CAPACITY)] * 2
    assert any("9 destinations, a route holds 8" in r.reason for r in intent.rejections)
    assert any("257 endpoints with their weights need 257 slots" in r.reason for r in intent.rejections)


def test_a_domain_that_cannot_be_looked_up_takes_its_table_out_of_the_kernel(base: Resources) -> None:
    intent = compiled({"a": with_routes(base, VirtualHost("v", ("v", "foo.*"), (route("r", prefix("/")),)))})
    assert intent.entries[Table.TABLES] == {}
    assert vhosts(intent) == {}
    assert any("only wildcards of the form *.suffix" in r.reason for r in intent.rejections)


def test_a_workload_that_comes_back_with_another_address_is_another_one(base: Resources) -> None:
    first = Compiler().compile({"a": base}, [(Load("ns/p", ("10.9.0.1",)), "a")])
    second = Compiler().compile({"a": base}, [(Load("ns/p", ("10.9.0.2",)), "a")], first.known)
    assert first.enrolled != second.enrolled
    assert second.enrolled["ns/p"] not in first.known.of(NameKind.WORKLOAD).values()


def test_a_dead_endpoint_keeps_its_number_and_its_address(base: Resources) -> None:
    first = compiled({"a": base})
    without = replace(base, assignments={**base.assignments, "a": Assignment("a", ())})
    second = compiled({"a": without}, first.known)
    assert first.entries[Table.ENDPOINTS].keys() == second.entries[Table.ENDPOINTS].keys()
    third = compiled({"a": base}, second.known)
    assert third.entries[Table.ENDPOINTS] == first.entries[Table.ENDPOINTS]
