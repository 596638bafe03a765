"""Services and endpoints out of Kubernetes and registry objects.  Pure; the rules are istiod's unless said."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, get_args

from controlplane.model.labels import Labels, freeze, get, selects
from controlplane.model.mesh import Endpoint, Locality, Port, Protocol, Resolution, Service, Target, Workload
from controlplane.model.objects import (
    Config,
    Key,
    KubeEndpointSlice,
    KubeNode,
    KubePod,
    KubeService,
    Object,
)
from controlplane.model.verdict import Note

_APP_PROTOCOLS: Final[Mapping[str, Protocol]] = {
    "kubernetes.io/h2c": "HTTP2",
    "kubernetes.io/ws": "HTTP",
    "kubernetes.io/wss": "HTTPS",
    "http": "HTTP",
    "http2": "HTTP2",
    "https": "HTTPS",
    "grpc": "GRPC",
    "grpc-web": "GRPC-WEB",
    "tls": "TLS",
    "tcp": "TCP",
    "mongo": "MONGO",
    "mysql": "MYSQL",
    "redis": "REDIS",
}
#: Ports whose server speaks first, where looking at the client's bytes would wait for ever: TCP unless declared.
_SERVER_FIRST: Final = frozenset({25, 53, 3306, 27017})
_SE_RESOLUTION: Final[Mapping[int, Resolution]] = {
    0: "PASSTHROUGH",
    1: "EDS",
    2: "DNS",
    3: "DNS_ROUND_ROBIN",
    4: "DYNAMIC_DNS",
}


def protocol(port: int, name: str, app_protocol: str, transport: str) -> Protocol:
    """Protocol of a Kubernetes Service's port: ``appProtocol``, else the name's first word, else ``AUTO``."""
    if transport == "UDP":
        return "UDP"
    found = _APP_PROTOCOLS.get(app_protocol.lower())
    if found is None:
        lowered = name.lower()
        found = _APP_PROTOCOLS.get(lowered) or (
            "GRPC-WEB" if lowered.startswith("grpc-web") else _APP_PROTOCOLS.get(lowered.partition("-")[0])
        )
    if found is None:
        return "TCP" if port in _SERVER_FIRST else "AUTO"
    return found


def _entry_protocol(text: str, port: int) -> Protocol:
    upper = text.upper()
    if upper in get_args(Protocol):
        return upper  # type: ignore[return-value]  # it is one of them
    return "TCP" if port in _SERVER_FIRST else "AUTO"


@dataclass(slots=True)
class Registry:
    """What :func:`collect` found; mutable only while it is being filled."""

    services: list[Service] = field(default_factory=list)
    endpoints: dict[tuple[str, str, int], tuple[Endpoint, ...]] = field(default_factory=dict)
    workloads: dict[str, Workload] = field(default_factory=dict)
    members: list[Workload] = field(default_factory=list)
    targets: dict[str, tuple[Target, ...]] = field(default_factory=dict)
    notes: dict[Key, list[Note]] = field(default_factory=lambda: defaultdict(list))
    remembered: Remembered = field(default_factory=lambda: Remembered())


@dataclass(slots=True)
class _Known:
    """One Kubernetes Service's result, and what it was made of beside its namespace's pods and entries."""

    source: KubeService
    slices: tuple[KubeEndpointSlice, ...]
    made: Service
    endpoints: dict[int, tuple[Endpoint, ...]]


@dataclass(slots=True)
class Remembered:
    """What the next :func:`collect` may take over: in a large mesh nearly every service is as it was before."""

    domain: str = ""
    nodes: dict[str, Labels] = field(default_factory=dict)
    pods: dict[str, tuple[KubePod, ...]] = field(default_factory=dict)
    entries: dict[str, tuple[Config, ...]] = field(default_factory=dict)
    services: dict[Key, _Known] = field(default_factory=dict)


def _family(address: str) -> int:
    """4 or 6 for an address (they were checked when they were read), 0 for a name."""
    if ":" in address:
        return 0 if address.startswith("unix:") else 6
    return 4 if address.replace(".", "").isdigit() else 0


class _Collector:
    def __init__(self, objects: Mapping[Key, Object], domain: str, previous: Remembered) -> None:
        self._domain = domain
        self._previous = previous
        self._pods: dict[tuple[str, str], KubePod] = {}
        self._by_namespace: dict[str, list[KubePod]] = defaultdict(list)
        self._slices: dict[tuple[str, str], list[KubeEndpointSlice]] = defaultdict(list)
        self._nodes: dict[str, Labels] = {}
        self._entries: dict[str, list[Config]] = defaultdict(list)
        self._services: list[KubeService] = []
        self._service_entries: list[Config] = []
        self.out = Registry()
        for key in sorted(objects):
            self._sort(objects[key])

    def _sort(self, item: Object) -> None:
        key = item.meta.key
        if isinstance(item, KubePod):
            self._pods[key.namespace, key.name] = item
            if not item.terminal:
                self._by_namespace[key.namespace].append(item)
        elif isinstance(item, KubeEndpointSlice):
            self._slices[key.namespace, item.service].append(item)
        elif isinstance(item, KubeNode):
            self._nodes[key.name] = item.meta.labels
        elif isinstance(item, KubeService):
            self._services.append(item)
        elif isinstance(item, Config) and key.kind == "WorkloadEntry":
            self._entries[key.namespace].append(item)
        elif isinstance(item, Config) and key.kind == "ServiceEntry":
            self._service_entries.append(item)

    def run(self) -> Registry:
        self._collect_workloads()
        now = Remembered(
            domain=self._domain,
            nodes=self._nodes,
            pods={space: tuple(pods) for space, pods in self._by_namespace.items()},
            entries={space: tuple(entries) for space, entries in self._entries.items()},
        )
        before = self._previous
        same = (now.domain, now.nodes) == (before.domain, before.nodes)
        spaces = {service.meta.key.namespace for service in self._services}
        unchanged = {
            space
            for space in spaces
            if same
            and now.pods.get(space) == before.pods.get(space)
            and now.entries.get(space) == before.entries.get(space)
        }
        for service in self._services:
            key = service.meta.key
            slices = tuple(self._slices.get((key.namespace, key.name), ()))
            known = before.services.get(key) if key.namespace in unchanged else None
            if known is None or known.source != service or known.slices != slices:
                known = self._kubernetes(service, slices)
            now.services[key] = known
            self.out.services.append(known.made)
            for number, endpoints in known.endpoints.items():
                self.out.endpoints[key.namespace, known.made.hostname, number] = endpoints
        self.out.remembered = now
        taken = {(service.namespace, service.hostname) for service in self.out.services}
        for entry in sorted(self._service_entries, key=lambda item: item.meta.age):
            self._service_entry(entry, taken)
        self._collect_targets()
        self.out.services.sort(key=lambda service: (service.hostname, service.namespace))
        return self.out

    # ------------------------------------------------------------------------------------------------- workloads
    def _pod_locality(self, pod: KubePod) -> Locality:
        declared = get(pod.meta.labels, "istio-locality")
        if declared:
            return Locality.parse(declared)
        labels = dict(self._nodes.get(pod.node, ()))
        return Locality(
            labels.get("topology.kubernetes.io/region", labels.get("failure-domain.beta.kubernetes.io/region", "")),
            labels.get("topology.kubernetes.io/zone", labels.get("failure-domain.beta.kubernetes.io/zone", "")),
            labels.get("topology.istio.io/subzone", ""),
        )

    def _collect_workloads(self) -> None:
        for pods in self._by_namespace.values():
            for pod in pods:
                workload = Workload(
                    name=pod.meta.key.name,
                    namespace=pod.meta.key.namespace,
                    kind="Pod",
                    labels=pod.meta.labels,
                    service_account=pod.service_account,
                    ips=pod.ips,
                    locality=self._pod_locality(pod),
                    node=pod.node,
                    owner=pod.owner,
                    ready=pod.ready,
                    host_network=pod.host_network,
                    annotations=pod.meta.annotations,
                )
                self.out.members.append(workload)
                if pod.host_network:
                    continue  # its address is the node's, shared with others
                for ip in pod.ips:
                    self.out.workloads.setdefault(ip, workload)
        for entries in self._entries.values():
            for entry in entries:
                spec = entry.spec
                numeric = bool(_family(spec.address))
                if not numeric and spec.address.startswith("unix:"):
                    continue
                workload = Workload(
                    name=entry.meta.key.name,
                    namespace=entry.meta.key.namespace,
                    kind="WorkloadEntry",
                    labels=_entry_labels(entry),
                    service_account=spec.service_account,
                    ips=(spec.address,) if numeric else (),
                    locality=Locality.parse(spec.locality),
                    owner=entry.meta.key.name,
                    hostname="" if numeric else spec.address,
                    network=spec.network,
                    weight=spec.weight,
                    annotations=entry.meta.annotations,
                )
                self.out.members.append(workload)
                if numeric:
                    self.out.workloads.setdefault(spec.address, workload)

    def _collect_targets(self) -> None:
        found: dict[str, set[tuple[str, int, int]]] = defaultdict(set)
        for (_, hostname, port), endpoints in self.out.endpoints.items():
            for endpoint in endpoints:
                for address in (endpoint.address, *endpoint.also):
                    if address in self.out.workloads:
                        found[address].add((hostname, port, endpoint.port))
        self.out.targets = {ip: tuple(Target(*item) for item in sorted(items)) for ip, items in sorted(found.items())}

    # --------------------------------------------------------------------------------------- Kubernetes Services
    def _kubernetes(self, service: KubeService, slices: tuple[KubeEndpointSlice, ...]) -> _Known:
        key = service.meta.key
        exported = get(service.meta.annotations, "networking.istio.io/exportTo")
        export_to = tuple(item.strip() for item in exported.split(",") if item.strip()) or ("*",)
        resolution: Resolution = "EDS"
        if service.external_name:
            resolution = "DNS"
        elif service.headless:
            resolution = "PASSTHROUGH"
        made = Service(
            hostname=f"{key.name}.{key.namespace}.svc.{self._domain}",
            namespace=key.namespace,
            name=key.name,
            kind="Service",
            source=service.meta.source,
            created=service.meta.created,
            ports=tuple(
                Port(
                    port.name,
                    port.number,
                    protocol(port.number, port.name, port.app_protocol, port.transport),
                    port.target if isinstance(port.target, int) else 0,
                )
                for port in service.ports
            ),
            addresses=(*service.cluster_ips, *service.external_ips),
            resolution=resolution,
            external=bool(service.external_name),
            headless=service.headless,
            export_to=export_to,
            selector=service.selector,
            labels=service.meta.labels,
            local_only=service.internal_local,
            publish_not_ready=service.publish_not_ready,
            object=key.name,
        )
        found: dict[int, tuple[Endpoint, ...]] = {}
        for port in service.ports:
            endpoints: list[Endpoint] = []
            if service.external_name:
                endpoints.append(Endpoint(service.external_name, port.number, namespace=key.namespace))
            elif slices:
                endpoints.extend(self._from_slices(service, port.name, slices))
            elif service.selector:
                endpoints.extend(self._from_pods(service, port.target))
            if service.selector:
                endpoints.extend(self._from_entries(service, port.name, port.target))
            found[port.number] = _merge(endpoints, _primary(service))
        return _Known(service, slices, made, found)

    def _from_slices(self, service: KubeService, name: str, slices: Iterable[KubeEndpointSlice]) -> Iterable[Endpoint]:
        namespace = service.meta.key.namespace
        for item in slices:
            if item.address_type == "FQDN":
                continue  # no one may rely on it: Kubernetes itself deprecates the type
            for port in item.ports:
                if port.name != name or not port.number:
                    continue
                for endpoint in item.endpoints:
                    if not (endpoint.ready or service.publish_not_ready):
                        continue
                    pod = self._pods.get((namespace, endpoint.pod)) if endpoint.pod else None
                    for address in endpoint.addresses:
                        yield self._pod_endpoint(pod, namespace, address, port.number, endpoint.node)

    def _pod_endpoint(self, pod: KubePod | None, namespace: str, address: str, port: int, node: str) -> Endpoint:
        if pod is None:
            return Endpoint(address, port, namespace=namespace, node=node)
        return Endpoint(
            address=address,
            port=port,
            labels=pod.meta.labels,
            locality=self._pod_locality(pod),
            namespace=namespace,
            workload=pod.owner,
            service_account=pod.service_account,
            node=pod.node or node,
            tls=get(pod.meta.labels, "security.istio.io/tlsMode") == "istio",
            instance=pod.meta.key.name,
        )

    def _from_pods(self, service: KubeService, target: int | str) -> Iterable[Endpoint]:
        """Where no controller has written EndpointSlices (a plain directory of YAML), do what it would do."""
        for pod in self._by_namespace.get(service.meta.key.namespace, []):
            if not selects(service.selector, pod.meta.labels) or not (pod.ready or service.publish_not_ready):
                continue
            number = target if isinstance(target, int) else _named(pod, target)
            if number:
                for ip in pod.ips:
                    yield self._pod_endpoint(pod, pod.meta.key.namespace, ip, number, pod.node)

    def _from_entries(self, service: KubeService, name: str, target: int | str) -> Iterable[Endpoint]:
        """A Kubernetes Service selects WorkloadEntries of its namespace as it selects pods."""
        for entry in self._entries.get(service.meta.key.namespace, []):
            if selects(service.selector, _entry_labels(entry)):
                number = entry.spec.ports.get(name) if name in entry.spec.ports else None
                if number is None and isinstance(target, str):
                    number = entry.spec.ports.get(target) if target in entry.spec.ports else None
                if number is None and isinstance(target, int):
                    number = target
                if number:
                    yield _entry_endpoint(
                        entry.spec, number, entry.meta.key.namespace, _entry_labels(entry), entry.meta.key.name
                    )

    # ------------------------------------------------------------------------------------------- ServiceEntries
    def _service_entry(self, entry: Config, taken: set[tuple[str, str]]) -> None:
        spec, key = entry.spec, entry.meta.key
        resolution = _SE_RESOLUTION[spec.resolution]
        ports = tuple(
            Port(port.name, port.number, _entry_protocol(port.protocol, port.number), port.target_port or port.number)
            for port in spec.ports
        )
        for host in sorted(spec.hosts):
            if (key.namespace, host) in taken:
                self.out.notes[key].append(
                    Note(entry.line("hosts"), "shadowed-host", f"{host}: another object already defines this service")
                )
                continue
            taken.add((key.namespace, host))
            self.out.services.append(
                Service(
                    hostname=host,
                    namespace=key.namespace,
                    name=host,
                    kind="ServiceEntry",
                    source=entry.meta.source,
                    created=entry.meta.created,
                    ports=ports,
                    addresses=tuple(spec.addresses),
                    resolution=resolution,
                    external=spec.location == 0,
                    accounts=tuple(spec.subject_alt_names),
                    export_to=tuple(spec.export_to) or ("*",),
                    selector=freeze(spec.workload_selector.labels),
                    labels=entry.meta.labels,
                    object=key.name,
                )
            )
            for port in spec.ports:
                found = list(self._entry_endpoints(entry, port, host)) if resolution != "PASSTHROUGH" else []
                self.out.endpoints[key.namespace, host, port.number] = _merge(found, 4)

    def _entry_endpoints(self, entry: Config, port: Any, host: str) -> Iterable[Endpoint]:
        spec, namespace = entry.spec, entry.meta.key.namespace
        number = port.target_port or port.number
        if spec.HasField("workload_selector"):
            selector = freeze(spec.workload_selector.labels)
            for pod in self._by_namespace.get(namespace, []):
                if pod.ready and selects(selector, pod.meta.labels):
                    target = _named(pod, port.name) or number
                    for ip in pod.ips:
                        yield self._pod_endpoint(pod, namespace, ip, target, pod.node)
            for other in self._entries.get(namespace, []):
                if selects(selector, _entry_labels(other)):
                    target = other.spec.ports.get(port.name, number)
                    yield _entry_endpoint(other.spec, target, namespace, _entry_labels(other), other.meta.key.name)
        elif spec.endpoints:
            for item in spec.endpoints:
                target = item.ports.get(port.name, number)
                yield _entry_endpoint(item, target, namespace, freeze(item.labels), "")
        elif spec.resolution in (2, 3):
            yield Endpoint(host, number, namespace=namespace)


def _entry_labels(entry: Config) -> Labels:
    return freeze({**dict(entry.meta.labels), **dict(entry.spec.labels)})


def _entry_endpoint(spec: Any, port: int, namespace: str, labels: Labels, name: str) -> Endpoint:
    return Endpoint(
        address=spec.address,
        port=0 if spec.address.startswith("unix://") else port,
        labels=labels,
        locality=Locality.parse(spec.locality),
        namespace=namespace,
        workload=name,
        service_account=spec.service_account,
        weight=spec.weight or 1,
        tls=get(labels, "security.istio.io/tlsMode") == "istio",
        network=spec.network,
    )


def _named(pod: KubePod, name: str) -> int:
    for port in pod.ports:
        if port.name == name:
            return port.number
    return 0


def _primary(service: KubeService) -> int:
    return _family(service.cluster_ips[0]) if service.cluster_ips else 4


def _merge(endpoints: Iterable[Endpoint], primary: int) -> tuple[Endpoint, ...]:
    """Sort, drop repetitions, and make the two addresses of a dual-stack pod one endpoint.

    The address of the service's own (first) family leads, the other goes into ``also``.  Further addresses of a family
    stay endpoints of their own.  Two pods that claim one address both keep it: which of them is right is not ours to
    guess, and dropping one would empty its subset.
    """
    unique = {(item.address, item.port, item.instance): item for item in endpoints}
    groups: dict[tuple[str, str, int], list[Endpoint]] = {}
    for endpoint in unique.values():
        alone = endpoint.instance or f"address {endpoint.address}"
        groups.setdefault((endpoint.namespace, alone, endpoint.port), []).append(endpoint)
    result: list[Endpoint] = []
    for group in groups.values():
        if len(group) == 1:
            result.append(group[0])
            continue
        group.sort(key=lambda item: (_family(item.address) != primary, item.order))
        first, rest = group[0], group[1:]
        other = next((item for item in rest if _family(item.address) != _family(first.address)), None)
        result.append(first if other is None else replace(first, also=(other.address,)))
        result.extend(item for item in rest if item is not other)
    return tuple(sorted(result, key=lambda item: (item.order, item.instance)))


def collect(objects: Mapping[Key, Object], domain: str, previous: Remembered | None = None) -> Registry:
    """Read all services, endpoints and workloads out of ``objects``.

    ``previous`` is what the last registry remembers; it saves work and never changes the result.
    """
    return _Collector(objects, domain, previous or Remembered()).run()
