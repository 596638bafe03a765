"""What the sans-IO parts of home ask of whoever owns the sockets, and what they need to know of requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from nodeagent.rules.model import Rule


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

    @property
    def path(self) -> int:
        """Where the target begins."""
        ...

    @property
    def path_end(self) -> int:
        """Behind the path."""
        ...

    @property
    def target_end(self) -> int:
        """Behind the query, too."""
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

    @property
    def cluster(self) -> int:
        """Id of the cluster, 0 if none."""
        ...

    @property
    def endpoint(self) -> int:
        """Id of the endpoint, 0 if none was chosen yet."""
        ...

    @property
    def rule(self) -> Rule | None:
        """What is to be done beyond forwarding, if anything."""
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
    """The connection to the endpoint is no longer needed. reusable: it stands between two requests.

    blame: it is the endpoint's doing if it has not answered; not when the client gave up, or sent what is no body.
    """

    reusable: bool
    blame: bool = field(default=True, compare=False)


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


@dataclass(slots=True)
class Arm:
    """A clock is set: `Relay.timer(name)` is due in so many seconds, unless the name is armed or disarmed before."""

    name: str
    seconds: float


@dataclass(slots=True)
class Disarm:
    """All clocks of this connection stop."""


@dataclass(slots=True)
class Copy:
    """A whole request goes to some endpoint of a cluster, too; whatever comes back is thrown away."""

    cluster: int
    request: bytes
    head_only: bool


Command = Send | Forward | Open | Release | Count | Sync | Close | Arm | Disarm | Copy
