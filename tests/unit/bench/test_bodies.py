"""The client and the sink of large bodies, against each other and against servers that misbehave."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import bench.bodies

PROGRAM = Path(bench.bodies.__file__)


def client(mode: str, port: int, *more: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-I", str(PROGRAM), mode, f"127.0.0.1:{port}", "/x", *more],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that does `answer` with each connection, in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))

    def loop() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    def one(connection: socket.socket) -> None:
        with connection:
            try:
                answer(connection)
            except OSError:
                return

    threading.Thread(target=loop, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture
def sink() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-I", str(PROGRAM), "sink", str(port)])
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            threading.Event().wait(0.02)
    yield port
    process.kill()
    process.wait()


def test_uploads_are_counted_to_the_byte(sink: int) -> None:
    size = (3 << 20) + 17
    answer = client("put", sink, "--connections", "4", "--seconds", "0.3", "--size", str(size))
    assert answer["errors"] == []
    assert answer["requests"] >= 4
    assert answer["bytes"] == answer["requests"] * size
    assert len(answer["latencies_us"]) == answer["requests"]


def test_the_sink_takes_heads_and_bodies_cut_anywhere(sink: int) -> None:
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n0123456789"
    with socket.create_connection(("127.0.0.1", sink), timeout=5) as connection:
        for cut in range(1, len(request)):
            connection.sendall(request[:cut])
            connection.sendall(request[cut:])
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")


def body(connection: socket.socket, size: int = 200_000) -> None:
    while connection.recv(65536):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        connection.sendall(bytes(size))


def test_downloads_are_counted_to_the_byte() -> None:
    with serving(body) as port:
        answer = client("get", port, "--connections", "2", "--seconds", "0.2")
    assert answer["errors"] == []
    assert answer["bytes"] == answer["requests"] * 200_000 > 0


def test_a_slow_reader_gets_everything_after_its_rest() -> None:
    with serving(lambda connection: body(connection, 20_000_000)) as port:
        answer = client("slow", port, "--connections", "2", "--seconds", "0.5")
    assert answer["errors"] == []
    assert answer["bytes"] == 40_000_000
    assert answer["requests"] == 2


def test_a_response_that_ends_early_is_an_error() -> None:
    def short(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")

    with serving(short) as port:
        assert client("get", port, "--seconds", "0.1")["errors"] == ["the peer closed inside a response"]


def test_another_status_is_an_error() -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")

    with serving(refuse) as port:
        assert client("get", port, "--seconds", "0.1")["errors"] == ["HTTP/1.1 503 Service Unavailable"]


def test_silence_ends_after_the_patience() -> None:
    def silent(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass

    with serving(silent) as port:
        answer = client("get", port, "--seconds", "0.1", "--patience", "0.3")
    assert answer["errors"] == ["nothing moved for 0.3 s"]
