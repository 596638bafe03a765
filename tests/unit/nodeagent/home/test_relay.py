"""The relay as a script of the conversation: bytes and happenings in, commands out. The bytes are read by libcore."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.abi.numbers import Reason
from nodeagent.core.libcore import Core, HeadReader, ResponseReader
from nodeagent.home.commands import Close, Command, Count, Forward, Open, Release, Send, Sync
from nodeagent.home.relay import Relay, State
from nodeagent.rules.model import Rule

pytestmark = pytest.mark.needs("core")


@dataclass(frozen=True)
class Answer:
    """A decision."""

    reason: int = 0
    route: int = 7
    cluster: int = 1
    endpoint: int = 1
    rule: Rule | None = None


GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


@pytest.fixture(scope="module")
def core() -> Core:
    return Core()


Make = Callable[..., Relay]


@pytest.fixture
def make(core: Core) -> Make:
    def build(*decisions: Answer) -> Relay:
        reader, given_ = HeadReader(core), iter(decisions or (Answer(),) * 99)
        return Relay(reader.parse, lambda: next(given_), ResponseReader(core), core.reason_name)

    return build


def sent(commands: list[Command]) -> bytes:
    return b"".join(command.data for command in commands if isinstance(command, Send))


def forwarded(commands: list[Command]) -> bytes:
    return b"".join(command.data for command in commands if isinstance(command, Forward))


def reads_client(relay: Relay) -> bool:
    return relay.wants_client


def kinds(commands: list[Command]) -> list[type]:
    return [type(command) for command in commands]


def test_one_request(make: Make) -> None:
    relay = make()
    opening = relay.client_received(GET)
    assert kinds(opening) == [Count, Open]
    assert isinstance(opening[1], Open)
    assert not opening[1].fresh
    assert not reads_client(relay)
    assert relay.endpoint_opened() == [Forward(GET)]
    assert relay.wants_endpoint
    assert relay.endpoint_received(OK) == [Release(True), Sync(len(GET), len(OK)), Send(OK)]
    assert relay.between_requests
    assert relay.wants_client


def test_the_sync_counts_all_requests_of_the_connection(make: Make) -> None:
    relay = make()
    for n in range(1, 4):
        relay.client_received(POST)
        relay.endpoint_opened()
        assert Sync(n * len(POST), n * len(OK)) in relay.endpoint_received(OK)


def test_a_body_follows_its_head(make: Make) -> None:
    relay = make()
    opening = relay.client_received(POST[:-3])
    assert isinstance(opening[1], Open)
    assert opening[1].fresh, "a body cannot be sent a second time"
    assert relay.endpoint_opened() == [Forward(POST[:-3])]
    assert reads_client(relay)
    assert relay.client_received(b"l") == [Forward(b"l")]
    assert relay.client_received(b"lo" + GET) == [Forward(b"lo")]
    assert not reads_client(relay), "the pipelined request waits"
    commands = relay.endpoint_received(OK)
    assert kinds(commands) == [Release, Send, Count, Open]
    assert relay.endpoint_opened() == [Forward(GET)]


def test_pipelined_requests_come_one_after_the_other(make: Make) -> None:
    relay = make(Answer(route=1), Answer(reason=Reason.NO_ROUTE, route=0), Answer(route=3))
    commands = relay.client_received(GET + POST + GET)
    assert commands[0] == Count(1, False)
    relay.endpoint_opened()
    commands = relay.endpoint_received(OK)
    assert kinds(commands) == [Release, Send, Count, Send, Count, Open]
    assert commands[2] == Count(0, True)
    assert b"404 Not Found" in sent(commands)
    assert b"x-underpass-reason: no-route" in sent(commands)
    assert commands[4] == Count(3, False)
    relay.endpoint_opened()
    assert kinds(relay.endpoint_received(OK)) == [Release, Sync, Send]


@pytest.mark.parametrize("size", range(1, len(POST)))
def test_a_cut_anywhere_changes_nothing(make: Make, size: int) -> None:
    relay = make()
    commands = relay.client_received(POST[:size])
    if commands:
        commands += relay.endpoint_opened()
    commands += relay.client_received(POST[size:])
    if not forwarded(commands):
        commands += relay.endpoint_opened()
    assert forwarded(commands) == POST
    first, rest = OK[: size % len(OK) or 1], OK[size % len(OK) or 1 :]
    commands = relay.endpoint_received(first) + (relay.endpoint_received(rest) if rest else [])
    assert sent(commands) == OK
    assert commands[-1] == Send(rest or first)
    assert Sync(len(POST), len(OK)) in commands


@pytest.mark.parametrize(
    ("head", "status", "reason"),
    [
        (b"GET /x HTTP/1.0\r\nHost: a\r\n\r\n", 505, "bad-version"),
        (b"GET /x HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 501, "duplicate-header"),
        (b"GET /x HTTP/1.1\r\n\r\n", 400, "no-host"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501, "chunked-request"),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
            501,
            "chunked-request",
        ),
        (b"GET /x HTTP/1.1\nHost: a\n\n", 505, "bad-version"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40), 501, "bad-method"),
        (b"GET /x HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 5000, 431, "head-too-long"),
    ],
)
def test_what_is_not_canonical_ends_the_connection(make: Make, head: bytes, status: int, reason: str) -> None:
    relay = make()
    commands = relay.client_received(head + GET)
    assert kinds(commands) == [Count, Send, Close]
    assert sent(commands).startswith(b"HTTP/1.1 %d " % status)
    assert f"x-underpass-reason: {reason}\r\n".encode() in sent(commands)
    assert b"connection: close\r\n" in sent(commands)
    assert relay.state is State.CLOSED
    assert not relay.wants_client


def test_a_refused_body_is_thrown_away(make: Make) -> None:
    relay = make(Answer(Reason.NO_ENDPOINT), Answer())
    commands = relay.client_received(POST[:-2])
    assert kinds(commands) == [Count, Send]
    assert b"503 Service Unavailable" in sent(commands)
    assert relay.wants_client
    assert kinds(relay.client_received(b"lo")) == [Sync]
    assert kinds(relay.client_received(GET)) == [Count, Open]


def test_a_refused_head_request_has_no_body(make: Make) -> None:
    commands = make(Answer(Reason.NO_ROUTE)).client_received(GET.replace(b"GET", b"HEAD"))
    assert sent(commands).endswith(b"\r\n\r\n")
    assert b"content-length: 20\r\n" in sent(commands)


def test_who_waits_for_100_continue_is_refused_with_a_close(make: Make) -> None:
    head = POST[:-5].replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
    assert kinds(make(Answer(Reason.NO_ROUTE)).client_received(head)) == [Count, Send, Close]
    relay = make()
    relay.client_received(head)
    relay.endpoint_opened()
    assert relay.endpoint_received(b"HTTP/1.1 100 Continue\r\n\r\n") == [Send(b"HTTP/1.1 100 Continue\r\n\r\n")]
    assert relay.client_received(b"hello") == [Forward(b"hello")]
    assert kinds(relay.endpoint_received(OK)) == [Release, Sync, Send]


def test_no_connection_to_the_endpoint(make: Make) -> None:
    relay = make()
    relay.client_received(GET)
    commands = relay.endpoint_failed("connect-failed")
    assert kinds(commands) == [Sync, Send]
    assert b"x-underpass-reason: connect-failed" in sent(commands)
    relay.client_received(POST[:-2])
    relay.endpoint_failed("connect-failed")
    assert relay.state is State.DRAIN


def test_a_kept_connection_that_had_ended_is_tried_once_more(make: Make) -> None:
    relay = make()
    relay.client_received(GET)
    relay.endpoint_opened()
    commands = relay.endpoint_eof()
    assert kinds(commands) == [Release, Open]
    assert isinstance(commands[1], Open)
    assert commands[1].fresh
    assert relay.endpoint_opened() == [Forward(GET)]
    commands = relay.endpoint_eof()
    assert kinds(commands) == [Release, Send, Close]
    assert b"502 Bad Gateway" in sent(commands)


def test_a_body_is_never_sent_twice(make: Make) -> None:
    relay = make()
    relay.client_received(POST)
    relay.endpoint_opened()
    assert kinds(relay.endpoint_eof()) == [Release, Send, Close]


def test_a_truncated_response_is_not_made_to_look_whole(make: Make) -> None:
    relay = make()
    relay.client_received(GET)
    relay.endpoint_opened()
    relay.endpoint_received(OK[:-1])
    assert relay.endpoint_eof() == [Release(False), Close(abort=True)]


def test_a_response_that_ends_with_its_connection(make: Make) -> None:
    relay = make()
    relay.client_received(GET)
    relay.endpoint_opened()
    assert kinds(relay.endpoint_received(b"HTTP/1.1 200 OK\r\n\r\nabc")) == [Send]
    assert relay.body_ahead > 1 << 40
    assert kinds(relay.endpoint_received(b"def")) == [Send]
    assert relay.endpoint_eof() == [Release(False), Close(abort=False)]


def test_connection_close_is_kept(make: Make) -> None:
    relay = make()
    relay.client_received(GET)
    relay.endpoint_opened()
    commands = relay.endpoint_received(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert kinds(commands) == [Send, Release, Close]
    assert commands[1] == Release(False)


def test_bytes_behind_a_response_spoil_the_connection(make: Make) -> None:
    relay = make()
    relay.client_received(GET)
    relay.endpoint_opened()
    commands = relay.endpoint_received(OK + OK)
    assert sent(commands) == OK
    assert commands[0] == Release(False)


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_a_response_that_is_none(make: Make, garbage: bytes) -> None:
    relay = make()
    relay.client_received(GET)
    relay.endpoint_opened()
    commands = relay.endpoint_received(garbage)
    assert commands[0] == Release(False)
    assert b"x-underpass-reason: bad-response" in sent(commands)
    assert commands[-1] == Close()


def test_an_early_answer(make: Make) -> None:
    relay = make()
    relay.client_received(POST[:-3])
    relay.endpoint_opened()
    commands = relay.endpoint_received(OK)
    assert commands == [Send(OK), Release(False)]
    assert relay.state is State.DRAIN
    commands = relay.client_received(b"llo" + GET)
    assert kinds(commands) == [Count, Open]


def test_the_client_leaves(make: Make) -> None:
    relay = make()
    assert relay.client_eof() == [Close()]
    relay = make()
    relay.client_received(GET[:5])
    assert relay.client_eof() == [Close()]
    relay = make()
    relay.client_received(POST[:-3])
    relay.endpoint_opened()
    assert relay.client_eof() == [Release(False), Close()]
    relay = make()
    relay.client_received(GET)
    relay.endpoint_opened()
    assert relay.client_eof() == [], "it may still read"
    assert kinds(relay.endpoint_received(OK)) == [Release, Send, Close]
    relay = make()
    relay.client_received(GET)
    assert relay.client_gone() == [Release(False)]
    assert make().client_gone() == []


def test_a_head_that_never_ends(make: Make) -> None:
    relay = make()
    assert relay.head_timeout() == []
    relay.client_received(GET[:5])
    assert kinds(relay.head_timeout()) == [Count, Send, Close]


def test_what_is_spliced_is_counted(make: Make) -> None:
    relay = make()
    relay.client_received(POST[:-5].replace(b": 5", b": 500000"))
    relay.endpoint_opened()
    relay.client_passed(499_995)
    assert relay.left == 5
    assert relay.client_received(b"hello") == [Forward(b"hello")]
    head = OK[:-2].replace(b": 2", b": 100000")
    relay.endpoint_received(head)
    assert relay.body_ahead == 100_000
    assert relay.endpoint_passed(60_000) == []
    commands = relay.endpoint_passed(40_000)
    assert Sync(len(POST) - 5 + len("500000") - 1 + 500_000, len(head) + 100_000) in commands


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1f4\r\n" + b"z" * 500 + b"\r\n0\r\n\r\n"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 120), min_size=1, max_size=40),
    st.sampled_from([OK, CHUNKED, b"HTTP/1.1 103 E\r\n\r\n" + CHUNKED]),
)
def test_every_way_of_cutting_a_response_gives_the_same(sizes: list[int], response: bytes) -> None:
    core = Core()
    reader = HeadReader(core)
    relay = Relay(reader.parse, Answer, ResponseReader(core), core.reason_name)
    for _ in range(2):
        relay.client_received(GET)
        relay.endpoint_opened()
        at, out, n = 0, list[Command](), 0
        while at < len(response):
            piece = response[at : at + sizes[n % len(sizes)]]
            at, n = at + len(piece), n + 1
            out += relay.endpoint_received(piece)
        assert sent(out) == response
        assert sum(isinstance(command, Sync) for command in out) == 1
        assert out[-3:-1][0] == Release(True)
        assert relay.between_requests
