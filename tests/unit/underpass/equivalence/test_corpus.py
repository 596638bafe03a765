"""The covering corpus: reproducible; each route is hit, missed by each of its conditions, and cut everywhere."""

from __future__ import annotations

import random

import pytest

from nodeagent.cache.resources import (
    Forward,
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
from tests.support.route_oracle import Request as Naive
from tests.support.route_oracle import holds
from underpass.equivalence.corpus import DRAWS, Limits, domain_sample, hit, regex_sample, requests
from underpass.equivalence.hostile import Draft, changes
from underpass.equivalence.outcome import Sort
from underpass.equivalence.traffic import mutated, traffic


def route(match: RouteMatch, *clusters: str) -> Route:
    return Route("", match, Forward(tuple(WeightedCluster(name, 50) for name in clusters or ("c",))))


MATCHES = [
    RouteMatch(PathMatch(PathKind.EXACT, "/a/b")),
    RouteMatch(PathMatch(PathKind.PREFIX, "/a")),
    RouteMatch(PathMatch(PathKind.SEPARATED, "/x")),
    RouteMatch(PathMatch(PathKind.REGEX, "/v[0-9]+/(items|carts)(/.*)?")),
    RouteMatch(PathMatch(PathKind.PREFIX, "/A", ignore_case=True)),
    RouteMatch(PathMatch(PathKind.PREFIX, "/"), (ValueMatch("end-user", StringKind.EXACT, "jason"),)),
    RouteMatch(PathMatch(PathKind.PREFIX, "/"), (ValueMatch("x", StringKind.PREFIX, "ab"),)),
    RouteMatch(PathMatch(PathKind.PREFIX, "/"), (ValueMatch("x", StringKind.SUFFIX, "ab"),)),
    RouteMatch(PathMatch(PathKind.PREFIX, "/"), (ValueMatch("x", StringKind.CONTAINS, "ab"),)),
    RouteMatch(PathMatch(PathKind.PREFIX, "/"), (ValueMatch("cookie", StringKind.REGEX, "(.*;)?user=jason(;.*)?"),)),
    RouteMatch(PathMatch(PathKind.PREFIX, "/"), (ValueMatch("x", StringKind.PRESENT),)),
    RouteMatch(PathMatch(PathKind.PREFIX, "/"), (ValueMatch("x", StringKind.PRESENT, invert=True),)),
    RouteMatch(PathMatch(PathKind.PREFIX, "/"), (ValueMatch("x", StringKind.EXACT, "a", invert=True),)),
    RouteMatch(PathMatch(PathKind.PREFIX, "/"), (ValueMatch(":method", StringKind.EXACT, "DELETE"),)),
    RouteMatch(PathMatch(PathKind.PREFIX, "/"), (ValueMatch(":method", StringKind.EXACT, "GET", invert=True),)),
    RouteMatch(PathMatch(PathKind.PREFIX, "/"), (), (ValueMatch("q", StringKind.EXACT, "1"),)),
]


def naive(draft: Draft) -> Naive:
    return Naive(draft.method, draft.target, draft.host, draft.headers)


def parsed(data: bytes) -> Naive:
    line, *rest = data.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    method, target, _ = line.split(" ")
    headers = [(name, value.strip()) for name, _, value in (item.partition(":") for item in rest)]
    return Naive(method, target, headers[0][1], tuple(headers[1:]))


@pytest.mark.parametrize("match", MATCHES)
def test_a_hit_fulfils_every_condition(match: RouteMatch) -> None:
    for seed in range(50):
        assert holds(match, naive(hit(route(match), "a", random.Random(seed))))


@pytest.mark.parametrize("match", [m for m in MATCHES if m.path.value != "/" or m.headers or m.query])
def test_the_corpus_hits_and_misses(match: RouteMatch) -> None:
    table = RouteConfiguration("t", (VirtualHost("v", ("a",), (route(match),)),))
    found = [holds(match, parsed(item.data)) for item in requests(table, 1) if item.sort is Sort.PLAIN]
    assert found.count(True) >= 3
    assert found.count(False) >= 3


def test_the_same_seed_gives_the_same_requests() -> None:
    table = RouteConfiguration("t", (VirtualHost("v", ("a", "*.b"), tuple(map(route, MATCHES))),))
    assert requests(table, 5) == requests(table, 5)
    assert requests(table, 5) != requests(table, 6)
    assert list(traffic(table, random.Random(1), 300)) == list(traffic(table, random.Random(1), 300))


def test_cuts_weights_and_hostile_forms_are_there() -> None:
    table = RouteConfiguration("t", (VirtualHost("v", ("a",), (route(MATCHES[0], "c", "d"),)),))
    found = requests(table, 1, Limits(cuts=1, hostile=1))
    cuts = [item.data for item in found if item.sort is Sort.CUT]
    assert [len(data) for data in cuts] == list(range(1, len(cuts) + 1))
    assert cuts[-1].endswith(b"\r\n\r") and b"\r\n\r\n" not in cuts[-1]
    assert sum(item.aim.endswith(": weights") for item in found) == DRAWS
    assert sum(item.sort is Sort.HOSTILE for item in found) > 150


def test_every_hostile_form_is_another() -> None:
    forms = dict(changes(Draft(path="/a/b", host="a.b")))
    assert len(forms) > 190
    assert len(set(forms.values())) > 0.95 * len(forms)


def test_domains() -> None:
    chance = random.Random(1)
    assert domain_sample("a.b", chance) == "a.b"
    assert domain_sample("*.b", chance).endswith(".b")
    assert "*" not in domain_sample("*", chance) + domain_sample("a.*", chance)


@pytest.mark.parametrize("regex", ["/a+b?", "[^/]+", "(a|bc){2,3}", ".*", "(?i)abc", ""])
def test_samples_of_expressions_match(regex: str) -> None:
    import re2

    for seed in range(50):
        sample = regex_sample(regex, random.Random(seed))
        assert sample is not None
        assert re2.fullmatch(regex, sample), sample


def test_a_body_that_is_announced_is_there() -> None:
    data = Draft(method="POST", body="hello").wire()
    for seed in range(500):
        changed = mutated(data, random.Random(seed))
        head, end, body = changed.partition(b"\r\n\r\n")
        line = next((x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length: ")), b"")
        number = line.partition(b": ")[2]
        if end and number.isdigit() and len(number) < 9:
            assert len(body) >= int(number)
