"""Laws and corners of the compiler: determinism, stable ids, sharing between views, and limits that are said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.abi import numbers as n
from nodeagent.abi.numbers import ActionKind, NameKind, Reason
from nodeagent.abi.records import Cluster, Vhost, VhostKey
from nodeagent.cache.resources import (
    Assignment,
    Endpoint,
    Forward,
    Listener,
    Locality,
    Outlier,
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
from nodeagent.health.outlier import Watch
from nodeagent.intent.compile import Compiler
from nodeagent.intent.ids import Known
from nodeagent.intent.model import NOT_CAPTURED, Intent, Table, Where
from nodeagent.rules.model import Limit, Retry, Rule
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


def test_an_ejected_endpoint_gets_nothing_and_keeps_what_it_has(base: Resources) -> None:
    """Its cluster changes and nothing else does: no id, no record of an endpoint, no route program."""
    policy = Outlier(errors=3)
    judged = replace(base, clusters={**base.clusters, "a": replace(base.clusters["a"], outlier=policy)})
    ends = tuple(Endpoint(f"10.1.0.{i}", 80) for i in (1, 2, 3))
    judged = replace(
        judged, assignments={**base.assignments, "a": Assignment("a", (Locality("", "", "", 0, 0, ends),))}
    )
    loads, watch = [(Load("ns/a", ("10.9.0.1",)), "a")], Watch("a", policy)
    compiler = Compiler()
    before = compiler.compile({"a": judged}, loads)
    assert before.watched == {watch: frozenset({"10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"})}
    out = compiler.compile({"a": judged}, loads, before.known, {watch: frozenset({"10.1.0.2:80"})})
    number = before.known.of(NameKind.ENDPOINT)["10.1.0.2:80"]
    changed = {table for table in before.entries if before.entries[table] != out.entries[table]}
    assert changed == {Table.CLUSTERS}
    records = [Cluster.unpack(value) for value in out.entries[Table.CLUSTERS].values()]
    assert not any(number in record.slot[: record.n] for record in records)
    assert {p.digest for p in before.programs.values()} == {p.digest for p in out.programs.values()}
    # what is back is as it was; another policy's ejections are not this one's
    assert compiler.compile({"a": judged}, loads, out.known).entries == before.entries
    other = {Watch("a", Outlier()): frozenset({"10.1.0.2:80"})}
    assert compiler.compile({"a": judged}, loads, out.known, other).entries == before.entries


def test_limits_of_requests_are_homes_and_limits_of_connections_the_waypoints(base: Resources) -> None:
    def where(retry: Retry | None = None, **settings: object) -> tuple[Where, tuple[str, ...], Rule]:
        changed = replace(base.clusters["a"], **settings)  # type: ignore[arg-type]  # any of its fields
        held = replace(base, clusters={**base.clusters, "a": changed})
        forward = Forward((WeightedCluster("a", 1),), 0.0, retry)
        only = Route("r", prefix("/"), forward)
        (info,) = compiled({"a": with_routes(held, VirtualHost("v", ("v",), (only,)))}).routes.values()
        return info.where, info.features, info.rule

    limit = Limit("a", requests=5)
    assert where(limit=limit) == (Where.HOME, ("max-requests",), Rule(limits=(limit,)))
    assert where(limit=Limit("a", retries=5))[0] is Where.KERNEL, "nothing is retried there"
    assert where(unsupported=("circuit-breaker",))[0] is Where.WAYPOINT
    assert where(retry_budget=True)[0] is Where.KERNEL
    again, few = Retry(on=("5xx",), attempts=2), Limit("a", retries=5)
    assert where(again, limit=few) == (Where.HOME, ("retry",), Rule(retry=again, limits=(few,)))
    assert where(again, retry_budget=True)[:2] == (Where.WAYPOINT, ("retry", "retry-budget"))
