"""`underpass config`: what the control plane says of each object that somebody wrote."""

from __future__ import annotations

from typing import Annotated

import typer

from underpass.cli import ask, output
from underpass.cli.errors import FAILED
from underpass.cli.output import API_VERSION, Output, OutputOption
from underpass.cli.records import verdicts as records
from underpass.cli.targets import ControlPlaneOption, LabOption, control_plane, discover_control_plane

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)


@app.callback()
def _config() -> None:
    """What the control plane says of each object."""


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
