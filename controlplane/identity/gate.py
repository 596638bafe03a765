"""Who opened a stream: plaintext by where it came from, TLS by client certificate or, without one, by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from controlplane.identity.caller import Caller, Identity, IdentityError, Rights, authenticated, plaintext


class Refused(Exception):
    """A stream that is not served. ``status`` is the name of a gRPC status; the message goes to the client."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Verified(Protocol):
    @property
    def identity(self) -> Identity: ...
    @property
    def expires(self) -> float: ...
    @property
    def node(self) -> str: ...


class Tokens(Protocol):
    """Verifies tokens, as :class:`controlplane.identity.tokens.Verifier` does."""

    def verify(self, token: str, now: float) -> _Verified:
        """What a token says. Raises :class:`IdentityError`."""


@dataclass(frozen=True, slots=True)
class Presented:
    """What a TLS connection presented: where from, and its certificate's identity, if it has one."""

    peer: str
    identity: Identity | None = None
    expires: float = 0.0
    problem: str = ""


class Gate:
    """Admits streams. ``arrived`` maps what gRPC calls a TLS connection's peer to what it presented."""

    def __init__(
        self,
        rights: Rights = Rights(),  # noqa: B008 - an immutable value
        tokens: Callable[[], Tokens | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rights = rights
        self._tokens = tokens
        self._clock = clock
        self.arrived: dict[str, Presented] = {}

    def admit(self, peer: str, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """Who *peer* is. Raises :class:`Refused`."""
        presented = self.arrived.get(peer)
        if presented is None:
            if peer.startswith("unix"):
                raise Refused("UNAUTHENTICATED", "this socket is the TLS port's own")
            return plaintext(peer)
        if presented.problem:
            raise Refused("UNAUTHENTICATED", presented.problem)
        if presented.identity is not None:
            if self._clock() >= presented.expires:
                raise Refused("UNAUTHENTICATED", "the client certificate has expired")
            return authenticated(presented.peer, presented.identity, self._rights, expires=presented.expires)
        return self._by_token(presented.peer, dict(metadata))

    def admit_bearer(self, peer: str, headers: Mapping[str, str]) -> Caller:
        """Who a request on the HTTP port is: this machine, or whoever its token says. Raises :class:`Refused`."""
        local = plaintext(f"ipv6:[{peer}]:0" if ":" in peer else f"ipv4:{peer}:0")
        return local if local.operator else self._by_token(peer, headers)

    def _by_token(self, peer: str, metadata: Mapping[str, str | bytes]) -> Caller:
        given = metadata.get("authorization", "")
        scheme, _, token = (given if isinstance(given, str) else "").partition(" ")
        verifier = self._tokens()
        if verifier is None:
            raise Refused("UNAUTHENTICATED", "a client certificate is needed: no keys for tokens are configured")
        if scheme.lower() != "bearer" or not token:
            raise Refused("UNAUTHENTICATED", "a client certificate or a bearer token is needed")
        try:
            found = verifier.verify(token.strip(), self._clock())
        except IdentityError as error:
            raise Refused("UNAUTHENTICATED", str(error)) from error
        return authenticated(peer, found.identity, self._rights, node=found.node, expires=found.expires)
