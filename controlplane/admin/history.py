"""The configuration's history: content-addressed revisions, what changed between two, and the way back. Pure.

A revision's id is a hash over the objects in force, so two replicas that read the same files name it alike, and an edit
that is undone leads back to the id it came from. Objects are shared between revisions; a revision costs what changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from controlplane.model.objects import Config, Key, Object
from underpass.api import envoy

#: Revisions that are kept, and objects in all of them together: a revision of a large mesh costs accordingly.
KEEP: Final = 100
KEEP_OBJECTS: Final = 200_000
_DIGEST_BYTES: Final = 16


class UnknownRevisionError(LookupError):
    """A revision that is not (or no longer) in the history."""


@dataclass(frozen=True, slots=True)
class Revision:
    """One configuration that was in force. ``at`` is seconds since the epoch; ``cause`` says why it came."""

    id: str
    at: float
    cause: str
    objects: Mapping[Key, Object]
    digests: Mapping[Key, str]
    changes: tuple[tuple[str, Key], ...]
    #: Sum of the digests; the id is made of it.
    total: int = 0


class History:
    """The last revisions, oldest first."""

    def __init__(self, keep: int = KEEP, keep_objects: int = KEEP_OBJECTS) -> None:
        self._revisions: deque[Revision] = deque(maxlen=keep)
        self._keep_objects = keep_objects
        #: What was handed in last, and of which the newest revision's digests are.
        self._objects: Mapping[Key, Object] = {}

    def record(self, objects: Mapping[Key, Object], at: float, cause: str) -> Revision | None:
        """Add a revision; None when nothing changed since the last one.  *objects* must not be changed afterwards."""
        last = self.latest
        before: Mapping[Key, str] = {} if last is None else last.digests
        # Only what is another object than it was is looked at: an object never changes.
        fresh = {key: digest(item) for key, item in objects.items() if self._objects.get(key) is not item}
        gone = [key for key in self._objects if key not in objects]
        self._objects = objects
        found = [("removed", key) for key in gone]
        found += [("added", key) for key in fresh if key not in before]
        found += [("changed", key) for key, value in fresh.items() if before.get(key, value) != value]
        if last is not None and not found:
            return None
        total = last.total if last is not None else 0
        digests = dict(before)
        for key in gone:
            total -= int(digests.pop(key), 16)
        for key, value in fresh.items():
            total += int(value, 16) - int(digests.get(key, "0"), 16)
            digests[key] = value
        changes = tuple(sorted(found, key=lambda item: item[1]))
        revision = Revision(_address(total), at, cause, objects, digests, changes, total)
        self._revisions.append(revision)
        while len(self._revisions) > 2 and sum(len(rev.objects) for rev in self._revisions) > self._keep_objects:
            self._revisions.popleft()
        return revision

    @property
    def latest(self) -> Revision | None:
        """The revision in force."""
        return self._revisions[-1] if self._revisions else None

    def find(self, wanted: str) -> Revision:
        """The newest revision whose id begins with *wanted*; raises :class:`UnknownRevisionError`."""
        for revision in reversed(self._revisions):
            if wanted and revision.id.startswith(wanted):
                return revision
        raise UnknownRevisionError(f"no revision {wanted!r}; the last {len(self._revisions)} are kept")

    def __iter__(self) -> Any:
        return reversed(self._revisions)


def digest(item: Object) -> str:
    """A hash of what an object says. Where it was written does not count: moving it to another line is no change."""
    state = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    meta = item.meta
    state.update(repr((meta.key, meta.labels, meta.annotations)).encode())
    if isinstance(item, Config):
        state.update(item.spec.SerializeToString(deterministic=True))
    else:
        state.update(repr([getattr(item, f.name) for f in dataclasses.fields(item) if f.name != "meta"]).encode())
    return state.hexdigest()


def _address(total: int) -> str:
    """The content address of a set of objects: made of a sum, so that neither order nor sorting is needed."""
    return hashlib.blake2b(total.to_bytes(2 * _DIGEST_BYTES, "big"), digest_size=6).hexdigest()


def compare(old: Mapping[Key, str], new: Mapping[Key, str]) -> tuple[tuple[str, Key], ...]:
    """``added``, ``changed`` and ``removed`` objects, in the order of their keys."""
    found = [("added", key) for key in new if key not in old]
    found += [("removed", key) for key in old if key not in new]
    found += [("changed", key) for key, value in new.items() if old.get(key, value) != value]
    return tuple(sorted(found, key=lambda item: item[1]))


def plain(item: Object) -> dict[str, Any]:
    """An object as JSON values: its metadata and what it says."""
    if isinstance(item, Config):
        spec = envoy.to_dict(item.spec)
    else:
        spec = {f.name: _plain(getattr(item, f.name)) for f in dataclasses.fields(item) if f.name != "meta"}
    key = item.meta.key
    return {
        "kind": key.kind,
        "namespace": key.namespace,
        "name": key.name,
        "labels": dict(item.meta.labels),
        "annotations": dict(item.meta.annotations),
        "spec": spec,
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    return value


def summary(revision: Revision) -> dict[str, Any]:
    """A revision as one entry of ``/api/v1/config/history``."""
    return {
        "id": revision.id,
        "at": revision.at,
        "cause": revision.cause,
        "objects": len(revision.objects),
        "changes": [{"change": change, **_named(key)} for change, key in revision.changes],
    }


def difference(old: Revision, new: Revision) -> list[dict[str, Any]]:
    """What leads from one revision to another, each object before and after."""
    return [
        {
            "change": change,
            **_named(key),
            "before": plain(old.objects[key]) if key in old.objects else None,
            "after": plain(new.objects[key]) if key in new.objects else None,
        }
        for change, key in compare(old.digests, new.digests)
    ]


def _named(key: Key) -> dict[str, str]:
    return {"kind": key.kind, "namespace": key.namespace, "name": key.name}
