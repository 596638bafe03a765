"""The four xDS resource types as plain frozen values.

A value says everything that routing needs and *names* everything else that was set: each `unsupported` field lists
features, in kebab case, that the resource asks for and this representation does not carry. Whoever compiles a
value must treat a non-empty `unsupported` as "not for the kernel"; nothing is dropped silently.

Durations are seconds; weights are Envoy's plain integers; ports are host order; addresses are text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from nodeagent.rules.model import NO_RULE, DirectReply, Hashed, Limit, Redirect, Retry, Rule


class PathKind(StrEnum):
    """How a route's path is compared (query string excluded)."""

    PREFIX = "prefix"
    EXACT = "exact"
    SEPARATED = "separated-prefix"
    REGEX = "regex"
    TEMPLATE = "template"
    CONNECT = "connect"


class StringKind(StrEnum):
    """How a header's or parameter's value is compared."""

    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    CONTAINS = "contains"
    REGEX = "regex"
    PRESENT = "present"
    RANGE = "range"


@dataclass(frozen=True, slots=True)
class PathMatch:
    """The path condition of a route."""

    kind: PathKind
    value: str
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class ValueMatch:
    """A condition on a header (lower-case name, `:method` and the like included) or a query parameter.

    `invert` negates the outcome. A missing header never matches, inverted or not, unless `missing_as_empty`
    (Envoy's rule); PRESENT with `invert` means absent.
    """

    name: str
    kind: StringKind
    value: str = ""
    ignore_case: bool = False
    invert: bool = False
    missing_as_empty: bool = False


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """All conditions of a route; they are ANDed. `unsupported` are further conditions that are not carried."""

    path: PathMatch
    headers: tuple[ValueMatch, ...] = ()
    query: tuple[ValueMatch, ...] = ()
    unsupported: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WeightedCluster:
    """One destination of a route and its share of the total weight."""

    name: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Forward:
    """Send the request to one of `clusters` by weight. `timeout` 0 means none; None means Envoy's default of 15 s."""

    clusters: tuple[WeightedCluster, ...]
    timeout: float | None = None
    retry: Retry | None = None
    not_found_code: int = 503


@dataclass(frozen=True, slots=True)
class OtherAction:
    """An action that is none of the above, by name."""

    name: str


Action = Forward | Redirect | DirectReply | OtherAction


@dataclass(frozen=True, slots=True)
class Source:
    """The configuration object that a route was made from.

    `rule` is the 0-based index into the object's http list, -1 when unknown; `line` 0 when unknown.
    """

    kind: str
    name: str
    namespace: str
    rule: int = -1
    file: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """One route: the first of a virtual host whose match holds decides.

    rule: what else the route does, but for what `action` says.
    """

    name: str
    match: RouteMatch
    action: Action
    source: Source | None = None
    unsupported: tuple[str, ...] = ()
    rule: Rule = NO_RULE


@dataclass(frozen=True, slots=True)
class VirtualHost:
    """Routes for a set of domains: exact, `*.suffix`, `prefix.*` or `*`, lower case."""

    name: str
    domains: tuple[str, ...]
    routes: tuple[Route, ...]
    unsupported: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RouteConfiguration:
    """A route table. With `ignore_port` a port in the Host header does not take part in host matching."""

    name: str
    virtual_hosts: tuple[VirtualHost, ...]
    ignore_port: bool = False
    unsupported: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Http:
    """The HTTP side of a filter chain: a route table by RDS name or inline.

    `policies` are the names of authorization policies that its filters enforce.
    """

    rds: str = ""
    inline: RouteConfiguration | None = None
    unsupported: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tcp:
    """The TCP side of a filter chain."""

    clusters: tuple[WeightedCluster, ...]
    unsupported: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chain:
    """A filter chain.

    `destinations` are the single addresses that it is for (empty: the listener's own). `conditions` names the other
    kinds of its match that narrow it (`sni`, `source-prefix`, ...); protocol sniffing (`http/1.1`, `h2c` on plaintext)
    does not count as one. `port` is the destination port that it is for (0: any), `policies` as of `Http`.
    """

    name: str
    http: Http | None = None
    tcp: Tcp | None = None
    destinations: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()
    port: int = 0
    policies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Listener:
    """A listener.

    `addresses` are (address, port); `0.0.0.0` and `::` mean any. `direction` is outbound, inbound or empty. `capture`
    is true for the catch-all listeners of a sidecar, which are no service's.
    """

    name: str
    direction: str
    addresses: tuple[tuple[str, int], ...]
    chains: tuple[Chain, ...] = ()
    default: Chain | None = None
    capture: bool = False
    udp: bool = False


class ClusterKind(StrEnum):
    """How a cluster learns its endpoints."""

    EDS = "eds"
    STATIC = "static"
    DNS = "dns"
    ORIGINAL_DST = "original-dst"
    OTHER = "other"


class Balance(StrEnum):
    """Load balancing policy."""

    ROUND_ROBIN = "round-robin"
    RANDOM = "random"
    LEAST_REQUEST = "least-request"
    RING_HASH = "ring-hash"
    MAGLEV = "maglev"
    PROVIDED = "cluster-provided"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint; `usable` is Envoy's "healthy, unknown or degraded". `weight` is at least 1.

    `degraded`: usable, but only for what the healthy ones cannot take.
    """

    address: str
    port: int
    weight: int = 1
    usable: bool = True
    workload: str = ""
    unsupported: tuple[str, ...] = ()
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class Locality:
    """Endpoints of one locality and priority. `weight` 0 means not given."""

    region: str
    zone: str
    sub_zone: str
    priority: int
    weight: int
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Assignment:
    """An EDS resource: the endpoints of a cluster.

    `overprovisioning`: percent of its usable endpoints as which a priority or locality counts. `weighted_health`: it is
    their weights that are counted.
    """

    name: str
    localities: tuple[Locality, ...]
    unsupported: tuple[str, ...] = ()
    overprovisioning: int = 140
    weighted_health: bool = False


@dataclass(frozen=True, slots=True)
class Outlier:
    """When an endpoint is taken out of its cluster for what it answers; Envoy's defaults.

    `errors`, `gateway`: so many 5xx, or 502, 503 and 504, one after the other; 0: never for that. Times in seconds: how
    often the return is considered, how long the first ejection lasts, and the longest one. `percent`: of the cluster's
    endpoints that may be out; with `one`, one may always.
    """

    errors: int = 5
    gateway: int = 0
    interval: float = 10.0
    base: float = 30.0
    longest: float = 300.0
    percent: int = 10
    one: bool = False


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster. `hashed`: how its ring or Maglev table is made.

    For EDS `eds_name` names its assignment, else `assignment` holds the endpoints. `panic`: percent of usable endpoints
    below which their health is not believed; 0: it always is. `limit`: of requests and retries; `retry_budget`: a share
    of the requests limits its retries instead.
    """

    name: str
    kind: ClusterKind
    balance: Balance
    eds_name: str = ""
    assignment: Assignment | None = None
    source: Source | None = None
    subset: str = ""
    host: str = ""
    locality_weighted: bool = False
    unsupported: tuple[str, ...] = field(default=())
    hashed: Hashed | None = None
    panic: int = 50
    outlier: Outlier | None = None
    limit: Limit | None = None
    retry_budget: bool = False


Value = Listener | RouteConfiguration | Cluster | Assignment
