"""A hand-driven ADS client over a real channel: requests and responses as messages, one at a time."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any, Self

import grpc

from underpass.api import envoy

_ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/"


class AdsStream:
    """One stream; a context manager. ``recv`` raises :class:`grpc.RpcError` when the server ends it."""

    def __init__(
        self,
        address: str,
        *,
        delta: bool = False,
        method: str = "",
        credentials: grpc.ChannelCredentials | None = None,
        token: str = "",
    ) -> None:
        self._delta = delta
        if credentials is None:
            self._channel = grpc.insecure_channel(address)
        else:
            self._channel = grpc.secure_channel(address, credentials)
        self._requests: queue.Queue[bytes | None] = queue.Queue()
        path = method or _ADS + ("DeltaAggregatedResources" if delta else "StreamAggregatedResources")
        stream: Any = self._channel.stream_stream(path)  # bytes both ways: the stubs want serializers
        self._call: Any = stream(
            iter(self._sending()), timeout=60, metadata=[("authorization", f"Bearer {token}")] if token else None
        )

    def _sending(self) -> Iterator[bytes]:
        while (item := self._requests.get()) is not None:
            yield item

    def send(self, message: Any) -> None:
        """Send a message, or bytes as they are."""
        self._requests.put(message if isinstance(message, bytes) else message.SerializeToString())

    def recv(self) -> Any:
        """The next response."""
        kind = envoy.DeltaDiscoveryResponse if self._delta else envoy.DiscoveryResponse
        return kind.FromString(next(self._call))

    def ack(self, response: Any, names: list[str] | None = None, error: str = "") -> None:
        """Accept (or refuse) a response."""
        if self._delta:
            request: Any = envoy.DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
        else:
            request = envoy.DiscoveryRequest(
                type_url=response.type_url,
                response_nonce=response.nonce,
                version_info=response.version_info,
                resource_names=names or [],
            )
        if error:
            request.error_detail.code = 3
            request.error_detail.message = error
        self.send(request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.put(None)
        self._call.cancel()
        self._channel.close()
