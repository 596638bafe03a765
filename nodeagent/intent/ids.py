"""Stable numbers for names (pure).

A name keeps its id as long as it is wanted. An id that became free is not given out again while there are ids beyond
the highest ever used: connections under way, stocks of upstreams and counters may still mean the old owner. Only when
the numbers run out the free ones are used, lowest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from nodeagent.abi import numbers as n
from nodeagent.abi.numbers import NameKind

#: Ids are 1 .. limit - 1: 0 means "none" everywhere in the ABI.
LIMITS: Final = {
    NameKind.VIEW: n.WORKLOADS,
    NameKind.WORKLOAD: n.WORKLOADS,
    NameKind.TABLE: n.TABLES,
    NameKind.CLUSTER: n.CLUSTERS,
    NameKind.ENDPOINT: n.ENDPOINTS,
    NameKind.ROUTE: n.ROUTE_IDS,
    NameKind.PROGRAM: n.PROGRAMS,
}
#: Kinds whose free ids stay named in the map, so that they are known as used after a restart, too: connections and
#: stocks hold these numbers for as long as they live.
LASTING: Final = frozenset({NameKind.VIEW, NameKind.WORKLOAD, NameKind.TABLE})


@dataclass(frozen=True, slots=True)
class Known:
    """Ids by kind and key, the highest id that was ever given out, and the ids that the maps may refer to right now."""

    ids: Mapping[NameKind, Mapping[str, int]] = field(default_factory=dict)
    last: Mapping[NameKind, int] = field(default_factory=dict)
    live: Mapping[NameKind, frozenset[int]] = field(default_factory=dict)

    def of(self, kind: NameKind) -> Mapping[str, int]:
        """Ids of one kind by key."""
        return self.ids.get(kind, {})

    def over(self, older: Known) -> Known:
        """These ids, and those of `older` that they do not contradict: for a round that removed nothing."""
        ids: dict[NameKind, dict[str, int]] = {}
        live: dict[NameKind, frozenset[int]] = {}
        for kind in NameKind:
            mine = self.of(kind)
            taken = set(mine.values())
            ids[kind] = {key: number for key, number in older.of(kind).items() if number not in taken} | dict(mine)
            live[kind] = self.live.get(kind, frozenset()) | older.live.get(kind, frozenset())
        last = {kind: max(self.last.get(kind, 0), older.last.get(kind, 0)) for kind in NameKind}
        return Known(ids, last, live)


@dataclass(slots=True)
class Assigned:
    """Outcome of `assign`: an id for every key that got one, and the keys for which there was none."""

    ids: dict[str, int]
    failed: tuple[str, ...]
    last: int


def assign(
    known: Mapping[str, int], last: int, wanted: Iterable[str], limit: int, busy: frozenset[int] = frozenset()
) -> Assigned:
    """Ids for `wanted` keys, below `limit`.

    Deterministic: known keys keep theirs, new ones are served in order of their names. Ids in `known` of keys that are
    not wanted count as used until there is nothing else left; those in `busy` are not given out even then, because
    the maps still refer to them until this round's removals are through.
    """
    keys = sorted(set(wanted))
    ids = {key: known[key] for key in keys if key in known}
    taken = set(known.values())
    last = max(last, max(taken, default=0))
    failed = []
    spare: Iterator[int] | None = None
    for key in keys:
        if key in ids:
            continue
        if last + 1 < limit:
            last += 1
            ids[key] = last
            continue
        if spare is None:
            # First what nobody is known to have used, then what somebody no longer wants.
            given = set(ids.values()) | busy
            unused = [i for i in range(1, limit) if i not in taken and i not in given]
            spare = iter(unused + sorted(i for i in taken - given if i < limit))
        number = next(spare, None)
        if number is None:
            failed.append(key)
        else:
            ids[key] = number
    return Assigned(ids, tuple(failed), last)
