"""The mesh: services, their endpoints, and the rules about them, resolved and indexed once for all nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from controlplane.model.labels import Labels
from controlplane.model.objects import Config, Key, SourceRef

Protocol = Literal["HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTPS", "TLS", "TCP", "UDP", "MONGO", "MYSQL", "REDIS", "AUTO"]
"""``AUTO`` is a TCP port whose protocol nobody declared."""

HTTP_PROTOCOLS: frozenset[str] = frozenset({"HTTP", "HTTP2", "GRPC", "GRPC-WEB"})
HTTP2_PROTOCOLS: frozenset[str] = frozenset({"HTTP2", "GRPC", "GRPC-WEB"})
TLS_PROTOCOLS: frozenset[str] = frozenset({"HTTPS", "TLS"})

Resolution = Literal["EDS", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS", "PASSTHROUGH"]
"""How a cluster of the service finds its endpoints: told by us, by a name, or the connection's own destination."""


@dataclass(frozen=True, slots=True)
class Port:
    """A service's port.  ``target`` is where its endpoints listen, 0 where each of them says so by the port's name."""

    name: str
    number: int
    protocol: Protocol
    target: int = 0

    @property
    def is_http(self) -> bool:
        """Whether the port is declared to speak some HTTP."""
        return self.protocol in HTTP_PROTOCOLS


@dataclass(frozen=True, slots=True, order=True)
class Locality:
    """Region, zone and sub-zone; empty parts are unknown."""

    region: str = ""
    zone: str = ""
    subzone: str = ""

    @classmethod
    def parse(cls, text: str) -> Locality:
        """Read Istio's ``region/zone/subzone`` (a label value may write it with dots)."""
        parts = text.split("/") if "/" in text else text.split(".")
        return cls(*[*parts, "", "", ""][:3])

    def __str__(self) -> str:
        return "/".join(part for part in (self.region, self.zone, self.subzone) if part)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address behind one port of a service.  ``address`` is an IP, a DNS name, or ``unix://`` path.

    ``also`` holds further addresses of the same workload: the other IP family of a dual-stack pod.
    """

    address: str
    port: int
    also: tuple[str, ...] = ()
    labels: Labels = ()
    locality: Locality = Locality()
    namespace: str = ""
    workload: str = ""
    service_account: str = ""
    node: str = ""
    weight: int = 1
    healthy: bool = True
    tls: bool = False
    network: str = ""
    cluster_id: str = "Kubernetes"
    #: The pod's name, where there is one.
    instance: str = ""

    def __hash__(self) -> int:
        # Equality compares everything; the hash only has to be quick, there are very many of these.
        return hash((self.address, self.port))

    @property
    def order(self) -> tuple[Locality, tuple[int, ...] | tuple[()], str, int]:
        """Sort key that keeps numeric addresses in numeric order."""
        parts = tuple(int(part) for part in self.address.split(".")) if self.address.replace(".", "").isdigit() else ()
        return (self.locality, parts, self.address, self.port)


@dataclass(frozen=True, slots=True)
class Service:
    """A host that clients may name: a Kubernetes Service or one host of a ServiceEntry.

    ``name`` is what Istio's metadata calls it (a ServiceEntry's host), ``object`` is the object's own name.
    """

    hostname: str
    namespace: str
    name: str
    kind: str
    source: SourceRef
    created: float
    ports: tuple[Port, ...]
    addresses: tuple[str, ...]
    resolution: Resolution = "EDS"
    external: bool = False
    headless: bool = False
    accounts: tuple[str, ...] = ()
    export_to: tuple[str, ...] = ("*",)
    selector: Labels = ()
    labels: Labels = ()
    local_only: bool = False
    publish_not_ready: bool = False
    object: str = ""

    def __hash__(self) -> int:
        # Equality compares everything; the hash only has to be quick.
        return hash((self.hostname, self.namespace))

    @property
    def age(self) -> tuple[float, str, str]:
        """Sort key: older first."""
        return (self.created, self.name, self.namespace)

    def port(self, number: int) -> Port | None:
        """Return the port of this number."""
        for port in self.ports:
            if port.number == number:
                return port
        return None

    def visible_from(self, namespace: str) -> bool:
        """Whether a client in ``namespace`` may see the service."""
        return visible(self.export_to, self.namespace, namespace)


def visible(export_to: tuple[str, ...], owner: str, viewer: str) -> bool:
    """Istio's ``exportTo``: ``*`` everybody, ``.`` the owner's namespace, ``~`` nobody, else a namespace's name."""
    if not export_to:
        return True
    return any(item == "*" or item == viewer or (item == "." and owner == viewer) for item in export_to)


@dataclass(frozen=True, slots=True)
class Workload:
    """A pod or a WorkloadEntry: what runs at some addresses, for inbound configuration and policies.

    ``hostname`` stands in for ``ips`` where a WorkloadEntry has a DNS name.  ``weight`` 0 is unset.
    """

    name: str
    namespace: str
    kind: str
    labels: Labels
    service_account: str
    ips: tuple[str, ...]
    locality: Locality = Locality()
    node: str = ""
    owner: str = ""
    hostname: str = ""
    network: str = ""
    weight: int = 0
    ready: bool = True
    #: The addresses are the node's, shared with others.
    host_network: bool = False
    annotations: Labels = ()


@dataclass(frozen=True, slots=True)
class Target:
    """A service's port as one workload serves it: ``target`` is the port it listens on."""

    hostname: str
    port: int
    target: int


@dataclass(frozen=True, slots=True)
class Provider:
    """A service that judges requests and connections for policies of action CUSTOM.

    ``spec`` is the message of its kind (an ``EnvoyExternalAuthorization{Http,Grpc}Provider``, never to be modified).
    """

    name: str
    hostname: str
    port: int
    spec: Any

    @property
    def grpc(self) -> bool:
        """Whether it speaks gRPC; only such a one can be asked about TCP connections."""
        return bool(self.spec.DESCRIPTOR.name == "EnvoyExternalAuthorizationGrpcProvider")

    def __hash__(self) -> int:
        return hash((self.name, self.hostname, self.port))


@dataclass(frozen=True, slots=True)
class Waypoint:
    """A proxy that applies the rules and policies of what is bound to it.

    ``services`` are (namespace, hostname) of services whose addresses lead to it, ``workloads`` those whose own
    addresses do.
    """

    namespace: str
    name: str
    services: tuple[tuple[str, str], ...] = ()
    workloads: tuple[Workload, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Mesh:
    """Everything that translation reads.  Build it with :func:`controlplane.model.build.build`.

    Sequences are sorted: services by hostname and namespace, rules oldest first.  ``endpoints`` maps (namespace,
    hostname, port) to endpoints in a fixed order.  ``targets`` maps a workload's address to the service ports that it
    backs.  ``workloads`` are those that an address tells; ``members`` are all.
    """

    services: tuple[Service, ...] = ()
    endpoints: Mapping[tuple[str, str, int], tuple[Endpoint, ...]] = field(default_factory=dict)
    workloads: Mapping[str, Workload] = field(default_factory=dict)
    members: tuple[Workload, ...] = ()
    targets: Mapping[str, tuple[Target, ...]] = field(default_factory=dict)
    virtual_services: tuple[Config, ...] = ()
    delegates: Mapping[Key, Config] = field(default_factory=dict)
    destination_rules: tuple[Config, ...] = ()
    gateways: tuple[Config, ...] = ()
    sidecars: tuple[Config, ...] = ()
    envoy_filters: tuple[Config, ...] = ()
    peer_authentications: tuple[Config, ...] = ()
    authorization_policies: tuple[Config, ...] = ()
    request_authentications: tuple[Config, ...] = ()
    providers: Mapping[str, Provider] = field(default_factory=dict)
    waypoints: tuple[Waypoint, ...] = ()
    telemetries: tuple[Config, ...] = ()
    #: The mesh's own configuration, where there is one.
    settings: Config | None = None
    trust_domain: str = "cluster.local"
    domain: str = "cluster.local"
    root_namespace: str = "istio-system"

    def endpoints_of(self, service: Service, port: int) -> tuple[Endpoint, ...]:
        """Return the endpoints behind one port of a service, healthy or not."""
        return self.endpoints.get((service.namespace, service.hostname, port), ())

    def waypoint(self, namespace: str, name: str) -> Waypoint | None:
        """Return the waypoint that the Gateway of this name is."""
        return next((item for item in self.waypoints if (item.namespace, item.name) == (namespace, name)), None)


def fqdn(host: str, namespace: str, domain: str = "cluster.local") -> str:
    """Expand a short name of a rule: a name without a dot belongs to the *rule's* namespace.

    Wildcards and anything that holds a dot are complete already.
    """
    if "." in host or host.startswith("*") or not host:
        return host
    return f"{host}.{namespace}.svc.{domain}"
