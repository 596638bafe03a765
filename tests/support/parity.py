"""Two protobuf messages compared field by field, down through `Any`s, with what may differ listed as data.

Nothing is normalised away: presence counts (an empty message is not an absent one), lists are ordered, and what is
inside an `Any` is compared as the message that it is.  The one exception is `core.v3.Metadata`, a bag of maps: there an
empty bag is no bag.  A difference is allowed only by an entry of a table of `Listed`, and an entry that nothing needs
any more is a failure of its own (`unused`).
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.support.tiers import repository
from underpass.api import envoy

Side = Literal["ours", "theirs", "both"]

#: A message of maps alone: whether it is there and empty, or absent, tells nobody anything.
_BAG = "envoy.config.core.v3.Metadata"


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that differs: `side` says who has it; `both` means that the two values differ."""

    path: str
    side: Side
    ours: Any = None
    theirs: Any = None

    def __str__(self) -> str:
        shown = {"ours": self.ours, "theirs": self.theirs, "both": f"{self.ours!r} != {self.theirs!r}"}[self.side]
        return f"{self.path}: {self.side}: {shown}"


@dataclass(frozen=True, slots=True)
class Listed:
    """A difference on purpose.

    `path` is a field path as `differences` gives it, without the numbers in brackets; `*` stands for any text, so that
    one entry covers a field wherever its message is used.
    """

    path: str
    side: Side
    reason: str

    def covers(self, found: Difference) -> bool:
        """Whether this entry allows the difference."""
        pattern = ".*".join(re.escape(part) for part in self.path.split("*"))
        return found.side == self.side and re.fullmatch(pattern, re.sub(r"\[\d+\]", "[]", found.path)) is not None


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[Difference]:
    """Every field in which two messages of one type differ; raises `AssertionError` for two types."""
    assert ours.DESCRIPTOR.full_name == theirs.DESCRIPTOR.full_name, f"{path}: {ours.DESCRIPTOR.full_name}"
    assert not _unknown(ours) and not _unknown(theirs), f"{path}: fields that the schema lacks"
    if ours.DESCRIPTOR.full_name == "google.protobuf.Any" and ours.type_url == theirs.type_url:
        kind = str(ours.type_url).rpartition(".")[2]
        yield from differences(envoy.unpack_any(ours), envoy.unpack_any(theirs), f"{path}({kind})")
        return
    left = {field.name: (field, value) for field, value in ours.ListFields()}
    right = {field.name: (field, value) for field, value in theirs.ListFields()}
    for name in sorted(left.keys() | right.keys()):
        here = f"{path}.{name}"
        field, value = left.get(name) or right[name]
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            yield from _maps(left.get(name, (None, {}))[1], right.get(name, (None, {}))[1], here)
        elif (name in left) != (name in right) and _is_bag(field):
            empty = type(value)()
            yield from differences(left.get(name, (None, empty))[1], right.get(name, (None, empty))[1], here)
        elif name not in right:
            yield Difference(here, "ours", ours=value)
        elif name not in left:
            yield Difference(here, "theirs", theirs=value)
        else:
            yield from _values(value, right[name][1], here, repeated=field.is_repeated)


def _is_bag(field: Any) -> bool:
    return not field.is_repeated and field.message_type is not None and field.message_type.full_name == _BAG


def _maps(ours: Mapping[Any, Any], theirs: Mapping[Any, Any], path: str) -> Iterator[Difference]:
    for key in sorted(set(ours) | set(theirs)):
        here = f"{path}{{{key}}}"
        if key not in theirs:
            yield Difference(here, "ours", ours=ours[key])
        elif key not in ours:
            yield Difference(here, "theirs", theirs=theirs[key])
        else:
            yield from _values(ours[key], theirs[key], here, repeated=False)


def _values(ours: Any, theirs: Any, path: str, *, repeated: bool) -> Iterator[Difference]:
    if repeated:
        if len(ours) != len(theirs):
            yield Difference(f"{path}[]", "both", list(ours), list(theirs))
            return
        for index, (left, right) in enumerate(zip(ours, theirs, strict=True)):
            yield from _values(left, right, f"{path}[{index}]", repeated=False)
    elif hasattr(ours, "DESCRIPTOR"):
        yield from differences(ours, theirs, path)
    elif ours != theirs:
        yield Difference(path, "both", ours, theirs)


def _unknown(message: Any) -> bool:
    kind = type(message)
    known = kind()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    return bool(known.ByteSize() != message.ByteSize())


def unexplained(found: Iterable[Difference], listed: Iterable[Listed]) -> list[Difference]:
    """Differences that no entry allows."""
    entries = list(listed)
    return [item for item in found if not any(entry.covers(item) for entry in entries)]


def unused(found: Iterable[Difference], listed: Iterable[Listed]) -> list[Listed]:
    """Entries that allow nothing that still occurs."""
    seen = list(found)
    return [entry for entry in listed if not any(entry.covers(item) for item in seen)]


_WHO = {"ours": "ours only", "theirs": "istiod only", "both": "differs"}


def table(listed: Iterable[Listed]) -> str:
    """The entries as a Markdown table."""
    rows = [f"| `{item.path}` | {_WHO[item.side]} | {item.reason} |" for item in listed]
    return "\n".join(["| field | who has it | why |", "|---|---|---|", *rows])


def documented(name: str, text: str) -> tuple[str, str]:
    """What `docs/xds.md` holds between the two comments that name a table, and what it should hold.

    With `UNDERPASS_UPDATE_GOLDEN=1` the page is rewritten first.
    """
    page: Path = repository() / "docs" / "xds.md"
    begin, end = f"<!-- table: {name} -->\n", "\n<!-- end of table -->"
    content = page.read_text(encoding="utf-8")
    before, mark, rest = content.partition(begin)
    assert mark, f"docs/xds.md has no table {name!r}"
    inside, mark, after = rest.partition(end)
    assert mark, f"docs/xds.md: table {name!r} has no end"
    if os.environ.get("UNDERPASS_UPDATE_GOLDEN") and inside != text:
        page.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")
        inside = text
    return inside, text
