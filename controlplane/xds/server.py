"""gRPC around the sessions: aggregated and single-type discovery, both variants, on ``grpc.aio``.

Messages are bytes on this side (no serializers): a request is parsed once, by its session, and a response is assembled
from ready-made parts. One task per stream writes, with one write outstanding; what changes meanwhile waits in the
session as "pending", so a client that does not read costs one message of memory and holds nobody up.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import grpc
import structlog

from controlplane.identity.caller import Caller, plaintext
from controlplane.identity.gate import Refused
from controlplane.snapshot.state import diff as compare
from controlplane.snapshot.urls import (
    CLUSTER,
    ENDPOINT,
    EXTENSION,
    LISTENER,
    ROUTE,
    RUNTIME,
    SCOPED_ROUTE,
    SECRET,
    VIRTUAL_HOST,
    short,
)
from controlplane.xds.channel import Diff, View
from controlplane.xds.delta import DeltaSession
from controlplane.xds.events import Acked, Nacked, ProtocolError, Query, Stale
from controlplane.xds.metrics import XdsMetrics
from controlplane.xds.session import DEFAULT_LIMITS, Limits, Session
from controlplane.xds.sotw import SotwSession
from controlplane.xds.throttle import Throttle

_log = structlog.get_logger("controlplane.xds")

_ADS: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"
#: Service of one type -> (its type, name of its methods after Stream and Delta).
_SERVICES: Final[Mapping[str, tuple[str, str]]] = {
    "envoy.service.cluster.v3.ClusterDiscoveryService": (CLUSTER, "Clusters"),
    "envoy.service.endpoint.v3.EndpointDiscoveryService": (ENDPOINT, "Endpoints"),
    "envoy.service.listener.v3.ListenerDiscoveryService": (LISTENER, "Listeners"),
    "envoy.service.route.v3.RouteDiscoveryService": (ROUTE, "Routes"),
    "envoy.service.route.v3.ScopedRoutesDiscoveryService": (SCOPED_ROUTE, "ScopedRoutes"),
    "envoy.service.route.v3.VirtualHostDiscoveryService": (VIRTUAL_HOST, "VirtualHosts"),
    "envoy.service.secret.v3.SecretDiscoveryService": (SECRET, "Secrets"),
    "envoy.service.extension.v3.ExtensionConfigDiscoveryService": (EXTENSION, "ExtensionConfigs"),
    "envoy.service.runtime.v3.RuntimeDiscoveryService": (RUNTIME, "Runtime"),
}


def method_names() -> dict[str, tuple[str, ...]]:
    """Names of the methods of each discovery service; one that begins with ``Delta`` is incremental."""
    found: dict[str, tuple[str, ...]] = {_ADS: ("StreamAggregatedResources", "DeltaAggregatedResources")}
    for service, (type_url, suffix) in _SERVICES.items():
        # The service of virtual hosts is incremental only.
        found[service] = (f"Delta{suffix}",) if type_url == VIRTUAL_HOST else (f"Stream{suffix}", f"Delta{suffix}")
    return found


#: How long removals wait for a client's answers, seconds. An Envoy may be silent for its 15 s of cluster warming.
REMOVAL_GRACE: Final = 20.0

#: How long changes of routes wait for new clusters to be answered for, seconds.
WARMING_GRACE: Final = 5.0

#: gRPC's own defaults shed a reconnect storm of more than about a thousand streams; and a request may carry the
#: versions of every resource that a large client has.
CHANNEL_OPTIONS: Final[Sequence[tuple[str, int]]] = (
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
)


class NodeRefusedError(Exception):
    """A client may not be served: its node cannot be used, or is not its own. The message goes to the client.

    ``status`` is the name of the gRPC status.
    """

    def __init__(self, reason: str, status: str = "INVALID_ARGUMENT") -> None:
        super().__init__(reason)
        self.status = status


class Attachment(Protocol):
    """A client's tie to what it is served; ``close`` ends it."""

    @property
    def view(self) -> View:
        """What the client is served now."""

    @property
    def node_id(self) -> str:
        """Who the client is."""

    def close(self) -> None:
        """The client left."""


class Publisher(Protocol):
    """Decides what each client is served."""

    def attach(self, node: Any, notify: Callable[[View, float], None], caller: Caller) -> Attachment:
        """Admit a client by its ``Node`` message; ``notify`` is called with each later view and its birth time.

        ``caller`` is who says so. Raises :class:`NodeRefusedError`.
        """


Answer = Callable[["Connection", Query], Sequence[tuple[str, bytes]]]
Admit = Callable[[str, Sequence[tuple[str, "str | bytes"]]], Caller]
"""From gRPC's name of a peer and its metadata to who it is; raises :class:`Refused`."""


def _no_answer(_: Connection, __: Query) -> Sequence[tuple[str, bytes]]:
    return ()


@dataclass(slots=True)
class TypeTimes:
    """When things last happened to one type of one client, seconds since the epoch (0: never)."""

    sent: float = 0.0
    acked: float = 0.0
    nacked: float = 0.0


@dataclass(eq=False, slots=True)
class Connection:
    """One stream and its client, as the admin surface sees it too."""

    id: str
    caller: Caller
    delta: bool
    session: Session
    since: float
    node_id: str = ""
    attachment: Attachment | None = None
    times: dict[str, TypeTimes] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    #: Monotonic time of the oldest change that the client has not confirmed, None when there is none.
    unconfirmed_since: float | None = None
    release: asyncio.TimerHandle | None = None
    #: Large messages under way, by nonce: what :class:`Throttle` wants back.
    under_way: dict[str, tuple[asyncio.TimerHandle, int]] = field(default_factory=dict)

    @property
    def peer(self) -> str:
        """Where the client is, for people."""
        return self.caller.peer

    @property
    def node(self) -> Any:
        """The client's ``Node`` message, None before its first request."""
        return self.session.node

    @property
    def view(self) -> View | None:
        """What the client is served."""
        return None if self.attachment is None else self.attachment.view

    def time_of(self, type_url: str) -> TypeTimes:
        """The times of one type."""
        return self.times.setdefault(type_url, TypeTimes())


class XdsServer:
    """Discovery services over one publisher. ``register`` adds them to a gRPC server."""

    def __init__(
        self,
        publisher: Publisher,
        metrics: XdsMetrics,
        *,
        identifier: str = "",
        limits: Limits = DEFAULT_LIMITS,
        max_streams: int = 100_000,
        streams_per_caller: int = 100_000,
        admit: Admit = lambda peer, _: plaintext(peer),
        diff: Diff = compare,
        is_query: Callable[[str], bool] = lambda _: False,
        answer: Answer = _no_answer,
        removal_grace: float = REMOVAL_GRACE,
        on_nack: Callable[[Connection, Nacked], None] = lambda _, __: None,
        on_ack: Callable[[Connection, Acked], None] = lambda _, __: None,
    ) -> None:
        self._publisher = publisher
        self._metrics = metrics
        self._identifier = identifier
        self._limits = limits
        self._max_streams = max_streams
        self._streams_per_caller = streams_per_caller
        self._admit = admit
        self._streams_of: Counter[str] = Counter()
        self._diff = diff
        self._is_query = is_query
        self._answer = answer
        self._grace = removal_grace
        self._on_nack = on_nack
        self._on_ack = on_ack
        self._numbers = itertools.count(1)
        #: Distinguishes this process's nonces and connection ids from those of its predecessor.
        self._epoch = secrets.token_hex(3)
        self._closing = asyncio.Event()
        self._throttle = Throttle()
        self.connections: dict[str, Connection] = {}

    def register(self, server: grpc.aio.Server) -> None:
        """Serve on *server*; call before it starts."""
        server.add_generic_rpc_handlers(tuple(self._handlers()))

    def _handlers(self) -> list[grpc.GenericRpcHandler]:
        handlers = []
        for service, methods in method_names().items():
            type_url = _SERVICES[service][0] if service in _SERVICES else ""
            handlers.append(
                grpc.method_handlers_generic_handler(
                    service,
                    {
                        method: self._method(DeltaSession if method.startswith("Delta") else SotwSession, type_url)
                        for method in methods
                    },
                )
            )
        return handlers

    def _method(self, kind: type[Session], type_url: str) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def serve(_: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            await self._serve(kind, type_url, context)

        return grpc.stream_stream_rpc_method_handler(serve)

    async def close(self) -> None:
        """Tell every client to go elsewhere; the caller stops the gRPC server after it."""
        self._closing.set()
        for connection in self.connections.values():
            connection.wake.set()
        await asyncio.sleep(0)

    # --- one stream ---------------------------------------------------------------------------------------------------

    async def _serve(self, kind: type[Session], type_url: str, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        if self._closing.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the control plane is shutting down")
        if len(self.connections) >= self._max_streams:
            self._metrics.refused_streams.labels("streams").inc()
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._max_streams} streams are open already")
        caller = await self._admitted(context)
        number = next(self._numbers)
        stream_id = f"{self._epoch}-{number}"
        session = kind(
            stream_id,
            type_url=type_url,
            identifier=self._identifier,
            limits=self._limits,
            diff=self._diff,
            is_query=self._is_query,
        )
        connection = Connection(
            id=stream_id, caller=caller, delta=kind is DeltaSession, session=session, since=time.time()
        )
        self.connections[stream_id] = connection
        self._streams_of[caller.key] += 1
        self._metrics.connections.inc()
        tasks = [
            asyncio.ensure_future(self._read(connection, context)),
            asyncio.ensure_future(self._write(connection, context)),
        ]
        if caller.expires < math.inf:
            tasks.append(asyncio.ensure_future(_expire(caller.expires)))
        try:
            await self._run(tasks, connection, context)
        finally:
            for task in tasks:
                task.cancel()
            self._detach(connection)

    async def _admitted(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> Caller:
        """Who opens a stream; aborts one that may not."""
        try:
            caller = self._admit(context.peer(), tuple(context.invocation_metadata() or ()))
            if caller.limited and self._streams_of[caller.key] >= self._streams_per_caller:
                raise Refused("RESOURCE_EXHAUSTED", f"{caller.key} has {self._streams_per_caller} streams open already")
        except Refused as error:
            self._metrics.refused_streams.labels(error.status.lower()).inc()
            _log.warning("stream refused", peer=context.peer(), reason=str(error))
            await context.abort(getattr(grpc.StatusCode, error.status), str(error))
        return caller

    async def _run(
        self,
        tasks: Sequence[asyncio.Future[None]],
        connection: Connection,
        context: grpc.aio.ServicerContext[bytes, bytes],
    ) -> None:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            error = task.exception()
            if error is None:
                continue
            if isinstance(error, ProtocolError):
                self._metrics.refused_streams.labels(error.status.lower()).inc()
                _log.warning("stream refused", peer=connection.peer, node=connection.node_id, reason=str(error))
                await context.abort(getattr(grpc.StatusCode, error.status), str(error))
            if isinstance(error, grpc.aio.UsageError | grpc.aio.AbortError | grpc.RpcError):
                return  # the client went away while something was read or written
            raise error
        if self._closing.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the control plane is shutting down")

    def _detach(self, connection: Connection) -> None:
        self.connections.pop(connection.id, None)
        self._streams_of[connection.caller.key] -= 1
        if self._streams_of[connection.caller.key] <= 0:
            del self._streams_of[connection.caller.key]
        self._metrics.connections.dec()
        for nonce in list(connection.under_way):
            self._arrived(connection, nonce)
        if connection.release is not None:
            connection.release.cancel()
        if connection.attachment is not None:
            connection.attachment.close()
            for type_url in connection.times:
                self._metrics.recovered(type_url, connection.node_id)
            _log.debug("client left", node=connection.node_id, peer=connection.peer)

    async def _read(self, connection: Connection, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        session = connection.session
        while True:
            data = await _receive(context)
            if data is None:
                return
            events = session.receive(data)
            if connection.attachment is None:
                self._attach(connection)
            for event in events:
                self._note(connection, event)
            connection.wake.set()

    def _attach(self, connection: Connection) -> None:
        def notify(view: View, born: float) -> None:
            connection.session.set_view(view)
            if connection.unconfirmed_since is None:
                connection.unconfirmed_since = born
            connection.wake.set()

        try:
            connection.attachment = self._publisher.attach(connection.node, notify, connection.caller)
        except NodeRefusedError as error:
            raise ProtocolError(error.status, str(error)) from error
        connection.node_id = connection.attachment.node_id
        connection.session.set_view(connection.attachment.view)
        _log.debug("client connected", node=connection.node_id, peer=connection.peer, delta=connection.delta)

    def _note(self, connection: Connection, event: object) -> None:
        now = time.time()
        if isinstance(event, Acked):
            self._arrived(connection, event.nonce)
            connection.time_of(event.type_url).acked = now
            self._metrics.recovered(event.type_url, connection.node_id)
            self._on_ack(connection, event)
            self._confirm(connection)
        elif isinstance(event, Nacked):
            self._arrived(connection, event.nonce)
            connection.time_of(event.type_url).nacked = now
            self._metrics.rejected(event.type_url, connection.node_id)
            _log.warning(
                "client refused a response",
                node=connection.node_id,
                type=short(event.type_url),
                reason=event.message[:2000],
                resources=list(event.names[:10]),
                count=len(event.names),
            )
            self._on_nack(connection, event)
            self._confirm(connection)
        elif isinstance(event, Stale):
            self._metrics.stale(event.type_url)
        elif isinstance(event, Query):
            if not connection.caller.operator:
                raise ProtocolError(
                    "PERMISSION_DENIED", f"{event.type_url} is for operators: it tells of other clients"
                )
            connection.session.answer(event, self._answer(connection, event))

    def _arrived(self, connection: Connection, nonce: str) -> None:
        ticket = connection.under_way.pop(nonce, None)
        if ticket is not None:
            self._throttle.leave(*ticket)

    def _confirm(self, connection: Connection) -> None:
        if connection.unconfirmed_since is not None and connection.session.settled:
            self._metrics.convergence.observe(time.monotonic() - connection.unconfirmed_since)
            connection.unconfirmed_since = None

    async def _write(self, connection: Connection, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        session = connection.session
        while not self._closing.is_set():
            await connection.wake.wait()
            connection.wake.clear()
            while not self._closing.is_set():
                if not session.displacing:
                    await self._throttle.room()
                response = session.poll()
                if response is None:
                    break
                began = time.monotonic()
                # It counts until the client answers: gRPC says "written" when the message is in its own buffers. Who
                # has not answered the last one counts for nothing more: a client that never does holds others up once.
                ticket = None if connection.under_way else self._throttle.enter(len(response.data))
                if ticket is not None:
                    connection.under_way[response.nonce] = (ticket, len(response.data))
                await _send(context, response.data)
                self._metrics.send_time.observe(time.monotonic() - began)
                self._metrics.sent(response)
                connection.time_of(response.type_url).sent = time.time()
            self._arm_release(connection)

    def _arm_release(self, connection: Connection) -> None:
        """What waits for a client's answers does not wait for ever."""
        session = connection.session
        if session.blocked:
            if connection.release is None:
                grace = min(self._grace, WARMING_GRACE) if session.holding else self._grace
                connection.release = asyncio.get_running_loop().call_later(grace, self._release, connection)
        elif connection.release is not None:
            connection.release.cancel()
            connection.release = None

    @staticmethod
    def _release(connection: Connection) -> None:
        connection.release = None
        connection.session.release()
        connection.wake.set()


async def _expire(at: float) -> None:
    """End a stream when its credential ends; its client comes back with a fresh one."""
    await asyncio.sleep(max(0.0, at - time.time()))
    raise ProtocolError("UNAUTHENTICATED", "the credential of this stream has expired; connect again with a new one")


async def _receive(context: Any) -> bytes | None:
    data = await context.read()
    return None if data is grpc.aio.EOF else data


async def _send(context: Any, data: bytes) -> None:
    pending: Awaitable[None] = context.write(data)
    await pending
