"""Reads what the maps hold and executes plans: the only writer of the agent's maps.

Everything here is I/O over `nodeagent.bpf.abc`; what to do was decided in `plan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import groupby
from typing import Final

from nodeagent.abi import numbers as n
from nodeagent.abi.numbers import NameKind
from nodeagent.abi.records import Address, Config, FlowKey, NameKey, PuntKey, RouteStat, address, family
from nodeagent.bpf.abc import Kernel, Map, MapSpec, MapType
from nodeagent.bpf.errors import BpfError, MapFullError
from nodeagent.errors import ApplyError, LayoutError
from nodeagent.intent.model import Table
from nodeagent.intent.packing import PROGRAM_SIZE
from nodeagent.plan import Observed, Op, Step, name_key

#: Every map that the agent reads or writes.
MAPS: Final = (
    "config",
    "cgroup_workload",
    "counters",
    "endpoint_runs",
    "endpoint_stats",
    "flow_stats",
    "home_stats",
    "interface_stats",
    "punt_stats",
    "reply_stats",
    "route_stats",
    *(table.value for table in Table),
)
_ARRAYS: Final = frozenset({Table.WORKLOADS, Table.TABLES, Table.CLUSTERS, Table.ENDPOINTS})
_ONLY: Final = bytes(4)
#: What a flow's key calls the id of a kind.
_FLOW_FIELD: Final = {NameKind.WORKLOAD: "workload", NameKind.ROUTE: "route", NameKind.ENDPOINT: "endpoint"}


def _owner(text: bytes) -> bytes:
    return text.rstrip(b"\0").partition(b" ")[0]


class Reconciler:
    """The maps of one node. One instance writes at a time."""

    def __init__(self, kernel: Kernel, maps: Mapping[str, Map]) -> None:
        self._kernel = kernel
        self._maps = maps

    def observe(self) -> Observed:
        """What the maps hold now. Raises ApplyError when they cannot be read."""
        try:
            return self._observe()
        except BpfError as error:
            raise ApplyError("the pinned maps cannot be read", str(error)) from error

    def _observe(self) -> Observed:
        observed = Observed()
        for table, entries in observed.entries.items():
            found = self._maps[table.value].items()
            entries.update((k, v) for k, v in found if table not in _ARRAYS or v.count(0) != len(v))
        digests: dict[int, str] = {}
        for key, text in observed.entries[Table.NAMES].items():
            name = NameKey.unpack(key)
            if name.kind == NameKind.PROGRAM:
                digests[name.id] = name_key(NameKind.PROGRAM, text)
        programs = self._maps[Table.PROGRAMS.value]
        for number in range(min(n.PROGRAMS, programs.info.max_entries)):
            if programs.inner_id(number.to_bytes(4, "little")) is not None:
                observed.programs[number] = digests.get(number, "")
        return observed

    def execute(self, steps: Iterable[Step]) -> None:
        """Do the steps in order. Raises ApplyError at the first that fails; those before it stand."""
        for (op, table), group in groupby(steps, key=lambda step: (step.op, step.table)):
            run = list(group)
            try:
                self._run(op, table, run)
            except MapFullError as error:
                raise ApplyError(
                    f"the map {table.value} is full", str(error), "configure less, or build with larger limits"
                ) from error
            except BpfError as error:
                raise ApplyError(f"{op.value} in the map {table.value} failed", str(error)) from error

    def _run(self, op: Op, table: Table, run: list[Step]) -> None:
        target = self._maps[table.value]
        if op is Op.PUT and table is Table.NAMES:
            self._renamed(run)
        if op is Op.PUT and table is not Table.CLUSTERS:
            target.update_many((step.key, step.value) for step in run)
        elif op is Op.CLEAR and table not in _ARRAYS:
            target.delete_many(step.key for step in run)
        elif op is Op.RESET:
            self._reset({int.from_bytes(step.key, "little") for step in run})
        else:
            for step in run:
                self._one(target, step)

    def _one(self, target: Map, step: Step) -> None:
        locked = step.table is Table.CLUSTERS
        if step.op is Op.PUT:
            target.update(step.key, step.value, lock=locked)
        elif step.op is Op.CLEAR:
            target.update(step.key, bytes(target.info.value_size), lock=locked)
        elif step.op is Op.WITHDRAW:
            target.delete(step.key)
        elif step.program is not None:
            inner = self._kernel.create_map(MapSpec("program", MapType.ARRAY, 4, PROGRAM_SIZE, 1))
            try:
                inner.update(_ONLY, step.program.value())
                target.put_map(step.key, inner)
            finally:
                inner.close()

    def _reset(self, routes: set[int]) -> None:
        """Clear the counters of route ids that get another owner."""
        stats, homes = self._maps["route_stats"], self._maps["home_stats"]
        punts, replies = self._maps["punt_stats"], self._maps["reply_stats"]
        for route in sorted(routes):
            stats.update(route.to_bytes(4, "little"), RouteStat().pack())
        counted = {int.from_bytes(key, "little") for key in homes.keys()}  # noqa: SIM118 - a BPF map, not a dict
        homes.delete_many(route.to_bytes(4, "little") for route in sorted(routes & counted))
        for counts in (punts, replies):
            known = counts.keys()
            counts.delete_many([key for key in known if PuntKey.unpack(key).route in routes])
        self._forget_flows(NameKind.ROUTE, routes)

    def _renamed(self, run: list[Step]) -> None:
        """Forget the flows of workloads and endpoints whose ids get another owner: a name's first word says whose."""
        names = self._maps[Table.NAMES.value]
        for kind in (NameKind.WORKLOAD, NameKind.ENDPOINT):
            changed = set()
            for step in run:
                key = NameKey.unpack(step.key)
                before = names.lookup(step.key) if key.kind == kind else None
                if before is not None and _owner(before) != _owner(step.value):
                    changed.add(key.id)
            self._forget_flows(kind, changed)

    def _forget_flows(self, kind: NameKind, ids: set[int]) -> None:
        if not ids:
            return
        flows, field = self._maps["flow_stats"], _FLOW_FIELD[kind]
        flows.delete_many([key for key in flows.keys() if getattr(FlowKey.unpack(key), field) in ids])  # noqa: SIM118 - a BPF map

    # ---- configuration ----

    def configure(
        self, homes: Iterable[tuple[str, int]], home_kind: int = 0, own: Iterable[tuple[str, int]] = ()
    ) -> bool:
        """Write the home peers (address and port, one per family at most). Returns whether anything changed.

        own: where underpass-home listens at the same addresses whoever has the home peers' ports.

        Raises LayoutError when the maps belong to another ABI version: they must be removed first.
        """
        config = self._config()
        if config.version not in (0, n.ABI_VERSION):
            raise LayoutError(
                f"the pinned maps are of ABI version {config.version}, this agent speaks {n.ABI_VERSION}",
                "an agent of another release made them",
                "run underpass-agent --cleanup, then start this one",
            )
        peers = {4: Address(), 6: Address()}
        for text, port in homes:
            packed = address(text)
            peers[family(packed)] = Address(packed, port, family(packed))
        ports = {4: 0, 6: 0} | {family(address(text)): port for text, port in own}
        fresh = replace(
            config, version=n.ABI_VERSION, home4=peers[4], home6=peers[6], home_kind=home_kind, own4=ports[4],
            own6=ports[6],
        )  # fmt: skip
        if fresh != config:
            self._maps["config"].update(_ONLY, fresh.pack())
        return fresh != config

    def announce(self) -> int:
        """Tell home to look at the maps again. Returns the new generation."""
        config = self._config()
        generation = (config.generation + 1) & 0xFFFFFFFF
        self._maps["config"].update(_ONLY, replace(config, generation=generation).pack())
        return generation

    def _config(self) -> Config:
        value = self._maps["config"].lookup(_ONLY)
        return Config.unpack(value) if value is not None else Config()
