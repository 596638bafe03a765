"""One home connection's requests, sans-IO: bytes and happenings in, commands out.

The bytes are read by the core alone: its head parser says what a request is and how long its body, its response reader
where a response ends. What is canonical is passed on byte for byte, in order, one request at a time (pipelined ones
wait); everything else is refused by name. Whatever cannot be resynchronised afterwards ends with the connection.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nodeagent.abi.numbers import HEAD_MAX, Method, Reason


class ParsedHead(Protocol):
    """What the relay needs of a parsed head (`nodeagent.core.libcore.Head`)."""

    @property
    def reason(self) -> int:
        """Its `up_reason`, 0 if it is good."""
        ...

    @property
    def size(self) -> int:
        """Bytes of the head."""
        ...

    @property
    def method(self) -> int:
        """An `up_method`."""
        ...

    @property
    def flags(self) -> int:
        """UP_HEAD_*."""
        ...

    @property
    def body(self) -> int:
        """Bytes of the body."""
        ...


class Chosen(Protocol):
    """What the relay needs of a decision (`nodeagent.core.decide.Decision`)."""

    @property
    def reason(self) -> int:
        """Its `up_reason`, 0 if it is good."""
        ...

    @property
    def route(self) -> int:
        """Id of the route, 0 if none."""
        ...


class Framing(Protocol):
    """What the relay needs of a response reader (`nodeagent.core.libcore.ResponseReader`)."""

    def begin(self, head_only: bool) -> None:
        """A request was sent."""
        ...

    def feed(self, data: bytes) -> int:
        """Takes bytes; how many are of the response."""
        ...

    def skip(self, size: int) -> None:
        """Bytes passed unseen."""
        ...

    def unread(self) -> int:
        """How many may pass unseen."""
        ...

    @property
    def over(self) -> bool:
        """All has passed."""
        ...

    @property
    def until_close(self) -> bool:
        """It ends with the connection."""
        ...

    @property
    def lost(self) -> bool:
        """It is not understood."""
        ...

    @property
    def closing(self) -> bool:
        """The connection ends with it."""
        ...


@dataclass(slots=True)
class Send:
    """Bytes for the client."""

    data: bytes


@dataclass(slots=True)
class Forward:
    """Bytes for the endpoint."""

    data: bytes


@dataclass(slots=True)
class Open:
    """A connection to the decision's endpoint is needed. fresh: not one that has served before."""

    decision: Chosen
    fresh: bool


@dataclass(slots=True)
class Release:
    """The connection to the endpoint is no longer needed. reusable: it stands between two requests."""

    reusable: bool


@dataclass(slots=True)
class Count:
    """A request was served, or refused; route 0: none was found."""

    route: int
    refused: bool


@dataclass(slots=True)
class Sync:
    """All that was asked is answered once the commands behind this one are carried out.

    received and sent: bytes of the home connection by then (modulo 2^32): where the next head is due.
    """

    received: int
    sent: int


@dataclass(slots=True)
class Close:
    """The client's connection ends, after what was sent before. abort: by a reset, for a response that is cut short."""

    abort: bool = False


Command = Send | Forward | Open | Release | Count | Sync | Close


class State(enum.Enum):
    """Where a connection stands."""

    HEAD = "waiting for a whole head"
    OPENING = "waiting for the endpoint"
    EXCHANGE = "request out, response in"
    DRAIN = "answered; the rest of the body is thrown away"
    CLOSED = "over"


_FLAG_CLOSE, _FLAG_EXPECT = 2, 4  # UP_HEAD_CLOSE, UP_HEAD_EXPECT
_REPLAYABLE = (Method.GET, Method.HEAD, Method.OPTIONS, Method.TRACE)

_STATUS: dict[int, int] = {
    Reason.SPLIT_HEAD: 400,
    Reason.HEAD_TOO_LONG: 431,
    Reason.TOO_MANY_LINES: 431,
    Reason.BAD_METHOD: 501,
    Reason.BAD_PATH: 400,
    Reason.PATH_NORMAL: 501,
    Reason.BAD_VERSION: 505,
    Reason.BAD_LINE: 400,
    Reason.BAD_NAME: 400,
    Reason.BAD_VALUE: 400,
    Reason.BAD_HOST: 400,
    Reason.NO_HOST: 400,
    Reason.BAD_LENGTH: 400,
    Reason.CHUNKED_REQUEST: 501,
    Reason.UPGRADE: 501,
    Reason.DUPLICATE: 501,
    Reason.PROXY_HEADER: 501,
    Reason.NO_VHOST: 404,
    Reason.NO_ROUTE: 404,
}
"""Of a refusal; whatever is not named here is 503: there is a rule, and it cannot be carried out here."""

_PHRASES = {
    400: "Bad Request", 404: "Not Found", 408: "Request Timeout", 431: "Request Header Fields Too Large",
    501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable", 505: "HTTP Version Not Supported",
}  # fmt: skip


def status_of(reason: int) -> int:
    """The status of home's own answer to a request that nobody can forward for this `up_reason`."""
    return _STATUS.get(reason, 503)


def refusal(status: int, reason: str, *, close: bool, body: bool = True) -> bytes:
    """A whole response that names its reason."""
    text = f"underpass: {reason}\n".encode()
    ending = b"connection: close\r\n" if close else b""
    return (
        b"HTTP/1.1 %d %s\r\ncontent-type: text/plain\r\nx-underpass-reason: %s\r\ncontent-length: %d\r\n%s\r\n"
        % (status, _PHRASES[status].encode(), reason.encode(), len(text), ending)
    ) + (text if body else b"")


class Relay:
    """The conversation on one home connection.

    parse reads a head from the beginning of some bytes; decide decides for the head parsed last; framing follows this
    connection's responses; name gives an `up_reason`'s label. Each method takes one happening and returns commands.
    """

    def __init__(
        self,
        parse: Callable[[bytes], ParsedHead],
        decide: Callable[[], Chosen],
        framing: Framing,
        name: Callable[[int], str],
    ) -> None:
        self._parse, self._decide, self._framing, self._name = parse, decide, framing, name
        self.state = State.HEAD
        self.received = 0
        self.sent = 0
        self.left = 0  # bytes of the request's body still to come
        self._buffer = bytearray()  # not yet understood, or waiting for the endpoint
        self._head: ParsedHead | None = None
        self._decision: Chosen | None = None
        self._request = b""  # for a second attempt, if the request can have one
        self._answered = False  # bytes of this response were sent
        self._fresh = True
        self._eof = False

    # ---- the client ----

    @property
    def wants_client(self) -> bool:
        """Whether to read from the client. Pipelined requests wait in its socket, whole bodies in nobody's memory."""
        if self._eof or self.state is State.CLOSED:
            return False
        if self.state is State.HEAD or self.state is State.DRAIN:
            return True
        return self.state is State.EXCHANGE and self.left > 0

    @property
    def between_requests(self) -> bool:
        """Whether nothing is under way and nothing half received."""
        return self.state is State.HEAD and not self._buffer

    def client_received(self, data: bytes) -> list[Command]:
        """Bytes from the client."""
        self.received += len(data)
        commands: list[Command] = []
        if self.state is State.EXCHANGE and self.left:
            body = data[: self.left]
            self.left -= len(body)
            commands.append(Forward(body))
            data = data[len(body) :]
        elif self.state is State.DRAIN:
            dropped = min(self.left, len(data))
            self.left -= dropped
            data = data[dropped:]
            if not self.left:
                self.state = State.HEAD
                if not data:
                    commands.append(Sync(self.received, self.sent))
        self._buffer += data
        if self.state is State.HEAD and self._buffer:
            commands += self._next_head()
        return commands

    def client_passed(self, size: int) -> None:
        """That many bytes of the body went to the endpoint without being shown here (spliced); at most `left`."""
        self.received += size
        self.left -= size

    def client_eof(self) -> list[Command]:
        """The client will send no more; it may still read."""
        self._eof = True
        if self.state in (State.HEAD, State.DRAIN):
            return self._close()
        if self.left:  # the body will never be whole
            return [Release(False), *self._close()]
        return []

    def client_gone(self) -> list[Command]:
        """The client's connection failed."""
        holding = self.state in (State.OPENING, State.EXCHANGE)
        self.state = State.CLOSED
        return [Release(False)] if holding else []

    def head_timeout(self) -> list[Command]:
        """A head was begun and not finished in time."""
        if self.state is not State.HEAD or not self._buffer:
            return []
        return [Count(0, True), *self._reply(408, "head-timeout", close=True), *self._close()]

    # ---- requests ----

    def _next_head(self) -> list[Command]:
        head = self._parse(bytes(self._buffer[:HEAD_MAX]))
        if head.reason == Reason.SPLIT_HEAD:
            return self._close() if self._eof else []
        if head.reason:
            return self._refuse_connection(head.reason)
        self._head = head
        decision = self._decide()
        size = head.size
        if decision.reason:
            return self._refuse_request(head, decision)
        self._decision = decision
        self.state = State.OPENING
        request = bytes(self._buffer[: size + head.body])
        del self._buffer[: len(request)]
        self.left = size + head.body - len(request)
        self._request = request
        self._answered = False
        # a second attempt is safe only where the first can have had no effect, and needs all of the request
        self._fresh = bool(head.body) or head.method not in _REPLAYABLE
        return [Count(decision.route, False), Open(decision, self._fresh)]

    def _refuse_connection(self, reason: int) -> list[Command]:
        """The bytes are not in canonical form: where the next request would begin cannot be known."""
        status = status_of(reason)
        return [Count(0, True), *self._reply(status, self._name(reason), close=True), *self._close()]

    def _refuse_request(self, head: ParsedHead, decision: Chosen) -> list[Command]:
        """The request is understood, but nobody serves it: the connection goes on behind its body."""
        # who waits for 100-continue may or may not send the body
        close = bool(head.flags & _FLAG_CLOSE) or bool(head.flags & _FLAG_EXPECT and head.body)
        present = min(len(self._buffer), head.size + head.body)
        del self._buffer[:present]
        self.left = head.size + head.body - present
        status, name = status_of(decision.reason), self._name(decision.reason)
        commands: list[Command] = [Count(decision.route, True)]
        return commands + self._answer_locally(status, name, close, head)

    def _answer_locally(self, status: int, name: str, close: bool, head: ParsedHead) -> list[Command]:
        reply = self._reply(status, name, close=close, body=head.method != Method.HEAD)
        if close:
            return [*reply, *self._close()]
        if self.left:
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
        self._head = self._decision = None
        self._request = b""
        if self._buffer:
            return last + self._next_head()
        if self._eof:
            return last + self._close()
        return [Sync(self.received, self.sent), *last]

    def _close(self, *, abort: bool = False) -> list[Command]:
        self.state = State.CLOSED
        return [Close(abort)]

    # ---- the endpoint ----

    @property
    def wants_endpoint(self) -> bool:
        """Whether to read from the endpoint."""
        return self.state is State.EXCHANGE

    def endpoint_opened(self) -> list[Command]:
        """The connection asked for is there."""
        assert self._head is not None
        self.state = State.EXCHANGE
        self._framing.begin(self._head.method == Method.HEAD)
        return [Forward(self._request)]

    def endpoint_failed(self, name: str) -> list[Command]:
        """The connection asked for cannot be had; `name` is the reason's label."""
        assert self._head is not None
        close = bool(self._head.flags & (_FLAG_CLOSE | _FLAG_EXPECT))
        return self._answer_locally(503, name, close, self._head)

    def endpoint_received(self, data: bytes) -> list[Command]:
        """Bytes from the endpoint."""
        own = self._framing.feed(data)
        if self._framing.lost:
            return self._broken("bad-response")
        if not own:  # bytes that nobody asked for
            return self._broken("bad-response")
        return self._passed_on(data[:own], own, len(data) == own)

    def endpoint_passed(self, size: int) -> list[Command]:
        """That many bytes of a body went to the client without being shown here (spliced)."""
        self._framing.skip(size)
        self.sent += size
        self._answered = True
        return self._passed_on(b"", 0, True)

    @property
    def body_ahead(self) -> int:
        """How many of the endpoint's next bytes may go to the client unseen (all, where it is a large number)."""
        return self._framing.unread() if self.state is State.EXCHANGE else 0

    def _passed_on(self, data: bytes, size: int, exact: bool) -> list[Command]:
        self.sent += size
        self._answered = self._answered or size > 0
        send: list[Command] = [Send(data)] if data else []
        if not self._framing.over:
            return send
        closing = self._framing.closing
        release = Release(exact and not closing and not self.left)
        if closing:
            return [*send, release, *self._close()]
        if self.left:  # answered before the body was whole
            self.state = State.DRAIN
            return [*send, release]
        return [release, *self._finished(send)]

    def endpoint_eof(self) -> list[Command]:
        """The endpoint has closed or reset its connection."""
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
