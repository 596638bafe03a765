"""Attaching the node's programs to a workload, and telling whether they still are.

State is in the kernel and on the bpffs only: a link's pin says that it shall exist, the link itself whether it does. So
an agent that was restarted, or that somebody interfered with, repairs what is not as it should be and says what it was.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from nodeagent.bpf.abc import Kernel, Link, Map, Program
from nodeagent.bpf.errors import BpfError, KeyExistsError, NoSuchDeviceError, NotPinnedError, UnsupportedFeatureError
from nodeagent.node.netns import inside
from nodeagent.node.paths import NodePaths
from nodeagent.node.programs import ENVOY_SLOTS, HOME_SLOTS, SLOTS, Slot
from nodeagent.node.registry import Workload

_RELEASES, _RELEASE = 20, 0.01  # how often, and after how many seconds, an attachment is tried again


@dataclass(frozen=True, slots=True)
class Repair:
    """One attachment that was not there, and why. The first attachment of a workload is one, too ("new")."""

    key: str
    slot: str
    why: str


class Attacher:
    """Attaches and checks workloads of one node. Idempotent: `attach` is also the check.

    programs: by name, those that are pinned. tcx: None finds out at the first attachment.
    """

    def __init__(
        self, kernel: Kernel, paths: NodePaths, programs: Mapping[str, Program], tcx: bool | None = None
    ) -> None:
        self.kernel, self.paths, self.programs, self.tcx = kernel, paths, programs, tcx
        self._program_ids = {name: program.info().id for name, program in programs.items()}

    def attach(self, workload: Workload) -> list[Repair]:
        """Attaches what is not attached; empty when all was as it should be.

        Raises NoSuchDeviceError while the cgroup, namespace or interface does not exist (yet, or any more).
        """
        repairs: list[Repair] = []
        places = {
            "cgroup": _identity(workload.cgroup),
            "pod": self._ifindex(workload.netns, workload.interface),
            "host": self._ifindex(None, workload.host_interface),
        }
        for slot in SLOTS:
            if slot.program in self.programs:
                self._ensure(workload.key, slot, workload, places[slot.place], repairs)
        return repairs

    def attach_home(self) -> list[Repair]:
        """The same for home's own cgroup, which is made if need be."""
        return self._attach_process("home", HOME_SLOTS, self.paths.home_cgroup)

    def attach_waypoint(self) -> list[Repair]:
        """The same for the cgroup that the node's Envoy runs in."""
        return self._attach_process("waypoint", ENVOY_SLOTS, self.paths.waypoint_cgroup)

    def _attach_process(self, key: str, slots: tuple[Slot, ...], cgroup: Path) -> list[Repair]:
        cgroup.mkdir(parents=True, exist_ok=True)
        repairs: list[Repair] = []
        for slot in slots:
            self._ensure(key, slot, cgroup, _identity(cgroup), repairs)
        return repairs

    def detach(self, key: str, workload: Workload | None = None) -> None:
        """Detaches everything of a workload. Whatever has gone already is no error.

        workload: needed only for clsact, whose filters no pin remembers.
        """
        directory = self.paths.links_of(key)
        for path in sorted(directory.iterdir()) if directory.is_dir() else ():
            try:
                link = self.kernel.pinned_link(path)
                link.detach()
                link.close()
            except BpfError:
                pass  # its cgroup or interface went before it
            self._unpin(path)
        if directory.is_dir():
            directory.rmdir()
        if workload is not None and self.tcx is False:
            for slot in SLOTS:
                if slot.place == "cgroup":
                    continue
                try:
                    with self._where(slot, workload) as ifindex:
                        self.kernel.detach_clsact(ifindex, slot.attach_type)
                except BpfError:
                    pass  # the interface has gone, and its filters with it

    def attached(self) -> list[str]:
        """Names of the link directories: `pin_name` of each workload that has links, and "home"."""
        if not self.paths.links.is_dir():
            return []
        return sorted(path.name for path in self.paths.links.iterdir() if path.is_dir())

    def _ensure(self, key: str, slot: Slot, to: Workload | Path, target: int, repairs: list[Repair]) -> None:
        if slot.place != "cgroup" and self.tcx is False:
            assert isinstance(to, Workload)
            self._ensure_clsact(key, slot, to, repairs)
            return
        directory = self.paths.links_of(key)
        pin = directory / slot.name
        why = "new"
        try:
            link = self.kernel.pinned_link(pin)
        except NotPinnedError:
            if directory.is_dir() and any(directory.iterdir()) and not self._attaching(key, repairs):
                why = "its pin was gone"
        else:
            info = link.info()
            there = info.cgroup_id if slot.place == "cgroup" else info.ifindex
            if there == target:
                if info.program_id != self._program_ids[slot.program]:
                    link.update(self.programs[slot.program])
                    repairs.append(Repair(key, slot.name, "it ran another program"))
                link.close()
                return
            why = "it was detached" if not there else "it was on a cgroup or interface of the past"
            link.close()
            self._unpin(pin)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = self._attach(slot, to)
        if fresh is None:  # it turned out that there is no tcx
            self._ensure(key, slot, to, target, repairs)
            return
        try:
            fresh.pin(pin)
        finally:
            fresh.close()
        repairs.append(Repair(key, slot.name, why))

    @staticmethod
    def _attaching(key: str, repairs: list[Repair]) -> bool:
        return any(repair.key == key and repair.why == "new" for repair in repairs)

    def _attach(self, slot: Slot, to: Workload | Path) -> Link | None:
        program = self.programs[slot.program]
        if slot.place == "cgroup":
            cgroup = to if isinstance(to, Path) else to.cgroup
            return self.kernel.attach_cgroup(program, cgroup, slot.attach_type)
        assert isinstance(to, Workload)
        for attempt in range(_RELEASES):
            try:
                with self._where(slot, to) as ifindex:
                    link = self.kernel.attach_tcx(program, ifindex, slot.attach_type)
            except UnsupportedFeatureError:
                if self.tcx:
                    raise
                self.tcx = False
                return None
            except KeyExistsError:
                # the kernel takes an unpinned link off a little later, and one program not twice
                if attempt == _RELEASES - 1:
                    raise
                time.sleep(_RELEASE)
                continue
            self.tcx = True
            return link
        raise AssertionError("unreachable")

    def _ensure_clsact(self, key: str, slot: Slot, workload: Workload, repairs: list[Repair]) -> None:
        with self._where(slot, workload) as ifindex:
            there = self.kernel.query_clsact(ifindex, slot.attach_type)
            if there == self._program_ids[slot.program]:
                return
            self.kernel.attach_clsact(self.programs[slot.program], ifindex, slot.attach_type)
        known = any(path.name != slot.name for path in self._pins(key)) and not self._attaching(key, repairs)
        why = "it ran another program" if there is not None else "its filter was gone" if known else "new"
        repairs.append(Repair(key, slot.name, why))

    def _pins(self, key: str) -> list[Path]:
        directory = self.paths.links_of(key)
        return list(directory.iterdir()) if directory.is_dir() else []

    def _where(self, slot: Slot, workload: Workload) -> _Interface:
        if slot.place == "pod":
            return _Interface(workload.netns, workload.interface)
        return _Interface(None, workload.host_interface)

    def _ifindex(self, netns: Path | None, name: str) -> int:
        with _Interface(netns, name) as index:
            return index

    def _unpin(self, path: Path) -> None:
        path.unlink(missing_ok=True)


class _Interface:
    """Inside the namespace of an interface (None: our own), as its index."""

    def __init__(self, netns: Path | None, name: str) -> None:
        self._name = name
        self._block = inside(netns) if netns is not None else nullcontext()

    def __enter__(self) -> int:
        self._block.__enter__()
        try:
            return socket.if_nametoindex(self._name)
        except OSError as cause:
            self._block.__exit__(None, None, None)
            raise NoSuchDeviceError(
                f"interface {self._name}", "there is none of that name", "the workload is starting or has gone"
            ) from cause

    def __exit__(self, *error: object) -> None:
        self._block.__exit__(None, None, None)


def _identity(cgroup: Path) -> int:
    """A cgroup's id, which the kernel also uses as its inode number. NoSuchDeviceError."""
    try:
        return os.stat(cgroup).st_ino
    except OSError as cause:
        raise NoSuchDeviceError(
            f"cgroup {cgroup}", cause.strerror or str(cause), "the workload is starting or has gone"
        ) from cause


def cgroup_id(cgroup: Path) -> int:
    """The key of `cgroup_workload`: the cgroup's id. NoSuchDeviceError."""
    return _identity(cgroup)


def set_workload_id(cgroup_workload: Map, cgroup: Path, workload_id: int) -> None:
    """Tells the connect hooks which workload a cgroup is (0: none).

    The kernel makes a cgroup's storage when the first program that uses it is attached there, so this comes after
    `Attacher.attach`; until then the cgroup counts as not enrolled. KeyMissingError when nothing is attached.
    """
    cgroup_workload.update(_identity(cgroup).to_bytes(8, "little"), workload_id.to_bytes(4, "little"))


def workload_id(cgroup_workload: Map, cgroup: Path) -> int:
    """The id that the pinned map holds for a cgroup: how ids survive a restart. 0: none. NoSuchDeviceError."""
    value = cgroup_workload.lookup(_identity(cgroup).to_bytes(8, "little"))
    return int.from_bytes(value, "little") if value else 0
