"""Virtual hosts of a sidecar's outbound route configurations, with Istio's names, domains and order.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from controlplane.model.hosts import is_wildcard, matches, specificity
from controlplane.model.mesh import HTTP_PROTOCOLS, Mesh, Service, fqdn
from controlplane.model.objects import Config
from controlplane.translate import names
from controlplane.translate.memo import Memo
from controlplane.translate.routes import Place, default_route, set_timeout, virtual_service_routes
from controlplane.translate.scope import Scope
from underpass.api import envoy

#: Virtual hosts say how often a request was tried, in a header to the server.
ATTEMPT_COUNT = True
#: Largest body of a direct response in a route configuration, bytes.
MAX_BODY = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Group:
    """Hosts that share a list of routes: those services, and those bare host names of a VirtualService."""

    services: tuple[Service, ...]
    hosts: tuple[str, ...]
    routes: tuple[Any, ...]


def serves_http(service: Service, port: int) -> bool:
    """Whether requests to this port are routed as HTTP: declared so, or found out by looking."""
    found = service.port(port)
    return found is not None and (found.protocol in HTTP_PROTOCOLS or found.protocol == "AUTO")


def alternative_names(hostname: str, client_domain: str) -> list[str]:
    """Short names under which a client of ``ns.svc.cluster.local`` may call a service, in Istio's order."""
    space, marker, suffix = client_domain.partition(".svc.")
    if not marker or not hostname.endswith(f".svc.{suffix}"):
        return []
    bare = hostname.removesuffix(f".svc.{suffix}")
    name, dot, owner = bare.partition(".")
    if not dot:
        return []
    if owner == space:
        return [name, f"{bare}.svc", bare]
    return [bare, f"{bare}.svc"]


def domains(service: Service, scope: Scope) -> tuple[list[str], list[str]]:
    """Return all names of a service (full name first, addresses last), and which of them are abbreviations.

    Names carry no port: route configurations ignore the port of a Host header.
    """
    short = alternative_names(service.hostname, scope.key.domain)
    full = [service.hostname]
    if short and not is_wildcard(service.hostname):
        full.append(f"{service.hostname}.")
    out = [*full, *short]
    if service.headless:
        out.extend([f"*.{name}" for name in out])
    for address in service.addresses:
        if "/" not in address and address not in ("0.0.0.0", "::") and _family(address) in scope.key.families:
            out.append(names.compliant(address))
    return out, short


def _family(address: str) -> int:
    return 6 if ":" in address else 4


def group_hosts(scope: Scope, mesh: Mesh, port: int, memo: Memo) -> list[Group]:
    """Assign every service with HTTP on ``port`` to the VirtualService that rules it, or to itself."""
    registry = {
        name: service for name, service in scope.services.items() if service.port(port) and serves_http(service, port)
    }
    owners: dict[str, Config] = {}
    bare: dict[str, Config] = {}
    for config in scope.virtual_services:
        for host in config.spec.hosts:
            name = fqdn(host, config.meta.key.namespace, mesh.domain)
            if is_wildcard(name):
                continue
            (owners if name in registry else bare).setdefault(name, config)
    for name, config in _wildcards(scope, mesh):
        found = [other for other in registry if other not in owners and matches(name, other)]
        for other in found:
            owners[other] = config
        if not found:
            bare.setdefault(name, config)
    place = Place(port)
    groups: dict[int, Group] = {}
    claimed: dict[int, tuple[Config, list[Service], list[str]]] = {}
    for name, config in owners.items():
        claimed.setdefault(id(config), (config, [], []))[1].append(registry[name])
    if port == 80:  # names that no service has are routed on port 80 only
        for name, config in bare.items():
            claimed.setdefault(id(config), (config, [], []))[2].append(name)
    else:
        for name, config in bare.items():
            if id(config) in claimed:
                claimed[id(config)][2].append(name)
    ruled: set[str] = set()
    for identity, (config, services, hosts) in claimed.items():
        routes = virtual_service_routes(config, scope, mesh, place)
        if routes:
            services.sort(key=lambda service: service.hostname)
            groups[identity] = Group(tuple(services), tuple(sorted(hosts)), tuple(routes))
            ruled.update(service.hostname for service in services)
    out = list(groups.values())
    for name, service in registry.items():
        if name not in ruled:
            key = ("default-route", service, port, scope.key.generator, _hashed(scope, name))
            route = memo.get(key, partial(default_route, service, port, scope))
            out.append(Group((service,), (), (route,)))
    return out


def _hashed(scope: Scope, name: str) -> object:
    rule = scope.rules.get(name)
    return rule.sources if rule is not None else None


def _wildcards(scope: Scope, mesh: Mesh) -> list[tuple[str, Config]]:
    """Wildcard hosts of VirtualServices: the most specific first, the oldest of equals first."""
    found = [
        (fqdn(host, config.meta.key.namespace, mesh.domain), index, config)
        for index, config in enumerate(scope.virtual_services)
        for host in config.spec.hosts
        if is_wildcard(host)
    ]
    found.sort(key=lambda item: (*specificity(item[0]), item[1]))
    return [(name, config) for name, _, config in found]


def virtual_hosts(groups: Iterable[Group], scope: Scope, port: int) -> list[Any]:
    """Build the virtual hosts, sorted by name; a domain belongs to the first host that claims it."""
    listed = list(groups)
    known = {service.hostname for group in listed for service in group.services}
    taken: set[str] = set()
    seen: set[str] = set()
    out: list[Any] = []

    def add(host: str, claimed: list[str], short: list[str], routes: tuple[Any, ...]) -> None:
        name = names.domain(host, port)
        if name in seen:
            return
        seen.add(name)
        kept: list[str] = []
        for text in claimed:
            lowered = text.lower()
            if lowered in taken or (text in short and text in known):
                continue
            taken.add(lowered)
            kept.append(text)
        if kept:
            out.append(
                envoy.VirtualHost(name=name, domains=kept, routes=routes, include_request_attempt_count=ATTEMPT_COUNT)
            )

    for group in listed:
        for host in group.hosts:
            add(host, [names.compliant(host)], [], group.routes)
        for service in group.services:
            add(service.hostname, *domains(service, scope), group.routes)
    return sorted(out, key=lambda host: str(host.name))


def catch_all(scope: Scope, mesh: Mesh) -> Any:
    """What happens to hosts that nobody knows: passed through, or refused with 502 (outboundTrafficPolicy)."""
    if not scope.allow_any:
        route = envoy.Route(name="block_all", match={"prefix": "/"}, direct_response={"status": 502})
        return envoy.VirtualHost(
            name="block_all", domains=["*"], routes=[route], include_request_attempt_count=ATTEMPT_COUNT
        )
    cluster = names.PASSTHROUGH
    if scope.egress_proxy is not None:
        proxy = scope.egress_proxy
        cluster = names.cluster(fqdn(proxy.host, scope.key.namespace, mesh.domain), proxy.port.number, proxy.subset)
    route = envoy.Route(name="allow_any", match={"prefix": "/"})
    route.route.cluster = cluster
    set_timeout(route.route, None)
    return envoy.VirtualHost(
        name="allow_any", domains=["*"], routes=[route], include_request_attempt_count=ATTEMPT_COUNT
    )


def configuration(name: str, hosts: list[Any]) -> Any:
    """Wrap virtual hosts in a route configuration."""
    return envoy.RouteConfiguration(
        name=name,
        virtual_hosts=hosts,
        validate_clusters=envoy.BoolValue(value=False),
        max_direct_response_body_size_bytes=envoy.UInt32Value(value=MAX_BODY),
        ignore_port_in_host_matching=True,
    )


def port_configuration(scope: Scope, mesh: Mesh, port: int, memo: Memo) -> Any:
    """Route configuration of all HTTP services of one port; its name is the port."""
    hosts = virtual_hosts(group_hosts(scope, mesh, port, memo), scope, port)
    return configuration(str(port), [*hosts, catch_all(scope, mesh)])


def sniffed_configuration(scope: Scope, mesh: Mesh, service: Service, port: int, memo: Memo) -> Any:
    """Route configuration of one service's undeclared port, named ``host:port``: all hosts are this service."""
    groups = group_hosts(scope, mesh, port, memo)
    name = names.domain(service.hostname, port)
    for host in virtual_hosts(groups, scope, port):
        if host.name == name:
            only = envoy.VirtualHost()
            only.CopyFrom(host)
            del only.domains[:]
            only.domains.append("*")
            return configuration(name, [only])
    return configuration(name, [])
