"""`python -m bench.control_plane`: from an edited file to every client: how long it takes, and what it costs.

Services with endpoints in one directory, incremental streams, each on a connection of its own and with a view of its
own. Measured are, from the replacement of a file to the last client's ACK: one endpoint, one route; from the first
connection to the last ACK: all connect, all reconnect with what they have; and the control plane's memory. Rows have
the form of bench.run's, in bench/results/control-plane.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from bench.machine import BenchError
from bench.xds_load import Load, request, versions
from controlplane.snapshot.urls import CLUSTER, ENDPOINT, LISTENER, ROUTE

NAME = "control-plane"
RESULTS = Path(__file__).resolve().parent / "results" / "control-plane.json"
_PORT = 80
#: Nothing more comes when nothing came for so long, seconds.
_QUIET = 1.5
_PATIENCE = 120.0


def say(message: str) -> None:
    """Progress, to standard error."""
    print(message, file=sys.stderr, flush=True)


# ----------------------------------------------------------------------------------------------------- configuration
def host(number: int) -> str:
    """A service's host name."""
    return f"svc-{number}.bench.svc.cluster.local"


def service(number: int, endpoints: int, moved: int = 0) -> str:
    """A Service and its EndpointSlice; the first endpoint's address depends on *moved*."""
    addresses = [f"10.{100 + number % 100}.{number // 100}.{index + 1}" for index in range(endpoints)]
    addresses[0] = f"10.{100 + number % 100}.{number // 100}.{100 + moved % 100}"
    listed = "\n".join(f"- {{addresses: [{address}], conditions: {{ready: true}}}}" for address in addresses)
    return f"""apiVersion: v1
kind: Service
metadata: {{name: svc-{number}, namespace: bench}}
spec:
  clusterIP: 10.{96 + number // 65536}.{number // 256 % 256}.{number % 256}
  ports: [{{name: http, port: {_PORT}, targetPort: 8080}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: svc-{number}-a
  namespace: bench
  labels: {{kubernetes.io/service-name: svc-{number}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints:
{listed}
"""


def rule(seconds: int) -> str:
    """A VirtualService of one service; *seconds* is its timeout, which an edit changes."""
    return f"""apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: svc-0, namespace: bench}}
spec:
  hosts: [svc-0]
  http: [{{timeout: {seconds}s, route: [{{destination: {{host: svc-0}}}}]}}]
"""


def replace(path: Path, content: str) -> float:
    """Replace a file at once; the monotonic time at which it was there."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(content)
    os.replace(temporary, path)
    return time.monotonic()


class Plane:
    """A control plane over a directory, as a process; a context manager."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""
        #: Seconds from the process's start until it served.
        self.start = 0.0

    def __enter__(self) -> Self:
        scratch = self._config.parent
        addresses = scratch / "addresses.json"
        command = [sys.executable, "-m", "controlplane.app", "--config", str(self._config), "--log-level", "warning"]
        command += ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--addresses-file", str(addresses)]
        began = time.monotonic()
        with (scratch / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        while not addresses.exists():
            if self._process.poll() is not None or time.monotonic() - began > _PATIENCE:
                self.__exit__()
                raise BenchError(f"the control plane did not start: {(scratch / 'log').read_text()[-500:]}")
            time.sleep(0.01)
        self.start = time.monotonic() - began
        self.address = json.loads(addresses.read_text())["xds"]
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _status(self, field_: str) -> float:
        assert self._process is not None
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field_))

    @property
    def rss(self) -> float:
        """Resident memory now, MiB."""
        return self._status("VmRSS")

    @property
    def peak(self) -> float:
        """The most that it ever had, MiB."""
        return self._status("VmHWM")

    @property
    def cpu(self) -> float:
        """Seconds of CPU so far."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --------------------------------------------------------------------------------------------------------- measuring
@dataclass
class Measured:
    """Samples of one measure: milliseconds from its cause to the last client's ACK, and the server's CPU on it."""

    services: int
    endpoints: int
    streams: int
    measure: str
    unit: str = "ms"
    values: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """A row, in the form of bench.run's."""
        ordered = sorted(self.values)
        worst = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        row: dict[str, Any] = {
            "scenario": NAME,
            "path": f"{self.services}x{self.endpoints}",
            "connections": self.streams,
            "measure": self.measure,
            "unit": self.unit,
            "rounds": len(ordered),
            "p50": round(statistics.median(ordered), 1),
            "p99": round(worst, 1),
            "spread": [round(ordered[0], 1), round(ordered[-1], 1)],
        }
        if self.cpu_ms:
            row["server_cpu_ms"] = round(statistics.median(self.cpu_ms), 1)
        return row


def node(number: int) -> bytes:
    """The ``Node`` of a client that shares its view with nobody: its address is its own."""
    from controlplane.snapshot.resource import text

    address = f"10.{200 + number // 62500}.{number // 250 % 250}.{number % 250 + 1}"
    return text(1, f"sidecar~{address}~client-{number}.bench~bench.svc.cluster.local")


def first_requests(services: int, has: dict[str, dict[str, str]] | None = None) -> Any:
    """What each client asks for: clusters, listeners, the endpoints of each service, the routes of the port."""
    known = has or {}
    names = [f"outbound|{_PORT}||{host(number)}" for number in range(services)]
    after = [
        request(ENDPOINT, names, has=known.get(ENDPOINT)),
        request(LISTENER, has=known.get(LISTENER)),
        request(ROUTE, [str(_PORT)], has=known.get(ROUTE)),
    ]
    clusters = known.get(CLUSTER)

    def made(number: int) -> Iterable[bytes]:
        yield request(CLUSTER, node=node(number), has=clusters)
        yield from after

    return made


def connect(
    load: Load, requests: Any, streams: int, types: Iterable[str], into: Measured, *, keep: bool = False
) -> None:
    """All clients at once, until each was told these types and nothing more comes."""
    wanted = set(types)
    began = time.monotonic()
    load.connect(requests, streams, keep=keep)
    load.until(lambda: all(wanted <= client.got.keys() for client in load.clients), _PATIENCE, into.measure)
    into.values.append((load.settle(_QUIET, _PATIENCE) - began) * 1000)


def change(load: Load, plane: Plane, path: Path, content: str, type_url: str, into: Measured) -> None:
    """One edit: until every client has ACKed what it yields."""
    load.settle(0.3, _PATIENCE)
    before = [client.got[type_url] for client in load.clients]
    cpu = plane.cpu
    began = replace(path, content)
    clients = load.clients

    def done() -> bool:
        return all(client.got[type_url] > was for client, was in zip(clients, before, strict=True))

    load.until(done, _PATIENCE, f"{into.measure} with {len(clients)} clients")
    into.values.append((max(client.last for client in clients) - began) * 1000)
    into.cpu_ms.append((plane.cpu - cpu) * 1000)


def run(services: int, endpoints: int, streams: int, rounds: int) -> Iterator[Measured]:
    """All measures of one size."""

    def measured(what: str, unit: str = "ms") -> Measured:
        return Measured(services, endpoints, streams, what, unit)

    with tempfile.TemporaryDirectory(prefix="upb-cp-", dir="/dev/shm") as directory:
        config = Path(directory) / "config"
        config.mkdir()
        for number in range(services):
            (config / f"svc-{number}.yaml").write_text(service(number, endpoints))
        replace(config / "rule.yaml", rule(1))
        with Plane(config) as plane, Load(plane.address) as load:
            start, first, again = measured("start"), measured("connect"), measured("reconnect")
            endpoint, route = measured("endpoint"), measured("route")
            start.values.append(plane.start * 1000)
            everything = (CLUSTER, ENDPOINT, LISTENER, ROUTE)
            connect(load, first_requests(services), streams, everything, first, keep=True)
            connected, at_connect = plane.rss, plane.peak
            has = versions(load.clients[0].kept)
            load.clients[0].keep = False
            for number in range(rounds):
                change(load, plane, config / "svc-1.yaml", service(1, endpoints, number + 1), ENDPOINT, endpoint)
            for number in range(rounds):
                change(load, plane, config / "rule.yaml", rule(number + 2), ROUTE, route)
            for _ in range(max(1, rounds // 5)):
                load.disconnect()
                time.sleep(1.0)
                # What it has already, a client is not told again; of clusters and listeners it is told that much.
                connect(load, first_requests(services, has), streams, (CLUSTER, LISTENER), again)
            memory = [
                Measured(services, endpoints, streams, what, "MiB", [value])
                for what, value in (
                    ("memory with all connected", connected),
                    ("peak memory while all connect", at_connect),
                    ("peak memory of all", plane.peak),
                )
            ]
        yield from (start, first, endpoint, route, again, *memory)


# ---------------------------------------------------------------------------------------------------------- reporting
#: (services, streams, measure) -> the figure that should not be passed.
GOALS: dict[tuple[int, int, str], float] = {
    (1000, 1000, "endpoint"): 500.0,
    (1000, 1000, "reconnect"): 10_000.0,
    (1000, 1000, "peak memory of all"): 400.0,
    (10_000, 1, "start"): 20_000.0,
    (10_000, 1, "endpoint"): 200.0,
}


def lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The rows as a table, with the goals beside them."""
    yield f"{'services':>10} {'streams':>8}  {'measure':30} {'p50':>10} {'p99':>10} {'goal':>8}  {'server CPU ms':>13}"
    for row in rows:
        size = int(row["path"].split("x")[0])
        goal = GOALS.get((size, row["connections"], row["measure"]))
        said = "" if goal is None else f"{goal:g}"
        cpu = row.get("server_cpu_ms", "")
        yield (
            f"{row['path']:>10} {row['connections']:>8}  {row['measure']:30} {row['p50']:>7} {row['unit']:>2} "
            f"{row['p99']:>10} {said:>8}  {cpu:>13}"
        )


def about(rounds: int) -> dict[str, Any]:
    """What the figures belong to."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "rounds": rounds,
        "load_average_before": list(os.getloadavg()),
    }


def bench(sizes: Sequence[tuple[int, int, int]], rounds: int, output: Path = RESULTS) -> int:
    """Measure each size (services, endpoints of each, streams), print and write; 1 when something failed."""
    context = about(rounds)
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    for services, endpoints, streams in sizes:
        say(f"{NAME}: {services} services x {endpoints} endpoints, {streams} streams")
        try:
            rows += [item.row() for item in run(services, endpoints, streams, rounds)]
        except (BenchError, OSError) as error:
            failures.append({"scenario": NAME, "path": f"{services}x{endpoints}", "reason": str(error)})
            say(f"{NAME}: {error}")
    context["load_average_after"] = list(os.getloadavg())
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps({"about": context, "rows": rows, "failures": failures}, indent=1) + "\n")
    print("\n".join(lines(rows)))
    print(f"\nwritten: {output}")
    return 1 if failures else 0


#: What `make bench` measures, and edits of each kind.
SIZES = ((1000, 10, 1000), (10_000, 10, 1))
ROUNDS = 20


def main(argv: Sequence[str] = sys.argv[1:]) -> int:
    """Entry point: 0, or 1 when something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.control_plane", description=__doc__)
    parser.add_argument("--services", type=int, help="together with --streams: only this size")
    parser.add_argument("--endpoints", type=int, default=10, help="of each service (default 10)")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="edits of each kind (default 20)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    if min(options.services or 2, options.endpoints, options.streams, options.rounds) < 1 or options.services == 1:
        parser.error("sizes and rounds must be at least 1, services at least 2")
    sizes = SIZES if options.services is None else ((options.services, options.endpoints, options.streams),)
    try:
        return bench(sizes, options.rounds, options.output)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
