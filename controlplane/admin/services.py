"""gRPC services beside discovery: health checking, reflection, and CSDS: "where does each client stand?"."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from controlplane.admin import dump
from controlplane.admin.reflection import Method, Reflection
from controlplane.identity.caller import plaintext
from controlplane.identity.gate import Refused
from controlplane.snapshot.resource import varint
from controlplane.xds.server import Admit, Connection, method_names
from underpass.api import envoy

HEALTH: Final = "grpc.health.v1.Health"
CSDS: Final = "envoy.service.status.v3.ClientStatusDiscoveryService"

#: ``HealthCheckResponse.ServingStatus``.
_SERVING, _NOT_SERVING, _SERVICE_UNKNOWN = 1, 2, 3
#: How often a health watch looks whether its answer changed, seconds.
_WATCH_PERIOD: Final = 0.5

_Context = grpc.aio.ServicerContext[bytes, bytes]


def _status(value: int) -> bytes:
    """``HealthCheckResponse{status = value}``: its only field, a varint."""
    return b"\x08" + varint(value)


def _service(request: bytes) -> str:
    """``HealthCheckRequest.service``, its only field; raises :class:`ValueError` for anything else."""
    if not request:
        return ""
    # The whole message is tag 0x0a, a length and that many bytes; names are far below 128 bytes.
    if len(request) < 2 or request[0] != 0x0A or request[1] != len(request) - 2:
        raise ValueError("not a HealthCheckRequest")
    return request[2:].decode()


def _served() -> dict[str, list[Method]]:
    """The methods of all services whose messages are Envoy's."""
    at = "envoy.service.discovery.v3."
    found: dict[str, list[Method]] = {}
    for service, methods in method_names().items():
        found[service] = [
            (name, f"{at}{kind}DiscoveryRequest", f"{at}{kind}DiscoveryResponse", True, True)
            for name in methods
            for kind in ("Delta" if name.startswith("Delta") else "",)
        ]
    at = "envoy.service.status.v3.ClientStatus"
    ends = (f"{at}Request", f"{at}Response")
    found[CSDS] = [("StreamClientStatus", *ends, True, True), ("FetchClientStatus", *ends, False, False)]
    return found


class Services:
    """Health, reflection and CSDS over one control plane."""

    def __init__(
        self,
        clients: Callable[[], Iterable[Connection]],
        ready: Callable[[], bool],
        admit: Admit = lambda peer, _: plaintext(peer),
    ) -> None:
        self._clients = clients
        self._ready = ready
        self._admit = admit
        self._reflection = Reflection(_served())
        self._names = {"", *self._reflection.services}

    def register(self, server: grpc.aio.Server) -> None:
        """Serve on *server*; call before it starts."""
        self._reflection.register(server)
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    HEALTH, {"Check": unary(self._check), "Watch": stream(self._watch)}
                ),
                grpc.method_handlers_generic_handler(
                    CSDS,
                    {
                        "FetchClientStatus": unary(self._fetch),
                        "StreamClientStatus": grpc.stream_stream_rpc_method_handler(self._stream),
                    },
                ),
            )
        )

    # --- health -------------------------------------------------------------------------------------------------------

    def _health(self, service: str) -> int:
        if service not in self._names:
            return _SERVICE_UNKNOWN
        return _SERVING if self._ready() else _NOT_SERVING

    async def _asked(self, request: bytes, context: _Context) -> str:
        try:
            return _service(request)
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    async def _check(self, request: bytes, context: _Context) -> bytes:
        service = await self._asked(request, context)
        status = self._health(service)
        if status == _SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {service}")
        return _status(status)

    async def _watch(self, request: bytes, context: _Context) -> AsyncIterator[bytes]:
        service = await self._asked(request, context)
        last = 0
        while True:
            status = self._health(service)
            if status != last:
                last = status
                yield _status(status)
            await asyncio.sleep(_WATCH_PERIOD)

    # --- CSDS ---------------------------------------------------------------------------------------------------------

    def _answer(self, data: bytes) -> bytes:
        request = envoy.ClientStatusRequest.FromString(data)
        reply = envoy.ClientStatusResponse()
        for connection in self._clients():
            if _wanted(connection, request):
                reply.config.append(dump.resources(connection, contents=not request.exclude_resource_contents))
        return reply.SerializeToString()

    async def _check_operator(self, context: _Context) -> None:
        """What other clients have is nobody's business but an operator's."""
        try:
            caller = self._admit(context.peer(), tuple(context.invocation_metadata() or ()))
        except Refused as error:
            await context.abort(getattr(grpc.StatusCode, error.status), str(error))
        if not caller.operator:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{CSDS} is for operators: it tells of all clients")

    async def _fetch(self, request: bytes, context: _Context) -> bytes:
        await self._check_operator(context)
        return await self._parsed(request, context)

    async def _stream(self, requests: AsyncIterator[bytes], context: _Context) -> AsyncIterator[bytes]:
        await self._check_operator(context)
        async for request in requests:
            yield await self._parsed(request, context)

    async def _parsed(self, request: bytes, context: _Context) -> bytes:
        try:
            return self._answer(request)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a ClientStatusRequest")


def _wanted(connection: Connection, request: Any) -> bool:
    """Whether a CSDS request asks for this client: by exact node id in a matcher, or all when it has none."""
    if not request.node_matchers:
        return True
    return any(
        matcher.node_id.WhichOneof("match_pattern") == "exact" and matcher.node_id.exact == connection.node_id
        for matcher in request.node_matchers
    )
