"""Requests without a pause, run inside a workload: `python steady_client.py HOST PORT SECONDS NAME [NAME...]`.

For each virtual host NAME two threads: one keeps its connection, one makes a new one for every request. Output: a line
"up" when every thread has had its first answer, in the end JSON: {"NAME open"|"NAME new": {"asked": N, "answers":
{status or error: N}, "at": {status or error: [Unix time, ...]}}}.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from typing import Any

from tests.support.keepalive_client import read_response


def connect(host: str, port: int) -> tuple[socket.socket, Any]:
    sock = socket.create_connection((host, port), 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(5)
    return sock, sock.makefile("rb")


def ask(sock: socket.socket, stream: Any, name: str) -> tuple[str, bool]:
    """The answer, and whether the connection goes on."""
    sock.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
    answer = read_response(stream, "GET")
    reason = answer.get("headers", {}).get("x-underpass-reason", "")
    text = f"{answer.get('status', answer.get('error'))} {reason}".strip()
    return text, "status" in answer and answer["headers"].get("connection") != "close"


def load(host: str, port: int, name: str, keep: bool, end: float, told: dict[str, Any], up: threading.Barrier) -> None:
    sock: socket.socket | None = None
    stream: Any = None
    first = True
    while time.monotonic() < end:
        try:
            if sock is None:
                sock, stream = connect(host, port)
            answer, goes_on = ask(sock, stream, name)
        except OSError as error:
            answer, goes_on = repr(error), False
        told["asked"] += 1
        told["answers"][answer] = told["answers"].get(answer, 0) + 1
        if not answer.startswith("200"):
            told["at"].setdefault(answer, []).append(round(time.time(), 4))
        if first:
            first = False
            up.wait()
        if sock is not None and not (keep and goes_on):
            stream.close()
            sock.close()
            sock = None
        time.sleep(0.002)


def main() -> None:
    host, port, seconds, *names = sys.argv[1:]
    told: dict[str, Any] = {}
    up = threading.Barrier(2 * len(names) + 1)
    threads = []
    end = time.monotonic() + float(seconds)
    for name in names:
        for keep in (True, False):
            mine = told[f"{name} {'open' if keep else 'new'}"] = {"asked": 0, "answers": {}, "at": {}}
            threads.append(threading.Thread(target=load, args=(host, int(port), name, keep, end, mine, up)))
    for thread in threads:
        thread.start()
    up.wait()
    print("up", flush=True)
    for thread in threads:
        thread.join()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
