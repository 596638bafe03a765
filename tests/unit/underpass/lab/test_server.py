"""The sample server over loopback, spoken to with raw bytes."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from underpass.lab.answer import EMPTY_SHA256, Identity, pattern
from underpass.lab.server import Sample, main, serve

IDENTITY = Identity("reviews-v1", "default", "bookinfo-reviews", "v1", "reviews-v1-0", "node-1")


class Running:
    """A server on a thread of its own, on free ports of 127.0.0.1 and ::1."""

    def __init__(self, calls: tuple[str, ...] = ()) -> None:
        self.sample = Sample(IDENTITY, calls)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.ready = threading.Event()
        self.thread.start()
        assert self.ready.wait(5)

    def _run(self) -> None:
        async def start() -> None:
            first = await serve(self.sample, ["127.0.0.1"], [0, 0])
            self.ports = [server.sockets[0].getsockname()[1] for server in first]
            await serve(self.sample, ["::1"], self.ports[:1])
            self.ready.set()

        self.loop.run_until_complete(start())
        self.loop.run_forever()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)

    def connect(self, host: str = "127.0.0.1", port: int | None = None) -> socket.socket:
        return socket.create_connection((host, port or self.ports[0]), timeout=10)


@pytest.fixture(name="server")
def _server() -> Iterator[Running]:
    running = Running()
    yield running
    running.stop()


class Answers:
    """Responses of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.data = b""

    def _more(self) -> None:
        piece = self.sock.recv(65536)
        if not piece:
            raise EOFError
        self.data += piece

    def head(self) -> tuple[int, dict[str, str]]:
        while b"\r\n\r\n" not in self.data:
            self._more()
        raw, self.data = self.data.split(b"\r\n\r\n", 1)
        lines = raw.decode().split("\r\n")
        return int(lines[0].split()[1]), dict(line.split(": ", 1) for line in lines[1:])

    def take(self, size: int) -> bytes:
        while len(self.data) < size:
            self._more()
        piece, self.data = self.data[:size], self.data[size:]
        return piece

    def line(self) -> bytes:
        while b"\r\n" not in self.data:
            self._more()
        line, self.data = self.data.split(b"\r\n", 1)
        return line

    def read(self, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        status, headers = self.head()
        if method == "HEAD" or status in (204, 304) or status < 200:
            return status, headers, b""
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.line(), 16):
                body += self.take(size)
                assert self.line() == b""
            assert self.line() == b""
            return status, headers, body
        return status, headers, self.take(int(headers["content-length"]))

    def at_end(self) -> bool:
        return not self.data and self.sock.recv(1) == b""


def ask(server: Running, raw: bytes) -> tuple[int, dict[str, str], bytes]:
    with server.connect() as sock:
        sock.sendall(raw)
        return Answers(sock).read()


def get(target: str, extra: str = "") -> bytes:
    return f"GET {target} HTTP/1.1\r\nhost: reviews\r\n{extra}\r\n".encode()


def test_answers_who_it_is_and_what_it_got_on_every_port_and_family(server: Running) -> None:
    for host, port in [("127.0.0.1", server.ports[0]), ("127.0.0.1", server.ports[1]), ("::1", server.ports[0])]:
        with server.connect(host, port) as sock:
            sock.sendall(get("/a?b=1", "X-A: 1\r\nx-a: 2\r\n"))
            status, headers, body = Answers(sock).read()
        answer = json.loads(body)
        assert status == 200
        assert headers["content-type"] == "application/json"
        assert answer == {
            "workload": "reviews-v1",
            "namespace": "default",
            "service_account": "bookinfo-reviews",
            "version": "v1",
            "pod": "reviews-v1-0",
            "node": "node-1",
            "method": "GET",
            "path": "/a?b=1",
            "headers": [["host", "reviews"], ["X-A", "1"], ["x-a", "2"]],
            "body_bytes": 0,
            "body_sha256": EMPTY_SHA256,
        }


def test_a_kept_connection_answers_each_request_for_itself(server: Running) -> None:
    with server.connect() as sock:
        answers = Answers(sock)
        for number in [1, 2, 1, 3, 1, 1]:
            sock.sendall(get(f"/{number}"))
            assert json.loads(answers.read()[2])["path"] == f"/{number}"


def test_a_remembered_answer_never_answers_other_bytes(server: Running) -> None:
    with server.connect() as sock:
        answers = Answers(sock)
        sock.sendall(get("/1"))
        first = answers.read()[2]
        assert get("/1") in server.sample.cache
        sock.sendall(get("/1") + get("/2"))
        assert answers.read()[2] == first
        assert json.loads(answers.read()[2])["path"] == "/2"
        sock.sendall(b"POST /p HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % len(get("/1")))
        sock.sendall(get("/1"))  # the body looks like a remembered request, alone in its packet
        answer = json.loads(answers.read()[2])
        assert (answer["method"], answer["body_bytes"]) == ("POST", len(get("/1")))
        assert answer["body_sha256"] == hashlib.sha256(get("/1")).hexdigest()


def test_pipelined_requests_are_answered_in_order_even_when_one_is_slow(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(get("/0") + get("/1?delay=150ms") + get("/2") + get("/3?bytes=300000") + get("/4"))
        answers = Answers(sock)
        bodies = [json.loads(answers.read()[2]) for _ in range(5)]
        assert [body["path"][1] for body in bodies] == list("01234")


def test_bodies_are_hashed_by_length_and_by_chunks(server: Running) -> None:
    body = random.Random(1).randbytes(700_001)
    digest = hashlib.sha256(body).hexdigest()
    with server.connect() as sock:
        answers = Answers(sock)
        sock.sendall(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        answer = json.loads(answers.read()[2])
        assert (answer["body_bytes"], answer["body_sha256"]) == (len(body), digest)
        sock.sendall(b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n")
        for start in range(0, len(body), 99_991):
            piece = body[start : start + 99_991]
            sock.sendall(b"%X\r\n%b\r\n" % (len(piece), piece))
        sock.sendall(b"0\r\n\r\n")
        answer = json.loads(answers.read()[2])
        assert (answer["body_bytes"], answer["body_sha256"]) == (len(body), digest)


def test_expect_100_continue(server: Running) -> None:
    with server.connect() as sock:
        answers = Answers(sock)
        sock.sendall(b"PUT / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n")
        assert answers.head()[0] == 100
        sock.sendall(b"abc")
        assert json.loads(answers.read()[2])["body_bytes"] == 3


def test_head_has_the_length_of_get_and_no_body(server: Running) -> None:
    with server.connect() as sock:
        answers = Answers(sock)
        sock.sendall(b"HEAD / HTTP/1.1\r\nhost: reviews\r\n\r\n")
        status, headers, _ = answers.read("HEAD")
        sock.sendall(b"GEET / HTTP/1.1\r\nhost: reviews\r\n\r\n")  # same length of method
        assert status == 200
        assert int(headers["content-length"]) == len(answers.read()[2])
        sock.sendall(b"HEAD /?chunked=1 HTTP/1.1\r\nhost: h\r\n\r\n" + get("/next"))
        assert answers.read("HEAD")[1]["transfer-encoding"] == "chunked"
        assert json.loads(answers.read()[2])["path"] == "/next"


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body(server: Running, status: int) -> None:
    with server.connect() as sock:
        answers = Answers(sock)
        sock.sendall(get(f"/?status={status}&bytes=10&chunked=1") + get("/next"))
        assert answers.read()[0] == status
        assert json.loads(answers.read()[2])["path"] == "/next"


def test_status_and_delay(server: Running) -> None:
    started = time.monotonic()
    status, _, body = ask(server, get("/?status=503&delay=200ms"))
    assert status == 503
    assert json.loads(body)["workload"] == "reviews-v1"
    assert 0.19 < time.monotonic() - started < 2


@pytest.mark.parametrize("size", [0, 1, 100, 5000, 1_048_576])
@pytest.mark.parametrize("chunked", ["", "&chunked=1"])
def test_a_body_of_a_wished_size(server: Running, size: int, chunked: str) -> None:
    status, headers, body = ask(server, get(f"/?bytes={size}{chunked}"))
    assert (status, len(body)) == (200, size)
    assert headers["x-body-sha256"] == hashlib.sha256(body).hexdigest()
    if size >= 5000:
        padding = json.loads(body)["padding"]
        assert padding.encode() == pattern(0, len(padding))
    assert ("transfer-encoding" in headers) == bool(chunked)


def test_close_and_http_1_0(server: Running) -> None:
    for raw in [get("/?close=1"), get("/", "connection: close\r\n"), b"GET / HTTP/1.0\r\n\r\n"]:
        with server.connect() as sock:
            sock.sendall(raw)
            answers = Answers(sock)
            assert answers.read()[1]["connection"] == "close"
            assert answers.at_end()
    with server.connect() as sock:
        sock.sendall(b"GET /?chunked=1&bytes=50000 HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
        answers = Answers(sock)
        _, headers = answers.head()
        assert "transfer-encoding" not in headers
        assert len(answers.take(50000)) == 50000
        assert answers.at_end()


def test_interim_responses(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(get("/?interim=2"))
        answers = Answers(sock)
        assert [answers.head()[0] for _ in range(2)] == [103, 103]
        assert answers.read()[0] == 200


def test_a_half_closed_client_still_gets_its_answer(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(get("/?delay=100ms"))
        sock.shutdown(socket.SHUT_WR)
        answers = Answers(sock)
        assert answers.read()[0] == 200
        assert answers.at_end()


def test_bad_requests_are_answered_and_closed(server: Running) -> None:
    for raw, status in [(b"GARBAGE\r\n\r\n", 400), (get("/").replace(b"HTTP/1.1", b"HTTP/2.1"), 505)]:
        with server.connect() as sock:
            sock.sendall(raw)
            answers = Answers(sock)
            assert answers.read()[0] == status
            assert answers.at_end()
    status, headers, body = ask(server, get("/?delay=soon"))
    assert status == 400
    assert "delay=soon" in json.loads(body)["error"]
    assert "connection" not in headers


def test_a_stalled_upload_stops_the_sender_and_then_goes_on(server: Running) -> None:
    size = 64 << 20
    with server.connect() as sock:
        sock.sendall(b"POST /?stall=600ms HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % size)
        block, sent = bytes(1 << 20), 0
        sock.settimeout(0.3)
        try:
            while sent < size:
                sent += sock.send(block[: size - sent])
        except TimeoutError:
            pass  # the window is full: this is what the stall is for
        assert sent < size
        sock.settimeout(10)
        while sent < size:
            sent += sock.send(block[: size - sent])
        assert json.loads(Answers(sock).read()[2])["body_bytes"] == size


def test_a_client_that_does_not_read_costs_no_memory(server: Running) -> None:
    with server.connect() as sock, server.connect() as other:
        sock.sendall(get(f"/?bytes={4 << 30}"))
        time.sleep(0.3)
        other.sendall(get("/"))
        assert Answers(other).read()[0] == 200
        answers = Answers(sock)
        status, headers = answers.head()
        assert status == 200
        assert int(headers["content-length"]) == 4 << 30
        answers.take(1 << 20)


def test_services_that_call_each_other() -> None:
    leaf = Running()
    middle = Running((f"http://127.0.0.1:{leaf.ports[0]}/leaf",))
    try:
        with middle.connect() as sock:
            answers = Answers(sock)
            for _ in range(3):
                sock.sendall(get("/", "end-user: jason\r\nauthorization: secret\r\n"))
                status, _, body = answers.read()
                call = json.loads(body)["calls"][0]
                assert status == 200
                assert call["status"] == 200
                assert call["answer"]["path"] == "/leaf"
                headers = dict(map(tuple, call["answer"]["headers"]))
                assert headers["end-user"] == "jason"
                assert headers["x-lab-depth"] == "1"
                assert "authorization" not in headers
            sock.sendall(get("/?call="))
            assert "calls" not in json.loads(answers.read()[2])
            sock.sendall(get("/?call=http://127.0.0.1:1/"))
            status, _, body = answers.read()
            assert status == 502
            assert json.loads(body)["calls"][0]["error"]
    finally:
        leaf.stop()
        middle.stop()


def test_calls_in_a_circle_end() -> None:
    one = Running()
    try:
        url = f"http://127.0.0.1:{one.ports[0]}/"
        one.sample.calls = (url,)
        _, _, body = ask(one, get("/"))
        depth, answer = 0, json.loads(body)
        while "answer" in answer.get("calls", [{}])[0]:
            depth, answer = depth + 1, answer["calls"][0]["answer"]
        assert depth == 8
        assert "deep" in answer["calls"][0]["error"]
    finally:
        one.stop()


def test_http_client_of_the_standard_library_is_content(server: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.ports[0], timeout=10)
    for target, method in [("/a", "GET"), ("/b?chunked=1", "GET"), ("/c", "HEAD"), ("/d?bytes=9", "DELETE")]:
        connection.request(method, target)
        response = connection.getresponse()
        data: Any = response.read()
        assert response.status == 200
        assert (method == "HEAD") == (data == b"")
    connection.close()


def test_a_port_in_use_is_said_plainly(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--port", str(server.ports[0]), "--address", "127.0.0.1"]) == 1
    assert "cannot listen" in capsys.readouterr().err
