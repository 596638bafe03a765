"""`underpass routes`: who decided how many requests of each route, from the pinned maps alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from nodeagent.abi.records import Config, HomeStat
from nodeagent.telemetry.read import punts_of, routes_of
from underpass.cli import output, pins
from underpass.cli.output import Output, OutputOption
from underpass.cli.records import routes as records
from underpass.cli.targets import LabOption, Node, NodeOption, pinned_nodes

_MAPS = ("names", "route_stats", "punt_stats", "home_stats", "config")
_PERIOD = 1.0


def read(node: Node) -> list[records.RouteRow]:
    """The rows of one node."""
    with pins.maps(node, _MAPS) as maps:
        config = maps["config"].lookup(bytes(4))
        served = maps["home_stats"].lookup(bytes(4))
        return records.rows(
            routes_of(maps),
            punts_of(maps).get(0, {}),
            HomeStat.unpack(served).requests if served is not None else 0,
            envoy=config is not None and Config.unpack(config).home_kind == 1,
        )


def routes(
    form: OutputOption = Output.TABLE,
    node: NodeOption = None,
    lab: LabOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again every second; JSON: a line each.")] = False,
) -> None:
    """Each route: who decided how many of its requests."""
    nodes = pinned_nodes(node, lab)

    def look() -> list[records.RouteRow]:
        return records.merge(read(one) for one in nodes)

    if form is Output.JSON:
        for found in _looks(look, watch):
            output.write_json(records.document(found), lines=watch)
    elif watch and output.is_terminal():
        from rich.live import Live

        console = output.console()
        with Live(console=console, auto_refresh=False, screen=True) as live:
            for found in _looks(look, watch):
                live.update(_table(found), refresh=True)
    else:
        console = output.console()
        for found in _looks(look, watch):
            console.print(_table(found))


def _looks(look: Any, watch: bool) -> Iterator[list[records.RouteRow]]:
    yield look()
    while watch:
        time.sleep(_PERIOD)
        yield look()


def _table(found: list[records.RouteRow]) -> Any:
    return output.table(records.COLUMNS, map(records.cells, found), right=records.NUMBERS)
