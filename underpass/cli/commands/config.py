"""`underpass config`: what the control plane says of each object, what was in force before, and the way back."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from underpass.cli import ask, output
from underpass.cli.commands import objects
from underpass.cli.errors import FAILED
from underpass.cli.output import API_VERSION, Output, OutputOption
from underpass.cli.records import history as revisions
from underpass.cli.records import verdicts as records
from underpass.cli.targets import ControlPlaneOption, LabOption, control_plane, discover_control_plane

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)


@app.callback()
def _config() -> None:
    """What the control plane says of each object; objects in the store of several replicas."""


@app.command()
def status(
    form: OutputOption = Output.TABLE,
    kind: Annotated[list[str] | None, typer.Option("--kind", "-k", help="Only this kind (repeatable).")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Only this namespace.")] = None,
    problems: Annotated[bool, typer.Option("--problems", help="Only what is not simply accepted.")] = False,
    address: ControlPlaneOption = None,
    lab: LabOption = None,
) -> None:
    """The state of each object: accepted, shadowed or rejected, with the reason, file and line.

    Exit code 1 when one of those shown is not in force as written.
    """
    where = control_plane(address, discover_control_plane(), lab)
    found = records.items(ask.control_plane(where, "/api/v1/config/status"))
    shown = records.select(found, kind or (), namespace, bad=problems)
    if form is Output.JSON:
        output.write_json(
            {"apiVersion": API_VERSION, "kind": "ConfigStatus", "counts": records.counts(shown), "items": shown}
        )
    else:
        rows = [(output.word(state), *rest) for state, *rest in map(records.cells, shown)]
        output.console().print(output.table(records.COLUMNS, rows))
    if any(map(records.faulty, shown)):
        raise typer.Exit(FAILED)


_API = "/api/v1/config"

for _command in (objects.apply, objects.delete, objects.get, objects.replicas):
    app.command()(_command)


@app.command()
def history(
    form: OutputOption = Output.TABLE,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many, newest first.")] = 20,
    address: ControlPlaneOption = None,
    lab: LabOption = None,
) -> None:
    """Configurations that were in force, newest first: id, time, cause, and what each of them changed."""
    where = control_plane(address, discover_control_plane(), lab)
    found = revisions.page(ask.control_plane(where, f"{_API}/history"), "revisions")
    listed, back = found["revisions"], str(found.get("rolledBackTo", ""))
    if form is Output.JSON:
        shown = listed[:limit]
        output.write_json(
            {"apiVersion": API_VERSION, "kind": "ConfigHistory", "rolledBackTo": back, "revisions": shown}
        )
        return
    rows = [revisions.revision_cells(item, in_force=n == 0) for n, item in enumerate(listed[:limit])]
    console = output.console()
    console.print(output.table(revisions.REVISION_COLUMNS, rows, right=["OBJECTS"]))
    if len(listed) > limit:
        console.print(f"{len(listed) - limit} older ones: --limit {len(listed)}")
    if back:
        console.print(f"rolled back to {back}: the directory's next change takes over again")


@app.command()
def diff(
    old: Annotated[str, typer.Argument(metavar="FROM", help="Id of a revision, or the beginning of one.")],
    new: Annotated[str | None, typer.Argument(metavar="[TO]", help="Another one (the one in force).")] = None,
    form: OutputOption = Output.TABLE,
    address: ControlPlaneOption = None,
    lab: LabOption = None,
) -> None:
    """What leads from one configuration to another: objects, and the fields that differ.

    Exit code 1 when they differ, as diff(1) does.
    """
    where = control_plane(address, discover_control_plane(), lab)
    query = urlencode({"from": old} | ({} if new is None else {"to": new}))
    found = revisions.page(ask.control_plane(where, f"{_API}/diff?{query}"), "changes")
    changes: list[dict[str, Any]] = found["changes"]
    if form is Output.JSON:
        output.write_json({"apiVersion": API_VERSION, "kind": "ConfigDiff", **found})
    else:
        console = output.console()
        console.print(f"{found['from']} -> {found['to']}: {len(changes)} objects differ", markup=False)
        for line in revisions.change_lines(changes):
            console.print(line, markup=False, style=_DIFF_STYLES.get(line.lstrip()[:1]))
    if changes:
        raise typer.Exit(FAILED)


#: Writing back a large configuration takes a while, seconds.
_ROLLBACK = 30.0
_DIFF_STYLES = {"-": "red", "+": "green"}


@app.command()
def rollback(
    revision: Annotated[str, typer.Argument(metavar="REVISION", help="Id of a revision, or the beginning of one.")],
    form: OutputOption = Output.TABLE,
    address: ControlPlaneOption = None,
    lab: LabOption = None,
) -> None:
    """Put an earlier configuration in force, until the control plane's directory changes again.

    With a store the earlier objects are written to it, for all replicas.
    """
    where = control_plane(address, discover_control_plane(), lab)
    path = f"{_API}/rollback?{urlencode({'to': revision})}"
    found = ask.control_plane(where, path, timeout=_ROLLBACK, method="POST")
    if not isinstance(found, dict) or "inForce" not in found:
        raise revisions.not_understood("the answer does not say what is in force")
    if form is Output.JSON:
        output.write_json({"apiVersion": API_VERSION, "kind": "ConfigRollback", **found})
    else:
        output.console().print(f"in force: {found['inForce']}, until {found.get('until', '')}", markup=False)
