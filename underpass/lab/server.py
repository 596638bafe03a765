"""The sample server: any workload whose image nobody named. `python -m underpass.lab.server --port 9080`.

Answers every request with JSON about itself and about the request as it arrived. Query parameters make it misbehave:

    status=503      answer with that status            bytes=1048576  a body of exactly that many bytes
    delay=200ms     wait before answering              chunked=1      chunked body
    close=1         close the connection afterwards    interim=2      that many 103 responses first
    stall=5s        stop reading for that long, once the head is here
    call=URL        GET that address first and put its answer into `calls` (repeatable; `call=` calls nobody)

Identity and ports come from the environment (`UNDERPASS_WORKLOAD`, `_NAMESPACE`, `_SERVICE_ACCOUNT`, `_LABELS` as JSON,
`_PORTS`) or from flags; `CALLS` names addresses that every request calls. One process, one thread, no framework.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import hashlib
import os
import signal
import socket
import sys
from http import HTTPStatus
from typing import Any, cast

from underpass.lab.answer import (
    EMPTY_SHA256,
    BadParameter,
    Body,
    Identity,
    Order,
    answer_json,
    environment_ports,
    parse_order,
    response_head,
    shape_body,
)
from underpass.lab.http1 import BadRequest, Data, End, Head, RequestReader
from underpass.lab.upstream import DEPTH_HEADER, Upstreams, depth_of, propagated

BACKLOG = 4096
READ_AHEAD = 256 * 1024
CACHE_ENTRIES = 4096
CACHE_REQUEST_LIMIT = 4096
LINGER = 1.0


class Sample:
    """What all connections of one server share: who it is, whom it calls, and answers already made.

    An answer without a body in the request and without an order to misbehave depends on nothing but the request's
    bytes, so it is kept by those bytes; that is what makes a Python server fast enough to stand in for any workload.
    """

    def __init__(self, identity: Identity, calls: tuple[str, ...] = ()) -> None:
        self.identity = identity
        self.calls = calls
        self.upstreams = Upstreams()
        self.cache: dict[bytes, bytes] = {}

    def remember(self, request: bytes, response: bytes) -> None:
        """Keep the response to these very bytes."""
        if len(request) <= CACHE_REQUEST_LIMIT:
            if len(self.cache) >= CACHE_ENTRIES:
                self.cache.clear()
            self.cache[request] = response


class Connection(asyncio.Protocol):
    """One client's connection. Requests are answered strictly in order, one at a time."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample
        self._reader = RequestReader()
        self._transport: asyncio.Transport | None = None
        self._head: Head | None = None
        self._order = Order()
        self._refusal: str | None = None
        self._hash = hashlib.sha256()
        self._body_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None
        self._paused_writing = False
        self._paused_reading = False
        self._eof = False
        self._over = False

    # -- asyncio's side ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection is there."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=512 * 1024, low=128 * 1024)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is gone."""
        self._over = True
        self._transport = None
        if self._task is not None:
            self._task.cancel()
        if self._stalled is not None:
            self._stalled.cancel()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes came."""
        if self._over:
            return
        fresh = self._head is None and self._task is None and self._reader.idle
        if fresh:
            kept = self._sample.cache.get(data)
            if kept is not None and self._transport is not None:
                self._transport.write(kept)
                return
        self._reader.feed(data)
        self._advance(data if fresh else None)

    def eof_received(self) -> bool:
        """asyncio: the peer sends no more. It may still wait for an answer."""
        self._eof = True
        return self._busy and not self._over

    def pause_writing(self) -> None:
        """asyncio: the peer reads slower than we write."""
        self._paused_writing = True

    def resume_writing(self) -> None:
        """asyncio: there is room again."""
        self._paused_writing = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._advance(None)

    # -- requests ------------------------------------------------------------------------------------------------

    @property
    def _busy(self) -> bool:
        return self._task is not None or self._stalled is not None

    def _advance(self, whole: bytes | None) -> None:
        """Go on as far as the bytes and the answers under way allow. `whole`: all that came, if it began a request."""
        try:
            while not (self._busy or self._over or self._paused_writing):
                event = self._reader.next_event()
                if event is None:
                    break
                if isinstance(event, Head):
                    self._begin(event)
                elif isinstance(event, Data):
                    self._hash.update(event.data)
                    self._body_bytes += len(event.data)
                elif isinstance(event, End):
                    self._respond(whole if self._reader.idle else None)
                    whole = None
        except BadRequest as error:
            self._refuse(error)
        self._pace_reading()
        if self._eof and not self._busy and not self._over:
            self._close()

    def _pace_reading(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        wait = self._stalled is not None or (self._reader.buffered > READ_AHEAD and not self._over)
        if wait and not self._paused_reading:
            self._transport.pause_reading()
        elif not wait and self._paused_reading:
            self._transport.resume_reading()
        self._paused_reading = wait

    def _begin(self, head: Head) -> None:
        self._head = head
        self._hash = hashlib.sha256()
        self._body_bytes = 0
        self._refusal = None
        if head.method == "CONNECT":
            raise BadRequest(405, "CONNECT is not offered here")
        try:
            self._order = parse_order(head.target)
        except BadParameter as error:
            self._order, self._refusal = Order(status=400), str(error)
        if self._order.stall:
            loop = asyncio.get_running_loop()
            self._stalled = loop.call_later(self._order.stall, self._stall_over)
        elif head.expects_continue and head.has_body:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _stall_over(self) -> None:
        self._stalled = None
        if self._head is not None and self._head.expects_continue and self._head.has_body:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._advance(None)

    def _respond(self, whole: bytes | None) -> None:
        head, order = self._head, self._order
        assert head is not None
        calls = self._sample.calls if order.calls is None else order.calls
        if order.plain and not calls:
            self._head = None
            body = self._body(head, order, None)
            framing = response_head(head, order, body)
            if not (framing.chunked and framing.body):
                response = framing.head + (b"".join(body.pieces()) if framing.body else b"")
                if whole is not None and not (framing.close or head.has_body or self._refusal):
                    self._sample.remember(whole, response)
                self._write(response)
                if framing.close:
                    self._close()
                return
        self._task = asyncio.get_running_loop().create_task(self._respond_slowly(head, order, calls))
        self._task.add_done_callback(self._responded)

    def _responded(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._head = None
        if task.cancelled() or self._over:
            return
        error = task.exception()
        if error is not None:
            print(f"sample server: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            if self._transport is not None:
                self._transport.abort()
            return
        self._advance(None)

    async def _respond_slowly(self, head: Head, order: Order, calls: tuple[str, ...]) -> None:
        if order.delay:
            await asyncio.sleep(order.delay)
        results: list[dict[str, Any]] = []
        if calls:
            depth = depth_of(head.values(DEPTH_HEADER))
            along = propagated(head.headers)
            results = list(await asyncio.gather(*(self._sample.upstreams.call(url, depth, along) for url in calls)))
            if order.status == 200 and any("error" in result for result in results):
                order = dataclasses.replace(order, status=502)
        body = self._body(head, order, results)
        framing = response_head(head, order, body)
        if head.minor == 1:
            for number in range(order.interim):
                self._write(b"HTTP/1.1 103 Early Hints\r\nlink: </%d>; rel=preload\r\n\r\n" % number)
        self._write(framing.head)
        if framing.body:
            # A chunked body is cut where the pieces end; a small one in two, so that it has chunks to get wrong.
            step = 128 * 1024 if not framing.chunked else 16 * 1024
            for piece in body.pieces(step):
                await self._drain()
                if self._over:
                    return
                if not framing.chunked:
                    self._write(piece)
                    continue
                half = len(piece) // 2
                for chunk in (piece[:half], piece[half:]):
                    if chunk:
                        self._write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            if framing.chunked:
                self._write(b"0\r\n\r\n")
        if framing.close:
            self._close()

    def _body(self, head: Head, order: Order, calls: list[dict[str, Any]] | None) -> Body:
        if self._refusal is not None:
            return Body(b'{"error": "%b"}' % self._refusal.encode("ascii", "replace").replace(b'"', b"'"))
        digest = self._hash.hexdigest() if self._body_bytes else EMPTY_SHA256
        answer = answer_json(self._sample.identity, head, self._body_bytes, digest, calls)
        return shape_body(answer, order.size)

    # -- writing -------------------------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def _drain(self) -> None:
        if self._paused_writing and not self._over:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained
            self._drained = None

    def _refuse(self, error: BadRequest) -> None:
        body = b'{"error": "%b"}' % error.reason.encode("ascii")
        reason = HTTPStatus(error.status).phrase
        self._write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (error.status, reason.encode("ascii"), len(body), body)
        )
        self._close()

    def _close(self) -> None:
        """Close, but read on for a moment: closing with unread bytes would reset the answer out of the peer's hands."""
        transport = self._transport
        self._over = True
        if transport is None or transport.is_closing():
            return
        if self._eof or not transport.can_write_eof():
            transport.close()
            return
        transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER, transport.close)


def _listeners(addresses: list[str], port: int) -> list[socket.socket]:
    """Listening sockets of `port`: IPv4 and IPv6 apart, so that an IPv4 client is an AF_INET connection."""
    made: list[socket.socket] = []
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            if family == socket.AF_INET6 and made:
                continue  # a kernel without IPv6
            raise
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            sock.bind((address, port))
        except OSError:
            sock.close()
            if address == "::" and made:
                continue
            raise
        sock.setblocking(False)
        made.append(sock)
    return made


async def serve(sample: Sample, addresses: list[str], ports: list[int]) -> list[asyncio.Server]:
    """Listen on every address and port. Port 0 takes a free one (tests)."""
    loop = asyncio.get_running_loop()
    servers = []
    for port in ports:
        for sock in _listeners(addresses, port):
            servers.append(await loop.create_server(lambda: Connection(sample), sock=sock, backlog=BACKLOG))
    return servers


async def _run(sample: Sample, addresses: list[str], ports: list[int]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    servers = await serve(sample, addresses, ports)
    who = sample.identity
    print(f"{who.namespace}/{who.workload} listens on {', '.join(map(str, ports)) or 'no port'}", flush=True)
    await stop.wait()
    for server in servers:
        server.close()


def main(argv: list[str] | None = None) -> int:
    """The command. 0 after SIGTERM, 2 for bad arguments, 1 when a port cannot be had."""
    parser = argparse.ArgumentParser(prog="underpass.lab.server", description="Underpass's sample HTTP server")
    parser.add_argument("--port", type=int, action="append", help="port to listen on (repeatable)")
    parser.add_argument("--address", action="append", help="address to listen on (default 0.0.0.0 and ::)")
    parser.add_argument("--workload")
    parser.add_argument("--namespace")
    parser.add_argument("--service-account")
    parser.add_argument("--version")
    parser.add_argument("--call", action="append", help="address that every request calls (repeatable)")
    options = parser.parse_args(argv)
    try:
        identity = Identity.from_environment(os.environ)
        ports = options.port or environment_ports()
    except BadParameter as error:
        parser.error(str(error))
    named = {"workload": options.workload, "namespace": options.namespace, "version": options.version}
    named["service_account"] = options.service_account
    identity = dataclasses.replace(identity, **{key: value for key, value in named.items() if value is not None})
    calls = options.call or os.environ.get("CALLS", "").replace(",", " ").split()
    try:
        asyncio.run(_run(Sample(identity, tuple(calls)), options.address or ["0.0.0.0", "::"], ports))
    except OSError as error:
        print(f"sample server: cannot listen on {ports}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
