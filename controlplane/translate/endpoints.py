"""Endpoints of a cluster, by locality, with weights; and locality load balancing.  Pure."""

from __future__ import annotations

from typing import Any

from controlplane.model.labels import get
from controlplane.model.mesh import Endpoint, Locality
from controlplane.translate.policy import Policy
from controlplane.translate.scope import Scope
from underpass.api import envoy


def workload_metadata(endpoint: Endpoint) -> str:
    """``workload;namespace;canonical name;canonical revision;cluster``, as Istio's telemetry reads it."""
    labels = endpoint.labels
    name = (
        get(labels, "service.istio.io/canonical-name")
        or get(labels, "app.kubernetes.io/name")
        or get(labels, "app")
        or endpoint.workload
    )
    revision = (
        get(labels, "service.istio.io/canonical-revision")
        or get(labels, "app.kubernetes.io/version")
        or get(labels, "version")
        or "latest"
    )
    return f"{endpoint.workload};{endpoint.namespace};{name};{revision};{endpoint.cluster_id}"


def lb_endpoint(endpoint: Endpoint) -> Any:
    """One endpoint.  A dual-stack pod is one endpoint with additional addresses."""
    out = envoy.LbEndpoint(load_balancing_weight={"value": endpoint.weight}, health_status="HEALTHY")
    if endpoint.address.startswith("unix://"):
        out.endpoint.address.pipe.path = endpoint.address.removeprefix("unix://")
    else:
        socket = out.endpoint.address.socket_address
        socket.address, socket.port_value = endpoint.address, endpoint.port
        for other in endpoint.also:
            extra = out.endpoint.additional_addresses.add().address.socket_address
            extra.address, extra.port_value = other, endpoint.port
    if endpoint.workload:
        out.metadata.filter_metadata["istio"].update({"workload": workload_metadata(endpoint)})
    if endpoint.tls:
        out.metadata.filter_metadata["envoy.transport_socket_match"].update({"tlsMode": "istio"})
    return out


def depends_on_place(policy: Policy) -> bool:
    """Whether clients in different places get different priorities or weights."""
    if policy.outlier_detection is not None:
        return True
    balancer = policy.load_balancer
    return balancer is not None and bool(balancer.locality_lb_setting.ListFields())


def _locality(locality: Locality) -> Any:
    return envoy.Locality(region=locality.region, zone=locality.zone, sub_zone=locality.subzone)


def load_assignment(name: str, pool: tuple[Endpoint, ...], policy: Policy, scope: Scope) -> Any:
    """Group endpoints by locality.  Weights of localities are sums: gRPC ignores a locality without weight."""
    groups: dict[Locality, list[Endpoint]] = {}
    for endpoint in pool:
        groups.setdefault(endpoint.locality, []).append(endpoint)
    parts = [(where, tuple(group), sum(e.weight for e in group), 0) for where, group in sorted(groups.items())]
    parts = _balance(parts, policy, scope)
    out = envoy.ClusterLoadAssignment(cluster_name=name)
    for where, group, weight, priority in parts:
        part = out.endpoints.add(
            locality=_locality(where), lb_endpoints=[lb_endpoint(e) for e in group], priority=priority
        )
        part.load_balancing_weight.value = weight
    return out


_Part = tuple[Locality, tuple[Endpoint, ...], int, int]


def _balance(parts: list[_Part], policy: Policy, scope: Scope) -> list[_Part]:
    """Apply ``localityLbSetting``: distribution by weight always, failover only where endpoints can be ejected.

    Failover between localities is on by default (as in Istio), once outlier detection is.
    """
    setting = policy.load_balancer.locality_lb_setting if policy.load_balancer is not None else None
    if setting is not None and setting.HasField("enabled") and not setting.enabled.value:
        return parts
    own = Locality(*scope.key.locality)
    if setting is not None and setting.distribute:
        return _distribute(parts, setting.distribute, own)
    if policy.outlier_detection is None:
        return parts
    if setting is not None and setting.failover_priority:
        client = {**_topology(own), **dict(scope.key.labels)}
        parts = _by_labels(parts, list(setting.failover_priority), client)
        if setting.failover:
            parts = _failover(parts, setting.failover, own)
        return parts
    return _failover(parts, setting.failover if setting is not None else (), own) if own.region else parts


def locality_matches(where: Locality, pattern: str) -> bool:
    """Whether a locality falls under ``region``, ``region/zone``, ``region/zone/subzone``, with ``*`` at the end."""
    if pattern == "*":
        return True
    have = (where.region, where.zone, where.subzone)
    for index, part in enumerate(pattern.split("/")):
        if part == "*":
            return True
        if index > 2 or have[index] != part:
            return False
    return True


def _distribute(parts: list[_Part], rules: Any, own: Locality) -> list[_Part]:
    for rule in rules:
        if not locality_matches(own, getattr(rule, "from")):
            continue
        chosen: dict[int, int] = {}
        for pattern in sorted(rule.to, key=lambda text: ("*" in text, -text.count("/"), text)):
            members = [i for i, part in enumerate(parts) if i not in chosen and locality_matches(part[0], pattern)]
            total = sum(parts[i][2] for i in members)
            for i in members:
                chosen[i] = -(-parts[i][2] * int(rule.to[pattern]) // total)  # rounded up
        return [
            (where, group, chosen[i], priority)
            for i, (where, group, _, priority) in enumerate(parts)
            if chosen.get(i, 0) > 0
        ]
    return parts


def _nearness(own: Locality, other: Locality) -> int:
    if own.region != other.region:
        return 3
    if own.zone != other.zone:
        return 2
    return 1 if own.subzone != other.subzone else 0


def _failover(parts: list[_Part], rules: Any, own: Locality) -> list[_Part]:
    ranked: list[_Part] = []
    for where, group, weight, priority in parts:
        rank = _nearness(own, where)
        target = next((rule.to for rule in rules if getattr(rule, "from") == own.region), None)
        if rank == 3 and target is not None and where.region != target:
            rank = 4
        ranked.append((where, group, weight, priority * 5 + rank))
    return _dense(ranked)


def _topology(where: Locality) -> dict[str, str]:
    """A place as the labels that failoverPriority may name."""
    return {
        "topology.kubernetes.io/region": where.region,
        "topology.kubernetes.io/zone": where.zone,
        "topology.istio.io/subzone": where.subzone,
    }


def _by_labels(parts: list[_Part], wanted: list[str], own: dict[str, str]) -> list[_Part]:
    """Priority by how many of the leading labels an endpoint shares with the client."""
    out: list[_Part] = []
    for where, group, _, _ in parts:
        levels: dict[int, list[Endpoint]] = {}
        for endpoint in group:
            labels = {**_topology(where), **dict(endpoint.labels)}
            rank = 0
            for index, item in enumerate(wanted):
                key, _, value = item.partition("=")
                if labels.get(key) != (value or own.get(key)):
                    rank = len(wanted) - index
                    break
            levels.setdefault(rank, []).append(endpoint)
        out.extend((where, tuple(items), sum(e.weight for e in items), rank) for rank, items in sorted(levels.items()))
    return _dense(out)


def _dense(parts: list[_Part]) -> list[_Part]:
    """Envoy wants priorities 0, 1, 2 ... without gaps."""
    ranks = {rank: index for index, rank in enumerate(sorted({part[3] for part in parts}))}
    return [(where, group, weight, ranks[rank]) for where, group, weight, rank in parts]
