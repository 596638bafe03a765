"""The ordered difference between what the maps hold and what they should hold (pure).

The kernel sees every prefix of a plan, because its steps are single map operations. Hence the order: what is referred
to before what refers to it (endpoints, clusters, rules, replies, programs, virtual hosts, tables, services, workloads),
removals in reverse and after all that. A name is written before its id is used and removed after it is not, so that an
id in use is always known at a restart. Programs are named by their content and never change: a virtual host is pointed
at the new one, then the old one goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from nodeagent.abi.codec import offset_of
from nodeagent.abi.numbers import NameKind
from nodeagent.abi.records import Endpoint as EndpointRecord
from nodeagent.abi.records import NameKey, ServiceKey, Workload, address_text
from nodeagent.intent.clusters import endpoint_key
from nodeagent.intent.ids import Known
from nodeagent.intent.model import Intent, Program, Table


class Op(StrEnum):
    """What a step does."""

    PUT = "put"
    #: removes a key; of an array: writes zeros
    CLEAR = "clear"
    #: puts a route program's value into a new inner map and that into the outer one
    PUBLISH = "publish"
    WITHDRAW = "withdraw"
    #: clears the counters of a route id that gets a new owner
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on one key. `program` is set for PUBLISH."""

    op: Op
    table: Table
    key: bytes
    value: bytes = b""
    program: Program | None = None


@dataclass(slots=True)
class Observed:
    """What the maps hold.

    entries: by map and key; of arrays those that are not all zero. programs: digest by id, as the name tells it, of the
    ids that have a program.
    """

    entries: dict[Table, dict[bytes, bytes]] = field(
        default_factory=lambda: {table: {} for table in Table if table is not Table.PROGRAMS}
    )
    programs: dict[int, str] = field(default_factory=dict)

    def known(self) -> Known:
        """The ids in use, as a compilation wants them: from names, and for endpoints from the records themselves."""
        ids: dict[NameKind, dict[str, int]] = {}
        for key, text in self.entries[Table.NAMES].items():
            name = NameKey.unpack(key)
            if name.kind in NameKind._value2member_map_ and name.kind != NameKind.ENDPOINT:
                kind = NameKind(name.kind)
                ids.setdefault(kind, {})[name_key(kind, text)] = name.id
        endpoints = ids.setdefault(NameKind.ENDPOINT, {})
        for key, value in self.entries[Table.ENDPOINTS].items():
            endpoints[record_key(value)] = int.from_bytes(key, "little")
        last = {kind: max(table.values(), default=0) for kind, table in ids.items()}
        return Known(ids, last, self._live(ids))

    def _live(self, ids: Mapping[NameKind, Mapping[str, int]]) -> dict[NameKind, frozenset[int]]:
        live = {kind: frozenset(table.values()) for kind, table in ids.items()}
        for kind, table in ((NameKind.WORKLOAD, Table.WORKLOADS), (NameKind.TABLE, Table.TABLES)):
            live[kind] = frozenset(int.from_bytes(key, "little") for key in self.entries[table])
        endpoints = self.entries[Table.ENDPOINTS].items()
        live[NameKind.ENDPOINT] = frozenset(int.from_bytes(k, "little") for k, v in endpoints if v[_LIVE])
        views = {ServiceKey.unpack(key).view for key in self.entries[Table.SERVICES]}
        views |= {Workload.unpack(value).view for value in self.entries[Table.WORKLOADS].values()}
        live[NameKind.VIEW] = frozenset(views)
        return live


_LIVE: Final = offset_of("up_endpoint", "live")
_TURN: Final = offset_of("up_cluster", "turn")
#: Tables whose change home has to hear of.
ANNOUNCED: Final = frozenset({Table.ENDPOINTS, Table.CLUSTERS, Table.WORKLOADS})


def plan(observed: Observed, intent: Intent, *, prune: bool = True) -> list[Step]:
    """Steps that turn `observed` into `intent`; empty when they agree.

    prune: False leaves out all removals, for as long as the intent does not cover everything yet.
    """
    steps = list(_additions(observed, intent))
    if prune:
        steps += _removals(observed, intent)
    return steps


def announces(steps: list[Step]) -> bool:
    """Whether home has to look at the maps again after these steps."""
    return any(step.table in ANNOUNCED for step in steps)


def _additions(observed: Observed, intent: Intent) -> Iterator[Step]:
    names = _puts(Table.NAMES, observed, intent)
    for step in names:
        name = NameKey.unpack(step.key)
        if name.kind == NameKind.ROUTE and _other_route(observed.entries[Table.NAMES].get(step.key), step.value):
            yield Step(Op.RESET, Table.NAMES, name.id.to_bytes(4, "little"))
    programs = {step.key: step for step in names if NameKey.unpack(step.key).kind == NameKind.PROGRAM}
    yield from (step for step in names if step.key not in programs)
    endpoints = _puts(Table.ENDPOINTS, observed, intent)
    yield from (step for step in endpoints if step.value[_LIVE])
    # In place only where all views agree before and after: versions that differ between views have ids of their own.
    yield from _puts(Table.CLUSTERS, observed, intent)
    # A rule is named by its content and never changes, so it is simply there before whoever names it.
    yield from _puts(Table.RULES, observed, intent)
    yield from _puts(Table.REPLIES, observed, intent)
    for number, program in sorted(intent.programs.items()):
        if observed.programs.get(number) != program.digest:
            yield Step(Op.PUBLISH, Table.PROGRAMS, number.to_bytes(4, "little"), program=program)
    # A program's name vouches for its content, so it comes after it.
    yield from programs.values()
    vhosts = _puts(Table.VHOSTS, observed, intent)
    tables = _puts(Table.TABLES, observed, intent)
    # A table is live only when its virtual hosts are there; while they change, each is its old or its new self.
    yield from vhosts
    yield from tables
    yield from _puts(Table.SERVICES, observed, intent)
    yield from _puts(Table.WORKLOADS, observed, intent)


def _removals(observed: Observed, intent: Intent) -> Iterator[Step]:
    for table in (Table.WORKLOADS, Table.SERVICES, Table.TABLES, Table.VHOSTS):
        yield from _clears(table, observed, intent)
    for number in sorted(observed.programs):
        if number not in intent.programs:
            yield Step(Op.WITHDRAW, Table.PROGRAMS, number.to_bytes(4, "little"))
    yield from _clears(Table.REPLIES, observed, intent)
    yield from _clears(Table.RULES, observed, intent)
    yield from _clears(Table.CLUSTERS, observed, intent)
    endpoints = _puts(Table.ENDPOINTS, observed, intent)
    yield from (step for step in endpoints if not step.value[_LIVE])
    yield from _clears(Table.ENDPOINTS, observed, intent)
    yield from _clears(Table.NAMES, observed, intent)


def _puts(table: Table, observed: Observed, intent: Intent) -> list[Step]:
    held = observed.entries[table]
    return [
        Step(Op.PUT, table, key, value)
        for key, value in sorted(intent.entries[table].items())
        if not _same(table, held.get(key), value)
    ]


def _clears(table: Table, observed: Observed, intent: Intent) -> Iterator[Step]:
    wanted = intent.entries[table]
    for key in sorted(observed.entries[table]):
        if key not in wanted:
            yield Step(Op.CLEAR, table, key)


def _same(table: Table, held: bytes | None, wanted: bytes) -> bool:
    if held is None or table is not Table.CLUSTERS:
        return held == wanted
    return settled(held) == settled(wanted)


def settled(cluster: bytes) -> bytes:
    """A cluster's bytes without what the kernel writes into them: the lock and the turn."""
    return bytes(4) + cluster[4:_TURN] + bytes(4) + cluster[_TURN + 4 :]


def _other_route(held: bytes | None, wanted: bytes) -> bool:
    return held is None or name_key(NameKind.ROUTE, held) != name_key(NameKind.ROUTE, wanted)


def name_key(kind: NameKind, text: bytes) -> str:
    """The key under which a compilation looks for a name: the part of its text that does not change with its owner."""
    plain = text.rstrip(b"\0").decode("utf-8", "replace")
    if kind in (NameKind.PROGRAM, NameKind.ENDPOINT):
        return plain.partition(" ")[0]
    if kind is NameKind.ROUTE:
        # The text is our own JSON and begins with the key; whoever wrote something else loses its id, no more.
        start = '{"key":"'
        return plain[len(start) :].partition('"')[0] if plain.startswith(start) else plain
    return plain


def record_key(value: bytes) -> str:
    """The key of an endpoint's record."""
    record = EndpointRecord.unpack(value)
    return endpoint_key(address_text(record.addr), record.port)


def apply(observed: Observed, steps: list[Step]) -> None:
    """What `observed` is after `steps`: the model of the maps that saves reading them again after every change."""
    for step in steps:
        number = int.from_bytes(step.key, "little") if step.table is Table.PROGRAMS else 0
        if step.op is Op.PUT:
            observed.entries[step.table][step.key] = step.value
        elif step.op is Op.CLEAR:
            observed.entries[step.table].pop(step.key, None)
        elif step.op is Op.PUBLISH and step.program is not None:
            observed.programs[number] = step.program.digest
        elif step.op is Op.WITHDRAW:
            observed.programs.pop(number, None)


def drift(model: Observed, real: Observed) -> int:
    """How many entries of the maps are not what the agent believes: somebody else wrote, or a bug did."""
    count = 0
    for table in model.entries:
        keys = model.entries[table].keys() | real.entries[table].keys()
        count += sum(not _same(table, model.entries[table].get(k), real.entries[table].get(k) or b"") for k in keys)
    numbers = model.programs.keys() | real.programs.keys()
    return count + sum(model.programs.get(number) != real.programs.get(number) for number in numbers)
