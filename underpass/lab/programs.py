"""Starting the mesh's own programs for a lab, and asking them how far they are."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from underpass.lab.errors import CommandError, LabError
from underpass.lab.model import LinkOptions, Node, Plan
from underpass.lab.processes import Started, inside, start, tail
from underpass.lab.state import Paths

_ROOT = str(Path(__file__).resolve().parents[2])
XDS_PORT = 15010
HTTP_PORT = 15014
HOME_PORT = 15001


def program(script: str, module: str) -> list[str]:
    """How to run one of our programs: its script beside this Python, else its `main` from this very tree."""
    found = shutil.which(script, path=str(Path(sys.executable).parent))
    if found is not None:
        return [found]
    code = f"import sys; sys.path.insert(0, {_ROOT!r}); from {module} import main; sys.exit(main())"
    return [sys.executable, "-c", code]


def free_port(preferred: int) -> int:
    """`preferred` on 127.0.0.1 if nobody has it, else any free port."""
    for port in (preferred, 0):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(sock.getsockname()[1])
    raise LabError("no TCP port is free on 127.0.0.1", "", "look at `ss -ltn`")


def wait_until(
    what: str, ready: Callable[[], bool], watched: list[Started], timeout: float, step: float = 0.02
) -> None:
    """Wait until `ready()`. Raises LabError after `timeout` seconds, or at once when a watched process ended."""
    deadline = time.monotonic() + timeout
    while not ready():
        for process in watched:
            if not process.alive:
                raise LabError(f"{process.role} ended", tail(process.log) or "no output", f"see {process.log}")
        if time.monotonic() > deadline:
            last = " | ".join(filter(None, (tail(process.log, 2) for process in watched)))
            raise LabError(f"{what} within {timeout:.0f} s", last, "see the logs of the lab", exit_code=3)
        time.sleep(step)


def get_json(address: str, path: str, timeout: float = 5.0) -> tuple[int, Any]:
    """GET a JSON document from HOST:PORT. (0, None) when nobody answers."""
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return 0, None
    finally:
        connection.close()
    try:
        return response.status, json.loads(body)
    except ValueError:
        return response.status, None


def start_control_plane(paths: Paths, plan: Plan, cgroup: Path, xds: list[str], http_address: str) -> Started:
    """Start the control plane. It listens on the machine's loopback and, for the nodes, in the lab's network."""
    command = [*program("underpass-controlplane", "controlplane.app"), "--config", str(paths.config)]
    for address in xds:
        command += ["--listen", address]
    command += ["--http", http_address]
    return start("control plane", inside(command, cgroup=str(cgroup)), paths.logs / "controlplane.log")


def start_agent(paths: Paths, plan: Plan, node: Node, cgroup: Path, xds: str) -> Started:
    """Start a node's agent in the node's namespace."""
    command = [*program("underpass-agent", "nodeagent.app"), "--node", node.name, "--xds", xds]
    command += ["--run-dir", str(paths.node(node.name))]
    if plan.options.waypoint:
        command += ["--waypoint", "auto"]
    log = paths.logs / f"agent.{node.name}.log"
    return start(f"agent {node.name}", inside(command, netns=node.netns, cgroup=str(cgroup)), log)


def start_home(paths: Paths, plan: Plan, node: Node, cgroup: Path) -> Started:
    """Start a node's home in the node's namespace, listening on the node's own addresses."""
    command = [*program("underpass-home", "nodeagent.home.app"), "--node", node.name]
    command += ["--run-dir", str(paths.node(node.name))]
    for address in plan.addressing.gateway(node.index):
        host = f"[{address}]" if ":" in address else address
        command += ["--listen", f"{host}:{HOME_PORT}"]
    if plan.options.waypoint:
        command += ["--standby"]
    log = paths.logs / f"home.{node.name}.log"
    return start(f"home {node.name}", inside(command, netns=node.netns, cgroup=str(cgroup)), log)


def compile_link(target: Path) -> None:
    """Compile the forwarder that makes a link lossy."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang-19") or shutil.which("clang")
    if compiler is None:
        raise LabError("no C compiler", "a lossy link needs a small C program", "install gcc, or leave --loss away")
    source = resources.files("underpass.lab").joinpath("link.c").read_text(encoding="utf-8")
    done = subprocess.run(
        [compiler, "-O2", "-x", "c", "-o", str(target), "-"], input=source, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CommandError("cannot compile the link", done.stderr.strip(), "see the compiler's message")


def start_link(
    binary: Path, paths: Paths, link: LinkOptions, ends: tuple[str, str], netns: str, cgroup: Path, spare: list[str]
) -> Started:
    """Start a forwarder between two TAP devices, which it makes in `netns`, and wait until they are there."""
    shares = [str(round(share * 1_000_000)) for share in (link.loss, link.duplicate, link.late)]
    command = [str(binary), *ends, *shares, str(round(link.late_by * 1e6)), "42", *spare]
    log = paths.logs / f"link.{ends[1]}.log"
    process = start(f"link {ends[1]}", inside(command, netns=netns, cgroup=str(cgroup)), log)
    wait_until("the link does not come up", lambda: "ready" in tail(process.log), [process], 5.0)
    return process
