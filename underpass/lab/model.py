"""The plan of a lab as plain values: what shall exist, down to each process, and nothing about how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from underpass.lab.addresses import Addressing


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One YAML file as the user gave it. `name` is what it is called in the control plane's directory."""

    name: str
    path: str
    text: str


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """How bad the link between the nodes is: shares of frames, 0 to 1, and the delay of late ones in seconds."""

    loss: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0
    late_by: float = 0.002

    @property
    def lossy(self) -> bool:
        """Whether frames must go through the forwarder at all."""
        return bool(self.loss or self.duplicate or self.late)


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for besides the YAML."""

    name: str = "default"
    nodes: int = 1
    dual_stack: bool = False
    mesh: bool = True
    link: LinkOptions = field(default_factory=LinkOptions)
    placement: Mapping[str, str] = field(default_factory=dict)
    #: Each agent runs an Envoy, for what the kernel leaves.
    waypoint: bool = False


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a workload, standing for a container. No `command`: the sample server on `ports`."""

    container: str
    image: str
    command: tuple[str, ...]
    ports: tuple[int, ...]
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A port that a container declares."""

    name: str
    number: int
    protocol: str = "TCP"


@dataclass(frozen=True, slots=True)
class Workload:
    """One pod-like thing. `owner` is what users call it; `name` is unique in the namespace."""

    kind: str
    owner: str
    name: str
    namespace: str
    service_account: str
    labels: Mapping[str, str]
    node: int
    ips: tuple[str, ...]
    slot: int
    processes: tuple[Process, ...]
    container_ports: tuple[ContainerPort, ...]
    file: str
    line: int

    @property
    def key(self) -> str:
        """NAMESPACE/NAME of the pod."""
        return f"{self.namespace}/{self.name}"

    @property
    def ports(self) -> tuple[int, ...]:
        """All ports that its processes are to listen on."""
        return tuple(sorted({port for process in self.processes for port in process.ports}))

    def runs_like(self, other: Workload | None) -> bool:
        """Whether nothing has to be started anew for the other, wherever in which file it is written."""
        return other is not None and replace(self, file="", line=0) == replace(other, file="", line=0)

    @property
    def host_interface(self) -> str:
        """The node's end of its veth."""
        return f"veth-{self.slot}"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port of a Service. `target` is a number or a container port's name."""

    name: str
    number: int
    target: int | str
    protocol: str = "TCP"


@dataclass(frozen=True, slots=True)
class Service:
    """A Service with its addresses. `allocated` tells that the lab gave them; a headless one has none."""

    name: str
    namespace: str
    ports: tuple[ServicePort, ...]
    selector: Mapping[str, str]
    vips: tuple[str, ...]
    allocated: bool
    headless: bool
    external_name: str
    file: str
    line: int

    def selects(self, workload: Workload) -> bool:
        """Whether `workload`'s pods are endpoints (an empty selector selects nothing)."""
        return (
            bool(self.selector)
            and workload.kind != "WorkloadEntry"
            and workload.namespace == self.namespace
            and all(workload.labels.get(key) == value for key, value in self.selector.items())
        )


@dataclass(frozen=True, slots=True)
class NamedHost:
    """A host of a ServiceEntry and the addresses that its name shall resolve to."""

    host: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One simulated node; `index` counts from 1."""

    name: str
    index: int

    @property
    def netns(self) -> str:
        """The name of its network namespace."""
        return f"underpass.{self.name}"


@dataclass(frozen=True, slots=True)
class Allocation:
    """What was given out: node and slot of each pod (`NAMESPACE/NAME`), VIPs of each Service that had none."""

    pods: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    vips: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole lab."""

    options: Options
    addressing: Addressing
    nodes: tuple[Node, ...]
    workloads: tuple[Workload, ...]
    services: tuple[Service, ...]
    hosts: tuple[NamedHost, ...]
    notes: tuple[str, ...]

    def node(self, workload: Workload) -> Node:
        """The node that `workload` runs on."""
        return self.nodes[workload.node - 1]

    def netns(self, workload: Workload) -> str:
        """The name of `workload`'s network namespace."""
        return f"{self.node(workload).netns}.{workload.namespace}.{workload.name}"

    def endpoints(self, service: Service) -> list[Workload]:
        """The pods that `service` selects."""
        return [workload for workload in self.workloads if service.selects(workload)]

    def allocation(self) -> Allocation:
        """What this plan gives out, for the next plan to keep."""
        return Allocation(
            {workload.key: (workload.node, workload.slot) for workload in self.workloads},
            {f"{service.namespace}/{service.name}": service.vips for service in self.services if service.allocated},
        )
