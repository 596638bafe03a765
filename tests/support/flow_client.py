"""Many keep-alive connections that never stop asking: ``flow_client HOST PORT CONNECTIONS TARGET``.

It ends with its standard input and prints one JSON line: ``requests``, ``errors`` (reasons), ``connections`` (how many
were made) and ``runs``, for each connection [workload, answers, first received, last received] in order, on
CLOCK_MONOTONIC. One thread: what is measured is the road, and not who of many clients was scheduled when.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import sys
import time
from typing import Any

STUCK_S = 10.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_WORKLOAD = re.compile(rb'"workload": ?"([^"]*)"')


class Asker:
    """One connection, one request at a time."""

    def __init__(self, address: tuple[str, int], target: str) -> None:
        self._head = f"GET {target} HTTP/1.1\r\nHost: {address[0]}\r\n\r\n".encode()
        self.runs: list[list[Any]] = []
        self.requests = 0
        self.error = ""
        self._data = b""
        self.sock = socket.create_connection(address, timeout=STUCK_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self) -> None:
        self.requests += 1
        self.asked = time.monotonic()
        self.sock.sendall(self._head)

    def readable(self) -> bool:
        """Takes what is there; whether the answer is complete, or the connection is of no use any more (`error`)."""
        piece = self.sock.recv(65536)
        self._data += piece
        if not piece:
            self.error = "closed before the answer"
            return True
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return False
        length = _LENGTH.search(self._data, 0, end + 2)
        if not self._data.startswith(b"HTTP/1.1 200 ") or length is None:
            self.error = repr(self._data[:200])
            return True
        if len(self._data) < end + 4 + int(length[1]):
            return False
        who = _WORKLOAD.search(self._data, end)
        if who is None or len(self._data) > end + 4 + int(length[1]):
            self.error = f"not one answer: {self._data[-200:]!r}"
            return True
        self._note(who[1].decode(), time.monotonic())
        self._data = b""
        return True

    def _note(self, who: str, now: float) -> None:
        if self.runs and self.runs[-1][0] == who:
            self.runs[-1][1] += 1
            self.runs[-1][3] = now
        else:
            self.runs.append([who, 1, now, now])


def main() -> None:
    host, port, connections, target = sys.argv[1:]
    askers = [Asker((host, int(port)), target) for _ in range(int(connections))]
    chooser = selectors.DefaultSelector()
    chooser.register(sys.stdin, selectors.EVENT_READ)
    for asker in askers:
        chooser.register(asker.sock, selectors.EVENT_READ, asker)
        asker.ask()
    busy = len(askers)
    ending = False
    while busy:
        ready = chooser.select(1.0)
        for key, _ in ready:
            asker = key.data
            if asker is None:
                ending = True
                chooser.unregister(key.fileobj)
                continue
            try:
                done = asker.readable()
                if done and not asker.error and not ending:
                    asker.ask()
                    continue
            except OSError as error:
                asker.error, done = f"{type(error).__name__}: {error}", True
            if done:
                busy -= 1
                chooser.unregister(asker.sock)
        late = time.monotonic() - STUCK_S
        for key in list(chooser.get_map().values()):
            if key.data is not None and key.data.asked < late:
                key.data.error = "no answer"
                busy -= 1
                chooser.unregister(key.fileobj)
    report = {
        "requests": sum(asker.requests for asker in askers),
        "errors": [asker.error for asker in askers if asker.error],
        "connections": len(askers),
        "runs": [asker.runs for asker in askers],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
