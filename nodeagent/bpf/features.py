"""What this machine can do, found out by trying it: a version number says nothing about a distribution's kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nodeagent.bpf import libbpf
from nodeagent.bpf.abc import ProgramType
from nodeagent.bpf.errors import UnsupportedFeatureError

_TCX_INGRESS = 46
_NO_SUCH_IFINDEX = 0x7FFFFFFF
# r0 = 0; exit: the shortest program, for probes of what one can do with a program
_RETURN_0 = bytes.fromhex("b7000000000000009500000000000000")


@dataclass(frozen=True, slots=True)
class Mounts:
    """Mount points out of a mount table; None: not mounted."""

    cgroup2: Path | None
    bpffs: Path | None


def parse_mounts(table: str) -> Mounts:
    """Reads the text of /proc/self/mounts: the first mount of each sort."""
    found: dict[str, Path] = {}
    for line in table.splitlines():
        fields = line.split()
        if len(fields) >= 3:
            # the kernel writes blanks, tabs, newlines and backslashes in octal
            place = fields[1].encode().decode("unicode_escape").encode("latin-1").decode("utf-8", "surrogateescape")
            found.setdefault(fields[2], Path(place))
    return Mounts(found.get("cgroup2"), found.get("bpf"))


def mounts() -> Mounts:
    """Where this process sees cgroup v2 and a bpffs."""
    return parse_mounts(Path("/proc/self/mounts").read_text(encoding="utf-8"))


def cgroup2() -> Path:
    """Mount point of cgroup v2. UnsupportedFeatureError when there is none."""
    place = mounts().cgroup2
    if place is None:
        raise UnsupportedFeatureError(
            "cgroup v2", "not in /proc/self/mounts", "mount -t cgroup2 none /sys/fs/cgroup/unified"
        )
    return place


def bpffs() -> Path:
    """Mount point of a bpffs. UnsupportedFeatureError when there is none, as inside `ip netns exec`, which hides it."""
    place = mounts().bpffs
    if place is None:
        raise UnsupportedFeatureError("bpffs", "not in /proc/self/mounts", "mount -t bpf bpf /sys/fs/bpf")
    return place


def _with_program(kind: ProgramType, then: Callable[[int], None]) -> None:
    fd = libbpf.program_load(kind, "probe", _RETURN_0)
    if fd < 0:
        raise UnsupportedFeatureError(f"{kind.name} programs", os.strerror(-fd), "run as root", -fd)
    try:
        then(fd)
    finally:
        os.close(fd)


def tcx() -> None:
    """Tcx links (Linux 6.6): a kernel that knows them misses the interface asked for, which cannot exist."""

    def ask(fd: int) -> None:
        result = libbpf.link_create(fd, _NO_SUCH_IFINDEX, _TCX_INGRESS)
        if result >= 0:  # cannot be, but a descriptor must not leak
            os.close(result)
        elif result != -errno.ENODEV:
            raise UnsupportedFeatureError("tcx links", os.strerror(-result), "clsact is used instead", -result)

    _with_program(ProgramType.SCHED_CLS, ask)


def btf() -> None:
    """The kernel's own BTF, without which no object can be relocated."""
    if not os.access("/sys/kernel/btf/vmlinux", os.R_OK):
        raise UnsupportedFeatureError(
            "kernel BTF", "/sys/kernel/btf/vmlinux cannot be read", "use a kernel with CONFIG_DEBUG_INFO_BTF"
        )


def cgroup_programs() -> None:
    """Programs of type CGROUP_SOCK_ADDR and SOCK_OPS (CONFIG_CGROUP_BPF)."""
    _with_program(ProgramType.SOCK_OPS, lambda fd: None)
