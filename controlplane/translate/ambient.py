"""Workloads and services as ztunnel asks for them: ``istio.workload.Address`` and ``istio.workload.Workload``.  Pure.

A workload is named by its uid, a service by ``namespace/hostname``; addresses are aliases, ``network/ip``.  Every
ztunnel is served the same: it speaks for whatever runs on its node.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final

from controlplane.model.labels import get
from controlplane.model.mesh import Endpoint, Locality, Mesh, Protocol, Service, Waypoint, Workload
from controlplane.translate import ambient_policy
from controlplane.translate.memo import Memo
from controlplane.translate.names import ADDRESS, AUTHORIZATION, WORKLOAD
from controlplane.translate.resources import Resources
from underpass.api import istio

_Address: Any = istio.message("istio.workload.Address")
_Service: Any = istio.message("istio.workload.Service")
_Workload: Any = istio.message("istio.workload.Workload")

_CLUSTER: Final = "Kubernetes"
_HBONE: Final = 1
_HBONE_PORT: Final = 15008
_POD: Final = 2
_PASSTHROUGH, _STRICT = 3, 1
_NODE_SCOPE: Final = 4
_ALLOW_ALL: Final = 1
_HOST_NETWORK: Final = 1
_UNHEALTHY: Final = 1
_APP_PROTOCOLS: Final[Mapping[Protocol, int]] = {
    "HTTP": 1, "HTTP2": 2, "GRPC": 3, "GRPC-WEB": 3, "TCP": 4, "MONGO": 4, "MYSQL": 4, "REDIS": 4, "TLS": 5, "HTTPS": 5,
}  # fmt: skip

_Ports = dict[str, list[tuple[int, int]]]
"""``namespace/hostname`` of a service -> its ports and where the workload serves them."""


def resources(mesh: Mesh, memo: Memo) -> Resources:
    """Everything that a ztunnel may be told, by type URL and resource name."""
    addresses: dict[str, Any] = {}
    workloads: dict[str, Any] = {}
    through = {name: item for item in mesh.waypoints for name in item.services}
    direct = {workload: item for item in mesh.waypoints for workload in item.workloads}
    for service in mesh.services:
        if _told(service):
            name = f"{service.namespace}/{service.hostname}"
            way = _waypoint(through.get((service.namespace, service.hostname)), mesh)
            addresses[name] = memo.get(("ztunnel service", service, way), partial(_service, service, way))
    for workload, ports in _all_workloads(mesh):
        uid = _uid(workload)
        policies = tuple(ambient_policy.referred(mesh, workload.namespace, workload.labels)) if workload.ips else ()
        served = tuple((name, tuple(pairs)) for name, pairs in sorted(ports.items()))
        way = _waypoint(direct.get(workload), mesh)
        key = ("ztunnel workload", workload, served, policies, mesh.trust_domain, way)
        made, wrapped = memo.get(key, partial(_both, workload, served, policies, mesh.trust_domain, way))
        workloads[uid], addresses[uid] = made, wrapped
    policies_now = mesh.authorization_policies, mesh.peer_authentications, mesh.root_namespace, mesh.trust_domain
    return {
        ADDRESS: dict(sorted(addresses.items())),
        WORKLOAD: dict(sorted(workloads.items())),
        AUTHORIZATION: memo.get(("ztunnel policies", *policies_now), partial(ambient_policy.policies, mesh)),
    }


def _waypoint(found: Waypoint | None, mesh: Mesh) -> tuple[str, str]:
    """Namespace and name of the Service that a waypoint's proxies are behind: it has its Gateway's name."""
    return ("", "") if found is None else (found.namespace, f"{found.name}.{found.namespace}.svc.{mesh.domain}")


def _told(service: Service) -> bool:
    """An ExternalName is DNS's business, and a wildcard that is resolved on demand needs a waypoint."""
    external_name = service.kind == "Service" and service.external
    return not external_name and service.resolution != "DYNAMIC_DNS"


# ----------------------------------------------------------------------------------------------------------- workloads
def _uid(workload: Workload) -> str:
    if workload.kind == "Pod":
        return f"{_CLUSTER}//Pod/{workload.namespace}/{workload.name}"
    group = "discovery.k8s.io" if workload.kind == "EndpointSlice" else "networking.istio.io"
    return f"{_CLUSTER}/{group}/{workload.kind}/{workload.namespace}/{workload.name}"


def _all_workloads(mesh: Mesh) -> Iterable[tuple[Workload, _Ports]]:
    """Pods and WorkloadEntries, and an endpoint that is neither as a workload of its own, each with what it serves."""
    by_pod = {(item.namespace, item.name): item for item in mesh.members if item.kind == "Pod"}
    by_entry = {(item.namespace, item.name): item for item in mesh.members if item.kind == "WorkloadEntry"}
    served: dict[Workload, _Ports] = defaultdict(lambda: defaultdict(list))
    for service in mesh.services:
        if not _told(service):
            continue
        name = f"{service.namespace}/{service.hostname}"
        for port in service.ports:
            for endpoint in mesh.endpoints_of(service, port.number):
                if endpoint.address.startswith("unix:"):
                    continue
                owner = by_pod.get((endpoint.namespace, endpoint.instance)) if endpoint.instance else None
                if owner is None and endpoint.workload and not endpoint.instance:
                    owner = by_entry.get((endpoint.namespace, endpoint.workload))
                pair = (port.number, endpoint.port)
                pairs = served[owner or _alone(service, endpoint)][name]
                if pair not in pairs:
                    pairs.append(pair)
    for member in mesh.members:
        if member.ips or member.hostname:
            yield member, served.pop(member, {})
    yield from served.items()


def _alone(service: Service, endpoint: Endpoint) -> Workload:
    """An address that a ServiceEntry or an EndpointSlice names, and that belongs to no pod."""
    numeric = _packed(endpoint.address) is not None
    return Workload(
        name=f"{service.object}/{endpoint.address}",
        namespace=service.namespace,
        kind="ServiceEntry" if service.kind == "ServiceEntry" else "EndpointSlice",
        labels=endpoint.labels,
        service_account=endpoint.service_account,
        ips=(endpoint.address, *endpoint.also) if numeric else (),
        locality=endpoint.locality,
        node=endpoint.node,
        owner=service.object,
        hostname="" if numeric else endpoint.address,
        network=endpoint.network,
        weight=endpoint.weight if endpoint.weight != 1 else 0,
    )


def _both(
    workload: Workload,
    served: Iterable[tuple[str, Iterable[tuple[int, int]]]],
    policies: Iterable[str],
    trust: str,
    way: tuple[str, str],
) -> tuple[Any, Any]:
    made = _Workload(
        uid=_uid(workload),
        name=workload.name,
        namespace=workload.namespace,
        addresses=[packed for packed in map(_packed, workload.ips) if packed is not None],
        hostname=workload.hostname,
        network=workload.network,
        trust_domain="" if trust == "cluster.local" else trust,
        service_account=workload.service_account,
        node=workload.node,
        workload_type=_POD,
        workload_name=workload.owner or workload.name,
        authorization_policies=list(policies),
        status=0 if workload.ready else _UNHEALTHY,
        cluster_id=_CLUSTER,
        network_mode=_HOST_NETWORK if workload.host_network else 0,
    )
    labels = workload.labels
    named = [get(labels, key) for key in ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")]
    made.canonical_name = next(filter(None, named), made.workload_name)
    revisions = [
        get(labels, key) for key in ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")
    ]
    made.canonical_revision = next(filter(None, revisions), "latest")
    if get(workload.annotations, "ambient.istio.io/redirection") == "enabled":
        made.tunnel_protocol = _HBONE
    if "http" in get(labels, "networking.istio.io/tunnel").split(","):
        made.tunnel_protocol, made.native_tunnel = _HBONE, True
    if workload.locality != Locality():
        place = workload.locality
        made.locality.region, made.locality.zone, made.locality.subzone = place.region, place.zone, place.subzone
    _lead(made, way)
    if workload.weight:
        made.capacity.value = workload.weight
    for name, pairs in served:
        for number, target in pairs:
            made.services[name].ports.add(service_port=number, target_port=target)
    return made, _Address(workload=made)


# ------------------------------------------------------------------------------------------------------------ services
def _lead(made: Any, way: tuple[str, str]) -> None:
    """Say which waypoint connections go to."""
    if way[1]:
        made.waypoint.hostname.namespace, made.waypoint.hostname.hostname = way
        made.waypoint.hbone_mtls_port = _HBONE_PORT


def _service(service: Service, way: tuple[str, str]) -> Any:
    made = _Service(
        name=service.object or service.name,
        namespace=service.namespace,
        hostname=service.hostname,
        subject_alt_names=service.accounts,
        canonical=service.kind == "Service",
    )
    families = set()
    for text in service.addresses:
        host, slash, length = text.partition("/")
        packed = _packed(host)
        if packed is None:
            continue
        address = made.addresses.add(address=packed)
        families.add(len(packed))
        if slash and int(length) != 8 * len(packed):
            address.length = int(length)
    if service.kind == "Service" and not service.headless:
        # 4 bytes are IPv4 only, 16 IPv6 only, both are dual.
        made.ip_families = 3 if len(families) == 2 else {4: 1, 16: 2}.get(next(iter(families), 0), 0)
    for port in service.ports:
        made.ports.add(
            service_port=port.number, target_port=port.target, app_protocol=_APP_PROTOCOLS.get(port.protocol, 0)
        )
    if service.local_only:
        made.load_balancing.routing_preference.append(_NODE_SCOPE)
        made.load_balancing.mode = _STRICT
    elif service.resolution == "PASSTHROUGH" and not service.headless:
        made.load_balancing.mode = _PASSTHROUGH
    _lead(made, way)
    if service.publish_not_ready:
        made.load_balancing.health_policy = _ALLOW_ALL
    return _Address(service=made)


def _packed(address: str) -> bytes | None:
    try:
        return ipaddress.ip_address(address).packed
    except ValueError:
        return None
