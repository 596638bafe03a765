"""Servers that stand for clusters, and a client: both ends of a real Envoy, on one event loop.

Each cluster is a port; a server answers every request with 200 and, in one header, which cluster it is and the head as
it came. So what reached the server is known for each request, whatever Envoy did on the way.
"""

from __future__ import annotations

import asyncio
import base64
import re
from dataclasses import dataclass, field
from functools import partial
from typing import Final

#: The answer's header: cluster's index, and the head in base64.
MARK: Final = b"x-underpass-oracle"
_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_MARKED: Final = re.compile(rb"\r\n" + MARK + rb": *(\d+) ([A-Za-z0-9+/=]*)\r", re.IGNORECASE)
#: A local answer to a gRPC client: always 200, and what it means in a header.
_GRPC: Final = re.compile(rb"\r\ngrpc-status: *(\d+)\r", re.IGNORECASE)
#: A connection whose server said that it closes.
_CLOSE: Final = re.compile(rb"\r\nconnection: *close\r", re.IGNORECASE)


def whole(data: bytes | bytearray, *, bodyless: bool = False) -> int:
    """Bytes of the message at the beginning of `data` with its body, 0 when it is not whole."""
    end = data.find(_END)
    if end < 0:
        return 0
    at = end + len(_END)
    head = bytes(data[:at])
    if bodyless:
        return at
    if _CHUNKED.search(head):
        return _chunks(data, at)
    length = _LENGTH.search(head)
    at += int(length[1]) if length else 0
    return at if len(data) >= at else 0


#: Response headers that are a proxy's own business, or that say when rather than what.
_PROXYS: Final = (
    b"date",
    b"server",
    b"content-length",
    b"connection",
    b"transfer-encoding",
    b"x-envoy-",
    b"x-underpass-",
)


def answer(cluster: int, head: bytes) -> bytes:
    """What the server of a cluster answers to a request that came with that head."""
    seen = base64.b64encode(head)
    return b"HTTP/1.1 200 OK\r\n%s: %d %s\r\ncontent-length: 0\r\n\r\n" % (MARK, cluster, seen)


def told(message: bytes, *, bodyless: bool) -> tuple[bytes, ...]:
    """What a response tells the client: its headers, lower case and sorted, without a proxy's own, and its body."""
    head, _, body = message.partition(_END)
    lines = []
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if not name.lower().startswith(_PROXYS):
            lines.append(name.lower() + b": " + value.strip())
    return (*sorted(lines), b"" if bodyless else body)


def _chunks(data: bytes | bytearray, at: int) -> int:
    while True:
        line = data.find(b"\r\n", at)
        if line < 0:
            return 0
        try:
            size = int(bytes(data[at:line]).partition(b";")[0], 16)
        except ValueError:
            return len(data)
        if not size:
            end = data.find(b"\r\n", line + 2)
            return end + 2 if end >= 0 else 0
        at = line + 2 + size + 2
        if at > len(data):
            return 0


class _Server(asyncio.Protocol):
    """One connection from Envoy to a cluster."""

    def __init__(self, cluster: int) -> None:
        self._cluster, self._data = cluster, bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        self._data += data
        while size := whole(self._data):
            head = bytes(self._data[: self._data.find(_END) + len(_END)])
            del self._data[:size]
            assert self._transport is not None
            self._transport.write(answer(self._cluster, head))


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. status 0: nothing, `why` says what happened instead. cluster -1: no server had the request.

    grpc: the `grpc-status` of an answer, -1 for none. told: as of the function.
    """

    status: int = 0
    cluster: int = -1
    head: bytes = b""
    why: str = ""
    closing: bool = False
    grpc: int = -1
    told: tuple[bytes, ...] = ()


class Client(asyncio.Protocol):
    """One connection to Envoy; one request at a time."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._waiting: asyncio.Future[Answer] | None = None
        self._bodyless = False
        self._transport: asyncio.Transport | None = None
        self.open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.open = False
        self._settle(Answer(why="connection closed" if exc is None else f"connection lost: {exc}"))

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._data += data
        while self._waiting is not None and (size := whole(self._data, bodyless=self._bodyless)):
            head = bytes(self._data[: self._data.find(_END) + 2])
            status = int(head[9:12]) if head[:9] == b"HTTP/1.1 " and head[9:12].isdigit() else 0
            client = told(bytes(self._data[:size]), bodyless=self._bodyless)
            del self._data[:size]
            if 100 <= status < 200 and status != 101:
                continue
            mark = _MARKED.search(head)
            closing = bool(_CLOSE.search(head)) or status == 101
            if mark is None:
                grpc = _GRPC.search(head)
                self._settle(Answer(status, closing=closing, grpc=int(grpc[1]) if grpc else -1, told=client))
            else:
                head = base64.b64decode(mark[2])
                self._settle(Answer(status, int(mark[1]), head, closing=closing, told=client))

    def _settle(self, answer: Answer) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(answer)
        self._waiting = None

    async def ask(self, data: bytes, *, seconds: float) -> Answer:
        """Send a request, get what came back. After an answer that is `closing`, or none, the connection is spent."""
        if not self.open or self._transport is None:
            return Answer(why="connection closed")
        self._bodyless = data.startswith(b"HEAD ")
        self._waiting = waiting = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        try:
            return await asyncio.wait_for(waiting, seconds)
        except TimeoutError:
            self._waiting = None
            return Answer(why=f"nothing within {seconds:g} s")

    @property
    def clean(self) -> bool:
        """Whether the connection may be used again."""
        return self.open and not self._data

    def close(self) -> None:
        """End the connection."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()


@dataclass(slots=True)
class Servers:
    """One listening port per cluster."""

    ports: list[int] = field(default_factory=list)
    _servers: list[asyncio.Server] = field(default_factory=list)

    async def start(self, count: int) -> None:
        """Open `count` ports of this machine's own address."""
        loop = asyncio.get_running_loop()
        for index in range(count):
            server = await loop.create_server(partial(_Server, index), "127.0.0.1", 0)
            self._servers.append(server)
            self.ports.append(server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Close all of them."""
        for server in self._servers:
            server.close()


async def connect(port: int) -> Client:
    """A connection to a port of this machine's own address."""
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    return client
