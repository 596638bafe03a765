"""Clusters: one for each port of a service, and one for each subset of it.  Pure."""

from __future__ import annotations

from typing import Any, Final

from controlplane.model.mesh import HTTP2_PROTOCOLS, Endpoint, Mesh, Port, Service
from controlplane.translate import names
from controlplane.translate.endpoints import load_assignment
from controlplane.translate.peer import service_mode
from controlplane.translate.policy import Policy, resolve
from controlplane.translate.route_action import duration
from controlplane.translate.scope import Rule, Scope
from controlplane.translate.tls import (
    DISABLE,
    ISTIO_MUTUAL,
    MUTUAL,
    SIMPLE,
    ads_source,
    auto_mutual,
    client_mutual,
    client_tls,
    raw_socket,
)
from underpass.api import envoy

UNLIMITED: Final = 2**32 - 1
HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
CONNECT_TIMEOUT: Final = 10
#: Envoy's idle time for the pass-through clusters, seconds.
PASSTHROUGH_IDLE: Final = 300

_SIMPLE: Final = {
    0: "LEAST_REQUEST", 1: "LEAST_REQUEST", 2: "RANDOM", 3: "CLUSTER_PROVIDED", 4: "ROUND_ROBIN", 5: "LEAST_REQUEST",
}  # fmt: skip
_TYPES: Final = {
    "EDS": "EDS", "DNS": "STRICT_DNS", "DNS_ROUND_ROBIN": "LOGICAL_DNS", "PASSTHROUGH": "ORIGINAL_DST",
    "DYNAMIC_DNS": "ORIGINAL_DST",
}  # fmt: skip


_LOOKUP: Final[dict[tuple[int, ...], str]] = {(4,): "V4_ONLY", (6,): "V6_ONLY"}


def thresholds() -> Any:
    """No circuit breaking: Envoy's own defaults are too low for a mesh."""
    return envoy.CircuitBreakers.Thresholds(
        max_connections={"value": UNLIMITED},
        max_pending_requests={"value": UNLIMITED},
        max_requests={"value": UNLIMITED},
        max_retries={"value": UNLIMITED},
    )


def black_hole() -> Any:
    """The cluster without endpoints: connections to it are refused."""
    return envoy.Cluster(
        name=names.BLACK_HOLE,
        type="STATIC",
        alt_stat_name=f"{names.BLACK_HOLE};",
        connect_timeout={"seconds": CONNECT_TIMEOUT},
    )


def passthrough(name: str, source: str = "") -> Any:
    """Forward to wherever the connection was going; ``source`` is the address to connect from."""
    options = envoy.HttpProtocolOptions(common_http_protocol_options={"idle_timeout": {"seconds": PASSTHROUGH_IDLE}})
    options.use_downstream_protocol_config.http_protocol_options.SetInParent()
    options.use_downstream_protocol_config.http2_protocol_options.SetInParent()
    out = envoy.Cluster(
        name=name,
        type="ORIGINAL_DST",
        lb_policy="CLUSTER_PROVIDED",
        alt_stat_name=f"{names.PASSTHROUGH};",
        connect_timeout={"seconds": CONNECT_TIMEOUT},
        circuit_breakers={"thresholds": [thresholds()]},
    )
    out.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(envoy.pack_any(options))
    if source:
        out.upstream_bind_config.source_address.address = source
        out.upstream_bind_config.source_address.port_value = 0
    return out


def service_clusters(service: Service, port: Port, scope: Scope, mesh: Mesh) -> list[Any]:
    """Return the cluster of a service's port, and those of its subsets."""
    rule = scope.rules.get(service.hostname)
    subsets = rule.subsets if rule is not None else ()
    return [_cluster(service, port, "", scope, mesh), *(_cluster(service, port, s.name, scope, mesh) for s in subsets)]


def discovery_type(service: Service, scope: Scope) -> str:
    """How Envoy finds the endpoints.  A gateway has no connection of a client's to pass on: it is told them."""
    if service.resolution == "PASSTHROUGH" and (scope.key.type != "sidecar" or scope.key.generator == "grpc"):
        return "EDS"
    return _TYPES[service.resolution]


def endpoints_of(service: Service, port: Port, subset: str, scope: Scope, mesh: Mesh) -> tuple[Endpoint, ...]:
    """Endpoints behind a cluster: those of the port that have the subset's labels."""
    rule = scope.rules.get(service.hostname)
    pool = mesh.endpoints_of(service, port.number)
    chosen = rule.subset(subset) if rule is not None and subset else None
    if chosen is not None and chosen.labels:
        wanted = dict(chosen.labels)
        pool = tuple(e for e in pool if all(dict(e.labels).get(name) == value for name, value in wanted.items()))
    return pool


def _cluster(service: Service, port: Port, subset: str, scope: Scope, mesh: Mesh) -> Any:
    rule = scope.rules.get(service.hostname)
    policy = resolve(rule, port.number, subset)
    name = names.cluster(service.hostname, port.number, subset)
    kind = discovery_type(service, scope)
    out = envoy.Cluster(
        name=name,
        type=kind,
        alt_stat_name=f"{name};",
        connect_timeout={"seconds": CONNECT_TIMEOUT},
        metadata=_metadata(service, subset, rule),
        common_lb_config={"healthy_panic_threshold": {}},
    )
    if kind == "EDS":
        out.eds_cluster_config.service_name = name
        out.eds_cluster_config.eds_config.CopyFrom(ads_source())
    elif kind in ("STRICT_DNS", "LOGICAL_DNS"):
        _dns(out, service, port, subset, scope, mesh, policy)
    http2 = _connection_pool(out, port, policy.connection_pool)
    if policy.retry_budget is not None:
        _retry_budget(out, policy.retry_budget)
    _outlier(out, policy.outlier_detection)
    _load_balancer(out, policy, kind)
    if scope.key.generator == "grpc":
        _for_grpc(out)
    else:
        _transport(out, service, port, subset, scope, mesh, policy, http2)
        if policy.proxy_protocol is not None:
            _proxy_protocol(out, policy.proxy_protocol)
    return out


def _metadata(service: Service, subset: str, rule: Rule | None) -> Any:
    out = envoy.Metadata()
    istio: dict[str, Any] = {
        "services": [{"host": service.hostname, "name": service.name, "namespace": service.namespace}]
    }
    if rule is not None:
        key = rule.sources[0].meta.key
        istio["config"] = names.config_path(key.kind, key.namespace, key.name)
    if subset:
        istio["subset"] = subset
    if service.external:
        istio["external"] = True
    out.filter_metadata["istio"].update(istio)
    return out


def _dns(out: Any, service: Service, port: Port, subset: str, scope: Scope, mesh: Mesh, policy: Policy) -> None:
    """Names are resolved by the proxy; it gets them with the cluster."""
    pool = endpoints_of(service, port, subset, scope, mesh)
    out.load_assignment.CopyFrom(load_assignment(out.name, pool, policy, scope))
    out.dns_lookup_family = _LOOKUP.get(scope.key.families, "ALL")
    out.dns_refresh_rate.seconds = 60
    out.respect_dns_ttl = True


def _connection_pool(out: Any, port: Port, pool: Any) -> bool:
    """Set limits and the protocol spoken to endpoints.  Return whether it is HTTP/2."""
    limits = thresholds()
    options = envoy.HttpProtocolOptions()
    common = envoy.message("envoy.config.core.v3.HttpProtocolOptions")()
    http = pool.http if pool is not None and pool.HasField("http") else None
    tcp = pool.tcp if pool is not None and pool.HasField("tcp") else None
    if http is not None:
        for field, value in (
            ("max_requests", http.http2_max_requests),
            ("max_pending_requests", http.http1_max_pending_requests),
            ("max_retries", http.max_retries),
        ):
            if value > 0:
                getattr(limits, field).value = value
        if http.HasField("idle_timeout"):
            common.idle_timeout.CopyFrom(duration(http.idle_timeout))
        if http.max_requests_per_connection > 0:
            common.max_requests_per_connection.value = http.max_requests_per_connection
    if tcp is not None:
        if tcp.HasField("connect_timeout"):
            out.connect_timeout.CopyFrom(duration(tcp.connect_timeout))
        if tcp.max_connections > 0:
            limits.max_connections.value = tcp.max_connections
        if tcp.HasField("max_connection_duration"):
            common.max_connection_duration.CopyFrom(duration(tcp.max_connection_duration))
        if tcp.HasField("idle_timeout") and not common.HasField("idle_timeout"):
            common.idle_timeout.CopyFrom(duration(tcp.idle_timeout))
        if tcp.HasField("tcp_keepalive"):
            _keepalive(out, tcp.tcp_keepalive)
    out.circuit_breakers.thresholds.append(limits)
    return _protocol(out, port, http, options, common)


def _protocol(out: Any, port: Port, http: Any, options: Any, common: Any) -> bool:
    upgrade = http.h2_upgrade_policy if http is not None else 0
    http2 = upgrade == 2 or port.protocol in HTTP2_PROTOCOLS
    streams = http.max_concurrent_streams if http is not None else 0
    if http is not None and http.use_client_protocol:
        http2 = False
        options.use_downstream_protocol_config.http_protocol_options.SetInParent()
        options.use_downstream_protocol_config.http2_protocol_options.SetInParent()
    elif http2:
        target = options.explicit_http_config.http2_protocol_options
        target.SetInParent()
        if streams > 0:
            target.max_concurrent_streams.value = streams
        if http is not None and http.HasField("http2_keep_alive"):
            alive = http.http2_keep_alive
            target.connection_keepalive.interval.CopyFrom(duration(alive.interval))
            target.connection_keepalive.timeout.CopyFrom(duration(alive.timeout))
    elif port.protocol == "AUTO":
        options.use_downstream_protocol_config.http_protocol_options.SetInParent()
        options.use_downstream_protocol_config.http2_protocol_options.SetInParent()
    elif common.ListFields():
        options.explicit_http_config.http_protocol_options.SetInParent()
    if common.ListFields():
        options.common_http_protocol_options.CopyFrom(common)
    if options.ListFields():
        out.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(envoy.pack_any(options))
    return http2


def _retry_budget(out: Any, settings: Any) -> None:
    """A share of the active requests may be retries, instead of a fixed number."""
    limits = out.circuit_breakers.thresholds[0]
    budget = limits.retry_budget
    budget.SetInParent()
    if settings.HasField("percent"):
        budget.budget_percent.value = settings.percent.value
    if settings.min_retry_concurrency:
        budget.min_retry_concurrency.value = settings.min_retry_concurrency
    if settings.HasField("budget_interval"):
        budget.budget_interval.CopyFrom(duration(settings.budget_interval))
    limits.ClearField("max_retries")  # Envoy lets the budget win; say one thing only


def _keepalive(out: Any, settings: Any) -> None:
    target = out.upstream_connection_options.tcp_keepalive
    target.SetInParent()
    if settings.probes:
        target.keepalive_probes.value = settings.probes
    if settings.HasField("time"):
        target.keepalive_time.value = settings.time.seconds
    if settings.HasField("interval"):
        target.keepalive_interval.value = settings.interval.seconds


def _outlier(out: Any, outlier: Any) -> None:
    """Passive health checks.  Ejection by success rate is off: nobody asked for it."""
    if outlier is None:
        return
    target = out.outlier_detection
    target.enforcing_success_rate.value = 0
    for field, mine, enforcing in (
        ("consecutive_5xx_errors", "consecutive_5xx", "enforcing_consecutive_5xx"),
        ("consecutive_gateway_errors", "consecutive_gateway_failure", "enforcing_consecutive_gateway_failure"),
    ):
        if outlier.HasField(field):
            value = getattr(outlier, field).value
            getattr(target, mine).value = value
            getattr(target, enforcing).value = 100 if value else 0
    for field in ("interval", "base_ejection_time"):
        if outlier.HasField(field):
            getattr(target, field).CopyFrom(duration(getattr(outlier, field)))
    if outlier.max_ejection_percent > 0:
        target.max_ejection_percent.value = outlier.max_ejection_percent
    if outlier.split_external_local_origin_errors:
        target.split_external_local_origin_errors = True
        if outlier.consecutive_local_origin_failures.value:
            target.consecutive_local_origin_failure.value = outlier.consecutive_local_origin_failures.value
            target.enforcing_consecutive_local_origin_failure.value = 100
        target.enforcing_local_origin_success_rate.value = 0
    out.common_lb_config.healthy_panic_threshold.value = float(outlier.min_health_percent)


def _load_balancer(out: Any, policy: Policy, kind: str) -> None:
    balancer = policy.load_balancer
    locality = balancer.locality_lb_setting if balancer is not None else None
    if locality is not None and locality.enabled.value is False and locality.HasField("enabled"):
        locality = None
    failover = policy.outlier_detection is not None
    if locality is not None and (
        locality.distribute or (failover and (locality.failover or locality.failover_priority))
    ):
        out.common_lb_config.locality_weighted_lb_config.SetInParent()
    if kind == "ORIGINAL_DST":
        out.lb_policy = "CLUSTER_PROVIDED"
        return
    simple = balancer.simple if balancer is not None and balancer.WhichOneof("lb_policy") == "simple" else 0
    if balancer is not None and balancer.WhichOneof("lb_policy") == "consistent_hash":
        _consistent_hash(out, balancer.consistent_hash)
        return
    out.lb_policy = _SIMPLE[simple]
    if simple == 3:
        out.type = "ORIGINAL_DST"
        out.ClearField("eds_cluster_config")
        out.ClearField("load_assignment")
    elif balancer is not None and simple != 2:
        _slow_start(out, balancer)


def _for_grpc(out: Any) -> None:
    """Only the load balancers that every gRPC has: its C core refuses the whole cluster for any other."""
    out.ClearField("least_request_lb_config")
    out.ClearField("round_robin_lb_config")
    if out.lb_policy in (envoy.Cluster.RING_HASH, envoy.Cluster.MAGLEV):
        out.ClearField("maglev_lb_config")
        out.lb_policy = envoy.Cluster.RING_HASH
    else:
        out.lb_policy = envoy.Cluster.ROUND_ROBIN


def _slow_start(out: Any, balancer: Any) -> None:
    if balancer.HasField("warmup"):
        window, minimum, aggression = (
            balancer.warmup.duration,
            balancer.warmup.minimum_percent,
            balancer.warmup.aggression,
        )
    elif balancer.HasField("warmup_duration_secs"):
        window, minimum, aggression = balancer.warmup_duration_secs, None, None
    else:
        return
    field = (
        "round_robin_lb_config"
        if envoy.Cluster.LbPolicy.Name(out.lb_policy) == "ROUND_ROBIN"
        else "least_request_lb_config"
    )
    config = getattr(out, field).slow_start_config
    config.slow_start_window.CopyFrom(duration(window))
    if minimum is not None and balancer.warmup.HasField("minimum_percent"):
        config.min_weight_percent.value = minimum.value
    if aggression is not None and balancer.warmup.HasField("aggression"):
        config.aggression.default_value = aggression.value
        config.aggression.runtime_key = ""


def _consistent_hash(out: Any, settings: Any) -> None:
    algorithm = settings.WhichOneof("hash_algorithm")
    if algorithm == "maglev":
        out.lb_policy = "MAGLEV"
        if settings.maglev.table_size:
            out.maglev_lb_config.table_size.value = settings.maglev.table_size
        return
    out.lb_policy = "RING_HASH"
    asked = settings.ring_hash.minimum_ring_size
    size = asked if algorithm == "ring_hash" else settings.minimum_ring_size or 1024
    if size:
        out.ring_hash_lb_config.minimum_ring_size.value = size


def identities(service: Service, pool: tuple[Endpoint, ...], mesh: Mesh) -> list[str]:
    """SPIFFE ids that a server of this service may have."""
    if service.accounts:
        return sorted(set(service.accounts))
    return sorted(
        {
            f"spiffe://{mesh.trust_domain}/ns/{endpoint.namespace}/sa/{endpoint.service_account}"
            for endpoint in pool
            if endpoint.service_account
        }
    )


def _transport(
    out: Any, service: Service, port: Port, subset: str, scope: Scope, mesh: Mesh, policy: Policy, http2: bool
) -> None:
    """Choose the transport socket: what the DestinationRule says, else mutual TLS wherever both ends can."""
    sni = names.sni(service.hostname, port.number, subset)
    sans = identities(service, mesh.endpoints_of(service, port.number), mesh)
    settings = policy.tls
    if settings is None:
        passes = envoy.Cluster.DiscoveryType.Name(out.type) == "ORIGINAL_DST" and service.external
        plain = service_mode(mesh, service.namespace) == "DISABLE"
        if scope.key.mesh_certificates and not service.external and not passes and not plain:
            out.transport_socket_matches.extend(auto_mutual(sni, sans, http2=http2))
        return
    if settings.mode == DISABLE:
        return
    if settings.mode == ISTIO_MUTUAL:
        if scope.key.mesh_certificates:
            names_wanted = list(settings.subject_alt_names) or sans
            out.transport_socket.CopyFrom(client_mutual(settings.sni or sni, names_wanted, http2=http2))
        return
    if settings.mode in (SIMPLE, MUTUAL):
        out.transport_socket.CopyFrom(client_tls(settings, http2=http2, sds=scope.key.mesh_certificates))
        if not settings.sni:
            _auto_sni(out, verify=not settings.subject_alt_names and not settings.insecure_skip_verify.value)


def _auto_sni(out: Any, *, verify: bool) -> None:
    options = envoy.HttpProtocolOptions()
    packed = out.typed_extension_protocol_options[HTTP_OPTIONS]
    if packed.value:
        options.MergeFromString(packed.value)
    options.upstream_http_protocol_options.auto_sni = True
    options.upstream_http_protocol_options.auto_san_validation = verify
    if options.WhichOneof("upstream_protocol_options") is None:
        options.explicit_http_config.http_protocol_options.SetInParent()
    packed.CopyFrom(envoy.pack_any(options))


def _proxy_protocol(out: Any, settings: Any) -> None:
    """Tell the server the client's address in front of everything else, TLS included."""
    kind = envoy.message("envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport")

    def wrap(inner: Any) -> Any:
        config = kind(config={"version": settings.version}, transport_socket=inner)
        return envoy.TransportSocket(
            name="envoy.transport_sockets.upstream_proxy_protocol", typed_config=envoy.pack_any(config)
        )

    for match in out.transport_socket_matches:
        match.transport_socket.CopyFrom(wrap(match.transport_socket))
    if not out.transport_socket_matches:
        out.transport_socket.CopyFrom(wrap(out.transport_socket if out.HasField("transport_socket") else raw_socket()))


def inbound_cluster(target: int, port: Port, services: list[Service], scope: Scope) -> Any:
    """The workload's own application on ``target``, reached as the connection came, from 127.0.0.6.

    Of a DestinationRule for its (oldest) service, only the connection pool counts at this end.
    """
    name = names.cluster("", target, direction="inbound")
    out = envoy.Cluster(
        name=name,
        type="ORIGINAL_DST",
        lb_policy="CLUSTER_PROVIDED",
        alt_stat_name=f"{name};",
        connect_timeout={"seconds": CONNECT_TIMEOUT},
        common_lb_config={},
        cleanup_interval={"seconds": 9223372035},
    )
    istio: dict[str, Any] = {
        "services": [{"host": s.hostname, "name": s.name, "namespace": s.namespace} for s in services]
    }
    rule = scope.rules.get(services[0].hostname)
    pool = None
    if rule is not None and rule.policy is not None:
        pool = resolve(rule, port.number).connection_pool
        key = rule.sources[0].meta.key
        istio["config"] = names.config_path(key.kind, key.namespace, key.name)
    _connection_pool(out, port, pool)
    out.metadata.filter_metadata["istio"].update(istio)
    out.upstream_bind_config.source_address.address = "127.0.0.6"
    out.upstream_bind_config.source_address.port_value = 0
    return out
