"""Priorities, localities and health as shares: Envoy's published examples, and laws over any assignment."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.abi import numbers as n
from nodeagent.abi.numbers import Lb
from nodeagent.cache.resources import Assignment, Balance, Cluster, ClusterKind, Endpoint, Locality
from nodeagent.errors import CapacityError
from nodeagent.intent.clusters import draft, endpoint_key, slots
from nodeagent.intent.loads import groups, spread


def _key(endpoint: Endpoint) -> str:
    return endpoint_key(endpoint.address, endpoint.port)


def _place(
    priority: int, healthy: int, of: int, *, weight: int = 0, degraded: int = 0, zone: str = "a", each: int = 1
) -> Locality:
    number = 100 * priority + (50 if zone == "b" else 0)
    endpoints = tuple(
        Endpoint(f"10.0.{number}.{i + 1}", 80, each, usable=i < healthy + degraded, degraded=healthy <= i)
        for i in range(of)
    )
    return Locality("r", zone, "", priority, weight, endpoints)


def _loads(
    *places: Locality, panic: int = 0, weighted: bool = False, ejected: frozenset[str] = frozenset()
) -> dict[tuple[int, str], Fraction]:
    """Share by priority and zone."""
    assignment = Assignment("c", places)
    where = {_key(e): (place.priority, place.zone) for place in places for e in place.endpoints}
    found: dict[tuple[int, str], Fraction] = {}
    for group in groups(assignment, locality_weighted=weighted, panic=panic, ejected=ejected, key=_key):
        assert sum(share for _, share in group.members) == group.share
        for endpoint, share in group.members:
            place = where[_key(endpoint)]
            found[place] = found.get(place, Fraction()) + share
    return found


@pytest.mark.parametrize(
    ("first", "second"),
    # the table of Envoy's page on priority levels: percent of healthy endpoints at P=0 (P=1 whole), percent of load
    [(100, 100), (72, 100), (71, 99), (50, 70), (25, 35), (0, 0)],
)
def test_the_load_of_two_priorities(first: int, second: int) -> None:
    found = _loads(_place(0, first, 100), _place(1, 100, 100))
    assert found.get((0, "a"), 0) == Fraction(second, 100)
    assert found.get((1, "a"), 0) == 1 - Fraction(second, 100)


@pytest.mark.parametrize(
    ("healthy", "loads"),
    # the same page, three priorities; where their sum is short of 100 each is scaled up
    [
        ((100, 100, 100), (100, 0, 0)),
        ((72, 72, 100), (100, 0, 0)),
        ((71, 71, 100), (99, 1, 0)),
        ((50, 60, 100), (70, 30, 0)),
        ((50, 20, 100), (70, 28, 2)),
        ((25, 100, 100), (35, 65, 0)),
        ((25, 25, 25), (35, 35, 30)),
        ((25, 25, 0), (50, 50, 0)),
        ((20, 20, 10), (40, 40, 20)),
    ],
)
def test_the_load_of_three_priorities(healthy: tuple[int, ...], loads: tuple[int, ...]) -> None:
    found = _loads(*(_place(priority, some, 100) for priority, some in enumerate(healthy)))
    assert [found.get((p, "a"), 0) * 100 for p in range(3)] == list(loads)


def test_degraded_endpoints_take_what_the_healthy_ones_cannot() -> None:
    # 25 % healthy take 35 %; the degraded of the same priority come before the healthy of no other priority
    assignment = Assignment("c", (_place(0, 25, 100, degraded=75),))
    found = groups(assignment, locality_weighted=False, panic=0, ejected=frozenset(), key=_key)
    assert [(group.share, group.members[0][0].degraded) for group in found] == [
        (Fraction(35, 100), False),
        (Fraction(65, 100), True),
    ]
    # and the healthy ones of the next priority before them
    found = groups(
        Assignment("c", (_place(0, 25, 100, degraded=75), _place(1, 100, 100))),
        locality_weighted=False,
        panic=0,
        ejected=frozenset(),
        key=_key,
    )
    assert [(int(g.share * 100), len(g.members)) for g in found] == [(35, 25), (65, 100)]


@pytest.mark.parametrize(
    ("healthy", "percent"),
    # X has weight 1, Y weight 2 and is whole; percent of X's load: 1.4 h of 1.4 h + 2, where 1.4 h is at most 1
    [(100, 33), (72, 33), (60, 30), (50, 26), (25, 15), (0, 0)],
)
def test_weighted_localities_lose_load_with_health(healthy: int, percent: int) -> None:
    places = (_place(0, healthy, 100, weight=1), _place(0, 100, 100, weight=2, zone="b"))
    found = _loads(*places, weighted=True)
    assert round(found.get((0, "a"), Fraction(0)) * 100) == percent
    assert sum(found.values()) == 1


def test_localities_without_any_weight_are_one() -> None:
    assert _loads(_place(0, 1, 1), _place(0, 3, 3, zone="b"), weighted=True)[0, "b"] == Fraction(3, 4)
    assert _loads(_place(0, 1, 1, weight=9), _place(0, 3, 3, weight=1, zone="b"))[0, "a"] == Fraction(1, 4)


def test_panic() -> None:
    # fewer than half are usable and no other priority helps: their health is not believed
    few = _place(0, 1, 4)
    assert sum(_loads(few, panic=50).values()) == 1
    assert len(_members(few, 50)) == 4
    assert len(_members(few, 0)) == 1
    # with another priority that takes the rest there is no panic
    assert len(_members(few, 50, _place(1, 4, 4))) == 5
    # nobody anywhere: by numbers, rounding to the first; without panic nobody
    assert _loads(_place(0, 0, 1), _place(1, 0, 2), panic=50) == {
        (0, "a"): Fraction(34, 100),
        (1, "a"): Fraction(66, 100),
    }
    assert _loads(_place(0, 0, 1), _place(1, 0, 2)) == {}


def _members(place: Locality, panic: int, *more: Locality) -> set[str]:
    assignment = Assignment("c", (place, *more))
    found = groups(assignment, locality_weighted=False, panic=panic, ejected=frozenset(), key=_key)
    return {_key(endpoint) for group in found for endpoint, _ in group.members}


def test_an_ejected_endpoint_is_an_unusable_one() -> None:
    whole = (_place(0, 4, 4), _place(1, 4, 4))
    out = frozenset(_key(e) for e in whole[0].endpoints[2:])
    assert (
        _loads(*whole, ejected=out)
        == _loads(_place(0, 2, 4), _place(1, 4, 4))
        == {
            (0, "a"): Fraction(70, 100),
            (1, "a"): Fraction(30, 100),
        }
    )


def test_another_overprovisioning_factor_and_health_by_weight() -> None:
    places = (_place(0, 1, 2), _place(1, 2, 2))
    assignment = Assignment("c", places, overprovisioning=100)
    found = groups(assignment, locality_weighted=False, panic=0, ejected=frozenset(), key=_key)
    assert [group.share for group in found] == [Fraction(1, 2), Fraction(1, 2)]
    heavy = replace(places[0], endpoints=(replace(places[0].endpoints[0], weight=9), places[0].endpoints[1]))
    assignment = Assignment("c", (heavy, places[1]), overprovisioning=100, weighted_health=True)
    found = groups(assignment, locality_weighted=False, panic=0, ejected=frozenset(), key=_key)
    assert [group.share for group in found] == [Fraction(9, 10), Fraction(1, 10)]


# ---- any assignment ----

_ENDPOINTS = st.lists(st.tuples(st.integers(1, 5), st.booleans(), st.booleans(), st.booleans()), max_size=6)
_PLACES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), _ENDPOINTS), min_size=1, max_size=6)


def _any(rows: list[tuple[int, int, list[tuple[int, bool, bool, bool]]]]) -> tuple[Assignment, frozenset[str]]:
    places, out = [], set()
    for index, (priority, weight, endpoints) in enumerate(rows):
        made = []
        for number, (each, usable, degraded, ejected) in enumerate(endpoints):
            made.append(Endpoint(f"10.0.{index}.{number + 1}", 80, each, usable=usable, degraded=degraded))
            if ejected:
                out.add(_key(made[-1]))
        places.append(Locality("r", str(index), "", priority, weight, tuple(made)))
    return Assignment("c", tuple(places)), frozenset(out)


@given(_PLACES, st.booleans(), st.sampled_from([0, 50, 100]))
def test_laws_of_shares(
    rows: list[tuple[int, int, list[tuple[int, bool, bool, bool]]]], weighted: bool, panic: int
) -> None:
    assignment, out = _any(rows)
    found = groups(assignment, locality_weighted=weighted, panic=panic, ejected=out, key=_key)
    endpoints = [e for place in assignment.localities for e in place.endpoints]
    usable = {_key(e) for e in endpoints if e.usable} - out
    got = {_key(endpoint) for group in found for endpoint, _ in group.members}
    assert all(group.share > 0 and all(share > 0 for _, share in group.members) for group in found)
    assert sum(group.share for group in found) <= 1
    # somebody gets requests whenever somebody can, and without panic nobody else does
    assert bool(got) == bool(usable if not panic else endpoints)
    assert panic or got <= usable


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40))
def test_laws_of_slots(weights: list[int]) -> None:
    whole = sum(weights)
    shares = [Fraction(weight, whole) for weight in weights]
    found = spread(shares, strict=False)
    total = sum(found)
    assert 0 < total <= n.CLUSTER_SLOTS
    # whatever stands together has what it should, to within one slot
    for start in range(len(shares)):
        for end in range(start + 1, len(shares) + 1):
            assert abs(sum(found[start:end]) - total * sum(shares[start:end], Fraction(0))) < 1
    try:
        assert all(
            abs(f - total * s) <= total * s / 4 for f, s in zip(spread(shares, strict=True), shares, strict=True)
        )
    except CapacityError:
        assert any(abs(f - total * s) > total * s / 4 for f, s in zip(found, shares, strict=True))


# ---- to the end: what the balancer draws ----


def _cluster(**settings: object) -> Cluster:
    return replace(Cluster("c", ClusterKind.EDS, Balance.LEAST_REQUEST, panic=0), **settings)  # type: ignore[arg-type]  # any of its fields


def test_what_is_drawn_is_what_envoy_would_give() -> None:
    """Three of seven are out, so 80 % stay; localities 3 to 1 within them, and the next priority has the rest."""
    places = (
        _place(0, 4, 4, weight=3),
        _place(0, 3, 3, weight=1, zone="b"),
        _place(1, 2, 2, weight=1),
    )
    out = frozenset(_key(e) for e in (*places[0].endpoints[2:], places[1].endpoints[2]))
    made = draft(_cluster(locality_weighted=True), Assignment("c", places), out)
    assert made.lb is Lb.RANDOM, "two of different groups are not compared"
    assert {target.key for target in made.resting} == out
    ids = {target.key: number for number, target in enumerate(made.targets, 1)}
    table = slots(made.targets, ids)
    draw = random.Random(7)
    names = {number: key for key, number in ids.items()}
    drawn = Counter(names[table[draw.randrange(len(table))]] for _ in range(40_000))
    shares = {
        place.zone + str(place.priority): sum(drawn[_key(e)] for e in place.endpoints) / 40_000 for place in places
    }
    # a: 3 * 1.4 * 2/4 = 2.1; b: 1 * 1.4 * 2/3 = 0.93; of 80 %
    assert shares["a0"] == pytest.approx(0.8 * 2.1 / (2.1 + 2.8 / 3), abs=0.01)
    assert shares["b0"] == pytest.approx(0.8 * (2.8 / 3) / (2.1 + 2.8 / 3), abs=0.01)
    assert shares["a1"] == pytest.approx(0.2, abs=0.01)


def test_least_request_stays_where_a_request_has_no_choice_of_groups() -> None:
    made = draft(_cluster(), Assignment("c", (_place(0, 4, 4), _place(1, 4, 4))))
    assert (made.lb, len(made.targets), made.features) == (Lb.LEAST_REQUEST, 4, ())


def test_failing_endpoints_put_nothing_over_capacity() -> None:
    places = (_place(0, 41, 41), _place(1, 43, 43))
    assert draft(_cluster(), Assignment("c", places)).features == ()
    out = frozenset(_key(e) for e in places[0].endpoints[:22])
    made = draft(_cluster(), Assignment("c", places), out)
    assert made.features == ()
    weight = sum(t.weight for t in made.targets)
    first = sum(t.weight for t in made.targets if t.key.startswith("10.0.0."))
    assert weight <= n.CLUSTER_SLOTS
    assert first / weight == pytest.approx((140 * 19 // 41) / 100, abs=1 / 128)
    heavy = replace(places[0], endpoints=(replace(places[0].endpoints[0], weight=10_000), *places[0].endpoints[1:]))
    assert "capacity" in draft(_cluster(), Assignment("c", (heavy,))).features
