"""A server that notes what it was asked and misbehaves by path: `python odd_server.py PORT LOG`.

One line of JSON a request: [request line, {header: value}, body]. /reset: a reset instead of an answer; /half: an
answer that is cut short; /stall: the same, and 5 s of silence; /fail-N: 503 to the first N requests of that path, 200
after; /sum-N-C: the hash of the body and N bytes more, in chunks of C bytes (0: in one piece); /slow: nothing for 5 s;
/refuse: 503 at once, before a body is read; anything else: 200 and the number of the request.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

_RESET = struct.pack("ii", 1, 0)
_SHOWN = 200_000
_failures: dict[str, int] = {}
_count = 0
_lock = threading.Lock()


def read_body(stream: Any, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = b""
        while size := int(stream.readline(), 16):
            body += stream.read(size)
            assert stream.readline() == b"\r\n"
        assert stream.readline() == b"\r\n"
        return body
    return bytes(stream.read(int(headers.get("content-length", "0"))))


def summed(body: bytes, size: int, chunk: int) -> bytes:
    """The body's hash and so many bytes more, in chunks of a size, or in one piece."""
    data = hashlib.sha256(body).hexdigest().encode() + b"z" * size
    if not chunk:
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data
    parts = [data[at : at + chunk] for at in range(0, len(data), chunk)]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


def serve(sock: socket.socket, log: Path) -> None:
    global _count
    stream = sock.makefile("rb")
    try:
        while line := stream.readline():
            headers: dict[str, str] = {}
            while (text := stream.readline()) not in (b"\r\n", b""):
                name, _, value = text.decode("latin-1").partition(":")
                name = name.lower()
                headers[name] = f"{headers[name]},{value.strip()}" if name in headers else value.strip()
            path = line.split()[1].decode("latin-1")
            body = b"" if path == "/refuse" else read_body(stream, headers)
            with _lock:
                _count += 1
                number = _count
                failed = _failures[path] = _failures.get(path, 0) + 1
                with log.open("a") as out:
                    shown = body[:_SHOWN].decode("latin-1")
                    out.write(json.dumps([line.decode("latin-1").strip(), headers, shown]) + "\n")
            status, text_ = "200 OK", f"{number}"
            sized = re.search(r"sum-(\d+)-(\d+)", path)
            if sized is not None:
                sock.sendall(summed(body, int(sized[1]), int(sized[2])))
                continue
            wanted = re.search(r"/fail-(\d+)", path)
            if path == "/reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                return
            if path == "/half":
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
                return
            if path == "/stall":
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
                time.sleep(5)
            if path == "/slow":
                time.sleep(5)
            if path == "/refuse" or (wanted is not None and failed <= int(wanted[1])):
                status = "503 Service Unavailable"
            sock.sendall(f"HTTP/1.1 {status}\r\nX-Up: a\r\nContent-Length: {len(text_)}\r\n\r\n{text_}".encode())
            if path == "/refuse":
                time.sleep(0.2)
                return
    except (OSError, ValueError, AssertionError):
        pass
    finally:
        stream.close()
        sock.close()


def main() -> None:
    listener = socket.create_server(("", int(sys.argv[1])), backlog=256)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock, Path(sys.argv[2])), daemon=True).start()


if __name__ == "__main__":
    main()
