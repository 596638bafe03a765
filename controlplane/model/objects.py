"""Configuration objects after conversion: typed, immutable, each knowing the file and line that it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from controlplane.model.labels import Labels


@dataclass(frozen=True, slots=True, order=True)
class SourceRef:
    """Where an object was written: file as its author knows it, and the 1-based line."""

    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Identity of an object.  Cluster-scoped kinds have an empty namespace."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Meta:
    """What every object has.  ``created`` is seconds since the epoch; it decides which of two rivals is older."""

    key: Key
    source: SourceRef
    created: float = 0.0
    labels: Labels = ()
    annotations: Labels = ()

    @property
    def age(self) -> tuple[float, str, str]:
        """Sort key: older first, ties by name and namespace, as istiod sorts configuration."""
        return (self.created, self.key.name, self.key.namespace)


@dataclass(frozen=True, slots=True, eq=False)
class Config:
    """An Istio object: its message (of :mod:`underpass.api.istio`, never to be modified) and the lines of its parts.

    ``lines`` maps a field path of the spec (``http[0]``, ``subsets[1]``) to its line in the file.
    """

    meta: Meta
    spec: Any
    lines: Mapping[str, int] = field(default_factory=dict)

    def line(self, path: str) -> int:
        """Return the line of ``path``, or of the nearest part around it, or of the object."""
        while path:
            found = self.lines.get(path)
            if found is not None:
                return found
            cut = max(path.rfind("."), path.rfind("["))
            path = path[:cut] if cut > 0 else ""
        return self.meta.source.line

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.meta == other.meta and bool(self.spec == other.spec)

    def __hash__(self) -> int:
        return hash(self.meta)


@dataclass(frozen=True, slots=True)
class KubePort:
    """A Service's port.  ``target`` is a number or a container port's name."""

    name: str
    number: int
    target: int | str
    transport: str = "TCP"
    app_protocol: str = ""
    node_port: int = 0


@dataclass(frozen=True, slots=True)
class KubeService:
    """Kubernetes ``Service``.  ``cluster_ips`` is empty for a headless one."""

    meta: Meta
    ports: tuple[KubePort, ...]
    selector: Labels
    cluster_ips: tuple[str, ...]
    headless: bool = False
    type: str = "ClusterIP"
    external_name: str = ""
    external_ips: tuple[str, ...] = ()
    publish_not_ready: bool = False
    internal_local: bool = False


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A port that a container declares."""

    name: str
    number: int
    transport: str = "TCP"


@dataclass(frozen=True, slots=True)
class KubePod:
    """Kubernetes ``Pod``: address, identity and readiness.  ``owner`` is the workload that made it, or its own name."""

    meta: Meta
    ips: tuple[str, ...]
    service_account: str
    node: str
    ready: bool
    terminal: bool
    ports: tuple[ContainerPort, ...]
    owner: str
    host_network: bool = False


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    """One endpoint of an EndpointSlice."""

    addresses: tuple[str, ...]
    ready: bool
    serving: bool
    terminating: bool
    node: str = ""
    zone: str = ""
    pod: str = ""


@dataclass(frozen=True, slots=True)
class SlicePort:
    """A port of an EndpointSlice; it belongs to the Service's port of the same name.  Number 0 is "all ports"."""

    name: str
    number: int
    transport: str = "TCP"


@dataclass(frozen=True, slots=True)
class KubeEndpointSlice:
    """Kubernetes ``EndpointSlice``."""

    meta: Meta
    service: str
    address_type: str
    ports: tuple[SlicePort, ...]
    endpoints: tuple[SliceEndpoint, ...]


@dataclass(frozen=True, slots=True)
class KubeNode:
    """Kubernetes ``Node``: only its labels matter here (region and zone)."""

    meta: Meta


@dataclass(frozen=True, slots=True)
class KubeNamespace:
    """Kubernetes ``Namespace``: only its labels matter here."""

    meta: Meta


@dataclass(frozen=True, slots=True)
class KubeServiceAccount:
    """Kubernetes ``ServiceAccount``."""

    meta: Meta


@dataclass(frozen=True, slots=True)
class KubeDeployment:
    """Kubernetes ``Deployment`` and its kin: known, so that ordinary manifests are accepted; Pods give endpoints."""

    meta: Meta
    replicas: int
    labels: Labels
    service_account: str


Object = (
    Config | KubeService | KubePod | KubeEndpointSlice | KubeNode | KubeNamespace | KubeServiceAccount | KubeDeployment
)
