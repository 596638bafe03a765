"""Connection managers and filter chains that listeners are made of.  Pure.

Only filters that an upstream Envoy has: Istio's own extensions are for istio-proxy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from controlplane.translate import names
from controlplane.translate.tls import ads_source
from underpass.api import envoy

HTTP_INSPECTOR: Final = "envoy.filters.listener.http_inspector"
TLS_INSPECTOR: Final = "envoy.filters.listener.tls_inspector"
ORIGINAL_DST: Final = "envoy.filters.listener.original_dst"

#: What the HTTP inspector tells a filter chain.
PLAIN_HTTP: Final = ("http/1.1", "h2c")
#: Protocols that sidecars announce inside mutual TLS: opaque, and HTTP.
MESH_TCP: Final = ("istio-peer-exchange", "istio")
MESH_HTTP: Final = ("istio-http/1.0", "istio-http/1.1", "istio-h2")


def http_filters(before_router: Iterable[Any] = (), *, faults: bool = True) -> list[Any]:
    """Istio's HTTP filters in order; ``before_router`` comes first (authorization)."""
    stats = envoy.message("envoy.extensions.filters.http.grpc_stats.v3.FilterConfig")
    listed: list[tuple[str, Any]] = [
        ("envoy.filters.http.grpc_stats", stats(emit_filter_state=True, stats_for_all_methods={"value": False})),
    ]
    if faults:
        listed.append(("envoy.filters.http.fault", envoy.HTTPFault()))
    listed.extend(
        [
            ("envoy.filters.http.cors", envoy.HttpCors()),
            ("envoy.filters.http.router", envoy.Router()),
        ]
    )
    rest = [envoy.HttpFilter(name=name, typed_config=envoy.pack_any(config)) for name, config in listed]
    return [*before_router, *rest]


def _manager(stat_prefix: str, filters: list[Any]) -> Any:
    uuid = envoy.message("envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig")
    out = envoy.HttpConnectionManager(
        stat_prefix=stat_prefix,
        http_filters=filters,
        normalize_path={"value": True},
        path_with_escaped_slashes_action="KEEP_UNCHANGED",
        proxy_100_continue=True,
        stream_idle_timeout={},
        upgrade_configs=[{"upgrade_type": "websocket"}],
        use_remote_address={"value": False},
    )
    out.request_id_extension.typed_config.CopyFrom(
        envoy.pack_any(uuid(use_request_id_for_trace_sampling={"value": True}))
    )
    return out


def _rds(route: str) -> Any:
    return envoy.Rds(route_config_name=route, config_source=ads_source())


def outbound_http(stat: str, route: str, filters: Sequence[Any] = ()) -> Any:
    """Connection manager of a sidecar's outbound listener; ``route`` is fetched by RDS."""
    out = _manager(f"outbound_{stat};", http_filters(filters))
    out.rds.CopyFrom(_rds(route))
    return _network(names.HCM, out)


def gateway_http(stat: str, route: str, *, xff_hops: int = 0, filters: Sequence[Any] = ()) -> Any:
    """Connection manager of a gateway: it is an edge, so the client's address is the connection's."""
    out = _manager(f"outbound_{stat};", http_filters(filters))
    out.rds.CopyFrom(_rds(route))
    out.use_remote_address.value = True
    out.forward_client_cert_details = "SANITIZE_SET"
    details = out.set_current_client_cert_details
    details.subject.value = True
    details.cert = details.dns = details.uri = True
    out.server_name = "istio-envoy"
    out.http_protocol_options.SetInParent()
    out.xff_num_trusted_hops = xff_hops
    return _network(names.HCM, out)


def inbound_http(stat: str, configuration: Any, filters: Sequence[Any] = ()) -> Any:
    """Connection manager in front of the workload's own application, with its one route inline."""
    out = _manager(stat, http_filters(filters))
    out.route_config.CopyFrom(configuration)
    out.forward_client_cert_details = "APPEND_FORWARD"
    details = out.set_current_client_cert_details
    details.subject.value = True
    details.dns = details.uri = True
    out.server_name = "istio-envoy"
    return _network(names.HCM, out)


def waypoint_http(stat: str, configuration: Any, filters: Sequence[Any] = ()) -> Any:
    """Connection manager of a waypoint in front of what is bound to it, with its routes inline.

    The connection is one inside a tunnel: a certificate that its head tells of is nobody's.
    """
    out = _manager(stat, http_filters(filters))
    out.route_config.CopyFrom(configuration)
    out.forward_client_cert_details = "SANITIZE"
    out.server_name = "istio-envoy"
    return _network(names.HCM, out)


def tcp(
    cluster: str, *, stat: str = "", idle: Any = None, weights: Sequence[tuple[str, int]] = (), tunnel: Any = None
) -> Any:
    """Forward bytes to a cluster, or to several by weight; ``tunnel`` is a DestinationRule's, through an HTTP proxy."""
    out = envoy.TcpProxy(stat_prefix=stat or cluster)
    if weights:
        out.weighted_clusters.clusters.extend(
            envoy.TcpProxy.WeightedCluster.ClusterWeight(name=name, weight=weight) for name, weight in weights
        )
    else:
        out.cluster = cluster
    if idle is not None:
        out.idle_timeout.CopyFrom(idle)
    if tunnel is not None:
        out.tunneling_config.hostname = f"{tunnel.target_host}:{tunnel.target_port}"
        out.tunneling_config.use_post = tunnel.protocol == "POST"
    return _network(names.TCP_PROXY, out)


def _network(name: str, config: Any) -> Any:
    return envoy.Filter(name=name, typed_config=envoy.pack_any(config))


def chain(filters: Sequence[Any], *, name: str = "", match: Any = None, socket: Any = None, slow: bool = False) -> Any:
    """A filter chain.  ``slow`` bounds the time for a handshake."""
    out = envoy.FilterChain(filters=filters, name=name)
    if match is not None:
        out.filter_chain_match.CopyFrom(match)
    if socket is not None:
        out.transport_socket.CopyFrom(socket)
    if slow:
        out.transport_socket_connect_timeout.seconds = 15
    return out


def http_inspector(disabled: Any = None) -> Any:
    """Look whether a connection speaks HTTP."""
    return _listener_filter(HTTP_INSPECTOR, envoy.HttpInspector(), disabled)


def tls_inspector(disabled: Any = None, *, initial: int = 0) -> Any:
    """Look at a ClientHello: server name and ALPN."""
    config = envoy.TlsInspector()
    if initial:
        config.initial_read_buffer_size.value = initial
    return _listener_filter(TLS_INSPECTOR, config, disabled)


def original_destination() -> Any:
    """Recover where a redirected connection was going."""
    return _listener_filter(ORIGINAL_DST, envoy.OriginalDst(), None)


def _listener_filter(name: str, config: Any, disabled: Any) -> Any:
    out = envoy.ListenerFilter(name=name, typed_config=envoy.pack_any(config))
    if disabled is not None:
        out.filter_disabled.CopyFrom(disabled)
    return out


def disabled_on(ports: Sequence[int]) -> Any:
    """A predicate "the destination port is one of these"; None for none."""
    predicate = envoy.message("envoy.config.listener.v3.ListenerFilterChainMatchPredicate")
    each = [predicate(destination_port_range={"start": port, "end": port + 1}) for port in ports]
    if len(each) > 1:
        return predicate(or_match={"rules": each})
    return each[0] if each else None
