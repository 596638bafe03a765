"""Many incremental xDS clients in one process: HTTP/2 by hand, so that the load costs less than what it measures.

A gRPC library takes several times longer to receive a message than the control plane takes to send it. Here a client
is a socket; of a response only the tail is looked at, where type and nonce stand, and it is answered with an ACK.
"""

import selectors
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from bench.machine import BenchError
from controlplane.snapshot.resource import delimited, text

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
#: What a client lets the server send ahead, as gRPC's clients come to do. Larger windows would let the server put all
#: of a large response into buffers at once, which no real client makes it do.
_WINDOW_BYTES = 1 << 20
_CHUNK = 1 << 18
_PATH = b"/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
#: Enough of a message's end to hold its type, its nonce and the control plane's name.
_TAIL = 1 << 12
_URL = b"type.googleapis.com/"


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    return b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value


def _opening() -> bytes:
    """What a client says first: its settings, and the request's head in plain HPACK."""
    settings = struct.pack(">HI", 4, _WINDOW_BYTES)
    head = b"\x83\x86" + b"\x04" + bytes((len(_PATH),)) + _PATH + b"\x01\x01x"  # POST, http, :path, :authority
    head += _literal(b"content-type", b"application/grpc") + _literal(b"te", b"trailers")
    return (
        _PREFACE
        + _frame(_SETTINGS, 0, 0, settings)
        + _frame(_WINDOW, 0, 0, struct.pack(">I", _WINDOW_BYTES - 65535))
        + _frame(_HEADERS, 4, 1, head)
    )


_OPENING = _opening()


@dataclass(eq=False)
class Client:
    """One stream on a connection of its own."""

    sock: socket.socket
    keep: bool = False
    buffer: bytearray = field(default_factory=bytearray)
    out: bytearray = field(default_factory=bytearray)
    #: DATA that waits for the server's windows.
    held: bytearray = field(default_factory=bytearray)
    connection_window: int = 65535
    stream_window: int = 65535
    initial_window: int = 65535
    #: Bytes of DATA that the server was not given back yet.
    taken: int = 0
    message: list[bytes] = field(default_factory=list)
    have: int = 0
    got: Counter[str] = field(default_factory=Counter)
    #: Monotonic time at which the last ACK was handed to the kernel.
    last: float = 0.0
    kept: list[bytes] = field(default_factory=list)


class Load:
    """The clients and the loop that drives them; a context manager."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._address = (host, int(port))
        self._selector = selectors.DefaultSelector()
        self.clients: list[Client] = []
        self.responses = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()
        self._selector.close()

    def disconnect(self) -> None:
        """Drop all connections at once."""
        for client in self.clients:
            self._selector.unregister(client.sock)
            client.sock.close()
        self.clients.clear()

    def connect(self, requests: Callable[[int], Iterable[bytes]], count: int, *, keep: bool = False) -> None:
        """Open *count* clients; *requests* gives the first requests of each. The first one's responses may be kept."""
        for number in range(count):
            sock = socket.create_connection(self._address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            client = Client(sock, keep=keep and number == 0)
            client.out += _OPENING
            self.clients.append(client)
            self._selector.register(sock, selectors.EVENT_READ, client)
            for request in requests(number):
                self._send(client, request)
            if number % 50 == 49:
                self.turn(0)  # the server's answers come while the rest connects

    def turn(self, seconds: float) -> None:
        """Wait for at most *seconds* and deal with what came."""
        for key, events in self._selector.select(seconds):
            client = key.data
            if events & selectors.EVENT_READ:
                self._receive(client)
            if events & selectors.EVENT_WRITE:
                self._flush(client)

    def until(self, done: Callable[[], bool], seconds: float, what: str) -> None:
        """Drive the clients until *done*. Raises :class:`BenchError` after *seconds*."""
        end = time.monotonic() + seconds
        while not done():
            self.turn(0.05)
            if time.monotonic() > end:
                raise BenchError(f"{what}: not within {seconds:.0f} s")

    def settle(self, quiet: float, seconds: float) -> float:
        """Drive until nothing came for *quiet* seconds; the time of the last ACK."""
        end = time.monotonic() + seconds
        seen, since = self.responses, time.monotonic()
        while time.monotonic() - since < quiet:
            self.turn(0.05)
            now = time.monotonic()
            if self.responses != seen:
                seen, since = self.responses, now
            if now > end:
                raise BenchError(f"the clients were still being sent responses after {seconds:.0f} s")
        return max(client.last for client in self.clients)

    # ------------------------------------------------------------------------------------------------------- sending
    def _send(self, client: Client, message: bytes) -> None:
        client.held += b"\x00" + struct.pack(">I", len(message)) + message
        self._release(client)
        self._flush(client)

    @staticmethod
    def _release(client: Client) -> None:
        """Turn what waits into frames, as far as the server's windows go."""
        while client.held:
            size = min(len(client.held), client.connection_window, client.stream_window, 16384)
            if size <= 0:
                return
            client.out += _frame(_DATA, 0, 1, bytes(client.held[:size]))
            del client.held[:size]
            client.connection_window -= size
            client.stream_window -= size

    def _flush(self, client: Client) -> None:
        try:
            while client.out:
                del client.out[: client.sock.send(client.out)]
        except BlockingIOError:
            pass
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.out else 0)
        if self._selector.get_key(client.sock).events != wanted:
            self._selector.modify(client.sock, wanted, client)

    # ----------------------------------------------------------------------------------------------------- receiving
    def _receive(self, client: Client) -> None:
        try:
            data = client.sock.recv(_CHUNK)
        except BlockingIOError:
            return
        if not data:
            raise BenchError("the control plane closed a connection")
        client.buffer += data
        at, buffer = 0, client.buffer
        while len(buffer) - at >= 9:
            size = int.from_bytes(buffer[at : at + 3], "big")
            if len(buffer) - at - 9 < size:
                break
            payload = bytes(buffer[at + 9 : at + 9 + size])
            self._take(client, buffer[at + 3], buffer[at + 4], buffer[at + 8], payload)
            at += 9 + size
        del buffer[:at]
        if client.out:
            self._flush(client)

    def _take(self, client: Client, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self._data(client, payload)
        elif kind == _WINDOW:
            if stream:
                client.stream_window += int.from_bytes(payload, "big")
            else:
                client.connection_window += int.from_bytes(payload, "big")
            self._release(client)
        elif kind == _SETTINGS and not flags & 1:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack_from(">HI", payload, at)
                if name == 4:
                    client.stream_window += value - client.initial_window
                    client.initial_window = value
            client.out += _frame(_SETTINGS, 1, 0)
            self._release(client)
        elif kind == _PING and not flags & 1:
            client.out += _frame(_PING, 1, 0, payload)
        elif kind in (_RST, _GOAWAY) or (kind == _HEADERS and flags & 1):
            raise BenchError(f"the control plane ended a stream (frame {kind}: {payload[:200]!r})")

    def _data(self, client: Client, payload: bytes) -> None:
        client.message.append(payload)
        client.have += len(payload)
        client.taken += len(payload)
        if client.taken >= _WINDOW_BYTES // 2:
            more = struct.pack(">I", client.taken)
            client.out += _frame(_WINDOW, 0, 0, more) + _frame(_WINDOW, 0, 1, more)
            client.taken = 0
        while client.have >= 5:
            if len(client.message[0]) < 5:
                client.message = [b"".join(client.message)]
            size = 5 + int.from_bytes(client.message[0][1:5], "big")
            if client.have < size:
                return
            rest = client.have - size
            last = client.message[-1]
            tail = last[: len(last) - rest]
            if len(tail) < _TAIL or client.keep:
                tail = b"".join(client.message)[:size]
            client.message = [last[len(last) - rest :]] if rest else []
            client.have = rest
            self._response(client, tail)

    def _response(self, client: Client, tail: bytes) -> None:
        """ACK a response. The type is the last URL in it: nonce, removed names and the server's name follow."""
        if client.keep:
            client.kept.append(tail[5:])
        at = tail.rfind(_URL)
        url = tail[at : at + tail[at - 1]]
        after = at + len(url)
        if at < 1 or tail[after] != 0x2A:
            raise BenchError("a response without type and nonce")
        nonce = tail[after + 2 : after + 2 + tail[after + 1]]
        name = url.decode()
        client.got[name] += 1
        self.responses += 1
        self._send(client, text(2, name) + delimited(6, nonce))
        client.last = time.monotonic()


def request(type_url: str, names: Sequence[str] = (), *, node: bytes = b"", has: dict[str, str] | None = None) -> bytes:
    """A serialised ``DeltaDiscoveryRequest``."""
    versions = [delimited(5, text(1, name) + text(2, version)) for name, version in (has or {}).items()]
    subscribed = [delimited(3, name.encode()) for name in names]
    return (delimited(1, node) if node else b"") + text(2, type_url) + b"".join(subscribed) + b"".join(versions)


def versions(kept: Iterable[bytes]) -> dict[str, dict[str, str]]:
    """What a client that kept its responses has: type -> name -> version."""
    from underpass.api import envoy

    found: dict[str, dict[str, str]] = {}
    for data in kept:
        response: Any = envoy.DeltaDiscoveryResponse.FromString(data)
        have = found.setdefault(response.type_url, {})
        have.update({resource.name: resource.version for resource in response.resources})
        for name in response.removed_resources:
            have.pop(name, None)
    return found
