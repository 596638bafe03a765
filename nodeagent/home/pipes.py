"""Bytes on their way to a socket: a bounded queue, and behind it, for long bodies, a pipe that splice(2) fills."""

from __future__ import annotations

import fcntl
import os
import socket

_F_SETPIPE_SZ = 1031
_PIPE = 1 << 20
_SPLICE_NONBLOCK = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
WORTH = 1 << 16
"""Bodies shorter than this are not worth a pipe."""
HIGH = 1 << 18
"""With more than this unsent, whoever produces the bytes is not read any more."""


class Outlet:
    """What a socket has still to send, in order: what the pipe holds, then the queue."""

    __slots__ = ("_pipe", "_queue", "piped", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._queue = bytearray()
        self._pipe: tuple[int, int] | None = None
        self.piped = 0

    @property
    def pending(self) -> int:
        """Bytes not yet taken by the socket."""
        return self.piped + len(self._queue)

    def send(self, data: bytes) -> None:
        """Sends or queues. OSError when the connection has failed."""
        if not self._queue and not self.piped:
            try:
                sent = self.sock.send(data, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        self._queue += data

    def splice_from(self, source: int, limit: int) -> int:
        """Moves up to `limit` bytes of a non-blocking socket on, without copying; for an outlet with nothing queued.

        Returns how many left the source, 0 at its end. BlockingIOError when it has none now; OSError as `send`.
        """
        if self._pipe is None:
            self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.fcntl(self._pipe[1], _F_SETPIPE_SZ, _PIPE)
        moved = os.splice(source, self._pipe[1], min(limit, _PIPE), flags=_SPLICE_NONBLOCK)
        self.piped += moved
        self._drain_pipe()
        return moved

    def _drain_pipe(self) -> None:
        while self.piped:
            assert self._pipe is not None
            try:
                self.piped -= os.splice(self._pipe[0], self.sock.fileno(), self.piped, flags=_SPLICE_NONBLOCK)
            except BlockingIOError:
                return

    def flush(self) -> None:
        """The socket takes bytes again. OSError as `send`."""
        self._drain_pipe()
        if self._queue and not self.piped:
            try:
                sent = self.sock.send(self._queue, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            del self._queue[:sent]

    def close(self) -> None:
        """Frees the pipe; the socket is its owner's."""
        if self._pipe is not None:
            os.close(self._pipe[0])
            os.close(self._pipe[1])
            self._pipe = None
        self.piped = 0
        self._queue.clear()
