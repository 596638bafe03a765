"""Clients that mean harm, or are broken: their own stream ends or waits; memory stays bounded, others are served."""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from controlplane.snapshot.urls import CLUSTER, ENDPOINT, LISTENER, ROUTE
from tests.support import shop
from tests.support.ads import AdsStream
from tests.support.controlplane import ControlPlaneProcess, wait_for
from underpass.api import envoy

pytestmark = pytest.mark.timeout(90)

_ADS = b"/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlaneProcess]:
    config = tmp_path / "config"
    config.mkdir()
    shop.write(config / "all.yaml", shop.service(80, 8080))
    with ControlPlaneProcess(config, tmp_path) as running:
        yield running
    assert "Traceback" not in running.log
    strange = [line for line in running.log.splitlines() if not line.startswith("timestamp=")]
    assert strange == [], "only our own lines, whatever a client says"


def first(type_url: str = CLUSTER, number: int = 1, *, delta: bool = True) -> Any:
    request: Any = envoy.DeltaDiscoveryRequest() if delta else envoy.DiscoveryRequest()
    request.type_url = type_url
    request.node.id = f"sidecar~10.0.0.{number}~app-{number}.default~default.svc.cluster.local"
    return request


class Witness:
    """A good client beside the others: it must hear of every change, and soon."""

    def __init__(self, plane: ControlPlaneProcess) -> None:
        self._plane = plane
        self._stream = AdsStream(plane.xds, delta=True)
        self._port = 1000
        self._stream.send(first(number=200))
        self._stream.ack(self._stream.recv())

    def check(self, within: float = 2.0) -> None:
        self._port += 1
        began = time.monotonic()
        shop.write(self._plane.config / "all.yaml", shop.service(self._port, 8080))
        while True:
            answer = self._stream.recv()
            self._stream.ack(answer)
            if any(f"|{self._port}|" in resource.name for resource in answer.resources):
                break
        assert time.monotonic() - began < within

    def close(self) -> None:
        self._stream.__exit__()


@pytest.fixture
def witness(plane: ControlPlaneProcess) -> Iterator[Witness]:
    made = Witness(plane)
    yield made
    made.check()
    made.close()


def ends(stream: AdsStream) -> tuple[Any, str]:
    """How the server ends a stream, whatever it says before."""
    for _ in range(10_000):
        try:
            stream.recv()
        except grpc.RpcError as error:
            ended: Any = error
            return ended.code(), ended.details() or ""
    raise AssertionError("the stream goes on and on")


def test_nonces_of_all_kinds_start_no_loop_and_break_nothing(plane: ControlPlaneProcess, witness: Witness) -> None:
    """Old, foreign, empty, huge nonces, ACKs and NACKs of what was never sent, twice, out of order, of other types."""
    chance = random.Random(7)
    for delta in (True, False):
        with AdsStream(plane.xds, delta=delta) as stream:
            stream.send(first(number=2, delta=delta))
            seen = [stream.recv()]
            for _ in range(300):
                nonce = chance.choice([seen[0].nonce, seen[-1].nonce, "", "nonsense", "x" * 3000, "é\x00", "0-0"])
                kind = chance.choice([CLUSTER, LISTENER, ROUTE, "type.googleapis.com/no.such.Type"])
                answer: Any = envoy.DeltaDiscoveryRequest() if delta else envoy.DiscoveryRequest()
                answer.type_url, answer.response_nonce = kind, nonce
                if chance.random() < 0.3:
                    answer.error_detail.message = "no" * chance.randint(0, 500)
                stream.send(answer)
            witness.check()
            assert heard_until(stream, delta, "mark") < 150, "no more than one answer for a question"
            assert heard_until(stream, delta, "mark", "again") == 0, "and then silence"


def heard_until(stream: AdsStream, delta: bool, *names: str) -> int:
    """Ask for endpoints of these names; how many other responses come before the answer."""
    if delta:
        stream.send(envoy.DeltaDiscoveryRequest(type_url=ENDPOINT, resource_names_subscribe=names[-1:]))
    else:
        stream.send(envoy.DiscoveryRequest(type_url=ENDPOINT, resource_names=names))
    others = 0
    while (answer := stream.recv()).type_url != ENDPOINT:
        others += 1
    stream.ack(answer, list(names))
    return others


def test_huge_names_and_nodes_are_refused_by_name(plane: ControlPlaneProcess, witness: Witness) -> None:
    before = plane.rss
    long = first(ENDPOINT)
    long.resource_names_subscribe.append("n" * 5000)
    wide = first()
    wide.node.metadata.update({"LABELS": {f"k{n}": "v" * 1000 for n in range(3000)}})
    deep = first()
    deep.node.id = "sidecar~10.0.0.1~" + "a" * (2 << 20) + ".default~default.svc.cluster.local"
    for request, said in ((long, "a name of 5000 characters"), (wide, "a node of"), (deep, "a node of")):
        with AdsStream(plane.xds, delta=True) as stream:
            stream.send(request)
            code, reason = ends(stream)
            assert (code, said in reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True), reason
    with AdsStream(plane.xds, delta=True) as stream:
        stream.send(first())
        stream.recv()
        for number in range(100):
            stream.send(envoy.DeltaDiscoveryRequest(type_url=f"type.googleapis.com/no.such.Type{number}"))
        code, reason = ends(stream)
        assert (code, "more than 64 types" in reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True), reason
    witness.check()
    assert plane.rss - before < 64 << 20


def test_ten_thousand_subscriptions_are_answered_and_cost_little(plane: ControlPlaneProcess, witness: Witness) -> None:
    names = [f"outbound|{number}||nowhere-{number}.default.svc.cluster.local" for number in range(10_000)]
    before = plane.rss
    with AdsStream(plane.xds, delta=True) as stream:
        request = first(ENDPOINT)
        request.resource_names_subscribe.extend(names)
        stream.send(request)
        answered: set[str] = set()
        while len(answered) < len(names):
            answer = stream.recv()
            answered |= {resource.name for resource in answer.resources} | set(answer.removed_resources)
            stream.ack(answer)
        assert answered == set(names), "each is answered, as empty or as absent"
        witness.check()
        # One by one, taken back and asked for again: the subscription's size is what counts, not how it came about.
        for number in range(2000):
            again = envoy.DeltaDiscoveryRequest(type_url=ENDPOINT, resource_names_unsubscribe=[names[number]])
            stream.send(again)
        stream.send(envoy.DeltaDiscoveryRequest(type_url=ENDPOINT, resource_names_subscribe=["mark"]))
        while "mark" not in {*(answer := stream.recv()).removed_resources, *(r.name for r in answer.resources)}:
            stream.ack(answer)
        witness.check()
    assert plane.rss - before < 64 << 20


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _opened(plane: ControlPlaneProcess) -> socket.socket:
    """A connection that has begun a delta ADS stream, with nothing said on it."""
    host, _, port = plane.xds.rpartition(":")
    sock = socket.create_connection((host, int(port)))
    head = b"\x83\x86\x04" + bytes((len(_ADS),)) + _ADS + b"\x01\x01x"
    for name, value in ((b"content-type", b"application/grpc"), (b"te", b"trailers")):
        head += b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value
    sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0) + _frame(1, 4, 1, head))
    return sock


def _message(request: Any) -> bytes:
    body: bytes = request.SerializeToString()
    return b"\x00" + struct.pack(">I", len(body)) + body


def test_half_open_streams_cost_little_and_hold_nobody_up(plane: ControlPlaneProcess, witness: Witness) -> None:
    """Streams that say nothing, half a message, a length that never comes; connections that just vanish."""
    before = plane.rss
    sockets = []
    for number in range(300):
        sock = _opened(plane)
        whole = _message(first(number=number % 200))
        if number % 4 == 1:
            sock.sendall(_frame(0, 0, 1, whole[: len(whole) // 2]))
        elif number % 4 == 2:
            sock.sendall(_frame(0, 0, 1, b"\x00\x03\xff\xff\xff" + os.urandom(100)))  # 64 MiB are announced
        elif number % 4 == 3:
            sock.sendall(_frame(0, 0, 1, whole))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()  # a reset in the middle of the answer
            continue
        sockets.append(sock)
    try:
        witness.check()
        assert plane.rss - before < 64 << 20
        assert plane.get("/ready")[0] == 200
    finally:
        for sock in sockets:
            sock.close()
    wait_for("the streams are forgotten", lambda: _streams(plane) == 1)


def _streams(plane: ControlPlaneProcess) -> int:
    line = next(line for line in plane.get("/metrics")[1].splitlines() if line.startswith("pilot_xds "))
    return int(float(line.split()[1]))


def test_half_closed_streams_are_over(plane: ControlPlaneProcess, witness: Witness) -> None:
    """A client that says it will say nothing more ends its stream: it could not even acknowledge."""
    for number in range(50):
        sock = _opened(plane)
        sock.sendall(_frame(0, 1, 1, _message(first(number=number))))
        sock.close()
    wait_for("the streams are forgotten", lambda: _streams(plane) == 1)


def test_what_a_client_says_in_parting_is_no_line_of_the_log(plane: ControlPlaneProcess, witness: Witness) -> None:
    sock = _opened(plane)
    forged = b"\x1b[2J\ntimestamp='2026-01-01' level='info' event='all is well'\nTraceback"
    sock.sendall(_frame(7, 0, 0, bytes(4) + b"\x00\x00\x00\x63" + forged))
    witness.check()
    sock.close()
    assert "all is well" not in plane.log


def test_http2_garbage_ends_its_connection_only(plane: ControlPlaneProcess, witness: Witness) -> None:
    chance = random.Random(11)
    for _ in range(100):
        sock = _opened(plane)
        try:
            for _ in range(chance.randint(1, 8)):
                payload = chance.randbytes(chance.randint(0, 200))
                sock.sendall(_frame(chance.randint(0, 12), chance.randint(0, 255), chance.randint(0, 7), payload))
        except OSError:
            pass  # it had enough already
        sock.close()
    witness.check()
    wait_for("the streams are forgotten", lambda: _streams(plane) == 1)


def test_a_flood_of_questions_that_nobody_reads_is_cut_off(plane: ControlPlaneProcess, witness: Witness) -> None:
    before = plane.rss
    sock = _opened(plane)
    query = envoy.DeltaDiscoveryRequest(type_url="istio.io/debug/syncz")
    sock.settimeout(2)
    try:
        sock.sendall(_frame(0, 0, 1, _message(first())))
        for _ in range(20_000):
            sock.sendall(_frame(0, 0, 1, _message(query)))
    except OSError:
        pass  # flow control stopped it, or the stream was ended: both are what should be
    witness.check()
    assert plane.rss - before < 64 << 20
    sock.close()
