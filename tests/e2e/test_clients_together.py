"""One control plane, three kinds of client at once: our kernel, a stock Envoy and gRPC's own ``xds:///`` agree."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.controlplane import wait_for
from tests.support.envoy_process import EnvoyProcess
from tests.support.grpc_greeter import bootstrap
from tests.support.tiers import repository
from underpass.lab import counters, follow, lab
from underpass.lab.cli_files import read_file
from underpass.lab.demo import ProbeClient
from underpass.lab.errors import LabError
from underpass.lab.model import Options, SourceFile
from underpass.lab.programs import get_json
from underpass.lab.state import State

NAME = f"k{os.getpid()}"
SHOP = repository() / "samples" / "shop"
V1, V2 = "catalog-v1", "catalog-v2"
GRPC_PORT = 9090
GREETER = "registry.example.com/test/greeter"
REQUESTS, EXACT = 1000, 200
TARGET = "/item/7?call="
_HTTP = "  - name: http\n    port: 80\n    targetPort: 8080\n"
_CATALOG = "  selector:\n    app: catalog\n  ports:\n"

Ask = Callable[[int, str], Mapping[str, int]]
"""So many requests with `end-user` as given (empty: without); who answered how many."""

pytestmark = [pytest.mark.needs("envoy"), pytest.mark.timeout(180)]


class Grpc:
    """gRPC's xDS client on one channel for its whole life."""

    def __init__(self, prefix: list[str], xds: str) -> None:
        node = "sidecar~127.0.0.1~grpc-client.shop~shop.svc.cluster.local"
        environment = {**os.environ, "GRPC_XDS_BOOTSTRAP_CONFIG": bootstrap(xds, node), "GRPC_VERBOSITY": "NONE"}
        target = f"xds:///catalog.shop.svc.cluster.local:{GRPC_PORT}"
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.support.grpc_greeter", target, "-"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=repository(), env=environment,
        )  # fmt: skip

    def ask(self, count: int, user: str) -> dict[str, int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{count} {f'end-user={user}' if user else ''}\n")
        self._process.stdin.flush()
        found: dict[str, int] = json.loads(self._process.stdout.readline())
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def over_http(probe: ProbeClient) -> Ask:
    def ask(count: int, user: str) -> Mapping[str, int]:
        report = probe.run(run=count, target=TARGET, headers={"end-user": user} if user else {})
        assert report["errors"] == 0, report["why"]
        answers: dict[str, int] = report["workloads"]
        return answers

    return ask


@pytest.fixture(name="state")
def _state() -> Iterator[State]:
    shop = read_file(str(SHOP / "shop.yaml"))
    assert _CATALOG + _HTTP in shop.text
    grpc = f"  - name: grpc\n    port: {GRPC_PORT}\n    targetPort: {GRPC_PORT}\n"
    shop = replace(shop, text=shop.text.replace(_CATALOG + _HTTP, _CATALOG + _HTTP + grpc))
    at = "      containers:\n      - name: catalog\n"
    assert shop.text.count(at) == 2
    greeter = f"      - name: greeter\n        image: {GREETER}\n        ports:\n        - containerPort: {GRPC_PORT}\n"
    shop = replace(shop, text=shop.text.replace(at, at.replace("      - name: catalog\n", "") + greeter + at[18:]))
    files = [shop, *(read_file(str(SHOP / name)) for name in ("destination-rules.yaml", "catalog-90-10.yaml"))]
    command = ["env", f"PYTHONPATH={repository()}", sys.executable, "-m", "tests.support.grpc_greeter", "--serve"]
    command += [f"$(UNDERPASS_ADDRESS):{GRPC_PORT}", "$(UNDERPASS_WORKLOAD)"]
    lab_file = SourceFile("lab.yaml", "lab.yaml", json.dumps({"images": {GREETER: command}}))
    _, state = lab.up(files, lab_file, Options(NAME), lambda _line: None)
    try:
        yield state
    finally:
        lab.down(NAME)


@pytest.fixture(name="clients")
def _clients(state: State, tmp_path: Path) -> Iterator[dict[str, Ask]]:
    web = lab.find_state(state, "shop/web").entry
    # In the workload's network, outside its cgroup: there they are clients of the control plane as anywhere else.
    prefix = ["nsenter", f"--net={web['netns']}"]
    document = follow.agent_status(state.paths, state.nodes[0])
    assert document is not None
    xds = document["xds"]["target"]
    node = f"sidecar~{web['ips'][0]}~envoy-client.shop~shop.svc.cluster.local"
    metadata = {"NAMESPACE": "shop", "INTERCEPTION_MODE": "NONE", "LABELS": {"app": "envoy-client"}}
    with ExitStack() as stack:
        stack.enter_context(EnvoyProcess(tmp_path, xds, node, metadata, "DELTA_GRPC", prefix=prefix))
        grpc = Grpc(prefix, xds)
        stack.callback(grpc.close)
        kernel = ProbeClient(NAME, "shop/web", "catalog", 80)
        stack.callback(kernel.close)
        # Envoy stands at the loopback address, which is no service's: the kernel leaves it alone.
        envoy = ProbeClient(NAME, "shop/web", "127.0.0.1", 80, "catalog")
        stack.callback(envoy.close)
        asks = {"kernel": over_http(kernel), "envoy": over_http(envoy), "grpc": grpc.ask}

        def ready(ask: Ask) -> bool:
            with suppress(AssertionError, LabError):
                return set(ask(1, "")) <= {V1, V2}
            return False

        for name, ask in asks.items():
            wait_for(f"{name} reaches the catalog", lambda a=ask: ready(a), 20, 0.2)
        yield asks


def apply(file: str) -> None:
    path = str(SHOP / file)
    applied = lab.apply(NAME, [read_file(path)], lambda _line: None)
    assert not follow.report_verdicts(applied.state, [path], lambda _line: None)
    assert follow.wait_applied(applied.state) == []
    time.sleep(0.3)  # gRPC acknowledges an update before its channels use it


def check_split(who: str, ask: Ask, user: str = "") -> int:
    """A fair draw leaves three sigma once in 370 times, twice in a row never. How many requests that took."""
    drawn: list[int] = []
    for _ in range(2):
        answers = ask(REQUESTS, user)
        assert sum(answers.values()) == REQUESTS and set(answers) <= {V1, V2}, (who, answers)
        drawn.append(answers.get(V2, 0))
        if abs(drawn[-1] - REQUESTS * 0.1) <= 3 * math.sqrt(REQUESTS * 0.1 * 0.9):
            return len(drawn) * REQUESTS
    raise AssertionError(f"{who}: {drawn} of {REQUESTS} from {V2}")


def test_the_kernel_an_envoy_and_grpc_follow_one_control_plane(state: State, clients: dict[str, Ask]) -> None:
    kernel_before = counters.read(state.nodes)
    sent = {who: check_split(who, ask) for who, ask in clients.items()}
    apply("catalog-testers-v2.yaml")
    for who, ask in clients.items():
        assert ask(EXACT, "tester") == {V2: EXACT}, who
        sent[who] += EXACT + check_split(who, ask, "somebody")
    apply("catalog-all-v2.yaml")
    for who, ask in clients.items():
        assert ask(EXACT, "") == {V2: EXACT}, who
        sent[who] += EXACT
    seen = counters.read(state.nodes).since(kernel_before)
    # What Envoy and gRPC sent is not counted: it went past the kernel's decision.
    assert seen.kernel + seen.home == sent["kernel"]
    assert seen.kernel > 0.95 * sent["kernel"], seen.punts
    connected = get_json(state.http, "/debug/connections")[1]
    names = " ".join(client["connectionId"] for client in connected["clients"])
    assert "envoy-client.shop" in names and "grpc-client.shop" in names and "web" in names
