"""The socket's answers, byte for byte enough."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nodeagent.admin import server

PAGES: server.Pages = {"/ready": lambda: (200, "text/plain", b"ready\n")}


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /ready HTTP/1.1\r\n\r\n", b"200 OK"),
        (b"GET /ready?x=1 HTTP/1.1\r\nHost: a\r\n\r\n", b"200 OK"),
        (b"GET /else HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"POST /ready HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"\r\n\r\n", b"400 Bad Request"),
    ],
)
def test_answers(head: bytes, status: bytes) -> None:
    assert server.respond(head, PAGES).startswith(b"HTTP/1.1 " + status + b"\r\n")


def test_over_a_socket(tmp_path: Path) -> None:
    async def run() -> bytes:
        running = await server.serve(tmp_path / "s", PAGES)
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(b"GET /ready HTTP/1.1\r\n\r\n")
        answer = await reader.read()
        writer.close()
        running.close()
        return answer

    assert asyncio.run(run()).endswith(b"\r\n\r\nready\n")
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
