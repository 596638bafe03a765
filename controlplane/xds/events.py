"""What a session tells the server about its client: facts to count, log and show, never commands."""

from __future__ import annotations

from dataclasses import dataclass


class ProtocolError(Exception):
    """The client broke the protocol in a way that ends its stream.

    ``status`` is the gRPC status code by name; the message says what was received and what was expected.
    """

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The names of one type that a client watches changed; ``wildcard`` means all, ``names`` counts explicit ones."""

    type_url: str
    wildcard: bool
    names: int
    first: bool


@dataclass(frozen=True, slots=True)
class Acked:
    """The client accepted the response ``nonce``."""

    type_url: str
    nonce: str
    version: str


@dataclass(frozen=True, slots=True)
class Nacked:
    """The client refused (parts of) a response.

    ``names`` are the resources that were in it. Which of them the client applied is unknown: a decoding error refuses
    all, a semantic error only the ones at fault.
    """

    type_url: str
    nonce: str
    message: str
    code: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stale:
    """A request answered an older response than the last one; in state of the world it is ignored."""

    type_url: str
    nonce: str


@dataclass(frozen=True, slots=True)
class Query:
    """A request for a type that is computed on demand and answered once (istioctl's ``istio.io/debug...``)."""

    type_url: str
    names: tuple[str, ...]


Event = Subscribed | Acked | Nacked | Stale | Query


@dataclass(frozen=True, slots=True)
class Response:
    """One message to write: serialised, with what the server counts."""

    data: bytes
    type_url: str
    nonce: str
    resources: int
    removed: int


@dataclass(frozen=True, slots=True)
class TypeStatus:
    """Where a client stands with one type.

    ``state`` is ``NOT_SENT`` (asked, nothing to say yet), ``STALE`` (sent, not answered), ``SYNCED`` or ``ERROR``
    (the last answer was a refusal, ``error`` says why and ``error_names`` what it may concern).
    """

    type_url: str
    wildcard: bool
    names: int
    state: str
    sent_nonce: str
    acked_nonce: str
    sent_version: str
    acked_version: str
    error: str = ""
    error_names: tuple[str, ...] = ()
