"""A supervised Envoy in front of a home that stands by: killed under load, drained, replaced."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from nodeagent.abi.numbers import Counter
from nodeagent.waypoint.bootstrap import overlay
from nodeagent.waypoint.process import Launch, Waypoint, find_envoy
from tests.bpf.test_home_envoy import Setup, bootstrap, get
from tests.support import little_node
from tests.support.controlplane import ControlPlaneProcess, wait_for
from tests.support.little_node import SERVICE_PORT, VIP4, VIP6, LittleNode
from tests.support.tiers import repository

pytestmark = [pytest.mark.needs("root", "bpf", "core", "netns", "cgroup2", "envoy"), pytest.mark.timeout(120)]

HOME_PORT = 15081
ROUTES = {"a": "a", "b": "b", "dry": "b", "rewritten": "a", "six": "a"}
NODE = "sidecar~127.0.0.1~waypoint.default~default.svc.cluster.local"


class Loop:
    """The agent's part: a waypoint in an event loop of its own, so that the test can look at it from outside."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.changes: list[tuple[float, str]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        self.start()
        return self

    def start(self) -> None:
        async def begin() -> None:
            self.waypoint = Waypoint(self.launch, self._changed)
            self._task = asyncio.create_task(self.waypoint.run())

        asyncio.run_coroutine_threadsafe(begin(), self._loop).result()
        wait_for("Envoy is ready", lambda: self.waypoint.ready, every=0.01)

    def _changed(self) -> None:
        self.changes.append((time.time(), str(self.waypoint.status()["state"])))

    def pid(self) -> int:
        return int(self.waypoint.status()["pid"])

    def stop(self) -> float:
        async def end() -> None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

        began = time.monotonic()
        asyncio.run_coroutine_threadsafe(end(), self._loop).result(30)
        return time.monotonic() - began

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class World(Setup):
    """The setup of test_home_envoy with home standing by, Envoy supervised and fed by a control plane."""

    def __init__(self, node: LittleNode, waypoint: Loop) -> None:
        self.waypoint = waypoint
        super().__init__(node)

    def load(self, seconds: float, *names: str) -> Any:
        command = [sys.executable, "-m", "tests.support.steady_client", VIP4, str(SERVICE_PORT), str(seconds), *names]
        child = self.node.spawn(self.client, ["env", f"PYTHONPATH={repository()}", *command], enrolled=True)
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n", child.communicate()
        return child


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("wp")
    node = LittleNode(root, ["--standby"])
    with ExitStack() as stack:
        # who stands by takes the port of all addresses: not that of other nodes on this machine
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(little_node, "HOME_PORT", HOME_PORT)
        (root / "config").mkdir()
        plane = stack.enter_context(ControlPlaneProcess(root / "config", root))
        stack.enter_context(node)
        host, _, port = plane.xds.rpartition(":")
        config = root / "envoy.yaml"
        part = overlay(
            xds=(host, int(port)), node_id=NODE, metadata={}, admin=str(node.paths.run / "waypoint-admin.sock")
        )
        launch = Launch(find_envoy(None), node.paths.run, config, part, drain=1.0)
        waypoint = Loop(launch)
        made = World(node, waypoint)
        static = bootstrap(node, ROUTES)
        for listener in static["listeners"]:
            listener["address"]["socket_address"]["port_value"] = HOME_PORT
        config.write_text(yaml.safe_dump({"static_resources": static}))
        stack.enter_context(waypoint)
        yield made


def test_killed_under_load(world: World) -> None:
    """The kernel's routes lose nothing on open connections, nor on new ones from then on; Envoy is back within 2 s.

    What only Envoy can do gets a 503 that names the reason, and Envoy again as soon as it is back.
    """
    world.warm("a", "b")
    assert world.ask([get("rewritten")]) == [("envoy", "a")]
    kernel = world.node.counter(Counter.KERNEL)
    child = world.load(5, "a", "b", "rewritten")
    time.sleep(1)
    killed, pid = time.time(), world.waypoint.pid()
    os.kill(pid, signal.SIGKILL)
    wait_for("another is ready", lambda: world.waypoint.waypoint.ready and world.waypoint.pid() != pid, every=0.005)
    back = time.time()
    told = json.loads(child.communicate(timeout=30)[0])
    assert back - killed < 2, back - killed
    asked = 0
    for name in ("a open", "a new", "b open", "b new"):
        asked += told[name]["asked"]
        lost = sorted(time for times in told[name]["at"].values() for time in times)
        if name.endswith("new") and lost:
            # accepted by the dying process, closed by it before the first request was there: the one gap that is left
            assert len(lost) == 1, (name, told[name], killed, back)
            assert killed <= lost[0] < killed + 0.05, (name, told[name], killed, back)
        else:
            assert lost == [], (name, told[name], killed, back)
    assert asked > 1000
    assert world.node.counter(Counter.KERNEL) - kernel >= asked * 0.99
    for name in ("rewritten open", "rewritten new"):
        answers = told[name]["answers"]
        assert answers["503 route-rewrite"], answers
        for answer, times in told[name]["at"].items():
            # what the dying process had accepted is cut off; the rest is refused by name, and only for so long
            until = back + 0.5 if answer == "503 route-rewrite" else killed + 0.2
            assert killed - 0.1 < min(times) <= max(times) < until, (name, answer, times, killed, back)
    assert world.waypoint.waypoint.status()["restarts"] >= 1


IDLE = """
import socket, sys
from tests.support.steady_client import ask, connect
def told(end):
    try:
        return ask(*end, "a")[0]
    except OSError as error:
        return "closed"
fresh, used = connect(sys.argv[1], int(sys.argv[2])), connect(sys.argv[1], int(sys.argv[2]))
print(told(used), flush=True)
sys.stdin.readline()
print(told(fresh).lower().replace("none", "closed"), told(used), told(used))
"""


def test_idle_connections_at_its_death(world: World) -> None:
    """One that the kernel has taken over outlives it; one without a request yet ends, as with any server that ends."""
    world.warm("a")
    command = ["env", f"PYTHONPATH={repository()}", sys.executable, "-c", IDLE, VIP4, str(SERVICE_PORT)]
    child = world.node.spawn(world.client, command, enrolled=True)
    assert child.stdout is not None
    assert child.stdout.readline() == b"200\n", child.communicate()
    pid = world.waypoint.pid()
    os.kill(pid, signal.SIGKILL)
    wait_for("another is ready", lambda: world.waypoint.waypoint.ready and world.waypoint.pid() != pid, every=0.005)
    assert child.communicate(b"\n", timeout=20)[0] == b"closed 200 200\n"


def test_home_starts_again_beneath_an_envoy(world: World) -> None:
    """Which of the two listens first does not matter."""
    world.node.stop_home()
    world.node.start_home()
    world.warm("a")
    assert world.ask([get("rewritten"), get("a"), get("rewritten")]) == [
        ("envoy", "a"), ("kernel", "a"), ("envoy", "a"),
    ]  # fmt: skip


def test_drained_under_load(world: World) -> None:
    """Ended as the agent ends it: nobody loses a request of the kernel's, nor a connection to it."""
    world.warm("a", "b")
    child = world.load(3, "a", "b", "rewritten")
    time.sleep(0.5)
    assert world.waypoint.stop() < 5
    assert world.waypoint.waypoint.status()["state"] == "stopped"
    told = json.loads(child.communicate(timeout=30)[0])
    for name in ("a open", "a new", "b open", "b new"):
        assert told[name]["answers"] == {"200": told[name]["asked"]}, (name, told[name])
    assert told["rewritten new"]["answers"]["503 route-rewrite"], told["rewritten new"]
    world.warm("six", vip=VIP6)
    world.waypoint.start()
    assert world.ask([get("rewritten")]) == [("envoy", "a")]


def test_the_next_agent_replaces_an_envoy_that_was_left_behind(world: World) -> None:
    """An agent that is killed leaves its Envoy serving."""
    left = world.waypoint.pid()
    ready = asyncio.Event()
    second = Waypoint(world.waypoint.launch, lambda: ready.set() if second.ready else None)

    async def begin_and_end() -> int:
        task = asyncio.create_task(second.run())
        await asyncio.wait_for(ready.wait(), 30)
        pid = int(second.status()["pid"])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return pid

    assert asyncio.run(begin_and_end()) != left
    assert not Path(f"/proc/{left}").exists() or "Z" in Path(f"/proc/{left}/stat").read_text()
