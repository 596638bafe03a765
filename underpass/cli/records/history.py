"""Revisions of the configuration and what differs between two, as the control plane's history API gives them. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from underpass.cli.errors import CliError
from underpass.cli.records import verdicts

Revision = Mapping[str, Any]
Change = Mapping[str, Any]

REVISION_COLUMNS: Final = ("", "REVISION", "AT", "OBJECTS", "CAUSE", "CHANGES")
#: Changes of one revision that a table names; the rest are counted. JSON has all of them.
_NAMED: Final = 6
_ABSENT: Final = object()


def page(document: Any, *lists: str) -> dict[str, Any]:
    """A document of the API that holds these lists. Raises CliError for something else."""
    if not isinstance(document, dict) or not all(isinstance(document.get(name), list) for name in lists):
        raise not_understood(f"the answer has no {' and '.join(lists)}")
    return document


def not_understood(why: str) -> CliError:
    """The error for an answer of another shape."""
    return CliError(
        "the control plane's history is not understood",
        why,
        "use an underpass of the control plane's version: underpass version",
    )


def revision_cells(revision: Revision, *, in_force: bool) -> tuple[str, str, str, str, str, str]:
    """A row of the history; ``*`` marks the revision in force."""
    changes = [f"{change['change']} {verdicts.identity(change)}" for change in revision["changes"]]
    more = len(changes) - _NAMED
    if more > 0:
        changes[_NAMED:] = [f"and {more} more"]
    return (
        "*" if in_force else "",
        str(revision["id"]),
        when(revision["at"]),
        str(revision["objects"]),
        str(revision["cause"]),
        "\n".join(changes) or "-",
    )


def when(at: float) -> str:
    """Seconds since the epoch as UTC, to the second."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def change_lines(changes: Iterable[Change]) -> Iterator[str]:
    """Each changed object, with the fields of its labels, annotations and spec that differ, by path."""
    for change in changes:
        yield f"{change['change']} {verdicts.identity(change)}"
        before, after = change.get("before"), change.get("after")
        if before is None or after is None:
            continue  # all of it came, or went
        for path, old, new in differences(before, after):
            if old is not _ABSENT:
                yield f"  - {path}: {_value(old)}"
            if new is not _ABSENT:
                yield f"  + {path}: {_value(new)}"


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, old value, new value) of each leaf that differs. What one side lacks is told as a whole."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            inner = f"{path}.{key}" if path else str(key)
            yield from differences(old.get(key, _ABSENT), new.get(key, _ABSENT), inner)
    elif isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            yield from differences(
                old[index] if index < len(old) else _ABSENT,
                new[index] if index < len(new) else _ABSENT,
                f"{path}[{index}]",
            )
    elif old is _ABSENT or new is _ABSENT or old != new:
        yield path, old, new


def _value(value: Any) -> str:
    """A value on one line, as compact JSON; control characters are escaped by it."""
    return json.dumps(value, ensure_ascii=True, sort_keys=True)
