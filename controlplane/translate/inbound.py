"""A sidecar's inbound side: one listener, a filter chain for each port that services reach the workload on.  Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from typing import Any, Final

from controlplane.model.mesh import HTTP_PROTOCOLS, Mesh, Port, Service
from controlplane.model.node import Node
from controlplane.translate import filters, names
from controlplane.translate.clusters import inbound_cluster, passthrough
from controlplane.translate.peer import Mode, special_ports, workload_mode
from controlplane.translate.protection import Protection
from controlplane.translate.routes import metadata
from controlplane.translate.scope import Scope
from controlplane.translate.tls import server_mutual
from underpass.api import envoy

CAPTURE_PORT: Final = 15006
#: Connections of the pass-through clusters come from here, so that they are not captured again.
LOOP_SOURCE: Final = {4: "127.0.0.6", 6: "::6"}


@dataclass(frozen=True, slots=True)
class Served:
    """A port of the workload and the services that lead to it, the oldest first."""

    target: int
    port: Port
    services: tuple[Service, ...]
    numbers: tuple[int, ...]


def served(mesh: Mesh, node: Node) -> list[Served]:
    """Return the ports on which services reach this workload."""
    found: dict[int, dict[str, tuple[Service, int]]] = {}
    for ip in node.ips:
        for target in mesh.targets.get(ip, ()):
            for service in _named(mesh.services, target.hostname):
                if service.port(target.port) is not None:
                    found.setdefault(target.target, {}).setdefault(service.hostname, (service, target.port))
    out: list[Served] = []
    for number, group in sorted(found.items()):
        ranked = sorted(group.values(), key=lambda item: item[0].age)
        first = ranked[0][0].port(ranked[0][1])
        if first is not None and first.protocol != "UDP":
            out.append(Served(number, first, tuple(item[0] for item in ranked), tuple(item[1] for item in ranked)))
    return out


def _named(services: tuple[Service, ...], hostname: str) -> tuple[Service, ...]:
    """Services of one name, of all namespaces; looked up, as this is asked for every client of a large mesh."""
    begin = bisect_left(services, hostname, key=_hostname)
    return services[begin : bisect_right(services, hostname, lo=begin, key=_hostname)]


def _hostname(service: Service) -> str:
    return service.hostname


def clusters(mesh: Mesh, node: Node, scope: Scope) -> dict[str, Any]:
    """Clusters that lead to the workload's own application."""
    family = 6 if node.ips and ":" in node.ips[0] else 4
    out = {names.INBOUND_PASSTHROUGH: passthrough(names.INBOUND_PASSTHROUGH, LOOP_SOURCE[family])}
    for item in served(mesh, node):
        cluster = inbound_cluster(item.target, item.port, list(item.services), scope)
        if family == 6:
            cluster.upstream_bind_config.source_address.address = LOOP_SOURCE[6]
        out[cluster.name] = cluster
    return out


def _route(cluster: str, port: int, operation: str, service: Service | None) -> Any:
    route = envoy.Route(name="default", match={"prefix": "/"})
    route.route.cluster = cluster
    route.route.timeout.SetInParent()
    route.route.max_stream_duration.max_stream_duration.SetInParent()
    route.route.max_stream_duration.grpc_timeout_header_max.SetInParent()
    route.route.retry_policy.retry_on = "reset-before-request"
    route.route.retry_policy.num_retries.value = 2
    route.decorator.operation = operation
    if service is not None:
        route.metadata.CopyFrom(
            metadata(
                service.kind,
                service.namespace,
                service.object,
                0,
                service.source.file,
                service.source.line,
                istio=False,
            )
        )
    host = envoy.VirtualHost(name=f"inbound|http|{port}", domains=["*"], routes=[route])
    return envoy.RouteConfiguration(name=cluster, virtual_hosts=[host], validate_clusters={"value": False})


def _http(cluster: str, port: int, stat: str, operation: str, service: Service | None, rules: Protection) -> Any:
    configuration = _route(cluster, port, operation, service)
    return [filters.inbound_http(f"{stat};", configuration, rules.http)]


def _tcp(cluster: str, rules: Protection) -> list[Any]:
    return [*rules.tcp, filters.tcp(cluster)]


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a chain set needs to know: its name, its port (0 for any other), and how it forwards."""

    name: str
    port: int
    http: Any
    tcp: Any


def _match(port: int, *, tls: bool, protocols: tuple[str, ...] = ()) -> Any:
    out = envoy.FilterChainMatch(transport_protocol="tls" if tls else "raw_buffer", application_protocols=protocols)
    if port:
        out.destination_port.value = port
    return out


def _sniffed(kind: _Kind, http_name: str, mode: Mode, trust_domain: str) -> list[Any]:
    """Chains for a port of unknown protocol: HTTP where it is seen, bytes else; mutual TLS as the mode allows."""
    out: list[Any] = []
    secure, plain = mode != "DISABLE", mode != "STRICT"
    if secure:
        out.append(
            filters.chain(
                kind.http,
                name=http_name,
                socket=server_mutual(trust_domain),
                match=_match(kind.port, tls=True, protocols=filters.MESH_HTTP),
            )
        )
    if plain:
        out.append(
            filters.chain(kind.http, name=http_name, match=_match(kind.port, tls=False, protocols=filters.PLAIN_HTTP))
        )
    if secure:
        out.append(
            filters.chain(
                kind.tcp,
                name=kind.name,
                socket=server_mutual(trust_domain),
                match=_match(kind.port, tls=True, protocols=filters.MESH_TCP),
            )
        )
    if plain:
        out.append(filters.chain(kind.tcp, name=kind.name, match=_match(kind.port, tls=False)))
        out.append(filters.chain(kind.tcp, name=kind.name, match=_match(kind.port, tls=True)))
    return out


def _declared(kind: _Kind, mode: Mode, trust_domain: str, *, http: bool) -> list[Any]:
    """Chains for a port whose protocol is declared."""
    out: list[Any] = []
    forward = kind.http if http else kind.tcp
    protocols = ("istio", "istio-peer-exchange", *filters.MESH_HTTP)
    if mode != "DISABLE":
        out.append(
            filters.chain(
                forward,
                name=kind.name,
                socket=server_mutual(trust_domain),
                match=_match(kind.port, tls=True, protocols=protocols),
            )
        )
    if mode != "STRICT":
        out.append(filters.chain(forward, name=kind.name, match=_match(kind.port, tls=False)))
        if not http:
            out.append(filters.chain(forward, name=kind.name, match=_match(kind.port, tls=True)))
    return out


def listener(mesh: Mesh, node: Node, rules: Protection) -> Any:
    """``virtualInbound``: every captured inbound connection, behind what protects the workload."""
    family = 6 if node.ips and ":" in node.ips[0] else 4
    wildcard = names.WILDCARD[family]
    ports = served(mesh, node)

    def mode_of(port: int) -> Mode:
        return workload_mode(mesh, node.namespace, node.labels, port)

    def refused(port: int) -> list[Any]:
        """Mutual TLS is required of a proxy that has no certificates: nothing gets in."""
        tcp = [filters.tcp(names.BLACK_HOLE)]
        return [
            filters.chain(tcp, name="virtualInbound-blackhole", match=_match(port, tls=tls)) for tls in (False, True)
        ]

    blocked = envoy.FilterChainMatch(destination_port={"value": CAPTURE_PORT})
    out = envoy.Listener(
        name="virtualInbound",
        address={"socket_address": {"address": wildcard, "port_value": CAPTURE_PORT}},
        traffic_direction="INBOUND",
        continue_on_listener_filters_timeout=True,
        listener_filters_timeout={},
        max_connections_to_accept_per_socket_event={"value": 1},
        filter_chains=[filters.chain([filters.tcp(names.BLACK_HOLE)], name="virtualInbound-blackhole", match=blocked)],
    )
    if len({":" in ip for ip in node.ips}) > 1:
        out.additional_addresses.add(
            address={"socket_address": {"address": names.WILDCARD[10 - family], "port_value": CAPTURE_PORT}}
        )
    other = names.INBOUND_PASSTHROUGH
    rest = _Kind("virtualInbound", 0, _http(other, 0, other, ":0/*", None, rules), _tcp(other, rules))

    def sniffed(kind: _Kind, http_name: str) -> list[Any]:
        mode = mode_of(kind.port)
        if not node.mesh_certificates:
            if mode == "STRICT":
                return refused(kind.port)
            mode = "DISABLE"
        return _sniffed(kind, http_name, mode, mesh.trust_domain)

    out.filter_chains.extend(sniffed(rest, "virtualInbound-catchall-http"))
    served_ports = {item.target for item in ports}
    for port in special_ports(mesh, node.namespace, node.labels):
        if port not in served_ports:  # no service leads there, but the policy speaks of it
            out.filter_chains.extend(sniffed(replace(rest, port=port), f"{wildcard}_{port}"))
    known: list[int] = []
    for item in ports:
        cluster = names.cluster("", item.target, direction="inbound")
        service = item.services[0]
        operation = f"{service.hostname}:{item.numbers[0]}/*"
        stat = f"inbound_{wildcard}_{item.target}"
        kind = _Kind(
            f"{wildcard}_{item.target}",
            item.target,
            _http(cluster, item.target, stat, operation, service, rules),
            _tcp(cluster, rules),
        )
        if item.port.protocol == "AUTO":
            out.filter_chains.extend(sniffed(kind, kind.name))
            continue
        mode = mode_of(item.target)
        http = item.port.protocol in HTTP_PROTOCOLS
        known.append(item.target)
        if not node.mesh_certificates:
            if mode == "STRICT":
                out.filter_chains.extend(refused(item.target))
                continue
            mode = "DISABLE"
        out.filter_chains.extend(_declared(kind, mode, mesh.trust_domain, http=http))
    out.listener_filters.extend(
        [
            filters.original_destination(),
            filters.tls_inspector(filters.disabled_on([CAPTURE_PORT]), initial=512),
            filters.http_inspector(filters.disabled_on([*known, CAPTURE_PORT])),
        ]
    )
    return out
