"""Configuration objects after conversion: typed, immutable, each knowing the file and line that it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from controlplane.model.gateway_objects import GatewayObject
from controlplane.model.identity import Key, Meta, Origin, SourceRef
from controlplane.model.labels import Labels

__all__ = [
    "Config",
    "ContainerPort",
    "Key",
    "KubeDeployment",
    "KubeEndpointSlice",
    "KubeNamespace",
    "KubeNode",
    "KubePod",
    "KubePort",
    "KubeService",
    "KubeServiceAccount",
    "Meta",
    "Object",
    "Origin",
    "SliceEndpoint",
    "SlicePort",
    "SourceRef",
]


@dataclass(frozen=True, slots=True, eq=False)
class Config:
    """An Istio object: its message (of :mod:`underpass.api.istio`, never to be modified) and the lines of its parts.

    ``lines`` maps a field path of the spec (``http[0]``, ``subsets[1]``) to its line in the file.  ``gateway_api``
    marks one that was made of Gateway API objects and has their semantics; ``origins`` then says where each of its http
    rules was written.
    """

    meta: Meta
    spec: Any
    lines: Mapping[str, int] = field(default_factory=dict)
    gateway_api: bool = False
    origins: tuple[Origin, ...] = ()

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
        return (
            isinstance(other, Config)
            and self.meta == other.meta
            and self.gateway_api == other.gateway_api
            and self.origins == other.origins
            and self.lines == other.lines
            and bool(self.spec == other.spec)
        )

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
    Config
    | KubeService
    | KubePod
    | KubeEndpointSlice
    | KubeNode
    | KubeNamespace
    | KubeServiceAccount
    | KubeDeployment
    | GatewayObject
)
