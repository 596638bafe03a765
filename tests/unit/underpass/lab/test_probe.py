"""The demo's client: one connection, counted honestly."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from underpass.lab.probe import LOOK_EVERY, Client, carry_out, converse

GOOD = b'{"workload": "catalog-v1"}'
OTHER = b'{"workload": "catalog-v2"}'


def answer(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def never() -> bool:
    return False


class Scripted:
    """Answers the n-th request with the n-th reply; an empty one closes the connection instead."""

    def __init__(self, replies: list[bytes]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.replies = replies
        self.seen: list[bytes] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while self.replies:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with sock:
                while self.replies and (data := sock.recv(65536)):
                    self.seen.append(data)
                    reply = self.replies.pop(0)
                    if not reply:
                        break
                    half = len(reply) // 2
                    sock.sendall(reply[:half])
                    sock.sendall(reply[half:])


@pytest.fixture(name="start")
def _start() -> Iterator[Any]:
    servers: list[Scripted] = []

    def start(*replies: bytes) -> Scripted:
        servers.append(Scripted(list(replies)))
        return servers[-1]

    yield start
    for server in servers:
        server.listener.close()


def test_counts_workloads_on_one_connection(start: Any) -> None:
    server = start(*[answer(GOOD)] * 3, answer(OTHER))
    client = Client("127.0.0.1", server.port, "catalog")
    report = carry_out(client, {"run": 4, "target": "/t", "headers": {"end-user": "tester"}}, never)
    client.close()
    assert report["workloads"] == {"catalog-v1": 3, "catalog-v2": 1}
    assert (report["requests"], report["errors"], report["connections"]) == (4, 0, 1)
    assert server.seen[0] == b"GET /t HTTP/1.1\r\nhost: catalog\r\nend-user: tester\r\n\r\n"


def test_errors_are_errors_and_a_new_connection_is_told(start: Any) -> None:
    server = start(answer(GOOD), b"", answer(b"no", 503), answer(b"not json"), answer(GOOD))
    client = Client("127.0.0.1", server.port)
    report = carry_out(client, {"run": 5}, never)
    client.close()
    assert (report["requests"], report["errors"], report["connections"]) == (5, 3, 2)
    assert report["workloads"] == {"catalog-v1": 2}
    assert report["statuses"] == {"200": 3, "503": 1}
    assert any("503" in reason for reason in report["why"])


def test_nobody_there_is_an_error_each_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    report = carry_out(Client("127.0.0.1", port), {"run": 2}, never)
    assert (report["errors"], report["connections"]) == (2, 0)


def test_a_flow_tells_when_the_answering_workload_changed(start: Any) -> None:
    server = start(*[answer(GOOD)] * 10, *[answer(OTHER)] * 100_000)
    client = Client("127.0.0.1", server.port)
    report = carry_out(client, {"flow": 0.2}, never)
    client.close()
    first, second = report["timeline"]
    assert (first[0], first[1], second[0]) == ("catalog-v1", 10, "catalog-v2")
    assert first[2] < first[3] <= second[2] < second[3]
    assert first[1] + second[1] == report["requests"]


def test_orders_come_by_the_line(start: Any) -> None:
    server = start(*[answer(GOOD)] * 3)
    out = io.StringIO()
    orders = ['{"run": 1}', '{"stop": true}', '{"run": 2}', '{"quit": true}', '{"run": 9}']
    converse(Client("127.0.0.1", server.port), io.StringIO("\n".join(orders)), out, never)
    assert [json.loads(line)["requests"] for line in out.getvalue().splitlines()] == [1, 2]


def test_a_flow_ends_when_the_next_order_comes(start: Any) -> None:
    server = start(*[answer(GOOD)] * 100_000)
    client = Client("127.0.0.1", server.port)
    looks = iter([False, False, True])
    report = carry_out(client, {"flow": 60}, lambda: next(looks))
    client.close()
    assert report["requests"] == 2 * LOOK_EVERY
