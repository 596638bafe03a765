"""Where the bench stands: a lab of two nodes, and plain namespaces beside its workloads.

The lab (underpass.lab) makes the nodes and, when the kernel's path is asked for, runs the mesh on them. The paths
without a mesh have a client and servers of their own on the same bridges: the same veth pairs and the same hops, but no
program of ours on any interface. Their names start with `upb`, so that the next run can remove what a killed one left.
"""

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.machine import NICE, BenchError, Place, processes_in, run
from bench.servers import PORT_SINK, Files, nginx
from underpass.lab import lab
from underpass.lab.errors import LabError
from underpass.lab.model import Options, Plan, SourceFile
from underpass.lab.state import State

PREFIX = "upb"
LAB = "bench"
LOCK = Path("/run/underpass-bench.lock")
HERE = Path(__file__).resolve().parent
FIRST_GUEST = 251  # the lab gives .10 to .249 to its pods


@dataclass(frozen=True)
class Guest:
    """A plain workload: its namespace, its address, and the number (from 1) of the node that it is on."""

    name: str
    address: str
    node: int

    @property
    def place(self) -> Place:
        """For running something in it."""
        return Place(netns=Path("/run/netns") / self.name)


@dataclass(frozen=True)
class Ground:
    """A lab that is up, and the guests on it."""

    plan: Plan
    state: State
    client: Guest
    server: Guest
    far_server: Guest

    @property
    def gateway(self) -> str:
        """The client's node's own address, where node proxies listen."""
        return self.plan.addressing.gateway(1)[0]

    @property
    def node(self) -> Place:
        """The client's node."""
        return Place(netns=Path("/run/netns") / self.plan.nodes[0].netns)

    def workload(self, name: str) -> Place:
        """A workload of the mesh: its namespace and its cgroup."""
        entry = lab.find_state(self.state, f"bench/{name}").entry
        return Place(Path(entry["netns"]), Path(entry["cgroup"]))

    @property
    def servers(self) -> list[int]:
        """Ids of all servers' processes, the mesh's and those outside it."""
        inside = [Path(state.entry["netns"]).name for state in self.state.workloads if state.owner != "client"]
        found = [pid for name in (self.server.name, self.far_server.name, *inside) for pid in processes_in(name)]
        if not found:
            raise BenchError("no server runs: their logs are in the run's directory")
        return found

    def vip(self, service: str) -> str:
        """A service's address."""
        return next(s.vips[0] for s in self.plan.services if s.name == service and s.namespace == "bench")


def sweep() -> None:
    """Remove every guest with its processes, and the bench's lab."""
    for name in [line.split()[0] for line in run("ip", "netns", "list").splitlines() if line.startswith(f"{PREFIX}-")]:
        for pid in processes_in(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run("ip", "netns", "delete", name, check=False)
    try:
        lab.down(LAB)
    except LabError as error:
        if error.exit_code != 3:  # 3: there is none
            raise BenchError(str(error)) from error


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold the machine's one bench lock; raises BenchError while another bench runs."""
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BenchError(f"another bench holds {LOCK}: two would measure each other; next: wait for it") from error
        yield


def sink_command() -> list[str]:
    """Command line of the sink for uploads."""
    return [sys.executable, "-I", str(HERE / "bodies.py"), "sink", str(PORT_SINK)]


def _lab_file(files: Files) -> SourceFile:
    commands = {
        "bench/client": ["sleep", "infinity"],
        "bench/sink": [*NICE, *sink_command()],
        "bench/nginx-mesh-near": [*NICE, *nginx(files, "mesh-near")],
        "bench/nginx-mesh-far": [*NICE, *nginx(files, "mesh-far")],
    }
    lines = ["images:"]
    for image, command in commands.items():
        lines += [f"  {image}:"] + [f"  - {part!r}" for part in command]
    path = files.directory / "lab.yaml"
    path.write_text("\n".join(lines) + "\n")
    return SourceFile(path.name, str(path), path.read_text())


def _attach(plan: Plan, node: int, name: str, host: int) -> Guest:
    """A namespace on a node's bridge, with the address of its pods' network that ends with `host`."""
    netns = plan.nodes[node - 1].netns
    gateway = plan.addressing.gateway(node)[0]
    guest = Guest(f"{PREFIX}-{name}", f"{gateway.rpartition('.')[0]}.{host}", node)
    outer = f"{PREFIX}-{host}"
    run("ip", "netns", "add", guest.name)
    run("ip", "-n", netns, "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", guest.name)
    run("ip", "-n", netns, "link", "set", outer, "master", "pods", "up")
    run("ip", "-n", guest.name, "link", "set", "lo", "up")
    run("ip", "-n", guest.name, "address", "add", f"{guest.address}/24", "dev", "eth0")
    run("ip", "-n", guest.name, "link", "set", "eth0", "up")
    run("ip", "-n", guest.name, "route", "add", "default", "via", gateway)
    return guest


def client_settings(place: Place) -> None:
    """Enough local ports for thousands of short connections a second: the same for every path's client."""
    settings = {"net/ipv4/ip_local_port_range": "1024 65000", "net/ipv4/tcp_tw_reuse": "1"}
    script = "; ".join(f"echo {value} > /proc/sys/{name}" for name, value in settings.items())
    run(*place.command("sh", "-ec", script))


@contextlib.contextmanager
def ground(files: Files, *, mesh: bool) -> Iterator[Ground]:
    """Two nodes with their workloads and guests for as long as the block runs; without `mesh`, no program of ours runs.

    Raises BenchError when the lab does not come up.
    """
    sweep()
    manifest = HERE / "mesh.yaml"
    source = SourceFile(manifest.name, str(manifest), manifest.read_text())
    try:
        try:
            plan, state = lab.up([source], _lab_file(files), Options(LAB, nodes=2, mesh=mesh), lambda _line: None)
        except LabError as error:
            raise BenchError(f"the lab does not come up: {error}") from error
        built = Ground(
            plan,
            state,
            _attach(plan, 1, "client", FIRST_GUEST),
            _attach(plan, 1, "server", FIRST_GUEST + 1),
            _attach(plan, 2, "server2", FIRST_GUEST),
        )
        client_settings(built.client.place)
        client_settings(Place(netns=built.workload("client").netns))
        yield built
    finally:
        sweep()
