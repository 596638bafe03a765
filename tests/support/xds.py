"""Scripts of an xDS conversation: a view of hand-made resources, requests in one line, responses as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from controlplane.snapshot import Resource, Snapshot, TypeState, encode
from controlplane.snapshot.urls import CLUSTER, ENDPOINT, LISTENER, ROUTE
from controlplane.xds.delta import DeltaSession
from controlplane.xds.events import Event, Response
from controlplane.xds.session import Session
from controlplane.xds.sotw import SotwSession
from underpass.api import envoy

NODE = "sidecar~10.0.0.1~app-1.default~default.svc.cluster.local"
SHORT = {"C": CLUSTER, "E": ENDPOINT, "L": LISTENER, "R": ROUTE}
LETTER = {url: letter for letter, url in SHORT.items()}


def cluster(name: str, timeout: int = 1) -> Resource:
    """An EDS cluster; *timeout* makes its content differ."""
    message = envoy.Cluster(name=name, type=envoy.Cluster.EDS)
    message.eds_cluster_config.eds_config.ads.SetInParent()
    message.connect_timeout.seconds = timeout
    return encode(CLUSTER, name, message)


def endpoints(name: str, *ports: int) -> Resource:
    """The load assignment of cluster *name*."""
    message = envoy.ClusterLoadAssignment(cluster_name=name)
    if ports:
        group = message.endpoints.add()
        group.load_balancing_weight.value = len(ports)
        for port in ports:
            address = group.lb_endpoints.add().endpoint.address.socket_address
            address.address, address.port_value = "127.0.0.1", port
    return encode(ENDPOINT, name, message)


def listener(name: str, route: str, port: int = 80) -> Resource:
    """An HTTP listener that takes its routes from RDS."""
    manager = envoy.HttpConnectionManager(stat_prefix=name)
    manager.rds.route_config_name = route
    manager.rds.config_source.ads.SetInParent()
    message = envoy.Listener(name=name)
    message.address.socket_address.address, message.address.socket_address.port_value = "0.0.0.0", port
    message.filter_chains.add().filters.add(name="http").typed_config.CopyFrom(envoy.pack_any(manager))
    return encode(LISTENER, name, message)


def routes(name: str, *clusters: str) -> Resource:
    """A route table whose default route goes to the clusters, one virtual host each."""
    message = envoy.RouteConfiguration(name=name)
    for target in clusters:
        host = message.virtual_hosts.add(name=target, domains=[target])
        route = host.routes.add()
        route.match.prefix = "/"
        route.route.cluster = target
    return encode(ROUTE, name, message)


def snapshot(*resources: Resource) -> Snapshot:
    """A snapshot of the given resources."""
    by_type: dict[str, list[Resource]] = {}
    for resource in resources:
        by_type.setdefault(resource.type_url, []).append(resource)
    return Snapshot({url: TypeState(listed) for url, listed in by_type.items()})


@dataclass
class FakeView:
    """A view of a fixed snapshot, with resources that are found only when asked for by name."""

    snapshot: Snapshot
    asked: Mapping[tuple[str, str], Resource] = field(default_factory=dict)

    def lookup(self, type_url: str, name: str) -> Resource | None:
        return self.asked.get((type_url, name))


@dataclass(frozen=True)
class Said:
    """A response as a test wants to read it: type letter, names with versions, removed names."""

    type: str
    resources: dict[str, str]
    removed: tuple[str, ...]
    version: str
    nonce: str

    @property
    def names(self) -> list[str]:
        return sorted(self.resources)

    @property
    def brief(self) -> tuple[str, list[str], list[str]]:
        return self.type, self.names, sorted(self.removed)


_NAME_FIELD = {"Cluster": "name", "ClusterLoadAssignment": "cluster_name", "Listener": "name", "Secret": "name"}


def inner_name(packed: Any) -> str:
    """The name that the resource inside an Any carries itself."""
    message = envoy.unpack_any(packed)
    return str(getattr(message, _NAME_FIELD.get(message.DESCRIPTOR.name, "name")))


def content(packed: Any) -> str:
    """A stable stand-in for the version of a resource inside a state-of-the-world response."""
    return encode(packed.type_url, "", envoy.unpack_any(packed)).version


class Conversation:
    """One client of one session, driven by hand; ``delta`` chooses the variant."""

    def __init__(self, view: FakeView | None, *, delta: bool, session: Session | None = None, **options: Any) -> None:
        self.delta = delta
        kind: type[Session] = DeltaSession if delta else SotwSession
        self.session = session or kind("s", **options)
        if view is not None:
            self.session.set_view(view)
        self.events: list[Event] = []
        self._introduced = False

    def _send(self, request: Any) -> list[Event]:
        if not self._introduced:
            request.node.id = NODE
            self._introduced = True
        events = self.session.receive(request.SerializeToString())
        self.events += events
        return events

    def ask(
        self,
        letter: str,
        names: Iterable[str] = (),
        *,
        nonce: str = "",
        version: str = "",
        error: str | None = None,
        unsubscribe: Iterable[str] = (),
        has: Mapping[str, str] | None = None,
    ) -> list[Event]:
        """One request: in state of the world *names* are all names, in delta the newly subscribed ones."""
        url = SHORT.get(letter, letter)
        if self.delta:
            request: Any = envoy.DeltaDiscoveryRequest(
                type_url=url,
                resource_names_subscribe=list(names),
                resource_names_unsubscribe=list(unsubscribe),
                initial_resource_versions=dict(has or {}),
                response_nonce=nonce,
            )
        else:
            request = envoy.DiscoveryRequest(
                type_url=url, resource_names=list(names), response_nonce=nonce, version_info=version
            )
        if error is not None:
            request.error_detail.code = 13
            request.error_detail.message = error
        return self._send(request)

    def hear(self) -> Said | None:
        """The next response, if there is one."""
        response = self.session.poll()
        return None if response is None else self.decode(response)

    def decode(self, response: Response) -> Said:
        if self.delta:
            message: Any = envoy.DeltaDiscoveryResponse.FromString(response.data)
            names = [resource.name for resource in message.resources]
            assert len(names) == len(set(names)), "a name twice in one response"
            assert not set(names) & set(message.removed_resources), "a name both sent and removed"
            for resource in message.resources:
                assert resource.version
                if not resource.aliases and resource.resource.type_url.startswith(envoy.TYPE_PREFIX + "envoy."):
                    assert inner_name(resource.resource) == resource.name
            said = Said(
                LETTER.get(message.type_url, message.type_url),
                {resource.name: resource.version for resource in message.resources},
                tuple(message.removed_resources),
                message.system_version_info,
                message.nonce,
            )
        else:
            message = envoy.DiscoveryResponse.FromString(response.data)
            names = [inner_name(packed) for packed in message.resources]
            assert len(names) == len(set(names)), "a name twice in one response"
            said = Said(
                LETTER.get(message.type_url, message.type_url),
                {inner_name(packed): content(packed) for packed in message.resources},
                (),
                message.version_info,
                message.nonce,
            )
        assert said.nonce
        assert said.nonce == response.nonce
        assert said.version
        return said

    def hear_all(self) -> list[Said]:
        """Everything that there is to hear now."""
        heard = []
        while (said := self.hear()) is not None:
            heard.append(said)
            assert len(heard) < 1000, "the session never falls silent"
        return heard

    def ack(self, said: Said, names: Iterable[str] = ()) -> None:
        """Accept a response; in state of the world the names of the subscription are repeated."""
        self.ask(said.type, () if self.delta else names, nonce=said.nonce, version=said.version)

    def change(self, view: FakeView) -> None:
        """The server has new content."""
        self.session.set_view(view)
