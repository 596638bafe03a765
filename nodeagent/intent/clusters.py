"""A cluster with its endpoints as balancing slots (pure)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from ipaddress import ip_address
from typing import Final

from nodeagent.abi.numbers import Lb
from nodeagent.cache.resources import Assignment, Balance, Cluster, ClusterKind, Endpoint, Outlier
from nodeagent.errors import CapacityError
from nodeagent.intent.loads import groups, spread
from nodeagent.rules.model import Hashed, Limit

_BALANCE: Final = {
    Balance.ROUND_ROBIN: Lb.ROUND_ROBIN,
    Balance.RANDOM: Lb.RANDOM,
    Balance.LEAST_REQUEST: Lb.LEAST_REQUEST,
}


@dataclass(frozen=True, slots=True)
class Target:
    """One endpoint of a cluster: its key (`address:port`, an IPv6 address in brackets) and its whole weight."""

    key: str
    weight: int
    workload: str = ""


@dataclass(frozen=True, slots=True)
class ClusterDraft:
    """A cluster as the kernel could hold it. With `features` it is not for the kernel, and `targets` do not count.

    With `hashed` home can choose among the targets, and the kernel cannot. `resting`: those that get no request for now
    because they answered with errors, as `outlier` says; `members`: the keys of all endpoints, usable or not.
    """

    name: str
    lb: Lb
    targets: tuple[Target, ...]
    features: tuple[str, ...] = ()
    hashed: Hashed | None = None
    resting: tuple[Target, ...] = ()
    outlier: Outlier | None = None
    members: frozenset[str] = frozenset()
    limit: Limit | None = None
    retry_budget: bool = False

    @property
    def balance(self) -> str:
        """The feature that a request's hash is, if it decides."""
        if self.hashed is None:
            return ""
        return f"balance {(Balance.MAGLEV if self.hashed.table else Balance.RING_HASH).value}"


def draft(cluster: Cluster, assignment: Assignment | None, ejected: frozenset[str] = frozenset()) -> ClusterDraft:
    """The draft of a cluster; `assignment` is that of its EDS name, None when there is none (no endpoints then).

    ejected: keys of endpoints that get nothing for now.
    """
    features = list(cluster.unsupported)
    if cluster.kind in (ClusterKind.ORIGINAL_DST, ClusterKind.OTHER):
        features.append(f"cluster-type {cluster.kind.value}")
    # A hash is of the request, so home looks into it; the record's own balancer is nobody's then.
    lb = Lb.RANDOM if cluster.hashed is not None else _BALANCE.get(cluster.balance)
    if lb is None and cluster.kind is not ClusterKind.ORIGINAL_DST:
        features.append(f"balance {cluster.balance.value}")
    own = cluster.assignment if cluster.assignment is not None else assignment
    targets: tuple[Target, ...] = ()
    resting: tuple[Target, ...] = ()
    if own is not None:
        # All of them: which ones get requests may change at any time, and what is refused should not.
        endpoints = [endpoint for locality in own.localities for endpoint in locality.endpoints]
        features += [*own.unsupported, *(feature for endpoint in endpoints for feature in endpoint.unsupported)]
        if not any(endpoint.unsupported for endpoint in endpoints):
            try:
                targets, parts = _targets(own, cluster, ejected)
            except CapacityError as error:
                features += ["capacity", str(error)]
            else:
                if parts > 1 and lb is Lb.LEAST_REQUEST:
                    # Of two endpoints of different groups the less busy one must not win: it would move their shares.
                    lb = Lb.RANDOM
                resting = _resting(endpoints, targets, ejected)
    found = tuple(dict.fromkeys(features))
    return ClusterDraft(
        cluster.name, lb or Lb.ROUND_ROBIN, targets, found, cluster.hashed, resting, cluster.outlier, _members(own),
        cluster.limit, cluster.retry_budget,
    )  # fmt: skip


def _targets(assignment: Assignment, cluster: Cluster, ejected: frozenset[str]) -> tuple[tuple[Target, ...], int]:
    """The endpoints that get requests, with their weights, and among how many groups a request chooses first."""
    found = groups(
        assignment, locality_weighted=cluster.locality_weighted, panic=cluster.panic, ejected=ejected, key=_key
    )
    shares: dict[str, Fraction] = {}
    workloads: dict[str, str] = {}
    for group in found:
        for endpoint, share in sorted(group.members, key=lambda member: _key(member[0])):
            key = _key(endpoint)
            shares[key] = shares.get(key, Fraction(0)) + share
            workloads.setdefault(key, endpoint.workload)
    if not shares:
        return (), 0
    whole = all(e.usable for locality in assignment.localities for e in locality.endpoints) and not ejected
    weights = dict(zip(shares, spread(list(shares.values()), strict=whole), strict=True))
    return tuple(Target(key, weights[key], workloads[key]) for key in sorted(weights) if weights[key]), len(found)


def _resting(endpoints: list[Endpoint], targets: tuple[Target, ...], ejected: frozenset[str]) -> tuple[Target, ...]:
    """Ejected endpoints that get nothing: they keep their ids and what was opened to them, for they come back."""
    if not ejected:
        return ()
    serving = {target.key for target in targets}
    found = {_key(endpoint): endpoint.workload for endpoint in endpoints if _key(endpoint) in ejected}
    return tuple(Target(key, 0, found[key]) for key in sorted(found) if key not in serving)


def _members(assignment: Assignment | None) -> frozenset[str]:
    if assignment is None:
        return frozenset()
    return frozenset(_key(e) for locality in assignment.localities for e in locality.endpoints if not e.unsupported)


def _key(endpoint: Endpoint) -> str:
    return endpoint_key(endpoint.address, endpoint.port)


def version(cluster: ClusterDraft) -> str:
    """A short hash over all that a cluster's record says: names its version where views differ."""
    targets = [(target.key, target.weight) for target in (*cluster.targets, *cluster.resting)]
    text = repr((int(cluster.lb), targets))
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
