"""What can go wrong at the kernel edge, typed: each error says what failed, why, and what to do next."""

from __future__ import annotations

import errno
import os

from nodeagent.errors import AgentError


class BpfError(AgentError):
    """Any failure at the kernel edge; `errno` is positive, or 0 when the kernel was not the one to refuse."""

    def __init__(self, what: str, why: str, next_step: str = "", number: int = 0) -> None:
        self.errno = number
        super().__init__(what, why, next_step)


class UnsupportedFeatureError(BpfError):
    """This kernel (or this machine's set-up) has not got the feature. Tests skip by this error and by no other."""


class PermissionDeniedError(BpfError):
    """The process may not do this: not root, a missing capability, or a lockdown."""


class VerifierError(BpfError):
    """The kernel refused a program. `program` is its name, `log` the verifier's whole text."""

    def __init__(self, program: str, log: str, number: int = 0) -> None:
        self.program = program
        self.log = log
        tail = [line for line in log.splitlines() if line.strip() and not line.startswith("processed ")][-3:]
        super().__init__(
            f"program {program}",
            "refused by the kernel's verifier: " + (" | ".join(tail) or os.strerror(number)),
            "the whole log is in this error's `log`; report it with the kernel's version",
            number,
        )


class MapFullError(BpfError):
    """A map has no room for a new key: the caller must reject the change, never drop something else for it."""


class KeyExistsError(BpfError):
    """An insert-only update met an existing key."""


class KeyMissingError(BpfError):
    """A replace-only update, or an array index, met no such key."""


class SizeMismatchError(BpfError):
    """A key or value has not the map's size: the codec and the object disagree."""


class NotPinnedError(BpfError):
    """Nothing is pinned at that path."""


class IncompatibleMapError(BpfError):
    """A pinned map has another layout than the object that wants to share it (an upgrade that changed a struct)."""


class ObjectFileError(BpfError):
    """A compiled object is missing or is not one."""


class NoSuchDeviceError(BpfError):
    """The network interface, cgroup or namespace to attach to is gone."""


class BusyError(BpfError):
    """Something else holds the attach point (an exclusive program of another tool)."""


_CAPABILITIES = "run as root, or with CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN (for setns)"


def from_errno(what: str, number: int) -> BpfError:
    """The typed error for a positive errno of a map, pin, link or probe operation."""
    why = f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"
    if number in (errno.EPERM, errno.EACCES):
        return PermissionDeniedError(what, why, _CAPABILITIES, number)
    if number in (errno.E2BIG, errno.ENOSPC):
        return MapFullError(what, f"the map is full: {why}", "raise its max_entries or configure less", number)
    if number == errno.EEXIST:
        return KeyExistsError(what, why, "", number)
    if number == errno.ENOENT:
        return KeyMissingError(what, why, "", number)
    if number in (errno.ENODEV, errno.ENXIO, errno.EBADF):
        return NoSuchDeviceError(what, why, "it has gone meanwhile, or belongs to another network namespace", number)
    if number == errno.EBUSY:
        return BusyError(what, why, "see `bpftool net` and `bpftool cgroup tree` for who holds it", number)
    if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTSUPP if hasattr(errno, "ENOTSUPP") else 524):
        return UnsupportedFeatureError(what, why, "this kernel has not got it", number)
    return BpfError(what, why, "", number)
