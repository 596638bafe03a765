"""`python -m bench.run`: measure, print, write bench/results/latest.json."""

import argparse
import contextlib
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from bench import control_plane, report
from bench.load import ask
from bench.machine import BenchError, bpf_spent, bpf_statistics, bpf_times, kept_on_first_cpu, need
from bench.report import Decided, Key, Results
from bench.roads import PATHS, Road, roads, verify
from bench.scenarios import SCENARIOS, Scenario
from bench.servers import Files
from bench.topology import alone, ground
from underpass.lab.errors import LabError

RESULTS = Path(__file__).resolve().parent / "results" / "latest.json"
WARM = 1


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    names = [*(scenario.name for scenario in SCENARIOS), control_plane.NAME]
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each scenario (default 5)")
    parser.add_argument("--seconds", type=int, default=3, help="length of one measurement in whole seconds (default 3)")
    parser.add_argument("--scenario", action="append", choices=names, help="only these; may be repeated")
    parser.add_argument("--connections", type=int, action="append", help="default 1 and 32; may be repeated")
    parser.add_argument("--path", action="append", choices=PATHS, help="only these; may be repeated")
    parser.add_argument("--check", action="store_true", help="exit 1 when a figure that must hold does not")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON goes")
    options = parser.parse_args(argv)
    if options.rounds < 1 or options.seconds < 1:
        parser.error("--rounds must be at least 1 and --seconds at least 1")
    return options


def say(text: str) -> None:
    """Progress, to standard error: standard output is the table."""
    print(text, file=sys.stderr, flush=True)


def measure(
    options: argparse.Namespace,
    ways: Sequence[Road],
    scenarios: Sequence[Scenario],
    connections: Sequence[int],
    results: Results,
    servers: Sequence[int],
) -> None:
    """All rounds of all scenarios. Within a round the paths follow each other, in another order each time."""
    for scenario in scenarios:
        good = []
        for road in ways:
            try:
                verify(road, scenario)
                good.append(road)
            except BenchError as error:
                results.failures[Key(scenario.name, road.name, 0)] = str(error)
                say(f"{scenario.name}: {road.name} left out: {error}")
        with held(scenario, servers):
            for number in range(options.rounds):
                say(f"{scenario.name}: round {number + 1} of {options.rounds}")
                order = [*good[number % len(good) :], *good[: number % len(good)]] if good else []
                for count in connections:
                    for road in order:
                        one(options, road, scenario, count, results)


def held(scenario: Scenario, servers: Sequence[int]) -> contextlib.AbstractContextManager[None]:
    """The servers where the scenario wants them."""
    return kept_on_first_cpu(servers) if scenario.pinned else contextlib.nullcontext()


def one(options: argparse.Namespace, road: Road, scenario: Scenario, connections: int, results: Results) -> None:
    """Warm a path up and take one sample of it; a failure is kept beside the rows and ends nothing else."""
    key = Key(scenario.name, road.name, connections)
    try:
        if scenario.load != "slow":
            ask(scenario, road.target(scenario), connections, WARM)
        before = road.counters() if road.counters else None
        results.add(key, ask(scenario, road.target(scenario), connections, options.seconds * scenario.times))
        if road.counters and before is not None:
            more = road.counters().since(before)
            results.decided.setdefault(key, Decided()).add(more.kernel, more.home, more.punts, more.all)
    except (BenchError, LabError) as error:
        results.failures[key] = str(error)
        say(f"{scenario.name}, {road.name}, {connections} connections: {error}")


def measure_bpf(
    options: argparse.Namespace,
    road: Road,
    scenarios: Sequence[Scenario],
    connections: Sequence[int],
    results: Results,
    servers: Sequence[int],
) -> None:
    """One more round of the kernel's path alone, with the kernel's own clock on each program."""
    with bpf_statistics():
        for scenario in scenarios:
            for count in connections:
                key = Key(scenario.name, road.name, count)
                if key not in results.samples:
                    continue
                before = bpf_times()
                try:
                    with held(scenario, servers):
                        sample = ask(scenario, road.target(scenario), count, options.seconds * scenario.times)
                except BenchError as error:
                    results.failures[key] = f"in the round with BPF statistics: {error}"
                    continue
                results.bpf[key] = (bpf_spent(before, bpf_times()), sample.requests)


def about(options: argparse.Namespace, started: datetime) -> dict[str, Any]:
    """What the figures belong to."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "unknown",
    )
    return {
        "started": started.isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "cpu": model,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "load_average_before": list(os.getloadavg()),
    }


@contextlib.contextmanager
def ended_by_signals() -> Any:
    """Turn SIGTERM and SIGHUP into SystemExit, so that everything is taken down."""

    def leave(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def bench(options: argparse.Namespace) -> int:
    """Build, measure, report, take down."""
    if os.geteuid() != 0:
        raise BenchError("the bench makes network namespaces and needs root; next: sudo make bench")
    paths = tuple(path for path in PATHS if not options.path or path in options.path)
    need("ip", "nsenter", "nginx", "wrk", "bpftool", *(["haproxy"] if "haproxy" in paths else []))
    scenarios = [s for s in SCENARIOS if not options.scenario or s.name in options.scenario]
    connections = sorted(set(options.connections or (1, 32)))
    results = Results()
    context = about(options, datetime.now(UTC))
    with ended_by_signals(), alone(), contextlib.ExitStack() as stack:
        files = Files(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="upb-", dir="/dev/shm"))))
        files.prepare()
        place = stack.enter_context(ground(files, mesh="kernel" in paths))
        built = stack.enter_context(roads(files, place, paths))
        measure(options, built, scenarios, connections, results, place.servers)
        for road in built:
            if road.name == "kernel":
                measure_bpf(options, road, scenarios, connections, results, place.servers)
    table = report.rows(results)
    report.write(options.output, table, context, results.failures)
    print("\n".join(report.lines(table)))
    checks = report.bounds(table)
    if checks:
        print("\nmust hold")
        for what, measured, bound, holds in checks:
            print(f"  {'ok ' if holds else 'NOT'} {what}: {measured:g} ({bound})")
    print(f"\nwritten: {options.output}")
    if results.failures:
        print(f"{len(results.failures)} measurements failed; their reasons are in the file", file=sys.stderr)
        return 1
    return 1 if options.check and not all(holds for *_, holds in checks) else 0


def main(argv: Sequence[str] = sys.argv[1:]) -> int:
    """Entry point: 0, or 1 when something could not be measured, or when --check finds a figure that does not hold."""
    try:
        options = arguments(argv)
        asked, status = set(options.scenario or ()), 0
        if not asked or asked - {control_plane.NAME}:
            status = bench(options)
        if control_plane.NAME in asked or not (asked or options.path):
            status = max(status, control_plane.bench(control_plane.SIZES, control_plane.ROUNDS))
        return status
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; everything is taken down and no result was written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
