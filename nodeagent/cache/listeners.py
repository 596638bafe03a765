"""Listener -> value."""

from __future__ import annotations

import re
from typing import Any, Final

from nodeagent.cache.decode import is_ip, leftovers, parse, unique
from nodeagent.cache.resources import Chain, Http, Listener, Tcp, WeightedCluster
from nodeagent.cache.routes import routes_from
from nodeagent.errors import ResourceError
from underpass.api import envoy

_HCM: Final = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_TCP: Final = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
_DIRECTIONS: Final = {0: "", 1: "inbound", 2: "outbound"}
#: A plaintext chain that asks for these protocols is the HTTP half of protocol sniffing, not a narrower match.
_SNIFFED: Final = frozenset({"http/1.0", "http/1.1", "h2c", "h2"})
#: HTTP filters that do nothing to a request unless a route or virtual host configures them, or that only observe.
_IDLE_HTTP_FILTERS: Final = frozenset(
    {
        "envoy.extensions.filters.http.router.v3.Router",
        "envoy.extensions.filters.http.cors.v3.Cors",
        "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
        "io.istio.http.peer_metadata.Config",
        "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
        "stats.PluginConfig",
    }
)
#: Network filters in front of the terminal one that only observe.
_IDLE_NETWORK_FILTERS: Final = frozenset({"envoy.tcp.metadataexchange.config.MetadataExchange", "stats.PluginConfig"})
#: Authorization filters; Istio names each rule of a policy so that policy and namespace can be read from it.
_RBAC: Final = {
    "envoy.extensions.filters.http.rbac.v3.RBAC": envoy.HttpRBAC,
    "envoy.extensions.filters.network.rbac.v3.RBAC": envoy.NetworkRBAC,
}
_POLICY: Final = re.compile(r"ns\[([^\]]*)\]-policy\[([^\]]*)\]")


def decode_listener(body: bytes) -> Listener:
    """Bytes of an LDS resource. Raises ResourceError for what Envoy would refuse too."""
    message = parse(envoy.Listener, body)
    if message.HasField("api_listener"):
        # A proxyless gRPC client's listener: there is nothing to capture by address.
        return Listener(message.name, _DIRECTIONS.get(message.traffic_direction, ""), (), capture=True)
    if not message.HasField("address"):
        raise ResourceError("the listener has no address")
    addresses = [_address(message.address)]
    addresses += [_address(extra.address) for extra in message.additional_addresses]
    udp = message.address.socket_address.protocol == 1
    chains = tuple(_chain(chain) for chain in message.filter_chains)
    default = _chain(message.default_filter_chain) if message.HasField("default_filter_chain") else None
    capture = message.use_original_dst.value or message.name in ("virtualInbound", "virtualOutbound")
    direction = _DIRECTIONS.get(message.traffic_direction, "")
    if message.name == "virtualInbound":
        direction = "inbound"
    return Listener(message.name, direction, tuple(addresses), chains, default, capture, udp)


def _address(message: Any) -> tuple[str, int]:
    if message.WhichOneof("address") != "socket_address":
        raise ResourceError("the listener's address is not an IP address and port")
    address, port = message.socket_address.address, message.socket_address.port_value
    if not is_ip(address) or not 0 <= port < 65536:
        raise ResourceError(f"the listener's address {address}:{port} is not an IP address and port")
    return address, port


def _chain(message: Any) -> Chain:
    match = message.filter_chain_match
    conditions = leftovers(
        match,
        ("transport_protocol", "application_protocols", "prefix_ranges"),
        {
            "destination_port": "destination-port",
            "server_names": "sni",
            "source_prefix_ranges": "source-prefix",
            "direct_source_prefix_ranges": "source-prefix",
        },
    )
    if match.transport_protocol not in ("", "raw_buffer"):
        conditions.append(match.transport_protocol)
    if not _SNIFFED.issuperset(match.application_protocols):
        conditions.append("application-protocol")
    destinations = [_single(prefix) for prefix in match.prefix_ranges]
    if None in destinations:
        conditions.append("destination-prefix")
    extra = []
    policies: list[str] = []
    socket_type = message.transport_socket.typed_config.type_url
    if message.HasField("transport_socket") and not socket_type.endswith(".RawBuffer"):
        extra.append("downstream-tls")
    http: Http | None = None
    tcp: Tcp | None = None
    for network_filter in message.filters:
        url = network_filter.typed_config.type_url.rpartition("/")[2]
        if url == _HCM:
            http = _http(network_filter.typed_config.value)
        elif url == _TCP:
            tcp = _tcp(network_filter.typed_config.value)
        elif url not in _IDLE_NETWORK_FILTERS:
            policies += _policies(url, network_filter.typed_config.value)
            extra.append(f"filter {network_filter.name or url}")
    single = tuple(destination for destination in destinations if destination is not None)
    port = match.destination_port.value
    return Chain(message.name, http, tcp, single, unique(conditions), unique(extra), port, unique(policies))


def _policies(url: str, body: bytes) -> list[str]:
    """Authorization policies that a filter enforces: `NAMESPACE/NAME`, or the name of a rule that says no such thing.

    A filter that only tries policies out (Istio's dry run) enforces nothing.
    """
    if url not in _RBAC:
        return []
    message = parse(_RBAC[url], body)
    if not message.HasField("rules"):
        return []
    found = []
    for name in sorted(message.rules.policies):
        istio = _POLICY.match(name)
        found.append(f"{istio[1]}/{istio[2]}" if istio else name)
    return found or ["without rules"]


def _single(prefix: Any) -> str | None:
    """The address of a prefix that covers only one."""
    if not is_ip(prefix.address_prefix):
        raise ResourceError(f"{prefix.address_prefix!r} is not an IP address")
    whole = 128 if ":" in prefix.address_prefix else 32
    return str(prefix.address_prefix) if prefix.prefix_len.value == whole else None


def _http(body: bytes) -> Http:
    message = parse(envoy.HttpConnectionManager, body)
    extra = []
    policies: list[str] = []
    for http_filter in message.http_filters:
        url = http_filter.typed_config.type_url.rpartition("/")[2]
        if url == "envoy.extensions.filters.http.fault.v3.HTTPFault":
            fault = parse(envoy.HTTPFault, http_filter.typed_config.value)
            if fault.HasField("delay") or fault.HasField("abort"):
                extra.append("fault")
        elif url not in _IDLE_HTTP_FILTERS and not http_filter.disabled:
            policies += _policies(url, http_filter.typed_config.value)
            extra.append(f"filter {http_filter.name or url}")
    specifier = message.WhichOneof("route_specifier")
    if specifier == "rds":
        if not message.rds.route_config_name:
            raise ResourceError("the listener's RDS reference has no name")
        return Http(rds=message.rds.route_config_name, unsupported=unique(extra), policies=unique(policies))
    if specifier == "route_config":
        return Http(inline=routes_from(message.route_config), unsupported=unique(extra), policies=unique(policies))
    if specifier is None:
        raise ResourceError("the HTTP connection manager has no routes")
    extra.append(specifier.replace("_", "-"))
    return Http(unsupported=unique(extra), policies=unique(policies))


def _tcp(body: bytes) -> Tcp:
    message = parse(envoy.TcpProxy, body)
    extra = leftovers(
        message,
        ("stat_prefix", "cluster", "weighted_clusters", "access_log", "idle_timeout", "access_log_options"),
        {"tunneling_config": "tunnel", "hash_policy": "consistent-hash", "metadata_match": "subset-balancing"},
    )
    if message.WhichOneof("cluster_specifier") == "weighted_clusters":
        items = message.weighted_clusters.clusters
        clusters = tuple(WeightedCluster(item.name, item.weight) for item in items)
        if not clusters or any(item.weight == 0 for item in items):
            raise ResourceError("a TCP proxy's weighted clusters need at least one, each with a weight of 1 or more")
        extra += [f for item in items for f in leftovers(item, ("name", "weight"))]
        return Tcp(clusters, unique(extra))
    if not message.cluster:
        raise ResourceError("a TCP proxy names no cluster")
    return Tcp((WeightedCluster(message.cluster),), unique(extra))
