"""This machine, as the bench sees it: processes that end with the run, CPU time, kernel memory, BPF run time."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
NICE = ("nice", "-n", "-19")


def on_cpu(scenario_pinned: bool, *command: str) -> list[str]:
    """A load's command, before everybody else; kept on the last CPU if its scenario wants that."""
    last = str(max(os.sched_getaffinity(0)))
    return [*NICE, *(["taskset", "--cpu-list", last] if scenario_pinned else []), *command]


@contextlib.contextmanager
def kept_on_first_cpu(processes: Sequence[int]) -> Iterator[None]:
    """Servers here, the load there, as long as the block runs. See Scenario.pinned."""
    every = os.sched_getaffinity(0)

    def move(cpus: set[int]) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(process, cpus)

    move({min(every)})
    try:
        yield
    finally:
        move(every)


class BenchError(Exception):
    """Why the bench cannot go on: what, why, and what to do about it."""


def run(*argv: str, check: bool = True, timeout: float = 60.0) -> str:
    """Standard output of a command; raises BenchError with its own words when it fails and `check` is set."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=timeout)
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise BenchError(f"{' '.join(argv)} failed with status {done.returncode}: {said}")
    return done.stdout


def need(*commands: str) -> None:
    """Raise BenchError unless all commands are in PATH."""
    missing = [command for command in commands if shutil.which(command) is None]
    if missing:
        raise BenchError(f"not installed: {', '.join(missing)}; next: `make bench` installs them")


@dataclass(frozen=True)
class Place:
    """Where a process runs: a network namespace (None: this one) and a cgroup v2 directory (None: this one)."""

    netns: Path | None = None
    cgroup: Path | None = None

    def command(self, *argv: str) -> list[str]:
        """`argv`, entered into this place. nsenter and not `ip netns exec`, which would hide bpffs."""
        inside = list(argv)
        if self.netns is not None:
            inside = ["nsenter", f"--net={self.netns}", "--", *inside]
        if self.cgroup is not None:
            script = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
            inside = ["sh", "-c", script, str(self.cgroup), *inside]
        return inside


@contextlib.contextmanager
def daemon(place: Place, *argv: str, log: Path, ready: float = 0.5) -> Iterator[subprocess.Popen[bytes]]:
    """A process in `place` for as long as the block runs; it and its children are ended after it.

    Raises BenchError with the end of its log when it has ended `ready` seconds after it started.
    """
    with log.open("ab") as sink:
        process = subprocess.Popen(place.command(*argv), stdout=sink, stderr=sink, start_new_session=True)
    try:
        time.sleep(ready)
        if process.poll() is not None:
            raise BenchError(f"{argv[0]} ended at once: {log.read_text(errors='replace')[-600:].strip()}")
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def busy_us() -> float:
    """Microseconds of CPU that all processors together spent on anything but idling (softirqs included) since boot."""
    user, nice, system, _idle, _iowait, irq, softirq = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    ticks = sum(int(part) for part in (user, nice, system, irq, softirq))
    return ticks * 1e6 / os.sysconf("SC_CLK_TCK")


def kernel_memory() -> tuple[int, int]:
    """Bytes in use that are neither free, nor cache, nor of a process; and the part that TCP accounts for."""
    info: dict[str, int] = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value = line.split(":")
        info[name] = int(value.split()[0]) * 1024
    kernel = info["MemTotal"] - info["MemFree"] - info["Buffers"] - info["Cached"] - info["AnonPages"]
    tcp = 0
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            tcp = int(line.split("mem ")[1].split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return kernel, tcp


@dataclass
class MemoryPeak:
    """Peaks over a block, in bytes above its start: of all kernel memory, and of what TCP accounts for."""

    kernel: int = 0
    tcp: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def watch_memory(interval: float = 0.02) -> Iterator[MemoryPeak]:
    """Sample kernel memory for as long as the block runs."""
    peak = MemoryPeak()
    base_kernel, base_tcp = kernel_memory()

    def sample() -> None:
        while not peak._stop.wait(interval):
            kernel, tcp = kernel_memory()
            peak.kernel = max(peak.kernel, kernel - base_kernel)
            peak.tcp = max(peak.tcp, tcp - base_tcp)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        peak._stop.set()
        thread.join()


@contextlib.contextmanager
def bpf_statistics() -> Iterator[None]:
    """Have the kernel time every BPF program during the block. It costs time itself: never in a round that counts."""
    before = STATS.read_text().strip()
    STATS.write_text("1\n")
    try:
        yield
    finally:
        STATS.write_text(before + "\n")


def bpf_times() -> dict[tuple[int, str], tuple[int, int]]:
    """(id, name) of each loaded program: (nanoseconds, runs) so far."""
    programs = json.loads(run("bpftool", "--json", "prog", "show") or "[]")
    return {
        (program["id"], program.get("name", "")): (program.get("run_time_ns", 0), program.get("run_cnt", 0))
        for program in programs
    }


def bpf_spent(
    before: dict[tuple[int, str], tuple[int, int]], after: dict[tuple[int, str], tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Nanoseconds and runs by program name between two readings; instances of one name (one per interface) add up."""
    spent: dict[str, tuple[int, int]] = {}
    for key, (nanoseconds, runs) in after.items():
        old_ns, old_runs = before.get(key, (0, 0))
        if runs > old_runs:
            had_ns, had_runs = spent.get(key[1], (0, 0))
            spent[key[1]] = (had_ns + nanoseconds - old_ns, had_runs + runs - old_runs)
    return spent


def processes_in(netns: str) -> Sequence[int]:
    """Ids of the processes in a named network namespace; none when it does not exist."""
    return [int(pid) for pid in run("ip", "netns", "pids", netns, check=False).split()]
