"""`underpass demo`: the shop under the mesh, three changes of its routes while traffic flows, and a verdict on each.

What was observed is judged by pure functions (`judge_*`); any deviation makes the demo fail.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table

from underpass.lab import counters, follow, lab
from underpass.lab.cli_files import read_file
from underpass.lab.errors import LabError
from underpass.lab.host import check_machine
from underpass.lab.model import Options
from underpass.lab.programs import get_json
from underpass.lab.state import State
from underpass.lab.teardown import leftovers

NAME = "demo"
CLIENT = "shop/web"
SERVICE = "catalog"
V1, V2 = "catalog-v1", "catalog-v2"

# The catalog would call on; the demo counts its own requests only.
TARGET = "/item/7?call="

SPLIT_REQUESTS = 2000
EXACT_REQUESTS = 500
FLOW_SECONDS = 1.0
MAX_FLOW_SECONDS = 30.0
SIGMAS = 3.0
MIN_KERNEL_SHARE = 0.95
MAX_SWITCH_MS = 250.0
"""Of a machine that also runs seven servers, a client and, while they are built, everything else."""


_ROOT = Path(__file__).resolve().parents[2]


@dataclass(slots=True)
class Verdict:
    """What deviates, if anything, and one line that tells what was seen."""

    seen: str
    deviations: list[str] = field(default_factory=list)


def judge_split(report: Mapping[str, Any], share: float) -> Verdict:
    """Whether V2's part of the answers is `share`, within three standard deviations of a fair draw."""
    answers: Mapping[str, int] = report["workloads"]
    total = sum(answers.values())
    second = answers.get(V2, 0)
    sigma = math.sqrt(total * share * (1 - share))
    low, high = total * share - SIGMAS * sigma, total * share + SIGMAS * sigma
    verdict = Verdict(f"{V1} {answers.get(V1, 0)}, {V2} {second} (3 sigma: {low:.0f} to {high:.0f})")
    if not low <= second <= high:
        verdict.deviations.append(f"{second} of {total} answers came from {V2}, not {low:.0f} to {high:.0f}")
    return _judge_health(report, verdict)


def judge_exact(report: Mapping[str, Any], workload: str) -> Verdict:
    """Whether every answer came from `workload`."""
    answers: Mapping[str, int] = report["workloads"]
    verdict = Verdict(", ".join(f"{name} {count}" for name, count in sorted(answers.items())) or "no answer")
    strangers = sum(count for name, count in answers.items() if name != workload)
    if strangers:
        verdict.deviations.append(f"{strangers} answers did not come from {workload}")
    return _judge_health(report, verdict)


def judge_edit(report: Mapping[str, Any], edited_at: float) -> Verdict:
    """Whether an edit at `edited_at` (CLOCK_MONOTONIC) lost nothing, and was followed soon and for good.

    A request that was sent before the edit may end by the old rule whenever it likes.
    """
    old = [run for run in report["timeline"] if run[0] != V2]
    last_old = max((run[3] for run in old), default=edited_at)
    took = max(0.0, last_old - edited_at) * 1000
    after = sum(run[1] for run in report["timeline"] if run[0] == V2 and run[2] >= last_old)
    verdict = Verdict(f"{report['requests']} requests, {report['errors']} failed; in force after {took:.0f} ms")
    if took > MAX_SWITCH_MS:
        verdict.deviations.append(f"the old rule answered {took:.0f} ms after the edit (at most {MAX_SWITCH_MS:.0f})")
    if not after:
        verdict.deviations.append("no answer after the edit followed it")
    if not any(run[2] < edited_at for run in old):
        verdict.deviations.append("no traffic flowed by the old rule when the edit came")
    return _judge_health(report, verdict)


def judge_counters(seen: counters.Counters, sent: int) -> Verdict:
    """Whether the kernel decided what it should have, and every request is accounted for."""
    share = seen.kernel / sent if sent else 0.0
    punts = ", ".join(f"{reason} {count}" for reason, count in sorted(seen.punts.items())) or "none"
    verdict = Verdict(f"kernel {seen.kernel} ({share:.1%}), home {seen.home}, punted: {punts}")
    if seen.kernel + seen.home != sent:
        verdict.deviations.append(f"{sent} requests were sent, but {seen.kernel + seen.home} are accounted for")
    if share < MIN_KERNEL_SHARE:
        verdict.deviations.append(f"the kernel decided {share:.1%} of the requests, less than {MIN_KERNEL_SHARE:.0%}")
    return verdict


def _judge_health(report: Mapping[str, Any], verdict: Verdict) -> Verdict:
    if report["errors"]:
        why = "; ".join(report["why"])
        verdict.deviations.append(f"{report['errors']} of {report['requests']} requests failed: {why}")
    if report["connections"] != 1:
        verdict.deviations.append(f"{report['connections']} connections were needed, not one")
    return verdict


class ProbeClient:
    """The client program inside the workload, spoken to over its standard input and output."""

    def __init__(self, name: str, workload: str, host: str, port: int, authority: str = "") -> None:
        code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from underpass.lab.probe import main; sys.exit(main())"
        command = [sys.executable, "-I", "-c", code, str(_ROOT), host, str(port), *([authority] if authority else [])]
        argv, env = lab.exec_command(name, workload, command)
        self._process = subprocess.Popen(
            argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.requests = 0

    def send(self, **order: Any) -> None:
        """Give an order."""
        try:
            _pipe(self._process.stdin).write(json.dumps(order) + "\n")
            _pipe(self._process.stdin).flush()
        except BrokenPipeError:
            pass  # `receive` tells why

    def receive(self) -> dict[str, Any]:
        """The answer to the last order. Raises LabError when the client ended."""
        line = _pipe(self._process.stdout).readline()
        if not line:
            why = _pipe(self._process.stderr).read().strip().splitlines()
            raise LabError("the demo's client ended", why[-1] if why else "no message", "underpass lab status")
        report: dict[str, Any] = json.loads(line)
        self.requests += int(report["requests"])
        return report

    def run(self, **order: Any) -> dict[str, Any]:
        """Give an order and wait for its answer."""
        self.send(**order)
        return self.receive()

    def close(self) -> None:
        """End the client."""
        self.send(quit=True)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            try:
                _pipe(pipe).close()
            except BrokenPipeError:
                continue


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def samples() -> Path:
    """The shop's files: in the installed package, else in the checkout. Raises LabError."""
    for candidate in (_ROOT / "underpass" / "samples" / "shop", _ROOT / "samples" / "shop"):
        if (candidate / "shop.yaml").is_file():
            return candidate
    raise LabError("the sample shop is missing", f"neither in the package nor in {_ROOT}/samples", "reinstall", 2)


class Demo:
    """One run. `deviations` collects what was not as it should be."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._files = samples()
        self.deviations: list[str] = []

    def run(self) -> None:
        """Everything, from bringing the lab up to taking it down. Raises LabError."""
        began = time.monotonic()
        check_machine(mesh=True)
        with self._lab() as state:
            self._say(f"up after {time.monotonic() - began:.1f} s; workloads on {', '.join(state.nodes)}")
            self._tour(state)
            self._routes(state)
        rest = leftovers(NAME)
        if rest:
            self.deviations.append(f"left behind: {', '.join(rest)}")
        self._title(f"{time.monotonic() - began:.1f} s in all")
        for deviation in self.deviations:
            self._console.print(f"  DEVIATES  {deviation}", style="bold red", markup=False)
        if not self.deviations:
            self._console.print("  everything as it should be", style="bold green")

    @contextmanager
    def _lab(self) -> Iterator[State]:
        self._title("The shop: control plane, agent, home, seven workloads")
        files = [read_file(str(self._files / name)) for name in ("shop.yaml", "destination-rules.yaml")]
        _, state = lab.up(files, None, Options(NAME), self._say)
        try:
            yield state
        finally:
            lab.down(NAME)

    def _tour(self, state: State) -> None:
        """One request that goes through most of the shop, and its path."""
        self._title("One request through the shop")
        web = lab.find_state(state, CLIENT).entry
        status, answer = get_json(f"{web['ips'][0]}:{web['ports'][0]}", "/", timeout=15.0)
        if not isinstance(answer, dict):
            self.deviations.append(f"the shop does not answer (status {status})")
            return
        self._print_calls(answer, 1)
        if status != 200:
            self.deviations.append(f"the shop answered {status}")

    def _print_calls(self, answer: Mapping[str, Any], depth: int) -> None:
        self._say(f"{'   ' * (depth - 1)}{answer['workload']}")
        for call in answer.get("calls", ()):
            if isinstance(call.get("answer"), dict) and "workload" in call["answer"]:
                self._print_calls(call["answer"], depth + 1)
            else:
                why = call.get("error") or f"status {call.get('status')}"
                self._say(f"{'   ' * depth}{call['url']}: {why}")
                self.deviations.append(f"{call['url']} did not answer: {why}")

    def _routes(self, state: State) -> None:
        port = 80
        self._title(f"One keep-alive connection from {CLIENT} to {SERVICE}:{port}")
        before = counters.read(state.nodes)
        probe = ProbeClient(NAME, CLIENT, SERVICE, port)
        try:
            table = Table(box=None, pad_edge=False, header_style="bold")
            for heading in ("RULE", "REQUESTS", "ANSWERED BY", "P50 us", "P99 us"):
                table.add_column(heading, justify="right" if heading.endswith(("us", "STS")) else "left")

            def row(rule: str, report: Mapping[str, Any], verdict: Verdict) -> None:
                table.add_row(rule, str(report["requests"]), verdict.seen, str(report["p50_us"]), str(report["p99_us"]))
                self.deviations += [f"{rule}: {deviation}" for deviation in verdict.deviations]

            def split(rule: str, **order: Any) -> None:
                report = probe.run(run=SPLIT_REQUESTS, target=TARGET, **order)
                verdict = judge_split(report, 0.1)
                if verdict.deviations:
                    # a fair draw leaves three sigma once in 370 times, but not twice in a row: draw again
                    self._say(f"{rule}: {verdict.seen}; drawn once more")
                    report = probe.run(run=SPLIT_REQUESTS, target=TARGET, **order)
                    verdict = judge_split(report, 0.1)
                row(rule, report, verdict)

            self._apply("catalog-90-10.yaml")
            split("90/10")
            self._apply("catalog-testers-v2.yaml")
            report = probe.run(run=EXACT_REQUESTS, target=TARGET, headers={"end-user": "tester"})
            row("end-user: tester -> v2", report, judge_exact(report, V2))
            split("everybody else 90/10", headers={"end-user": "somebody"})
            probe.send(flow=MAX_FLOW_SECONDS, target=TARGET)
            time.sleep(FLOW_SECONDS)
            edited_at = self._apply("catalog-all-v2.yaml")
            time.sleep(FLOW_SECONDS)
            probe.send(stop=True)
            report = probe.receive()
            row("edited under load: all v2", report, judge_edit(report, edited_at))
            report = probe.run(run=EXACT_REQUESTS, target=TARGET)
            row("all v2", report, judge_exact(report, V2))
        finally:
            probe.close()
        self._console.print(table)
        self._title("The kernel's counters")
        verdict = judge_counters(counters.read(state.nodes).since(before), probe.requests)
        self._say(verdict.seen)
        self.deviations += verdict.deviations

    def _apply(self, name: str) -> float:
        """Apply one of the shop's files; when the control plane could see it (CLOCK_MONOTONIC)."""
        path = str(self._files / name)
        applied = lab.apply(NAME, [read_file(path)], self._say)
        if follow.report_verdicts(applied.state, [path], lambda _line: None):
            self.deviations.append(f"the control plane rejected {name}")
        self.deviations += [f"refused by {line}" for line in follow.wait_applied(applied.state)]
        return applied.written_at

    def _title(self, text: str) -> None:
        self._console.print(f"\n{text}", style="bold", markup=False)

    def _say(self, text: str) -> None:
        self._console.print(f"  {text}", markup=False)


def main() -> int:
    """Run the demo; 0 when everything was as it should be, else 1. Raises LabError and lab.Interrupted."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = max(console.width, 120)  # in a log or a pipe nothing has to fit a window
    demo = Demo(console)
    with lab.interruptible():
        demo.run()
    return 1 if demo.deviations else 0
