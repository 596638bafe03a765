"""Traps that need many tries: a head cut at each of its bytes; probes of either end while a wire sleeps."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from nodeagent.abi.numbers import Counter, Reason
from tests.support.traps import Asked, Scripted, Traps, expected, request, told

pytestmark = [pytest.mark.needs("root", "bpf", "core", "netns", "cgroup2"), pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traps]:
    with Traps(tmp_path_factory.mktemp("heads")) as made:
        yield made


@pytest.fixture(scope="module")
def ends(traps: Traps) -> tuple[Scripted, Scripted]:
    servers = traps.serve("x", traps.a), traps.serve("y", traps.b)
    traps.warm(*servers)
    return servers


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_a_head_cut_at_every_byte(traps: Traps, ends: tuple[Scripted, Scripted], method: str) -> None:
    """Whatever was seen of it, home gets the whole; and the next request is the kernel's again."""
    body = b"b" * 9 if method == "POST" else b""
    whole = request("x", "/cut", body, method)
    with traps.talk() as talk:
        assert talk.ask("y") == expected("y", "/")
        for cut in range(1, whole.index(b"\r\n\r\n") + 4):
            counts, split = traps.counts(), traps.node.punts().get((0, Reason.SPLIT_HEAD), 0)
            talk.send(whole[:cut])
            time.sleep(0.002)
            talk.send(whole[cut:])
            assert talk.read() == expected("x", "/cut", body), cut
            assert talk.ask("y", f"/{cut}") == expected("y", f"/{cut}"), cut
            assert counts[Counter.KERNEL] == 1, (cut, str(counts))
            assert traps.node.punts()[0, Reason.SPLIT_HEAD] == split + 1, cut


def keep_alive(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT):
        sock.setsockopt(socket.IPPROTO_TCP, option, 1 if option != socket.TCP_KEEPCNT else 2)


def test_keep_alive_probes_of_the_endpoint_on_frozen_and_lent_wires(
    traps: Traps, ends: tuple[Scripted, Scripted]
) -> None:
    """Its owner answers for a frozen wire, in the wire's numbers, the client for a lent one: unanswered, two end it."""

    def script(server: Scripted, asked: Asked) -> None:
        keep_alive(asked.sock)
        asked.answer(told(server.name, asked))

    probing = traps.serve("probing", traps.a, script)
    traps.warm(probing)
    with traps.talk() as talk, traps.talk() as other:
        assert other.ask("probing") == expected("probing", "/")
        for n in range(3):
            assert talk.ask("probing", f"/{n}") == expected("probing", f"/{n}")
            assert talk.ask("y") == expected("y", "/")
        lent, frozen = probing.served[-4][0], probing.served[-1][0]
        assert lent != frozen
        before = traps.tcp(traps.a, "TcpExtTCPKeepAlive")
        time.sleep(4.5)
        assert traps.tcp(traps.a, "TcpExtTCPKeepAlive") - before >= 2 * 3
        assert {lent, frozen} <= set(probing.live)
        counts, begun = traps.counts(), len(probing.served)
        assert other.ask("probing", "/again") == expected("probing", "/again")
        with contextlib.ExitStack() as stack:
            for _ in range(8):  # clients enough that one of them gets the frozen wire
                assert stack.enter_context(traps.talk()).ask("probing") == expected("probing", "/")
        assert counts[Counter.KERNEL] >= 5, str(counts)
        ports = [port for port, _ in probing.served[begun:]]
        assert ports[0] == lent
        assert frozen in ports[1:]
