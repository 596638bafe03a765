"""`underpass features`: what this kernel can do, found out by trying, and what follows for the data path."""

from __future__ import annotations

import platform
from typing import Annotated

import typer

from nodeagent.bpf.kernel import LinuxKernel
from nodeagent.node import probes
from nodeagent.node.features import Need, Report, State
from underpass.cli import output
from underpass.cli.errors import FAILED
from underpass.cli.output import API_VERSION, Output, OutputOption
from underpass.cli.targets import require_root


def features(
    form: OutputOption = Output.TABLE,
    as_json: Annotated[bool, typer.Option("--json", help="The same as -o json.")] = False,
) -> None:
    """What this kernel can do, what follows for the data path, and what to do about what is missing.

    Small programs are loaded, attached aside and run; nothing of what runs here is touched. Exit code 0: the data path
    can run; 1: it cannot.
    """
    require_root("try what the kernel can do")
    report = probes.survey(LinuxKernel())
    if as_json or form is Output.JSON:
        output.write_json(
            {"apiVersion": API_VERSION, "kind": "Features", "kernel": platform.release(), **report.document()}
        )
    else:
        _print(report)
    if not report.can_run:
        raise typer.Exit(FAILED)


def _print(report: Report) -> None:
    console = output.console()
    rows = []
    for row in report.rows:
        state = output.word("MISSING" if row.fatal and row.answer.state is State.NO else row.answer.state.value)
        rows.append((row.feature.key, row.feature.need.value, state, row.answer.detail or "-", row.means))
    console.print(output.table(("FEATURE", "NEED", "HERE", "DETAIL", "FOLLOWS"), rows))
    console.print()
    for row in report.rows:
        # A note that says no is usually how it should be; only what the data path would go by is worth a line.
        if row.remedy and (row.fatal or row.feature.need is Need.CHOICE):
            console.print(f"{row.feature.key}: next: {row.remedy}", markup=False)
    console.print(
        f"kernel {platform.release()}: attaches by {report.attachment}, loads {report.workload_object}", markup=False
    )
    if report.can_run:
        console.print("the data path can run", style="green")
    else:
        missing = ", ".join(row.feature.key for row in report.missing)
        console.print(f"the data path cannot run: {missing}", style="bold red", markup=False)
