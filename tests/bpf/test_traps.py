"""Traps of lending wires, one a test: pipelined and cut heads, response framing, ends of connections.

Each checks what both ends got, and by counters that it was the kernel that did it.
"""

from __future__ import annotations

import itertools
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from nodeagent.abi.numbers import Counter, Reason
from tests.support.little_node import SERVICE_PORT, VIP4
from tests.support.traps import (
    Asked,
    Counts,
    Script,
    Scripted,
    Talk,
    Traps,
    content,
    digest,
    eventually,
    expected,
    head_of,
    request,
    sysctl,
    told,
)

pytestmark = [pytest.mark.needs("root", "bpf", "core", "netns", "cgroup2"), pytest.mark.timeout(60)]

NAMES = (f"host{n}" for n in itertools.count())


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traps]:
    with Traps(tmp_path_factory.mktemp("traps")) as made:
        yield made


@pytest.fixture(scope="module")
def two(traps: Traps) -> tuple[Scripted, Scripted]:
    """Two warm endpoints."""
    servers = traps.serve("a", traps.a), traps.serve("b", traps.b)
    traps.warm(*servers)
    return servers


def in_the_kernel(traps: Traps, talk: Talk, rounds: int = 3) -> Counts:
    """Requests of a connection that go to both endpoints in turn, each decided in the kernel."""
    counts = traps.counts()
    for n in range(rounds):
        for host in ("a", "b"):
            assert talk.ask(host, f"/after{n}") == expected(host, f"/after{n}")
    assert counts[Counter.KERNEL] == 2 * rounds, str(counts)
    return counts


# ---- requests ----


def test_pipelined_heads_in_one_send(traps: Traps, two: tuple[Scripted, Scripted]) -> None:
    with traps.talk() as talk:
        in_the_kernel(traps, talk)
        counts, before = traps.counts(), traps.node.punts().get((0, Reason.PIPELINED), 0)
        hosts = "abbaab"
        talk.send(b"".join(request(host, f"/{n}") for n, host in enumerate(hosts)))
        assert [talk.read() for _ in hosts] == [expected(host, f"/{n}") for n, host in enumerate(hosts)]
        assert counts[Counter.KERNEL] == 0, str(counts)
        assert traps.node.punts().get((0, Reason.PIPELINED), 0) == before + 1
        in_the_kernel(traps, talk)


def test_pipelined_heads_in_two_sends(traps: Traps, two: tuple[Scripted, Scripted]) -> None:
    """The second head is held back until the first response has been read; then it gets a wire of its own."""

    def script(server: Scripted, asked: Asked) -> None:
        time.sleep(0.15)
        asked.answer(told("slow", asked))

    slow = traps.serve("slow", traps.a, script)
    traps.warm(slow)
    with traps.talk() as talk:
        in_the_kernel(traps, talk)
        counts = traps.counts()
        talk.send(request("slow", "/first"))
        talk.send(request("b", "/second"))
        assert [talk.read(), talk.read()] == [expected("slow", "/first"), expected("b", "/second")]
        assert counts[Counter.KERNEL] == 2, str(counts)
        assert counts[Counter.HELD] >= 1, str(counts)
        in_the_kernel(traps, talk)


@pytest.mark.parametrize("size", [1, 700, 5000, 100_000])
def test_a_head_behind_a_body_in_one_send(traps: Traps, two: tuple[Scripted, Scripted], size: int) -> None:
    """The first packet holds only the first request's head; a later one ends its body and begins the next request."""
    body = content(size)
    whole = request("a", "/first", body)
    with traps.talk() as talk:
        in_the_kernel(traps, talk)
        counts = traps.counts()
        cut = whole.index(b"\r\n\r\n") + 4
        talk.send(whole[:cut])
        time.sleep(0.02)
        begin = time.monotonic()
        talk.send(whole[cut:] + request("b", "/second"))
        assert talk.read() == expected("a", "/first", body)
        # a super-packet that was cut longer than a segment was lost as a whole, and came a segment at a time
        assert time.monotonic() - begin < (0.3 if size <= 5000 else 1), str(counts)
        assert talk.read() == expected("b", "/second")
        assert counts[Counter.CUT] >= 1, str(counts)
        assert counts[Counter.KERNEL] == 2, str(counts)
        in_the_kernel(traps, talk)


def test_a_head_dribbled_byte_by_byte(traps: Traps, two: tuple[Scripted, Scripted]) -> None:
    with traps.talk() as talk:
        in_the_kernel(traps, talk)
        before = traps.node.punts().get((0, Reason.SPLIT_HEAD), 0)
        for byte in request("b", "/dribble", b"xyz"):
            talk.send(bytes([byte]))
        assert talk.read() == expected("b", "/dribble", b"xyz")
        assert traps.node.punts().get((0, Reason.SPLIT_HEAD), 0) == before + 1
        in_the_kernel(traps, talk)


def test_a_head_cut_in_two_packets(traps: Traps, two: tuple[Scripted, Scripted]) -> None:
    whole = request("b", "/cut", b"body of the cut one")
    with traps.talk() as talk:
        for cut in (1, 3, 18, 30, whole.index(b"\r\n\r\n") + 1, whole.index(b"\r\n\r\n") + 3):
            in_the_kernel(traps, talk, 1)
            before = traps.node.punts().get((0, Reason.SPLIT_HEAD), 0)
            talk.send(whole[:cut])
            time.sleep(0.005)
            talk.send(whole[cut:])
            assert talk.read() == expected("b", "/cut", b"body of the cut one")
            assert traps.node.punts().get((0, Reason.SPLIT_HEAD), 0) == before + 1, cut
        in_the_kernel(traps, talk)


# ---- responses ----


def switched(traps: Traps, name: str, script: Script, expect: str, method: str = "GET", rounds: int = 3) -> None:
    """A response of the scripted endpoint, then a request elsewhere; and the wire must be fit for its next request."""
    server = traps.serve(name, traps.a, script)
    traps.warm(server)
    with traps.talk() as talk:
        in_the_kernel(traps, talk, 1)
        counts = traps.counts()
        for n in range(rounds):
            assert talk.ask(name, f"/{n}", method=method) == expect
            assert talk.ask("b", f"/{n}") == expected("b", f"/{n}")
        assert counts[Counter.KERNEL] == 2 * rounds, str(counts)
        assert counts[Counter.SWITCHES] == 2 * rounds, str(counts)
        assert counts[Counter.RESPONSES] == 2 * rounds, str(counts)
        # what the endpoint sees is one wire, used again and again: it was known to be clean each time
        assert len({port for port, _ in server.served[-rounds:]}) == 1
        assert counts[Counter.ABORTED] == counts[Counter.HELD] == 0, str(counts)


def test_a_response_head_cut_over_packets(traps: Traps, two: tuple[Scripted, Scripted]) -> None:
    def script(server: Scripted, asked: Asked) -> None:
        whole = b"HTTP/1.1 200 OK\r\nX-Content-Length: 3\r\ncOntent-lengTh:  10 \r\nServer: s\r\n\r\n" + b"0123456789"
        step = 1 + asked.number % 7
        asked.send(*(whole[i : i + step] for i in range(0, len(whole), step)), pause=0.0005)

    switched(traps, next(NAMES), script, "0123456789", rounds=7)


def test_a_chunked_response_of_small_chunks(traps: Traps, two: tuple[Scripted, Scripted]) -> None:
    def script(server: Scripted, asked: Asked) -> None:
        frames = b"".join(b"1;x=y\r\n%c\r\n" % (97 + n % 26) for n in range(3000))
        whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + frames + b"0\r\nTrailer: t\r\n\r\n"
        if asked.number % 2:
            asked.send(whole)
        else:
            asked.send(*(whole[i : i + 331] for i in range(0, len(whole), 331)), pause=0.0002)

    switched(traps, next(NAMES), script, "".join(chr(97 + n % 26) for n in range(3000)))


def test_a_wire_is_reclaimed_only_when_a_chunked_response_is_complete(
    traps: Traps, two: tuple[Scripted, Scripted]
) -> None:
    go = threading.Event()

    def script(server: Scripted, asked: Asked) -> None:
        asked.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        go.wait(5)
        asked.send(b"0\r\n", b"\r\n", pause=0.02)

    server = traps.serve("halves", traps.a, script)
    go.set()
    traps.warm(server)
    go.clear()
    with traps.talk() as talk:
        in_the_kernel(traps, talk, 1)
        counts = traps.counts()
        talk.send(request("halves", "/x"))
        assert talk.stream.readline().startswith(b"HTTP/1.1 200")
        while talk.stream.readline() != b"\r\n":
            pass
        assert talk.stream.read(9) == b"4\r\nhalf\r\n"
        wire = traps.wire(server, server_pod=traps.a)
        time.sleep(0.1)
        assert not traps.control.reclaim(wire), "taken in the middle of a response"
        go.set()
        assert talk.stream.read(5) == b"0\r\n\r\n"
        assert eventually(lambda: traps.control.reclaim(wire), 2), "a complete response, and the wire is still busy"
        assert counts[Counter.RECLAIMED] == 1
        assert talk.ask("b", "/next") == expected("b", "/next")
        in_the_kernel(traps, talk)


def test_interim_responses_then_a_final_one(traps: Traps, two: tuple[Scripted, Scripted]) -> None:
    def script(server: Scripted, asked: Asked) -> None:
        interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nContent-Length: 9\r\n\r\n"
        if asked.number % 2:
            asked.send(interim * 2 + head_of(5) + b"final")
        else:
            asked.send(interim, interim, head_of(5), b"final", pause=0.01)

    switched(traps, next(NAMES), script, "final", rounds=4)


@pytest.mark.parametrize(
    ("status", "method", "expect"),
    [("200 OK", "HEAD", ""), ("204 No Content", "GET", "204"), ("304 Not Modified", "GET", "304")],
)
def test_a_response_without_a_body_then_a_switch(
    traps: Traps, two: tuple[Scripted, Scripted], status: str, method: str, expect: str
) -> None:
    """The length that such a head may name is of a body that does not come (RFC 9110)."""
    name = next(NAMES)

    def script(server: Scripted, asked: Asked) -> None:
        asked.send(
            head_of(0 if status.startswith("204") else 4711, status) if expect or asked.method == "HEAD" else b""
        )
        if not expect and asked.method != "HEAD":
            asked.answer(b"")

    switched(traps, name, script, expect, method)


# ---- while the client is away ----


def home_retransmissions(traps: Traps, port: int) -> int:
    """Of home's socket to the client's port; -1 when there is no such socket."""
    command = ["ss", "-Htin", "dst", f"{traps.client.ip4}:{port}"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = [word for word in output.split() if word.startswith("retrans:")]
    return int(found[0].partition("/")[2]) if found else (0 if output else -1)


def test_home_repeats_its_tail_while_the_client_is_away(traps: Traps, two: tuple[Scripted, Scripted]) -> None:
    with traps.talk() as talk:
        for _ in range(40):  # past the phase in which TCP acknowledges at once
            assert talk.ask("nowhere").startswith("503")
        counts = traps.counts()
        assert talk.ask("b", "/away") == expected("b", "/away")
        assert counts[Counter.KERNEL] == 1
        assert eventually(lambda: counts[Counter.TURNED] >= 1, 3), f"nothing was repeated: {counts}"
        time.sleep(1.2)
        assert counts[Counter.TURNED] <= 2, str(counts)
        assert 0 <= home_retransmissions(traps, talk.sock.getsockname()[1]) <= 2
        assert talk.ask("nowhere").startswith("503")
        in_the_kernel(traps, talk)


# ---- ends ----


def test_the_server_closes_free_wires_for_idleness(traps: Traps, two: tuple[Scripted, Scripted]) -> None:
    server = traps.serve("idle", traps.a)
    traps.warm(server)
    counts = traps.counts()
    for port in list(server.live):
        server.finish(port)
    assert eventually(lambda: counts[Counter.UPSTREAM_FIN] >= 1)
    with traps.talk() as talk:
        for n in range(20):
            assert talk.ask("idle", f"/{n}") == expected("idle", f"/{n}")
        assert counts[Counter.KERNEL] >= 15, f"no new wires: {counts}"
        in_the_kernel(traps, talk)


def test_the_server_closes_a_lent_idle_wire(traps: Traps, two: tuple[Scripted, Scripted]) -> None:
    server = traps.serve("lent", traps.a)
    traps.warm(server)
    for end in (server.finish, server.reset):
        with traps.talk() as talk:
            assert talk.ask("lent", "/1") == expected("lent", "/1")
            used = server.served[-1][0]
            assert eventually(lambda used=used: used in server.live, 1)  # type: ignore[misc]
            counts = traps.counts()
            end(used)
            assert eventually(lambda c=counts: c[Counter.UPSTREAM_FIN] + c[Counter.UPSTREAM_RST] >= 1)  # type: ignore[misc]
            talk.sock.settimeout(0.3)
            with pytest.raises(TimeoutError):
                talk.sock.recv(1)  # neither an end nor a reset
            talk.sock.settimeout(10)
            talk.stream = talk.sock.makefile("rb")
            assert talk.ask("lent", "/2") == expected("lent", "/2")
            assert server.served[-1][0] != used
            in_the_kernel(traps, talk)


@pytest.mark.parametrize("how", ["finish", "reset"])
def test_the_server_closes_while_a_request_leaves(traps: Traps, two: tuple[Scripted, Scripted], how: str) -> None:
    """The client hears of it, as it would without us; it must not wait for an answer that cannot come."""
    doomed = threading.Event()

    def script(server: Scripted, asked: Asked) -> None:
        if doomed.is_set():
            getattr(server, how)(asked.port)
            time.sleep(0.01)
        else:
            asked.answer(told(server.name, asked))

    server = traps.serve(f"dying-{how}", traps.a, script)
    traps.warm(server)
    doomed.set()
    with traps.talk() as talk:
        counts = traps.counts()
        begin = time.monotonic()
        with pytest.raises((ConnectionError, AssertionError)):
            assert talk.ask(server.name, "/doomed", content(3000)) != "closed"
        assert time.monotonic() - begin < 2
        assert counts[Counter.KERNEL] == 1, str(counts)
        used = server.served[-1][0]
    doomed.clear()
    with traps.talk() as talk:
        assert talk.ask(server.name, "/next") == expected(server.name, "/next")
        assert server.served[-1][0] != used
        in_the_kernel(traps, talk)


def test_the_server_closes_as_requests_come(traps: Traps, two: tuple[Scripted, Scripted]) -> None:
    """Close and request cross: whatever comes of it, it comes soon, and the connection's next request is right."""
    server = traps.serve("crossing", traps.a)
    traps.warm(server)
    outcomes: list[str] = []
    for n in range(25):
        with traps.talk() as talk:
            if talk.ask("crossing", "/1") != expected("crossing", "/1"):
                raise AssertionError
            used = server.served[-1][0]
            begin = time.monotonic()
            if used in server.live:
                server.finish(used)
            time.sleep(n % 5 * 0.0002)
            try:
                outcomes.append(talk.ask("crossing", "/2"))
            except ConnectionError:
                outcomes.append("reset")
            assert time.monotonic() - begin < 2, outcomes
    assert set(outcomes) <= {expected("crossing", "/2"), "closed", "reset"}
    assert outcomes.count(expected("crossing", "/2")) >= 5, outcomes


def test_a_client_aborts_in_the_middle_of_a_response(traps: Traps, two: tuple[Scripted, Scripted]) -> None:
    size = 32 << 20
    body = content(1 << 20) * 32

    def script(server: Scripted, asked: Asked) -> None:
        if asked.path == "/large":
            asked.answer(body)
        else:
            asked.answer(told(server.name, asked))

    server = traps.serve("large", traps.a, script)
    traps.warm(server)
    for how in (Talk.abort, Talk.close):
        counts = traps.counts()
        talk = traps.talk()
        talk.send(request("large", "/large"))
        assert len(talk.sock.recv(65536)) > 0
        assert counts[Counter.KERNEL] == 1
        used = server.served[-1][0]
        server.ends.clear()
        begin = time.monotonic()
        how(talk)
        assert eventually(lambda used=used: any(port == used for _, port, _ in server.ends), 2), "goes on sending"  # type: ignore[misc]
        end, _, at = next(e for e in server.ends if e[1] == used)
        assert (end, at - begin < 1) == ("reset", True) or "Broken pipe" in end
        assert counts[Counter.ABORTED] >= 1, str(counts)
        assert counts[Counter.ABORTED] == 1, str(counts)
        for n in range(5):
            with traps.talk() as following:
                assert following.ask("large", f"/{n}") == expected("large", f"/{n}")
                assert server.served[-1][0] != used
    assert size == len(body)
    with traps.talk() as talk:
        in_the_kernel(traps, talk)
        assert digest(talk.ask("large", "/large")) == digest(body.decode("latin-1"))


def test_keep_alive_probes_of_a_client_whose_wire_was_taken_back(traps: Traps, two: tuple[Scripted, Scripted]) -> None:
    options = (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
    )
    server = two[0]
    with traps.talk(None, VIP4, *options) as gone, traps.talk(None, VIP4, *options) as kept:
        for talk in (gone, kept):
            in_the_kernel(traps, talk)
            assert talk.ask("a", "/1") == expected("a", "/1")
            if talk is gone:
                wire = traps.wire(server, server_pod=traps.a)
                assert eventually(lambda wire=wire: traps.control.reclaim(wire), 2)  # type: ignore[misc]
        probes = traps.tcp(traps.client, "TcpExtTCPKeepAlive")
        time.sleep(5)
        assert traps.tcp(traps.client, "TcpExtTCPKeepAlive") - probes >= 4
        for talk in (gone, kept):
            assert talk.ask("a", "/2") == expected("a", "/2")
            in_the_kernel(traps, talk)


# ---- left to home ----


def test_data_in_the_syn_is_left_to_home(traps: Traps, two: tuple[Scripted, Scripted]) -> None:
    """Home does not take it in the SYN, so that it is sent again; the next request is the kernel's."""
    sysctl(traps.client, "net.ipv4.tcp_fastopen", "5")  # data without a cookie
    try:
        refused = traps.tcp(traps.client, "TcpExtTCPFastOpenActiveFail")
        for text in (request("b", "/syn", b"body"), request("b", "/syn", b"body")[:20]):
            counts = traps.counts()
            with Talk(traps.dialers["client"].dial(VIP4, SERVICE_PORT, syn_data=text)) as talk:
                talk.send(request("b", "/syn", b"body")[len(text) :])
                assert talk.read() == expected("b", "/syn", b"body")
                assert counts[Counter.KERNEL] == 0, str(counts)
                in_the_kernel(traps, talk)
        assert traps.tcp(traps.client, "TcpExtTCPFastOpenActiveFail") == refused + 2, "there was no data in the SYN"
    finally:
        sysctl(traps.client, "net.ipv4.tcp_fastopen", "1")


def test_urgent_data(traps: Traps, two: tuple[Scripted, Scripted]) -> None:
    """An urgent byte among the bytes of a head is not for the kernel; within a body it stays where it is."""
    with traps.talk() as talk:
        in_the_kernel(traps, talk)
        counts = traps.counts()
        talk.sock.send(request("b", "/urgent")[:-1] + b"!", socket.MSG_OOB)
        talk.send(b"\n")
        assert talk.read() == expected("b", "/urgent")  # home reads around the urgent byte, as any server does
        assert talk.ask("a", "/behind") == expected("a", "/behind")
        assert counts[Counter.KERNEL] == 0, str(counts)
    with traps.talk() as talk:
        in_the_kernel(traps, talk)
        counts, body = traps.counts(), content(20_000)
        whole = request("b", "/urgent", body)
        talk.send(whole[:9000])
        talk.sock.send(whole[9000:12000], socket.MSG_OOB)
        talk.send(whole[12000:])
        assert talk.read() == expected("b", "/urgent", body)  # this endpoint takes urgent bytes in line
        assert counts[Counter.KERNEL] == 1, str(counts)
        in_the_kernel(traps, talk)


def test_a_hairpin_goes_through_home(traps: Traps, two: tuple[Scripted, Scripted]) -> None:
    traps.serve("self", traps.client)
    with traps.talk() as talk:
        in_the_kernel(traps, talk)
        before = sum(n for (_, reason), n in traps.node.punts().items() if reason == Reason.HAIRPIN)
        for n in range(5):
            body = content(40_000, n)
            assert talk.ask("self", f"/{n}", body) == expected("self", f"/{n}", body)
            assert talk.ask("b", f"/{n}") == expected("b", f"/{n}")
        after = sum(n for (_, reason), n in traps.node.punts().items() if reason == Reason.HAIRPIN)
        assert after - before == 5
        in_the_kernel(traps, talk)
