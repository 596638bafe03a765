"""Being in another network namespace for a moment.

setns(2) moves the calling thread only, and a socket stays in the namespace that it was made in, so this is quick and
needs no helper process: enter, make sockets or attach programs, come back. The mount namespace is left alone, which is
why bpffs stays visible here and does not inside `ip netns exec`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nodeagent.bpf import libbpf
from nodeagent.bpf.errors import BpfError, NoSuchDeviceError

_OWN = "/proc/thread-self/ns/net"


def open_namespace(path: Path | str) -> int:
    """A descriptor that stands for the namespace and keeps it alive. NoSuchDeviceError when it has gone."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as cause:
        raise NoSuchDeviceError(
            f"network namespace {path}", cause.strerror or str(cause), "the workload has gone", cause.errno or 0
        ) from cause


def fresh() -> int:
    """A descriptor of a new network namespace with only lo in it, which is down. It ends with the last descriptor.

    PermissionDeniedError, OSError.
    """
    found: list[int | BaseException] = []

    def make() -> None:  # a thread of its own: unshare(2) moves the calling thread, and this one goes no further
        try:
            libbpf.unshare()
            found.append(os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC))
        except (BpfError, OSError) as error:
            found.append(error)

    thread = threading.Thread(target=make, name="netns")
    thread.start()
    thread.join()
    made = found[0]
    if isinstance(made, BaseException):
        raise made
    return made


@contextmanager
def inside(namespace: Path | str | int) -> Iterator[None]:
    """The calling thread is in that namespace (a path or a descriptor) within the block.

    Nothing in the block may wait: on an event loop's thread everything else would run in the wrong namespace.
    """
    fd = namespace if isinstance(namespace, int) else open_namespace(namespace)
    try:
        own = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            libbpf.setns(fd)
            try:
                yield
            finally:
                libbpf.setns(own)  # fails only if our own namespace could be left but not entered: then nothing is safe
        finally:
            os.close(own)
    finally:
        if fd is not namespace:
            os.close(fd)


def same(path: Path | str) -> bool:
    """Whether the calling thread is in the namespace of that path."""
    try:
        there, here = os.stat(path), os.stat(_OWN)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


class Switch:
    """Enters namespaces for one thread, the way back kept open: for whoever does it thousands of times a second."""

    def __init__(self) -> None:
        self._own = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        self._target = self._own

    def inside(self, fd: int) -> Switch:
        """As the function of that name, for a descriptor. Not nested."""
        self._target = fd
        return self

    def __enter__(self) -> None:
        libbpf.setns(self._target)

    def __exit__(self, *error: object) -> None:
        libbpf.setns(self._own)

    def close(self) -> None:
        """Gives the way back up."""
        os.close(self._own)
