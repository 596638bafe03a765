"""Processes that outlive the command that started them: started detached, known by pid and start time, ended by that.

A pid alone may be another process tomorrow; pid and start time together are not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from underpass.lab.errors import LabError
from underpass.lab.host import NETNS_DIR

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])

# $1 the cgroup or the hosts file, the rest the command. The mount namespace is the workload's own and a slave of the
# machine's: what the machine mounts later (bpffs) is seen in it, what is bound in it is not seen outside.
_ENTER_CGROUP = 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"'
_BIND_HOSTS = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'


@dataclass(frozen=True, slots=True)
class Started:
    """A process of the lab. `role` says what it is (`control plane`, `agent node-1`, `default/web-0 web`)."""

    role: str
    pid: int
    start_time: int
    log: str

    @property
    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        return start_time(self.pid) == self.start_time


def start_time(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot; None when there is no such process or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def sample_server_command() -> list[str]:
    """How to start the sample server from wherever this package lies, whatever the workload's environment says."""
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from underpass.lab.server import main; sys.exit(main())"
    return [sys.executable, "-I", "-c", code, _PACKAGE_ROOT]


def inside(command: Sequence[str], netns: str = "", cgroup: str = "", hosts: str = "") -> list[str]:
    """`command` in a cgroup, a network namespace and a mount namespace with its own /etc/hosts (each if given).

    The cgroup comes first, so that every socket of the command belongs to it. The namespace is entered with nsenter,
    because `ip netns exec` would hide the BPF file system. The process keeps its pid all the way.
    """
    out = list(command)
    if hosts:
        out = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", _BIND_HOSTS, "lab", hosts, *out]
    if netns:
        out = ["nsenter", f"--net={NETNS_DIR / netns}", *out]
    if cgroup:
        out = ["sh", "-c", _ENTER_CGROUP, "lab", cgroup, *out]
    return out


def start(role: str, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Started:
    """Start `command` in a session of its own with output to `log`. Raises LabError when it cannot be executed."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
    try:
        with log.open("ab") as output:
            child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                cwd="/",
            )
    except OSError as error:
        raise LabError(f"cannot start {role}", f"{command[0]}: {error.strerror}", "is it installed?") from error
    began = start_time(child.pid)
    # The child is the lab's, not this command's: it is never waited for here, and init takes it over.
    child.returncode = 0
    return Started(role, child.pid, began if began is not None else 0, str(log))


def stop(processes: Sequence[Started], grace: float = 3.0) -> list[Started]:
    """SIGTERM, then SIGKILL after `grace` seconds. Returns those that even so would not end."""
    pending = [process for process in processes if process.alive]
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 2.0)):
        for process in pending:
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + patience
        while pending and time.monotonic() < deadline:
            _reap(pending)
            pending = [process for process in pending if process.alive]
            if pending:
                time.sleep(0.01)
        if not pending:
            break
    return pending


def _reap(processes: Sequence[Started]) -> None:
    """Collect those that are children of this very process, so that they do not stay as zombies while it runs."""
    for process in processes:
        try:
            os.waitpid(process.pid, os.WNOHANG)
        except ChildProcessError:
            continue


def listening_ports(pid: int) -> set[int]:
    """The TCP ports on which anything listens in the network namespace of `pid`."""
    ports: set[int] = set()
    for family in ("tcp", "tcp6"):
        try:
            text = Path(f"/proc/{pid}/net/{family}").read_text(encoding="ascii")
        except OSError:
            continue
        for line in text.splitlines()[1:]:
            fields = line.split()
            if len(fields) > 3 and fields[3] == "0A":
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def tail(log: str, lines: int = 5) -> str:
    """The last lines of a log, for error messages."""
    try:
        text = Path(log).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return " | ".join(line for line in text.splitlines()[-lines:] if line.strip())
