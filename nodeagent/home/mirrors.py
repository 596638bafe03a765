"""Copies of requests: sent, and forgotten. A mirror that is slow, or gone, is nobody's trouble."""

from __future__ import annotations

import logging
import socket

from nodeagent.bpf.errors import BpfError
from nodeagent.core.decide import Decider
from nodeagent.core.libcore import Core, ResponseReader
from nodeagent.home.loop import ERROR, IN, OUT, Loop, Timer
from nodeagent.home.pods import Pods, start_connect

log = logging.getLogger("underpass.home")

_AT_ONCE = 256
_TIMEOUT = 15.0  # Envoy's default for the route that a mirror copies
_CHUNK = 1 << 16


class _Mirror:
    """A connection for one copy."""

    __slots__ = ("data", "framing", "mask", "sock", "timer")

    def __init__(self, sock: socket.socket, data: bytes, framing: ResponseReader) -> None:
        self.sock, self.data, self.framing = sock, data, framing
        self.mask = OUT
        self.timer: Timer | None = None


class Mirrors:
    """All copies under way, a bounded number. dropped: those that found no room or no endpoint."""

    def __init__(self, loop: Loop, pods: Pods, core: Core, decider: Decider) -> None:
        self._loop, self._pods, self._core, self._decider = loop, pods, core, decider
        self._open: set[_Mirror] = set()
        self.sent = self.dropped = 0

    def send(self, workload: int, cluster: int, data: bytes, head_only: bool) -> None:
        """Sends a whole request to some endpoint of a cluster, as that workload."""
        pod, chosen = self._pods.by_id.get(workload), self._decider.choose(cluster, frozenset(), 0)
        if pod is None or chosen.reason or chosen.address is None or len(self._open) >= _AT_ONCE:
            self.dropped += 1
            return
        try:
            (sock,) = self._pods.sockets(pod, chosen.address, 1)
        except (OSError, BpfError) as cause:
            log.debug("no mirror of %s: %s", pod.key, cause)
            self.dropped += 1
            return
        try:
            start_connect(sock, chosen.address)
        except OSError:
            sock.close()
            self.dropped += 1
            return
        framing = ResponseReader(self._core)
        framing.begin(head_only)
        mirror = _Mirror(sock, data, framing)
        mirror.timer = self._loop.call_later(_TIMEOUT, lambda: self._end(mirror))
        self._open.add(mirror)
        self.sent += 1
        self._loop.add(sock.fileno(), OUT, lambda mask: self._event(mirror, mask))

    def _event(self, mirror: _Mirror, mask: int) -> None:
        try:
            if mask & OUT and mirror.data:
                count = mirror.sock.send(mirror.data, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
                mirror.data = mirror.data[count:]
            if mask & (IN | ERROR):
                received = mirror.sock.recv(_CHUNK, socket.MSG_DONTWAIT)
                if not received or mirror.framing.feed(received) < len(received) or mirror.framing.over:
                    self._end(mirror)
                    return
        except BlockingIOError:
            pass
        except OSError:
            self._end(mirror)
            return
        wanted = IN | (OUT if mirror.data else 0)
        if wanted != mirror.mask:
            mirror.mask = wanted
            self._loop.change(mirror.sock.fileno(), wanted)

    def _end(self, mirror: _Mirror) -> None:
        if mirror not in self._open:
            return
        self._open.discard(mirror)
        if mirror.timer is not None:
            mirror.timer.cancel()
        self._loop.remove(mirror.sock.fileno())
        mirror.sock.close()

    def counts(self) -> dict[str, int]:
        """For the status file."""
        return {"sent": self.sent, "dropped": self.dropped, "open": len(self._open)}

    def close(self) -> None:
        """Ends all."""
        for mirror in list(self._open):
            self._end(mirror)
