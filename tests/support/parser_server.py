"""Servers that say what they read: `python parser_server.py h11 PORT LOG`, `... scgi SOCKET LOG`.

One line of JSON a happening: {"wire": client's port, "what": "head" | "whole" | "bad", "method", "target", "lines",
"body"}. h11 reads HTTP itself; scgi stands behind an nginx and writes down what that made of it. Every answer tells in
`X-Seen` what was asked: method, target, bytes of the body. A target with /early in it is answered at the end of the
head.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import h11


def seen(method: str, target: str, size: int, *, early: bool = False) -> str:
    """What an answer says of its request; early: given before the body was read."""
    return f"{method} {target} {'early' if early or '/early' in target else size}"


def content(said: str) -> bytes:
    """The body of that answer."""
    return (said + "\n").encode("latin-1") * 3


class Log:
    """The file, a line at a time."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def __call__(self, wire: int, what: str, **more: Any) -> None:
        self._file.write(json.dumps({"wire": wire, "what": what, **more}) + "\n")


async def serve_h11(log: Log, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, as h11 reads it."""
    wire = writer.get_extra_info("peername")[1]
    conn = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 17)
    head: dict[str, Any] = {}
    body = b""
    early = False

    def answer(size: int, *, early: bool) -> None:
        said = seen(head["method"], head["target"], size, early=early)
        lines = [("X-Seen", said)]
        if size % 2:
            lines.append(("Content-Length", str(len(content(said)))))
        out = conn.send(h11.Response(status_code=200, headers=lines)) or b""
        out += conn.send(h11.Data(data=content(said))) or b""
        writer.write(out + (conn.send(h11.EndOfMessage()) or b""))

    try:
        while True:
            event = conn.next_event()
            if event is h11.NEED_DATA:
                if conn.they_are_waiting_for_100_continue:
                    writer.write(conn.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
                conn.receive_data(await reader.read(65536))
            elif event is h11.PAUSED:
                if conn.our_state is not h11.DONE:
                    break
                conn.start_next_cycle()
            elif isinstance(event, h11.Request):
                head = {
                    "method": event.method.decode("latin-1"),
                    "target": event.target.decode("latin-1"),
                    "lines": [(k.decode("latin-1"), v.decode("latin-1")) for k, v in event.headers],
                }
                body, early = b"", b"/early" in event.target
                log(wire, "head", **head)
                if early:
                    answer(0, early=True)
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                log(wire, "whole", **head, body=body.decode("latin-1"), trailers=len(list(event.headers)))
                if not early:
                    answer(len(body), early=False)
                if conn.our_state is h11.MUST_CLOSE:
                    break
            else:  # ConnectionClosed
                break
    except h11.RemoteProtocolError as error:
        # the end of the connection in a body is an end like any other
        if "without sending complete message body" not in str(error):
            log(wire, "bad", error=str(error))
        if not early:
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    except (OSError, h11.LocalProtocolError):
        pass
    writer.close()


async def serve_scgi(log: Log, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request that nginx hands over."""
    try:
        size = int((await reader.readuntil(b":"))[:-1])
        fields = (await reader.readexactly(size)).decode("latin-1").split("\0")
        await reader.readexactly(1)
        named = dict(zip(fields[::2], fields[1::2], strict=False))
        body = await reader.readexactly(int(named["CONTENT_LENGTH"] or 0))
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
        return
    lines = [("host", named.get("HTTP_HOST", ""))]
    head = {"method": named["REQUEST_METHOD"], "target": named["REQUEST_URI"], "lines": lines}
    log(int(named["WIRE"]), "whole", **head, body=body.decode("latin-1"), trailers=0)
    said = seen(named["REQUEST_METHOD"], named["REQUEST_URI"], len(body))
    text = content(said)
    length = "" if len(body) % 2 else f"Content-Length: {len(text)}\r\n"
    writer.write(f"Status: 200 OK\r\nX-Seen: {said}\r\n{length}\r\n".encode() + text)
    writer.close()


async def main() -> None:
    kind, where, path = sys.argv[1:]
    log = Log(Path(path))
    server: asyncio.Server
    if kind == "h11":
        server = await asyncio.start_server(lambda r, w: serve_h11(log, r, w), "", int(where), backlog=512)
    else:
        server = await asyncio.start_unix_server(lambda r, w: serve_scgi(log, r, w), where, backlog=512)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
