"""Writing into the store: read what is there, plan, compare and set; again when somebody was faster. The I/O."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from controlplane.model.objects import Key
from controlplane.store.errors import Conflict, NotFound, StoreError
from controlplane.store.etcd import Delete, Etcd, Put
from controlplane.store.layout import Entry, path
from controlplane.store.writes import Change, Judged, Problem, back, batches, judge, plan

#: How often a plan is made anew when the store changed between reading and writing.
ATTEMPTS: Final = 4


@dataclass(frozen=True, slots=True)
class Written:
    """What a request did. With problems nothing was written; ``revision`` is the store's after the last write."""

    judged: Judged
    changes: tuple[Change, ...] = ()
    unchanged: tuple[Key, ...] = ()
    problems: tuple[Problem, ...] = ()
    conflict: bool = False
    revision: int = 0


class Writer:
    """Writes below *prefix* (with its slash at the end)."""

    def __init__(self, etcd: Etcd, prefix: str, clock: Callable[[], float] = time.time) -> None:
        self._etcd = etcd
        self._prefix = prefix
        self._clock = clock

    async def apply(self, files: Mapping[str, str], *, dry: bool = False) -> Written:
        """Store the objects of YAML texts by file name, all or (if one is bad) none. Raises :class:`StoreError`.

        Up to 100 objects and 1 MiB are one transaction; more are several, in the order of the objects' names.
        """
        judged = await asyncio.to_thread(judge, files)  # large objects take a while, and clients must not wait for it
        if judged.problems:
            return Written(judged, problems=judged.problems)
        written: list[Change] = []
        for _ in range(ATTEMPTS):
            present = await self._present([item.key for item in judged.wanted])
            planned = plan(judged.wanted, present, int(self._clock()))
            if planned.conflicts:
                conflict = any(item.code == "conflict" for item in planned.conflicts)
                return Written(judged, problems=planned.conflicts, conflict=conflict)
            if dry:
                return Written(judged, planned.changes, planned.unchanged)
            revision = await self._write(planned.changes, written)
            if revision is not None:
                mine = {change.key for change in written}
                unchanged = tuple(key for key in planned.unchanged if key not in mine)
                return Written(judged, tuple(written), unchanged, revision=revision)
        raise Conflict("the objects change faster than they can be written", f"{ATTEMPTS} attempts", "try again")

    async def _present(self, keys: Sequence[Key]) -> Mapping[str, Entry]:
        try:
            return (await self._etcd.get(self._prefix, [path(key) for key in keys]))[0]
        except StoreError as error:
            raise _partly(error, 0, 0) from error

    async def _write(self, changes: Sequence[Change], written: list[Change]) -> int | None:
        """The revision of the last write; None when somebody was faster. Adds to *written* what is in the store now."""
        revision, done = 0, 0
        for batch in batches(changes):
            try:
                outcome = await self._etcd.transact(
                    {self._prefix + path(change.key): change.expected for change in batch},
                    [self._operation(change) for change in batch],
                )
            except StoreError as error:
                raise _partly(error, done, len(changes)) from error
            if not outcome.done:
                return None
            revision, done = outcome.revision, done + len(batch)
            written += batch
        return revision

    def _operation(self, change: Change) -> Put | Delete:
        key = self._prefix + path(change.key)
        return Delete(key) if change.value is None else Put(key, change.value)

    async def delete(self, keys: Sequence[Key], *, dry: bool = False) -> Written:
        """Remove objects, all or none up to 100. Raises :class:`NotFound` for those not there; :class:`StoreError`."""
        written: list[Change] = []
        for _ in range(ATTEMPTS):
            left = sorted(set(keys) - {change.key for change in written})
            present = await self._present(left)
            missing = [f"{key.kind} {key.namespace}/{key.name}" for key in left if path(key) not in present]
            if missing:
                raise NotFound(
                    f"not in the store: {', '.join(missing)}",
                    "nothing was removed",
                    "underpass config get lists what is",
                )
            changes = tuple(Change(key, "deleted", present[path(key)].modified) for key in left)
            if dry:
                return Written(Judged(), changes)
            revision = await self._write(changes, written)
            if revision is not None:
                return Written(Judged(), tuple(written), revision=revision)
        raise Conflict("the objects change faster than they can be removed", f"{ATTEMPTS} attempts", "try again")

    async def restore(self, past: Mapping[str, bytes], present: Mapping[str, Entry]) -> int:
        """Write back what the store held before; the number of keys that changed. Raises :class:`StoreError`.

        *present* is what this replica follows; a key that somebody changes meanwhile is a :class:`Conflict`.
        """
        writes = back(past, present)
        for begin in range(0, len(writes), _RESTORE):
            part = writes[begin : begin + _RESTORE]
            try:
                outcome = await self._etcd.transact(
                    {self._prefix + key: expected for key, _, expected in part},
                    [
                        Delete(self._prefix + key) if value is None else Put(self._prefix + key, value)
                        for key, value, _ in part
                    ],
                )
            except StoreError as error:
                raise _partly(error, begin, len(writes)) from error
            if not outcome.done:
                raise Conflict(
                    "the configuration changed while it was rolled back",
                    f"{begin} of {len(writes)} objects were written",
                    "look at underpass config history, and decide again",
                )
        return len(writes)


#: Objects may be of up to 1 MiB, and sizes are not looked at when rolling back: few at once.
_RESTORE: Final = 20


def _partly(error: StoreError, done: int, of: int) -> StoreError:
    """The same error, with how much of the request is in the store."""
    known = f"{done} of {of} objects were written before" if done else "nothing was written"
    unsure = " (of the last request that is not known)" if of and "Deadline" in error.why else ""
    return type(error)(error.what, f"{known}{unsure}, and what is in force stays: {error.why}", error.next_step)
