"""`underpass lab`: up, apply, exec, status, down; and `underpass demo`."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from underpass.lab import follow, lab, status
from underpass.lab.addresses import DEFAULT_NAME
from underpass.lab.cli_files import read_all, read_file
from underpass.lab.errors import LabError
from underpass.lab.model import LinkOptions, Options
from underpass.lab.state import all_names, require

app = typer.Typer(help="A mesh on one machine: Kubernetes YAML as local workloads.", no_args_is_help=True)

NameOption = Annotated[str, typer.Option("--name", envvar="UNDERPASS_LAB", help="Which lab, if there are several.")]
OutputOption = Annotated[str, typer.Option("-o", "--output", help="table or json.")]


def fail(error: LabError) -> typer.Exit:
    """Print what, why and what next to standard error; returns the exit to raise."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"error: {error.what}", style="bold red", markup=False)
    if error.why:
        console.print(f"  why:  {error.why}", markup=False)
    if error.next_step:
        console.print(f"  next: {error.next_step}", markup=False)
    return typer.Exit(error.exit_code)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _share(value: float, name: str) -> float:
    if not 0 <= value <= 100:
        raise LabError(f"--{name} {value}", "it is a percentage", "give a number from 0 to 100", 2)
    return value / 100


@app.command()
def up(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Kubernetes and Istio YAML; - for stdin.")],
    nodes: Annotated[int, typer.Option(help="Simulated nodes, each with its own bridge, agent and home.")] = 1,
    lab_file: Annotated[str | None, typer.Option("--lab-file", help="Which command an image stands for.")] = None,
    place: Annotated[list[str] | None, typer.Option(metavar="WORKLOAD=NODE", help="Put a workload on a node.")] = None,
    loss: Annotated[float, typer.Option(help="Percent of TCP frames lost between the nodes.")] = 0.0,
    dup: Annotated[float, typer.Option(help="Percent of TCP frames doubled.")] = 0.0,
    late: Annotated[float, typer.Option(help="Percent of TCP frames that arrive behind later ones.")] = 0.0,
    dual_stack: Annotated[bool, typer.Option("--dual-stack", help="IPv6 beside IPv4.")] = False,
    no_mesh: Annotated[bool, typer.Option("--no-mesh", help="Workloads only: no control plane, agent, home.")] = False,
    waypoint: Annotated[
        bool, typer.Option("--waypoint", help="An Envoy on each node for what the kernel leaves.")
    ] = False,
    name: NameOption = DEFAULT_NAME,
) -> None:
    """Bring the workloads of Kubernetes YAML up on this machine, under the mesh."""
    try:
        link = LinkOptions(_share(loss, "loss"), _share(dup, "dup"), _share(late, "late"))
        if link.lossy and nodes < 2:
            raise LabError("there is no link to make lossy", "the lab has one node", "give --nodes 2", 2)
        placement = {}
        for item in place or []:
            workload, equals, node = item.partition("=")
            if not equals or not workload or not node:
                raise LabError(f"--place {item}", "it is not WORKLOAD=NODE", "for example --place web=node-2", 2)
            placement[workload] = node
        options = Options(name, nodes, dual_stack, not no_mesh, link, placement, waypoint)
        lab.up(read_all(files), read_file(lab_file) if lab_file else None, options, _say)
    except LabError as error:
        raise fail(error) from None
    except lab.Interrupted as signal_name:
        _say(f"interrupted by {signal_name}: everything was taken down again")
        raise typer.Exit(143) from None
    except KeyboardInterrupt:
        _say("interrupted: everything was taken down again")
        raise typer.Exit(130) from None


@app.command(name="exec", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def execute(
    context: typer.Context,
    workload: Annotated[str, typer.Argument(metavar="WORKLOAD", help="NAME or NAMESPACE/NAME.")],
    name: NameOption = DEFAULT_NAME,
) -> None:
    """Run a command as if inside WORKLOAD: its network, its cgroup, its hosts, its environment."""
    try:
        command = context.args[1:] if context.args[:1] == ["--"] else context.args
        if not command:
            raise LabError("no command", "lab exec needs one", f"underpass lab exec {workload} -- CMD", 2)
        argv, env = lab.exec_command(name, workload, command)
    except LabError as error:
        raise fail(error) from None
    sys.stdout.flush()
    os.execvpe(argv[0], argv, env)


@app.command()
def down(
    name: NameOption = DEFAULT_NAME,
    everything: Annotated[bool, typer.Option("--all", help="All labs of this machine.")] = False,
) -> None:
    """Take the lab down. Leaves nothing behind."""
    try:
        for each in all_names() if everything else [name]:
            lab.down(each)
    except LabError as error:
        raise fail(error) from None


@app.command(name="status")
def show(output: OutputOption = "table", name: NameOption = DEFAULT_NAME) -> None:
    """Show what runs. Exit code 1 when something that should run does not."""
    try:
        if output not in ("table", "json"):
            raise LabError(f"-o {output}", "the outputs are table and json", "underpass lab status -o json", 2)
        found = status.describe(require(name))
    except LabError as error:
        raise fail(error) from None
    if output == "json":
        typer.echo(json.dumps(found, indent=2))
    else:
        console = Console(highlight=False, soft_wrap=True)
        if not console.is_terminal:
            console.width = max(console.width, 200)  # tables go on to grep and awk: nothing may be cut
        for program in found["programs"]:
            mark = "running" if program["running"] else "ENDED"
            console.print(f"{program['role']:<20} {mark}  pid {program['pid']}  {program['log']}", markup=False)
        table = Table("NAMESPACE", "WORKLOAD", "POD", "NODE", "IP", "PORTS", "STATE", box=None, pad_edge=False)
        for item in found["workloads"]:
            ports, state = ",".join(map(str, item["ports"])) or "-", "running" if item["running"] else "ENDED"
            table.add_row(
                item["namespace"], item["workload"], item["pod"], item["node"], ",".join(item["ips"]), ports, state
            )
        console.print(table)
    if not found["healthy"]:
        raise typer.Exit(1)


@app.command()
def apply(
    files: Annotated[list[str], typer.Option("-f", "--filename", metavar="FILE", help="YAML; - for stdin.")],
    name: NameOption = DEFAULT_NAME,
) -> None:
    """Apply YAML to the running lab, as `kubectl apply` does; waits until the nodes follow it."""
    try:
        sources = read_all(files)
        applied = lab.apply(name, sources, _say)
        rejected = follow.report_verdicts(applied.state, [source.path for source in sources], typer.echo)
        refused = follow.wait_applied(applied.state)
    except LabError as error:
        raise fail(error) from None
    for line in refused:
        _say(f"refused by {line}")
    if rejected or refused:
        raise typer.Exit(1)


def demo() -> None:
    """The sample shop under the mesh: routes change while one connection is used; fails when anything deviates."""
    from underpass.lab.demo import main  # loads the kernel's library, which no other command of the lab needs

    try:
        code = main()
    except LabError as error:
        raise fail(error) from None
    except lab.Interrupted:
        raise typer.Exit(143) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    raise typer.Exit(code)


app.command()(demo)
