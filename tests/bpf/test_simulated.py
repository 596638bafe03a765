"""Schedules that the simulator (tests/laws/test_wire_simulator.py) found, on the real data path."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from nodeagent.abi.numbers import Counter
from tests.support.traps import Asked, Scripted, Traps, eventually, expected, request, told

pytestmark = [pytest.mark.needs("root", "bpf", "core", "netns", "cgroup2"), pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traps]:
    with Traps(tmp_path_factory.mktemp("simulated")) as made:
        yield made


def test_what_was_held_back_does_not_go_home_when_the_wire_is_taken_back(traps: Traps) -> None:
    """A packet was cut in front of a pipelined head, another was held back behind it; then the wire was reclaimed.

    The first packet that is sent now begins behind bytes that TCP takes for sent. At home they lay in wait for the
    bytes of some later request, in whose middle they would have turned up.
    """

    def script(server: Scripted, asked: Asked) -> None:
        time.sleep(0.05)
        asked.answer(told(server.name, asked))

    slow, quick = traps.serve("slow", traps.a, script), traps.serve("quick", traps.b)
    traps.warm(slow, quick)
    with traps.talk() as talk:
        assert talk.ask("slow") == expected("slow", "/")
        counts, body = traps.counts(), b"y" * 400
        first = request("slow", "/first", body)
        cut = len(first) - 100
        talk.send(first[:cut])
        talk.send(first[cut:] + request("quick", "/second"))
        talk.send(request("nowhere", "/third-has-a-long-path" + "x" * 100))
        assert talk.read() == expected("slow", "/first", body)
        assert counts[Counter.CUT] == 1, str(counts)
        assert counts[Counter.HELD] >= 1, str(counts)
        # when the client has acknowledged the response, and before it sends again what was cut off, after 200 ms
        wire = traps.wire(slow, server_pod=traps.a)
        assert eventually(lambda: traps.control.reclaim(wire), 0.15), str(counts)
        assert counts[Counter.KERNEL] == 1, str(counts)
        talk.send(request("quick", "/fourth"))
        assert talk.read() == expected("quick", "/second")
        assert talk.read().startswith("503 ")
        assert talk.read() == expected("quick", "/fourth")
        # and the connection is as good as new
        for n in range(4):
            for server in (slow, quick):
                assert talk.ask(server.name, f"/{n}") == expected(server.name, f"/{n}"), str(counts)
        assert talk.ask("nowhere").startswith("503 ")


TWICE = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nContent-Length: 10\r\n\r\nhello"


def test_a_response_that_cannot_be_followed_keeps_its_wire(traps: Traps) -> None:
    """The client has acknowledged all there is; but the rest of the response comes later, and is nobody else's."""

    def script(server: Scripted, asked: Asked) -> None:
        if asked.path != "/odd":
            asked.answer(told(server.name, asked))
            return
        asked.send(TWICE)
        gate.wait(5)
        asked.send(b"world")

    gate = threading.Event()
    odd = traps.serve("odd", traps.a, script)
    traps.warm(odd)
    with traps.talk() as talk, traps.talk() as other:
        assert talk.ask("odd") == expected("odd", "/")
        talk.send(request("odd", "/odd"))
        assert talk.stream.read(len(TWICE)) == TWICE
        wire = traps.wire(odd, server_pod=traps.a)
        assert not eventually(lambda: traps.control.reclaim(wire), 0.3)
        gate.set()
        assert talk.stream.read(5) == b"world"
        # the client may go on, but this wire is not lent again
        assert talk.ask("odd", "/next") == expected("odd", "/next")
        assert other.ask("odd", "/other") == expected("odd", "/other")
        used = [port for port, path in odd.served if path == "/odd"]
        assert not {port for port, path in odd.served if path in ("/next", "/other")} & set(used)


def test_the_end_of_a_response_that_cannot_be_followed_reaches_the_client(traps: Traps) -> None:
    def script(server: Scripted, asked: Asked) -> None:
        if asked.path != "/odd":
            asked.answer(told(server.name, asked))
            return
        asked.send(TWICE)
        time.sleep(0.1)
        asked.sock.shutdown(socket.SHUT_RDWR)

    ending = traps.serve("ending", traps.a, script)
    traps.warm(ending)
    with traps.talk() as talk:
        assert talk.ask("ending") == expected("ending", "/")
        talk.sock.settimeout(3)
        talk.send(request("ending", "/odd"))
        assert talk.stream.read() == TWICE


def test_an_abort_with_a_cut_head_behind_resets_the_endpoint(traps: Traps) -> None:
    """The client's reset stands behind bytes that never left; the endpoint must take it all the same, at once."""

    def script(server: Scripted, asked: Asked) -> None:
        if asked.path == "/slow":
            asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
            return
        asked.answer(told(server.name, asked))

    slow = traps.serve("aborted", traps.a, script)
    traps.warm(slow)
    talk = traps.talk()
    assert talk.ask("aborted") == expected("aborted", "/")
    body, counts = b"z" * 300, traps.counts()
    first = request("aborted", "/slow", body)
    talk.send(first[:-100])
    talk.send(first[-100:] + request("aborted", "/never" + "x" * 200))
    assert talk.stream.read(20)
    assert counts[Counter.CUT] == 1, str(counts)
    before = traps.tcp(traps.a, "TcpExtTCPChallengeACK")
    talk.abort()
    port = slow.served[-1][0]
    assert eventually(lambda: any(end == "reset" and at == port for end, at, _ in slow.ends), 2), slow.ends
    assert traps.tcp(traps.a, "TcpExtTCPChallengeACK") == before
    assert not any(path.startswith("/never") for _, path in slow.served)
