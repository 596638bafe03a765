"""A client on one keep-alive connection, driven by JSON lines: what the demo runs inside a workload.

    {"run": 1000, "target": "/x", "headers": {"a": "b"}}    that many requests
    {"flow": 60, "target": "/x", "headers": {}}             requests until the next line comes, at most so many seconds;
                                                            with a timeline
    {"stop": true}                                          the line that ends a flow; it has no answer of its own
    {"quit": true}

Each line is answered by one JSON line: `requests`, `errors` (with the reasons in `why`), `connections` (how many were
needed: one, if all is well), `workloads` (answers of each) and `statuses`, `p50_us`, `p99_us`, `seconds`; a flow also
has `timeline`: runs of one workload's answers as [workload, requests, first sent, last received], on CLOCK_MONOTONIC.
A socket and no library in between, so that what is measured is the road and not the client.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TextIO

TIMEOUT = 10.0
MAX_REASONS = 5
LOOK_EVERY = 16


class AnswerError(Exception):
    """The bytes that came are not the answer of a sample server."""


class Client:
    """One connection to HOST:PORT, made again only when it breaks."""

    def __init__(self, host: str, port: int, authority: str = "") -> None:
        self._address = (host, port)
        self._authority = authority or host
        self._socket: socket.socket | None = None
        self._rest = b""
        self.connections = 0

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def request(self, head: bytes) -> tuple[int, bytes]:
        """Send a request without a body; its status and body. Raises OSError or AnswerError, and is closed then."""
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._address, timeout=TIMEOUT)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._rest = b""
                self.connections += 1
            self._socket.sendall(head)
            return self._answer(self._socket)
        except (OSError, AnswerError):
            self.close()
            raise

    def head(self, target: str, headers: Mapping[str, str]) -> bytes:
        """The bytes of a GET request."""
        lines = [f"GET {target} HTTP/1.1", f"host: {self._authority}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _answer(self, sock: socket.socket) -> tuple[int, bytes]:
        data = self._rest
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more(sock)
        lines = data[:end].split(b"\r\n")
        length = -1
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        status = lines[0].split(b" ")
        if len(status) < 2 or not status[1].isdigit() or length < 0:
            raise AnswerError(f"not understood: {lines[0][:60]!r}")
        stop = end + 4 + length
        while len(data) < stop:
            data += self._more(sock)
        self._rest = data[stop:]
        return int(status[1]), data[end + 4 : stop]

    @staticmethod
    def _more(sock: socket.socket) -> bytes:
        piece = sock.recv(65536)
        if not piece:
            raise AnswerError("the connection was closed")
        return piece


class Tally:
    """What came of a series of requests."""

    def __init__(self) -> None:
        self.requests = 0
        self.workloads: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.times: list[float] = []
        self.timeline: list[list[Any]] = []

    def add(self, workload: str, sent: float, received: float) -> None:
        """An answer from `workload`."""
        self.workloads[workload] += 1
        self.times.append(received - sent)
        if self.timeline and self.timeline[-1][0] == workload:
            self.timeline[-1][1] += 1
            self.timeline[-1][3] = received
        else:
            self.timeline.append([workload, 1, sent, received])

    def report(self, client: Client, seconds: float, with_timeline: bool) -> dict[str, Any]:
        """The JSON-able outcome."""
        times = sorted(self.times) or [0.0]
        out: dict[str, Any] = {
            "requests": self.requests,
            "errors": sum(self.reasons.values()),
            "why": [reason for reason, _ in self.reasons.most_common(MAX_REASONS)],
            "connections": client.connections,
            "workloads": dict(self.workloads),
            "statuses": dict(self.statuses),
            "p50_us": round(times[len(times) // 2] * 1e6, 1),
            "p99_us": round(times[min(len(times) - 1, len(times) * 99 // 100)] * 1e6, 1),
            "seconds": round(seconds, 3),
        }
        if with_timeline:
            out["timeline"] = self.timeline
        return out


def ask(client: Client, tally: Tally, head: bytes) -> None:
    """One request, counted in `tally`; anything but a 200 is an error."""
    sent = time.monotonic()
    tally.requests += 1
    try:
        status, body = client.request(head)
        received = time.monotonic()
        tally.statuses[str(status)] += 1
        if status != 200:
            tally.reasons[f"status {status}: {body[:100].decode('latin-1')}"] += 1
            return
        answer = json.loads(body)
        tally.add(str(answer["workload"]), sent, received)
    except (OSError, AnswerError, ValueError, KeyError, TypeError) as error:
        tally.reasons[f"{type(error).__name__}: {error}"] += 1
        time.sleep(0.001)


def carry_out(client: Client, order: Mapping[str, Any], interrupted: Callable[[], bool]) -> dict[str, Any]:
    """One order of a JSON line. A flow ends when `interrupted()`."""
    head = client.head(str(order.get("target", "/")), order.get("headers") or {})
    tally = Tally()
    began = time.monotonic()
    if "flow" in order:
        end = began + float(order["flow"])
        while time.monotonic() < end and not (tally.requests % LOOK_EVERY == 0 and interrupted()):
            ask(client, tally, head)
    else:
        for _ in range(int(order["run"])):
            ask(client, tally, head)
    return tally.report(client, time.monotonic() - began, "flow" in order)


def converse(client: Client, orders: TextIO, out: TextIO, interrupted: Callable[[], bool]) -> None:
    """Carry out orders line by line until `quit` or the end."""
    while line := orders.readline():
        order = json.loads(line)
        if order.get("quit"):
            break
        if not order.get("stop"):
            print(json.dumps(carry_out(client, order, interrupted)), file=out, flush=True)
    client.close()


def main() -> int:
    """`probe HOST PORT [AUTHORITY]`: orders on standard input, answers on standard output."""
    host, port, *rest = sys.argv[1:]
    # Whoever gives orders waits for the answer to one before he gives another, so nothing hides in a buffer.
    converse(
        Client(host, int(port), *rest), sys.stdin, sys.stdout, lambda: bool(select.select([sys.stdin], [], [], 0)[0])
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
