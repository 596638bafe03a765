"""The demo's verdicts: what deviates is said, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest

from underpass.lab.counters import Counters
from underpass.lab.demo import SPLIT_REQUESTS, V1, V2, judge_counters, judge_edit, judge_exact, judge_split, samples


def report(workloads: dict[str, int], **more: Any) -> dict[str, Any]:
    total = sum(workloads.values())
    return {"requests": total, "errors": 0, "why": [], "connections": 1, "workloads": workloads, **more}


@pytest.mark.parametrize(
    ("second", "fine"), [(200, True), (241, False), (240, True), (160, True), (159, False), (0, False)]
)
def test_a_split_is_judged_by_three_sigma(second: int, fine: bool) -> None:
    verdict = judge_split(report({V1: SPLIT_REQUESTS - second, V2: second}), 0.1)
    assert (not verdict.deviations) == fine


def test_no_answers_are_no_split() -> None:
    assert judge_split(report({}, errors=5, requests=5, why=["refused"]), 0.1).deviations


def test_an_exact_route_allows_no_stranger() -> None:
    assert not judge_exact(report({V2: 500}), V2).deviations
    assert judge_exact(report({V2: 499, V1: 1}), V2).deviations == [f"1 answers did not come from {V2}"]


def test_errors_and_further_connections_deviate() -> None:
    assert (
        "2 of 500 requests failed: status 503"
        in judge_exact(report({V2: 498}, requests=500, errors=2, why=["status 503"]), V2).deviations
    )
    assert judge_exact(report({V2: 500}, connections=2), V2).deviations == ["2 connections were needed, not one"]


def flow(*timeline: list[Any]) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for workload, count, _, _ in timeline:
        counts[workload] = counts.get(workload, 0) + count
    return report(counts, timeline=[list(run) for run in timeline])


def test_an_edit_is_followed_soon_and_for_good() -> None:
    good = flow([V1, 9, 0.0, 0.4], [V2, 1, 0.4, 0.5], [V1, 90, 0.5, 1.04], [V2, 500, 1.04, 3.0])
    verdict = judge_edit(good, 1.0)
    assert not verdict.deviations
    assert "40 ms" in verdict.seen
    late = flow([V1, 100, 0.0, 1.35], [V2, 500, 1.35, 3.0])
    assert "350 ms" in judge_edit(late, 1.0).deviations[0]
    relapse = flow([V1, 100, 0.0, 1.01], [V2, 500, 1.01, 2.0], [V1, 1, 2.0, 2.1], [V2, 5, 2.1, 3.0])
    assert judge_edit(relapse, 1.0).deviations
    never = flow([V1, 100, 0.0, 3.0])
    assert len(judge_edit(never, 1.0).deviations) == 2
    idle = flow([V2, 100, 1.5, 3.0])
    assert "no traffic flowed" in judge_edit(idle, 1.0).deviations[0]


def test_every_request_is_accounted_for() -> None:
    assert not judge_counters(Counters(990, 10, {"no-upstream": 10}), 1000).deviations
    assert "900 are accounted for" in judge_counters(Counters(900, 0), 1000).deviations[0]
    assert "no-upstream 100" in judge_counters(Counters(900, 100, {"no-upstream": 100}), 1000).seen
    assert "90.0%" in judge_counters(Counters(900, 100), 1000).deviations[0]


def test_counters_are_differences() -> None:
    before = Counters(5, 2, {"a": 1, "b": 2}, {"heads": 7})
    after = Counters(15, 2, {"a": 1, "b": 3}, {"heads": 17, "held": 0})
    assert after.since(before) == Counters(10, 0, {"b": 1}, {"heads": 10})


def test_the_samples_are_there() -> None:
    names = {path.name for path in samples().iterdir()}
    wanted = {
        "shop.yaml",
        "destination-rules.yaml",
        "catalog-90-10.yaml",
        "catalog-testers-v2.yaml",
        "catalog-all-v2.yaml",
    }
    assert wanted <= names
