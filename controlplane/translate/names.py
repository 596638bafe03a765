"""Istio's names for resources, and the type URLs.  istioctl, dashboards and EnvoyFilters depend on them verbatim."""

from __future__ import annotations

import re
from typing import Final

from underpass.api import envoy

CLUSTER: Final = envoy.type_url("Cluster")
ENDPOINT: Final = envoy.type_url("ClusterLoadAssignment")
LISTENER: Final = envoy.type_url("Listener")
ROUTE: Final = envoy.type_url("RouteConfiguration")
ADDRESS: Final = envoy.TYPE_PREFIX + "istio.workload.Address"
WORKLOAD: Final = envoy.TYPE_PREFIX + "istio.workload.Workload"
AUTHORIZATION: Final = envoy.TYPE_PREFIX + "istio.security.Authorization"

BLACK_HOLE: Final = "BlackHoleCluster"
PASSTHROUGH: Final = "PassthroughCluster"
INBOUND_PASSTHROUGH: Final = "InboundPassthroughCluster"

HCM: Final = "envoy.filters.network.http_connection_manager"
TCP_PROXY: Final = "envoy.filters.network.tcp_proxy"

WILDCARD: Final = {4: "0.0.0.0", 6: "::"}


def cluster(hostname: str, port: int, subset: str = "", direction: str = "outbound") -> str:
    """Name of a cluster: ``outbound|80|v1|reviews.default.svc.cluster.local``."""
    return f"{direction}|{port}|{subset}|{hostname}"


def vip(hostname: str, port: int, protocol: str, subset: str = "") -> str:
    """Name of a cluster of a waypoint for what is bound to it: ``inbound-vip|80|http/v1|host``; http or tcp."""
    return cluster(hostname, port, f"{protocol}/{subset}" if subset else protocol, "inbound-vip")


def sni(hostname: str, port: int, subset: str = "") -> str:
    """Server name that a sidecar sends in mutual TLS: ``outbound_.80_.v1_.host``."""
    return f"outbound_.{port}_.{subset}_.{hostname}"


def domain(hostname: str, port: int) -> str:
    """``host:port``, an IPv6 address in brackets: the name of a virtual host."""
    return f"[{hostname}]:{port}" if ":" in hostname else f"{hostname}:{port}"


def compliant(address: str) -> str:
    """An address as it stands in a Host header: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address


def config_path(kind: str, namespace: str, name: str) -> str:
    """What Istio calls an object in ``filter_metadata.istio.config``."""
    group = "security.istio.io" if kind in _SECURITY else "networking.istio.io"
    if kind in _GATEWAY_API:
        group = "gateway.networking.k8s.io"
    version = "v1"
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", kind).lower()
    return f"/apis/{group}/{version}/namespaces/{namespace}/{words}/{name}"


_GATEWAY_API: Final = frozenset({"HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute"})
_SECURITY: Final = frozenset({"AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"})
