"""One home connection's requests, sans-IO: bytes and happenings in, commands out.

The bytes are read by the core alone: its head parser says what a request is and how long its body, its response reader
where a response ends. What is canonical is passed on byte for byte, in order, one request at a time (pipelined ones
wait); everything else is refused by name. Whatever cannot be resynchronised afterwards ends with the connection.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from nodeagent.abi.numbers import HEAD_MAX, Method, Reason
from nodeagent.home.bodies import Body, ChunkedBody, SizedBody, without_coding
from nodeagent.home.commands import (
    Chosen,
    Close,
    Command,
    Count,
    Forward,
    Framing,
    Open,
    ParsedHead,
    Release,
    Send,
    Sync,
)
from nodeagent.home.exchange import Exchange
from nodeagent.home.exchange import State as ExchangeState
from nodeagent.rules.refusal import refusal, status_of

Begin = Callable[[bytes, ParsedHead, bool, Chosen], Exchange]
"""Makes the exchange of a request whose route has a rule: head, what it says, whether its body is chunked, decision."""
Elsewhere = Callable[[Chosen, list[int]], Chosen | None]
"""Another endpoint for a decision, when no connection to those in the list could be had; None: there shall be none."""


class State(enum.Enum):
    """Where a connection stands."""

    HEAD = "waiting for a whole head"
    OPENING = "waiting for the endpoint"
    EXCHANGE = "request out, response in"
    RULED = "an exchange has it"
    DRAIN = "answered; the rest of the body is thrown away"
    CLOSED = "over"


_FLAG_CLOSE, _FLAG_EXPECT = 2, 4  # UP_HEAD_CLOSE, UP_HEAD_EXPECT
_REPLAYABLE = (Method.GET, Method.HEAD, Method.OPTIONS, Method.TRACE)


class Relay:
    """The conversation on one home connection.

    parse reads a head from the beginning of some bytes; decide decides for the head parsed last; framing follows this
    connection's responses; name gives an `up_reason`'s label; begin makes exchanges for routes that have rules;
    elsewhere finds another endpoint. Each method takes one happening and returns commands.
    """

    def __init__(
        self,
        parse: Callable[[bytes], ParsedHead],
        decide: Callable[[], Chosen],
        framing: Framing,
        name: Callable[[int], str],
        begin: Begin | None = None,
        elsewhere: Elsewhere | None = None,
        standby: bool = False,
    ) -> None:
        self._parse, self._decide, self._framing, self._name, self._begin = parse, decide, framing, name, begin
        self._elsewhere = elsewhere
        self._standby = standby
        self._tried: list[int] = []
        self.state = State.HEAD
        self.received = 0
        self.sent = 0
        self._body: Body = SizedBody(0)
        self._buffer = bytearray()  # not yet understood, or waiting for the endpoint
        self._head: ParsedHead | None = None
        self._decision: Chosen | None = None
        self._exchange: Exchange | None = None  # in RULED
        self._request = b""  # not yet forwarded; and for a second attempt, if the request can have one
        self._answered = False  # bytes of this response were sent
        self._fresh = True
        self._eof = self._looping = False

    # ---- the client ----

    @property
    def left(self) -> int:
        """Bytes of the request's body that are still to come, as far as known."""
        return self._body.left

    @property
    def wants_client(self) -> bool:
        """Whether to read from the client. Pipelined requests wait in its socket, whole bodies in nobody's memory."""
        if self._eof or self.state is State.CLOSED:
            return False
        if self.state is State.HEAD or self.state is State.DRAIN:
            return True
        if self._exchange is not None:
            return self._exchange.wants_body
        return self.state is State.EXCHANGE and not self._body.over

    @property
    def splices(self) -> bool:
        """Whether bytes of the body may go to the endpoint without being shown here."""
        return self.state is State.EXCHANGE or (self._exchange is not None and self._exchange.unseen)

    @property
    def between_requests(self) -> bool:
        """Whether nothing is under way and nothing half received."""
        return self.state is State.HEAD and not self._buffer

    def client_received(self, data: bytes) -> list[Command]:
        """Bytes from the client."""
        self.received += len(data)
        commands: list[Command] = []
        if self.state is not State.HEAD and self.state is not State.CLOSED and not self._body.over:
            drained, body = self.state is State.DRAIN, self._body
            own, data = body.take(data)
            commands = self._body_bytes(own)
            if body.bad:
                return commands + self._bad_body()
            if drained and body.over:
                self.state = State.HEAD
                if not data:
                    commands.append(Sync(self.received, self.sent))
        self._buffer += data
        return commands + self._heads() if self.state is State.HEAD else commands

    def _body_bytes(self, own: bytes) -> list[Command]:
        if self._exchange is not None:
            return self._ruled(self._exchange.body(own, self._body.over))
        if self.state is State.EXCHANGE:
            return [Forward(own)] if own else []
        if self.state is State.OPENING:
            self._request += own
        return []

    def _bad_body(self) -> list[Command]:
        """A chunk is not what it says: neither the endpoint nor we can know where the request ends."""
        gone = self._let_go()
        if self._answered or self.state is State.DRAIN:
            return [*gone, *self._close(abort=self.state is not State.DRAIN)]
        return [*gone, *self._reply(400, "bad-chunk", close=True), *self._close()]

    def _let_go(self) -> list[Command]:
        """The endpoint, if there is one, gets no more of this request."""
        if self._exchange is not None:
            self._answered = self._answered or self._exchange.sent > 0
            return self._exchange.gone()
        return [Release(False, blame=False)] if self.state in (State.OPENING, State.EXCHANGE) else []

    def client_passed(self, size: int) -> list[Command]:
        """That many bytes of the body went to the endpoint without being shown here (spliced); at most `left`."""
        self.received += size
        self._body.passed(size)
        return self._body_bytes(b"") if self._body.over else []

    def client_eof(self) -> list[Command]:
        """The client will send no more; it may still read."""
        self._eof = True
        if self.state in (State.HEAD, State.DRAIN):
            return self._close()
        if not self._body.over:  # the body will never be whole
            return [*self._let_go(), *self._close()]
        return []

    def client_gone(self) -> list[Command]:
        """The client's connection failed."""
        gone = self._let_go()
        self._exchange = None
        self.state = State.CLOSED
        return gone

    def head_timeout(self) -> list[Command]:
        """A head was begun and not finished in time."""
        if self.state is not State.HEAD or not self._buffer:
            return []
        return [Count(0, True), *self._reply(408, "head-timeout", close=True), *self._close()]

    # ---- requests ----

    def _heads(self) -> list[Command]:
        """Takes up what is waiting, as long as it is answered at once. A loop: there may be thousands in a buffer."""
        if self._looping:
            return []
        self._looping = True
        commands: list[Command] = []
        waiting = -1
        while self.state is State.HEAD and self._buffer and len(self._buffer) != waiting:
            waiting = len(self._buffer)
            commands += self._next_head()
        self._looping = False
        return commands

    def _next_head(self) -> list[Command]:
        data = bytes(self._buffer[:HEAD_MAX])
        head, judged = self._parse(data), data
        chunked = False
        if head.reason == Reason.CHUNKED_REQUEST:
            if b"\r\n\r\n" not in data:
                return self._unfinished(data)
            stripped = without_coding(data)
            if stripped is not None:
                head, judged, chunked = self._parse(stripped), stripped, True
        if head.reason == Reason.SPLIT_HEAD:
            return self._close() if self._eof else []
        if head.reason:
            return self._refuse_connection(head.reason)
        self._head = head
        decision = self._decide()
        size = data.index(b"\r\n\r\n") + 4 if chunked else head.size
        del self._buffer[:size]
        self._body = ChunkedBody() if chunked else SizedBody(head.body)
        if decision.reason:
            return self._refuse_request(head, decision)
        own, rest = self._body.take(bytes(self._buffer))
        self._buffer[:] = rest
        count: Command = Count(decision.route, False)
        if decision.rule is not None and self._begin is not None:
            self.state, self._answered = State.RULED, False
            self._exchange = self._begin(judged, head, chunked, decision)
            if self._body.bad:
                return [count, *self._bad_body()]
            return [count, *self._exchange.body(own, self._body.over), *self._ruled(self._exchange.begin())]
        self._decision = decision
        self._tried.clear()
        self.state = State.OPENING
        if self._body.bad:
            return [count, *self._bad_body()]
        self._request = data[:size] + own
        self._answered = False
        # a second attempt is safe only where the first can have had no effect, and needs all of the request
        self._fresh = chunked or bool(head.body) or head.method not in _REPLAYABLE
        return [count, Open(decision, self._fresh)]

    def _unfinished(self, data: bytes) -> list[Command]:
        """A head of which not all is there, but what tells that its body is chunked."""
        if len(data) >= HEAD_MAX:
            return self._refuse_connection(Reason.HEAD_TOO_LONG)
        return self._close() if self._eof else []

    def _refuse_connection(self, reason: int) -> list[Command]:
        """The bytes are not in canonical form: where the next request would begin cannot be known."""
        status = status_of(reason)
        return [Count(0, True), *self._reply(status, self._name(reason), close=True), *self._close()]

    def _refuse_request(self, head: ParsedHead, decision: Chosen) -> list[Command]:
        """The request is understood, but nobody serves it: the connection goes on behind its body."""
        # who waits for 100-continue may or may not send the body
        close = bool(head.flags & _FLAG_CLOSE) or bool(head.flags & _FLAG_EXPECT and not self._body.over)
        close = close or self._standby  # the client's next connection may find an Envoy, this one never will
        _, rest = self._body.take(bytes(self._buffer))
        self._buffer[:] = rest
        status, name = status_of(decision.reason), self._name(decision.reason)
        commands: list[Command] = [Count(decision.route, True)]
        return commands + self._answer_locally(status, name, close or self._body.bad, head)

    def _answer_locally(self, status: int, name: str, close: bool, head: ParsedHead) -> list[Command]:
        reply = self._reply(status, name, close=close, body=head.method != Method.HEAD)
        return self._behind(reply, close)

    def _behind(self, reply: list[Command], close: bool) -> list[Command]:
        """What comes behind a whole answer."""
        if close:
            return [*reply, *self._close()]
        if not self._body.over:  # answered before the body was whole
            self._exchange = None
            self.state = State.DRAIN
            return reply
        return self._finished(reply)

    def _reply(self, status: int, name: str, *, close: bool, body: bool = True) -> list[Command]:
        data = refusal(status, name, close=close, body=body)
        self.sent += len(data)
        return [Send(data)]

    def _finished(self, last: list[Command]) -> list[Command]:
        """A request is answered by `last`: on to the next. Sync comes first, for the client may ask again at once."""
        self.state = State.HEAD
        self._head = self._decision = self._exchange = None
        self._request = b""
        if self._buffer:
            return last + self._heads()
        if self._eof:
            return last + self._close()
        return [Sync(self.received, self.sent), *last]

    def _close(self, *, abort: bool = False) -> list[Command]:
        self.state = State.CLOSED
        self._exchange = None
        return [Close(abort)]

    # ---- a request with a rule ----

    def _ruled(self, commands: list[Command]) -> list[Command]:
        """Passes an exchange's commands on, and does what comes behind its end."""
        exchange = self._exchange
        assert exchange is not None
        if not exchange.over:
            return commands
        self.sent += exchange.sent
        self._exchange = None
        if exchange.state is ExchangeState.CUT:
            return [*commands, *self._close(abort=True)]
        # Sync comes before the last bytes, Release and the end of the clocks before Sync
        own = [command for command in commands if not isinstance(command, Send)]
        last: list[Command] = [command for command in commands if isinstance(command, Send)]
        expecting = self._head is not None and self._head.flags & _FLAG_EXPECT and not self._body.over
        return [*own, *self._behind(last, exchange.close or bool(expecting))]

    def timer(self, name: str) -> list[Command]:
        """A clock that an exchange has armed is due."""
        return [] if self._exchange is None else self._ruled(self._exchange.timer(name))

    # ---- the endpoint ----

    @property
    def wants_endpoint(self) -> bool:
        """Whether to read from the endpoint."""
        if self._exchange is not None:
            return self._exchange.wants_endpoint
        return self.state is State.EXCHANGE

    def endpoint_opened(self, *, reused: bool = False) -> list[Command]:
        """The connection asked for is there. reused: it has served before."""
        if self._exchange is not None:
            return self._ruled(self._exchange.opened(reused))
        assert self._head is not None
        self.state = State.EXCHANGE
        self._framing.begin(self._head.method == Method.HEAD)
        return [Forward(self._request)]

    def endpoint_failed(self, name: str) -> list[Command]:
        """The connection asked for cannot be had; `name` is the reason's label."""
        if self._exchange is not None:
            return self._ruled(self._exchange.failed(name))
        assert self._head is not None
        assert self._decision is not None
        other = None
        if self._elsewhere is not None:
            self._tried.append(self._decision.endpoint)
            other = self._elsewhere(self._decision, self._tried)
        if other is not None:  # nothing of the request was sent yet
            self._decision = other
            return [Open(other, True)]
        close = bool(self._head.flags & (_FLAG_CLOSE | _FLAG_EXPECT))
        return self._answer_locally(503, name, close, self._head)

    def endpoint_received(self, data: bytes) -> list[Command]:
        """Bytes from the endpoint."""
        if self._exchange is not None:
            return self._ruled(self._exchange.received(data))
        own = self._framing.feed(data)
        if self._framing.lost:
            return self._broken("bad-response")
        if not own:  # bytes that nobody asked for
            return self._broken("bad-response")
        return self._passed_on(data[:own], own, len(data) == own)

    def endpoint_passed(self, size: int) -> list[Command]:
        """That many bytes of a body went to the client without being shown here (spliced)."""
        if self._exchange is not None:
            return self._ruled(self._exchange.passed(size))
        self._framing.skip(size)
        self.sent += size
        self._answered = True
        return self._passed_on(b"", 0, True)

    @property
    def body_ahead(self) -> int:
        """How many of the endpoint's next bytes may go to the client unseen (all, where it is a large number)."""
        if self._exchange is not None:
            return self._exchange.body_ahead
        return self._framing.unread() if self.state is State.EXCHANGE else 0

    def _passed_on(self, data: bytes, size: int, exact: bool) -> list[Command]:
        self.sent += size
        self._answered = self._answered or size > 0
        send: list[Command] = [Send(data)] if data else []
        if not self._framing.over:
            return send
        closing = self._framing.closing
        release = Release(exact and not closing and self._body.over)
        if closing:
            return [*send, release, *self._close()]
        if not self._body.over:  # answered before the body was whole
            self.state = State.DRAIN
            return [*send, release]
        return [release, *self._finished(send)]

    def endpoint_eof(self) -> list[Command]:
        """The endpoint has closed or reset its connection."""
        if self._exchange is not None:
            return self._ruled(self._exchange.eof())
        if self.state is not State.EXCHANGE:
            return []
        if self._framing.until_close and self._answered:
            return [Release(False), *self._close()]
        return self._broken("endpoint-closed")

    def _broken(self, name: str) -> list[Command]:
        assert self._head is not None
        assert self._decision is not None
        if self._answered:
            return [Release(False), *self._close(abort=True)]
        if not self._fresh and name == "endpoint-closed":
            # a kept connection that its endpoint was about to close: once more, on a new one
            self._fresh = True
            self.state = State.OPENING
            return [Release(False), Open(self._decision, True)]
        release: list[Command] = [Release(False)]
        return [*release, *self._reply(502, name, close=True, body=self._head.method != Method.HEAD), *self._close()]
