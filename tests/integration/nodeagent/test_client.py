"""The agent's gRPC client against a scripted server: node once, answers after applying, reconnects that tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import grpc.aio

from nodeagent.cache.store import Decoder
from nodeagent.xds.client import METHOD, Backoff, ViewStream, open_channel
from nodeagent.xds.live import LiveView
from nodeagent.xds.session import CDS, EDS, LDS, RDS, Update
from nodeagent.xds.views import View
from tests.support.resources import body
from underpass.api import envoy

VIEW = View(
    "k", "sidecar~10.0.0.1~a.b~b.svc.cluster.local", "b", "sa", (("app", "a"),), "a", ("10.0.0.1",), "n", "c", "a"
)


class Server:
    """A delta ADS server that does what the test says; one queue of requests and one of responses per stream."""

    def __init__(self) -> None:
        self.streams: asyncio.Queue[Stream] = asyncio.Queue()
        self._server = grpc.aio.server()
        service, _, method = METHOD.strip("/").partition("/")
        handler: Any = grpc.stream_stream_rpc_method_handler(
            self._serve,
            request_deserializer=envoy.DeltaDiscoveryRequest.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    async def _serve(self, requests: AsyncIterator[Any], context: Any) -> None:
        stream = Stream(context)
        self.streams.put_nowait(stream)

        async def read() -> None:
            async for request in requests:
                stream.requests.put_nowait(request)

        reader = asyncio.create_task(read())
        try:
            await stream.over.wait()
        finally:
            reader.cancel()
        if stream.code is not None:
            await context.abort(stream.code, "by the script")

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def stream(self) -> Stream:
        async with asyncio.timeout(10):
            return await self.streams.get()


class Stream:
    """One stream at the server."""

    def __init__(self, context: Any) -> None:
        self.requests: asyncio.Queue[Any] = asyncio.Queue()
        self.over = asyncio.Event()
        self.code: grpc.StatusCode | None = None
        self._context = context

    async def request(self, url: str) -> Any:
        """The next request, which must be of that type."""
        async with asyncio.timeout(10):
            request = await self.requests.get()
        assert request.type_url == url, request
        return request

    async def send(
        self, url: str, nonce: str, *resources: tuple[str, str, bytes], removed: tuple[str, ...] = ()
    ) -> None:
        message = envoy.DeltaDiscoveryResponse(type_url=url, nonce=nonce, removed_resources=removed)
        for name, version, data in resources:
            item = message.resources.add(name=name, version=version)
            item.resource.type_url, item.resource.value = url, data
        await self._context.write(message)

    def end(self, code: grpc.StatusCode | None = None) -> None:
        self.code = code
        self.over.set()


class Client:
    """A view as the agent runs it, that applies at once."""

    def __init__(self, port: int, backoff: Backoff) -> None:
        self.live = LiveView.of(VIEW, Decoder())
        self.channel = open_channel(f"127.0.0.1:{port}")
        self.states: list[str] = []
        self.stream = self.live.stream = ViewStream(
            self.channel, VIEW, self._update, lambda stream: self.states.append(stream.trouble), backoff
        )
        self.task = asyncio.create_task(self.stream.run())

    async def _update(self, stream: ViewStream, update: Update) -> None:
        self.live.take(update)
        for received in self.live.waiting:
            stream.applied(received.update, received.refused)
        self.live.waiting = []

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.channel.close()


def played(script: Callable[[Server, Client], Coroutine[Any, Any, None]]) -> None:
    """Run a script against a fresh server and client."""

    async def run() -> None:
        server = Server()
        await server.start()
        client = Client(server.port, Backoff(0.01, 0.1))
        try:
            async with asyncio.timeout(30):
                await script(server, client)
        finally:
            await client.stop()
            await server.stop()

    asyncio.run(run())


CLUSTER = body("clusters", {"name": "a", "type": "EDS"})
BROKEN = body("clusters", {"name": "b", "type": "EDS", "load_assignment": {"cluster_name": "b"}})
ENDS = body("endpoints", {"cluster_name": "a"})


async def _opened(stream: Stream) -> None:
    first = await stream.request(CDS)
    assert first.node.id == VIEW.id
    assert first.node.metadata["LABELS"]["app"] == "a"
    second = await stream.request(LDS)
    assert not second.HasField("node"), "the node goes with the first message only"


def test_a_conversation() -> None:
    async def script(server: Server, client: Client) -> None:
        stream = await server.stream()
        await _opened(stream)
        await stream.send(CDS, "n1", ("a", "1", CLUSTER), ("b", "1", BROKEN))
        # what the clusters refer to is asked for first, then the refusal of the one that is bad
        wanted = await stream.request(EDS)
        assert list(wanted.resource_names_subscribe) == ["a"]
        nack = await stream.request(CDS)
        assert nack.response_nonce == "n1"
        assert nack.error_detail.message == "b: an EDS cluster carries its own load_assignment"
        assert set(client.live.cache.resources().clusters) == {"a"}
        await stream.send(EDS, "n2", ("a", "7", ENDS))
        ack = await stream.request(EDS)
        assert (ack.response_nonce, ack.HasField("error_detail")) == ("n2", False)
        await stream.send(LDS, "n3")
        await stream.request(LDS)
        assert client.live.ready
        assert client.stream.trouble == ""
        # a type that nobody asked for
        await stream.send("type.googleapis.com/x.Y", "n4", ("z", "1", b""))
        assert "not subscribed" in (await stream.request("type.googleapis.com/x.Y")).error_detail.message

    played(script)


def test_a_broken_stream_comes_back_and_says_what_it_holds() -> None:
    async def script(server: Server, client: Client) -> None:
        stream = await server.stream()
        await _opened(stream)
        await stream.send(CDS, "n1", ("a", "1", CLUSTER))
        await stream.request(EDS)
        await stream.request(CDS)
        for code in (grpc.StatusCode.UNAVAILABLE, None):
            stream.end(code)
            stream = await server.stream()
            first = await stream.request(CDS)
            assert first.node.id == VIEW.id
            assert dict(first.initial_resource_versions) == {"a": "1"}
            again = await stream.request(EDS)
            assert list(again.resource_names_subscribe) == ["a"]
            assert (await stream.request(LDS)).resource_names_subscribe == []
        await stream.send(CDS, "n1", removed=("a",))
        gone = await stream.request(EDS)
        assert list(gone.resource_names_unsubscribe) == ["a"]
        assert client.live.cache.resources().clusters == {}
        assert any("by the script" in state for state in client.states)

    played(script)


def test_a_server_that_is_not_there_is_tried_again_for_ever() -> None:
    async def run() -> None:
        server = Server()
        client = Client(server.port, Backoff(0.01, 0.05))
        try:
            await asyncio.sleep(0.5)
            assert "UNAVAILABLE" in client.stream.trouble
            await server.start()
            await _opened(await server.stream())
        finally:
            await client.stop()
            await server.stop()

    asyncio.run(run())


def test_what_breaks_off_in_the_middle_of_applying_is_not_confirmed_to_the_next_stream() -> None:
    async def script(server: Server, client: Client) -> None:
        stream = await server.stream()
        await _opened(stream)
        held: asyncio.Queue[Update] = asyncio.Queue()

        async def hold(_: ViewStream, update: Update) -> None:
            held.put_nowait(update)

        client.stream._on_update = hold
        await stream.send(CDS, "n1", ("a", "1", CLUSTER))
        late = await held.get()
        stream.end()
        stream = await server.stream()
        assert dict((await stream.request(CDS)).initial_resource_versions) == {}
        client.stream.applied(late, {})
        await stream.request(LDS)
        await asyncio.sleep(0.1)
        assert stream.requests.empty()

    played(script)


def test_route_names_come_from_listeners() -> None:
    manager = {
        "@type": envoy.type_url("HttpConnectionManager"),
        "stat_prefix": "x",
        "rds": {"route_config_name": "80", "config_source": {"ads": {}}},
    }
    listener = {
        "name": "l",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": 80}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }

    async def script(server: Server, client: Client) -> None:
        stream = await server.stream()
        await _opened(stream)
        await stream.send(LDS, "n1", ("l", "1", body("listeners", listener)))
        assert list((await stream.request(RDS)).resource_names_subscribe) == ["80"]
        await stream.request(LDS)
        assert client.live.missing() == ["first answer for Cluster", "80"]

    played(script)
