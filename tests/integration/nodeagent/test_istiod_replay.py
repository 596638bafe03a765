"""Our agent under a stock istiod: a delta server replays what a genuine one served, the agent's own stream takes it.

The road is the agent's: gRPC client, session, cache, compiler, plan, reconciler, over maps in memory.  Every recorded
resource is accepted; what is not for the kernel is a rejection with a reason, and these are all listed here.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import grpc.aio
import pytest
import yaml

from nodeagent.bpf.abc import Map
from nodeagent.bpf.fake import FakeKernel
from nodeagent.cache.store import Decoder, Resources, ViewCache
from nodeagent.intent.compile import Compiler
from nodeagent.intent.dump import lines
from nodeagent.intent.model import NOT_ENFORCED, Intent
from nodeagent.plan import Observed, apply, drift, plan
from nodeagent.reconcile import Reconciler
from nodeagent.xds.client import METHOD, Backoff, ViewStream, open_channel
from nodeagent.xds.live import LiveView
from nodeagent.xds.session import CDS, EDS, LDS, RDS, Update
from nodeagent.xds.views import View
from tests.support import istiod, tiers
from tests.support.node_maps import node_maps
from tests.support.resources import Body, Load, from_istiod
from underpass.api import envoy

pytestmark = [pytest.mark.needs("shared"), pytest.mark.timeout(60)]

_HOME = "its requests go to the home peer"
#: What a sidecar may not be told from, in every case: addresses that no service has.
_ANYWHERE = ("route", "allow_any /*", "original-destination", _HOME)


def _route(service: str, match: str, reason: str) -> tuple[str, str, str, str]:
    return ("route", f"{service}.default.svc.cluster.local:9080 {match}", reason, _HOME)


#: All that is neither for the kernel nor for home, by case and client: kind, name, reason, effect.
NOT_FOR_THE_KERNEL: dict[tuple[str, str], set[tuple[str, str, str, str]]] = {
    ("bookinfo", "sidecar"): {_ANYWHERE},
    ("bookinfo", "server"): {_ANYWHERE},
    ("all-v1", "sidecar"): {_ANYWHERE},
    ("gateway", "router"): set(),
    ("mtls-dr", "sidecar"): {
        _ANYWHERE,
        *(_route(name, "/*", "upstream-tls") for name in ("details", "productpage", "ratings", "reviews")),
    },
    # faults are home's: left to it, and refused by nobody
    ("ratings-abort", "sidecar"): {_ANYWHERE},
    ("ratings-delay", "sidecar"): {_ANYWHERE},
    ("reviews-80-20", "sidecar"): {_ANYWHERE},
    ("reviews-jason", "sidecar"): {_ANYWHERE},
}


class Replay:
    """A delta ADS server with istiod's manners: endpoints follow the first clusters, removals come with the changes.

    ``show`` puts other resources into force; whoever is connected is told the difference.
    """

    def __init__(self) -> None:
        self.refusals: list[str] = []
        self.node: Any = None
        self._held: Mapping[str, Mapping[str, Any]] = {}
        self._streams: set[_Conversation] = set()
        self._server = grpc.aio.server()
        service, _, method = METHOD.strip("/").partition("/")
        handler: Any = grpc.stream_stream_rpc_method_handler(
            self._serve,
            request_deserializer=envoy.DeltaDiscoveryRequest.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def show(self, resources: Mapping[str, Mapping[str, Any]]) -> None:
        self._held = resources
        for stream in self._streams:
            await stream.push(resources)

    def answered(self) -> bool:
        """Whether everything that was said was accepted or refused."""
        return not any(stream.open for stream in self._streams)

    async def _serve(self, requests: AsyncIterator[Any], context: Any) -> None:
        stream = _Conversation(context)
        self._streams.add(stream)
        try:
            async for request in requests:
                if request.HasField("node"):
                    self.node = request.node
                if request.HasField("error_detail"):
                    self.refusals.append(f"{request.type_url}: {request.error_detail.message}")
                await stream.take(request, self._held)
        finally:
            self._streams.discard(stream)


class _Conversation:
    """What one stream subscribed to and was told."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._names: dict[str, set[str]] = {}
        self._told: dict[str, dict[str, str]] = {}
        self._nonce = 0
        self.open: set[str] = set()

    async def take(self, request: Any, held: Mapping[str, Mapping[str, Any]]) -> None:
        url = request.type_url
        self.open.discard(request.response_nonce)
        first = url not in self._names
        names = self._names.setdefault(url, set())
        names |= set(request.resource_names_subscribe)
        names -= set(request.resource_names_unsubscribe)
        for name in request.resource_names_unsubscribe:
            self._told.get(url, {}).pop(name, None)
        if first or request.resource_names_subscribe:
            await self._tell(url, held, also=set(request.resource_names_subscribe))
        if first and url == CDS and EDS in self._names:
            await self._tell(EDS, held, also=self._names[EDS])

    async def push(self, held: Mapping[str, Mapping[str, Any]]) -> None:
        for url in (CDS, EDS, LDS, RDS):
            if url in self._names:
                await self._tell(url, held)

    async def _tell(self, url: str, held: Mapping[str, Mapping[str, Any]], also: set[str] | None = None) -> None:
        told = self._told.setdefault(url, {})
        wanted = set(held[url]) if url in (CDS, LDS) else self._names[url]
        message = envoy.DeltaDiscoveryResponse(type_url=url)
        for name in sorted(wanted):
            found = held[url].get(name)
            if found is None:
                if name in told or (also and name in also):
                    message.removed_resources.append(name)
                    told.pop(name, None)
                continue
            packed = envoy.pack_any(found)
            version = hashlib.sha256(packed.value).hexdigest()[:16]
            if told.get(name) != version or (also and name in also):
                told[name] = version
                message.resources.add(name=name, version=version, resource=packed)
        for name in sorted(set(told) - wanted):
            message.removed_resources.append(name)
            del told[name]
        if message.resources or message.removed_resources or also is not None:
            self._nonce += 1
            message.nonce = f"{url.rpartition('.')[2]}-{self._nonce}"
            self.open.add(message.nonce)
            await self._context.write(message)


class Agent:
    """One view as the agent runs it, over maps in memory."""

    def __init__(self, port: int, view: View) -> None:
        self.view = view
        self.live = LiveView.of(view, Decoder())
        self.refused: dict[str, str] = {}
        self.intent = Intent({})
        self._kernel = FakeKernel()
        self._maps: dict[str, Map] = node_maps(self._kernel)
        self._reconciler = Reconciler(self._kernel, self._maps)
        self._compiler = Compiler()
        self._observed = Observed()
        self._channel = open_channel(f"127.0.0.1:{port}")
        self._stream = self.live.stream = ViewStream(self._channel, view, self._update, backoff=Backoff(0.01, 0.1))
        self._task = asyncio.create_task(self._stream.run())

    async def _update(self, stream: ViewStream, update: Update) -> None:
        self.live.take(update)
        waiting, self.live.waiting = self.live.waiting, []
        if self.live.ready:
            self._apply()
        for received in waiting:
            self.refused |= received.refused
            stream.applied(received.update, received.refused)

    def _apply(self) -> None:
        load = Load(f"{self.view.namespace}/{self.view.name}", self.view.ips)
        views = {self.view.key: self.live.snapshot()}
        self.intent = self._compiler.compile(views, [(load, self.view.key)], self._observed.known())
        steps = plan(self._observed, self.intent)
        self._reconciler.execute(steps)
        apply(self._observed, steps)

    def settled(self) -> bool:
        """The maps hold what the plan says, and nothing is left to do."""
        real = self._reconciler.observe()
        return drift(self._observed, real) == 0 and plan(real, self.intent) == []

    async def holds(self, resources: Resources, server: Replay) -> None:
        """Wait until these resources, and no others, are complete and in the maps, and the server has every answer."""
        async with asyncio.timeout(15):
            while True:
                if self._task.done():
                    self._task.result()  # an exception in the agent is this test's failure
                complete = self.live.ready and not self.live.warming() and not self.live.missing()
                if complete and self.live.cache.resources() == resources and server.answered():
                    return
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._channel.close()


def _view(node_id: str) -> View:
    _, ip, name, domain = node_id.split("~")
    space = domain.partition(".")[0]
    return View("view", node_id, space, "", (), name.removesuffix(f".{space}"), (ip,), "node-1", "Kubernetes", name)


def _not_for_the_kernel(intent: Intent) -> set[tuple[str, str, str, str]]:
    return {(item.kind, item.name, item.reason, item.effect) for item in intent.rejections}


@pytest.mark.parametrize(("case", "client"), istiod.PAIRS)
def test_a_stock_istiods_resources_are_compiled(case: str, client: str) -> None:
    served = istiod.golden(case, client)

    async def run() -> None:
        server = Replay()
        await server.show(served.resources)
        await server.start()
        agent = Agent(server.port, _view(served.node))
        try:
            await agent.holds(from_istiod(istiod.directory(case, client)), server)
            assert (server.refusals, agent.refused) == ([], {})
            assert server.node.id == served.node
            assert _not_for_the_kernel(agent.intent) == NOT_FOR_THE_KERNEL[case, client]
            assert agent.settled()
            assert sum(line.startswith("vhost ") for line in lines(agent.intent)) > 0
        finally:
            await agent.stop()
            await server.stop()

    asyncio.run(run())


def test_one_stream_lives_through_all_of_them() -> None:
    """An operator's afternoon: rules come, change and go, and one agent ends each time where a fresh one would."""
    sidecars = [(case, client) for case, client in istiod.PAIRS if client == "sidecar"]
    journey = [*sidecars, sidecars[0]]

    async def run() -> None:
        server = Replay()
        first = istiod.golden(*journey[0])
        await server.show(first.resources)
        await server.start()
        agent = Agent(server.port, _view(first.node))
        try:
            await agent.holds(from_istiod(istiod.directory(*journey[0])), server)
            for pair in journey[1:]:
                served = istiod.golden(*pair)
                assert served.node == first.node
                await server.show(served.resources)
                await agent.holds(from_istiod(istiod.directory(*pair)), server)
                assert (server.refusals, agent.refused) == ([], {}), pair
                assert _not_for_the_kernel(agent.intent) == NOT_FOR_THE_KERNEL[pair], pair
                assert agent.settled(), pair
                fresh = Compiler().compile(
                    {"view": from_istiod(istiod.directory(*pair))},
                    [(Load(f"default/{agent.view.name}", agent.view.ips), "view")],
                )
                assert lines(agent.intent) == lines(fresh), pair
        finally:
            await agent.stop()
            await server.stop()

    asyncio.run(run())


def _authz() -> list[str]:
    directory = tiers.shared() / "istio" / "authz"
    return sorted(str(path.relative_to(directory)) for path in directory.glob("*/*-out*.yaml"))


@pytest.mark.parametrize("name", _authz())
def test_policies_as_istiod_translates_them_are_named(name: str) -> None:
    """A filter of Istio's own pairs before the workload: nothing breaks, and what it demands is said by name."""
    data = yaml.safe_load((tiers.shared() / "istio" / "authz" / name).read_text(encoding="utf-8"))
    served = istiod.golden("bookinfo", "server")
    listener = envoy.Listener()
    listener.CopyFrom(served.resources[LDS]["virtualInbound"])
    chain = next(item for item in listener.filter_chains if item.name == "0.0.0.0_9080")
    tcp = name.startswith("tcp/")
    guard = envoy.from_dict("Filter" if tcp else "HttpFilter", data)
    if tcp:
        chain.filters.insert(0, guard)
    else:
        manager = envoy.HttpConnectionManager.FromString(chain.filters[0].typed_config.value)
        manager.http_filters.insert(0, guard)
        chain.filters[0].typed_config.CopyFrom(envoy.pack_any(manager))
    resources = {**served.resources, LDS: {**served.resources[LDS], "virtualInbound": listener}}
    cache = ViewCache(Decoder())
    for url in (CDS, EDS, LDS, RDS):
        bodies = tuple(Body(key, item.SerializeToString()) for key, item in resources[url].items())
        assert cache.apply(url, bodies, ()) == (True, {})
    intent = Compiler().compile({"view": cache.resources()}, [(Load("default/a", ("10.244.0.12",)), "view")])
    told = [f"{item.reason}: {item.effect}" for item in intent.rejections if item.kind == NOT_ENFORCED]
    config = data["typedConfig"]
    asked = {rule.partition("-rule[")[0] for rule in config.get("rules", {}).get("policies", {})}
    wanted = {re.sub(r"ns\[(.*)\]-policy\[(.*)\]", r"\1/\2", rule) for rule in asked}
    if "ext_authz" in data["name"]:
        wanted = {data["name"]}
    assert len(told) == len(wanted), "a filter that only tries policies out demands nothing"
    for policy in wanted:
        assert any(policy in line and "NOT ENFORCED" in line for line in told), (policy, told)
