"""A sidecar's outbound listeners: by port for HTTP, by address and port for everything else.  Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from controlplane.model.hosts import matches
from controlplane.model.labels import freeze, selects
from controlplane.model.mesh import HTTP_PROTOCOLS, TLS_PROTOCOLS, Mesh, Port, Service, fqdn
from controlplane.model.objects import Config
from controlplane.translate import filters, names
from controlplane.translate.policy import resolve
from controlplane.translate.route_action import duration
from controlplane.translate.routes import destination_cluster, metadata
from controlplane.translate.scope import Scope
from underpass.api import envoy

CAPTURE_PORT = 15001


@dataclass(slots=True)
class _Draft:
    """A listener while services are still being added to it."""

    address: str
    port: int
    also: tuple[str, ...] = ()
    route: str = ""
    stat: str = ""
    chains: list[Any] = field(default_factory=list)
    fallback: Any = None
    inspect_tls: bool = False


def _wildcards(scope: Scope) -> tuple[str, tuple[str, ...]]:
    addresses = [names.WILDCARD[family] for family in scope.key.families]
    return addresses[0], tuple(addresses[1:])


def listener_name(address: str, port: int) -> str:
    """``0.0.0.0_80``, ``10.96.0.10_3306``, ``[::]_80``."""
    return f"[{address}]_{port}" if ":" in address else f"{address}_{port}"


def listeners(scope: Scope, mesh: Mesh) -> dict[str, Any]:
    """Return all outbound listeners, ``virtualOutbound`` included where it is what traffic is captured by."""
    drafts: dict[str, _Draft] = {}
    for service in sorted(scope.services.values(), key=lambda item: item.age):
        for port in service.ports:
            if port.protocol != "UDP":
                _add(drafts, service, port, scope, mesh)
    out = {name: _finish(name, draft, scope) for name, draft in drafts.items()}
    if scope.key.interception in ("REDIRECT", "TPROXY"):
        out["virtualOutbound"] = _virtual(scope)
    return dict(sorted(out.items()))


def http_ports(scope: Scope) -> list[int]:
    """Ports for which a route configuration ``PORT`` exists."""
    ports = {
        port.number
        for service in scope.services.values()
        for port in service.ports
        if port.protocol in HTTP_PROTOCOLS or (port.protocol == "AUTO" and not _addresses(service, scope))
    }
    return sorted(ports)


def sniffed_ports(scope: Scope) -> list[tuple[Service, int]]:
    """Undeclared ports of services with an address: each has a route configuration of its own, ``host:port``."""
    return [
        (service, port.number)
        for service in scope.services.values()
        for port in service.ports
        if port.protocol == "AUTO" and _addresses(service, scope)
    ]


def _addresses(service: Service, scope: Scope) -> list[str]:
    return [
        address
        for address in service.addresses
        if "/" not in address and (6 if ":" in address else 4) in scope.key.families
    ]


def _draft(drafts: dict[str, _Draft], address: str, port: int, also: tuple[str, ...] = ()) -> _Draft:
    return drafts.setdefault(listener_name(address, port), _Draft(address, port, also))


def _add(drafts: dict[str, _Draft], service: Service, port: Port, scope: Scope, mesh: Mesh) -> None:
    wildcard, also = _wildcards(scope)
    if port.protocol in HTTP_PROTOCOLS:
        draft = _draft(drafts, wildcard, port.number, also)
        draft.route = draft.route or str(port.number)
        draft.stat = listener_name(wildcard, port.number)
        return
    addresses = _addresses(service, scope)
    if not addresses and service.headless and port.protocol != "AUTO":
        # The address that a client of a headless service connects to is a pod's.
        for endpoint in mesh.endpoints_of(service, port.number):
            for address in (endpoint.address, *endpoint.also):
                draft = _draft(drafts, address, endpoint.port)
                if not draft.chains:
                    draft.chains.extend(_tcp_chains(service, port, scope, mesh, draft, sni=False))
        return
    blocks = [address for address in service.addresses if "/" in address]
    targets: list[tuple[str, tuple[str, ...]]] = [(address, ()) for address in addresses] or [(wildcard, also)]
    for address, others in targets:
        draft = _draft(drafts, address, port.number, others)
        shared = address == wildcard
        if port.protocol == "AUTO":
            if not draft.route:
                draft.route = str(port.number) if shared else names.domain(service.hostname, port.number)
                draft.stat = listener_name(address, port.number)
            if draft.fallback is None:
                draft.fallback = _plain_chain(service, port, scope)
            continue
        for item in _tcp_chains(service, port, scope, mesh, draft, sni=shared and port.protocol in TLS_PROTOCOLS):
            if shared and blocks:
                item.filter_chain_match.prefix_ranges.extend(_range(block) for block in blocks)
            draft.chains.append(item)


def _range(block: str) -> Any:
    address, _, length = block.partition("/")
    return envoy.CidrRange(address_prefix=address, prefix_len={"value": int(length)})


def _idle(service: Service, port: Port, scope: Scope, subset: str = "") -> Any:
    pool = resolve(scope.rules.get(service.hostname), port.number, subset).connection_pool
    if pool is not None and pool.HasField("tcp") and pool.tcp.HasField("idle_timeout"):
        return duration(pool.tcp.idle_timeout)
    return None


def _plain_chain(service: Service, port: Port, scope: Scope) -> Any:
    cluster = names.cluster(service.hostname, port.number)
    tunnel = resolve(scope.rules.get(service.hostname), port.number).tunnel
    out = filters.chain([filters.tcp(cluster, idle=_idle(service, port, scope), tunnel=tunnel)], slow=True)
    out.metadata.CopyFrom(
        metadata(
            service.kind, service.namespace, service.object, 0, service.source.file, service.source.line, istio=False
        )
    )
    return out


def _tcp_chains(service: Service, port: Port, scope: Scope, mesh: Mesh, draft: _Draft, *, sni: bool) -> list[Any]:
    """Chains of one service's port: VirtualService rules (tls by SNI, then tcp), and the service itself."""
    out: list[Any] = []
    for config in scope.virtual_services:
        if not any(
            matches(fqdn(host, config.meta.key.namespace, mesh.domain), service.hostname) for host in config.spec.hosts
        ):
            continue
        if port.protocol in TLS_PROTOCOLS and config.spec.tls:
            found = _rule_chains(config, "tls", port, scope, mesh, service)
            draft.inspect_tls = draft.inspect_tls or bool(found)
            out.extend(found)
        elif port.protocol not in TLS_PROTOCOLS or not out:
            out.extend(_rule_chains(config, "tcp", port, scope, mesh, service))
        if out:
            break  # the oldest VirtualService rules the host
    if any(not item.filter_chain_match.ListFields() for item in out):
        return out
    own = _plain_chain(service, port, scope)
    if sni:
        own.filter_chain_match.server_names.append(service.hostname)
        draft.inspect_tls = True
    out.append(own)
    return out


def _l4_applies(block: Any, port: Port, scope: Scope) -> bool:
    if block.port and block.port != port.number:
        return False
    if block.gateways:
        return "mesh" in block.gateways
    if not selects(freeze(block.source_labels), scope.key.labels):
        return False
    return not block.source_namespace or bool(block.source_namespace == scope.key.namespace)


def _rule_chains(config: Config, kind: str, port: Port, scope: Scope, mesh: Mesh, service: Service) -> list[Any]:
    key = config.meta.key
    out: list[Any] = []
    for index, rule in enumerate(getattr(config.spec, kind)):
        blocks = [block for block in rule.match if _l4_applies(block, port, scope)]
        if rule.match and not blocks:
            continue
        forward = forward_filter(rule, config, scope, mesh, port.number, _idle(service, port, scope))
        for block in blocks or [None]:
            match = envoy.FilterChainMatch()
            if block is not None:
                if kind == "tls":
                    match.server_names.extend(block.sni_hosts)
                match.prefix_ranges.extend(
                    _range(text if "/" in text else f"{text}/{128 if ':' in text else 32}")
                    for text in block.destination_subnets
                )
            item = filters.chain([forward], match=match if match.ListFields() else None, slow=True)
            item.metadata.CopyFrom(
                metadata(
                    key.kind,
                    key.namespace,
                    key.name,
                    index,
                    config.meta.source.file,
                    config.line(f"{kind}[{index}]"),
                    istio=True,
                )
            )
            out.append(item)
            if block is None or not match.ListFields():
                return out
    return out


def forward_filter(rule: Any, config: Config, scope: Scope, mesh: Mesh, port: int, idle: Any = None) -> Any:
    """The TCP proxy of a tcp or tls rule: one cluster, or several by weight."""
    space = config.meta.key.namespace
    wanted = [
        (destination_cluster(route.destination, space, scope, mesh, port, http=False), int(route.weight))
        for route in rule.route
    ]
    if len(wanted) == 1:
        target = rule.route[0].destination
        found = scope.rules.get(fqdn(target.host, space, mesh.domain))
        return filters.tcp(wanted[0][0], idle=idle, tunnel=resolve(found, port, target.subset).tunnel)
    weights = [(name, weight) for name, weight in wanted if weight]
    return filters.tcp("", stat=f"{config.meta.key.name}.{space}", weights=weights, idle=idle)


def _catch_all_cluster(scope: Scope) -> str:
    return names.PASSTHROUGH if scope.allow_any else names.BLACK_HOLE


def _address(address: str, port: int) -> Any:
    return envoy.Address(socket_address={"address": address, "port_value": port})


def _finish(name: str, draft: _Draft, scope: Scope) -> Any:
    out = envoy.Listener(
        name=name,
        address=_address(draft.address, draft.port),
        traffic_direction="OUTBOUND",
        bind_to_port={"value": scope.key.interception == "NONE"},
    )
    for other in draft.also:
        out.additional_addresses.add(address=_address(other, draft.port))
    if draft.route:
        match = envoy.FilterChainMatch(transport_protocol="raw_buffer", application_protocols=filters.PLAIN_HTTP)
        out.filter_chains.append(
            filters.chain([filters.outbound_http(draft.stat, draft.route)], match=match, slow=True)
        )
        plain = [item for item in draft.chains if not item.filter_chain_match.ListFields()]
        out.filter_chains.extend(item for item in draft.chains if item.filter_chain_match.ListFields())
        fallback = draft.fallback if draft.fallback is not None else (plain[0] if plain else None)
        if fallback is None:
            fallback = filters.chain(
                [filters.tcp(_catch_all_cluster(scope))], name="PassthroughFilterChain", match=envoy.FilterChainMatch()
            )
            fallback.filter_chain_match.SetInParent()
        out.default_filter_chain.CopyFrom(fallback)
        out.listener_filters.append(filters.http_inspector())
    else:
        seen: set[bytes] = set()
        for item in draft.chains:
            key = item.filter_chain_match.SerializeToString(deterministic=True)
            if key not in seen:  # Envoy refuses two chains with one match; the older service keeps it
                seen.add(key)
                out.filter_chains.append(item)
    if draft.inspect_tls:
        out.listener_filters.insert(0, filters.tls_inspector())
    if out.listener_filters:
        out.continue_on_listener_filters_timeout = True
        out.listener_filters_timeout.SetInParent()
    return out


def _virtual(scope: Scope) -> Any:
    """Where captured connections arrive: handed to the listener of their destination, else passed through."""
    wildcard, also = _wildcards(scope)
    match = envoy.FilterChainMatch(destination_port={"value": CAPTURE_PORT})
    out = envoy.Listener(
        name="virtualOutbound",
        address=_address(wildcard, CAPTURE_PORT),
        traffic_direction="OUTBOUND",
        use_original_dst={"value": True},
        max_connections_to_accept_per_socket_event={"value": 1},
        filter_chains=[
            filters.chain([filters.tcp(names.BLACK_HOLE)], name="virtualOutbound-blackhole", match=match),
            filters.chain([filters.tcp(_catch_all_cluster(scope))], name="virtualOutbound-catchall-tcp"),
        ],
    )
    for other in also:
        out.additional_addresses.add(address=_address(other, CAPTURE_PORT))
    return out
