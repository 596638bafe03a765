"""Merging one Envoy message into another, as EnvoyFilters mean it.  Pure.

As protobuf merges, but what is packed is merged inside when it is of one type, and times and wrapped numbers are
replaced: 1 s merged into 5 s and 3 ns is 1 s.
"""

from __future__ import annotations

from typing import Any

from underpass.api import envoy

_WHOLE = "google.protobuf."


def merge(into: Any, other: Any, *, replace_lists: bool = False) -> None:
    """Merge ``other`` into ``into``, two messages of one type; ``replace_lists``: or else lists are appended to."""
    if into.DESCRIPTOR.full_name == "google.protobuf.Any":
        _any(into, other, replace_lists=replace_lists)
        return
    for field, value in other.ListFields():
        kind = field.message_type
        mine = getattr(into, field.name)
        if kind is not None and kind.GetOptions().map_entry:
            inner = kind.fields_by_name["value"].message_type
            for key in sorted(value):
                if inner is None:
                    mine[key] = value[key]
                elif key in mine:
                    merge(mine[key], value[key], replace_lists=replace_lists)
                else:
                    mine[key].CopyFrom(value[key])
        elif field.is_repeated:
            if replace_lists:
                del mine[:]
            mine.extend(value)
        elif kind is None:
            setattr(into, field.name, value)
        elif not into.HasField(field.name) or _is_whole(kind.full_name):
            mine.CopyFrom(value)
        else:
            merge(mine, value, replace_lists=replace_lists)


def _is_whole(name: str) -> bool:
    return name.startswith(_WHOLE) and name not in ("google.protobuf.Any", "google.protobuf.Struct")


def _any(into: Any, other: Any, *, replace_lists: bool) -> None:
    if into.type_url != other.type_url:
        into.CopyFrom(other)
        return
    mine, theirs = envoy.unpack_any(into), envoy.unpack_any(other)
    merge(mine, theirs, replace_lists=replace_lists)
    into.CopyFrom(envoy.pack_any(mine))
