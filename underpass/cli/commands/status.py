"""`underpass status`: one screen about the control plane and each node of this machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import typer

from nodeagent.abi.numbers import COUNTER_LABELS
from nodeagent.errors import AgentError
from nodeagent.node.paths import pin_name
from nodeagent.node.programs import SLOTS
from nodeagent.telemetry.read import counters_of
from underpass.cli import ask, output, pins
from underpass.cli.commands.bpf import links_of, map_names, pressure_of, programs_of
from underpass.cli.errors import OK, CliError
from underpass.cli.output import Output, OutputOption
from underpass.cli.records import status as records
from underpass.cli.records import verdicts
from underpass.cli.targets import (
    ControlPlaneOption,
    LabOption,
    Node,
    NodeOption,
    choose,
    control_plane,
    discover,
    require_root,
    workloads,
)

#: Home writes its file every second.
_FRESH_S: Final = 5.0


def status(
    form: OutputOption = Output.TABLE,
    node: NodeOption = None,
    lab: LabOption = None,
    address: ControlPlaneOption = None,
) -> None:
    """Control plane, agents, workloads, programs, counters and maps; what is not as it should be, by name.

    Exit code 0: all is well; 1: something is not; 3: nothing can be reached; 4: only a part can.
    """
    require_root("look at nodes")
    machine = discover()
    nodes = choose(machine, node or (), lab)
    plane = _plane(control_plane(address, machine, lab))
    found = records.document(plane, [_facts(one) for one in nodes])
    if form is Output.JSON:
        output.write_json(found)
    else:
        _print(found)
    code = records.exit_code(found)
    if code != OK:
        raise typer.Exit(code)


def _print(found: Mapping[str, Any]) -> None:
    console = output.console()
    for label, text in records.lines(found):
        if text:
            console.print(f"{label:<14} {text}", markup=False)
        else:
            console.print(label, style="bold", markup=False)
    console.print()
    if found["healthy"]:
        console.print("all is well", style="green")
    for problem in found["problems"]:
        console.print(f"problem: {problem}", style="red", markup=False)


def _plane(address: str) -> records.ControlPlane:
    try:
        ready = ask.control_plane(address, "/ready")
        version = ask.control_plane(address, "/version")
        objects = verdicts.items(ask.control_plane(address, "/api/v1/config/status"))
        connections = ask.control_plane(address, "/debug/connections")
    except CliError as error:
        return records.ControlPlane(address, error=error.why or error.what)
    return records.ControlPlane(
        address,
        ready=ready == "ready",
        version=str(version.get("version", "")) if isinstance(version, dict) else "",
        objects=objects,
        clients=connections.get("clients", ()) if isinstance(connections, dict) else (),
    )


def _facts(node: Node) -> records.NodeFacts:
    """Everything that can be found out about a node; what cannot is told as its trouble."""
    answered = ask.agent(node.run / "agent.sock")
    agent = answered if isinstance(answered, dict) else _file(node.run / "status.json")
    home = _file(node.run / "home.json")
    trouble = "" if node.pinned else f"nothing is pinned at {node.bpffs}: no agent has set this node up"
    programs: list[str] = []
    links: dict[str, int] = {}
    counters: dict[str, int] = {}
    pressure: list[Any] = []
    registered = [workload for _, workload in workloads([node])]
    if node.pinned:
        try:
            programs = [row.name for row in programs_of(node)]
            keys = {pin_name(workload.key): workload.key for workload in registered}
            for row in links_of(node, registered):
                key = keys.get(pin_name(row.owner), row.owner)
                links[key] = links.get(key, 0) + row.attached
            with pins.maps(node, map_names(node)) as maps:
                counters = counters_of(maps)
                pressure = pressure_of(maps)
        except (CliError, AgentError) as error:
            trouble = str(error)
    expected = len(SLOTS) if _all_links(links, registered) else 0
    return records.NodeFacts(
        name=node.name,
        lab=node.lab,
        agent=agent,
        answers=isinstance(answered, dict),
        home=home,
        home_runs=_runs(home),
        registered=[workload.key for workload in registered],
        programs=programs,
        links=links,
        slots=expected,
        counters={label: counters[label] for label in COUNTER_LABELS.values() if label in counters},
        pressure=pressure,
        pinned=node.pinned,
        trouble=trouble,
    )


def _all_links(links: Mapping[str, int], registered: list[Any]) -> bool:
    """Whether attachments are links here: before Linux 6.6 those at interfaces are filters, which no pin remembers."""
    in_cgroups = sum(slot.place == "cgroup" for slot in SLOTS)
    return any(links.get(workload.key, 0) > in_cgroups for workload in registered)


def _file(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _runs(home: Mapping[str, Any] | None) -> bool:
    """Whether home's process lives and has written its file lately."""
    if home is None or time.time() - float(home.get("time", 0)) > _FRESH_S:
        return False
    try:
        os.kill(int(home.get("pid", 0)) or -1, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
