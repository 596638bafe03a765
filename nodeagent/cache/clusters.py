"""Cluster and ClusterLoadAssignment -> values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from nodeagent.cache.decode import filter_metadata, is_ip, leftovers, parse, source_of, unique
from nodeagent.cache.outliers import outlier_of
from nodeagent.cache.resources import Assignment, Balance, Cluster, ClusterKind, Endpoint, Locality
from nodeagent.errors import ResourceError
from nodeagent.rules.model import Hashed, Limit
from underpass.api import envoy

_KINDS: Final = {
    0: ClusterKind.STATIC,
    1: ClusterKind.DNS,
    2: ClusterKind.DNS,
    3: ClusterKind.EDS,
    4: ClusterKind.ORIGINAL_DST,
}
_BALANCE: Final = {
    0: Balance.ROUND_ROBIN,
    1: Balance.LEAST_REQUEST,
    2: Balance.RING_HASH,
    3: Balance.RANDOM,
    5: Balance.MAGLEV,
    6: Balance.PROVIDED,
}
#: `load_balancing_policy` names the policy by the type of its configuration.
_POLICIES: Final = {
    "RoundRobin": Balance.ROUND_ROBIN,
    "LeastRequest": Balance.LEAST_REQUEST,
    "Random": Balance.RANDOM,
    "RingHash": Balance.RING_HASH,
    "Maglev": Balance.MAGLEV,
}
#: Istio writes "no limit" as the largest number.
_NO_LIMIT: Final = 0xFFFFFFFF
#: Fields that change nothing about which endpoint a plaintext HTTP/1.1 request goes to, nor refuse any.
_HARMLESS: Final = (
    "name",
    "alt_stat_name",
    "type",
    "eds_cluster_config",
    "connect_timeout",
    "per_connection_buffer_limit_bytes",
    "lb_policy",
    "load_balancing_policy",
    "load_assignment",
    "circuit_breakers",
    "common_lb_config",
    "metadata",
    "dns_refresh_rate",
    "dns_jitter",
    "dns_failure_refresh_rate",
    "respect_dns_ttl",
    "dns_lookup_family",
    "cleanup_interval",
    "upstream_connection_options",
    "upstream_bind_config",
    "typed_extension_protocol_options",
    "http_protocol_options",
    "http2_protocol_options",
    "common_http_protocol_options",
    "protocol_selection",
    "transport_socket",
    "transport_socket_matches",
    "least_request_lb_config",
    "round_robin_lb_config",
    "ring_hash_lb_config",
    "maglev_lb_config",
    "close_connections_on_host_health_failure",
    "ignore_health_on_host_removal",
    "filters",
    "track_cluster_stats",
    "wait_for_warm_on_init",
    "max_requests_per_connection",
    "preconnect_policy",
    "outlier_detection",
)
_FEATURES: Final = {
    "health_checks": "health-checks",
    "lb_subset_config": "subset-balancing",
    "cluster_type": "cluster-type",
}
_USABLE: Final = (0, 1, 5)  # UNKNOWN, HEALTHY, DEGRADED
_DEGRADED: Final = 5
#: Percent of usable endpoints below which Envoy ignores health, unless the cluster says otherwise.
_PANIC: Final = 50
_MAGLEV: Final = 65537
#: Larger rings and tables would keep home, one thread, busy for too long whenever endpoints change.
_RING_MAX: Final = 8192
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def decode_cluster(body: bytes) -> Cluster:
    """Bytes of a CDS resource. Raises ResourceError for what Envoy would refuse too."""
    message = parse(envoy.Cluster, body)
    kind = ClusterKind.OTHER if message.HasField("cluster_type") else _KINDS.get(message.type, ClusterKind.OTHER)
    extra = leftovers(message, _HARMLESS, _FEATURES)
    balance, more = _balance(message)
    limit, limits = _limits(message)
    extra += more + limits + _transport(message) + _protocol(message)
    locality_weighted, more = _locality(message.common_lb_config)
    extra += more
    outlier, more = outlier_of(message)
    extra += more
    assignment = None
    if message.HasField("load_assignment"):
        if kind is ClusterKind.EDS:
            raise ResourceError("an EDS cluster carries its own load_assignment")
        assignment = _assignment(message.load_assignment, named=kind is ClusterKind.DNS)
    eds_name = ""
    if kind is ClusterKind.EDS:
        eds_name = message.eds_cluster_config.service_name or message.name
    istio = filter_metadata(message, "istio")
    hashed, refused = _hashed(message, balance)
    return Cluster(
        name=message.name,
        kind=kind,
        balance=balance,
        eds_name=eds_name,
        assignment=assignment,
        source=source_of(message),
        subset=str(istio.get("subset") or ""),
        host=_host(message.name),
        locality_weighted=locality_weighted,
        unsupported=unique(extra + refused),
        hashed=hashed,
        panic=_panic(message.common_lb_config),
        outlier=outlier,
        limit=limit,
        retry_budget=any(threshold.HasField("retry_budget") for threshold in message.circuit_breakers.thresholds),
    )


def _hashed(message: Any, balance: Balance) -> tuple[Hashed | None, list[str]]:
    """How a hash finds an endpoint, if it does; a policy of the newer form is not looked into."""
    if message.HasField("load_balancing_policy"):
        return None, []
    if balance is Balance.MAGLEV:
        config = message.maglev_lb_config
        table = config.table_size.value or _MAGLEV
        return Hashed(message.name, table=table), ["table-size"] if table > _MAGLEV else []
    if balance is not Balance.RING_HASH:
        return None, []
    config = message.ring_hash_lb_config
    ring = Hashed(message.name)
    if config.HasField("minimum_ring_size"):
        ring = replace(ring, smallest=config.minimum_ring_size.value)
    if config.HasField("maximum_ring_size"):
        ring = replace(ring, largest=config.maximum_ring_size.value)
    extra = ["hash-function"] if config.hash_function else []
    return ring, extra + (["ring-size"] if ring.smallest > _RING_MAX else [])


def _host(name: str) -> str:
    """The service in Istio's `outbound|PORT|SUBSET|HOST`; empty for other names."""
    parts = name.split("|")
    return parts[3] if len(parts) == 4 else ""


def _balance(message: Any) -> tuple[Balance, list[str]]:
    extra = []
    if message.HasField("load_balancing_policy") and message.load_balancing_policy.policies:
        url = message.load_balancing_policy.policies[0].typed_extension_config.typed_config.type_url
        balance = _POLICIES.get(url.rpartition(".")[2], Balance.OTHER)
    else:
        balance = _BALANCE.get(message.lb_policy, Balance.OTHER)
    slow = (message.least_request_lb_config, message.round_robin_lb_config)
    if any(config.HasField("slow_start_config") for config in slow):
        extra.append("slow-start")
    least = message.least_request_lb_config
    if least.HasField("choice_count") and least.choice_count.value != 2:
        extra.append("choice-count")
    return balance, extra


def _limits(message: Any) -> tuple[Limit | None, list[str]]:
    """Circuit breakers that limit something: what home keeps to, and the name of what nobody here does.

    Envoy's own defaults (1,024, and 3 retries) apply when nothing is set; that is no wish of a user, so it is not
    counted. Queues before connections, and so limits of either, are the waypoint's; so is the class for high priority.
    """
    limit, extra = Limit(message.name), []
    for threshold in message.circuit_breakers.thresholds:
        asked = {
            name: int(getattr(threshold, name).value)
            for name in ("max_connections", "max_pending_requests", "max_requests", "max_retries")
            if threshold.HasField(name) and getattr(threshold, name).value != _NO_LIMIT
        }
        if threshold.priority:
            extra += ["circuit-breaker"] if asked else []
            continue
        limit = replace(limit, requests=asked.pop("max_requests", -1), retries=asked.pop("max_retries", -1))
        extra += ["circuit-breaker"] if asked else []
    return (limit if limit != Limit(message.name) else None), extra


def _transport(message: Any) -> list[str]:
    """TLS that is required.

    `transport_socket_matches` with a plaintext alternative is Istio's automatic mTLS, which leaves the choice to the
    client.
    """
    found = []
    if message.HasField("transport_socket") and not _plain(message.transport_socket):
        found.append("upstream-tls")
    matches = message.transport_socket_matches
    if matches and not any(_plain(match.transport_socket) for match in matches):
        found.append("upstream-tls")
    return found


def _plain(socket: Any) -> bool:
    raw = socket.name == "envoy.transport_sockets.raw_buffer"
    return raw or str(socket.typed_config.type_url).endswith(".RawBuffer")


def _protocol(message: Any) -> list[str]:
    """HTTP/2 towards the endpoints is not ours. "As the client speaks" is HTTP/1.1 here: only that gets so far."""
    if message.HasField("http2_protocol_options") and message.protocol_selection == 0:
        return ["upstream-http2"]
    packed = message.typed_extension_protocol_options
    if _HTTP_OPTIONS not in packed:
        return []
    options = parse(envoy.HttpProtocolOptions, packed[_HTTP_OPTIONS].value)
    explicit = options.explicit_http_config
    chosen = options.WhichOneof("upstream_protocol_options")
    if chosen == "explicit_http_config" and explicit.WhichOneof("protocol_config") in (
        "http2_protocol_options",
        "http3_protocol_options",
    ):
        return ["upstream-http2"]
    return []


def _locality(config: Any) -> tuple[bool, list[str]]:
    names = {"consistent_hashing_lb_config": "consistent-hash", "override_host_status": "override-host"}
    known = (
        "healthy_panic_threshold",
        "locality_weighted_lb_config",
        "zone_aware_lb_config",
        "update_merge_window",
        "ignore_new_hosts_until_first_hc",
        "close_connections_on_host_set_change",
    )
    extra = leftovers(config, known, names)
    if config.zone_aware_lb_config.fail_traffic_on_panic:
        extra.append("fail-traffic-on-panic")
    return config.HasField("locality_weighted_lb_config"), extra


def _panic(config: Any) -> int:
    if not config.HasField("healthy_panic_threshold"):
        return _PANIC
    return min(100, round(float(config.healthy_panic_threshold.value)))


def decode_assignment(body: bytes) -> Assignment:
    """Bytes of an EDS resource. Raises ResourceError for what Envoy would refuse too."""
    message = parse(envoy.ClusterLoadAssignment, body)
    return _assignment(message, named=False)


def _assignment(message: Any, *, named: bool) -> Assignment:
    extra = leftovers(message, ("cluster_name", "endpoints", "policy"))
    extra += leftovers(
        message.policy,
        ("overprovisioning_factor", "endpoint_stale_after", "weighted_priority_health"),
        {"drop_overloads": "drop-overload"},
    )
    localities = []
    for group in message.endpoints:
        if group.WhichOneof("lb_config") is not None:
            extra.append("load-reporting")
        endpoints = tuple(_endpoint(item, named=named) for item in group.lb_endpoints)
        localities.append(
            Locality(
                group.locality.region,
                group.locality.zone,
                group.locality.sub_zone,
                group.priority,
                group.load_balancing_weight.value,
                endpoints,
            )
        )
    policy = message.policy
    factor = policy.overprovisioning_factor.value if policy.HasField("overprovisioning_factor") else 140
    if not factor:
        raise ResourceError("an overprovisioning factor of 0")
    weighted = policy.weighted_priority_health
    return Assignment(message.cluster_name, tuple(localities), unique(extra), factor, weighted)


def _endpoint(message: Any, *, named: bool) -> Endpoint:
    if message.WhichOneof("host_identifier") != "endpoint":
        return Endpoint("", 0, usable=False, unsupported=("named-endpoint",))
    address = message.endpoint.address
    if message.HasField("load_balancing_weight") and message.load_balancing_weight.value == 0:
        raise ResourceError("an endpoint has weight 0")
    weight = message.load_balancing_weight.value or 1
    workload = str(filter_metadata(message, "istio").get("workload") or "")
    usable = message.health_status in _USABLE
    if address.WhichOneof("address") != "socket_address":
        kind = address.WhichOneof("address") or "no-address"
        return Endpoint("", 0, weight, usable, workload, (f"endpoint-{kind.replace('_', '-')}",))
    socket = address.socket_address
    extra = []
    if socket.protocol != 0:
        extra.append("udp")
    if socket.resolver_name:
        extra.append("resolver")
    if not is_ip(socket.address):
        if not named:
            raise ResourceError(f"endpoint {socket.address!r} is not an IP address")
        extra.append("dns-endpoint")
    if not 0 < socket.port_value < 65536:
        raise ResourceError(f"endpoint {socket.address} has port {socket.port_value}")
    degraded = message.health_status == _DEGRADED
    return Endpoint(socket.address, socket.port_value, weight, usable, workload, tuple(extra), degraded)
