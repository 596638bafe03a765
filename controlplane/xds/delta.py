"""Incremental xDS: ``DeltaDiscoveryRequest`` in, ``DeltaDiscoveryResponse`` out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from controlplane.snapshot.resource import Resource, delimited, delta_pieces, text
from controlplane.snapshot.urls import CLUSTER
from controlplane.xds.channel import MUST, Channel, View
from controlplane.xds.events import Event, Query, Response, Stale, Subscribed
from controlplane.xds.session import Session
from underpass.api import envoy


class DeltaSession(Session):
    """An incremental stream."""

    def _parse(self, data: bytes) -> Any:
        return envoy.DeltaDiscoveryRequest.FromString(data)

    def _requested(self, request: Any) -> Sequence[str]:
        return [name for name in request.resource_names_subscribe if name]

    def _take(self, channel: Channel, request: Any) -> list[Event]:
        first = not channel.started
        events: list[Event] = []
        if first:
            channel.start(self._view)
        else:
            answered = self._answered(channel, request)
            if answered is not None:
                events.append(answered)
            elif request.response_nonce:
                events.append(Stale(channel.type_url, request.response_nonce))
        has = dict(request.initial_resource_versions) if first else {}
        subscribe = dict.fromkeys(self._requested(request))
        unsubscribe = dict.fromkeys(name for name in request.resource_names_unsubscribe if name)
        if not first and not subscribe and not unsubscribe:
            return events
        # "*" subscribed and unsubscribed at once is a client that wants names only, from the first request on.
        both = "*" in subscribe and "*" in unsubscribe
        if both:
            channel.named_once = True
            channel.answer_due = first  # a client that asks on demand is ready when it has heard something
            # It asks for no name yet, but what it kept from before is what it watches.
            subscribe |= dict.fromkeys(name for name in has if name not in unsubscribe)
        elif "*" in unsubscribe and channel.wildcard:
            channel.named_once = True
            channel.leave_wildcard()
        elif "*" in subscribe or (first and not subscribe and channel.legacy_wildcard_allowed):
            channel.named_once = channel.named_once or "*" in subscribe
            self._everything(channel, has)
        for name in subscribe:
            if name != "*":
                channel.add_name(name, has.get(name, MUST))
        for name in unsubscribe:
            if name != "*":
                channel.drop_name(name)
        self._check_total()
        if first:
            self._force_due_endpoints(channel)
        return [*events, Subscribed(channel.type_url, channel.wildcard, len(channel.names), first)]

    @staticmethod
    def _everything(channel: Channel, has: dict[str, str]) -> None:
        channel.enter_wildcard()
        for name, version in has.items():
            channel.pending[name] = version

    def _add(self, channel: Channel, view: View) -> Response | None:
        ready = channel.additions(view)
        count = self._fit(ready, lambda resource: resource.delta_size)
        fresh = channel.has_fresh(ready[:count])
        resources: dict[str, Resource] = {}
        removed: list[str] = []
        for name, resource in ready[:count]:
            if resource is None:
                removed.append(name)
            else:
                resources[resource.name] = resource
            channel.settle(name, resource)
        if not resources and not removed and not channel.answer_due:
            return None
        response = self._frame(channel, resources.values(), [name for name, _ in ready[:count]], removed)
        if channel.type_url == CLUSTER:
            self._clusters_said(resources.values(), response.nonce, fresh=fresh)
        return response

    def _remove(self, channel: Channel, view: View) -> Response | None:
        gone = channel.removals(view)
        if not gone:
            return None
        for name in gone:
            channel.settle(name, None)
        return self._frame(channel, (), gone, gone)

    def _nothing(self, channel: Channel) -> Response | None:
        return self._frame(channel, (), (), ())

    def _frame(
        self, channel: Channel, resources: Iterable[Resource], names: Sequence[str], removed: Sequence[str]
    ) -> Response:
        nonce = self._nonce()
        version = channel.base.version
        channel.record_sent(nonce, version, names)
        listed = list(resources)
        data = b"".join(
            (
                text(1, version),
                *delta_pieces(listed),
                text(4, channel.type_url),
                text(5, nonce),
                *(delimited(6, name.encode()) for name in removed),
            )
        )
        if self._control_plane:
            data += delimited(7, self._control_plane)
        return Response(data, channel.type_url, nonce, len(listed), len(removed))

    def _reply(self, query: Query, nonce: str, resources: Sequence[tuple[str, bytes]]) -> Response:
        bodies = [
            delimited(2, text(3, kind) + text(1, "1") + delimited(2, text(1, kind) + delimited(2, value)))
            for kind, value in resources
        ]
        data = b"".join((*bodies, text(4, query.type_url), text(5, nonce)))
        return Response(data, query.type_url, nonce, len(resources), 0)
