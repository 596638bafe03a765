"""A small HTTP/1.1 server for the admin surface, on asyncio alone.

It answers GET, HEAD and POST with complete bodies. Everything a client can make it hold is bounded: head size, body
size, connections, and the time that a request may take to arrive. Not a server for applications.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

import structlog

_log = structlog.get_logger("controlplane.http")

_MAX_HEAD: Final = 16 * 1024
_MAX_BODY: Final = 1 << 20
_MAX_CONNECTIONS: Final = 256
#: A request must be complete this many seconds after the last one.
_READ_TIMEOUT: Final = 30.0
_WRITE_TIMEOUT: Final = 30.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request: method, decoded path, query (last value of a name wins), headers by lower-case name, body."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


def text(body: str, status: int = 200) -> Reply:
    """A plain text answer, ending in a newline."""
    return Reply(status, (body if body.endswith("\n") else body + "\n").encode())


def as_json(value: object, status: int = 200) -> Reply:
    """A JSON answer, indented for people."""
    body = json.dumps(value, indent=2, sort_keys=False, ensure_ascii=False) + "\n"
    return Reply(status, body.encode(), "application/json")


Handler = Callable[[Request], Reply | Awaitable[Reply]]


class _BadRequestError(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class HttpServer:
    """Serves ``handler`` on one address."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; gives the port (the chosen one for 0). Raises :class:`OSError`."""
        self._server = await asyncio.start_server(self._connection, host, port, limit=_MAX_HEAD)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and end the open connections."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._open):
            writer.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= _MAX_CONNECTIONS:
            writer.close()
            return
        self._open.add(writer)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client's business
        finally:
            self._open.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; False when the connection ends."""
        keep, head_only = False, False
        try:
            async with asyncio.timeout(_READ_TIMEOUT):
                request, keep = await _read(reader, writer)
            if request is None:
                return False
            head_only = request.method == "HEAD"
            reply = await self._answer(request)
        except _BadRequestError as error:
            reply, keep = text(str(error), error.status), False
        async with asyncio.timeout(_WRITE_TIMEOUT):
            writer.write(_frame(reply, keep=keep, head_only=head_only))
            await writer.drain()
        return keep

    async def _answer(self, request: Request) -> Reply:
        try:
            reply = self._handler(request)
            return reply if isinstance(reply, Reply) else await reply
        except Exception:  # noqa: BLE001 - a bug in one page must not take the connection's other pages along
            _log.exception("a page failed", path=request.path)
            return text("internal error: see the control plane's log", 500)


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[Request | None, bool]:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise _BadRequestError(431, f"the request's head is larger than {_MAX_HEAD} bytes") from error
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None, False
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _BadRequestError(400, "not an HTTP/1.1 request line")
    method, target, version = words
    headers: dict[str, str] = {}
    for line in lines[1:-2]:
        name, colon, value = line.partition(":")
        if not colon or name != name.strip() or not name:
            raise _BadRequestError(400, "malformed header line")
        headers[name.lower()] = value.strip()
    if method not in ("GET", "HEAD", "POST"):
        raise _BadRequestError(405, "only GET, HEAD and POST are answered")
    if "transfer-encoding" in headers:
        raise _BadRequestError(411, "send a Content-Length")
    body = b""
    if "content-length" in headers:
        length = headers["content-length"]
        if not length.isascii() or not length.isdigit() or len(length) > 12:
            raise _BadRequestError(400, "malformed Content-Length")
        if int(length) > _MAX_BODY:
            raise _BadRequestError(413, f"the body is larger than {_MAX_BODY} bytes")
        body = await reader.readexactly(int(length))
    # ``//version`` is what istioctl asks for; urlsplit would take it for a host.
    path, _, query = target.partition("?") if target.startswith("/") else _absolute(target)
    peer = writer.get_extra_info("peername")
    keep = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    return Request(
        method,
        unquote(path),
        dict(parse_qsl(query, keep_blank_values=True)),
        headers,
        body,
        str(peer[0]) if peer else "",
    ), keep


def _absolute(target: str) -> tuple[str, str, str]:
    parts = urlsplit(target)
    return parts.path or "/", "?", parts.query


def _frame(reply: Reply, *, keep: bool, head_only: bool) -> bytes:
    try:
        phrase = HTTPStatus(reply.status).phrase
    except ValueError:
        phrase = ""
    head = [
        f"HTTP/1.1 {reply.status} {phrase}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {reply.content_type}",
        f"Content-Length: {len(reply.body)}",
        "X-Content-Type-Options: nosniff",
        *(f"{name}: {value}" for name, value in reply.headers.items()),
        f"Connection: {'keep-alive' if keep else 'close'}",
    ]
    return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + (b"" if head_only else reply.body)
