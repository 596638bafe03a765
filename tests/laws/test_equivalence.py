"""Generated route tables and requests: both cores and Envoy do the same, or the cores punt.

A seeded slice runs in CI; `make soak` runs 10^6 requests over 1,000 tables through the cores and 10^5 through Envoy.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.route_tables import batches, subjects
from underpass.equivalence import corpus
from underpass.equivalence.outcome import Result
from underpass.equivalence.run import Cores, Options, Results, run
from underpass.equivalence.subjects import Subject
from underpass.equivalence.traffic import traffic

pytestmark = pytest.mark.needs("core")

_FEW = corpus.Limits(routes=4, hostile=1, cuts=1, draws=60)


@pytest.fixture(scope="module")
def cores() -> Iterator[Cores]:
    with Cores() as made:
        yield made


def tried(cores: Cores, routes: list[Any], seed: int, count: int, *, envoy: bool, covering: bool) -> Results:
    found = subjects(routes)
    assert not found.refused

    def requests(subject: Subject) -> list[Any]:
        more = list(traffic(subject.decoded, random.Random(f"{seed} {subject.name}"), count))
        return [*corpus.requests(subject.decoded, seed, _FEW), *more] if covering else more

    return run(found, Options(seed, envoy=envoy), requests, cores)


def agreed(results: Results) -> None:
    bad = [item for item in results.judged if item.result is Result.DIFFERENT]
    shown = [(item.table, item.request.aim, item.request.data, item.why) for item in bad[:3]]
    assert not bad, shown
    assert not results.splits, results.splits


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(routes=batches(3), seed=st.integers(0, 1 << 32))
def test_cores(cores: Cores, routes: list[Any], seed: int) -> None:
    agreed(tried(cores, routes, seed, 100, envoy=False, covering=True))


@pytest.mark.needs("envoy")
@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(routes=batches(8), seed=st.integers(0, 1 << 32))
def test_envoy(cores: Cores, routes: list[Any], seed: int) -> None:
    results = tried(cores, routes, seed, 60, envoy=True, covering=False)
    assert "envoy" in results.executors
    agreed(results)


_SOAK = settings(
    suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink], database=None, print_blob=True
)


@pytest.mark.slow
def test_a_million_requests_through_the_cores(cores: Cores) -> None:
    total: Counter[str] = Counter()

    @settings(_SOAK, max_examples=1000)
    @given(routes=batches(1), seed=st.integers(0, 1 << 32))
    def law(routes: list[Any], seed: int) -> None:
        results = tried(cores, routes, seed, 1000, envoy=False, covering=False)
        total["tables"] += results.tables
        total.update(item.result.value for item in results.judged)
        agreed(results)

    law()
    print(dict(total))
    assert total["tables"] >= 1000
    assert total["equal"] + total["punted"] >= 1_000_000
    assert total["equal"] > 100_000  # most of what is tried must not be refused beforehand


@pytest.mark.slow
@pytest.mark.needs("envoy")
def test_a_hundred_thousand_requests_through_envoy(cores: Cores) -> None:
    total: Counter[str] = Counter()

    @settings(_SOAK, max_examples=100)
    @given(routes=batches(20), seed=st.integers(0, 1 << 32))
    def law(routes: list[Any], seed: int) -> None:
        results = tried(cores, routes, seed, 200, envoy=True, covering=False)
        total["tables"] += results.tables
        total.update(item.result.value for item in results.judged)
        agreed(results)

    while total["equal"] + total["punted"] < 100_000:
        law()
    print(dict(total))
    assert total["equal"] > 10_000
