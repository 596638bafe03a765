"""Removing a node's programs, maps and links: the only way in which the data path ends on purpose."""

from __future__ import annotations

import contextlib
from pathlib import Path

import structlog

from nodeagent.bpf.abc import Kernel
from nodeagent.bpf.errors import BpfError
from nodeagent.node.attach import Attacher, set_workload_id
from nodeagent.node.paths import NodePaths, pin_name
from nodeagent.node.registry import Registry

_log = structlog.get_logger("cleanup")


def remove(kernel: Kernel, paths: NodePaths) -> None:
    """Detach every workload, then remove all pins and the agent's own files. What is gone already is no error.

    Workloads stay in their registry: the next agent enrols them again.
    """
    registry = Registry(paths.workloads)
    registry.poll()
    workloads = {pin_name(workload.key): workload for workload in registry.workloads.values()}
    attacher = Attacher(kernel, paths, {}, tcx=True)
    for workload in workloads.values():
        try:
            # Connections that are made from now on are left alone, even before the hooks are off.
            target = kernel.pinned_map(paths.maps / "cgroup_workload")
            set_workload_id(target, workload.cgroup, 0)
            target.close()
        except (BpfError, OSError):
            pass  # not attached, or its cgroup has gone
    attached = attacher.attached()
    for name in attached:
        attacher.detach(name)
    clsact = Attacher(kernel, paths, {}, tcx=False)
    for workload in workloads.values():
        clsact.detach(workload.key, workload)
    for directory in (paths.links, paths.programs, paths.maps):
        _empty(directory)
    if paths.bpffs.is_dir():
        paths.bpffs.rmdir()
    with contextlib.suppress(OSError):
        paths.waypoint_cgroup.rmdir()  # there is none, or the Envoy in it is not ours to end
    for shared in (paths.bpffs.parent, paths.cgroup.parent):
        with contextlib.suppress(OSError):
            shared.rmdir()  # of all nodes of this machine: goes with the last, and never while something is in it
    for name in ("status.json", "agent.sock"):
        (paths.run / name).unlink(missing_ok=True)
    _log.info("removed", node=paths.node, attachments=len(attached))


def _empty(directory: Path) -> None:
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if path.is_dir():
            _empty(path)
        else:
            path.unlink(missing_ok=True)
    directory.rmdir()
