"""Programs, maps and links as records and rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nodeagent.abi.layout import STRUCTS
from nodeagent.bpf.abc import AttachType, LinkInfo, MapInfo, MapType, ProgramInfo, ProgramType


def _type(kinds: Any, number: int) -> str:
    try:
        return str(kinds(number).name).lower()
    except ValueError:
        return str(number)


@dataclass(frozen=True, slots=True)
class ProgramRow:
    """A pinned program. `runs` and `run_ns` count while statistics are enabled only; over `seconds` if not 0."""

    node: str
    name: str
    info: ProgramInfo
    links: int
    runs: int = 0
    run_ns: int = 0
    seconds: float = 0.0

    @property
    def mean_ns(self) -> float | None:
        """Mean run time, None when it did not run."""
        return self.run_ns / self.runs if self.runs else None


def programs_document(rows: Iterable[ProgramRow]) -> list[dict[str, Any]]:
    """JSON of programs."""
    return [
        {
            "node": row.node,
            "name": row.name,
            "id": row.info.id,
            "type": _type(ProgramType, row.info.type),
            "tag": row.info.tag,
            "jited_bytes": row.info.jited_bytes,
            "xlated_bytes": row.info.xlated_bytes,
            "verified_insns": row.info.verified_insns,
            "links": row.links,
            "map_ids": list(row.info.map_ids),
            "runs": row.runs,
            "run_ns": row.run_ns,
            "mean_ns": round(row.mean_ns, 1) if row.mean_ns is not None else None,
            "seconds": round(row.seconds, 3),
        }
        for row in rows
    ]


PROGRAM_COLUMNS: Final = ("NODE", "PROGRAM", "ID", "TYPE", "TAG", "JITED", "VERIFIED", "LINKS")
PROGRAM_NUMBERS: Final = ("ID", "JITED", "VERIFIED", "LINKS", "RUNS", "RUNS/S", "MEAN NS", "CPU %")
STAT_COLUMNS: Final = ("NODE", "PROGRAM", "ID", "RUNS", "RUNS/S", "MEAN NS", "CPU %")


def program_cells(row: ProgramRow) -> tuple[object, ...]:
    """A row of `bpf prog list`."""
    info = row.info
    kind = _type(ProgramType, info.type)
    return row.node, row.name, info.id, kind, info.tag, f"{info.jited_bytes} B", info.verified_insns, row.links


def stat_cells(row: ProgramRow) -> tuple[object, ...]:
    """A row of `bpf prog stats`."""
    rate = row.runs / row.seconds if row.seconds else 0.0
    cpu = 100 * row.run_ns / 1e9 / row.seconds if row.seconds else 0.0
    mean = f"{row.mean_ns:.0f}" if row.mean_ns is not None else "-"
    return row.node, row.name, row.info.id, row.runs, f"{rate:.0f}", mean, f"{cpu:.2f}"


def since(before: ProgramInfo, after: ProgramInfo) -> tuple[int, int]:
    """Runs and nanoseconds between two looks at a program; a program that was replaced counts from nothing."""
    if before.id != after.id:
        return after.run_cnt, after.run_time_ns
    return after.run_cnt - before.run_cnt, after.run_time_ns - before.run_time_ns


@dataclass(frozen=True, slots=True)
class MapRow:
    """A pinned map and how many of its entries are in use, if anybody can tell."""

    node: str
    name: str
    info: MapInfo
    used: int | None


def maps_document(rows: Iterable[MapRow]) -> list[dict[str, Any]]:
    """JSON of maps."""
    return [
        {
            "node": row.node,
            "name": row.name,
            "id": row.info.id,
            "type": _type(MapType, row.info.type),
            "key_size": row.info.key_size,
            "value_size": row.info.value_size,
            "max_entries": row.info.max_entries,
            "used": row.used,
        }
        for row in rows
    ]


MAP_COLUMNS: Final = ("NODE", "MAP", "ID", "TYPE", "KEY", "VALUE", "ENTRIES", "LIMIT")
MAP_NUMBERS: Final = ("ID", "KEY", "VALUE", "ENTRIES", "LIMIT", "USED", "%")
PRESSURE_COLUMNS: Final = ("NODE", "MAP", "USED", "LIMIT", "%")


def map_cells(row: MapRow) -> tuple[object, ...]:
    """A row of `bpf map list`."""
    info = row.info
    kind, used = _type(MapType, info.type), "-" if row.used is None else row.used
    # a map of maps holds ids; what its values are is the inner map
    size = STRUCTS["up_program"][0] if info.type == MapType.ARRAY_OF_MAPS else info.value_size
    return row.node, row.name, info.id, kind, f"{info.key_size} B", f"{size} B", used, info.max_entries


@dataclass(frozen=True, slots=True)
class LinkRow:
    """A pinned link: whose, at which slot, with which program, on what. `target` is empty when it is detached."""

    node: str
    owner: str
    slot: str
    info: LinkInfo
    program: str
    target: str

    @property
    def attached(self) -> bool:
        """Whether its cgroup or interface is still there."""
        return bool(self.info.cgroup_id or self.info.ifindex)


def links_document(rows: Iterable[LinkRow]) -> list[dict[str, Any]]:
    """JSON of links."""
    return [
        {
            "node": row.node,
            "workload": row.owner,
            "slot": row.slot,
            "id": row.info.id,
            "program": row.program,
            "program_id": row.info.program_id,
            "attach_type": _type(AttachType, row.info.attach_type),
            "attached": row.attached,
            "target": row.target,
        }
        for row in rows
    ]


LINK_COLUMNS: Final = ("NODE", "WORKLOAD", "SLOT", "ID", "PROGRAM", "ATTACH TYPE", "TARGET")
LINK_NUMBERS: Final = ("ID",)


def link_cells(row: LinkRow) -> tuple[object, ...]:
    """A row of `bpf link list`."""
    kind = _type(AttachType, row.info.attach_type)
    return row.node, row.owner, row.slot, row.info.id, row.program, kind, row.target or "DETACHED"


def owner_of(pin: str, workloads: Mapping[str, str]) -> str:
    """The workload of a link's directory, by the directory's name; `home` is home's own."""
    return workloads.get(pin, pin.replace("~", "/", 1))


def target_of(info: LinkInfo, slot_place: str, cgroups: Mapping[int, str], host: str, pod: str) -> str:
    """What a link is attached to: a cgroup's path, or an interface. Empty when that is gone."""
    if info.cgroup_id:
        return cgroups.get(info.cgroup_id, f"cgroup {info.cgroup_id}")
    if info.ifindex:
        name = {"host": host, "pod": pod}.get(slot_place, "")
        return f"{name or 'interface'} (index {info.ifindex})"
    return ""
