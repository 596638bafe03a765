"""`underpass bpf`: programs, maps and links as they are pinned, whoever pinned them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from nodeagent.bpf.abc import Map, ProgramInfo
from nodeagent.bpf.errors import BpfError
from nodeagent.bpf.kernel import LinuxKernel
from nodeagent.node.paths import pin_name
from nodeagent.node.programs import SLOTS
from nodeagent.node.registry import Workload
from underpass.cli import output, pins
from underpass.cli.errors import UNREACHABLE, USAGE, CliError
from underpass.cli.output import API_VERSION, Output, OutputOption
from underpass.cli.records import bpf as records
from underpass.cli.records import maps as decoders
from underpass.cli.targets import LabOption, Node, NodeOption, pinned_nodes, workloads

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)
prog = typer.Typer(rich_markup_mode=None, help="Programs: list, stats.")
map_ = typer.Typer(rich_markup_mode=None, help="Maps: list, dump NAME, pressure.")
link = typer.Typer(rich_markup_mode=None, help="Links: list.")
app.add_typer(prog, name="prog")
app.add_typer(map_, name="map")
app.add_typer(link, name="link")

_PLACES: Final = {slot.name: slot.place for slot in SLOTS}


@app.callback()
def _bpf() -> None:
    """The pinned programs, maps and links of a node."""


@prog.callback(invoke_without_command=True)
def _prog(
    context: typer.Context, form: OutputOption = Output.TABLE, node: NodeOption = None, lab: LabOption = None
) -> None:
    """Programs: list, stats. Lists when no command is given."""
    if not _has_command(context, form, node):
        prog_list(form, node, lab)


@map_.callback(invoke_without_command=True)
def _map(
    context: typer.Context, form: OutputOption = Output.TABLE, node: NodeOption = None, lab: LabOption = None
) -> None:
    """Maps: list, dump NAME, pressure. Lists when no command is given."""
    if not _has_command(context, form, node):
        map_list(form, node, lab)


@link.callback(invoke_without_command=True)
def _link(
    context: typer.Context, form: OutputOption = Output.TABLE, node: NodeOption = None, lab: LabOption = None
) -> None:
    """Links: list. Lists when no command is given."""
    if not _has_command(context, form, node):
        link_list(form, node, lab)


def _has_command(context: typer.Context, form: Output, node: list[str] | None) -> bool:
    """Whether a command follows. Options in front of it would be lost, so they are refused. Raises CliError."""
    if context.invoked_subcommand is not None and (form is not Output.TABLE or node):
        name = context.invoked_subcommand
        raise CliError(f"options before {name!r}", "they belong to the command", f"write them after {name}", USAGE)
    return context.invoked_subcommand is not None


# ---- programs ----


@prog.command("list")
def prog_list(form: OutputOption = Output.TABLE, node: NodeOption = None, lab: LabOption = None) -> None:
    """The pinned programs, and to how many places each is linked."""
    rows = [row for one in pinned_nodes(node, lab) for row in programs_of(one)]
    _show(form, "BpfPrograms", records.programs_document(rows), records.PROGRAM_COLUMNS, [
        records.program_cells(row) for row in rows
    ], records.PROGRAM_NUMBERS)  # fmt: skip


@prog.command("stats")
def prog_stats(
    form: OutputOption = Output.TABLE,
    node: NodeOption = None,
    lab: LabOption = None,
    seconds: Annotated[float, typer.Option("--seconds", "-s", min=0.1, max=3600, help="How long to count.")] = 1.0,
) -> None:
    """How often each program runs, and how long a run takes: counted for a while, because counting itself costs."""
    nodes = pinned_nodes(node, lab)
    counting = LinuxKernel().statistics()
    try:
        before = {(row.node, row.name): row.info for one in nodes for row in programs_of(one)}
        began = time.monotonic()
        time.sleep(seconds)
        after = [row for one in nodes for row in programs_of(one)]
        elapsed = time.monotonic() - began
    finally:
        counting.close()
    rows = []
    for row in after:
        runs, spent = records.since(before.get((row.node, row.name), row.info), row.info)
        rows.append(records.ProgramRow(row.node, row.name, row.info, row.links, runs, spent, elapsed))
    _show(form, "BpfProgramStats", records.programs_document(rows), records.STAT_COLUMNS, [
        records.stat_cells(row) for row in rows
    ], records.PROGRAM_NUMBERS)  # fmt: skip


def programs_of(node: Node) -> list[records.ProgramRow]:
    """The pinned programs of a node."""
    kernel = LinuxKernel()
    linked: dict[int, int] = {}
    for row in links_of(node, ()):
        linked[row.info.program_id] = linked.get(row.info.program_id, 0) + row.attached
    found = []
    for path in _pins(node.bpffs / "progs"):
        program = kernel.pinned_program(path)
        info: ProgramInfo = program.info()
        program.close()
        found.append(records.ProgramRow(node.name, path.name, info, linked.get(info.id, 0)))
    return found


# ---- maps ----


@map_.command("list")
def map_list(form: OutputOption = Output.TABLE, node: NodeOption = None, lab: LabOption = None) -> None:
    """The pinned maps, and how many entries of each are in use."""
    rows = []
    for one in pinned_nodes(node, lab):
        with pins.maps(one, map_names(one)) as maps:
            used = {item.map: item.used for item in pressure_of(maps)}
            rows += [records.MapRow(one.name, name, maps[name].info, used.get(name)) for name in maps]
    _show(form, "BpfMaps", records.maps_document(rows), records.MAP_COLUMNS, [
        records.map_cells(row) for row in rows
    ], records.MAP_NUMBERS)  # fmt: skip


@map_.command("pressure")
def map_pressure(form: OutputOption = Output.TABLE, node: NodeOption = None, lab: LabOption = None) -> None:
    """How full each map is, the fullest first."""
    items, rows = [], []
    for one in pinned_nodes(node, lab):
        with pins.maps(one, map_names(one)) as maps:
            for item in pressure_of(maps):
                items.append({"node": one.name, "map": item.map, "used": item.used, "limit": item.limit})
                rows.append((one.name, item.map, item.used, item.limit, f"{100 * item.share:.1f}"))
    _show(form, "BpfMapPressure", items, records.PRESSURE_COLUMNS, rows, records.MAP_NUMBERS)


@map_.command("dump")
def map_dump(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A map, such as services, clusters, conns.")],
    form: OutputOption = Output.TABLE,
    node: NodeOption = None,
    lab: LabOption = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="At most so many entries of a node; 0: all.")] = 0,
) -> None:
    """The entries of a map, a line each; ids stand as what they mean."""
    nodes = pinned_nodes(node, lab)
    if name not in decoders.DECODERS:
        known = ", ".join(sorted(decoders.DECODERS))
        why = {
            "sockets": "it is storage inside sockets, and cannot be listed",
            "accepted": "it is storage inside sockets, and cannot be listed",
            "events": "it is a ring buffer; its one reader is underpass-home",
        }.get(name, "there is no such map")
        raise CliError(f"cannot dump {name!r}", why, f"maps that can be dumped: {known}", USAGE)
    items: list[dict[str, Any]] = []
    several = len(nodes) > 1
    for one in nodes:
        with pins.maps(one, dict.fromkeys((name, "names"))) as maps:
            context = decoders.Context(
                decoders.names(maps["names"].items()),
                _interfaces(one, name),
                _cgroups([workload for _, workload in workloads([one])], one),
            )
            found = decoders.decode(name, _entries(name, maps[name], one), context)
            for entry in islice(found, limit or None):
                if form is Output.JSON:
                    items.append({"node": one.name, **entry})
                else:
                    print((f"{one.name}  " if several else "") + decoders.line(entry))
    if form is Output.JSON:
        output.write_json({"apiVersion": API_VERSION, "kind": "BpfMapDump", "map": name, "entries": items})


def _entries(name: str, source: Map, node: Node) -> Iterator[tuple[bytes, bytes]]:
    if name == "programs":
        yield from _programs(source)
    elif name == "cgroup_workload":
        # A cgroup's storage can be looked up, not listed: ask for each registered workload.
        for _, workload in workloads([node]):
            try:
                key = os.stat(workload.cgroup).st_ino.to_bytes(8, "little").ljust(source.info.key_size, b"\0")
            except OSError:
                continue
            value = source.lookup(key)
            if value is not None:
                yield key, value
    elif name in ("counters", "route_stats", "punt_stats", "reply_stats", "interface_stats", "flow_stats"):
        for key in source.keys():  # noqa: SIM118 - a BPF map, not a dict
            yield key, decoders.summed(name, source.lookup_percpu(key) or [])
    else:
        yield from sorted(source.items()) if not name.endswith("_stats") else source.items()


def _interfaces(node: Node, name: str) -> dict[int, str]:
    """Host interfaces by index, from what is attached to them: their namespace may be another one than ours."""
    if name != "interface_stats":
        return {}
    found = dict(socket.if_nameindex())
    for row in links_of(node, [workload for _, workload in workloads([node])]):
        if _PLACES.get(row.slot) == "host" and row.attached:
            found[row.info.ifindex] = f"{row.target.partition(' ')[0]} ({row.owner})"
    return found


def _programs(source: Map) -> Iterator[tuple[bytes, bytes]]:
    kernel = LinuxKernel()
    for number in range(source.info.max_entries):
        key = number.to_bytes(4, "little")
        inner = source.inner_id(key)
        if inner is None:
            continue
        try:
            opened = kernel.map_by_id(inner)
        except BpfError:
            continue  # replaced meanwhile
        value = opened.lookup(bytes(4))
        opened.close()
        if value is not None:
            yield key, value


def pressure_of(maps: Mapping[str, Map]) -> list[decoders.Pressure]:
    """How full the maps of a node are."""
    counted = {name: sum(1 for _ in maps[name].keys()) for name in decoders.COUNTED if name in maps}  # noqa: SIM118
    limits = {name: item.info.max_entries for name, item in maps.items()}
    return decoders.pressure(limits, counted, decoders.names(maps["names"].items()))


def map_names(node: Node) -> list[str]:
    """The pinned maps of a node."""
    return [path.name for path in _pins(node.bpffs / "maps")]


# ---- links ----


@link.command("list")
def link_list(form: OutputOption = Output.TABLE, node: NodeOption = None, lab: LabOption = None) -> None:
    """The pinned links: which program runs where. Filters under clsact, on kernels before 6.6, are no links."""
    nodes = pinned_nodes(node, lab)
    rows = [row for one in nodes for row in links_of(one, [workload for _, workload in workloads([one])])]
    _show(form, "BpfLinks", records.links_document(rows), records.LINK_COLUMNS, [
        records.link_cells(row) for row in rows
    ], records.LINK_NUMBERS)  # fmt: skip


def links_of(node: Node, registered: Sequence[Workload]) -> list[records.LinkRow]:
    """The pinned links of a node."""
    kernel = LinuxKernel()
    programs = {}
    for path in _pins(node.bpffs / "progs"):
        program = kernel.pinned_program(path)
        programs[program.info().id] = path.name
        program.close()
    by_pin = {pin_name(workload.key): workload for workload in registered}
    cgroups = _cgroups(registered, node)
    rows = []
    for directory in _pins(node.bpffs / "links"):
        workload = by_pin.get(directory.name)
        for path in _pins(directory):
            opened = kernel.pinned_link(path)
            info = opened.info()
            opened.close()
            target = records.target_of(
                info,
                _PLACES.get(path.name, ""),
                cgroups,
                workload.host_interface if workload is not None else "",
                f"{workload.interface} in {workload.netns.name}" if workload is not None else "",
            )
            owner = records.owner_of(directory.name, {name: item.key for name, item in by_pin.items()})
            program_name = programs.get(info.program_id, f"#{info.program_id}")
            rows.append(records.LinkRow(node.name, owner, path.name, info, program_name, target))
    return rows


def _cgroups(registered: Sequence[Workload], node: Node) -> dict[int, str]:
    found = {}
    for workload in registered:
        try:
            found[os.stat(workload.cgroup).st_ino] = str(workload.cgroup)
            home = workload.cgroup.parent / "home"
            found[os.stat(home).st_ino] = str(home)
        except OSError:
            continue
    return found


def _pins(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise CliError(f"cannot look into {directory}", error.strerror or "", "run as root", UNREACHABLE) from error


def _show(
    form: Output,
    kind: str,
    items: list[dict[str, Any]],
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    numbers: Sequence[str],
) -> None:
    if form is Output.JSON:
        output.write_json({"apiVersion": API_VERSION, "kind": kind, "items": items})
    else:
        output.console().print(output.table(columns, rows, right=numbers))
