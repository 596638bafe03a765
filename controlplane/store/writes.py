"""What may be written: documents to changes, judged before anything reaches the store. Pure.

An object is written only if it would be accepted; one bad object stops the whole request. An object that carries
``metadata.resourceVersion`` replaces that version only (Kubernetes' own convention), so that nobody's change is lost
between reading and writing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from controlplane.model.objects import Key
from controlplane.sources.convert import Accepted, Rejected, convert
from controlplane.sources.documents import RawDocument, parse
from controlplane.store.layout import Entry, Stored, decode, encode, path, same

#: Largest value, bytes: etcd takes requests of 1.5 MiB unless told otherwise.
MAX_VALUE: Final = 1024 * 1024
#: Most changes in one transaction (etcd: 128), and most bytes.
MAX_CHANGES: Final = 100
MAX_BYTES: Final = 1024 * 1024
#: What the API server of Kubernetes adds to each object: nothing that an author wrote.
_SERVER_FIELDS: Final = ("resourceVersion", "uid", "generation", "managedFields", "selfLink")


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an object is not stored."""

    file: str
    line: int
    kind: str
    namespace: str
    name: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """An object to be stored: its document, and the version that it shall replace (None: whichever there is)."""

    key: Key
    document: RawDocument
    version: int | None
    warnings: tuple[tuple[int, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Judged:
    """The objects of a request, and what is wrong with it; ``ignored`` are documents of kinds that no mesh reads."""

    wanted: tuple[Wanted, ...] = ()
    problems: tuple[Problem, ...] = ()
    ignored: tuple[tuple[str, int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """One write: ``value`` None removes. ``expected`` is the ``mod_revision`` that the key must have (0: none)."""

    key: Key
    verb: str
    expected: int
    value: bytes | None = None
    at: str = ""


@dataclass(frozen=True, slots=True)
class Planned:
    """What to write, what is as wanted already, and what stands in the way."""

    changes: tuple[Change, ...] = ()
    unchanged: tuple[Key, ...] = ()
    conflicts: tuple[Problem, ...] = field(default=())


def judge(files: Mapping[str, str]) -> Judged:
    """Read YAML texts by file name. Never raises for what they contain."""
    wanted: dict[Key, Wanted] = {}
    problems: list[Problem] = []
    ignored: list[tuple[str, int, str]] = []
    for file, text in sorted(files.items()):
        for document in parse(file, text):
            outcome = convert(document)
            if outcome is None:
                ignored.append((document.file, document.line, str(document.data.get("kind", ""))))
            elif isinstance(outcome, Rejected):
                problems.append(_rejected(outcome))
            else:
                _want(document, outcome, wanted, problems)
    return Judged(tuple(wanted[key] for key in sorted(wanted)), tuple(problems), tuple(ignored))


def _want(document: RawDocument, outcome: Accepted, wanted: dict[Key, Wanted], problems: list[Problem]) -> None:
    key = outcome.object.meta.key
    first = wanted.get(key)
    if first is not None:
        where = f"{first.document.file}:{first.document.line}"
        problems.append(_problem(document, key, "duplicate-object", f"it is given twice; the other one is at {where}"))
        return
    metadata = document.data.get("metadata")
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    if version is not None and not (isinstance(version, str) and version.isascii() and version.isdigit()):
        reason = (
            f"metadata.resourceVersion {version!r} is none that this store gave: leave it out, or get the object again"
        )
        problems.append(_problem(document, key, "bad-version", reason))
        return
    notes = tuple((note.line, note.code, note.message) for note in outcome.notes)
    wanted[key] = Wanted(key, document, None if version is None else int(version), notes)


def _rejected(outcome: Rejected) -> Problem:
    key = outcome.key or Key("", "", "")
    where = outcome.source
    return Problem(where.file, where.line, key.kind, key.namespace, key.name, outcome.code, outcome.message)


def _problem(document: RawDocument, key: Key, code: str, reason: str) -> Problem:
    return Problem(document.file, document.line, key.kind, key.namespace, key.name, code, reason)


def plan(wanted: Iterable[Wanted], present: Mapping[str, Entry], now: int) -> Planned:
    """The writes that lead from what is there to what is wanted. ``now`` is seconds since the epoch."""
    changes: list[Change] = []
    unchanged: list[Key] = []
    conflicts: list[Problem] = []
    for item in wanted:
        entry = present.get(path(item.key))
        at = entry.modified if entry is not None else 0
        if item.version is not None and item.version != at:
            now_is = f"it is at {at} now" if at else "it is not there any more"
            reason = f"version {item.version} was to be replaced, and {now_is}: get it, and make the change again"
            conflicts.append(_problem(item.document, item.key, "conflict", reason))
            continue
        known = decode(entry.value) if entry is not None else None
        document = item.document
        stored = Stored(
            _stripped(document.data), document.file, document.line, document.lines, known.at if known else now
        )
        if known is not None and same(known, stored):
            unchanged.append(item.key)
            continue
        value = encode(stored)
        if len(value) > MAX_VALUE:
            reason = f"it takes {len(value)} bytes; the store takes {MAX_VALUE} an object: divide it"
            conflicts.append(_problem(document, item.key, "too-large", reason))
            continue
        verb = "created" if entry is None else "configured"
        changes.append(Change(item.key, verb, at, value, f"{document.file}:{document.line}"))
    return Planned(tuple(changes), tuple(unchanged), tuple(conflicts))


def _stripped(data: Any) -> Any:
    """The document as its author wrote it, without what a server added."""
    metadata = data.get("metadata")
    if not isinstance(metadata, dict) or not any(name in metadata for name in _SERVER_FIELDS):
        return data
    stripped = copy.copy(data)
    stripped["metadata"] = {name: value for name, value in metadata.items() if name not in _SERVER_FIELDS}
    return stripped


def batches(changes: Iterable[Change]) -> list[list[Change]]:
    """Changes in groups that one transaction takes, in order."""
    found: list[list[Change]] = []
    size = 0
    for change in changes:
        weight = len(change.value or b"")
        if not found or len(found[-1]) >= MAX_CHANGES or size + weight > MAX_BYTES:
            found.append([])
            size = 0
        found[-1].append(change)
        size += weight
    return found


def back(past: Mapping[str, bytes], present: Mapping[str, Entry]) -> list[tuple[str, bytes | None, int]]:
    """The writes (key, value or None, expected revision) that lead from what is there back to what was."""
    found: list[tuple[str, bytes | None, int]] = []
    for key, value in sorted(past.items()):
        entry = present.get(key)
        if entry is None or entry.value != value:
            found.append((key, value, entry.modified if entry is not None else 0))
    found += [(key, None, entry.modified) for key, entry in sorted(present.items()) if key not in past]
    return found
