"""A group of commands that imports a command's module only when that command is called.

Help lists all of them from the table alone, so that `underpass --help` costs no more than typer itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

Table = Mapping[str, tuple[str, str, str]]
"""Command name -> (module, attribute, help). The attribute is a typer application or the function of one command."""


class LazyGroup(TyperGroup):
    """Subclasses set `table`; its order is the order of the help."""

    table: ClassVar[Table] = {}

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, (_, _, text) in self.table.items():
            self.commands[name] = TyperCommand(name=name, help=text)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Load the command that is called; anything else is answered from the table."""
        if args and args[0] in self.table:
            self.commands[args[0]] = load(args[0], self.table[args[0]])
        return super().resolve_command(ctx, args)


def load(name: str, entry: tuple[str, str, str]) -> Any:
    """The real command of a table's entry."""
    module, attribute, text = entry
    found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name, help=text)(found)
        found = single
    command: Any = typer.main.get_command(found)
    command.name = name
    return command
