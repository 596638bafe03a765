"""The control plane's word on each object, as `/api/v1/config/status` gives it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from underpass.cli.errors import CliError

Item = Mapping[str, Any]
STATES: Final = ("accepted", "shadowed", "rejected")


def items(page: Any) -> list[dict[str, Any]]:
    """The entries of the page. Raises CliError for something else."""
    if not isinstance(page, list) or not all(isinstance(item, dict) and "state" in item for item in page):
        raise CliError(
            "the control plane's configuration status is not understood",
            "it is not a list of objects",
            "use an underpass of the control plane's version: underpass version",
        )
    return page


def identity(item: Item) -> str:
    """`VirtualService shop/catalog`; a document without identity is called by its place."""
    kind, namespace, name = (str(item.get(part, "")) for part in ("kind", "namespace", "name"))
    if not kind:
        return "document"
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


def place(item: Item) -> str:
    """`file.yaml:12`."""
    return f"{item.get('file', '')}:{item.get('line', 0)}"


def counts(found: Iterable[Item]) -> dict[str, int]:
    """How many objects are in each state."""
    counted = Counter(str(item["state"]) for item in found)
    return {state: counted.get(state, 0) for state in STATES}


def faulty(item: Item) -> bool:
    """Whether it is not in force as written, or some client refuses what it yields."""
    return item["state"] != "accepted" or bool(item.get("refusedBy"))


def remarks(item: Item) -> list[str]:
    """What there is to say about an object, a line each."""
    lines = []
    if item.get("reason"):
        kept = "; the last good version stays in force" if item.get("lastGood") and item["state"] == "rejected" else ""
        lines.append(f"{item['reason']}{kept}")
    lines += [f"line {note['line']}: {note['message']}" for note in item.get("notes", ())]
    for refusal in item.get("refusedBy", ()):
        lines.append(f"refused by {refusal['node']} ({refusal['type']}): {refusal['reason']}")
    return lines


COLUMNS: Final = ("STATE", "OBJECT", "WHERE", "REMARKS")


def cells(item: Item) -> tuple[str, str, str, str]:
    """A row; a state that is fine but for a client's refusal is shown as NACK."""
    state = "NACK" if item["state"] == "accepted" and item.get("refusedBy") else str(item["state"])
    return state, identity(item), place(item), "\n".join(remarks(item)) or "-"


def select(found: Sequence[dict[str, Any]], kinds: Sequence[str], namespace: str | None, *, bad: bool) -> list[Any]:
    """The objects that a person asks for."""
    wanted = {kind.lower() for kind in kinds}
    return [
        item
        for item in found
        if (not wanted or str(item.get("kind", "")).lower() in wanted)
        and (namespace is None or item.get("namespace") == namespace)
        and (not bad or faulty(item) or item.get("notes"))
    ]
