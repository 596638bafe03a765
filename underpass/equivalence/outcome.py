"""What a request is, what an executor did with it, and what the judge says (pure values)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Sort(StrEnum):
    """How ordinary a request is; the punt ratio that matters is that of PLAIN ones."""

    #: what clients send: canonical form, each header once
    PLAIN = "plain"
    #: canonical, but unusual: a header that a rule names comes twice, a long head, a host with a port
    EDGE = "edge"
    #: what two readers could read differently
    HOSTILE = "hostile"
    #: the beginning of a head, as a packet may end there
    CUT = "cut"


class Result(StrEnum):
    """The verdict on one request."""

    EQUAL = "equal"
    PUNTED = "punted"
    DIFFERENT = "DIFFERENT"


@dataclass(frozen=True, slots=True)
class Request:
    """Bytes for the wire. `size`: of the head at its beginning; the rest is body. `aim`: what it was made to try."""

    data: bytes
    size: int
    sort: Sort
    aim: str
    host: str = ""

    @property
    def head(self) -> bytes:
        """The head alone."""
        return self.data[: self.size]


class Kind(StrEnum):
    """What became of a request."""

    FORWARD = "forward"
    REPLY = "reply"
    PUNT = "punt"
    #: no answer at all: the connection ended, or nothing came in time
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an executor did.

    FORWARD: `cluster`, and `head` as it left; REPLY: `status`; PUNT and REPLY: `reason`. `may`: all clusters that a
    weighted choice could have given ("" stands for one that does not exist). `route`: the key of the route that took
    it. `domain`: the virtual host's domain that it was found by. `told`: headers and body of the response as the client
    gets it, without what is a proxy's own (`echo.told`); empty where nobody looked. `home`: of a PUNT, what
    underpass-home does then, if it can be told. `grpc`: the grpc-status of a REPLY, -1 for none.
    """

    kind: Kind
    cluster: str = ""
    status: int = 0
    reason: str = ""
    head: bytes = b""
    may: frozenset[str] = frozenset()
    route: str = ""
    domain: str = ""
    told: tuple[bytes, ...] = ()
    grpc: int = -1
    home: Outcome | None = None

    def text(self) -> str:
        """One phrase for people."""
        if self.kind is Kind.FORWARD:
            return f"to {self.cluster or '(a cluster that does not exist)'}"
        if self.kind is Kind.REPLY:
            return f"answers {self.status}" + (f" ({self.reason})" if self.reason else "")
        return f"punts: {self.reason}" if self.kind is Kind.PUNT else f"does not answer: {self.reason}"


@dataclass(frozen=True, slots=True)
class Judged:
    """One request of one table, and what was found. `why`: the punt's reason, or the difference."""

    table: str
    request: Request
    result: Result
    why: str
    native: Outcome
    kernel: Outcome | None
    envoy: Outcome | None
