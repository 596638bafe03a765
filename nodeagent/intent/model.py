"""What a compilation yields: map entries, named decisions, and the ids to go on with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from nodeagent.abi.records import Action
from nodeagent.cache.resources import Source
from nodeagent.health.outlier import Watch
from nodeagent.intent.ids import Known
from nodeagent.intent.packing import Image, assemble
from nodeagent.rules.model import NO_RULE, Rule

#: The kind of a rejection that says: a policy for this workload is in force nowhere. Every other kind fails closed.
NOT_ENFORCED: Final = "policy-not-enforced"
#: The kind of a rejection that says: no connection reaches the rules of this host, since no address leads to it.
NOT_CAPTURED: Final = "not-captured"


class Table(StrEnum):
    """The maps that the agent writes entry by entry; the value is the map's name."""

    NAMES = "names"
    WORKLOADS = "workloads"
    SERVICES = "services"
    TABLES = "tables"
    VHOSTS = "vhosts"
    PROGRAMS = "programs"
    CLUSTERS = "clusters"
    RULES = "home_rules"
    REPLIES = "replies"
    ENDPOINTS = "endpoints"


class Where(StrEnum):
    """Who decides the requests of a route."""

    KERNEL = "kernel"
    #: the kernel leaves them to the home peer, and underpass-home does all that they ask for
    HOME = "home"
    #: the kernel leaves them to the home peer, and only an Envoy can do them: underpass-home refuses them
    WAYPOINT = "waypoint"


@dataclass(frozen=True, slots=True)
class RouteInfo:
    """A route as people know it; the text behind its id.

    `clusters`: (cluster, weight); `features`: why it is not for the kernel; `rule`: what home does about that; `key` is
    stable over edits of weights, destinations and positions, so that counters go on.
    """

    key: str
    host: str
    route: str
    match: str
    clusters: tuple[tuple[str, int], ...]
    where: Where
    reason: str = ""
    features: tuple[str, ...] = ()
    source: Source | None = None
    rule: Rule = NO_RULE


@dataclass(frozen=True, slots=True)
class Rejection:
    """Something that is not carried into the kernel as asked: what, of which view, why, and what happens instead."""

    view: str
    kind: str
    name: str
    reason: str
    effect: str
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """A route program; its id's name text begins with `digest`, so it is never read back for comparison."""

    digest: str
    image: Image
    actions: tuple[Action, ...]

    def value(self) -> bytes:
        """The map value, about 400 KiB; made when it is needed."""
        return assemble(self.image, self.actions)


@dataclass(frozen=True, slots=True)
class Intent:
    """What the maps should hold, as bytes by map and key; programs apart, by id.

    `enrolled`: workload key -> id, for the cgroups. Endpoints that are no longer wanted stay, marked as not live: an id
    keeps its address. `watched`: clusters whose endpoints are judged by what they answer, with the keys of these.
    """

    entries: Mapping[Table, Mapping[bytes, bytes]]
    programs: Mapping[int, Program] = field(default_factory=dict)
    enrolled: Mapping[str, int] = field(default_factory=dict)
    routes: Mapping[int, RouteInfo] = field(default_factory=dict)
    rejections: tuple[Rejection, ...] = ()
    known: Known = field(default_factory=Known)
    watched: Mapping[Watch, frozenset[str]] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """How many entries of each sort, for the status file."""
        return {table.value: len(entries) for table, entries in self.entries.items()} | {"programs": len(self.programs)}
