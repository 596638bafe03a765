"""A model of an xDS client in memory: what Envoy does with the four main types, minus everything else.

It subscribes to all clusters and listeners, to the endpoints of the clusters it has and to the routes of its listeners;
it applies a response as a whole or refuses it as a whole, and answers through a queue that the test drives.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from controlplane.snapshot.references import needs
from controlplane.snapshot.resource import Resource, encode
from controlplane.snapshot.urls import CLUSTER, ENDPOINT, LISTENER, ROUTE
from tests.support.xds import NODE, inner_name
from underpass.api import envoy

_OF = {ENDPOINT: CLUSTER, ROUTE: LISTENER}


class ModelClient:
    """``has`` is what the client applied: type URL -> name -> resource."""

    def __init__(self, *, delta: bool) -> None:
        self.delta = delta
        self.has: dict[str, dict[str, Resource]] = {url: {} for url in (CLUSTER, ENDPOINT, LISTENER, ROUTE)}
        self.outbox: deque[bytes] = deque()
        self._nonce: dict[str, str] = {}
        self._version: dict[str, str] = {}
        self._asked: dict[str, set[str]] = {}
        self._introduced = False
        self.heard = 0

    def connect(self) -> None:
        """A new stream: what was applied stays, what was in flight is lost."""
        self.outbox.clear()
        self._nonce.clear()
        self._asked.clear()
        self._introduced = False
        for url in (CLUSTER, LISTENER):
            self._open(url)
        for url in (ENDPOINT, ROUTE):
            self._follow(url)

    def _send(self, request: Any) -> None:
        if not self._introduced:
            request.node.id = NODE
            self._introduced = True
        self.outbox.append(request.SerializeToString())

    def _versions(self, url: str, names: set[str] | None = None) -> dict[str, str]:
        return {n: r.version for n, r in self.has[url].items() if names is None or n in names}

    def _open(self, url: str) -> None:
        if self.delta:
            self._send(envoy.DeltaDiscoveryRequest(type_url=url, initial_resource_versions=self._versions(url)))
        else:
            self._send(envoy.DiscoveryRequest(type_url=url, version_info=self._version.get(url, "")))

    def wanted(self, url: str) -> set[str]:
        """Names that the client's clusters or listeners make it ask for."""
        return {name for r in self.has[_OF[url]].values() for kind, name in r.needs if kind == url}

    def _follow(self, url: str) -> None:
        """Bring the subscription of *url* in line with the resources that refer to it."""
        wanted, asked = self.wanted(url), self._asked.get(url)
        if asked == wanted or (asked is None and not wanted):
            return
        self._asked[url] = wanted
        for name in set(self.has[url]) - wanted:
            del self.has[url][name]
        if not self.delta:
            self._state(url)
            return
        request = envoy.DeltaDiscoveryRequest(
            type_url=url,
            resource_names_subscribe=sorted(wanted - (asked or set())),
            resource_names_unsubscribe=sorted((asked or set()) - wanted),
        )
        if asked is None:
            request.initial_resource_versions.update(self._versions(url, wanted))
        self._send(request)

    def _state(self, url: str, error: str = "") -> None:
        """A state-of-the-world request: names, newest nonce, last accepted version."""
        request = envoy.DiscoveryRequest(
            type_url=url,
            resource_names=sorted(self._asked.get(url, ())),
            response_nonce=self._nonce.get(url, ""),
            version_info=self._version.get(url, ""),
        )
        if error:
            request.error_detail.message = error
        self._send(request)

    def hear(self, data: bytes, *, refuse: bool = False) -> None:
        """Take one response: apply and accept it, or refuse it and keep everything as it was."""
        self.heard += 1
        if self.delta:
            self._hear_delta(envoy.DeltaDiscoveryResponse.FromString(data), refuse)
        else:
            self._hear_state(envoy.DiscoveryResponse.FromString(data), refuse)
        for url in (ENDPOINT, ROUTE):
            self._follow(url)

    def _hear_delta(self, message: Any, refuse: bool) -> None:
        url = message.type_url
        answer = envoy.DeltaDiscoveryRequest(type_url=url, response_nonce=message.nonce)
        if refuse:
            answer.error_detail.message = "refused"
        else:
            for resource in message.resources:
                inner = envoy.unpack_any(resource.resource)
                made = encode(url, resource.name, inner)
                assert made.version == resource.version
                if url not in _OF or resource.name in self._asked.get(url, ()):
                    self.has[url][resource.name] = made
            for name in message.removed_resources:
                self.has[url].pop(name, None)
        self._send(answer)

    def _hear_state(self, message: Any, refuse: bool) -> None:
        url = message.type_url
        self._nonce[url] = message.nonce
        if refuse:
            self._state(url, "refused")
            return
        got = {}
        for packed in message.resources:
            inner = envoy.unpack_any(packed)
            got[inner_name(packed)] = encode(url, inner_name(packed), inner)
        if url in (CLUSTER, LISTENER):
            self.has[url] = got
        else:
            # An answer may cross an unsubscription: what is no longer asked for is ignored.
            self.has[url].update({n: r for n, r in got.items() if n in self._asked.get(url, ())})
        self._version[url] = message.version_info
        self._state(url)

    def dangling(self) -> list[tuple[str, str]]:
        """(route table, cluster) pairs that the client would answer 503 for: in use, and the cluster is not there."""
        found = []
        for name in self.wanted(ROUTE):
            table = self.has[ROUTE].get(name)
            if table is None:
                continue
            for host in envoy.RouteConfiguration.FromString(table.body).virtual_hosts:
                for route in host.routes:
                    if route.route.cluster not in self.has[CLUSTER]:
                        found.append((name, route.route.cluster))
        return found


__all__ = ["ModelClient", "needs"]
