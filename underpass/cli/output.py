"""Writing to standard output: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

#: Of every JSON document whose shape is not fixed elsewhere.
API_VERSION: Final = "underpass.io/v1"


class Output(StrEnum):
    """The value of -o."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("-o", "--output", help="A table for people, or JSON.")]


def write_json(document: Any, *, lines: bool = False) -> None:
    """One JSON document; `lines`: on a single line, for streams."""
    print(json.dumps(document, indent=None if lines else 2, ensure_ascii=False), flush=lines)


def console() -> Any:
    """A rich console on standard output. It obeys NO_COLOR, and cuts nothing when nobody watches."""
    from rich.console import Console

    found = Console(highlight=False, soft_wrap=True)
    if not found.is_terminal:
        found.width = max(found.width, 240)
    return found


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Iterable[str] = ()) -> Any:
    """A plain table; `right`: names of the columns that hold numbers. Cells are text, never markup."""
    from rich.table import Table
    from rich.text import Text

    numbers = set(right)
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return made


_STYLES: Final = {
    "ok": "green", "synced": "green", "enrolled": "green", "accepted": "green", "kernel": "green", "running": "green",
    "stale": "yellow", "syncing": "yellow", "waiting": "yellow", "shadowed": "yellow", "waypoint": "yellow",
    "warning": "yellow", "nack": "bold red", "failed": "bold red", "rejected": "bold red", "unsupported": "bold red",
    "error": "bold red", "missing": "bold red", "ended": "bold red", "unreachable": "bold red",
}  # fmt: skip


def word(state: str) -> Any:
    """A state in its colour."""
    from rich.text import Text

    return Text(state, style=_STYLES.get(state.lower(), ""))


def is_terminal() -> bool:
    """Whether a person watches standard output."""
    return sys.stdout.isatty()
