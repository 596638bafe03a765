"""The gRPC client under the session: one channel, one delta ADS stream per view, reconnect with back-off.

Everything that decides is in `session`; this file moves messages. A stream runs three things: it sends what the
session asks for, one write at a time; it hands each update to `on_update`; and when it breaks it comes back after a
capped exponential pause with jitter, which starts anew once a stream has brought a response.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
import structlog
import tenacity

from nodeagent.xds.session import INVALID_ARGUMENT, Request, Resource, Response, Session, Update
from nodeagent.xds.views import View
from underpass.api import envoy

METHOD: Final = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
#: A view of a large mesh does not fit into gRPC's default of 4 MiB; ztunnel accepts as much.
MAX_MESSAGE: Final = 200 << 20
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 3.0

_log = structlog.get_logger("xds")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pause between attempts: random up to `first * 2**n` seconds, at most `longest`."""

    first: float = FIRST_PAUSE_S
    longest: float = LONGEST_PAUSE_S


class StreamEnded(Exception):
    """The server closed a stream without an error, as it does when it drains."""


OnUpdate = Callable[["ViewStream", Update], Awaitable[None]]
OnState = Callable[["ViewStream"], None]


def open_channel(target: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    """A channel to a control plane, plaintext without `credentials`."""
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.max_send_message_length", MAX_MESSAGE),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # gRPC's own reconnect must not wait longer than ours, or ours waits for nothing.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", int(LONGEST_PAUSE_S * 1000)),
    ]
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, credentials, options=options)


class ViewStream:
    """One view's stream, run by `run` until it is cancelled. All methods belong to the event loop's thread."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        view: View,
        on_update: OnUpdate,
        on_state: OnState = lambda _stream: None,
        backoff: Backoff | None = None,
    ) -> None:
        self.view = view
        self.session = Session()
        #: why the stream is not up, in words; empty while it is
        self.trouble = "not connected yet"
        self._call: Any = channel.stream_stream(
            METHOD,
            request_serializer=lambda message: bytes(message.SerializeToString()),
            response_deserializer=envoy.DeltaDiscoveryResponse.FromString,
        )
        self._on_update = on_update
        self._on_state = on_state
        self._backoff = backoff or Backoff()
        self._outgoing: asyncio.Queue[Request] = asyncio.Queue()

    def want(self, type_url: str, names: Iterable[str]) -> None:
        """Subscribe to exactly `names`; see `Session.want`."""
        self._send(self.session.want(type_url, names))

    def applied(self, update: Update, refused: dict[str, str]) -> None:
        """Confirm an update after it was applied; `refused` names what was not."""
        self._send(self.session.applied(update, refused))

    async def run(self) -> None:
        """Keep the stream up for ever. Ends only by cancellation."""
        wait = tenacity.wait_random_exponential(multiplier=self._backoff.first, max=self._backoff.longest)
        while True:
            # An attempt that brought a response ends this loop without an error: the next failure starts at a
            # short pause again.
            async for attempt in tenacity.AsyncRetrying(wait=wait, retry=tenacity.retry_if_exception_type(_RETRY)):
                with attempt:
                    await self._attempt()
            # A server that answers and hangs up at once must not be asked in a tight loop, nor by all views at once.
            await asyncio.sleep(random.uniform(0.5, 1.0) * self._backoff.first)

    async def _attempt(self) -> None:
        before = self._responses()
        try:
            await self._stream()
            raise StreamEnded("the control plane closed the stream")
        except _RETRY as error:
            words = _words(error)
            # The first failure, and every other kind of failure, is worth a line; repetitions are not.
            level = _log.debug if words == self.trouble else _log.warning
            level("xds stream lost", view=self.view.key, reason=words)
            self.trouble = words
            if self._responses() == before:
                raise
        finally:
            self.session.close()
            self._outgoing = asyncio.Queue()
            self._on_state(self)

    async def _stream(self) -> None:
        call = self._call(wait_for_ready=False)
        try:
            self._outgoing = asyncio.Queue()
            self._send(self.session.open())
            writer = asyncio.create_task(self._write(call, self._outgoing))
            try:
                async for message in _responses(call):
                    if self.trouble:
                        self.trouble = ""
                        _log.info("xds stream up", view=self.view.key, node=self.view.id)
                        self._on_state(self)
                    update, answers = self.session.receive(decode_response(message))
                    self._send(answers)
                    if update is not None:
                        await self._on_update(self, update)
            finally:
                writer.cancel()
                with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await writer
        finally:
            call.cancel()

    async def _write(self, call: Any, queue: asyncio.Queue[Request]) -> None:
        first = True
        while True:
            request = await queue.get()
            await call.write(encode_request(request, self.view if first else None))
            first = False

    def _send(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self._outgoing.put_nowait(request)

    def _responses(self) -> int:
        return sum(status.responses for status in self.session.status())


_RETRY = (grpc.aio.AioRpcError, grpc.aio.UsageError, StreamEnded, asyncio.InvalidStateError, OSError)


async def _responses(call: Any) -> AsyncIterator[Any]:
    while True:
        message = await call.read()
        if message is grpc.aio.EOF:
            code = await call.code()
            if code is not grpc.StatusCode.OK:
                raise StreamEnded(f"{code.name}: {await call.details()}")
            return
        yield message


def _words(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__


def decode_response(message: Any) -> Response:
    """A protobuf `DeltaDiscoveryResponse` as plain data."""
    resources = tuple(
        Resource(r.name, r.version, r.resource.type_url, r.resource.value if r.HasField("resource") else None)
        for r in message.resources
    )
    return Response(
        message.type_url, message.nonce, resources, tuple(message.removed_resources), message.system_version_info
    )


def encode_request(request: Request, view: View | None) -> Any:
    """Plain data as a protobuf `DeltaDiscoveryRequest`; `view` is given for the first message of a stream only."""
    message = envoy.DeltaDiscoveryRequest()
    if view is not None:
        message.node.id = view.id
        message.node.cluster = f"{view.owner}.{view.namespace}"
        message.node.metadata.update(view.metadata())
        message.node.user_agent_name = "underpass-agent"
    message.type_url = request.type_url
    message.resource_names_subscribe.extend(request.subscribe)
    message.resource_names_unsubscribe.extend(request.unsubscribe)
    for name, version in request.initial_versions:
        message.initial_resource_versions[name] = version
    message.response_nonce = request.nonce
    if request.error is not None:
        message.error_detail.code = INVALID_ARGUMENT
        message.error_detail.message = request.error
    return message
