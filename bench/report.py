"""Samples to rows, rows to a table and to JSON."""

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.load import Sample


@dataclass(frozen=True)
class Key:
    """What a row is about."""

    scenario: str
    path: str
    connections: int


@dataclass
class Decided:
    """Requests by who decided them, why some were left to home, and every counter of the data path."""

    kernel: int = 0
    home: int = 0
    punts: dict[str, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)

    def add(self, kernel: int, home: int, punts: dict[str, int], counters: dict[str, int]) -> None:
        """Count more."""
        self.kernel += kernel
        self.home += home
        for total, more in ((self.punts, punts), (self.counters, counters)):
            for name, count in more.items():
                total[name] = total.get(name, 0) + count

    @property
    def share(self) -> float | None:
        """The part that the kernel decided; None when there was nothing to decide."""
        return round(self.kernel / (self.kernel + self.home), 5) if self.kernel + self.home else None


@dataclass
class Results:
    """All samples of a run, round by round, and what the kernel's programs spent in rounds of their own.

    `bpf` maps a key to {program: (nanoseconds, runs)} and the number of requests that they were spent on. `decided` is
    who decided the requests of all rounds, by the mesh's own counters.
    """

    samples: dict[Key, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    bpf: dict[Key, tuple[dict[str, tuple[int, int]], int]] = field(default_factory=dict)
    decided: dict[Key, Decided] = field(default_factory=dict)
    failures: dict[Key, str] = field(default_factory=dict)

    def add(self, key: Key, sample: Sample) -> None:
        """Take one more round's sample."""
        self.samples[key].append(sample)


def _middle(samples: Sequence[Sample], value: Callable[[Sample], float | None]) -> float | None:
    values = [v for v in map(value, samples) if v is not None]
    return round(statistics.median(values), 2) if values else None


def _spread(samples: Sequence[Sample], value: Callable[[Sample], float | None]) -> list[float] | None:
    values = [v for v in map(value, samples) if v is not None]
    return [round(min(values), 2), round(max(values), 2)] if values else None


def _ratio(samples: Sequence[Sample], base: Sequence[Sample], value: Callable[[Sample], float]) -> float | None:
    """Median of the ratios within each round: a machine that drifts does not move it."""
    pairs = [value(a) / value(b) for a, b in zip(samples, base, strict=False) if value(b)]
    return round(statistics.median(pairs), 3) if pairs else None


def _best(samples: Sequence[Sample], base: Sequence[Sample], value: Callable[[Sample], float]) -> float | None:
    """Ratio of the best rounds: what a machine shows that others use, too, in the moments when they do not."""
    top = max(map(value, base), default=0.0)
    return round(max(map(value, samples)) / top, 3) if samples and top else None


def _difference(
    samples: Sequence[Sample], base: Sequence[Sample], value: Callable[[Sample], float | None]
) -> float | None:
    """Median of the differences within each round."""
    pairs = [(value(a), value(b)) for a, b in zip(samples, base, strict=False)]
    known = [a - b for a, b in pairs if a is not None and b is not None]
    return round(statistics.median(known), 2) if known else None


def rows(results: Results) -> list[dict[str, Any]]:
    """One row a key, with medians; `spread` is least and greatest.

    `ratio_to_none` and `ratio_to_envoy` are the median of the ratios within each round; `best_to_none` is the ratio of
    the best rounds.
    """
    table = []
    for key, samples in results.samples.items():
        base = results.samples.get(Key(key.scenario, "none", key.connections), [])
        envoy = results.samples.get(Key(key.scenario, "envoy", key.connections), [])
        errors: dict[str, int] = defaultdict(int)
        for sample in samples:
            for what, count in sample.errors.items():
                errors[what] += count
        row: dict[str, Any] = {
            "scenario": key.scenario,
            "path": key.path,
            "connections": key.connections,
            "rounds": len(samples),
            "rps": _middle(samples, lambda s: s.rps),
            "p50_us": _middle(samples, lambda s: s.p50_us),
            "p99_us": _middle(samples, lambda s: s.p99_us),
            "cpu_us_per_request": _middle(samples, lambda s: s.cpu_us_per_request),
            "mb_per_s": _middle(samples, lambda s: s.mb_per_s),
            "peak_kernel_mb": _middle(samples, lambda s: s.peak_kernel_mb),
            "peak_tcp_mb": _middle(samples, lambda s: s.peak_tcp_mb),
            "ratio_to_none": {
                "rps": _ratio(samples, base, lambda s: s.rps),
                "mb_per_s": _ratio(samples, base, lambda s: s.mb_per_s),
                "p99_us": _ratio(samples, base, lambda s: s.p99_us or 0.0),
            },
            "ratio_to_envoy": {"rps": _ratio(samples, envoy, lambda s: s.rps)},
            "best_to_none": {
                "rps": _best(samples, base, lambda s: s.rps),
                "mb_per_s": _best(samples, base, lambda s: s.mb_per_s),
            },
            "minus_none": {"p50_us": _difference(samples, base, lambda s: s.p50_us)},
            "spread": {
                "rps": _spread(samples, lambda s: s.rps),
                "p50_us": _spread(samples, lambda s: s.p50_us),
                "p99_us": _spread(samples, lambda s: s.p99_us),
                "mb_per_s": _spread(samples, lambda s: s.mb_per_s),
            },
            "errors": dict(errors),
        }
        if key in results.bpf:
            spent, requests = results.bpf[key]
            row["bpf"] = {
                program: {"ns_per_request": round(ns / requests, 1), "runs_per_request": round(runs / requests, 3)}
                for program, (ns, runs) in sorted(spent.items())
                if requests
            }
            row["bpf_ns_per_request"] = round(sum(ns for ns, _ in spent.values()) / requests, 1) if requests else None
        if key in results.decided:
            decided = results.decided[key]
            row["decided"] = {**asdict(decided), "kernel_share": decided.share}
        table.append(row)
    return table


def write(path: Path, table: Sequence[dict[str, Any]], about: dict[str, Any], failures: dict[Key, str]) -> None:
    """Write `{"about", "rows", "failures"}`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    failed = [
        {"scenario": k.scenario, "path": k.path, "connections": k.connections, "reason": reason}
        for k, reason in failures.items()
    ]
    path.write_text(json.dumps({"about": about, "rows": list(table), "failures": failed}, indent=1) + "\n")


def _cell(value: float | None, form: str = "{:.0f}") -> str:
    return "-" if value is None else form.format(value)


HEADER = (
    f"{'path':9}{'conns':>6}{'req/s':>10}{'x none':>8}{'best':>7}{'MB/s':>9}{'x none':>8}{'p50 us':>9}"
    f"{'p99 us':>9}{'x none':>8}{'cpu us':>10}{'bpf ns':>8}{'kernel':>8}{'mem MiB':>9}{'spread':>8}"
)


def lines(table: Sequence[dict[str, Any]]) -> list[str]:
    """The table for people: one block a scenario.

    "x none" is the median of the rounds' ratios, "best" that of the best rounds. "kernel" is the share of requests that
    the kernel decided; spread is (greatest - least) / median over the rounds.
    """
    out: list[str] = []
    for scenario in dict.fromkeys(row["scenario"] for row in table):
        out += ["", scenario, HEADER]
        block = [row for row in table if row["scenario"] == scenario]
        for row in sorted(block, key=lambda r: r["connections"]):
            ratio, spread = row["ratio_to_none"], row["spread"]
            bodies = row["mb_per_s"] is not None and row["mb_per_s"] > 100 and row["rps"] < 1000
            main = "mb_per_s" if bodies else "rps"
            wide = (spread[main][1] - spread[main][0]) / row[main] if spread[main] and row[main] else None
            memory = row["peak_kernel_mb"]
            out.append(
                f"{row['path']:9}{row['connections']:6}"
                f"{_cell(row['rps'], '{:.1f}' if bodies else '{:.0f}'):>10}{_cell(ratio['rps'], '{:.2f}'):>8}"
                f"{_cell(row['best_to_none'][main], '{:.2f}'):>7}"
                f"{_cell(row['mb_per_s']):>9}{_cell(ratio['mb_per_s'], '{:.2f}'):>8}"
                f"{_cell(row['p50_us']):>9}{_cell(row['p99_us']):>9}{_cell(ratio['p99_us'], '{:.2f}'):>8}"
                f"{_cell(row['cpu_us_per_request'], '{:.1f}'):>10}{_cell(row.get('bpf_ns_per_request')):>8}"
                f"{_cell(row.get('decided', {}).get('kernel_share'), '{:.1%}'):>8}"
                f"{_cell(memory, '{:.1f}'):>9}{_cell(wide, '{:.0%}'):>8}"
            )
            if row["errors"]:
                out.append(
                    "         errors: " + ", ".join(f"{count} x {what}" for what, count in row["errors"].items())
                )
    return out


def bounds(table: Sequence[dict[str, Any]]) -> list[tuple[str, float, str, bool]]:
    """The figures that must hold: (what, measured, bound in words, whether it holds); those that were measured only."""
    by = {(row["scenario"], row["path"], row["connections"]): row for row in table}
    checks: list[tuple[str, float, str, bool]] = []

    def check(what: str, measured: float | None, bound: float, *, at_most: bool = False) -> None:
        if measured is not None:
            holds = measured <= bound if at_most else measured >= bound
            checks.append((what, measured, f"{'<=' if at_most else '>='} {bound:g}", holds))

    for scenario in ("http-switch", "http-two-nodes"):
        kernel = by.get((scenario, "kernel", 32))
        if kernel:
            check(f"{scenario} at 32: kernel / none, req/s", kernel["ratio_to_none"]["rps"], 0.85)
            if scenario == "http-switch":
                check(f"{scenario} at 32: kernel / none, p99", kernel["ratio_to_none"]["p99_us"], 1.3, at_most=True)
                check(f"{scenario} at 32: kernel / envoy, req/s", kernel["ratio_to_envoy"]["rps"], 4.5)
        one = by.get((scenario, "kernel", 1))
        if one and scenario == "http-switch":
            check(f"{scenario} at 1: kernel - none, p50 us", one["minus_none"]["p50_us"], 5, at_most=True)
    for row in table:
        if row["path"] == "kernel" and row["scenario"].startswith("http-"):
            share = row.get("decided", {}).get("kernel_share")
            check(f"{row['scenario']} at {row['connections']}: decided by the kernel", share, 0.95)
    for connections in (1, 32):
        for scenario, figure, bound in (("l4", "rps", 0.97), ("body-64MiB", "mb_per_s", 0.95)):
            measured = by.get((scenario, "kernel", connections))
            if measured:
                check(f"{scenario} at {connections}: kernel / none, {figure}", measured["ratio_to_none"][figure], bound)
    return checks
