"""Identities, and what a caller may ask for.  Pure."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

#: A label of Kubernetes: namespaces and service accounts (the latter may hold dots).
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_ACCOUNT: Final = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")


class IdentityError(ValueError):
    """A certificate or token that says who the caller is in no way that can be accepted; the text says why."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A service account of the mesh."""

    trust_domain: str
    namespace: str
    account: str

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.account}"


def spiffe(uri: str) -> Identity:
    """Read ``spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT``. Raises :class:`IdentityError`."""
    scheme, found, rest = uri.partition("://")
    parts = rest.split("/")
    if scheme != "spiffe" or not found or len(parts) != 5 or parts[1] != "ns" or parts[3] != "sa":
        raise IdentityError(f"{_shown(uri)} is not spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT")
    return identity(parts[0], parts[2], parts[4])


def identity(trust_domain: str, namespace: str, account: str) -> Identity:
    """An identity of well-formed parts. Raises :class:`IdentityError`."""
    for pattern, value in ((_TRUST_DOMAIN, trust_domain), (_NAMESPACE, namespace), (_ACCOUNT, account)):
        if not pattern.fullmatch(value):
            raise IdentityError(f"{_shown(value)} is no part of an identity")
    return Identity(trust_domain, namespace, account)


def of_certificate(names: Iterable[tuple[str, str]], trust_domain: str) -> Identity:
    """The identity in a verified certificate's subject alternative names, (kind, value) pairs.

    Exactly one URI, and of our trust domain: a foreign authority that we trust for something else speaks for nobody
    here. Raises :class:`IdentityError`.
    """
    uris = [value for kind, value in names if kind == "URI"]
    if len(uris) != 1:
        raise IdentityError(f"the certificate has {len(uris)} URI names; exactly one SPIFFE id is needed")
    found = spiffe(uris[0])
    if found.trust_domain != trust_domain:
        raise IdentityError(f"the certificate is of trust domain {found.trust_domain}, not {trust_domain}")
    return found


def _shown(text: str) -> str:
    return repr(text[:200])


@dataclass(frozen=True, slots=True)
class Rights:
    """Who may do more than ask for what is its own: patterns ``NAMESPACE/ACCOUNT``, where ``*`` stands for any.

    ``operators`` may use debug types and claim to be anybody; ``node_proxies`` (agents, ztunnels) speak for the
    workloads of their node.
    """

    operators: tuple[str, ...] = ()
    node_proxies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who opened a stream. Without an identity: somebody on a plaintext port, which is guarded by where it listens.

    ``peer`` is where from, for logs; ``node`` the Kubernetes node that its token is bound to; ``expires`` when its
    credential does, seconds since the epoch; ``limited`` whether streams are counted against it.
    """

    peer: str
    identity: Identity | None = None
    operator: bool = False
    node_proxy: bool = False
    node: str = ""
    expires: float = math.inf
    limited: bool = False

    @property
    def key(self) -> str:
        """What limits count by."""
        return str(self.identity or self.peer.rpartition(":")[0])

    def refusal(self, kind: str, namespace: str, account: str, node_name: str) -> str:
        """Why the caller may not be the node that it claims to be; empty when it may.

        ``kind`` is the node's type, ``account`` and ``node_name`` may be empty when the node does not say.
        """
        me = self.identity
        if me is None or self.operator:
            return ""
        if self.node_proxy:
            if self.node and node_name != self.node:
                return f"a token of node {self.node} does not speak for node {node_name or '(none)'}"
            return ""
        if kind == "ztunnel":
            return f"{me} is no node proxy: it may not be told the whole mesh"
        if namespace != me.namespace:
            return f"{me} claims to be of namespace {namespace}"
        if account and account != me.account:
            return f"{me} claims to be service account {account}"
        return ""


def authenticated(peer: str, who: Identity, rights: Rights, *, node: str = "", expires: float = math.inf) -> Caller:
    """The caller that has proved to be *who*.

    A node proxy is an operator only where it is named as one: "everybody in this namespace" does not mean the programs
    that run on every node, or whoever breaks into one node could claim to be any other.
    """
    proxy = _any(rights.node_proxies, who)
    named = f"{who.namespace}/{who.account}" in rights.operators
    return Caller(
        peer,
        who,
        operator=named or (not proxy and _any(rights.operators, who)),
        node_proxy=proxy,
        node=node,
        expires=expires,
        limited=True,
    )


def plaintext(peer: str) -> Caller:
    """Somebody on a plaintext port: trusted as far as this machine goes, and beyond it only with what is served."""
    host = peer.rpartition(":")[0].partition(":")[2].replace("%5B", "").replace("%5D", "").strip("[]")
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        local = False
    else:
        local = (getattr(address, "ipv4_mapped", None) or address).is_loopback
    return Caller(peer, operator=local, limited=not local)


def _any(patterns: Iterable[str], who: Identity) -> bool:
    for pattern in patterns:
        namespace, _, account = pattern.partition("/")
        if namespace in ("*", who.namespace) and account in ("*", who.account):
            return True
    return False
