"""One patch of an EnvoyFilter, and what it does to a list.  Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from controlplane.translate.patch_merge import merge


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """``kind``, ``operation``, ``context``: the schema's words; ``match`` is Istio's message, ``value`` Envoy's."""

    kind: str
    operation: str
    context: str
    match: Any
    value: Any

    @property
    def merges(self) -> bool:
        """Whether the value is merged into what is there."""
        return self.operation in ("MERGE", "MERGE_AND_REPLACE_LIST")

    def merge_into(self, target: Any) -> None:
        """Merge the value; a resource's name is how clients ask for it, and stays."""
        name = getattr(target, "name", None)
        merge(target, self.value, replace_lists=self.operation == "MERGE_AND_REPLACE_LIST")
        if name:
            target.name = name


def edit(items: Any, patch: Patch, fits: Callable[[Any], bool], *, named: bool, terminal: bool = False) -> None:
    """Carry a patch out on a repeated field.

    ``fits`` says which items are meant; ``named``: the patch names one, else an insertion is at the beginning or the
    end.  ``terminal``: the last item has to stay the last, as a router or a proxy has to (Istio lets a patch append
    behind it, and an Envoy refuses that).
    """
    if patch.merges:
        for item in items:
            if fits(item):
                patch.merge_into(item)
        return
    listed = [_copy(item) for item in items]
    if patch.operation == "REMOVE":
        listed = [item for item in listed if not fits(item)]
    elif patch.operation == "REPLACE":
        listed = [_copy(patch.value) if fits(item) else item for item in listed]
    else:
        where = _position(listed, patch, fits, named=named, terminal=terminal)
        if where is None:
            return
        listed.insert(where, _copy(patch.value))
    del items[:]
    items.extend(listed)


def _position(
    listed: list[Any], patch: Patch, fits: Callable[[Any], bool], *, named: bool, terminal: bool
) -> int | None:
    end = len(listed) - 1 if terminal and listed else len(listed)
    if patch.operation == "INSERT_FIRST":
        return 0
    if patch.operation == "ADD":
        return end
    before = patch.operation == "INSERT_BEFORE"
    if not named:
        return 0 if before else end
    found = next((index for index, item in enumerate(listed) if fits(item)), None)
    if found is None:
        return None
    return found if before else min(found + 1, end) if terminal else found + 1


def _copy(message: Any) -> Any:
    out = type(message)()
    out.CopyFrom(message)
    return out
