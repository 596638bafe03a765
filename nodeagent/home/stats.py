"""Requests per route that home served or refused, kept here and written to the pinned `home_stats` once in a while."""

from __future__ import annotations

import logging

from nodeagent.abi.records import HomeStat
from nodeagent.bpf.abc import Map
from nodeagent.bpf.errors import BpfError

log = logging.getLogger("underpass.home")


class Stats:
    """Home is the map's only writer, so it reads it once, at its start, and counts on from there."""

    def __init__(self, home_stats: Map) -> None:
        self._map = home_stats
        self._counts: dict[int, list[int]] = {}
        self._dirty: set[int] = set()
        for key, value in home_stats.items():
            stat = HomeStat.unpack(value)
            self._counts[int.from_bytes(key, "little")] = [stat.requests, stat.refused]

    def count(self, route: int, refused: bool) -> None:
        """One request; a refused one counts in both."""
        counts = self._counts.setdefault(route, [0, 0])
        counts[0] += 1
        counts[1] += refused
        self._dirty.add(route)

    def flush(self) -> None:
        """Writes what changed."""
        for route in self._dirty:
            requests, refused = self._counts[route]
            try:
                self._map.update(route.to_bytes(4, "little"), HomeStat(requests, refused).pack())
            except BpfError as cause:
                log.warning("home_stats: %s", cause)
        self._dirty.clear()

    def totals(self) -> tuple[int, int]:
        """(requests, refused) over all routes."""
        return sum(c[0] for c in self._counts.values()), sum(c[1] for c in self._counts.values())
