"""Listeners as services: which address and port is HTTP by which route table, or TCP to which clusters (pure)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import Final

from nodeagent.cache.resources import Chain, Http, Listener, RouteConfiguration, Source, WeightedCluster
from nodeagent.cache.store import Resources

#: Clusters of Istio's that mean "where the connection was going anyway" and "nowhere".
PASSTHROUGH: Final = "PassthroughCluster"
_SHADOWS: Final = frozenset({PASSTHROUGH, "BlackHoleCluster"})
_ANY: Final = frozenset({"0.0.0.0", "::"})
#: Kinds of objects that make a route something else than what a Service yields by itself.
_PLAIN_KINDS: Final = frozenset({"", "Service", "ServiceEntry"})


@dataclass(frozen=True, slots=True)
class HttpService:
    """Requests to `address:port` take the route table `table` (an RDS name or a listener's own)."""

    address: str
    port: int
    table: str
    listener: str


@dataclass(frozen=True, slots=True)
class TcpService:
    """Connections to `address:port` go to `clusters`."""

    address: str
    port: int
    clusters: tuple[WeightedCluster, ...]
    listener: str
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Uncaptured:
    """A listener, or a part of one, that is no service.

    `reason` says why; `address` is set when it would have been one for that address, which is then refused. `host` is
    set when it is one virtual host (a headless service, a host without an address); `source` is that of its first rule.
    """

    listener: str
    reason: str
    address: str = ""
    port: int = 0
    host: str = ""
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class TableUse:
    """A route table that services use, with what its listener adds to every route of it."""

    name: str
    routes: RouteConfiguration | None
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Services:
    """All services of a view.

    Where a listener of a single address and one of any address claim the same address and port, the single one has it.
    """

    http: tuple[HttpService, ...]
    tcp: tuple[TcpService, ...]
    uncaptured: tuple[Uncaptured, ...]
    tables: tuple[TableUse, ...]


def services_of(resources: Resources) -> Services:
    """Services, in a deterministic order."""
    found: dict[tuple[str, int], HttpService | TcpService | Uncaptured] = {}
    uncaptured: list[Uncaptured] = []
    tables: dict[str, TableUse] = {}
    listeners = [
        listener
        for listener in resources.listeners.values()
        if listener.direction != "inbound" and not listener.capture and not listener.udp
    ]
    for single in (False, True):
        for listener in listeners:
            for address, port in listener.addresses:
                if (address in _ANY) is single:
                    continue
                for item in _read(listener, "" if address in _ANY else address, port, resources, tables):
                    if isinstance(item, Uncaptured) and not item.address:
                        uncaptured.append(item)
                    else:
                        found[item.address, item.port] = item
    ordered = [found[key] for key in sorted(found)]
    return Services(
        tuple(item for item in ordered if isinstance(item, HttpService)),
        tuple(item for item in ordered if isinstance(item, TcpService)),
        tuple(uncaptured) + tuple(item for item in ordered if isinstance(item, Uncaptured)),
        tuple(tables[name] for name in sorted(tables)),
    )


def _read(
    listener: Listener, address: str, port: int, resources: Resources, tables: dict[str, TableUse]
) -> Iterator[HttpService | TcpService | Uncaptured]:
    """What a listener is at one address; `address` is empty for a listener of any address."""
    groups: dict[tuple[str, ...], list[Chain]] = {}
    for chain in listener.chains:
        groups.setdefault(chain.destinations, []).append(chain)
    if not groups or (() not in groups and listener.default is not None):
        groups[()] = []
    for destinations, chains in groups.items():
        reachable = chains if destinations or listener.default is None else [*chains, listener.default]
        narrow = sorted({condition for chain in reachable for condition in chain.conditions})
        if narrow:
            reason = f"the filter chains depend on {', '.join(narrow)}"
            for target in destinations or (address,):
                yield Uncaptured(listener.name, reason, target, port)
            continue
        http = next((chain for chain in reachable if chain.http is not None), None)
        tcp = next((chain for chain in reachable if chain.tcp is not None and chain.http is None), None)
        if http is not None and http.http is not None and _speaks_http(http.http, tcp, resources):
            table = _table(listener, http, http.http, resources, tables)
            for vip in destinations or ((address,) if address else _addresses(table.routes)):
                yield HttpService(vip, port, table.name, listener.name)
            if not destinations and not address:
                yield from _without_address(listener, table.routes)
        elif tcp is not None and tcp.tcp is not None:
            clusters = tcp.tcp.clusters
            if all(cluster.name == PASSTHROUGH for cluster in clusters):
                continue
            features = (*tcp.unsupported, *tcp.tcp.unsupported)
            if not destinations and not address:
                yield Uncaptured(listener.name, "a TCP listener of any address has no service address to capture")
            for vip in destinations or ((address,) if address else ()):
                yield TcpService(vip, port, clusters, listener.name, features)
        else:
            for target in destinations or (address,):
                yield Uncaptured(listener.name, "no filter chain ends in HTTP or TCP", target, port)


def _without_address(listener: Listener, routes: RouteConfiguration | None) -> Iterator[Uncaptured]:
    """Virtual hosts that no address leads to: their clients connect to endpoints' own addresses, which nobody captures.

    Their rules still hold for a request that names such a host on a connection to another service of the port.
    """
    for vhost in routes.virtual_hosts if routes is not None else ():
        if "*" not in vhost.domains and all(_address(domain) is None for domain in vhost.domains):
            source = next((route.source for route in vhost.routes if route.source is not None), None)
            reason = "no service address leads to it (headless, or a host without addresses)"
            yield Uncaptured(listener.name, reason, host=vhost.name, source=source)


def _speaks_http(http: Http, tcp: Chain | None, resources: Resources) -> bool:
    """Whether an address whose protocol would be sniffed is HTTP for us.

    Sniffing means reading before connecting, which ordinary sockets do not do. A port of undeclared protocol (an HTTP
    chain beside a TCP chain to the service itself) is HTTP when some rule of a user speaks about its requests.
    """
    if tcp is None or tcp.tcp is None or all(cluster.name in _SHADOWS for cluster in tcp.tcp.clusters):
        return True
    routes = http.inline if http.inline is not None else resources.routes.get(http.rds)
    if routes is None:
        return False
    return any(
        route.source is not None and route.source.kind not in _PLAIN_KINDS
        for vhost in routes.virtual_hosts
        for route in vhost.routes
    )


def _table(listener: Listener, chain: Chain, http: Http, resources: Resources, tables: dict[str, TableUse]) -> TableUse:
    inline = http.inline is not None or not http.rds
    name = f"{listener.name} (inline)" if inline else http.rds
    routes = http.inline if inline else resources.routes.get(http.rds)
    features = (*chain.unsupported, *http.unsupported)
    known = tables.get(name)
    if known is not None:
        # Two listeners of one table: what either of them adds holds for both, on the safe side.
        features = tuple(dict.fromkeys((*known.features, *features)))
    tables[name] = TableUse(name, routes, features)
    return tables[name]


@lru_cache(maxsize=65536)
def _address(domain: str) -> str | None:
    try:
        return str(ip_address(domain.strip("[]")))
    except ValueError:
        return None


def _addresses(routes: RouteConfiguration | None) -> list[str]:
    """Service addresses among the domains: Istio writes a service's VIPs there, IPv6 in brackets."""
    vhosts = routes.virtual_hosts if routes is not None else ()
    found = (_address(domain) for vhost in vhosts for domain in vhost.domains)
    return [address for address in found if address is not None]
