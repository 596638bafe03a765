"""An endpoint that answers with errors gets no requests within a moment, and gets them again when its time is over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, Self

import pytest

from nodeagent.telemetry.read import read_routes
from tests.support.moody_server import SLOW_S
from tests.support.tiers import repository
from underpass.lab import counters, lab
from underpass.lab.cli_files import read_file
from underpass.lab.host import BPFFS
from underpass.lab.model import Options
from underpass.lab.state import State

NAME = f"o{os.getpid()}"
MESH = """
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: stock, namespace: shop}
spec: {selector: {app: stock}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: stock, namespace: shop}
spec:
  replicas: 3
  selector: {matchLabels: {app: stock}}
  template:
    metadata: {labels: {app: stock}}
    spec: {containers: [{name: moody, image: moody, ports: [{containerPort: 8080}]}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: web, ports: [{containerPort: 8080}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: stock, namespace: shop}
spec:
  host: stock
  trafficPolicy:
    outlierDetection:
      {consecutive5xxErrors: 5, interval: 0.3s, baseEjectionTime: 1s, maxEjectionPercent: 100}
---
apiVersion: v1
kind: Service
metadata: {name: few, namespace: shop}
spec: {selector: {app: stock}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: few, namespace: shop}
spec: {host: few, trafficPolicy: {connectionPool: {http: {http2MaxRequests: 2}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: stock, namespace: shop}
spec:
  hosts: [stock]
  http:
  - match: [{uri: {prefix: /edited}}]
    headers: {request: {set: {x-here: "1"}}}
    route: [{destination: {host: stock}}]
  - route: [{destination: {host: stock}}]
"""
#: From the first error to the last request that the endpoint gets: a look of the agent, a compilation, the map.
REACTS_S = 0.6


@pytest.fixture(name="moods", scope="module")
def _moods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("moods")


@pytest.fixture(name="state", scope="module")
def _state(moods: Path) -> Iterator[State]:
    python = f"env PYTHONPATH={repository()} {sys.executable} -m tests.support.moody_server 8080 {moods}"
    mesh, images = moods / "mesh.yaml", moods / "lab.yaml"
    mesh.write_text(MESH)
    images.write_text(f"images:\n  moody: {python}\n")
    _, state = lab.up([read_file(str(mesh))], read_file(str(images)), Options(NAME), lambda _line: None)
    try:
        yield state
    finally:
        lab.down(NAME)


@dataclass
class Log:
    """What a client of its own has been answered: (when, status, pod)."""

    target: str
    host: str = "stock"
    connections: int = 4
    rows: list[tuple[float, int, str]] = field(default_factory=list)

    def __enter__(self) -> Self:
        command = ["env", f"PYTHONPATH={repository()}", sys.executable, "-m", "tests.support.log_client"]
        argv, env = lab.exec_command(
            NAME, "shop/web", [*command, self.host, "80", self.target, str(self.connections), "300"]
        )
        self._process = subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._reader = Thread(target=self._read)
        self._reader.start()
        return self

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            when, status, pod = line.split()
            self.rows.append((float(when), int(status), pod))

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        finally:
            self._process.kill()
            self._reader.join()

    def since(self, start: float, end: float = 1e12) -> Counter[tuple[str, int]]:
        return Counter((pod, status) for when, status, pod in list(self.rows) if start <= when < end)

    def well(self, start: float) -> set[str]:
        return {pod for pod, code in self.since(start) if code == 200}


def _until(holds: Any, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def _ejections(state: State) -> list[dict[str, Any]]:
    text = (state.paths.node(state.nodes[0]) / "status.json").read_text()
    return list(json.loads(text)["ejections"])


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("target", "status", "where"),
    [("/", "503", "kernel"), ("/", "none", "kernel"), ("/edited", "500", "home")],
    ids=["answers-503", "resets", "through-home"],
)
def test_a_failing_endpoint_rests(state: State, moods: Path, target: str, status: str, where: str) -> None:
    before = counters.read(state.nodes)
    with Log(target) as log:
        _until(lambda: len(log.well(time.monotonic() - 0.5)) == 3, 20, "three endpoints answer")
        every = log.well(time.monotonic() - 0.5)
        bad = sorted(every)[1]
        ill = time.monotonic()
        (moods / bad).write_text(status)
        _until(lambda: any(row["out"] for row in _ejections(state)), 5, "somebody is out")
        time.sleep(REACTS_S)
        seen = log.since(ill)
        (moods / bad).unlink()
        well = time.monotonic()
        failed = sum(count for (_, code), count in seen.items() if code != 200)
        late = log.since(ill + REACTS_S, well)
        assert {pod for pod, _ in late} == every - {bad}, (bad, late)
        assert all(code == 200 for _, code in late), late
        assert failed >= 5, "it takes five in a row"
        rows = _ejections(state)
        print(f"{status}: {failed} failed of {sum(seen.values())}; {rows}")
        assert [(row["out"], row["ejections"] >= 1) for row in rows if row["out"]] == [(True, True)]
        _until(lambda: (bad, 200) in log.since(well), 20, "it comes back")
        time.sleep(0.6)
        back = log.since(time.monotonic() - 0.5)
    assert {pod for pod, code in back if code == 200} == every, back
    assert not any(row["out"] for row in _ejections(state))
    done = counters.read(state.nodes).since(before)
    if where == "kernel" and status == "503":
        assert done.kernel > 0.9 * len(log.rows), done


def test_it_is_said(state: State) -> None:
    """Who decides these routes, and what the command line shows of ejections."""
    routes = [row for row in read_routes(BPFFS / "underpass" / state.nodes[0]) if row.host.startswith("stock.")]
    assert {row.where for row in routes} == {"kernel", "home"}, routes
    found = subprocess.run(
        [sys.executable, "-m", "underpass.cli.app", "status", "-o", "json", "--lab", NAME],
        capture_output=True,
        text=True,
        cwd=repository(),
    )
    nodes = json.loads(found.stdout)["nodes"]
    assert nodes[0]["ejections"][0]["ejections"] >= 1, nodes[0]["ejections"]


def test_no_more_requests_at_once_than_a_destination_takes(state: State) -> None:
    """`http2MaxRequests: 2` of a service whose answers take a while: home answers the rest."""
    with Log("/slow", "few", 2) as log:
        _until(lambda: len(log.rows) >= 6, 10, "answers")
    assert {status for _, status, _ in log.rows} == {200}, "two at once are not too many"
    with Log("/slow", "few", 5) as log:
        _until(lambda: len(log.since(0)) and log.rows[-1][0] - log.rows[0][0] > 2.0, 10, "answers")
    served = [when for when, status, _ in log.rows if status == 200]
    refused = [body for _, status, body in log.rows if status == 503]
    assert len(served) <= 2 * (log.rows[-1][0] - log.rows[0][0] + SLOW_S) / SLOW_S, "two at a time"
    assert len(served) >= 10, "and no less"
    assert refused
    assert {body.rpartition("_")[2] for body in refused} == {"overflow"}
    (route,) = [row for row in read_routes(BPFFS / "underpass" / state.nodes[0]) if row.host.startswith("few.")]
    assert (route.where, route.features) == ("home", ("max-requests",))
