"""Which Envoy messages have a short name in :mod:`underpass.api.envoy`.

The table is data for two readers: the runtime resolves ``envoy.Cluster`` through it, and
:mod:`underpass.api.derive` writes ``envoy.pyi`` from it, so that type checkers know the same names.
Any other message of the schema is reached by its full name: ``envoy.message("envoy...")``.
"""

from __future__ import annotations

from typing import Final

#: Package -> messages whose alias is their own (last) name.
_BY_PACKAGE: Final[dict[str, tuple[str, ...]]] = {
    "google.protobuf": (
        "Any", "BoolValue", "BytesValue", "DoubleValue", "Duration", "Empty", "FloatValue", "Int32Value", "Int64Value",
        "ListValue", "StringValue", "Struct", "Timestamp", "UInt32Value", "UInt64Value", "Value",
    ),
    "envoy.service.discovery.v3": (
        "DiscoveryRequest", "DiscoveryResponse", "DeltaDiscoveryRequest", "DeltaDiscoveryResponse", "Resource",
        "ResourceName", "ResourceLocator", "ResourceError",
    ),
    "envoy.service.status.v3": ("ClientConfig", "ClientStatusRequest", "ClientStatusResponse", "PerXdsConfig"),
    "envoy.service.load_stats.v3": ("LoadStatsRequest", "LoadStatsResponse"),
    "envoy.service.runtime.v3": ("Runtime",),
    "envoy.config.cluster.v3": ("CircuitBreakers", "Cluster", "LoadBalancingPolicy", "OutlierDetection"),
    "envoy.config.endpoint.v3": (
        "ClusterLoadAssignment", "ClusterStats", "Endpoint", "LbEndpoint", "LocalityLbEndpoints",
    ),
    "envoy.config.listener.v3": (
        "ApiListener", "Filter", "FilterChain", "FilterChainMatch", "Listener", "ListenerFilter",
    ),
    "envoy.config.route.v3": (
        "CorsPolicy", "Decorator", "DirectResponseAction", "FilterConfig", "HeaderMatcher", "HedgePolicy",
        "NonForwardingAction", "QueryParameterMatcher", "RateLimit", "RedirectAction", "RetryPolicy", "Route",
        "RouteAction", "RouteConfiguration", "RouteMatch", "VirtualHost", "WeightedCluster",
    ),
    "envoy.config.core.v3": (
        "Address", "AggregatedConfigSource", "ApiConfigSource", "CidrRange", "ConfigSource", "ControlPlane",
        "DataSource", "GrpcService", "HeaderValue", "HeaderValueOption", "HealthCheck", "Http1ProtocolOptions",
        "Http2ProtocolOptions", "Locality", "Metadata", "Node", "Pipe", "RuntimeFractionalPercent",
        "RuntimePercent", "SocketAddress", "SocketOption", "SubstitutionFormatString", "TcpKeepalive",
        "TransportSocket", "TypedExtensionConfig",
    ),
    "envoy.config.rbac.v3": ("Permission", "Policy", "Principal", "RBAC"),
    "envoy.config.bootstrap.v3": ("Bootstrap",),
    "envoy.config.accesslog.v3": ("AccessLog",),
    "envoy.type.v3": ("DoubleRange", "FractionalPercent", "Int32Range", "Int64Range", "Percent", "TokenBucket"),
    "envoy.type.matcher.v3": (
        "ListStringMatcher", "MetadataMatcher", "PathMatcher", "RegexMatchAndSubstitute", "RegexMatcher",
        "StringMatcher", "ValueMatcher",
    ),
    "envoy.extensions.filters.network.http_connection_manager.v3": ("HttpConnectionManager", "HttpFilter", "Rds"),
    "envoy.extensions.filters.network.tcp_proxy.v3": ("TcpProxy",),
    "envoy.extensions.filters.http.router.v3": ("Router",),
    "envoy.extensions.filters.http.fault.v3": ("HTTPFault",),
    "envoy.extensions.filters.http.jwt_authn.v3": ("JwtAuthentication",),
    "envoy.extensions.filters.http.local_ratelimit.v3": ("LocalRateLimit",),
    "envoy.extensions.transport_sockets.tls.v3": (
        "CommonTlsContext", "DownstreamTlsContext", "SdsSecretConfig", "Secret", "TlsCertificate",
        "UpstreamTlsContext", "CertificateValidationContext",
    ),
    "envoy.extensions.upstreams.http.v3": ("HttpProtocolOptions",),
    "envoy.admin.v3": (
        "ClustersConfigDump", "ConfigDump", "EndpointsConfigDump", "ListenersConfigDump",
        "RoutesConfigDump", "SecretsConfigDump", "BootstrapConfigDump", "UpdateFailureState",
    ),
    "google.rpc": ("Status",),
    "xds.core.v3": ("ContextParams",),
    "xds.type.v3": ("TypedStruct",),
    "xds.type.matcher.v3": ("Matcher", "IPMatcher"),
}

#: Aliases that cannot be the last name alone, because two messages share it.
_RENAMED: Final[dict[str, str]] = {
    "HttpRBAC": "envoy.extensions.filters.http.rbac.v3.RBAC",
    "HttpRBACPerRoute": "envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
    "NetworkRBAC": "envoy.extensions.filters.network.rbac.v3.RBAC",
    "HttpFault": "envoy.extensions.filters.http.fault.v3.HTTPFault",
    "HttpCors": "envoy.extensions.filters.http.cors.v3.Cors",
    "HttpCorsPolicy": "envoy.extensions.filters.http.cors.v3.CorsPolicy",
    "FaultDelay": "envoy.extensions.filters.common.fault.v3.FaultDelay",
    "HttpInspector": "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
    "TlsInspector": "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    "OriginalDst": "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
    "RawBuffer": "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
    "PreviousHostsPredicate": "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
    "StdoutAccessLog": "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
}

#: Alias -> full protobuf name (without a leading dot).
ALIASES: Final[dict[str, str]] = {
    **{name: f"{package}.{name}" for package, names in _BY_PACKAGE.items() for name in names},
    **_RENAMED,
}
