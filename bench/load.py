"""Ask one path one thing, once: a sample."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import BenchError, Place, busy_us, on_cpu, watch_memory
from bench.scenarios import Scenario
from bench.servers import BIG, BODY

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Target:
    """Where the client of a path stands, and the address that it connects to; `host` goes into the Host header."""

    client: Place
    address: str
    host: str


@dataclass(frozen=True)
class Sample:
    """One measurement. Latencies and CPU in microseconds, memory in MiB; None where a scenario does not yield it."""

    requests: int
    seconds: float
    bytes: int
    p50_us: float | None
    p99_us: float | None
    cpu_us_per_request: float | None
    errors: dict[str, int] = field(default_factory=dict)
    peak_kernel_mb: float | None = None
    peak_tcp_mb: float | None = None
    window: tuple[int, float] | None = None  # bytes, seconds: of large bodies, while every connection was still busy

    @property
    def rps(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds if self.seconds else 0.0

    @property
    def mb_per_s(self) -> float:
        """Megabytes (1e6) a second of what was moved; of large bodies, while all connections were busy."""
        count, seconds = self.window or (self.bytes, self.seconds)
        return count / 1e6 / seconds if seconds else 0.0


def _last_json(argv: list[str], timeout: float) -> dict[str, object]:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=timeout)
    line = next((line for line in reversed(done.stdout.splitlines()) if line.startswith("{")), None)
    if done.returncode != 0 or line is None:
        raise BenchError(
            f"{argv[0]} failed with status {done.returncode}: {(done.stderr or done.stdout).strip()[:300]}"
        )
    answer = json.loads(line)
    if not isinstance(answer, dict):
        raise BenchError(f"{argv[0]} did not answer with an object: {line[:200]}")
    return answer


def _requests(scenario: Scenario, target: Target, connections: int, seconds: float) -> Sample:
    command = target.client.command(
        *on_cpu(scenario.pinned, "wrk"), "-t1", f"-c{connections}", f"-d{round(seconds)}s", "--timeout", "10s",
        "-s", str(HERE / "requests.lua"), "-H", f"Host: {target.host}", f"http://{target.address}/",
        "--", scenario.mix, "close" if scenario.close else "keep",
    )  # fmt: skip
    before = busy_us()
    answer = _last_json(command, timeout=seconds + 30)
    cpu = busy_us() - before
    number = {name: float(str(value)) for name, value in answer.items()}
    if number["requests"] == 0:
        raise BenchError(f"{scenario.name}: no response from {target.address} in {seconds:g} s")
    return Sample(
        requests=int(number["requests"]),
        seconds=number["seconds"],
        bytes=int(number["bytes"]),
        p50_us=number["p50_us"],
        p99_us=number["p99_us"],
        cpu_us_per_request=cpu / number["requests"],
        errors={k: int(number[k]) for k in ("connect", "read", "write", "status", "timeout") if number[k]},
    )


def _bodies(scenario: Scenario, target: Target, connections: int, seconds: float) -> Sample:
    slow = scenario.load == "slow"
    path = {"get": "/body", "put": "/upload", "slow": "/big" if connections == 1 else "/part"}[scenario.load]
    command = target.client.command(
        *on_cpu(scenario.pinned, sys.executable, "-I", str(HERE / "bodies.py")), scenario.load, target.address, path,
        "--host", target.host, "--connections", str(connections), "--seconds", f"{seconds:g}", "--size", str(BODY),
    )  # fmt: skip
    before = busy_us()
    with watch_memory() as peak:
        answer = _last_json(command, timeout=seconds + 120)
    cpu = busy_us() - before
    latencies = answer["latencies_us"]
    errors = answer["errors"]
    if not isinstance(latencies, list) or not isinstance(errors, list):
        raise BenchError(f"bodies.py answered in another form: {answer}")
    requests, moved = int(str(answer["requests"])), int(str(answer["bytes"]))
    counted: dict[str, int] = {}
    for error in errors:
        counted[str(error)] = counted.get(str(error), 0) + 1
    expected = BIG if connections == 1 else BIG // 32 * connections
    if slow and not counted and moved != expected:
        counted[f"{moved} bytes instead of {expected}"] = 1
    return Sample(
        requests=requests,
        seconds=float(str(answer["seconds"])),
        bytes=moved,
        p50_us=latencies[len(latencies) // 2] if latencies else None,
        p99_us=latencies[min(len(latencies) - 1, len(latencies) * 99 // 100)] if latencies else None,
        cpu_us_per_request=cpu / requests if requests else None,
        errors=counted,
        peak_kernel_mb=peak.kernel / (1 << 20) if slow else None,
        peak_tcp_mb=peak.tcp / (1 << 20) if slow else None,
        window=(int(str(answer["window_bytes"])), float(str(answer["window_seconds"]))),
    )


def ask(scenario: Scenario, target: Target, connections: int, seconds: float) -> Sample:
    """Run the scenario's load against a target; raises BenchError when nothing comes back at all."""
    if scenario.load == "requests":
        return _requests(scenario, target, connections, seconds)
    return _bodies(scenario, target, connections, seconds)
