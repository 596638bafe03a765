"""From Kubernetes YAML to the plan of a lab. Pure: the same files and the same earlier allocation give the same plan.

Addresses of workloads and VIPs of Services that were given before are kept, so that applying a file twice, or one
more file, moves nothing that runs.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

from underpass.lab.addresses import FIRST_VIP, PODS_PER_NODE, VIP4, Addressing, check_name, node_names
from underpass.lab.errors import LabError
from underpass.lab.images import Images, expand
from underpass.lab.manifest import NODE_ANNOTATION, POD_MAKERS, Object, objects
from underpass.lab.model import (
    Allocation,
    ContainerPort,
    NamedHost,
    Node,
    Options,
    Plan,
    Process,
    Service,
    ServicePort,
    SourceFile,
    Workload,
)

MAX_REPLICAS = 64
_VIP_SLOTS = VIP4.num_addresses - FIRST_VIP - 1


def make_plan(
    files: Sequence[SourceFile], images: Images, options: Options, octet: int, before: Allocation | None = None
) -> Plan:
    """The lab that `files` describe.

    Of two objects of one identity the first counts, as in the control plane; that a later file replaces an earlier
    one's objects is the work of `config.apply`. Raises ManifestError with file and line for
    objects that the lab cannot run, and LabError for options that make no sense.
    """
    check_name(options.name)
    planner = _Planner(images, options, Addressing(octet, options.dual_stack), before or Allocation())
    found: dict[tuple[str, str, str, str], Object] = {}
    for file in files:
        for item in objects(file):
            found.setdefault(item.key, item)
    return planner.plan(list(found.values()))


class _Pod:
    """A pod before it has a node and an address."""

    def __init__(self, item: Object, kind: str, name: str, template: dict[str, Any], spec: dict[str, Any]) -> None:
        metadata = item.mapping(template.get("metadata"), "metadata")
        self.item = item
        self.kind = kind
        self.name = name
        self.spec = spec
        self.labels = item.strings(metadata.get("labels"), "labels")
        self.annotations = item.strings(metadata.get("annotations"), "annotations")
        self.service_account = (
            item.text(spec.get("serviceAccountName") or spec.get("serviceAccount"), "serviceAccountName") or "default"
        )
        self.fixed: tuple[str, ...] = ()
        self.containers: list[tuple[str, str, list[dict[str, str]], tuple[ContainerPort, ...]]] = []

    @property
    def key(self) -> str:
        return f"{self.item.namespace}/{self.name}"


class _Planner:
    def __init__(self, images: Images, options: Options, addressing: Addressing, before: Allocation) -> None:
        self._images = images
        self._options = options
        self._addressing = addressing
        self._before = before
        self._notes: list[str] = []
        self._nodes = tuple(Node(name, i) for i, name in enumerate(node_names(options.name, options.nodes), 1))

    def plan(self, items: list[Object]) -> Plan:
        services = self._services([item for item in items if item.kind == "Service" and item.group == ""])
        pods = [pod for item in items for pod in self._pods(item)]
        self._no_twins(pods)
        entries = [item for item in items if item.kind == "ServiceEntry"]
        workloads = tuple(self._place(pods, services, entries))
        self._unused_placements(workloads)
        plan = Plan(
            options=self._options,
            addressing=self._addressing,
            nodes=self._nodes,
            workloads=workloads,
            services=services,
            hosts=tuple(self._named_hosts(entries)),
            notes=(),
        )
        self._unselected(plan)
        return dataclasses.replace(plan, notes=tuple(self._notes))

    def _note(self, item: Object, text: str) -> None:
        self._notes.append(f"{item.file.path}:{item.line}: {item.kind} {item.namespace}/{item.name}: {text}")

    # -- services ------------------------------------------------------------------------------------------------

    def _services(self, items: list[Object]) -> tuple[Service, ...]:
        used = {vip for item in items for vip in self._given_ips(item)}
        used |= {vip for vips in self._before.vips.values() for vip in vips}
        out, slot = [], 0
        for item in items:
            spec = item.mapping(item.data.get("spec"), "spec")
            given = self._given_ips(item)
            headless = spec.get("clusterIP") == "None"
            external = item.text(spec.get("externalName"), "spec.externalName")
            is_external = spec.get("type") == "ExternalName"
            vips, allocated = given, False
            if not given and not headless and not is_external:
                allocated = True
                vips = self._before.vips.get(f"{item.namespace}/{item.name}", ())
                if not vips:
                    while (vips := self._addressing.vip(slot))[0] in used:
                        slot += 1
                        if slot >= _VIP_SLOTS:
                            raise item.bad("no VIP is left for it")
                    slot += 1
                    used.update(vips)
                vips = self._families(item, spec, vips)
            out.append(
                Service(
                    name=item.name,
                    namespace=item.namespace,
                    ports=tuple(self._service_ports(item, spec)),
                    selector=item.strings(spec.get("selector"), "spec.selector"),
                    vips=vips,
                    allocated=allocated,
                    headless=headless,
                    external_name=external if is_external else "",
                    file=item.file.path,
                    line=item.line,
                )
            )
        return tuple(out)

    def _given_ips(self, item: Object) -> tuple[str, ...]:
        spec = item.mapping(item.data.get("spec"), "spec")
        ips = [item.text(ip, "spec.clusterIPs") for ip in item.sequence(spec.get("clusterIPs"), "spec.clusterIPs")]
        first = item.text(spec.get("clusterIP"), "spec.clusterIP")
        if first and first not in ips:
            ips.insert(0, first)
        return tuple(_ip(item, ip, "spec.clusterIP") for ip in ips if ip and ip != "None")

    def _families(self, item: Object, spec: dict[str, Any], vips: tuple[str, ...]) -> tuple[str, ...]:
        """What of a dual-stack pair the Service asks for; without a word it gets all that the lab has."""
        families = [
            item.text(family, "spec.ipFamilies") for family in item.sequence(spec.get("ipFamilies"), "ipFamilies")
        ]
        if not families and spec.get("ipFamilyPolicy") == "SingleStack":
            families = ["IPv4"]
        if not families:
            return vips
        by_family = {"IPv6" if ":" in vip else "IPv4": vip for vip in vips}
        chosen = tuple(by_family[family] for family in families if family in by_family)
        if not chosen:
            raise item.bad(f"asks for {', '.join(families)} only: bring the lab up with --dual-stack")
        return chosen

    @staticmethod
    def _service_ports(item: Object, spec: dict[str, Any]) -> Iterable[ServicePort]:
        for index, port in enumerate(item.mappings(spec.get("ports"), "spec.ports")):
            where = f"spec.ports[{index}]"
            number = item.port(port.get("port"), f"{where}.port")
            target = port.get("targetPort")
            if target is None:
                target = number
            elif isinstance(target, str) and target.isdigit():
                target = int(target)
            if not isinstance(target, str):
                target = item.port(target, f"{where}.targetPort")
            name = item.text(port.get("name"), f"{where}.name")
            yield ServicePort(name, number, target, item.text(port.get("protocol"), f"{where}.protocol") or "TCP")

    # -- pods ----------------------------------------------------------------------------------------------------

    def _pods(self, item: Object) -> Iterable[_Pod]:
        spec = item.mapping(item.data.get("spec"), "spec")
        if item.kind in POD_MAKERS and item.group == POD_MAKERS[item.kind]:
            template = item.mapping(spec.get("template"), "spec.template")
            if "spec" not in template:
                raise item.bad("spec.template.spec is missing")
            for index in range(self._replicas(item, spec)):
                inner = item.mapping(template.get("spec"), "spec.template.spec")
                yield self._read(_Pod(item, item.kind, f"{item.name}-{index}", template, inner))
        elif item.kind == "Pod" and item.group == "":
            pod = self._read(_Pod(item, "Pod", item.name, item.data, spec))
            pod.fixed = self._pod_ips(item)
            yield pod
        elif item.kind == "WorkloadEntry" and item.group == "networking.istio.io":
            entry = self._workload_entry(item, spec)
            if entry is not None:
                yield entry
        elif item.kind in ("Job", "CronJob"):
            self._note(item, "is not run: the lab runs what stays")

    def _replicas(self, item: Object, spec: dict[str, Any]) -> int:
        if item.kind == "DaemonSet":
            return len(self._nodes)
        replicas = spec.get("replicas")
        if replicas is None:
            return 1
        if not isinstance(replicas, int) or isinstance(replicas, bool) or not 0 <= replicas <= MAX_REPLICAS:
            raise item.bad(f"spec.replicas must be 0 to {MAX_REPLICAS} in a lab, not {replicas!r}")
        return replicas

    def _read(self, pod: _Pod) -> _Pod:
        item = pod.item
        for index, container in enumerate(item.mappings(pod.spec.get("containers"), "containers")):
            where = f"containers[{index}]"
            ports = []
            for port in item.mappings(container.get("ports"), f"{where}.ports"):
                number = item.port(port.get("containerPort"), f"{where}.ports.containerPort")
                protocol = item.text(port.get("protocol"), f"{where}.ports.protocol") or "TCP"
                if protocol != "TCP":
                    self._note(item, f"port {number}/{protocol} is not played: the lab's processes speak TCP")
                ports.append(ContainerPort(item.text(port.get("name"), f"{where}.ports.name"), number, protocol))
            env = item.mappings(container.get("env"), f"{where}.env")
            name = item.text(container.get("name"), f"{where}.name") or f"container-{index}"
            pod.containers.append((name, item.text(container.get("image"), f"{where}.image"), env, tuple(ports)))
        if not pod.containers:
            raise item.bad("has no containers")
        return pod

    @staticmethod
    def _pod_ips(item: Object) -> tuple[str, ...]:
        status = item.mapping(item.data.get("status"), "status")
        ips = [item.text(entry.get("ip"), "status.podIPs") for entry in item.mappings(status.get("podIPs"), "podIPs")]
        first = item.text(status.get("podIP"), "status.podIP")
        if first and first not in ips:
            ips.insert(0, first)
        return tuple(_ip(item, ip, "status.podIP") for ip in ips if ip)

    def _workload_entry(self, item: Object, spec: dict[str, Any]) -> _Pod | None:
        address = item.text(spec.get("address"), "spec.address")
        try:
            ip = str(ipaddress.ip_address(address))
        except ValueError:
            self._note(item, f"is not run: its address {address!r} is no IP address that a local process could have")
            return None
        pod = _Pod(item, "WorkloadEntry", item.name, {"metadata": {"labels": spec.get("labels")}}, {})
        pod.service_account = item.text(spec.get("serviceAccount"), "spec.serviceAccount") or "default"
        pod.annotations = item.strings(
            item.mapping(item.data.get("metadata"), "metadata").get("annotations"), "annotations"
        )
        pod.fixed = (ip,)
        ports = [
            ContainerPort(str(name), item.port(number, f"spec.ports.{name}"))
            for name, number in item.mapping(spec.get("ports"), "spec.ports").items()
        ]
        pod.containers.append((item.name, f"workloadentry/{item.name}", [], tuple(ports)))
        return pod

    @staticmethod
    def _no_twins(pods: list[_Pod]) -> None:
        seen: dict[str, _Pod] = {}
        for pod in pods:
            other = seen.setdefault(pod.key, pod)
            if other is not pod:
                raise pod.item.bad(
                    f"its pod {pod.name} has the name of one of {other.item.kind} {other.item.name} "
                    f"({other.item.file.path}:{other.item.line})"
                )

    # -- placing -------------------------------------------------------------------------------------------------

    def _place(self, pods: list[_Pod], services: tuple[Service, ...], entries: list[Object]) -> Iterable[Workload]:
        before = self._before.pods
        kept = {pod.key: before[pod.key] for pod in pods if pod.key in before}
        slots = {node.index: {slot for index, slot in kept.values() if index == node.index} for node in self._nodes}
        owned: dict[str, _Pod] = {}
        for turn, pod in enumerate(pods):
            old = kept.get(pod.key)
            node = self._chosen_node(pod)
            if old is not None and node in (None, old[0]):
                index, slot = old
            else:
                if old is not None:
                    slots[old[0]].discard(old[1])
                index = node if node is not None else self._nodes[turn % len(self._nodes)].index
                slot = next((n for n in range(PODS_PER_NODE) if n not in slots[index]), -1)
                if slot < 0:
                    raise pod.item.bad(
                        f"{self._nodes[index - 1].name} is full ({PODS_PER_NODE} workloads): add --nodes"
                    )
                slots[index].add(slot)
            ips = pod.fixed or self._addressing.pod(index, slot)
            for ip in ips:
                other = owned.setdefault(ip, pod)
                if other is not pod:
                    raise pod.item.bad(f"address {ip} is already that of {other.item.kind} {other.key}")
            yield self._workload(pod, index, slot, ips, services, entries)

    def _chosen_node(self, pod: _Pod) -> int | None:
        wish = self._options.placement.get(pod.item.name) or self._options.placement.get(
            f"{pod.item.namespace}/{pod.item.name}"
        )
        selector = pod.item.mapping(pod.spec.get("nodeSelector"), "nodeSelector")
        found = wish or pod.annotations.get(NODE_ANNOTATION) or pod.spec.get("nodeName")
        found = found or selector.get("kubernetes.io/hostname")
        if pod.kind == "DaemonSet":
            found = self._nodes[int(pod.name.rpartition("-")[2])].name
        if not found:
            return None
        for node in self._nodes:
            if found in (node.name, f"node-{node.index}"):
                return node.index
        if wish:
            raise LabError(
                f"cannot place {pod.key} on {found!r}",
                f"the nodes are {', '.join(node.name for node in self._nodes)}",
                "name one of them, or give --nodes",
                exit_code=2,
            )
        self._note(pod.item, f"asks for node {found!r}, which is not simulated: placed anywhere")
        return None

    def _unused_placements(self, workloads: tuple[Workload, ...]) -> None:
        names = {w.owner for w in workloads} | {f"{w.namespace}/{w.owner}" for w in workloads}
        for name in self._options.placement:
            if name not in names:
                raise LabError(
                    f"cannot place {name!r}", "no workload has that name", "name a Deployment, Pod or WorkloadEntry", 2
                )

    def _workload(
        self,
        pod: _Pod,
        index: int,
        slot: int,
        ips: tuple[str, ...],
        services: tuple[Service, ...],
        entries: list[Object],
    ) -> Workload:
        ports = tuple(port for container in pod.containers for port in container[3])
        shell = Workload(
            kind=pod.kind,
            owner=pod.item.name,
            name=pod.name,
            namespace=pod.item.namespace,
            service_account=pod.service_account,
            labels=pod.labels,
            node=index,
            ips=ips,
            slot=slot,
            processes=(),
            container_ports=ports,
            file=pod.item.file.path,
            line=pod.item.line,
        )
        wanted = self._wanted_ports(pod, shell, services, entries)
        processes = tuple(self._processes(pod, shell, wanted))
        return dataclasses.replace(shell, processes=processes)

    def _wanted_ports(
        self, pod: _Pod, workload: Workload, services: tuple[Service, ...], entries: list[Object]
    ) -> list[int]:
        """The target ports of what selects the workload, as numbers."""
        out: list[int] = []
        declared = {port.name: port.number for port in workload.container_ports if port.name}
        for service in services:
            if not service.selects(workload):
                continue
            for port in service.ports:
                number = port.target if isinstance(port.target, int) else declared.get(port.target)
                if number is None:
                    self._note(pod.item, f"has no port named {port.target!r}, which Service {service.name} leads to")
                elif port.protocol == "TCP" and number not in out:
                    out.append(number)
        for entry in entries:
            spec = entry.mapping(entry.data.get("spec"), "spec")
            selector = entry.mapping(spec.get("workloadSelector"), "spec.workloadSelector")
            labels = entry.strings(selector.get("labels"), "spec.workloadSelector.labels")
            if not labels or entry.namespace != workload.namespace:
                continue
            if any(workload.labels.get(key) != value for key, value in labels.items()):
                continue
            for entry_port in entry.mappings(spec.get("ports"), "spec.ports"):
                name = entry.text(entry_port.get("name"), "spec.ports.name")
                target = declared.get(name) or entry_port.get("targetPort") or entry_port.get("number")
                number = entry.port(target, "spec.ports.number")
                if number not in out:
                    out.append(number)
        return out

    def _processes(self, pod: _Pod, workload: Workload, wanted: list[int]) -> Iterable[Process]:
        taken: set[int] = set()
        declared = {port.number for port in workload.container_ports}
        # Ports that something leads to and no container declares go to the first container that we play ourselves.
        orphans = [number for number in wanted if number not in declared]
        for name, image, env, container_ports in pod.containers:
            known = self._images.find(image)
            command = known.command if known is not None else ()
            ports = [port.number for port in container_ports if port.protocol == "TCP" and port.number not in taken]
            if not command:
                ports += [number for number in orphans if number not in taken]
                orphans = []
            taken.update(ports)
            own = self._environment(pod, workload, env, tuple(dict.fromkeys(ports)))
            if known is not None:
                own.update({key: expand(value, own) for key, value in known.env.items()})
            yield Process(name, image, tuple(expand(part, own) for part in command), tuple(dict.fromkeys(ports)), own)

    def _environment(
        self, pod: _Pod, workload: Workload, env: list[dict[str, Any]], ports: tuple[int, ...]
    ) -> dict[str, str]:
        node = self._nodes[workload.node - 1].name
        out = {
            "HOSTNAME": workload.name,
            "UNDERPASS_WORKLOAD": workload.owner,
            "UNDERPASS_POD": workload.name,
            "UNDERPASS_NAMESPACE": workload.namespace,
            "UNDERPASS_SERVICE_ACCOUNT": workload.service_account,
            "UNDERPASS_LABELS": json.dumps(dict(workload.labels), sort_keys=True),
            "UNDERPASS_NODE": node,
            "UNDERPASS_ADDRESS": workload.ips[0],
            "UNDERPASS_ADDRESSES": ",".join(workload.ips),
            "UNDERPASS_PORTS": ",".join(map(str, ports)),
        }
        fields = {
            "metadata.name": workload.name,
            "metadata.namespace": workload.namespace,
            "spec.nodeName": node,
            "spec.serviceAccountName": workload.service_account,
            "status.podIP": workload.ips[0],
            "status.podIPs": ",".join(workload.ips),
            "status.hostIP": self._addressing.gateway(workload.node)[0],
        }
        fields |= {f"metadata.labels['{key}']": value for key, value in workload.labels.items()}
        fields |= {f"metadata.annotations['{key}']": value for key, value in pod.annotations.items()}
        for variable in env:
            name = pod.item.text(variable.get("name"), "env.name")
            source = pod.item.mapping(variable.get("valueFrom"), f"env {name}.valueFrom")
            path = pod.item.text(pod.item.mapping(source.get("fieldRef"), "fieldRef").get("fieldPath"), "fieldPath")
            if not name or "=" in name or "\0" in name:
                raise pod.item.bad(f"{name!r} cannot name an environment variable")
            if path:
                out[name] = fields.get(path, "")
            elif source:
                self._note(pod.item, f"variable {name} is left out: only fieldRef is looked up in a lab")
            else:
                out[name] = expand(pod.item.text(variable.get("value"), f"env {name}"), out)
        return out

    # -- the rest ------------------------------------------------------------------------------------------------

    def _named_hosts(self, entries: list[Object]) -> Iterable[NamedHost]:
        for item in entries:
            spec = item.mapping(item.data.get("spec"), "spec")
            addresses = [item.text(a, "spec.addresses") for a in item.sequence(spec.get("addresses"), "spec.addresses")]
            if not addresses:
                endpoints = item.mappings(spec.get("endpoints"), "spec.endpoints")
                addresses = [item.text(e.get("address"), "spec.endpoints.address") for e in endpoints][:1]
            usable = tuple(address for address in addresses if _is_ip(address))
            for host in item.sequence(spec.get("hosts"), "spec.hosts"):
                name = item.text(host, "spec.hosts")
                if usable and "*" not in name and not _is_ip(name):
                    yield NamedHost(name, usable)

    def _unselected(self, plan: Plan) -> None:
        for service in plan.services:
            if service.selector and not plan.endpoints(service):
                where = f"{service.file}:{service.line}"
                self._notes.append(f"{where}: Service {service.namespace}/{service.name}: selects no workload")


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _ip(item: Object, text: str, what: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise item.bad(f"{what} {text!r} is no IP address") from None


class Named(Protocol):
    """What has a pod's and an owner's name."""

    @property
    def name(self) -> str:
        """The pod's name."""

    @property
    def owner(self) -> str:
        """The name of what made it."""

    @property
    def namespace(self) -> str:
        """Its namespace."""


N = TypeVar("N", bound=Named)


def find_workload(workloads: Iterable[N], name: str) -> N:
    """The workload that a user calls `name`: an owner's or a pod's name, or NAMESPACE/NAME. Raises LabError."""
    namespace, slash, short = name.rpartition("/")
    everything = list(workloads)
    found = [w for w in everything if short in (w.owner, w.name) and (not slash or namespace == w.namespace)]
    found = [workload for workload in found if workload.name == short] or found
    if len({workload.namespace for workload in found}) > 1:
        choices = ", ".join(sorted({f"{workload.namespace}/{workload.owner}" for workload in found}))
        raise LabError(f"{name!r} is ambiguous", f"it could be {choices}", "give NAMESPACE/NAME", exit_code=2)
    if not found:
        known = dict.fromkeys(f"{workload.namespace}/{workload.owner}" for workload in everything)
        why = f"the lab has {', '.join(known) or 'none'}"
        raise LabError(f"no workload is called {name!r}", why, "see `underpass lab status`", exit_code=2)
    return found[0]
