"""`underpass analyze`: YAML files judged without any process running."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from underpass.cli import output
from underpass.cli.errors import FAILED, USAGE, CliError
from underpass.cli.output import Output, OutputOption
from underpass.cli.records import analysis_text as text
from underpass.cli.records.analysis import ERROR, Problem, Report, judge

_ENDINGS: Final = (".yaml", ".yml", ".json")
_STDIN: Final = "-"
#: As large a file as the control plane reads.
_MAX: Final = 64 * 1024 * 1024


def analyze(
    files: Annotated[list[str], typer.Argument(metavar="FILE|DIR...", help="YAML; a directory's files; - for stdin.")],
    form: OutputOption = Output.TABLE,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings are failures, too.")] = False,
    domain: Annotated[str, typer.Option("--domain", help="DNS domain of the mesh.")] = "cluster.local",
) -> None:
    """Judge YAML files without any process: what is refused, with file and line, and what runs where.

    Where a rule runs: kernel; home (the kernel leaves its requests to the home peer, and underpass-home does what it
    says); waypoint (it needs an Envoy as home peer, else its requests get a 503 that says why); unsupported; gateway
    (only the Envoys of gateways have it). Exit code 1 when something is refused.
    """
    texts, unreadable = read(files)
    report = judge(texts, domain=domain)
    if unreadable:
        every = tuple(sorted((*unreadable, *report.problems), key=lambda problem: (problem.file, problem.line)))
        names = tuple(sorted({*report.files, *(problem.file for problem in unreadable)}))
        report = Report(names, report.objects, every, report.assumed, report.views)
    if form is Output.JSON:
        output.write_json(text.document(report, strict=strict))
    else:
        _print(report)
    if report.failed(strict=strict):
        raise typer.Exit(FAILED)


def read(paths: list[str]) -> tuple[dict[str, str], list[Problem]]:
    """Texts by name, and what cannot be read as text. Raises CliError for a path that is not there."""
    texts: dict[str, str] = {}
    unreadable: list[Problem] = []
    for path in paths:
        for name in _expand(path):
            try:
                data = sys.stdin.buffer.read(_MAX + 1) if name == _STDIN else _bytes(name)
            except OSError as error:
                raise CliError(f"cannot read {name}", error.strerror or "", "name an existing file", USAGE) from error
            if len(data) > _MAX:
                unreadable.append(_unreadable(name, 1, "too-large", f"more than {_MAX} bytes: not read"))
                continue
            try:
                texts[name] = data.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                line = data.count(b"\n", 0, error.start) + 1
                unreadable.append(_unreadable(name, line, "not-utf8", f"byte {error.start} is not UTF-8"))
    return texts, unreadable


def _bytes(name: str) -> bytes:
    with open(name, "rb") as stream:
        return stream.read(_MAX + 1)


def _unreadable(name: str, line: int, code: str, message: str) -> Problem:
    return Problem(ERROR, code, name, line, "", "", "", f"rejected: {message}")


def _expand(path: str) -> list[str]:
    """A directory stands for the YAML below it; hidden names are left out."""
    if path == _STDIN or not Path(path).is_dir():
        return [path]
    found = []
    for directory, below, names in os.walk(path):
        below[:] = sorted(name for name in below if not name.startswith("."))
        found += [os.path.join(directory, n) for n in sorted(names) if n.endswith(_ENDINGS) and not n.startswith(".")]
    if not found:
        raise CliError(f"no YAML in {path}", f"no file below it ends in {', '.join(_ENDINGS)}", "name another", USAGE)
    return found


def _print(report: Report) -> None:
    console = output.console()
    for item in report.objects:
        rows = [(place, output.word(where), rest) for place, where, rest in text.rule_lines(item)]
        if rows or item.state != "accepted":
            console.print(text.title(item), style="bold", markup=False)
        if rows:
            table = output.table(("  RULE", "WHERE", "WHAT"), [(f"  {rule}", *rest) for rule, *rest in rows])
            table.show_header = False
            console.print(table)
    if report.assumed:
        console.print()
        console.print(f"taken to exist, because no file defines them: {', '.join(report.assumed)}", markup=False)
    if report.problems:
        console.print()
    for problem in report.problems:
        console.print(output.word(problem.severity), text.problem_text(problem), markup=False)
    console.print()
    console.print(text.summary(report), markup=False)
