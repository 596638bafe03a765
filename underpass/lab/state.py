"""What a lab remembers between two commands: `/run/underpass/lab.json` (`lab-NAME.json` for a lab with a name)."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from underpass.lab.addresses import DEFAULT_NAME
from underpass.lab.errors import LabError
from underpass.lab.model import Allocation, LinkOptions, Options, SourceFile
from underpass.lab.processes import Started

RUN = Path("/run/underpass")
LOCK = Path("/run/lock/underpass-lab.lock")
VERSION = 1


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a lab keeps its files."""

    name: str

    @property
    def state(self) -> Path:
        """The state file."""
        return RUN / ("lab.json" if self.name == DEFAULT_NAME else f"lab-{self.name}.json")

    @property
    def directory(self) -> Path:
        """The lab's own directory."""
        return RUN / "labs" / self.name

    @property
    def config(self) -> Path:
        """The control plane's configuration directory."""
        return self.directory / "config"

    @property
    def originals(self) -> Path:
        """The user's files as they were given, less what later ones replaced."""
        return self.directory / "files"

    @property
    def logs(self) -> Path:
        """A log for each process."""
        return self.directory / "logs"

    @property
    def hosts(self) -> Path:
        """`/etc/hosts` of each workload, as NAMESPACE.NAME."""
        return self.directory / "hosts"

    def node(self, node: str) -> Path:
        """The run directory that a node's agent and home use."""
        return RUN / node

    def registry(self, node: str) -> Path:
        """Where a node's workloads are registered."""
        return RUN / node / "workloads"

    @property
    def cgroup_name(self) -> str:
        """The cgroup of what belongs to the lab and to no node, below `underpass`."""
        return f"lab-{self.name}"

    def node_pattern(self) -> re.Pattern[str]:
        """Names of nodes that this lab may have had, for cleaning up without a state file."""
        return re.compile(r"node-\d+" if self.name == DEFAULT_NAME else rf"{re.escape(self.name)}-node-\d+")


@dataclass(slots=True)
class WorkloadState:
    """A workload that runs. `entry` is its registry entry; `env` is for commands that are run in it."""

    kind: str
    entry: dict[str, Any]
    env: dict[str, str]
    hosts: str

    @property
    def name(self) -> str:
        """The pod's name."""
        return str(self.entry["name"])

    @property
    def owner(self) -> str:
        """What users call it."""
        return str(self.entry["owner"])

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return str(self.entry["namespace"])


@dataclass(slots=True)
class State:
    """A lab between two commands."""

    options: Options
    octet: int
    status: str = "starting"
    created: str = ""
    nodes: list[str] = field(default_factory=list)
    files: list[dict[str, str]] = field(default_factory=list)
    lab_file: dict[str, str] | None = None
    allocation: Allocation = field(default_factory=Allocation)
    workloads: list[WorkloadState] = field(default_factory=list)
    processes: list[Started] = field(default_factory=list)
    revision: int = 0
    xds: str = ""
    http: str = ""

    @property
    def paths(self) -> Paths:
        """Where its files are."""
        return Paths(self.options.name)

    def source_files(self) -> list[SourceFile]:
        """The user's files, in the order of their application."""
        out = []
        for file in self.files:
            path = self.paths.originals / file["name"]
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
            out.append(SourceFile(file["name"], file["path"], text))
        return out

    def save(self) -> None:
        """Write the state file atomically."""
        data = {"version": VERSION, "name": self.options.name, **dataclasses.asdict(self)}
        write_atomically(self.paths.state, json.dumps(data, indent=1) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step, so that whoever watches the directory never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.tmp"
    temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
    os.replace(temporary, path)


def load(name: str) -> State | None:
    """The state of the lab `name`, or None when there is none. Raises LabError when the file is not ours."""
    path = Paths(name).state
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise LabError(f"cannot read {path}", str(error), "`underpass lab down` removes it") from error
    try:
        if data["version"] != VERSION:
            raise KeyError(f"version {data['version']}")
        options = dict(data["options"])
        options["link"] = LinkOptions(**options["link"])
        allocation = data["allocation"]
        return State(
            options=Options(**options),
            octet=data["octet"],
            status=data["status"],
            created=data["created"],
            nodes=data["nodes"],
            files=data["files"],
            lab_file=data["lab_file"],
            allocation=Allocation(
                {key: (node, slot) for key, (node, slot) in allocation["pods"].items()},
                {key: tuple(vips) for key, vips in allocation["vips"].items()},
            ),
            workloads=[WorkloadState(**workload) for workload in data["workloads"]],
            processes=[Started(**process) for process in data["processes"]],
            revision=data["revision"],
            xds=data["xds"],
            http=data["http"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LabError(
            f"{path} is from another version", f"{type(error).__name__}: {error}", "`underpass lab down` removes it"
        ) from error


def require(name: str) -> State:
    """The state of a lab that is up. Raises LabError when it is not."""
    state = load(name)
    if state is None:
        flag = "" if name == DEFAULT_NAME else f" --name {name}"
        raise LabError("no lab is up", f"{Paths(name).state} does not exist", f"underpass lab up{flag} FILE...", 3)
    return state


def all_names() -> list[str]:
    """The names of all labs that are up or were not taken down."""
    names = []
    for path in sorted(RUN.glob("lab*.json")):
        if path.name == "lab.json":
            names.append(DEFAULT_NAME)
        elif path.name.startswith("lab-"):
            names.append(path.name[len("lab-") : -len(".json")])
    return names


@contextmanager
def locked(name: str = "") -> Iterator[None]:
    """One command at a time changes the lab `name`; without a name: what all labs share (networks, names of devices).

    Each is one byte of one file, so that no lab leaves a lock file of its own behind. The lock belongs to the open file
    (OFD), not to the process, which may hold several.
    """
    offset = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") + 1 if name else 0
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as handle:
        fcntl.fcntl(handle, fcntl.F_OFD_SETLKW, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))
        yield
