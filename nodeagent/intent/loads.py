"""Which share of a cluster's requests each endpoint gets: priorities, localities, health (pure).

Envoy's rules (docs: "Priority levels", "Degraded endpoints", "Locality weighted load balancing", "Panic threshold").
A priority counts as available to `overprovisioning` percent of its usable endpoints; what it cannot take goes on to the
next one. Whole percents are rounded down as Envoy does, and what rounding leaves goes to the first priority with any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import gcd, lcm
from typing import Final

from nodeagent.abi import numbers as n
from nodeagent.cache.resources import Assignment, Endpoint, Locality
from nodeagent.errors import CapacityError

_ALL: Final = 100
#: A share may be off by so much of itself where nothing is broken; beyond it a cluster is refused as over capacity.
_TOLERANCE: Final = 0.25
#: Numbers of slots that are tried when shares do not come out even.
_TRIED: Final = range(3 * n.CLUSTER_SLOTS // 4, n.CLUSTER_SLOTS + 1)

Key = Callable[[Endpoint], str]
"""The name by which an endpoint is known to whoever ejects it."""


@dataclass(frozen=True, slots=True)
class Group:
    """Endpoints among which a request chooses once it is theirs. share: of the cluster's requests, above 0."""

    share: Fraction
    members: tuple[tuple[Endpoint, Fraction], ...]


@dataclass(frozen=True, slots=True)
class _Priority:
    localities: tuple[Locality, ...]
    healthy: frozenset[int]
    degraded: frozenset[int]
    counts: tuple[int, int, int]  # all, healthy, degraded: endpoints or their weights

    @property
    def percent(self) -> Fraction:
        """Usable ones, without overprovisioning."""
        return Fraction(_ALL * (self.counts[1] + self.counts[2]), self.counts[0]) if self.counts[0] else Fraction(0)

    def available(self, which: int, factor: int) -> int:
        """Percent of all load that the healthy (1) or degraded (2) endpoints may take."""
        return min(_ALL, factor * self.counts[which] // self.counts[0]) if self.counts[0] else 0


def groups(
    assignment: Assignment, *, locality_weighted: bool, panic: int, ejected: frozenset[str], key: Key
) -> list[Group]:
    """Who gets how much. panic: percent of usable endpoints below which health is not believed; 0: always believed.

    Empty when nobody can take a request. The shares of a non-empty answer add up to at most 1: what Envoy would give to
    endpoints that are not there is nobody's, and `spread` divides by what there is.
    """
    levels = _levels(assignment, ejected, key)
    if not levels:
        return []
    factor = assignment.overprovisioning
    healthy = [level.available(1, factor) for level in levels]
    degraded = [level.available(2, factor) for level in levels]
    total = min(_ALL, sum(healthy) + sum(degraded))
    if total == 0:
        return _panic(levels) if panic else []
    loads, rest = _distribute(healthy, _ALL, total)
    spare, rest = _distribute(degraded, rest, total)
    for share, having in ((loads, healthy), (spare, degraded)):
        if rest and any(having):
            share[next(i for i, percent in enumerate(having) if percent)] += rest
            rest = 0
    found = []
    for level, main, other in zip(levels, loads, spare, strict=True):
        if total < _ALL and level.percent < panic:
            found += _whole(level, Fraction(main + other, _ALL))
            continue
        for load, eligible in ((main, level.healthy), (other, level.degraded)):
            found += _healthy(level, Fraction(load, _ALL), eligible, factor, locality_weighted)
    return found


def _levels(assignment: Assignment, ejected: frozenset[str], key: Key) -> list[_Priority]:
    by_priority: dict[int, list[Locality]] = {}
    for locality in assignment.localities:
        by_priority.setdefault(locality.priority, []).append(locality)
    found = []
    for _, localities in sorted(by_priority.items()):
        endpoints = [endpoint for locality in localities for endpoint in locality.endpoints]
        usable = [e for e in endpoints if e.usable and not (ejected and key(e) in ejected)]
        healthy = [endpoint for endpoint in usable if not endpoint.degraded]
        degraded = [endpoint for endpoint in usable if endpoint.degraded]
        counts = tuple(
            sum(e.weight for e in some) if assignment.weighted_health else len(some)
            for some in (endpoints, healthy, degraded)
        )
        found.append(
            _Priority(
                tuple(localities),
                frozenset(map(id, healthy)),
                frozenset(map(id, degraded)),
                (counts[0], counts[1], counts[2]),
            )
        )
    return found


def _distribute(available: list[int], load: int, total: int) -> tuple[list[int], int]:
    """Percents of the load by priority, from the first on, and what is left of it."""
    found = []
    for percent in available:
        share = min(load, percent * _ALL // total)
        found.append(share)
        load -= share
    return found, load


def _panic(levels: list[_Priority]) -> list[Group]:
    """Nobody is usable anywhere, and that is not believed: everybody is, by numbers."""
    hosts = [sum(len(locality.endpoints) for locality in level.localities) for level in levels]
    everybody = sum(hosts)
    if not everybody:
        return []
    loads = [_ALL * count // everybody for count in hosts]
    loads[next(i for i, load in enumerate(hosts) if load)] += _ALL - sum(loads)
    return [g for level, load in zip(levels, loads, strict=True) for g in _whole(level, Fraction(load, _ALL))]


def _whole(level: _Priority, share: Fraction) -> list[Group]:
    return _group(share, (e for locality in level.localities for e in locality.endpoints))


def _group(share: Fraction, endpoints: Iterable[Endpoint]) -> list[Group]:
    members = tuple(endpoints)
    weight = sum(endpoint.weight for endpoint in members)
    if not share or not weight:
        return []
    return [Group(share, tuple((e, share * e.weight / weight) for e in members))]


def _healthy(
    level: _Priority, share: Fraction, eligible: frozenset[int], factor: int, locality_weighted: bool
) -> list[Group]:
    chosen = [(place, [e for e in place.endpoints if id(e) in eligible]) for place in level.localities]
    if locality_weighted:
        # A locality without weight gets nothing, one that lost too many endpoints less than its weight.
        weights = [
            place.weight * min(Fraction(1), Fraction(factor * len(some), _ALL * len(place.endpoints)))
            if some
            else Fraction(0)
            for place, some in chosen
        ]
        whole = sum(weights)
        if whole:
            return [
                group
                for (_, some), weight in zip(chosen, weights, strict=True)
                for group in _group(share * weight / whole, some)
            ]
    return _group(share, (endpoint for _, some in chosen for endpoint in some))


def spread(shares: list[Fraction], *, strict: bool) -> list[int]:
    """Whole numbers of slots for shares, at most `CLUSTER_SLOTS` together, in lowest terms.

    Even where that fits. Otherwise the nearest: whatever stands together in `shares` gets what it should to within one
    slot, and so does each. strict: raises CapacityError when one would be off by more than a quarter of itself. That is
    for what is configured; what became of it when endpoints failed is carried out as near as it can be.
    """
    whole = lcm(*(share.denominator for share in shares))
    even = [int(share * whole) for share in shares]
    divisor = gcd(*even)
    even = [number // divisor for number in even]
    total = sum(even)
    if total <= n.CLUSTER_SLOTS:
        return even
    best: tuple[float, list[int]] | None = None
    for slots in _TRIED:
        ends = [(2 * slots * end + total) // (2 * total) for end in accumulate(even)]
        found = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        # found / slots against share / total
        error = max(abs(f * total - e * slots) / (e * slots) for f, e in zip(found, even, strict=True))
        if best is None or error <= best[0]:
            best = error, found
    assert best is not None
    if strict and best[0] > _TOLERANCE:
        raise CapacityError(
            f"{len(shares)} endpoints with their weights need {total} slots, a cluster holds {n.CLUSTER_SLOTS}"
        )
    return best[1]
