"""`underpass explain`: what happens to a request, decided by libcore.so over the live maps."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from nodeagent.admin import explain as agent
from underpass.cli import output
from underpass.cli.errors import USAGE, CliError
from underpass.cli.output import Output, OutputOption
from underpass.cli.records import explain as records
from underpass.cli.targets import LabOption, NodeOption, find_workload, pinned_nodes, workloads

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)

_COLUMNS: Final = ("", "MATCH", "DESTINATION", "WHERE", "SOURCE")


@app.callback()
def _explain() -> None:
    """What happens to a request, and which line of YAML says so."""


@app.command()
def request(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="GET, POST ...")],
    url: Annotated[str, typer.Argument(metavar="URL", help="http://HOST[:PORT]/PATH; a service's name or address.")],
    workload: Annotated[str, typer.Option("--from", metavar="WORKLOAD", help="Who asks: NAME or NAMESPACE/NAME.")],
    header: Annotated[
        list[str] | None, typer.Option("-H", "--header", metavar="NAME:VALUE", help="A header (repeatable).")
    ] = None,
    form: OutputOption = Output.TABLE,
    node: NodeOption = None,
    lab: LabOption = None,
) -> None:
    """Explain a request: route, destinations, endpoints, and the object, rule and line that say so.

    The core that the kernel runs decides, natively compiled, over the maps as they are now. Nothing is sent.
    """
    headers = records.parse_headers(header or ())
    records.check_request(method, url)
    nodes = pinned_nodes(node, lab)
    where, who = find_workload(workload, workloads(nodes))
    try:
        found = agent.request(where.bpffs, who.key, method, url, headers)
    except agent.ExplainError as error:
        raise CliError(error.what, error.why, error.next_step, USAGE) from error
    question = records.Question(where.name, who.namespace, who.name, who.owner, method, url, headers)
    if form is Output.JSON:
        output.write_json(records.document(question, found))
        return
    console = output.console()
    for label, text in records.lines(question, found):
        console.print(f"{label:<13}{text}", markup=False)
    if found.considered:
        console.print()
        console.print("routes of this virtual host, the first that matches is taken (*):", markup=False)
        console.print(output.table(_COLUMNS, records.considered_rows(found.considered)))
