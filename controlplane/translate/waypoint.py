"""What a client of node type ``waypoint`` is served: all that is bound to it, with its rules and policies.  Pure.

Requests for a bound service are routed here by its VirtualServices and HTTPRoutes, judged by the policies that name it
or the waypoint, and balanced over its endpoints by its DestinationRule.  Other services are in its clusters only where
a rule leads there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from controlplane.model.gateway_api import GATEWAY_NAME
from controlplane.model.hosts import is_wildcard, matches, specificity
from controlplane.model.labels import Labels, get
from controlplane.model.mesh import Mesh, Port, Service, Waypoint, fqdn
from controlplane.model.objects import Config
from controlplane.translate import clusters, filters, names, tokens
from controlplane.translate import waypoint_listeners as listeners
from controlplane.translate.endpoints import load_assignment
from controlplane.translate.memo import Memo
from controlplane.translate.outbound import forward_filter
from controlplane.translate.peer import workload_mode
from controlplane.translate.policy import resolve
from controlplane.translate.protection import Protection, protection
from controlplane.translate.route_action import duration
from controlplane.translate.routes import Place, applies, default_route, virtual_service_routes
from controlplane.translate.scope import Scope, destinations
from controlplane.translate.targets import Spot
from controlplane.translate.tls import hbone_mutual, raw_socket
from underpass.api import envoy

_INTERNAL: Final = "envoy.transport_sockets.internal_upstream"
_ORIGINAL_DST: Final = "envoy.filters.listener.original_dst"
ENCAP: Final = "encap"
_DIRECT_HTTP, _DIRECT_TCP = "direct-http", "direct-tcp"
#: The same to workloads that take no tunnels.
_PLAIN_HTTP, _PLAIN_TCP = "direct-http-plain", "direct-tcp-plain"
_TUNNEL: Final = {"tunnel": "http"}


@dataclass(slots=True)
class Made:
    """Resources by name, and the services whose ordinary clusters are needed beside them."""

    lds: dict[str, Any] = field(default_factory=dict)
    cds: dict[str, Any] = field(default_factory=dict)
    eds: dict[str, Any] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)


def resources(scope: Scope, mesh: Mesh, memo: Memo) -> Made:
    """Return what the waypoint of ``scope`` is served; nothing is bound to one that no Gateway stands for."""
    name = get(scope.key.labels, GATEWAY_NAME)
    me = mesh.waypoint(scope.key.namespace, name) or Waypoint(scope.key.namespace, name)
    return _Maker(scope, mesh, memo, me).make()


class _Maker:
    def __init__(self, scope: Scope, mesh: Mesh, memo: Memo, me: Waypoint) -> None:
        self._scope, self._mesh, self._memo, self._me = scope, mesh, memo, me
        self._spot = Spot(me.namespace, scope.key.labels, me.name, waypoint=True)
        self._out = Made()
        self._chains: dict[str, Any] = {}
        self._places: list[listeners.Chains] = []

    def make(self) -> Made:
        wanted = set(self._me.services)
        for service in self._scope.services.values():
            if (service.namespace, service.hostname) in wanted:
                self._service(service)
        if self._me.workloads:
            self._direct()
        self._plumbing()
        return self._out

    # ------------------------------------------------------------------------------------------------- services
    def _service(self, service: Service) -> None:
        rules = self._protect(replace(self._spot, service=service))
        ruling = ruling_of(service.hostname, self._scope, self._mesh)
        for config in ruling:
            self._out.others.update(destinations(config, self._mesh) - self._scope.vips)
        addresses = tuple(text for text in service.addresses if "/" not in text and text not in ("0.0.0.0", "::"))
        for port in service.ports:
            if port.protocol == "UDP":
                continue
            http, tcp = listeners.protocols(port)
            names_of = [names.vip(service.hostname, port.number, kind) for kind in ("http", "tcp")]
            if http:
                made = _configuration(names_of[0], service, port.number, ruling, self._scope, self._mesh)
                self._chains[names_of[0]] = listeners.http_chain(names_of[0], made, rules)
                self._clusters(service, port, "http")
            if tcp:
                forward = _forward(names_of[1], service, port, ruling, self._scope, self._mesh)
                self._chains[names_of[1]] = listeners.tcp_chain(names_of[1], forward, rules)
                self._clusters(service, port, "tcp")
            chains = listeners.Chains(addresses, port.number, names_of[0] if http else "", names_of[1] if tcp else "")
            self._places.append(chains)

    def _protect(self, spot: Spot) -> Protection:
        rules = protection(self._mesh, self._scope, spot)
        self._out.cds.update(rules.clusters)
        known = (one.host for one in tokens.fetches(tokens.rules(self._mesh, spot), self._scope) if one.known)
        self._out.others.update(known)
        self._out.others.update(provider.hostname for provider in self._mesh.providers.values())
        return rules

    def _clusters(self, service: Service, port: Port, protocol: str) -> None:
        """The clusters of a service's port, as a sidecar has them, under a waypoint's names."""
        scope = self._scope
        for original in clusters.service_clusters(service, port, scope, self._mesh):
            subset = original.name.split("|")[2]
            name = names.vip(service.hostname, port.number, protocol, subset)
            made: Any = envoy.Cluster()
            made.CopyFrom(original)
            made.name, made.alt_stat_name = name, f"{name};"
            tunnels = scope.key.mesh_certificates and not made.HasField("transport_socket")
            if tunnels:
                kept = list(made.transport_socket_matches)
                del made.transport_socket_matches[:]
                made.transport_socket_matches.extend([_hbone_match(), *kept])
                if not kept:
                    made.transport_socket_matches.add(name="raw", match={}, transport_socket=raw_socket())
            self._out.cds[name] = made
            if not made.HasField("eds_cluster_config"):
                if made.HasField("load_assignment"):
                    made.load_assignment.cluster_name = name
                continue
            made.eds_cluster_config.service_name = name
            pool = clusters.endpoints_of(service, port, subset, scope, self._mesh)
            inside = tuple(tunnels and self._takes_tunnels(endpoint.address) for endpoint in pool)
            policy = resolve(scope.rules.get(service.hostname), port.number, subset)
            rule = scope.rules.get(service.hostname)
            key = ("waypoint", name, pool, inside, rule.sources if rule else None, scope.key.locality, scope.key.labels)
            marked = frozenset(
                (endpoint.address, endpoint.port) for endpoint, yes in zip(pool, inside, strict=True) if yes
            )
            self._out.eds[name] = self._memo.get(key, partial(_assignment, name, pool, policy, scope, marked))

    def _takes_tunnels(self, address: str) -> bool:
        found = self._mesh.workloads.get(address)
        return found is not None and takes_tunnels(found.annotations, found.labels)

    # ------------------------------------------------------------------------------------------------ workloads
    def _direct(self) -> None:
        """Connections to workloads' own addresses: judged, and forwarded to where they were going."""
        rules = self._protect(self._spot)
        secure = self._scope.key.mesh_certificates
        groups: dict[bool, list[str]] = {}
        for workload in self._me.workloads:
            if not workload.host_network:
                inside = secure and takes_tunnels(workload.annotations, workload.labels)
                groups.setdefault(inside, []).extend(workload.ips)
        for inside, addresses in groups.items():
            http, tcp = (_DIRECT_HTTP, _DIRECT_TCP) if inside else (_PLAIN_HTTP, _PLAIN_TCP)
            cluster = ENCAP if inside else names.PASSTHROUGH
            self._chains[http] = listeners.http_chain(http, _everything_to(cluster), rules, tunnels=inside)
            self._chains[tcp] = listeners.tcp_chain(tcp, filters.tcp(cluster), rules, tunnels=inside)
            self._places.append(listeners.Chains(tuple(addresses), 0, http, tcp))
            made = _internal_cluster(listeners.ORIGINATE, ENCAP) if inside else clusters.passthrough(cluster)
            self._out.cds[cluster] = made

    # ------------------------------------------------------------------------------------------------- plumbing
    def _plumbing(self) -> None:
        scope, out = self._scope, self._out
        wildcard = names.WILDCARD[scope.key.families[0]]
        secure = scope.key.mesh_certificates
        strict = workload_mode(self._mesh, scope.key.namespace, scope.key.labels, listeners.HBONE_PORT) == "STRICT"
        out.lds[listeners.TERMINATE] = listeners.terminate(
            wildcard, self._mesh.trust_domain, certificates=secure, refuse=strict
        )
        out.lds[listeners.MAIN] = listeners.main_internal(self._places, self._chains)
        out.cds[names.BLACK_HOLE] = self._memo.get("black-hole", clusters.black_hole)
        out.cds[listeners.MAIN] = _internal_cluster(listeners.MAIN, listeners.MAIN)
        if secure:
            out.lds[listeners.ORIGINATE] = listeners.originate()
            out.cds[listeners.ORIGINATE] = _tunnel_cluster(self._mesh.trust_domain)


def takes_tunnels(annotations: Labels, labels: Labels) -> bool:
    """Whether a workload takes HBONE: its node's ztunnel redirects it, or it does so by itself."""
    return get(annotations, "ambient.istio.io/redirection") == "enabled" or "http" in get(
        labels, "networking.istio.io/tunnel"
    ).split(",")


def ruling_of(hostname: str, scope: Scope, mesh: Mesh) -> list[Config]:
    """VirtualServices that may rule a host, the strongest first: exact names before wildcards, older before newer."""
    exact: list[Config] = []
    wild: list[tuple[tuple[Any, ...], int, Config]] = []
    for index, config in enumerate(scope.virtual_services):
        for host in config.spec.hosts:
            name = fqdn(host, config.meta.key.namespace, mesh.domain)
            if name == hostname:
                exact.append(config)
            elif is_wildcard(name) and matches(name, hostname):
                wild.append(((*specificity(name),), index, config))
    return [*exact, *(config for _, _, config in sorted(wild, key=lambda item: item[:2]))]


def _configuration(name: str, service: Service, port: int, ruling: Iterable[Config], scope: Scope, mesh: Mesh) -> Any:
    routes: list[Any] = []
    for config in ruling:
        routes = virtual_service_routes(config, scope, mesh, Place(port))
        if routes:
            break
    host = envoy.VirtualHost(
        name=f"inbound|http|{port}", domains=["*"], routes=routes or [default_route(service, port, scope)]
    )
    return envoy.RouteConfiguration(name=name, virtual_hosts=[host], validate_clusters={"value": False})


def _forward(name: str, service: Service, port: Port, ruling: Iterable[Config], scope: Scope, mesh: Mesh) -> Any:
    """Where bytes go: the first tcp rule for this port, else the service's own endpoints."""
    policy = resolve(scope.rules.get(service.hostname), port.number)
    tcp = policy.connection_pool.tcp if policy.connection_pool is not None else None
    idle = duration(tcp.idle_timeout) if tcp is not None and tcp.HasField("idle_timeout") else None
    for config in ruling:
        for rule in config.spec.tcp:
            if not rule.match or any(_l4_applies(block, scope, port.number) for block in rule.match):
                return forward_filter(rule, config, scope, mesh, port.number, idle)
    return filters.tcp(name, idle=idle)


def _l4_applies(block: Any, scope: Scope, port: int) -> bool:
    return not block.destination_subnets and applies(block, scope, Place(port))


def _assignment(name: str, pool: Any, policy: Any, scope: Scope, tunnelled: frozenset[tuple[str, int]]) -> Any:
    """Endpoints; those in tunnels are reached through the listener that opens one."""
    out = load_assignment(name, pool, policy, scope)
    for group in out.endpoints:
        for item in group.lb_endpoints:
            socket = item.endpoint.address.socket_address
            if (socket.address, socket.port_value) not in tunnelled:
                continue
            where = names.domain(socket.address, socket.port_value)
            item.endpoint.ClearField("additional_addresses")
            internal = item.endpoint.address.envoy_internal_address
            internal.server_listener_name, internal.endpoint_id = listeners.ORIGINATE, where
            item.metadata.filter_metadata["envoy.transport_socket_match"].Clear()
            item.metadata.filter_metadata["envoy.transport_socket_match"].update(_TUNNEL)
            item.metadata.filter_metadata[_ORIGINAL_DST].update({"local": where})
    return out


def _hbone_match() -> Any:
    strict = envoy.Struct()
    strict.update(_TUNNEL)
    return envoy.Cluster.TransportSocketMatch(name="hbone", match=strict, transport_socket=_internal_socket())


def _internal_socket() -> Any:
    """Hand a connection to a listener inside, with what it has to know."""
    kind = envoy.message("envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport")
    config: Any = kind(transport_socket=raw_socket())
    config.passthrough_metadata.add(name=_ORIGINAL_DST).kind.host.SetInParent()
    return envoy.TransportSocket(name=_INTERNAL, typed_config=envoy.pack_any(config))


def _everything_to(cluster: str) -> Any:
    route = envoy.Route(name="default", match={"prefix": "/"})
    route.route.cluster = cluster
    route.route.timeout.SetInParent()
    host = envoy.VirtualHost(name="inbound|http|0", domains=["*"], routes=[route])
    return envoy.RouteConfiguration(name=cluster, virtual_hosts=[host], validate_clusters={"value": False})


def _internal_cluster(listener: str, name: str) -> Any:
    """A cluster that is a listener inside this proxy."""
    address = {"envoy_internal_address": {"server_listener_name": listener}}
    return envoy.Cluster(
        name=name,
        type="STATIC",
        alt_stat_name=f"{name};",
        circuit_breakers={"thresholds": [clusters.thresholds()]},
        load_assignment={
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        transport_socket=_internal_socket(),
    )


def _tunnel_cluster(trust_domain: str) -> Any:
    """Wherever the connection was going, on the port for tunnels."""
    options = envoy.HttpProtocolOptions()
    options.explicit_http_config.http2_protocol_options.allow_connect = True
    out = envoy.Cluster(
        name=listeners.ORIGINATE,
        type="ORIGINAL_DST",
        lb_policy="CLUSTER_PROVIDED",
        alt_stat_name=f"{listeners.ORIGINATE};",
        connect_timeout={"seconds": clusters.CONNECT_TIMEOUT},
        circuit_breakers={"thresholds": [clusters.thresholds()]},
        original_dst_lb_config={"upstream_port_override": {"value": listeners.HBONE_PORT}},
        transport_socket=hbone_mutual(trust_domain),
    )
    out.typed_extension_protocol_options[clusters.HTTP_OPTIONS].CopyFrom(envoy.pack_any(options))
    return out
