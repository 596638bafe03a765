"""The two ends of what home forwards: a client's home connection, and a connection to an endpoint."""

from __future__ import annotations

import socket

from nodeagent.core.libcore import ResponseReader
from nodeagent.home.loop import IN, OUT, Timer
from nodeagent.home.pipes import Outlet
from nodeagent.home.relay import Relay
from nodeagent.home.upstreams import Pair

_SOCKET_BUFFER = 1 << 19  # bytes; the kernel keeps twice as many


def bound(sock: socket.socket) -> None:
    """Bounds what a stalled peer can leave in our buffers: TCP's own tuning would go on to many megabytes a side."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)


class Leg:
    """A connection to an endpoint. client: who uses it now; served: it has answered a request before."""

    __slots__ = ("client", "connected", "mask", "out", "pair", "served", "sock", "timer")

    def __init__(self, sock: socket.socket, pair: Pair, client: Client) -> None:
        self.sock, self.pair = sock, pair
        self.client: Client | None = client
        self.connected = self.served = False
        self.mask = OUT
        self.out = Outlet(sock)
        self.timer: Timer | None = None


class Client:
    """One home connection. key: its tuple as the pod sees it; framing: of responses."""

    __slots__ = (
        "clocks", "deadline", "framing", "key", "leg", "lingering", "mask", "out", "relay", "sock", "table", "workload",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, key: bytes) -> None:
        self.sock, self.key = sock, key
        self.mask = IN
        self.relay: Relay | None = None
        self.out: Outlet | None = None
        self.leg: Leg | None = None
        self.workload = self.table = 0
        self.lingering = False
        self.framing: ResponseReader | None = None
        self.deadline = 0.0
        self.clocks: dict[str, Timer] | None = None
