"""Whether the mesh's programs are ready, and, after a change, what they make of it."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from underpass.lab.errors import LabError
from underpass.lab.generate import REVISION_NAMESPACE, revision_name
from underpass.lab.processes import Started, tail
from underpass.lab.programs import get_json
from underpass.lab.state import Paths, State
from underpass.lab.status import verdicts

READY_TIMEOUT = 30.0
APPLY_TIMEOUT = 10.0
STEP = 0.02
QUIET_LOOKS = 3


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("agent", timeout=timeout)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def agent_status(paths: Paths, node: str) -> dict[str, Any] | None:
    """The status document of a node's agent, asked from the agent itself; None when it does not answer."""
    connection = _UnixConnection(paths.node(node) / "agent.sock", 5.0)
    try:
        connection.request("GET", "/status")
        document = json.loads(connection.getresponse().read())
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return document if isinstance(document, dict) else None


def home_status(paths: Paths, node: str) -> dict[str, Any] | None:
    """What a node's home last wrote about itself; None when there is nothing."""
    try:
        document = json.loads((paths.node(node) / "home.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def waiting_for(document: dict[str, Any] | None, home: dict[str, Any] | None, expected: set[str]) -> str:
    """What of a node is not ready yet, in words; empty when all `expected` workloads are enrolled and served. Pure."""
    if document is None:
        return "the agent does not answer"
    if document["apply"]["error"]:
        return str(document["apply"]["error"])
    if not document["home"]:
        return "no home listens yet"
    states = {item["key"]: item for item in document["workloads"]}
    for key in sorted(expected):
        item = states.get(key)
        if item is None:
            return f"{key} is not known to the agent yet"
        if item["state"] != "enrolled":
            return f"{key} is {item['state']}: {item['reason'] or 'its view is not complete'}"
    for view in document["views"]:
        if not view["ready"]:
            return f"view {view['key']} waits for {', '.join(map(str, view['missing'])) or view['trouble'] or 'xDS'}"
    known = set(home["workloads"]) if home is not None else set()
    if expected - known:
        return f"home does not serve {', '.join(sorted(expected - known))} yet"
    return ""


def wait_ready(state: State, timeout: float = READY_TIMEOUT) -> None:
    """Wait until each node's agent has enrolled all its workloads. Raises LabError that names what is missing."""
    if not state.options.mesh:
        return
    deadline = time.monotonic() + timeout
    for node in state.nodes:
        expected = {f"{w.namespace}/{w.name}" for w in state.workloads if w.entry["node"] == node}
        while missing := waiting_for(agent_status(state.paths, node), home_status(state.paths, node), expected):
            _check_alive(_programs(state))
            if time.monotonic() > deadline:
                why = f"{node}: {missing}"
                raise LabError(f"the mesh is not ready after {timeout:.0f} s", why, f"see {state.paths.logs}", 3)
            time.sleep(STEP)


def _check_alive(programs: Sequence[Started]) -> None:
    for process in programs:
        if not process.alive:
            raise LabError(f"{process.role} ended", tail(process.log) or "no output", f"see {process.log}")


def has_read(found: Sequence[dict[str, Any]], revision: int) -> bool:
    """Whether the control plane's verdicts show that it has read the lab's change number `revision`. Pure."""
    marker = ("ServiceAccount", REVISION_NAMESPACE, revision_name(revision))
    return any((item.get("kind"), item.get("namespace"), item.get("name")) == marker for item in found)


def unsynchronised(document: Any) -> tuple[list[str], list[str]]:
    """Who of the control plane's clients has yet to follow, and who refuses, from its page of connections. Pure."""
    behind, refusing = [], []
    for client in document.get("clients", ()) if isinstance(document, dict) else ():
        for item in client["status"]:
            what = f"{client['connectionId']} {item['type']}"
            if item["error"]:
                refusing.append(f"{what}: {item['error']}")
            elif item["state"] not in ("SYNCED", "NOT_SENT", "NOT SENT"):
                behind.append(f"{what} is {item['state']}")
    return behind, refusing


def _wait_read(state: State, deadline: float) -> list[dict[str, Any]]:
    """The control plane's verdicts after the last change."""
    while not has_read(found := verdicts(state), state.revision):
        _check_alive(_programs(state))
        if time.monotonic() > deadline:
            why = "the control plane has not read its directory"
            raise LabError("the change is not in force", why, f"see {state.paths.logs}/controlplane.log", 3)
        time.sleep(STEP)
    return found


def report_verdicts(state: State, paths: Sequence[str], say: Callable[[str], None]) -> bool:
    """Print what the control plane says of the objects of `paths`, once it has read the last change.

    True when one of them was rejected. Raises LabError when it does not read the change.
    """
    if not state.options.mesh:
        return False
    found = _wait_read(state, time.monotonic() + APPLY_TIMEOUT)
    names = {file["name"] for file in state.files if file["path"] in paths}
    rejected = False
    for verdict in found:
        if verdict["file"] not in names:
            continue
        where = f"{verdict['kind']} {verdict['namespace']}/{verdict['name']}".replace(" /", " ")
        line = f"{verdict['file']}:{verdict['line']}: {where} {verdict['state']}"
        say(line + (f": {verdict['reason']}" if verdict.get("reason") else ""))
        for note in verdict.get("notes", ()):
            say(f"  {verdict['file']}:{note['line']}: {note['message']}")
        rejected = rejected or verdict["state"] == "rejected"
    return rejected


def wait_applied(state: State, timeout: float = APPLY_TIMEOUT) -> list[str]:
    """Wait until the control plane has read the last change and every agent has put into the kernel what follows of it.

    Returns what agents refuse, with their reasons; what they had before stays in force. Raises LabError after `timeout`
    seconds.
    """
    if not state.options.mesh:
        return []
    deadline = time.monotonic() + timeout
    _wait_read(state, deadline)
    quiet, refusing = 0, list[str]()
    while quiet < QUIET_LOOKS:
        # Between reading and pushing there is a moment in which nothing is out of step yet: look more than once.
        _check_alive(_programs(state))
        behind, refusing = unsynchronised(get_json(state.http, "/debug/connections")[1])
        quiet = 0 if behind else quiet + 1
        if time.monotonic() > deadline:
            why = f"see {state.paths.logs}"
            raise LabError(f"the change is not in force after {timeout:.0f} s", ", ".join(behind), why, 3)
        time.sleep(STEP)
    wait_ready(state, max(1.0, deadline - time.monotonic()))
    return refusing


def _programs(state: State) -> list[Started]:
    return [process for process in state.processes if "/" not in process.role]
