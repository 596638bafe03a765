"""The agent's unix socket: three documents over HTTP/1.1, one request a connection.

`curl --unix-socket /run/underpass/NODE/agent.sock http://agent/status` (or `/metrics`, `/ready`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

#: Path -> (status, content type, body); made at each request.
Pages = Mapping[str, Callable[[], tuple[int, str, bytes]]]

_WORDS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 500: "Error", 503: "Unavailable"}


async def serve(path: Path, pages: Pages) -> asyncio.Server:
    """Listen on `path`, which only root may use."""
    await asyncio.to_thread(path.unlink, missing_ok=True)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            async with asyncio.timeout(5):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(respond(head, pages))
                await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, path=str(path))
    os.chmod(path, 0o600)
    return server


def respond(head: bytes, pages: Pages) -> bytes:
    """The response to a request head."""
    parts = head.split(b"\r\n", 1)[0].split(b" ")
    if len(parts) != 3:
        return _response(400, "text/plain", b"not a request\n")
    if parts[0] != b"GET":
        return _response(405, "text/plain", b"only GET\n")
    target = parts[1].decode("latin-1").partition("?")[0]
    page = pages.get(target)
    if page is None:
        return _response(404, "text/plain", ("there is " + ", ".join(sorted(pages)) + "\n").encode())
    return _response(*page())


def _response(status: int, kind: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} {_WORDS[status]}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
    return (head + "connection: close\r\n\r\n").encode() + body
