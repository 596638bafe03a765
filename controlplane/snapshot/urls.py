"""Type URLs of the resources that are served, and the order in which they must reach a client."""

from __future__ import annotations

from typing import Final

from underpass.api import envoy

CLUSTER: Final = envoy.type_url("Cluster")
ENDPOINT: Final = envoy.type_url("ClusterLoadAssignment")
LISTENER: Final = envoy.type_url("Listener")
ROUTE: Final = envoy.type_url("RouteConfiguration")
SCOPED_ROUTE: Final = envoy.TYPE_PREFIX + "envoy.config.route.v3.ScopedRouteConfiguration"
VIRTUAL_HOST: Final = envoy.type_url("VirtualHost")
SECRET: Final = envoy.type_url("Secret")
EXTENSION: Final = envoy.type_url("TypedExtensionConfig")
RUNTIME: Final = envoy.type_url("Runtime")
ADDRESS: Final = envoy.TYPE_PREFIX + "istio.workload.Address"
WORKLOAD: Final = envoy.TYPE_PREFIX + "istio.workload.Workload"
AUTHORIZATION: Final = envoy.TYPE_PREFIX + "istio.security.Authorization"

#: A client must know a cluster before its endpoints, both before a listener, and that before its routes; what follows
#: is Istio's push order. A type that is not listed comes after all of these.
PUSH_ORDER: Final[tuple[str, ...]] = (
    CLUSTER,
    ENDPOINT,
    LISTENER,
    ROUTE,
    SCOPED_ROUTE,
    VIRTUAL_HOST,
    SECRET,
    EXTENSION,
    RUNTIME,
    ADDRESS,
    WORKLOAD,
    AUTHORIZATION,
)

#: Types whose state-of-the-world response is the whole state: what it omits is deleted. For all others a response may
#: be partial and an omission means nothing.
FULL_STATE: Final[frozenset[str]] = frozenset({CLUSTER, LISTENER})

#: Types of which one resource leads to others: whoever asks for a service by name wants the workloads behind it, too.
GROUPED: Final[frozenset[str]] = frozenset({ADDRESS, WORKLOAD})

#: Types that are only ever asked for by name: a request without names asks for nothing, instead of for everything.
NAMED_ONLY: Final[frozenset[str]] = frozenset({ENDPOINT, ROUTE, SECRET, EXTENSION, VIRTUAL_HOST})


def short(type_url: str) -> str:
    """The message name of a type URL, for people and metric labels."""
    return type_url.rpartition(".")[2]
