"""Where an object is kept in the store, and what is kept of it. Pure, total in both directions.

``PREFIX/config/KIND/NAMESPACE/NAME`` (``PREFIX/config/KIND/NAME`` without namespace), each part percent-encoded. A
value is a JSON envelope that holds the document as plain data with the lines of its parts, so that every verdict names
the file and line where its author wrote it, on every replica. A value that is no envelope is read as YAML, as an
operator with ``etcdctl put`` would write it; its file is then called ``etcd:KEY``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, unquote

from controlplane.model.objects import Key
from controlplane.sources.documents import RawDocument, broken, parse

#: Which form the envelope has. A replica that does not know a later one rejects the object and keeps its last good.
FORM: Final = 1
_MARK: Final = "underpass"


@dataclass(frozen=True, slots=True)
class Entry:
    """A key of the store: ``key`` without the prefix; ``created`` and ``modified`` are etcd's revisions."""

    key: str
    value: bytes
    created: int
    modified: int


@dataclass(frozen=True, slots=True)
class Stored:
    """What an envelope says. ``at`` is when the object was first stored, seconds since the epoch: its age."""

    data: Any
    file: str
    line: int
    lines: Mapping[str, int] = field(default_factory=dict)
    at: int = 0


def path(key: Key) -> str:
    """The key of an object, without the prefix."""
    parts = (key.kind, key.namespace, key.name) if key.namespace else (key.kind, key.name)
    return "/".join(quote(part, safe="") for part in parts)


def identity(text: str) -> Key | None:
    """The object that a key names, or None when it names none."""
    parts = [unquote(part) for part in text.split("/")]
    if len(parts) not in (2, 3) or not all(parts):
        return None
    key = Key(parts[0], parts[1] if len(parts) == 3 else "", parts[-1])
    return key if path(key) == text else None


def encode(stored: Stored) -> bytes:
    """An envelope; equal content gives equal bytes."""
    envelope = {
        _MARK: FORM,
        "file": stored.file,
        "line": stored.line,
        "at": stored.at,
        "lines": dict(stored.lines),
        "data": stored.data,
    }
    return json.dumps(envelope, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def decode(value: bytes) -> Stored | None:
    """What an envelope of this form says, or None for anything else. Never raises."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get(_MARK) != FORM or "data" not in found:
        return None
    file, line, at, lines = found.get("file"), found.get("line"), found.get("at"), found.get("lines")
    if not isinstance(file, str) or type(line) is not int or type(at) is not int or not isinstance(lines, dict):
        return None
    if not all(type(number) is int for number in lines.values()) or not 0 <= at < 2**40:
        return None
    return Stored(found["data"], file, line, lines, at)


def same(one: Stored, other: Stored) -> bool:
    """Whether two envelopes say the same of the same place; their ages do not count."""
    return (one.data, one.file, one.line, dict(one.lines)) == (other.data, other.file, other.line, dict(other.lines))


def documents(entry: Entry, stored: Stored | None) -> tuple[RawDocument, ...]:
    """The documents of a value: one of its envelope (*stored*), those of its YAML otherwise. Never raises."""
    if stored is not None:
        return (RawDocument(stored.file, stored.line, stored.data, stored.lines),)
    label = f"etcd:{entry.key}"
    try:
        text = entry.value.decode()
    except UnicodeDecodeError as error:
        return broken(label, "not-utf8", f"byte {error.start} is not UTF-8")
    if text.startswith('{"') and f'"{_MARK}":' in text:
        return broken(
            label, "unknown-form", f"it was stored in a form that this version does not read (it reads {FORM})"
        )
    return parse(label, text)
