"""The bench's arithmetic: medians, per-round ratios, and the bounds that must hold."""

import json
from pathlib import Path

import pytest

from bench.load import Sample
from bench.report import Key, Results, bounds, lines, rows, write


def sample(rps: float, p50: float = 100.0, p99: float = 1000.0, **more: float) -> Sample:
    return Sample(
        requests=int(rps * 2),
        seconds=2.0,
        bytes=int(rps * 2 * 100),
        p50_us=p50,
        p99_us=p99,
        cpu_us_per_request=20.0,
        **more,  # type: ignore[arg-type]
    )


def results(**paths: list[Sample]) -> Results:
    out = Results()
    for path, samples in paths.items():
        for one in samples:
            out.add(Key("http-switch", path, 32), one)
    return out


def row(table: list[dict[str, object]], path: str) -> dict[str, object]:
    return next(r for r in table if r["path"] == path)


def test_figures_are_medians_with_least_and_greatest() -> None:
    table = rows(results(none=[sample(100), sample(300), sample(200)]))
    assert row(table, "none")["rps"] == 200
    assert row(table, "none")["spread"]["rps"] == [100, 300]  # type: ignore[index]


def test_a_machine_that_slows_down_does_not_move_the_ratio() -> None:
    # Everything is half as fast in the last two rounds; the kernel is at 90 % of `none` in each.
    table = rows(results(none=[sample(1000), sample(500), sample(500)], kernel=[sample(900), sample(450), sample(450)]))
    assert row(table, "kernel")["ratio_to_none"]["rps"] == pytest.approx(0.9)  # type: ignore[index]


def test_latency_is_compared_by_differences_within_rounds() -> None:
    table = rows(results(none=[sample(1, p50=30), sample(1, p50=100)], kernel=[sample(1, p50=34), sample(1, p50=104)]))
    assert row(table, "kernel")["minus_none"] == {"p50_us": 4}


def test_without_the_path_none_there_are_no_ratios() -> None:
    table = rows(results(kernel=[sample(900)]))
    assert row(table, "kernel")["ratio_to_none"] == {"rps": None, "mb_per_s": None, "p99_us": None}
    assert bounds(table) == []


@pytest.mark.parametrize(("share", "holds"), [(0.86, True), (0.84, False)])
def test_a_bound_is_checked_against_the_measured_ratio(share: float, holds: bool) -> None:
    table = rows(results(none=[sample(1000)], kernel=[sample(1000 * share)]))
    checks = {what: good for what, _, _, good in bounds(table)}
    assert checks["http-switch at 32: kernel / none, req/s"] is holds


@pytest.mark.parametrize(("p99", "holds"), [(1290, True), (1310, False)])
def test_the_tail_has_a_bound(p99: float, holds: bool) -> None:
    table = rows(results(none=[sample(1000)], kernel=[sample(1000, p99=p99)]))
    checks = {what: good for what, _, _, good in bounds(table)}
    assert checks["http-switch at 32: kernel / none, p99"] is holds


def test_time_in_bpf_is_by_program_and_request() -> None:
    measured = results(kernel=[sample(100)])
    measured.bpf[Key("http-switch", "kernel", 32)] = ({"egress": (8000, 20), "ingress": (2000, 10)}, 10)
    table = rows(measured)
    assert row(table, "kernel")["bpf"] == {
        "egress": {"ns_per_request": 800.0, "runs_per_request": 2.0},
        "ingress": {"ns_per_request": 200.0, "runs_per_request": 1.0},
    }
    assert row(table, "kernel")["bpf_ns_per_request"] == 1000.0


def test_errors_of_all_rounds_are_added_and_shown() -> None:
    table = rows(
        results(none=[sample(1, errors={"timeout": 2}), sample(1, errors={"timeout": 1, "status": 4})])  # type: ignore[arg-type]
    )
    assert row(table, "none")["errors"] == {"timeout": 3, "status": 4}
    assert any("3 x timeout, 4 x status" in line for line in lines(table))


def test_the_file_has_rows_and_the_reasons_of_what_failed(tmp_path: Path) -> None:
    target = tmp_path / "results" / "latest.json"
    write(target, rows(results(none=[sample(100)])), {"kernel": "6.18"}, {Key("l4", "envoy", 1): "it ended"})
    read = json.loads(target.read_text())
    assert {"scenario", "path", "connections", "rps", "p50_us", "p99_us", "cpu_us_per_request", "mb_per_s"} <= set(
        read["rows"][0]
    )
    assert read["failures"] == [{"scenario": "l4", "path": "envoy", "connections": 1, "reason": "it ended"}]


def test_the_best_rounds_are_compared_as_well() -> None:
    table = rows(results(none=[sample(100), sample(1000)], kernel=[sample(900), sample(90)]))
    assert row(table, "kernel")["best_to_none"]["rps"] == pytest.approx(0.9)  # type: ignore[index]
