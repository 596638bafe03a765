"""The calls that one sample server makes to others, over kept connections (asyncio).

A small HTTP/1.1 client and no more: GET, a bounded answer, a pool of idle connections per host and port.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

MAX_DEPTH = 8
DEPTH_HEADER = "x-lab-depth"
MAX_ANSWER = 1 << 20
TIMEOUT = 10.0
_IDLE_LIMIT = 64

# What a service passes on so that routing by user and tracing work across hops, as Istio's documentation asks of
# applications; never authorization or hop-by-hop headers.
PROPAGATED = frozenset(
    {"end-user", "x-request-id", "traceparent", "tracestate", "baggage", "x-ot-span-context", "x-cloud-trace-context"}
)


class UpstreamError(Exception):
    """A call could not be completed; the text says why."""


def propagated(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers of a request that go along with the calls that it causes."""
    out = []
    for name, value in headers:
        lower = name.lower()
        if lower in PROPAGATED or lower.startswith(("x-b3-", "x-shop-")):
            out.append((lower, value))
    return out


def depth_of(values: list[str]) -> int:
    """How many calls lie behind a request, by its `x-lab-depth` header; nonsense counts as the limit."""
    if not values:
        return 0
    return int(values[0]) if len(values) == 1 and values[0].isdigit() and len(values[0]) < 4 else MAX_DEPTH


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Status, body and whether the connection can be used again."""
    while True:
        raw = await reader.readuntil(b"\r\n\r\n")
        lines = raw.decode("latin-1").split("\r\n")
        parts = lines[0].split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdigit():
            raise UpstreamError(f"malformed status line {lines[0][:80]!r}")
        status = int(parts[1])
        if status >= 200:
            break
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    keep = headers.get("connection", "").lower() != "close" and parts[0] == "HTTP/1.1"
    if status in (204, 304):
        return status, b"", keep
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = bytearray()
        while True:
            size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
            if not size:
                while await reader.readuntil(b"\r\n") != b"\r\n":
                    pass
                return status, bytes(body), keep
            if len(body) + size > MAX_ANSWER:
                raise UpstreamError("the answer is larger than 1 MiB")
            body += await reader.readexactly(size)
            await reader.readexactly(2)
    if "content-length" in headers:
        length = int(headers["content-length"])
        if length > MAX_ANSWER:
            raise UpstreamError("the answer is larger than 1 MiB")
        return status, await reader.readexactly(length), keep
    rest = await reader.read(MAX_ANSWER + 1)
    return status, rest, False


class Upstreams:
    """Calls other services. One per sample server."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, int], list[_Connection]] = {}

    async def call(self, url: str, depth: int, headers: list[tuple[str, str]]) -> dict[str, Any]:
        """GET `url`; the outcome as a JSON-able mapping with `url`, `status` and `answer`, or `url` and `error`."""
        if depth >= MAX_DEPTH:
            return {"url": url, "error": f"not called: {MAX_DEPTH} calls deep already"}
        try:
            status, body = await asyncio.wait_for(self._get(url, depth, headers), TIMEOUT)
        except (OSError, UpstreamError, ValueError, EOFError, asyncio.LimitOverrunError) as error:
            return {"url": url, "error": str(error) or type(error).__name__}
        except TimeoutError:
            return {"url": url, "error": f"no answer within {TIMEOUT:.0f} s"}
        try:
            answer: Any = json.loads(body)
        except ValueError:
            answer = body.decode("latin-1")
        return {"url": url, "status": status, "answer": answer}

    async def _get(self, url: str, depth: int, headers: list[tuple[str, str]]) -> tuple[int, bytes]:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise UpstreamError("only http:// addresses can be called")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        host, port = parts.hostname, parts.port or 80
        if any(ord(c) <= 32 or ord(c) >= 127 for c in target + parts.netloc):
            raise UpstreamError("the address has characters that must be percent-encoded")
        lines = [f"GET {target} HTTP/1.1", f"host: {parts.netloc}", f"{DEPTH_HEADER}: {depth + 1}"]
        lines += [f"{name}: {value}" for name, value in headers]
        request = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        while True:
            kept = self._take(host, port)
            connection = kept or _Connection(*await asyncio.open_connection(host, port))
            try:
                connection.writer.write(request)
                status, body, keep = await _read_answer(connection.reader)
            except (ConnectionError, asyncio.IncompleteReadError):
                connection.writer.close()
                if kept is None:
                    raise
                continue  # a kept connection may have been closed while it was idle; GET may be sent again
            except BaseException:
                connection.writer.close()
                raise
            idle = self._idle.setdefault((host, port), [])
            if keep and len(idle) < _IDLE_LIMIT:
                idle.append(connection)
            else:
                connection.writer.close()
            return status, body

    def _take(self, host: str, port: int) -> _Connection | None:
        idle = self._idle.get((host, port))
        while idle:
            connection = idle.pop()
            if not connection.writer.is_closing() and not connection.reader.at_eof():
                return connection
            connection.writer.close()
        return None
