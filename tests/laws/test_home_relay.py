"""A relay under any schedule: whatever arrives in whatever pieces, it neither fails nor loses count of its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.abi.numbers import Reason
from nodeagent.core.libcore import Core, HeadReader, ResponseReader
from nodeagent.home.commands import (
    Arm,
    Chosen,
    Close,
    Command,
    Copy,
    Disarm,
    Forward,
    Open,
    ParsedHead,
    Release,
    Send,
    Sync,
)
from nodeagent.home.exchange import Exchange
from nodeagent.home.relay import Relay
from nodeagent.home.requests import request_of
from nodeagent.rules.model import (
    Abort,
    Delay,
    DirectReply,
    Edits,
    Field,
    Mirror,
    Retry,
    Rewrite,
    Rule,
    Share,
)

pytestmark = pytest.mark.needs("core")

RULES = (
    None,
    Rule(timeout=1.0),
    Rule(retry=Retry(("5xx", "reset", "connect-failure"), 2, per_try=1.0), mirrors=(Mirror(number=2),)),
    Rule(direct=DirectReply(200, "hello")),
    Rule(abort=Abort(500, Share(50)), delay=Delay(1.0, Share(50))),
    Rule((Edits(("a",), (Field("b", "c"),)),), (Edits((), (Field("b", "c"),)),), rewrite=Rewrite("/z", 1)),
)
CHUNKED = b"5\r\nhello\r\n3;x\r\nabc\r\n0\r\nt: u\r\n\r\n"
BODIES = (b"", b"content-length: 5\r\n\r\nhello", b"transfer-encoding: chunked\r\n\r\n" + CHUNKED)
ANSWERS = (
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
    b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx",
    b"nonsense\r\n\r\n",
)


@dataclass(frozen=True)
class Answer:
    """A decision."""

    reason: int = 0
    route: int = 1
    cluster: int = 1
    endpoint: int = 1
    rule: Rule | None = None


@pytest.fixture(scope="module")
def core() -> Core:
    return Core()


class Play:
    """A relay, its client and its endpoint; `draw` decides what happens next."""

    def __init__(self, core: Core, data: st.DataObject) -> None:
        self.draw = data.draw
        reader, framing = HeadReader(core), ResponseReader(core)

        def chance() -> float:
            return self.draw(st.sampled_from((0.0, 0.4, 0.9)))

        def decide() -> Answer:
            reason = self.draw(st.sampled_from((0, 0, 0, int(Reason.NO_ENDPOINT))))
            return Answer(reason, rule=None if reason else self.draw(st.sampled_from(RULES)))

        def begin(judged: bytes, head: ParsedHead, chunked: bool, decision: Chosen) -> Exchange:
            request = request_of(reader, judged, head, chunked)
            assert decision.rule is not None
            return Exchange(decision.rule, request, decision, framing, lambda *_: Answer(), core.reason_name, chance)

        self.relay = Relay(reader.parse, decide, framing, core.reason_name, begin)
        self.received = self.sent = 0
        self.leg = ""  # "", "opening", "open"
        self.answer = b""
        self.clocks: set[str] = set()
        self.closed = False

    def run(self, commands: list[Command]) -> None:
        """What the owner of the sockets does."""
        expected = None
        for command in commands:
            assert not self.closed, f"{command} behind the end"
            if isinstance(command, Send):
                self.sent += len(command.data)
            elif isinstance(command, Forward):
                assert self.leg == "open"
            elif isinstance(command, Open):
                assert not self.leg
                self.leg = "opening"
            elif isinstance(command, Release):
                self.leg, self.answer = "", b""
            elif isinstance(command, Arm):
                self.clocks.add(command.name)
            elif isinstance(command, Disarm):
                self.clocks.clear()
            elif isinstance(command, Sync):
                assert command.received == self.received
                expected = command.sent
            elif isinstance(command, Close):
                self.closed = True
            elif isinstance(command, Copy):
                assert b"\r\n\r\n" in command.request
        if expected is not None:
            assert expected == self.sent
        assert self.relay.received == self.received
        if self.relay.between_requests:
            assert not self.clocks
            assert not self.leg

    def step(self, stream: bytes) -> bytes:
        """One happening; what is left of the client's bytes."""
        relay = self.relay
        possible = ["spurious"]
        if relay.wants_client:
            possible += ["client", "client"] if stream else ["eof"]
        if self.leg == "opening":
            possible += ["opened", "opened", "reused", "failed"]
        if self.leg == "open" and relay.wants_endpoint:
            possible += ["answer", "answer", "answer", "reset"]
        possible += sorted(self.clocks)
        what = self.draw(st.sampled_from(possible))
        if what == "client":
            size = self.draw(st.integers(1, len(stream)))
            self.received += size
            self.run(relay.client_received(stream[:size]))
            return stream[size:]
        if what == "eof":
            self.run(relay.client_eof())
        elif what in ("opened", "reused"):
            self.leg = "open"
            self.run(relay.endpoint_opened(reused=what == "reused"))
        elif what == "failed":
            self.leg = ""
            self.run(relay.endpoint_failed("connect-failed"))
        elif what == "answer":
            self.answer = self.answer or self.draw(st.sampled_from(ANSWERS))
            size = self.draw(st.integers(1, len(self.answer)))
            part, self.answer = self.answer[:size], self.answer[size:]
            self.run(relay.endpoint_received(part))
        elif what == "reset":
            self.run(relay.endpoint_eof())
        elif what in self.clocks:
            self.clocks.discard(what)
            self.run(relay.timer(what))
        return stream


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_schedule(core: Core, data: st.DataObject) -> None:
    requests = data.draw(st.lists(st.sampled_from(BODIES), min_size=1, max_size=4))
    stream = b"".join(
        (b"POST /a HTTP/1.1\r\nhost: h\r\n" + body) if body else b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n"
        for body in requests
    )
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(stream) - 1))
        stream = stream[:at] + data.draw(st.binary(min_size=1, max_size=3)) + stream[at:]
    play = Play(core, data)
    for _ in range(60):
        if play.closed:
            break
        stream = play.step(stream)
    if not play.closed:
        play.run(play.relay.client_gone())
        assert not play.leg
        assert not play.clocks


def test_thousands_of_answers_at_once(core: Core) -> None:
    """A buffer full of small requests is one loop, not a recursion."""
    reader, framing = HeadReader(core), ResponseReader(core)
    direct = Answer(rule=Rule(direct=DirectReply(200)))

    def begin(judged: bytes, head: ParsedHead, chunked: bool, decision: Chosen) -> Exchange:
        request = request_of(reader, judged, head, chunked)
        assert direct.rule is not None
        return Exchange(direct.rule, request, direct, framing, lambda *_: direct, core.reason_name, lambda: 0.0)

    for decision in (direct, Answer(reason=Reason.NO_ENDPOINT)):
        relay = Relay(
            reader.parse, partial(Answer, decision.reason, rule=decision.rule), framing, core.reason_name, begin
        )
        commands = relay.client_received(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 3000)
        assert sum(isinstance(command, Send) for command in commands) == 3000
        assert isinstance(commands[-2], Sync)
