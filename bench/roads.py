"""The paths: what stands between the client and the endpoints. All of them stand at once; one is asked at a time."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench import proxies
from bench.load import Target
from bench.machine import NICE, BenchError, daemon, run
from bench.scenarios import Scenario
from bench.servers import PORT_A, PORT_SINK, Files, nginx
from bench.topology import HERE, Ground, sink_command
from underpass.lab.counters import Counters
from underpass.lab.counters import read as read_counters

PATHS = ("none", "kernel", "envoy", "haproxy")
HOST = "web"


@dataclass(frozen=True)
class Road:
    """A path: its name, what a client connects to for a scenario, and, for the mesh's, who decided requests so far."""

    name: str
    target: Callable[[Scenario], Target]
    counters: Callable[[], Counters] | None = None


def _none(ground: Ground) -> Road:
    def target(scenario: Scenario) -> Target:
        server = ground.far_server if scenario.service == "far" else ground.server
        port = PORT_SINK if scenario.load == "put" else PORT_A
        return Target(ground.client.place, f"{server.address}:{port}", HOST)

    return Road("none", target)


def _proxy(name: str, ground: Ground, base: int) -> Road:
    ports = {"web": proxies.PORT_WEB, "far": proxies.PORT_FAR, "tcp": proxies.PORT_TCP}

    def target(scenario: Scenario) -> Target:
        return Target(ground.client.place, f"{ground.gateway}:{base + ports[scenario.service]}", HOST)

    return Road(name, target)


def _kernel(ground: Ground) -> Road:
    def target(scenario: Scenario) -> Target:
        host = "web" if scenario.service == "tcp" else scenario.service
        return Target(ground.workload("client"), f"{ground.vip(scenario.service)}:80", host)

    nodes = [node.name for node in ground.plan.nodes]
    return Road("kernel", target, lambda: read_counters(nodes))


@contextlib.contextmanager
def roads(files: Files, ground: Ground, names: tuple[str, ...]) -> Iterator[list[Road]]:
    """The paths that `names` lists, with their servers and proxies, for as long as the block runs."""
    with contextlib.ExitStack() as stack:
        for guest, name in ((ground.server, "near"), (ground.far_server, "far")):
            stack.enter_context(daemon(guest.place, *NICE, *nginx(files, name), log=files.log(f"out-{name}")))
            stack.enter_context(daemon(guest.place, *NICE, *sink_command(), log=files.log(f"sink-{name}")))
        built = []
        for name in names:
            if name == "none":
                built.append(_none(ground))
            elif name == "kernel":
                built.append(_kernel(ground))
            elif name == "haproxy":
                command = proxies.haproxy(files, ground)
                stack.enter_context(daemon(ground.node, *command, log=files.log(name)))
                built.append(_proxy(name, ground, proxies.HAPROXY))
            elif name == "envoy":
                command = proxies.envoy(files, ground)
                stack.enter_context(daemon(ground.node, *command, log=files.log(name), ready=2.0))
                built.append(_proxy(name, ground, proxies.ENVOY))
        yield built


def verify(road: Road, scenario: Scenario) -> None:
    """Ask a path twenty times over one connection and check that each answer is the right endpoint's.

    Raises BenchError: a path that answers wrongly has no speed worth measuring. `none` always asks endpoint a.
    """
    if scenario.load != "requests":
        return
    target = road.target(scenario)
    deadline = time.monotonic() + 10
    while True:
        said = run(
            *target.client.command(sys.executable, "-I", str(HERE / "probe.py"), target.address, target.host),
            check=False,
        )
        answers = said.split()
        wanted = ["a", "b" if scenario.service != "tcp" and road.name != "none" else "a"] * 10
        if answers == wanted:
            return
        if time.monotonic() > deadline:
            raise BenchError(f"{road.name}, {scenario.name}: {target.address} answered {answers}, not {wanted}")
        time.sleep(0.25)
