"""Taking a lab down: from its state, and from what its names tell where there is no state. Leaves nothing behind."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from underpass.lab import host
from underpass.lab.addresses import fabric_netns, host_interface_name
from underpass.lab.errors import LabError
from underpass.lab.processes import stop
from underpass.lab.state import RUN, Paths, State


def take_down(name: str, state: State | None) -> list[str]:
    """Remove everything of the lab `name`. Returns what could not be removed, in words; goes on after each failure."""
    paths = Paths(name)
    cgroups = host.cgroup_mount() / "underpass"
    nodes = _nodes(paths, state, cgroups)
    left: list[str] = []

    def attempt(what: str, action: object, *arguments: object) -> None:
        try:
            assert callable(action)
            action(*arguments)
        except (LabError, OSError) as error:
            left.append(f"{what}: {error}")

    # Those who would react to what disappears go first, and may say good-bye to their peers.
    programs = [process for process in (state.processes if state else []) if "/" not in process.role]
    for process in stop(programs):
        left.append(f"process {process.pid} ({process.role}) does not end")
    for node in nodes:
        attempt(f"cgroup of {node}", host.kill_cgroup, cgroups / node)
    attempt("cgroup of the lab", host.kill_cgroup, cgroups / paths.cgroup_name)
    if state is not None:
        for process in stop(state.processes, grace=0.5):
            left.append(f"process {process.pid} ({process.role}) does not end")
    for node in nodes:
        attempt(f"pins of {node}", host.remove_pins, host.BPFFS / "underpass" / node)
    attempt("interface", host.delete_link, host_interface_name(name))
    attempt("namespaces", host.delete_namespaces, _namespaces(name, nodes))
    for node in nodes:
        attempt(f"run directory of {node}", _remove_tree, paths.node(node))
    attempt("directory", _remove_tree, paths.directory)
    attempt("state", paths.state.unlink, True)
    for directory in (paths.directory.parent, RUN, cgroups, host.BPFFS / "underpass"):
        host.remove_empty(directory)
    return left


def leftovers(name: str) -> list[str]:
    """What of a lab `name` is there although no state tells of it (a crash, a power cut of `lab up`)."""
    paths = Paths(name)
    cgroups = host.cgroup_mount() / "underpass"
    nodes = _nodes(paths, None, cgroups)
    found = [str(host.NETNS_DIR / netns) for netns in _namespaces(name, nodes) if host.namespace_exists(netns)]
    candidates = [cgroups / node for node in nodes] + [host.BPFFS / "underpass" / node for node in nodes]
    candidates += [paths.node(node) for node in nodes] + [paths.directory]
    candidates.append(Path("/sys/class/net") / host_interface_name(name))
    return found + [str(path) for path in candidates if path.exists()]


def _nodes(paths: Paths, state: State | None, cgroups: Path) -> list[str]:
    names = dict.fromkeys(state.nodes if state else ())
    pattern = paths.node_pattern()
    for directory in (cgroups, host.BPFFS / "underpass", RUN):
        if directory.is_dir():
            names.update(dict.fromkeys(sorted(p.name for p in directory.iterdir() if pattern.fullmatch(p.name))))
    netns = re.compile(rf"underpass\.({pattern.pattern})(\..*)?")
    if host.NETNS_DIR.is_dir():
        matches = (netns.fullmatch(path.name) for path in sorted(host.NETNS_DIR.iterdir()))
        names.update(dict.fromkeys(match[1] for match in matches if match is not None))
    return list(names)


def _namespaces(name: str, nodes: Sequence[str]) -> list[str]:
    if not host.NETNS_DIR.is_dir():
        return []
    mine = tuple(f"underpass.{node}." for node in nodes)
    exact = {f"underpass.{node}" for node in nodes} | {fabric_netns(name)}
    present = sorted(path.name for path in host.NETNS_DIR.iterdir())
    # Workloads first: a veth that goes with its pod leaves the node's bridge in order.
    return sorted((n for n in present if n in exact or n.startswith(mine)), key=lambda n: n in exact)


def _remove_tree(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
