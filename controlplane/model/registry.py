"""Services and endpoints out of Kubernetes and registry objects.  Pure; the rules are istiod's unless said."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from controlplane.model.labels import Labels, freeze, get, selects
from controlplane.model.mesh import Endpoint, Locality, Port, Resolution, Service, Target, Workload
from controlplane.model.objects import (
    Config,
    Key,
    KubeEndpointSlice,
    KubeNode,
    KubePod,
    KubeService,
    Object,
)
from controlplane.model.protocols import entry_protocol, protocol
from controlplane.model.tables import Changed, Tables
from controlplane.model.verdict import Note

_T = TypeVar("_T")

_SE_RESOLUTION: Final[Mapping[int, Resolution]] = {
    0: "PASSTHROUGH",
    1: "EDS",
    2: "DNS",
    3: "DNS_ROUND_ROBIN",
    4: "DYNAMIC_DNS",
}

_Where = tuple[str, str, int]
"""Namespace, host name and port of a service: what endpoints are found by."""


@dataclass(slots=True)
class Registry:
    """What :func:`collect` found.

    Parts that are equal to the last registry's are the same objects, so that whoever depends on one can tell by
    identity whether there is anything to do.
    """

    services: tuple[Service, ...] = ()
    endpoints: dict[_Where, tuple[Endpoint, ...]] = field(default_factory=dict)
    workloads: dict[str, Workload] = field(default_factory=dict)
    members: tuple[Workload, ...] = ()
    targets: dict[str, tuple[Target, ...]] = field(default_factory=dict)
    notes: Mapping[Key, list[Note]] = field(default_factory=dict)


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
    tables: Tables = field(default_factory=Tables)
    known: dict[Key, _Known] = field(default_factory=dict)
    registry: Registry = field(default_factory=Registry)
    #: Of each workload that backs anything: where its address is an endpoint.
    backs: Mapping[str, frozenset[_Where]] = field(default_factory=dict)


def _family(address: str) -> int:
    """4 or 6 for an address (they were checked when they were read), 0 for a name."""
    if ":" in address:
        return 0 if address.startswith("unix:") else 6
    return 4 if address.replace(".", "").isdigit() else 0


class _Collector:
    def __init__(self, tables: Tables, domain: str, previous: Remembered) -> None:
        self._domain = domain
        self._previous = previous
        self._tables = tables
        self._pods = tables.pods
        self._by_namespace = tables.by_namespace
        self._nodes = tables.nodes
        self._entries = tables.entries
        self._services: list[Service] = []
        self._members: list[Workload] = []
        self._notes: dict[Key, list[Note]] = defaultdict(list)
        self.out = Registry()

    def run(self) -> tuple[Registry, Remembered]:
        """Everything, with the results of services that are as they were."""
        self._collect_workloads()
        before, tables = self._previous, self._tables
        same = (self._domain, tables.nodes) == (before.domain, before.tables.nodes)
        spaces = {service.meta.key.namespace for service in tables.services}
        unchanged = {
            space
            for space in spaces
            if same
            and tables.by_namespace.get(space) == before.tables.by_namespace.get(space)
            and tables.entries.get(space) == before.tables.entries.get(space)
        }
        known: dict[Key, _Known] = {}
        for service in tables.services:
            key = service.meta.key
            slices = tables.slices.get((key.namespace, key.name), ())
            found = before.known.get(key)
            if found is None or key.namespace not in unchanged or found.source != service or found.slices != slices:
                found = self._renewed(found, service, slices)
            known[key] = found
            self._services.append(found.made)
            for number, endpoints in found.endpoints.items():
                self.out.endpoints[key.namespace, found.made.hostname, number] = endpoints
        taken = {(service.namespace, service.hostname) for service in self._services}
        for entry in sorted(tables.service_entries, key=lambda item: item.meta.age):
            self._service_entry(entry, taken)
        backs = self._collect_targets()
        self._services.sort(key=_place)
        last = before.registry
        self.out.services = _kept(last.services, self._services)
        self.out.members = _kept(last.members, self._members)
        if self.out.workloads == last.workloads:
            self.out.workloads = last.workloads
        self.out.notes = self._notes
        return self.out, Remembered(self._domain, tables, known, self.out, backs)

    def patch(self, changed: Iterable[Changed]) -> tuple[Registry, Remembered] | None:
        """The last registry with some Services and EndpointSlices changed; None if that is not all that matters.

        The tables are still those of the last registry.
        """
        before, last = self._previous, self._previous.registry
        concerned: dict[tuple[str, str], None] = {}
        slices: dict[tuple[str, str], dict[Key, KubeEndpointSlice]] = {}
        now: dict[Key, KubeService | None] = {}
        for item in changed:
            if item.concerns(KubePod, KubeNode) or item.key.kind in ("WorkloadEntry", "ServiceEntry"):
                return None
            if item.concerns(KubeService):
                concerned[item.key.namespace, item.key.name] = None
                now[item.key] = item.new if isinstance(item.new, KubeService) else None
            for one in (item.old, item.new):
                if isinstance(one, KubeEndpointSlice):
                    where = (item.key.namespace, one.service)
                    concerned[where] = None
                    table = slices.setdefault(where, {old.meta.key: old for old in self._tables.slices.get(where, ())})
                    table.pop(item.key, None)
                    if one is item.new:
                        table[item.key] = one
        if not concerned:
            return last, before
        self._tables = replace(self._tables, slices=dict(self._tables.slices))
        for where, table in slices.items():
            self._tables.slices[where] = tuple(table[key] for key in sorted(table))
            if not table:
                del self._tables.slices[where]
        return self._patched([Key("Service", *where) for where in concerned], now)

    def _patched(self, concerned: list[Key], now: dict[Key, KubeService | None]) -> tuple[Registry, Remembered] | None:
        before, last = self._previous, self._previous.registry
        known, endpoints, backs = dict(before.known), dict(last.endpoints), dict(before.backs)
        services = {(one.hostname, one.namespace): one for one in last.services} if now else {}
        touched: set[str] = set()
        for key in concerned:
            old = known.pop(key, None)
            source = now.get(key, old.source if old is not None else None)
            if (old is None) != (source is None) and self._tables.service_entries:
                return None  # a ServiceEntry may have to give its host up, or get it back
            if old is not None:
                services.pop((old.made.hostname, key.namespace), None)
                for where, pool in _pools(old):
                    del endpoints[where]
                    for address in _addresses(pool):
                        if address in last.workloads:
                            touched.add(address)
                            backs[address] = backs[address] - {where}
            if source is None:
                continue
            new = known[key] = self._renewed(old, source, self._tables.slices.get((key.namespace, key.name), ()))
            services[new.made.hostname, key.namespace] = new.made
            for where, pool in _pools(new):
                endpoints[where] = pool
                for address in _addresses(pool):
                    if address in last.workloads:
                        touched.add(address)
                        backs[address] = backs.get(address, frozenset()) | {where}
        if now:
            self._services = sorted(services.values(), key=_place)
        tables = self._tables
        if any(value is None or key not in before.known for key, value in now.items()):
            listed = {service.meta.key: service for service in tables.services} | now
            tables = replace(tables, services=[one for key in sorted(listed) if (one := listed[key]) is not None])
        elif now:
            tables = replace(tables, services=[now.get(one.meta.key) or one for one in tables.services])
        self.out = Registry(
            _kept(last.services, self._services) if now else last.services,
            endpoints,
            last.workloads,
            last.members,
            _retargeted(last.targets, touched, backs, endpoints),
            last.notes,
        )
        return self.out, Remembered(self._domain, tables, known, self.out, backs)

    def _renewed(self, old: _Known | None, service: KubeService, slices: tuple[KubeEndpointSlice, ...]) -> _Known:
        """A service's result, of which the parts that are as they were stay the same objects."""
        new = self._kubernetes(service, slices)
        if old is not None:
            if old.made == new.made:
                new.made = old.made
            for number, pool in new.endpoints.items():
                if old.endpoints.get(number) == pool:
                    new.endpoints[number] = old.endpoints[number]
        return new

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
                self._members.append(workload)
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
                self._members.append(workload)
                if numeric:
                    self.out.workloads.setdefault(spec.address, workload)

    def _collect_targets(self) -> dict[str, frozenset[_Where]]:
        """Find what each workload backs; gives where, by its address, so that a change finds it again."""
        found: dict[str, set[_Where]] = defaultdict(set)
        workloads, endpoints = self.out.workloads, self.out.endpoints
        if workloads:
            for where, pool in endpoints.items():
                for address in _addresses(pool):
                    if address in workloads:
                        found[address].add(where)
        backs = {address: frozenset(places) for address, places in found.items()}
        self.out.targets = _retargeted({}, backs, backs, endpoints)
        return backs

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
            Port(port.name, port.number, entry_protocol(port.protocol, port.number), port.target_port or port.number)
            for port in spec.ports
        )
        for host in sorted(spec.hosts):
            if (key.namespace, host) in taken:
                self._notes[key].append(
                    Note(entry.line("hosts"), "shadowed-host", f"{host}: another object already defines this service")
                )
                continue
            taken.add((key.namespace, host))
            self._services.append(
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


def _place(service: Service) -> tuple[str, str]:
    return (service.hostname, service.namespace)


def _pools(known: _Known) -> Iterable[tuple[_Where, tuple[Endpoint, ...]]]:
    for number, pool in known.endpoints.items():
        yield (known.made.namespace, known.made.hostname, number), pool


def _addresses(pool: Iterable[Endpoint]) -> Iterable[str]:
    for endpoint in pool:
        yield endpoint.address
        yield from endpoint.also


def _retargeted(
    last: dict[str, tuple[Target, ...]],
    touched: Iterable[str],
    backs: Mapping[str, frozenset[_Where]],
    endpoints: Mapping[_Where, tuple[Endpoint, ...]],
) -> dict[str, tuple[Target, ...]]:
    """The targets with those of some addresses found anew; the same object when none of them changed."""
    out: dict[str, tuple[Target, ...]] = {}
    for address in touched:
        items = {
            (where[1], where[2], endpoint.port)
            for where in backs[address]
            for endpoint in endpoints[where]
            if address == endpoint.address or address in endpoint.also
        }
        found = tuple(Target(*item) for item in sorted(items))
        if found != last.get(address, ()):
            out[address] = found
    if not out:
        return last
    merged = {**last, **out}
    return {address: merged[address] for address in sorted(merged) if merged[address]}


def _kept(before: tuple[_T, ...], now: Iterable[_T]) -> tuple[_T, ...]:
    """*now*, or *before* if it is equal, which is cheap to tell when the elements are the same objects."""
    listed = tuple(now)
    return before if before == listed else listed


def collect(
    objects: Mapping[Key, Object],
    domain: str,
    previous: Remembered | None = None,
    changed: Iterable[Changed] | None = None,
) -> tuple[Registry, Remembered]:
    """Read all services, endpoints and workloads out of ``objects``.

    ``previous`` is what the last registry remembers, ``changed`` what is different since: both save work and never
    change the result.
    """
    if previous is not None and changed is not None and previous.domain == domain:
        patched = _Collector(previous.tables, domain, previous).patch(changed)
        if patched is not None:
            return patched
    return _Collector(Tables.of(objects), domain, previous or Remembered()).run()
