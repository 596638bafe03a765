"""A client that stops reading, or whose server stops: `stall_client.py read|send HOST PORT MIB WARM`. One JSON object.

WARM small requests go first over the same connection, so that the kernel has wires for the one that stalls. read:
asks for a body, reads 1 MiB, then nothing for a while, then the rest. send: uploads to a server that waits before
it reads.
"""

from __future__ import annotations

import hashlib
import json
import random
import select
import socket
import sys
import time

from underpass.lab.answer import pattern

STALL = 4.0
PIECE = 1 << 20
BUFFER = 1 << 20
OPENING = b', "padding": "'


def connect(host: str, port: int) -> socket.socket:
    """A connection with buffers of a fixed size: TCP's own tuning makes them anything up to tcp_rmem's largest."""
    s = socket.socket()
    s.settimeout(60)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    s.connect((host, port))
    return s


def warm(s: socket.socket, host: str, requests: int) -> None:
    """Small requests, one after the other."""
    for _ in range(requests):
        s.sendall(f"GET /?call=&bytes=100 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        answer = b""
        while len(answer.partition(b"\r\n\r\n")[2]) < 100:
            answer += s.recv(65536)
        time.sleep(0.02)


def read(host: str, port: int, size: int, first_requests: int) -> dict[str, object]:
    """Downloads with a pause."""
    with connect(host, port) as s:
        warm(s, host, first_requests)
        s.sendall(f"GET /?call=&bytes={size} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        file = s.makefile("rb", 1 << 16)
        while file.readline() not in (b"\r\n", b""):
            pass
        first = file.read(PIECE)
        time.sleep(STALL)
        at = first.find(OPENING) + len(OPENING)
        padding = size - at - 2
        right = first[at:] == pattern(0, len(first) - at)
        done, begin = len(first), time.monotonic()
        while done < size and (data := file.read(min(PIECE, size - done))):
            offset = done - at
            inside = max(0, min(len(data), padding - offset))
            right = right and data[:inside] == pattern(offset, inside)
            done += len(data)
        took = time.monotonic() - begin
    return {
        "right": right and done == size,
        "mb_per_s": round((size - PIECE) / took / 1e6),
        "peer": f"{host}:{port}",
    }


def send(host: str, port: int, size: int, first_requests: int) -> dict[str, object]:
    """Uploads to a server that sleeps first."""
    body = random.Random(1).randbytes(size)
    view, at, polls = memoryview(body), 0, 0
    with connect(host, port) as s:
        warm(s, host, first_requests)
        head = f"POST /?call=&stall={int(STALL * 1000)}ms HTTP/1.1\r\nHost: {host}\r\nContent-Length: {size}\r\n\r\n"
        s.sendall(head.encode())
        s.setblocking(False)
        begin = time.monotonic()
        while at < size:
            polls += 1
            select.select([], [s], [], 0.5)
            try:
                at += s.send(view[at : at + (1 << 18)])
            except BlockingIOError:
                pass
        s.setblocking(True)
        answer = s.recv(65536)
        while b"}" not in answer and (more := s.recv(65536)):
            answer += more
    return {
        "right": hashlib.sha256(body).hexdigest().encode() in answer,
        "polls": polls,
        "seconds": round(time.monotonic() - begin, 1),
        "peer": f"{host}:{port}",
    }


def main() -> None:
    """Runs one and prints what came of it."""
    mode, host, (port, mib, first) = sys.argv[1], sys.argv[2], (int(a) for a in sys.argv[3:6])
    print(json.dumps((read if mode == "read" else send)(host, port, mib << 20, first)))


if __name__ == "__main__":
    main()
