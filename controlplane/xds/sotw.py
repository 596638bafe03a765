"""State of the world: ``DiscoveryRequest`` in, ``DiscoveryResponse`` out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from controlplane.snapshot.resource import Resource, delimited, from_bytes, sotw_pieces, text
from controlplane.snapshot.urls import CLUSTER, ENDPOINT, ROUTE
from controlplane.xds.channel import Channel, View
from controlplane.xds.events import Event, Query, Response, Stale, Subscribed
from controlplane.xds.session import Session
from underpass.api import envoy


class SotwSession(Session):
    """A state-of-the-world stream."""

    _merges_answers = True

    def _parse(self, data: bytes) -> Any:
        return envoy.DiscoveryRequest.FromString(data)

    def _requested(self, request: Any) -> Sequence[str]:
        return [name for name in request.resource_names if name]

    def _take(self, channel: Channel, request: Any) -> list[Event]:
        first = not channel.started
        events: list[Event] = []
        nonce = request.response_nonce
        if not first:
            answered = self._answered(channel, request)
            if answered is not None:
                events.append(answered)
            if nonce != channel.sent_nonce and (nonce or request.HasField("error_detail")):
                # The subscription in it is old as well; the client repeats it with the newest nonce.
                return [*events, Stale(channel.type_url, nonce)]
            if nonce:  # one response acknowledges all before it
                channel.outstanding.clear()
        again = not nonce and not first and not self._repeats(channel, request)
        if first:
            channel.start(self._view)
        if self._subscribe(channel, self._requested(request), answer_all=first or again):
            self._check_total()
            events.append(Subscribed(channel.type_url, channel.wildcard, len(channel.names), first))
        if first:
            self._force_due_endpoints(channel)
        return events

    def _repeats(self, channel: Channel, request: Any) -> bool:
        """A request without a nonce that claims what was sent last: a careless ACK, whose answer would never end."""
        wanted = set(self._requested(request))
        wildcard = "*" in wanted or (not wanted and channel.legacy_wildcard_allowed)
        return (
            request.version_info == channel.sent_version != ""
            and wildcard == channel.wildcard
            and wanted - {"*"} == channel.names.keys()
        )

    def _subscribe(self, channel: Channel, names: Sequence[str], *, answer_all: bool) -> bool:
        wanted = dict.fromkeys(names)
        everything = "*" in wanted
        wanted.pop("*", None)
        if everything or wanted:
            channel.named_once = True
        elif channel.legacy_wildcard_allowed:
            everything = True
        fresh = [name for name in wanted if answer_all or name not in channel.names]
        gone = [name for name in channel.names if name not in wanted]
        changed = bool(fresh or gone or everything != channel.wildcard)
        if everything and (answer_all or not channel.wildcard):
            channel.enter_wildcard()
        elif channel.wildcard and not everything:
            channel.leave_wildcard()
        for name in gone:
            channel.drop_name(name)
        for name in fresh:
            channel.add_name(name)
        return changed or answer_all

    def _add(self, channel: Channel, view: View) -> Response | None:
        ready = channel.additions(view)
        if channel.full_state:
            if not ready and not channel.answer_due:
                return None
            said = [resource for _, resource in ready if resource is not None]
            fresh = channel.has_fresh(ready)
            for name, resource in ready:
                channel.settle(name, resource)
            response = self._full(channel, view, [name for name, _ in ready])
            if channel.type_url == CLUSTER:
                self._clusters_said(said, response.nonce, fresh=fresh)
            return response
        answers: list[tuple[str, Resource]] = []
        count = self._fit(ready, lambda resource: resource.sotw_size)
        for name, resource in ready[:count]:
            answer = resource or placeholder(channel.type_url, name)
            if answer is not None:
                answers.append((name, answer))
            channel.settle(name, resource)
        if not answers and not (channel.answer_due and channel.wildcard):
            channel.answer_due = False
            return None
        return self._response(channel, view, [r for _, r in answers], [n for n, _ in answers], removed=0)

    def _remove(self, channel: Channel, view: View) -> Response | None:
        gone = channel.removals(view)
        if not gone:
            return None
        for name in gone:
            channel.settle(name, None)
        if channel.full_state:
            return self._full(channel, view, (), removed=len(gone))
        answers = [made for made in (placeholder(channel.type_url, name) for name in gone) if made is not None]
        return self._response(channel, view, answers, gone, removed=len(gone)) if answers else None

    def _full(self, channel: Channel, view: View, names: Iterable[str], *, removed: int = 0) -> Response:
        """Everything of a type whose omissions delete; removed ones stay in it until their turn."""
        held = [resource for resource in channel.held.values() if resource.name not in channel.base]
        if channel.wildcard:
            outside = [found for found in (channel.find(name, view) for name in sorted(channel.outside)) if found]
            body = channel.base.in_sotw + b"".join(sotw_pieces((*outside, *held)))
            count = len(channel.base) + len(outside) + len(held)
        else:
            found = {name: channel.find(name, view) for name in sorted(channel.names)}
            listed = [*(resource for resource in found.values() if resource is not None), *held]
            body = b"".join(sotw_pieces({r.name: r for r in listed}.values()))
            count = len(listed)
        return self._frame(channel, view, body, names, resources=count, removed=removed)

    def _response(
        self, channel: Channel, view: View, resources: Sequence[Resource], names: Iterable[str], *, removed: int
    ) -> Response:
        body = b"".join(sotw_pieces({r.name: r for r in resources}.values()))
        return self._frame(channel, view, body, names, resources=len(resources), removed=removed)

    def _frame(
        self, channel: Channel, view: View, body: bytes, names: Iterable[str], *, resources: int, removed: int
    ) -> Response:
        nonce, version = self._nonce(), self._version(channel, view)
        channel.record_sent(nonce, version, names)
        data = b"".join((text(1, version), body, text(4, channel.type_url), text(5, nonce)))
        if self._control_plane:
            data += delimited(6, self._control_plane)
        return Response(data, channel.type_url, nonce, resources, removed)

    @staticmethod
    def _version(channel: Channel, view: View) -> str:
        """One version per type: changes exactly when what this client can see of the type does."""
        extra = list(channel.held.values())
        extra += [found for found in (channel.find(name, view) for name in channel.outside) if found]
        if not extra:
            return channel.base.version
        total = channel.base.identity + sum(resource.identity for resource in extra)
        return f"{total & ((1 << 128) - 1):032x}"[:16]

    def _reply(self, query: Query, nonce: str, resources: Sequence[tuple[str, bytes]]) -> Response:
        body = b"".join(delimited(2, text(1, kind) + delimited(2, value)) for kind, value in resources)
        data = body + text(4, query.type_url) + text(5, nonce)
        if self._control_plane:
            data += delimited(6, self._control_plane)
        return Response(data, query.type_url, nonce, len(resources), 0)


def placeholder(type_url: str, name: str) -> Resource | None:
    """The empty resource that tells a state-of-the-world client that *name* does not exist.

    That variant has no other way to say it, and the client would wait for 15 seconds. None for types of which an empty
    one means something else.
    """
    if type_url == ENDPOINT:
        message: Any = envoy.ClusterLoadAssignment(cluster_name=name)
    elif type_url == ROUTE:
        message = envoy.RouteConfiguration(name=name)
    else:
        return None
    return from_bytes(type_url, name, message.SerializeToString(deterministic=True))
