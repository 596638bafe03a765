"""Churn: twenty endpoint changes and a route edit every second, and a client that goes and comes back.

Agents' own sessions, a stock Envoy and gRPC's ``xds:///`` client are connected all the while, the latter two with calls
under way. In the end everybody has what a control plane that never saw anything but the last files would serve.
``UNDERPASS_CHURN_SECONDS`` says for how long (600); ``make soak`` runs it.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from controlplane.model.node import parse_node
from controlplane.snapshot import Builder, Snapshot
from controlplane.sources.files import Directory
from controlplane.sources.ingest import State, ingest
from controlplane.translate import parts, prepare
from nodeagent.cache.store import Decoder
from nodeagent.xds.client import Backoff, ViewStream, open_channel
from nodeagent.xds.live import LiveView
from nodeagent.xds.session import CDS, EDS, LDS, RDS, Update
from nodeagent.xds.views import View
from tests.support import shop
from tests.support.backends import Backend, free_port, free_port_on
from tests.support.controlplane import ControlPlaneProcess
from tests.support.envoy_process import EnvoyProcess
from tests.support.grpc_greeter import GreeterServer, bootstrap
from tests.support.tiers import repository

SECONDS = int(os.environ.get("UNDERPASS_CHURN_SECONDS", "600"))
SERVICES, CHANGES, AGENTS = 60, 20, 6
#: Everything is as old as everything else, so that a control plane that starts in the end orders rules the same way.
BIRTH = 1_700_000_000
ENVOY = "sidecar~127.0.0.1~client.default~default.svc.cluster.local"
ENVOY_METADATA = {"NAMESPACE": "default", "INTERCEPTION_MODE": "NONE", "INSTANCE_IPS": "127.0.0.1"}
GRPC = "sidecar~127.0.0.9~grpc-client.default~default.svc.cluster.local"

pytestmark = [pytest.mark.slow, pytest.mark.needs("envoy"), pytest.mark.timeout(SECONDS + 240)]


def write(path: Path, content: str) -> None:
    """Replace a file in one step, by one of the same age."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(content)
    os.utime(temporary, (BIRTH, BIRTH))
    temporary.replace(path)


def service(number: int, port: int, addresses: list[str]) -> str:
    """A Service and its endpoints."""
    listed = "".join(f"\n- {{addresses: [{address}], conditions: {{ready: true}}}}" for address in addresses)
    return f"""apiVersion: v1
kind: Service
metadata: {{name: svc-{number}, namespace: default}}
spec:
  clusterIP: 10.97.0.{number}
  ports: [{{name: http, port: {port}, targetPort: 8080}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: svc-{number}-a, namespace: default, labels: {{kubernetes.io/service-name: svc-{number}}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints:{listed or " []"}
"""


class Agent:
    """A view as an agent runs it, that applies at once; it may be lost and come back."""

    def __init__(self, number: int, xds: str) -> None:
        ip = f"10.50.0.{number + 1}"
        name = f"agent-{number}"
        self.view = View(
            name, f"sidecar~{ip}~{name}.default~default.svc.cluster.local", "default", "sa", (("app", name),), name,
            (ip,), "node-1", "Kubernetes", name,
        )  # fmt: skip
        self._xds = xds
        self._channel: Any = None
        self._task: asyncio.Task[None] | None = None
        self.live = LiveView.of(self.view, Decoder())
        self.refused: dict[str, str] = {}

    async def _update(self, stream: ViewStream, update: Update) -> None:
        self.live.take(update)
        for received in self.live.waiting:
            self.refused.update(received.refused)
            stream.applied(received.update, received.refused)
        self.live.waiting = []

    async def come(self, *, fresh: bool) -> None:
        """Connect; *fresh* as one that has nothing, else with all that it has."""
        if fresh or self.live.stream is None:
            self.live = LiveView.of(self.view, Decoder())
        self._channel = open_channel(self._xds)
        stream = ViewStream(self._channel, self.view, self._update, backoff=Backoff(0.1, 0.5))
        if self.live.stream is not None:
            stream.session = self.live.stream.session
        self.live.stream = stream
        self._task = asyncio.create_task(stream.run())

    async def go(self) -> None:
        """Lose the connection in the midst of whatever it is doing."""
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await self._channel.close()

    def has(self) -> dict[str, dict[str, str]]:
        """Versions, which are hashes of the content, of what the agent's cache holds, by type and name."""
        assert self.live.stream is not None
        resources = self.live.cache.resources()
        names = {CDS: resources.clusters, EDS: resources.assignments, LDS: resources.listeners, RDS: resources.routes}
        types = self.live.stream.session._types
        return {url: {name: types[url].versions.get(name, "?") for name in held} for url, held in names.items()}


class GrpcClient:
    """gRPC's xDS client on one channel."""

    def __init__(self, xds: str, port: int) -> None:
        environment = {**os.environ, "GRPC_XDS_BOOTSTRAP_CONFIG": bootstrap(xds, GRPC), "GRPC_VERBOSITY": "NONE"}
        target = f"xds:///greeter.default.svc.cluster.local:{port}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.grpc_greeter", target, "-"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=repository(), env=environment,
        )  # fmt: skip

    def ask(self, count: int) -> Counter[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return Counter(json.loads(self._process.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


@dataclass
class World:
    """Files, the control plane over them, and its clients."""

    config: Path
    plane: ControlPlaneProcess
    envoy: EnvoyProcess
    grpc: GrpcClient
    ports: dict[str, int]
    agents: list[Agent]
    random: random.Random = field(default_factory=lambda: random.Random(7))
    failed: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    edits: int = 0

    def change_endpoints(self) -> None:
        for number in self.random.sample(range(SERVICES), CHANGES):
            count = self.random.randrange(4)
            addresses = [f"10.{60 + number}.0.{self.random.randrange(1, 250)}" for _ in range(count)]
            write(self.config / f"svc-{number}.yaml", service(number, self.ports["many"], sorted(set(addresses))))

    def edit_routes(self) -> None:
        self.edits += 1
        for name in ("greeter", "web"):
            write(self.config / f"rules-{name}.yaml", shop.rules(self.edits * 37 % 101, name=name))

    def call(self) -> None:
        """A few calls over each of the two clients that carry traffic."""
        for outcome, count in self.grpc.ask(10).items():
            (self.answered if outcome in ("v1", "v2") else self.failed)[f"grpc {outcome}"] += count
        for _ in range(10):
            outcome = self._http()
            (self.answered if outcome in ("v1", "v2") else self.failed)[f"http {outcome}"] += 1

    def _http(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["web"], timeout=10)
        try:
            connection.request("GET", "/", headers={"Host": "web"})
            reply = connection.getresponse()
            body = reply.read().decode()
            return str(json.loads(body)["name"]) if reply.status == 200 else f"{reply.status} {body}"
        except OSError as error:
            return repr(error)
        finally:
            connection.close()

    def rejects(self) -> float:
        """Refusals that the control plane ever heard of."""
        lines = self.plane.get("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("pilot_total_xds_rejects"))

    def model(self) -> dict[str, Snapshot]:
        """What the present files yield for each client, made by one that never saw others."""
        prepared = prepare(ingest(State(), Directory(self.config).read()).mesh)
        nodes = {agent.view.id: agent.view.metadata() for agent in self.agents} | {ENVOY: ENVOY_METADATA}
        return {
            node: Builder().snapshot(*parts(prepared, parse_node(node, dict(metadata))))
            for node, metadata in nodes.items()
        }


def _difference(agent: Agent, wanted: Snapshot) -> str:
    """The first thing that an agent has otherwise; empty when there is none."""
    has = agent.has()
    for url in (CDS, EDS, LDS, RDS):
        versions = {resource.name: resource.version for resource in wanted[url].values()}
        for name in sorted({*versions, *has[url]}):
            if versions.get(name) != has[url].get(name):
                return f"{agent.view.name}: {url} {name}: has {has[url].get(name)}, wants {versions.get(name)}"
    return ""


def _envoy_endpoints(envoy: EnvoyProcess) -> dict[str, set[str]]:
    """Addresses that Envoy has for each cluster of the many services."""
    found: dict[str, set[str]] = {}
    for status in json.loads(envoy.get("/clusters?format=json"))["cluster_statuses"]:
        if "svc-" in status["name"]:
            hosts = status.get("host_statuses", [])
            found[status["name"]] = {host["address"]["socket_address"]["address"] for host in hosts}
    return found


def _model_endpoints(wanted: Snapshot) -> dict[str, set[str]]:
    from underpass.api import envoy

    found: dict[str, set[str]] = {}
    for resource in wanted[EDS].values():
        if "svc-" in resource.name:
            message: Any = envoy.ClusterLoadAssignment.FromString(resource.body)
            ends = [end for group in message.endpoints for end in group.lb_endpoints]
            found[resource.name] = {end.endpoint.address.socket_address.address for end in ends}
    return found


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    config = tmp_path / "config"
    config.mkdir()
    backends = {name: free_port_on(shop.POD_V1, shop.POD_V2) for name in ("greeter", "web")}
    ports: dict[str, int] = {}
    while len(set(ports.values())) < 3:
        ports = {name: free_port("0.0.0.0") for name in ("greeter", "web", "many")}
    write(config / "greeter.yaml", shop.service(ports["greeter"], backends["greeter"], protocol="grpc"))
    web = shop.service(ports["web"], backends["web"], name="web").replace("10.96.7.7", "10.96.7.8")
    write(config / "web.yaml", web)
    for name in ("greeter", "web"):
        write(config / f"rules-{name}.yaml", shop.rules(50, name=name))
    for number in range(SERVICES):
        write(config / f"svc-{number}.yaml", service(number, ports["many"], [f"10.{60 + number}.0.1"]))
    with ExitStack() as stack:
        for address, version in ((shop.POD_V1, "v1"), (shop.POD_V2, "v2")):
            stack.enter_context(GreeterServer(address, backends["greeter"], version))
            stack.enter_context(Backend(address, backends["web"], version))
        plane = stack.enter_context(ControlPlaneProcess(config, tmp_path))
        envoy = stack.enter_context(EnvoyProcess(tmp_path, plane.xds, ENVOY, ENVOY_METADATA, "DELTA_GRPC"))
        grpc = stack.enter_context(GrpcClient(plane.xds, ports["greeter"]))
        yield World(config, plane, envoy, grpc, ports, [Agent(number, plane.xds) for number in range(AGENTS)])


async def _until(what: str, condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        await asyncio.sleep(0.1)


async def _churn(world: World) -> None:
    for agent in world.agents:
        await agent.come(fresh=True)
    await _until("envoy is live", world.envoy.ready)
    await _until("the first call is answered", lambda: world._http() in ("v1", "v2"))
    await asyncio.to_thread(world.grpc.ask, 1)
    settled_rss = 0
    end = time.monotonic() + SECONDS
    second = 0
    while time.monotonic() < end:
        began = time.monotonic()
        lost = world.agents[second % AGENTS]
        await lost.go()
        calls = asyncio.create_task(asyncio.to_thread(world.call))
        await asyncio.to_thread(world.change_endpoints)
        await asyncio.to_thread(world.edit_routes)
        await asyncio.sleep(0.2)
        await lost.come(fresh=second % 3 == 0)
        await calls
        second += 1
        if second == max(10, SECONDS // 3):
            settled_rss = world.plane.rss
        await asyncio.sleep(max(0.0, began + 1 - time.monotonic()))

    wanted = await asyncio.to_thread(world.model)
    differing = ["nobody was compared"]

    def same() -> bool:
        differing[:] = [text for agent in world.agents if (text := _difference(agent, wanted[agent.view.id]))]
        return not differing

    try:
        await _until("the agents have what the files say", same)
    except AssertionError as error:
        raise AssertionError(f"{error}: {differing}") from None
    expected = _model_endpoints(wanted[ENVOY])
    assert expected.keys() == {
        f"outbound|{world.ports['many']}||svc-{n}.default.svc.cluster.local" for n in range(SERVICES)
    }
    await _until("envoy has the endpoints that the files say", lambda: _envoy_endpoints(world.envoy) == expected)

    assert not any(agent.refused for agent in world.agents)
    assert world.envoy.rejected() == {}
    assert world.rejects() == 0
    assert world.failed == Counter()
    assert world.answered.total() >= 15 * second, "calls were made all the time"
    for text in ("client refused", "translation failed", "inconsistent snapshot"):
        assert text not in world.plane.log
    if settled_rss:
        assert world.plane.rss < 1.25 * settled_rss + (32 << 20), "memory grows with the number of changes"
    print(f"{second} s, {second * CHANGES} endpoint changes, {world.edits} route edits, calls: {dict(world.answered)}")

    # The rule that is in force last rules both kinds of traffic.
    for name in ("greeter", "web"):
        write(world.config / f"rules-{name}.yaml", shop.rules(100, name=name))
    await _until("envoy follows the last edit", lambda: {world._http() for _ in range(20)} == {"v1"})
    await _until("gRPC follows the last edit", lambda: set(world.grpc.ask(20)) == {"v1"})
    for agent in world.agents:
        await agent.go()


def test_all_end_equal_to_the_model(world: World) -> None:
    asyncio.run(_churn(world))
