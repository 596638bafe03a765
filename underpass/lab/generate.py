"""What the lab writes for others to read: Kubernetes objects, registry entries, hosts files. Pure.

The control plane shall see what a cluster would show it: Pods with addresses, EndpointSlices, Services with cluster
IPs. What was not in the user's files is generated here; what a cluster would have filled into them, `config.complete`
puts into the control plane's copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from underpass.lab.model import Plan, Service, Workload

DOMAIN = "cluster.local"
ENDPOINTS_FILE = "lab-endpoints.yaml"
REVISION_FILE = "lab-revision.yaml"
REVISION_NAMESPACE = "underpass-lab"

_HEADER = "# Written by `underpass lab`, and written over at the next `lab apply`: edits do not last.\n"


class _Dumper(yaml.SafeDumper):
    """Without anchors: each object stands for itself."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _documents(objects: list[dict[str, Any]]) -> str:
    dumped = (yaml.dump(item, Dumper=_Dumper, sort_keys=False, default_flow_style=False) for item in objects)
    return _HEADER + "".join(f"---\n{text}" for text in dumped)


def revision_name(revision: int) -> str:
    """The name of the object that tells which change of the lab the control plane has read."""
    return f"revision-{revision}"


def revision_yaml(revision: int) -> str:
    """A ServiceAccount of nobody, written after everything else of a change: its verdict means that all was read."""
    metadata = {"name": revision_name(revision), "namespace": REVISION_NAMESPACE}
    return _documents([{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}])


def service_addresses(service: Service) -> dict[str, Any]:
    """What a cluster would have put into the `spec` of a Service without a cluster IP."""
    return {
        "clusterIP": service.vips[0],
        "clusterIPs": list(service.vips),
        "ipFamilies": ["IPv6" if ":" in vip else "IPv4" for vip in service.vips],
        "ipFamilyPolicy": "PreferDualStack" if len(service.vips) > 1 else "SingleStack",
    }


def pod_status(plan: Plan, workload: Workload) -> dict[str, Any]:
    """The `status` of a pod that runs."""
    return {
        "phase": "Running",
        "podIP": workload.ips[0],
        "podIPs": [{"ip": ip} for ip in workload.ips],
        "hostIP": plan.addressing.gateway(workload.node)[0],
        "conditions": [{"type": "Ready", "status": "True"}],
    }


def endpoints_yaml(plan: Plan) -> str:
    """Pods that a Deployment or its like made, and the EndpointSlices of all Services with a selector."""
    made = [workload for workload in plan.workloads if workload.kind not in ("WorkloadEntry", "Pod")]
    objects = [_pod(plan, workload) for workload in made]
    for service in plan.services:
        objects += _slices(plan, service)
    return _documents(objects)


def _pod(plan: Plan, workload: Workload) -> dict[str, Any]:
    owner = {"apiVersion": "apps/v1", "kind": workload.kind, "name": workload.owner, "controller": True}
    metadata: dict[str, Any] = {"name": workload.name, "namespace": workload.namespace, "ownerReferences": [owner]}
    metadata["labels"] = dict(workload.labels)
    ports = [
        {**({"name": port.name} if port.name else {}), "containerPort": port.number, "protocol": port.protocol}
        for port in workload.container_ports
    ]
    containers = [
        {"name": process.container, "image": process.image, **({"ports": ports} if index == 0 and ports else {})}
        for index, process in enumerate(workload.processes)
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "serviceAccountName": workload.service_account,
            "nodeName": plan.node(workload).name,
            "containers": containers,
        },
        "status": pod_status(plan, workload),
    }


def _slices(plan: Plan, service: Service) -> Iterator[dict[str, Any]]:
    """A slice for each family and set of resolved ports: a named port may be another number in each pod."""
    groups: dict[tuple[str, tuple[tuple[str, int, str], ...]], list[Workload]] = {}
    for workload in plan.endpoints(service):
        named = {port.name: port.number for port in workload.container_ports if port.name}
        ports = tuple(
            (port.name, number, port.protocol)
            for port in service.ports
            if (number := port.target if isinstance(port.target, int) else named.get(port.target, 0))
        )
        for family in ("IPv4", "IPv6"):
            if any((":" in ip) == (family == "IPv6") for ip in workload.ips):
                groups.setdefault((family, ports), []).append(workload)
    for index, ((family, ports), workloads) in enumerate(groups.items()):
        yield {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{service.name}-lab-{index}",
                "namespace": service.namespace,
                "labels": {"kubernetes.io/service-name": service.name},
            },
            "addressType": family,
            "ports": [
                {**({"name": name} if name else {}), "port": number, "protocol": protocol}
                for name, number, protocol in ports
            ],
            "endpoints": [
                {
                    "addresses": [ip for ip in workload.ips if (":" in ip) == (family == "IPv6")][:1],
                    "conditions": {"ready": True, "serving": True, "terminating": False},
                    "nodeName": plan.node(workload).name,
                    "targetRef": {"kind": "Pod", "name": workload.name, "namespace": workload.namespace},
                }
                for workload in workloads
            ],
        }


def registry_entry(plan: Plan, workload: Workload, netns_dir: str, cgroup: str) -> dict[str, Any]:
    """What the agent and home are told about a workload (one JSON file each in the node's run directory)."""
    return {
        "name": workload.name,
        "owner": workload.owner,
        "namespace": workload.namespace,
        "service_account": workload.service_account,
        "labels": dict(workload.labels),
        "ips": list(workload.ips),
        "netns": f"{netns_dir}/{plan.netns(workload)}",
        "cgroup": cgroup,
        "interface": "eth0",
        "host_interface": workload.host_interface,
        "node": plan.node(workload).name,
        "ports": list(workload.ports),
        "cluster": "Kubernetes",
        "trust_domain": DOMAIN,
    }


def hosts_text(plan: Plan, workload: Workload) -> str:
    """`/etc/hosts` of a workload: what a cluster's DNS would answer, seen from its namespace.

    With a mesh a Service's names lead to its VIPs. Without one nothing would pick up what goes to a VIP, so they lead
    to the first endpoint (and a Service port only answers where it equals the target port).
    """
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{ip} {workload.name}" for ip in workload.ips]
    by_name = {(service.namespace, service.name): service for service in plan.services}
    for service in plan.services:
        names = _names(service, workload.namespace)
        for address in _addresses(plan, service, by_name):
            lines.append(f"{address} {' '.join(names)}")
        if service.headless:
            for pod in plan.endpoints(service):
                lines += [f"{ip} {' '.join(f'{pod.name}.{name}' for name in names)}" for ip in pod.ips]
    for entry in plan.hosts:
        lines += [f"{address} {entry.host}" for address in entry.addresses]
    return "\n".join(lines) + "\n"


def _names(service: Service, namespace: str) -> list[str]:
    qualified = f"{service.name}.{service.namespace}"
    names = [qualified, f"{qualified}.svc", f"{qualified}.svc.{DOMAIN}"]
    return [service.name, *names] if service.namespace == namespace else names


def _addresses(plan: Plan, service: Service, by_name: dict[tuple[str, str], Service], depth: int = 0) -> list[str]:
    if service.external_name:
        target = service.external_name.rstrip(".").removesuffix(f".svc.{DOMAIN}").split(".")
        other = by_name.get((target[1], target[0])) if len(target) == 2 else None
        return _addresses(plan, other, by_name, depth + 1) if other is not None and depth < 8 else []
    if service.headless:
        return [ip for workload in plan.endpoints(service) for ip in workload.ips]
    if plan.options.mesh:
        return list(service.vips)
    return [ip for workload in plan.endpoints(service)[:1] for ip in workload.ips]
