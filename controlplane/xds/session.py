"""One xDS stream as a state machine, without I/O: requests in, events out; responses are pulled.

Both variants of the protocol, ADS and the services of a single type. The caller feeds what it read to ``receive``,
sets the client's ``view`` whenever it changes, and writes what ``poll`` gives, one message at a time; ``poll`` always
works from the newest view, so a slow client is told the latest content once and never a backlog.

Order (ADS): additions and changes in push order (CDS EDS LDS RDS ...), each type only when the ones before it are said;
then, when the client has answered or its grace is over (``release``), removals in reverse order. So a route never
points to a cluster that was taken away a moment before (make before break). Nor to one that is not usable yet: when new
clusters were said to a client that has routes, changes of its listeners and routes wait for the answer, which an Envoy
gives when the clusters are warm. The rules that this file holds are listed in ``docs/xds.md`` with the test for each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError

from controlplane.snapshot.resource import Resource, text
from controlplane.snapshot.state import diff as compare
from controlplane.snapshot.urls import CLUSTER, ENDPOINT, LISTENER, PUSH_ORDER, ROUTE, SCOPED_ROUTE, VIRTUAL_HOST
from controlplane.xds.channel import Channel, Diff, View
from controlplane.xds.events import Acked, Event, ProtocolError, Query, Response, TypeStatus

_RANK: Final = {type_url: rank for rank, type_url in enumerate(PUSH_ORDER)}
_LAST: Final = len(PUSH_ORDER)
#: Types that send traffic to clusters.
_REFERRING: Final = frozenset({LISTENER, ROUTE, SCOPED_ROUTE, VIRTUAL_HOST})


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
    node_bytes: int = 1 << 20
    queries: int = 64


DEFAULT_LIMITS: Final = Limits()


#: gRPC keeps a stream's last message until the next one is written. A message of so many bytes is followed by an empty
#: one, lest a thousand streams hold a route table each for as long as nothing changes.
KEPT_BYTES: Final = 64 << 10


def _no_queries(_: str) -> bool:
    return False


class Session(ABC):
    """A stream of either variant; see :mod:`controlplane.xds.sotw` and :mod:`controlplane.xds.delta`.

    ``stream_id`` makes nonces unique beyond the stream. ``type_url`` is given for a service of a single type.
    ``is_query`` tells types that are computed per request and answered once through :meth:`answer`.
    """

    #: Whether an answer to one response may stand for earlier ones too.
    _merges_answers = False

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
        #: Responses that brought clusters which the client did not have.
        self._fresh_clusters: dict[str, None] = {}
        #: Endpoints to say again because their cluster was said; kept for an EDS subscription that comes later.
        self._endpoints_due: dict[str, None] = {}
        #: The type of the last response, if nobody should keep that: see :data:`KEPT_BYTES`.
        self._kept: Channel | None = None
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
            if request.node.ByteSize() > self._limits.node_bytes:
                raise ProtocolError(
                    "RESOURCE_EXHAUSTED",
                    f"a node of {request.node.ByteSize()} bytes; {self._limits.node_bytes} allowed",
                )
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
        """What the client is to be served from now on. Cheap when nothing that it watches changed.

        Requests may come in before the first view is known (who asks decides it); they are answered then.
        """
        self._view = view
        for channel in self._order:
            if channel.started:
                channel.advance(view, self._diff)

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
        response = self._say(self._view) or self._displace()
        if response is not None:
            large = response.resources and len(response.data) >= KEPT_BYTES
            self._kept = self._channels[response.type_url] if large else None
        return response

    def _say(self, view: View) -> Response | None:
        """What there is to say about the view."""
        for channel in self._order:
            if channel.pending or channel.answer_due or channel.retry_due:
                if self._must_wait(channel):
                    continue
                response = self._add(channel, view)
                if response is not None:
                    self._released = False
                    return response
        if not self.blocked:
            for channel in reversed(self._order):
                if channel.pending:
                    response = self._remove(channel, view)
                    if response is not None:
                        self._released = True  # removals wait for additions, not for each other
                        return response
            self._released = False
        return None

    @property
    def displacing(self) -> bool:
        """A small message may follow at once, so that gRPC lets go of a large one."""
        return self._kept is not None

    def _displace(self) -> Response | None:
        """A response that says nothing, where the last one is large and such a response is harmless."""
        channel, self._kept = self._kept, None
        return None if channel is None else self._nothing(channel)

    def _nothing(self, channel: Channel) -> Response | None:
        """A response about no resource; None where that would mean something."""
        return None

    def _must_wait(self, channel: Channel) -> bool:
        """Whether a type refers to clusters that may not be usable yet. A client without routes has no such traffic."""
        return channel.type_url in _REFERRING and bool(channel.acked_nonce) and self._warming()

    def _warming(self) -> bool:
        if self._fresh_clusters:
            outstanding = self._channels[CLUSTER].outstanding
            self._fresh_clusters = {nonce: None for nonce in self._fresh_clusters if nonce in outstanding}
        return bool(self._fresh_clusters)

    @property
    def holding(self) -> bool:
        """Changes of listeners or routes wait for new clusters; :meth:`release` ends the wait."""
        return any(channel.pending and self._must_wait(channel) for channel in self._order)

    @property
    def blocked(self) -> bool:
        """Something waits for the client's answers, removals at least; :meth:`release` ends the wait."""
        return (
            not self._released
            and any(channel.pending for channel in self._order)
            and any(channel.outstanding for channel in self._order)
        )

    @property
    def settled(self) -> bool:
        """Everything was said and answered."""
        return not any(channel.pending or channel.outstanding for channel in self._order)

    def release(self) -> None:
        """The client had time enough: go on although it has not answered, first with changes, then with removals."""
        if self.holding:
            self._fresh_clusters.clear()
        else:
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

    def _clusters_said(self, resources: Iterable[Resource], nonce: str, *, fresh: bool) -> None:
        """A client that is told a cluster must hear its endpoints after it, even unchanged ones.

        An Envoy whose cluster changed waits for them for 15 seconds, and answers no other cluster update meanwhile.
        """
        if fresh:
            self._fresh_clusters[nonce] = None
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

    def watched(self, type_url: str) -> frozenset[str] | None:
        """The names of a type that the client watches; None for all of them."""
        channel = self._channels.get(type_url)
        if channel is None:
            return frozenset()
        return None if channel.wildcard else frozenset(channel.names)

    def _answered(self, channel: Channel, request: Any) -> Event | None:
        """ACK or NACK of a response that this stream sent; only ``error_detail`` makes a NACK."""
        nonce = request.response_nonce
        if request.HasField("error_detail"):
            detail = request.error_detail
            return channel.nack(nonce, detail.message, detail.code, earlier=self._merges_answers)
        if nonce in channel.outstanding:
            return Acked(channel.type_url, nonce, channel.ack(nonce))
        return None
