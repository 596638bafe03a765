"""The node's programs: loading, pinning, upgrading in place.

At every start the objects are loaded anew. Where a program's tag (the hash of its instructions) equals the pinned
one's, the pinned one stays; else every link of it is moved to the new program, one by one and without a gap, and then
the pin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nodeagent.bpf import objects
from nodeagent.bpf.abc import AttachType, Kernel, LoadOptions, Map, Object, Program
from nodeagent.bpf.errors import (
    BpfError,
    IncompatibleMapError,
    NotPinnedError,
    ObjectFileError,
    PermissionDeniedError,
)
from nodeagent.node.paths import NodePaths


@dataclass(frozen=True, slots=True)
class Slot:
    """One place where one program is attached for each workload.

    place: "cgroup", "pod" (its interface) or "host" (the interface's other end).
    """

    name: str
    program: str
    attach_type: AttachType
    place: str


SLOTS: tuple[Slot, ...] = (
    Slot("pod_egress", "up_egress", AttachType.TCX_EGRESS, "pod"),
    Slot("pod_ingress", "up_ingress", AttachType.TCX_INGRESS, "pod"),
    Slot("host_ingress", "up_from_pod", AttachType.TCX_INGRESS, "host"),
    Slot("host_egress", "up_to_pod", AttachType.TCX_EGRESS, "host"),
    Slot("sockops", "up_sockops", AttachType.CGROUP_SOCK_OPS, "cgroup"),
    Slot("getpeername4", "up_getpeername4", AttachType.CGROUP_INET4_GETPEERNAME, "cgroup"),
    Slot("getpeername6", "up_getpeername6", AttachType.CGROUP_INET6_GETPEERNAME, "cgroup"),
    Slot("connect4", "up_connect4", AttachType.CGROUP_INET4_CONNECT, "cgroup"),
    Slot("connect6", "up_connect6", AttachType.CGROUP_INET6_CONNECT, "cgroup"),
)
"""In the order of attaching. Every prefix is safe: no connection is sent home before what follows it is in place."""

HOME_SLOTS: tuple[Slot, ...] = tuple(slot for slot in SLOTS if slot.name == "sockops")
"""Home's own cgroup: its upstreams must be recognised when they are established."""

ENVOY_SLOTS: tuple[Slot, ...] = (
    Slot("accepted", "up_origin_sockops", AttachType.CGROUP_SOCK_OPS, "cgroup"),
    Slot("original_dst", "up_original_dst", AttachType.CGROUP_GETSOCKOPT, "cgroup"),
)
"""The cgroup of the node's Envoy: it learns what its clients connected to."""

CONTROL = "up_control"
OLDER = {"tc_workload.bpf.o": "tc_workload_old.bpf.o"}
"""The same programs for kernels that refuse the first: before 6.2, see kernel/context.h."""
OBJECTS = ("sock_addr.bpf.o", "sockops.bpf.o", "tc_workload.bpf.o", "tc_host.bpf.o", "control.bpf.o", "origin.bpf.o")


@dataclass(slots=True)
class Loaded:
    """The node's maps and programs by name, and which programs were replaced by this start."""

    maps: dict[str, Map] = field(default_factory=dict)
    programs: dict[str, Program] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)

    def close(self) -> None:
        """Gives the descriptors back; pins and links stay."""
        for owner in (*self.maps.values(), *self.programs.values()):
            owner.close()


def load(
    kernel: Kernel,
    paths: NodePaths,
    *,
    files: tuple[Path, ...] | None = None,
    max_entries: Mapping[str, int] | None = None,
    constants: Mapping[str, bytes] | None = None,
) -> Loaded:
    """Loads (or recovers) everything of a node and pins it.

    files: the objects, by default those of `objects.find`. Raises what `Kernel.load` raises; then all that is pinned
    and attached stays as it was.
    """
    for directory in (paths.maps, paths.programs, paths.links):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = Loaded()
    options = LoadOptions(pin_dir=paths.maps, max_entries=max_entries, constants=constants)
    try:
        for path in files or tuple(objects.find(name) for name in OBJECTS):
            loaded = _load(kernel, path, options)
            for name, program in loaded.programs.items():
                if name in fresh.programs:
                    raise ObjectFileError(f"BPF object {path}", f"program {name} is in another object, too")
                fresh.programs[name] = program
            for name, shared in loaded.maps.items():
                if name in fresh.maps:
                    shared.close()
                else:
                    fresh.maps[name] = shared
        for name, program in list(fresh.programs.items()):
            _settle(kernel, paths, fresh, name, program)
    except BaseException:
        fresh.close()
        raise
    return fresh


def _load(kernel: Kernel, path: Path, options: LoadOptions) -> Object:
    """Loads an object, or the one for older kernels beside it. The error of the first is raised if neither is taken."""
    try:
        return kernel.load(path, options)
    except BpfError as error:
        older = path.with_name(OLDER.get(path.name, path.name))
        if older == path or not older.is_file() or isinstance(error, (PermissionDeniedError, IncompatibleMapError)):
            raise
        try:
            return kernel.load(older, options)
        except BpfError:
            raise error from None


def _settle(kernel: Kernel, paths: NodePaths, fresh: Loaded, name: str, program: Program) -> None:
    """Pins a program, or upgrades what is pinned by its name, or drops it for the equal one that is pinned."""
    pin = paths.programs / name
    try:
        pinned = kernel.pinned_program(pin)
    except NotPinnedError:
        program.pin(pin)
        return
    if pinned.info().tag == program.info().tag:
        program.close()
        fresh.programs[name] = pinned
        return
    old = pinned.info().id
    pinned.close()
    for path in pinned_links(paths):
        link = kernel.pinned_link(path)
        if link.info().program_id == old:
            link.update(program)
        link.close()
    replace_pin(program, pin)
    fresh.replaced.append(name)


def pinned_links(paths: NodePaths) -> list[Path]:
    """Paths of all pinned links of the node."""
    if not paths.links.is_dir():
        return []
    return sorted(path for owner in paths.links.iterdir() if owner.is_dir() for path in owner.iterdir())


def replace_pin(program: Program, pin: Path) -> None:
    """Puts a program under a name that another one has, in one step for whoever opens the name."""
    beside = pin.with_name(f"{pin.name}_new")
    beside.unlink(missing_ok=True)
    program.pin(beside)
    beside.rename(pin)


def recover(kernel: Kernel, paths: NodePaths, maps: tuple[str, ...], programs: tuple[str, ...] = ()) -> Loaded:
    """Opens what an agent has pinned, without loading anything. NotPinnedError names the first that is missing."""
    found = Loaded()
    try:
        for name in maps:
            found.maps[name] = kernel.pinned_map(paths.maps / name)
        for name in programs:
            found.programs[name] = kernel.pinned_program(paths.programs / name)
    except BaseException:
        found.close()
        raise
    return found
