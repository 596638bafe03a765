"""One xDS stream as a state machine, without I/O: requests in, events out; responses are pulled.

Both variants of the protocol, ADS and the services of a single type. The caller feeds what it read to ``receive``,
sets the client's ``view`` whenever it changes, and writes what ``poll`` gives, one message at a time; ``poll`` always
works from the newest view, so a slow client is told the latest content once and never a backlog.

Order (ADS): additions and changes in push order (CDS EDS LDS RDS ...), each type only when the ones before it are said;
then, when the client has answered or its grace is over (``release``), removals in reverse order. So a route never
points to a cluster that was taken away a moment before (make before break). The rules that this file holds are listed
in ``docs/xds.md`` with the test for each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError

from controlplane.snapshot.resource import Resource, delimited, from_bytes, text
from controlplane.snapshot.state import diff as compare
from controlplane.snapshot.urls import CLUSTER, ENDPOINT, FULL_STATE, PUSH_ORDER, ROUTE
from controlplane.xds.channel import MUST, Channel, Diff, View
from controlplane.xds.events import Acked, Event, ProtocolError, Query, Response, Stale, Subscribed, TypeStatus
from underpass.api import envoy

_RANK: Final = {type_url: rank for rank, type_url in enumerate(PUSH_ORDER)}
_LAST: Final = len(PUSH_ORDER)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may cost.

    ``response_bytes`` is where a response is split (gRPC clients refuse messages over 4 MiB and then reset for ever);
    a state of the world of CDS or LDS cannot be split, because what it omits is deleted.
    """

    response_bytes: int = 3 << 20
    names: int = 200_000
    name_bytes: int = 4096
    types: int = 64
    queries: int = 64


DEFAULT_LIMITS: Final = Limits()


def _no_queries(_: str) -> bool:
    return False


class Session(ABC):
    """A stream of either variant; see :class:`SotwSession` and :class:`DeltaSession`.

    ``stream_id`` makes nonces unique beyond the stream. ``type_url`` is given for a service of a single type.
    ``is_query`` tells types that are computed per request and answered once through :meth:`answer`.
    """

    def __init__(
        self,
        stream_id: str,
        *,
        type_url: str = "",
        identifier: str = "",
        limits: Limits = DEFAULT_LIMITS,
        diff: Diff = compare,
        is_query: Callable[[str], bool] = _no_queries,
    ) -> None:
        self._stream_id = stream_id
        self._only = type_url
        self._control_plane = text(1, identifier)
        self._limits = limits
        self._diff = diff
        self._is_query = is_query
        self._channels: dict[str, Channel] = {}
        self._order: list[Channel] = []
        self._view: View | None = None
        self._sequence = 0
        self._released = False
        #: Endpoints to say again because their cluster was said; kept for an EDS subscription that comes later.
        self._endpoints_due: dict[str, None] = {}
        self._replies: deque[Response] = deque()
        self._reply_nonce: dict[str, str] = {}
        #: ``Node`` message of the client, None until its first request.
        self.node: Any = None

    # --- in -----------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Event]:
        """Take one serialised request.

        Raises :class:`ProtocolError` when the stream cannot go on: bytes that are no request, no node in the first
        one, a limit passed.
        """
        try:
            request = self._parse(data)
        except DecodeError as error:
            raise ProtocolError("INVALID_ARGUMENT", f"the message is not a discovery request: {error}") from error
        if self.node is None:
            if not request.HasField("node"):
                raise ProtocolError("INVALID_ARGUMENT", "the first request of a stream must carry the node")
            self.node = request.node
        type_url = request.type_url or self._only
        if not type_url:
            raise ProtocolError("INVALID_ARGUMENT", "a request on the aggregated stream must carry a type_url")
        if self._only and type_url != self._only:
            raise ProtocolError("INVALID_ARGUMENT", f"this service serves {self._only}, not {type_url}")
        names = self._requested(request)
        self._check_names(names)
        if self._is_query(type_url):
            return self._query(type_url, request.response_nonce, names)
        return self._take(self._channel(type_url), request)

    @abstractmethod
    def _parse(self, data: bytes) -> Any: ...

    @abstractmethod
    def _requested(self, request: Any) -> Sequence[str]: ...

    @abstractmethod
    def _take(self, channel: Channel, request: Any) -> list[Event]: ...

    def _check_names(self, names: Sequence[str]) -> None:
        if len(names) > self._limits.names:
            raise ProtocolError(
                "RESOURCE_EXHAUSTED", f"{len(names)} names in one request; {self._limits.names} allowed"
            )
        for name in names:
            if len(name) > self._limits.name_bytes:
                raise ProtocolError(
                    "RESOURCE_EXHAUSTED", f"a name of {len(name)} characters; {self._limits.name_bytes} allowed"
                )

    def _check_total(self) -> None:
        total = sum(len(channel.names) for channel in self._order)
        if total > self._limits.names:
            raise ProtocolError("RESOURCE_EXHAUSTED", f"{total} names on one stream; {self._limits.names} allowed")

    def _channel(self, type_url: str) -> Channel:
        channel = self._channels.get(type_url)
        if channel is None:
            if len(self._channels) >= self._limits.types:
                raise ProtocolError(
                    "RESOURCE_EXHAUSTED", f"more than {self._limits.types} types on one stream; last was {type_url}"
                )
            channel = self._channels[type_url] = Channel(type_url)
            self._order = sorted(self._channels.values(), key=lambda c: (_RANK.get(c.type_url, _LAST), c.type_url))
        return channel

    def _query(self, type_url: str, nonce: str, names: Sequence[str]) -> list[Event]:
        if nonce and nonce == self._reply_nonce.get(type_url):
            return []  # the answer's ACK; istioctl never sends one, other clients do
        if len(self._replies) >= self._limits.queries:
            raise ProtocolError("RESOURCE_EXHAUSTED", f"more than {self._limits.queries} unread answers to {type_url}")
        return [Query(type_url, tuple(names))]

    # --- content ------------------------------------------------------------------------------------------------------

    def set_view(self, view: View) -> None:
        """What the client is to be served from now on. Cheap when nothing that it watches changed."""
        self._view = view
        for channel in self._order:
            if channel.started:
                channel.advance(view, self._diff)

    def _ready_view(self) -> View:
        if self._view is None:
            raise RuntimeError("set_view comes before requests are served: the node decides what a client may see")
        return self._view

    def answer(self, query: Query, resources: Sequence[tuple[str, bytes]]) -> None:
        """The answer to a :class:`Query`: (type URL of the Any, bytes of its value) pairs."""
        nonce = self._nonce()
        self._reply_nonce[query.type_url] = nonce
        self._replies.append(self._reply(query, nonce, resources))

    @abstractmethod
    def _reply(self, query: Query, nonce: str, resources: Sequence[tuple[str, bytes]]) -> Response: ...

    # --- out ----------------------------------------------------------------------------------------------------------

    def poll(self) -> Response | None:
        """The next message to write, or None when there is nothing to say now."""
        if self._replies:
            return self._replies.popleft()
        if self._view is None:
            return None
        for channel in self._order:
            if channel.pending or channel.answer_due:
                response = self._add(channel, self._view)
                if response is not None:
                    return response
        if not self.blocked:
            for channel in reversed(self._order):
                if channel.pending:
                    response = self._remove(channel, self._view)
                    if response is not None:
                        return response
            self._released = False
        return None

    @property
    def blocked(self) -> bool:
        """Removals wait for the client's answers; :meth:`release` ends the wait."""
        return (
            not self._released
            and any(channel.pending for channel in self._order)
            and any(channel.outstanding for channel in self._order)
        )

    def release(self) -> None:
        """The client had time enough: send removals although it has not answered."""
        self._released = True

    @abstractmethod
    def _add(self, channel: Channel, view: View) -> Response | None:
        """Say additions and changes of one type, and what was asked for and does not exist."""

    @abstractmethod
    def _remove(self, channel: Channel, view: View) -> Response | None:
        """Say what is gone."""

    def _nonce(self) -> str:
        self._sequence += 1
        return f"{self._stream_id}-{self._sequence}"

    def _fit(self, ready: list[tuple[str, Resource | None]], size: Callable[[Resource], int]) -> int:
        """How many of *ready* go into one response; at least one."""
        total = 0
        for count, (name, resource) in enumerate(ready):
            total += len(name) + 8 if resource is None else size(resource)
            if total > self._limits.response_bytes and count:
                return count
        return len(ready)

    def _clusters_said(self, resources: Iterable[Resource]) -> None:
        """A client that is told a cluster must hear its endpoints after it, even unchanged ones, or it warms for 15 s."""
        endpoints = self._channels.get(ENDPOINT)
        for resource in resources:
            for type_url, name in resource.needs:
                if type_url != ENDPOINT:
                    continue
                if endpoints is not None and endpoints.started:
                    endpoints.force(name)
                else:
                    self._endpoints_due[name] = None

    def _force_due_endpoints(self, channel: Channel) -> None:
        if channel.type_url == ENDPOINT:
            for name in self._endpoints_due:
                channel.force(name)
            self._endpoints_due.clear()

    # --- shown --------------------------------------------------------------------------------------------------------

    def status(self) -> list[TypeStatus]:
        """Where the client stands, by type in push order."""
        return [channel.status() for channel in self._order]

    def _answered(self, channel: Channel, request: Any) -> Event | None:
        """ACK or NACK of a response that this stream sent; only ``error_detail`` makes a NACK."""
        nonce = request.response_nonce
        if request.HasField("error_detail"):
            return channel.nack(nonce, request.error_detail.message, request.error_detail.code)
        if nonce in channel.outstanding:
            return Acked(channel.type_url, nonce, channel.ack(nonce))
        return None


class SotwSession(Session):
    """State of the world: ``DiscoveryRequest`` and ``DiscoveryResponse``."""

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
        again = not nonce and not first
        if first:
            channel.start(self._ready_view())
        if self._subscribe(channel, self._requested(request), answer_all=first or again):
            self._check_total()
            events.append(Subscribed(channel.type_url, channel.wildcard, len(channel.names), first))
        if first:
            self._force_due_endpoints(channel)
        return events

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
            for name, resource in ready:
                channel.settle(name, resource)
            response = self._full(channel, view, [name for name, _ in ready])
            if channel.type_url == CLUSTER:
                self._clusters_said(said)
            return response
        answers: list[tuple[str, Resource]] = []
        count = self._fit(ready, lambda resource: len(resource.in_sotw))
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
            body = channel.base.in_sotw + b"".join(resource.in_sotw for resource in (*outside, *held))
            count = len(channel.base) + len(outside) + len(held)
        else:
            found = {name: channel.find(name, view) for name in sorted(channel.names)}
            listed = [*(resource for resource in found.values() if resource is not None), *held]
            body = b"".join(resource.in_sotw for resource in {r.name: r for r in listed}.values())
            count = len(listed)
        return self._frame(channel, view, body, names, resources=count, removed=removed)

    def _response(
        self, channel: Channel, view: View, resources: Sequence[Resource], names: Iterable[str], *, removed: int
    ) -> Response:
        body = b"".join(resource.in_sotw for resource in {r.name: r for r in resources}.values())
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


class DeltaSession(Session):
    """Incremental: ``DeltaDiscoveryRequest`` and ``DeltaDiscoveryResponse``."""

    def _parse(self, data: bytes) -> Any:
        return envoy.DeltaDiscoveryRequest.FromString(data)

    def _requested(self, request: Any) -> Sequence[str]:
        return [name for name in request.resource_names_subscribe if name]

    def _take(self, channel: Channel, request: Any) -> list[Event]:
        first = not channel.started
        events: list[Event] = []
        if first:
            channel.start(self._ready_view())
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
        count = self._fit(ready, lambda resource: len(resource.in_delta))
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
            self._clusters_said(resources.values())
        return response

    def _remove(self, channel: Channel, view: View) -> Response | None:
        gone = channel.removals(view)
        if not gone:
            return None
        for name in gone:
            channel.settle(name, None)
        return self._frame(channel, (), gone, gone)

    def _frame(
        self, channel: Channel, resources: Iterable[Resource], names: Sequence[str], removed: Sequence[str]
    ) -> Response:
        nonce = self._nonce()
        version = channel.base.version
        channel.record_sent(nonce, version, names)
        bodies = [resource.in_delta for resource in resources]
        data = b"".join(
            (
                text(1, version),
                *bodies,
                text(4, channel.type_url),
                text(5, nonce),
                *(delimited(6, name.encode()) for name in removed),
            )
        )
        if self._control_plane:
            data += delimited(7, self._control_plane)
        return Response(data, channel.type_url, nonce, len(bodies), len(removed))

    def _reply(self, query: Query, nonce: str, resources: Sequence[tuple[str, bytes]]) -> Response:
        bodies = [
            delimited(2, text(3, kind) + text(1, "1") + delimited(2, text(1, kind) + delimited(2, value)))
            for kind, value in resources
        ]
        data = b"".join((*bodies, text(4, query.type_url), text(5, nonce)))
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


__all__ = ["DEFAULT_LIMITS", "FULL_STATE", "DeltaSession", "Limits", "Session", "SotwSession", "View", "placeholder"]
