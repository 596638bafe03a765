"""A cluster with its endpoints as balancing slots (pure)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from ipaddress import ip_address
from math import gcd, lcm
from typing import Final

from nodeagent.abi import numbers as n
from nodeagent.abi.numbers import Lb
from nodeagent.cache.resources import Assignment, Balance, Cluster, ClusterKind, Locality
from nodeagent.errors import CapacityError
from nodeagent.rules.model import Hashed

_BALANCE: Final = {
    Balance.ROUND_ROBIN: Lb.ROUND_ROBIN,
    Balance.RANDOM: Lb.RANDOM,
    Balance.LEAST_REQUEST: Lb.LEAST_REQUEST,
}
#: Envoy moves load to the next priority when fewer than 1/1.4 of a priority's endpoints are usable.
_OVERPROVISIONING: Final = Fraction(14, 10)


@dataclass(frozen=True, slots=True)
class Target:
    """One endpoint of a cluster: its key (`address:port`, an IPv6 address in brackets) and its whole weight."""

    key: str
    weight: int
    workload: str = ""


@dataclass(frozen=True, slots=True)
class ClusterDraft:
    """A cluster as the kernel could hold it. With `features` it is not for the kernel, and `targets` do not count.

    With `hashed` home can choose among the targets, and the kernel cannot.
    """

    name: str
    lb: Lb
    targets: tuple[Target, ...]
    features: tuple[str, ...] = ()
    hashed: Hashed | None = None

    @property
    def balance(self) -> str:
        """The feature that a request's hash is, if it decides."""
        if self.hashed is None:
            return ""
        return f"balance {(Balance.MAGLEV if self.hashed.table else Balance.RING_HASH).value}"


def draft(cluster: Cluster, assignment: Assignment | None) -> ClusterDraft:
    """The draft of a cluster; `assignment` is that of its EDS name, None when there is none (no endpoints then)."""
    features = list(cluster.unsupported)
    if cluster.kind in (ClusterKind.ORIGINAL_DST, ClusterKind.OTHER):
        features.append(f"cluster-type {cluster.kind.value}")
    # A hash is of the request, so home looks into it; the record's own balancer is nobody's then.
    lb = Lb.RANDOM if cluster.hashed is not None else _BALANCE.get(cluster.balance)
    if lb is None and cluster.kind is not ClusterKind.ORIGINAL_DST:
        features.append(f"balance {cluster.balance.value}")
    own = cluster.assignment if cluster.assignment is not None else assignment
    targets: tuple[Target, ...] = ()
    if own is not None:
        features += own.unsupported
        try:
            targets = _targets(own, cluster.locality_weighted, features)
        except CapacityError as error:
            features += ["capacity", str(error)]
    found = tuple(dict.fromkeys(features))
    return ClusterDraft(cluster.name, lb or Lb.ROUND_ROBIN, targets, found, cluster.hashed)


def _targets(assignment: Assignment, locality_weighted: bool, features: list[str]) -> tuple[Target, ...]:
    group = _priority(assignment, features)
    shares: dict[str, Fraction] = {}
    workloads: dict[str, str] = {}
    for locality in group:
        usable = [e for e in locality.endpoints if e.usable]
        total = sum(e.weight for e in usable)
        for endpoint in usable:
            features += endpoint.unsupported
            if endpoint.unsupported:
                continue
            share = Fraction(endpoint.weight)
            if locality_weighted:
                # Envoy: a locality without weight gets nothing when localities are weighted.
                share = Fraction(endpoint.weight * locality.weight, total)
            key = endpoint_key(endpoint.address, endpoint.port)
            shares[key] = shares.get(key, Fraction(0)) + share
            workloads.setdefault(key, endpoint.workload)
    shares = {key: share for key, share in shares.items() if share}
    if not shares:
        return ()
    whole = lcm(*(share.denominator for share in shares.values()))
    weights = {key: int(share * whole) for key, share in shares.items()}
    divisor = gcd(*weights.values())
    targets = tuple(Target(key, weights[key] // divisor, workloads[key]) for key in sorted(weights))
    slots = sum(target.weight for target in targets)
    if slots > n.CLUSTER_SLOTS:
        raise CapacityError(
            f"{len(targets)} endpoints with their weights need {slots} slots, a cluster holds {n.CLUSTER_SLOTS}"
        )
    return targets


def _priority(assignment: Assignment, features: list[str]) -> list[Locality]:
    """The localities that get the load: those of the first priority that carries all of it."""
    by_priority: dict[int, list[Locality]] = {}
    for locality in assignment.localities:
        by_priority.setdefault(locality.priority, []).append(locality)
    groups = [by_priority[priority] for priority in sorted(by_priority)]
    if len(groups) <= 1:
        return groups[0] if groups else []
    for group in groups:
        endpoints = [e for locality in group for e in locality.endpoints]
        usable = sum(1 for e in endpoints if e.usable)
        if not usable:
            continue
        if Fraction(usable, len(endpoints)) * _OVERPROVISIONING >= 1:
            return group
        # Envoy would give each of several priorities a part.
        features.append("priority-spillover")
        return group
    return groups[0]


def version(cluster: ClusterDraft) -> str:
    """A short hash over all that a cluster's record says: names its version where views differ."""
    text = repr((int(cluster.lb), [(target.key, target.weight) for target in cluster.targets]))
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def endpoint_key(address: str, port: int) -> str:
    """`10.0.0.1:80` or `[fd00::1]:80`, in canonical spelling."""
    ip = ip_address(address)
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"


def endpoint_of(key: str) -> tuple[str, int]:
    """The other way round. Raises ValueError for what is no such key."""
    host, _, port = key.rpartition(":")
    return str(ip_address(host.strip("[]"))), int(port)


def slots(targets: tuple[Target, ...], ids: dict[str, int]) -> tuple[int, ...]:
    """Endpoint ids, each as often as its weight, evenly spread: round robin walks them as they stand."""
    places = []
    for target in targets:
        for turn in range(target.weight):
            places.append((Fraction(2 * turn + 1, 2 * target.weight), ids[target.key]))
    return tuple(number for _, number in sorted(places))
