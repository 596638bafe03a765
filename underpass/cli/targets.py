"""Which nodes and which control plane a command is about.

A node of this machine is known by its pins or by its run directory. Labs share machines: a node that a lab with a name
made is meant only when that lab is, or when there is nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Final

import typer

from nodeagent.bpf import features
from nodeagent.errors import AgentError
from nodeagent.node.paths import RUN_ROOT
from nodeagent.node.registry import Registry, Workload
from underpass.cli.errors import UNREACHABLE, USAGE, CliError
from underpass.lab.addresses import DEFAULT_NAME
from underpass.lab.errors import LabError
from underpass.lab.state import all_names, load

DEFAULT_HTTP: Final = "127.0.0.1:15014"

NodeOption = Annotated[list[str] | None, typer.Option("--node", metavar="NODE", help="Only this node (repeatable).")]
LabOption = Annotated[
    str | None, typer.Option("--lab", "--name", envvar="UNDERPASS_LAB", help="Only the nodes of this lab.")
]
ControlPlaneOption = Annotated[
    str | None,
    typer.Option(
        "--control-plane",
        envvar="UNDERPASS_CONTROL_PLANE",
        metavar="HOST:PORT",
        help=f"HTTP address of the control plane (the lab's, else {DEFAULT_HTTP}).",
    ),
]


@dataclass(frozen=True, slots=True)
class Node:
    """A node of this machine. lab: the name of the lab that made it, or empty; pinned: whether maps are pinned."""

    name: str
    run: Path
    bpffs: Path
    pinned: bool
    lab: str = ""


@dataclass(frozen=True, slots=True)
class Lab:
    """A lab that is up."""

    name: str
    nodes: tuple[str, ...]
    http: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is on this machine."""

    nodes: tuple[Node, ...] = ()
    labs: Mapping[str, Lab] = field(default_factory=dict)


def _labs() -> dict[str, Lab]:
    labs = {}
    for name in all_names():
        try:
            state = load(name)
        except LabError:
            continue  # a broken state file must not hide the other nodes; `underpass lab` tells about it
        if state is not None:
            labs[name] = Lab(name, tuple(state.nodes), state.http)
    return labs


def discover() -> Machine:
    """Look for nodes and labs. Raises CliError when this user may not look, or when there is no bpffs."""
    labs = _labs()
    owners = {node: lab.name for lab in labs.values() for node in lab.nodes}
    pins = features.bpffs() / "underpass"
    names = {path.name for path in _list(pins)}
    names |= {path.name for path in _list(RUN_ROOT) if (path / "workloads").is_dir() or (path / "status.json").exists()}
    return Machine(
        tuple(
            Node(name, RUN_ROOT / name, pins / name, (pins / name / "maps").is_dir(), owners.get(name, ""))
            for name in sorted(names)
        ),
        labs,
    )


def discover_control_plane() -> Machine:
    """As `discover`, as far as finding the control plane needs it: users who may not see nodes may ask it, too."""
    try:
        return discover()
    except (CliError, AgentError):
        try:
            return Machine(labs=_labs())
        except OSError:
            return Machine()


def _list(directory: Path) -> list[Path]:
    try:
        return [path for path in directory.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise CliError(
            f"cannot look into {directory}", f"{error.strerror}: it belongs to root", "run as root", UNREACHABLE
        ) from error


def choose(machine: Machine, names: Sequence[str] = (), lab: str | None = None) -> list[Node]:
    """The nodes that are meant, sorted by name; empty when there are none at all. Raises CliError. Pure."""
    nodes = list(machine.nodes)
    if lab is not None:
        if lab not in machine.labs:
            raise CliError(f"no lab {lab!r} is up", _known("labs", machine.labs), "underpass lab up", UNREACHABLE)
        nodes = [node for node in nodes if node.lab == lab]
    if names:
        known = {node.name: node for node in nodes}
        for name in names:
            if name not in known:
                raise CliError(f"no node {name!r} here", _known("nodes", known), _like(name, known), UNREACHABLE)
        return [known[name] for name in dict.fromkeys(names)]
    if lab is None:
        plain = [node for node in nodes if node.lab in ("", DEFAULT_NAME)]
        if not plain and len({node.lab for node in nodes}) > 1:
            labs = ", ".join(sorted({node.lab for node in nodes}))
            raise CliError("which lab?", f"several are up: {labs}", "give --lab NAME, or --node NODE", USAGE)
        nodes = plain or nodes
    return nodes


def pinned_nodes(names: Sequence[str] | None, lab: str | None) -> list[Node]:
    """The nodes that are meant and have maps. Raises CliError when there is none."""
    require_root("read the pinned maps")
    nodes = choose(discover(), names or (), lab)
    found = [node for node in nodes if node.pinned]
    if not found:
        where = f" on {', '.join(node.name for node in nodes)}" if nodes else " on this machine"
        raise CliError(
            "no agent has set up a node here",
            f"no maps are pinned{where}",
            "start underpass-agent, or bring a lab up: underpass lab up FILE...",
            UNREACHABLE,
        )
    return found


def require_root(what: str) -> None:
    """Raises CliError for a user who may not."""
    if os.geteuid() != 0:
        raise CliError(
            f"cannot {what}", f"user {os.geteuid()} is not root", "run as root: sudo underpass ...", UNREACHABLE
        )


def control_plane(given: str | None, machine: Machine, lab: str | None) -> str:
    """HOST:PORT of the control plane's HTTP: what was given, else the lab's that is meant, else the usual one. Pure."""
    if given:
        address = given.removeprefix("http://").rstrip("/")
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise CliError(f"--control-plane {given}", "it is not HOST:PORT", f"for example {DEFAULT_HTTP}", USAGE)
        return address
    if lab is not None and lab in machine.labs:
        return machine.labs[lab].http or DEFAULT_HTTP
    if DEFAULT_NAME in machine.labs:
        return machine.labs[DEFAULT_NAME].http or DEFAULT_HTTP
    if len(machine.labs) == 1 and all(node.lab for node in machine.nodes):
        return next(iter(machine.labs.values())).http or DEFAULT_HTTP
    return DEFAULT_HTTP


def workloads(nodes: Iterable[Node]) -> list[tuple[Node, Workload]]:
    """Every registered workload of the nodes."""
    found = []
    for node in nodes:
        registry = Registry(node.run / "workloads")
        try:
            registry.poll()
        except OSError as error:
            raise CliError(
                f"cannot read {registry.directory}", error.strerror or "", "run as root", UNREACHABLE
            ) from error
        found += [(node, workload) for _, workload in sorted(registry.workloads.items())]
    return found


def find_workload(name: str, known: Sequence[tuple[Node, Workload]]) -> tuple[Node, Workload]:
    """The workload that a person means by NAME or NAMESPACE/NAME: its pod's name, or its owner's. Pure.

    Replicas of one owner are alike; the first stands for them. Raises CliError with suggestions.
    """
    namespace, slash, rest = name.partition("/")
    wanted = rest if slash else name
    found = [(node, w) for node, w in known if wanted in (w.name, w.owner) and (not slash or w.namespace == namespace)]
    exact = [(node, w) for node, w in found if w.name == wanted] or found
    owners = {(w.namespace, w.owner) for _, w in exact}
    if len(owners) == 1:
        return exact[0]
    if owners:
        both = ", ".join(sorted(f"{space}/{owner}" for space, owner in owners))
        raise CliError(f"which workload is {name!r}?", f"there are {both}", "give NAMESPACE/NAME", USAGE)
    names = {f"{w.namespace}/{w.owner}": None for _, w in known}
    short = {w.owner: None for _, w in known}
    raise CliError(
        f"no workload {name!r} is registered here",
        _known("workloads", names),
        _like(name, names if slash else short),
        USAGE,
    )


def _known(what: str, names: Iterable[str]) -> str:
    listed = sorted(names)
    if not listed:
        return f"there are no {what}"
    shown = ", ".join(listed[:12]) + (f" and {len(listed) - 12} more" if len(listed) > 12 else "")
    return f"the {what} are {shown}"


def _like(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else ""
