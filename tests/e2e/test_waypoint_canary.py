"""A gRPC canary through the node's Envoy, and the plain health route of the same service in the kernel."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.controlplane import wait_for
from tests.support.tiers import repository
from underpass.lab import counters, follow, lab
from underpass.lab.demo import ProbeClient
from underpass.lab.model import Options, SourceFile
from underpass.lab.state import State

NAME = f"y{os.getpid()}"
GRPC_PORT = 9090
GREETER = "registry.example.com/test/greeter"
CALLS, STREAMS, HEALTH = 1000, 400, 300
V1, V2 = "greeter-v1", "greeter-v2"

pytestmark = [pytest.mark.needs("envoy"), pytest.mark.timeout(180)]

MESH = """
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: greeter, namespace: shop}
spec:
  selector: {app: greeter}
  ports: [{name: grpc, port: 9090, targetPort: 9090}, {name: http-health, port: 80, targetPort: 8080}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: greeter, namespace: shop}
spec: {host: greeter, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: greeter, namespace: shop}
spec:
  hosts: [greeter]
  http:
  - match: [{port: 80, sourceLabels: {app: odd}}]
    route: [{destination: {host: greeter, port: {number: 80}, subset: v2}}]
  - match: [{port: 80}]
    route: [{destination: {host: greeter, port: {number: 80}}}]
  - match: [{uri: {exact: /test.Greeter/Hello}}, {uri: {exact: /test.Greeter/Chat}}]
    route:
    - {destination: {host: greeter, port: {number: 9090}, subset: v1}, weight: 90}
    - {destination: {host: greeter, port: {number: 9090}, subset: v2}, weight: 10}
  - route: [{destination: {host: greeter, port: {number: 9090}, subset: v1}}]
"""


def _deployment(name: str, labels: str, containers: str) -> str:
    return f"""---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{matchLabels: {{{labels}}}}}
  template:
    metadata: {{labels: {{{labels}}}}}
    spec: {{containers: [{containers}]}}
"""


def _files() -> list[SourceFile]:
    text = MESH
    for version in ("v1", "v2"):
        greeter = f"{{name: greeter, image: {GREETER}, ports: [{{containerPort: {GRPC_PORT}}}]}}"
        health = "{name: health, image: health, ports: [{containerPort: 8080}]}"
        text += _deployment(f"greeter-{version}", f"app: greeter, version: {version}", f"{greeter}, {health}")
    for name in ("web", "also", "odd"):
        text += _deployment(name, f"app: {name}", "{name: web, image: web, ports: [{containerPort: 8080}]}")
    return [SourceFile("mesh.yaml", "mesh.yaml", text)]


class Caller:
    """The gRPC client inside the workload, on one channel for its whole life."""

    def __init__(self) -> None:
        # its own resolver asks a name server about IPv6 even where the hosts file knows the name
        command = ["env", f"PYTHONPATH={repository()}", "GRPC_DNS_RESOLVER=native", sys.executable]
        command += ["-m", "tests.support.grpc_canary", f"greeter:{GRPC_PORT}"]
        argv, env = lab.exec_command(NAME, "shop/web", command)
        self._process = subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, method: str, count: int = 1) -> dict[str, int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{method} {count}\n")
        self._process.stdin.flush()
        found: dict[str, int] = json.loads(self._process.stdout.readline())
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module", name="state")
def _state() -> Iterator[State]:
    command = ["env", f"PYTHONPATH={repository()}", sys.executable, "-m", "tests.support.grpc_canary", "--serve"]
    command += [f"$(UNDERPASS_ADDRESS):{GRPC_PORT}", "$(UNDERPASS_WORKLOAD)"]
    lab_file = SourceFile("lab.yaml", "lab.yaml", json.dumps({"images": {GREETER: command}}))
    _, state = lab.up(_files(), lab_file, Options(NAME, dual_stack=True, waypoint=True), lambda _line: None)
    try:
        wait_for("Envoy is ready", lambda: waypoint(state)["state"] == "ready", 30, 0.1)
        yield state
    finally:
        lab.down(NAME)


@pytest.fixture(name="caller")
def _caller(state: State) -> Iterator[Caller]:
    caller = Caller()
    yield caller
    caller.close()


def waypoint(state: State) -> dict[str, Any]:
    document = follow.agent_status(state.paths, state.nodes[0])
    return dict(document["waypoint"]) if document is not None else {"state": "unknown"}


def check_split(caller: Caller, method: str, count: int) -> int:
    """A fair draw leaves three sigma once in 370 times, twice in a row never. How many calls that took."""
    drawn: list[int] = []
    for _ in range(2):
        answers = caller.ask(method, count)
        assert sum(answers.values()) == count and set(answers) <= {V1, V2}, (method, answers)
        drawn.append(answers.get(V2, 0))
        if abs(drawn[-1] - count * 0.1) <= 3 * math.sqrt(count * 0.1 * 0.9):
            return len(drawn) * count
    raise AssertionError(f"{method}: {drawn} of {count} from {V2}")


def test_a_canary_by_method_and_the_health_route_in_the_kernel(state: State, caller: Caller) -> None:
    wait_for("the greeter answers", lambda: set(caller.ask("Hello")) <= {V1, V2}, 20, 0.2)
    before = counters.read(state.nodes)
    check_split(caller, "Hello", CALLS)
    check_split(caller, "Chat", STREAMS)
    # other methods are not the canary's, and what a server says is what the client hears
    assert caller.ask("Watch", 50) == {V1: 50}
    assert caller.ask("Collect", 20) == {V1: 20}
    assert caller.ask("Fail") == {f"FAILED_PRECONDITION: {V1} is not in the mood: 50 % done": 1}
    assert caller.ask("Unknown") == {"UNIMPLEMENTED: Method not found!": 1}
    assert counters.read(state.nodes).since(before).kernel == 0

    health = probe_of("shop/web")
    try:
        wait_for("the kernel has wires for it", lambda: in_kernel(state, health, 20) == 20, 20, 0.1)
        assert in_kernel(state, health, HEALTH) == HEALTH
    finally:
        health.close()


def probe_of(workload: str) -> ProbeClient:
    """Over IPv4, as the endpoints are: the kernel does not translate one family into the other."""
    return ProbeClient(NAME, workload, address(workload, "AF_INET"), 80, "greeter")


def in_kernel(state: State, probe: ProbeClient, count: int) -> int:
    """How many of so many requests the kernel routed."""
    before = counters.read(state.nodes)
    report = probe.run(run=count, target="/healthz?call=")
    assert report["errors"] == 0, report["why"]
    return counters.read(state.nodes).since(before).kernel


def address(workload: str, family: str) -> str:
    """What the service's name is for a workload."""
    code = f"import socket; print(socket.getaddrinfo('greeter', 80, socket.{family})[0][4][0])"
    argv, env = lab.exec_command(NAME, workload, [sys.executable, "-c", code])
    return subprocess.run(argv, env=env, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def punted(workload: str, tmp_path: Path, family: str = "AF_INET") -> tuple[int, str]:
    """The status of a request that is not for the kernel to judge, and who answered or why not."""
    order = tmp_path / "order.json"
    text = "GET /a%20b HTTP/1.1\r\nHost: greeter\r\n\r\n"
    order.write_text(json.dumps({"host": address(workload, family), "port": 80, "requests": [{"send": text}]}))
    client = str(repository() / "tests/support/keepalive_client.py")
    argv, env = lab.exec_command(NAME, workload, [sys.executable, client, str(order)])
    (answer,) = json.loads(subprocess.run(argv, env=env, check=True, capture_output=True, timeout=30).stdout)
    headers = answer.get("headers", {})
    return answer.get("status", 0), headers.get("x-underpass-reason") or headers.get("server", str(answer))


def test_who_sees_something_else_is_not_envoys(state: State, caller: Caller, tmp_path: Path) -> None:
    """Envoy has one view of the mesh: a workload with a rule of its own keeps to home, and its rule to the kernel."""
    assert set(caller.ask("Hello")) <= {V1, V2}
    (apart,) = waypoint(state)["apart"]
    assert apart != waypoint(state)["view"]
    for family in ("AF_INET", "AF_INET6"):
        assert punted("shop/web", tmp_path, family) == punted("shop/also", tmp_path, family) == (200, "envoy")
        assert punted("shop/odd", tmp_path, family) == (501, "path-not-normal")
    probe = probe_of("shop/odd")
    try:
        wait_for("the kernel has wires for it", lambda: in_kernel(state, probe, 20) == 20, 20, 0.1)
        assert probe.run(run=50, target="/healthz?call=")["workloads"] == {V2: 50}
    finally:
        probe.close()


def test_killed_it_comes_back_and_the_health_route_does_not_notice(state: State, caller: Caller) -> None:
    health = probe_of("shop/web")
    try:
        wait_for("the kernel has wires for it", lambda: in_kernel(state, health, 20) == 20, 20, 0.1)
        assert set(caller.ask("Hello")) <= {V1, V2}
        pid = int(waypoint(state)["pid"])
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        assert in_kernel(state, health, HEALTH) == HEALTH
        wait_for(
            "Envoy is back", lambda: waypoint(state)["state"] == "ready" and waypoint(state)["pid"] != pid, 10, 0.02
        )
        assert time.monotonic() - killed < 10
        wait_for("the greeter answers", lambda: set(caller.ask("Hello")) <= {V1, V2}, 10, 0.1)
    finally:
        health.close()
