"""One step from files to a mesh: ``old state, new snapshot -> new state, mesh, verdicts``.  Pure.

The last good version of an object stays in force when its new version is rejected, and so do the objects of a file
that suddenly holds something unreadable: whichever of them the broken part was, traffic keeps its rules.  An object
goes when its file, readable, no longer has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from controlplane.model.build import Built, Remembered, build
from controlplane.model.mesh import Mesh
from controlplane.model.objects import Key, Object
from controlplane.model.verdict import Note, Verdict
from controlplane.sources.convert import Accepted, Outcome, Rejected, convert
from controlplane.sources.documents import RawDocument
from controlplane.sources.snapshot import File, Snapshot


@dataclass(frozen=True, slots=True)
class FileState:
    """What one file's documents were converted to, which objects in force are this file's, and what is said of it.

    ``strays`` tells that some verdict names another file (an object that was moved, and then lost its new place).
    """

    documents: tuple[RawDocument, ...]
    outcomes: tuple[Outcome, ...]
    keys: frozenset[Key] = frozenset()
    verdicts: tuple[Verdict, ...] = ()
    strays: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """Everything that the next step must know.  Start with ``State()``.

    ``definers`` are the files that define each object, sorted; ``owners`` is the file that each one in force is of.
    """

    files: Mapping[str, FileState] = field(default_factory=dict)
    good: Mapping[Key, Accepted] = field(default_factory=dict)
    definers: Mapping[Key, tuple[str, ...]] = field(default_factory=dict)
    owners: Mapping[Key, str] = field(default_factory=dict)
    remembered: Remembered = field(default_factory=Remembered, compare=False)

    def objects(self) -> dict[Key, Object]:
        """Return the objects in force."""
        return {key: accepted.object for key, accepted in self.good.items()}


@dataclass(frozen=True, slots=True)
class Ingested:
    """The result of a step."""

    state: State
    mesh: Mesh
    verdicts: tuple[Verdict, ...]


def ingest(state: State, snapshot: Snapshot, **mesh_settings: str) -> Ingested:
    """Take a snapshot into account.  ``mesh_settings`` are those of :func:`controlplane.model.build.build`."""
    after, verdicts = step(state, snapshot)
    built = build(after.objects(), state.remembered, **mesh_settings)
    return Ingested(replace(after, remembered=built.remembered), built.mesh, with_review(verdicts, built))


def step(state: State, snapshot: Snapshot) -> tuple[State, tuple[Verdict, ...]]:
    """Decide which objects are in force, without looking at how they relate.

    Only files that changed are looked at, and files that define an object which a changed one defines too: all of
    these are settled together, as if there were no others.  That is exact, because files without a common object have
    nothing to say to each other.
    """
    settling = _Settling(state, snapshot)
    if not settling.files:
        return state, _listed(state.files)
    after = settling.run()
    return after, _listed(after.files)


def _listed(files: Mapping[str, FileState]) -> tuple[Verdict, ...]:
    """All verdicts by file and line; a file's own are in order already."""
    listed = tuple(chain.from_iterable(file.verdicts for file in files.values()))
    return tuple(sorted(listed, key=_place)) if any(file.strays for file in files.values()) else listed


class _Settling:
    """One step: the files it concerns, and what becomes of their objects."""

    def __init__(self, state: State, snapshot: Snapshot) -> None:
        self._state = state
        before = state.files
        self._outcomes: dict[str, tuple[Outcome, ...]] = {}
        self._snapshot = snapshot
        self._gone = [name for name in before if name not in snapshot.files]
        self._defined: dict[str, dict[Key, list[Outcome]]] = {}
        self.files: dict[str, None] = dict.fromkeys(self._gone)
        for name, file in snapshot.files.items():
            known = before.get(name)
            if known is None or known.documents is not file.documents:
                self.files[name] = None
                self._outcomes[name] = _convert(file)
        self._definers = dict(state.definers)
        if self.files:
            self._define()
            self._widen()

    def _keyed(self, name: str) -> dict[Key, list[Outcome]]:
        """A file's readable documents by the object that each defines; as the file is now."""
        found = self._defined.get(name)
        if found is None:
            found = self._defined[name] = {}
            for result in self._results(name):
                key = _key(result)
                if key is not None:
                    found.setdefault(key, []).append(result)
        return found

    def _results(self, name: str) -> tuple[Outcome, ...]:
        if name in self._outcomes:
            return self._outcomes[name]
        return self._state.files[name].outcomes if name in self._snapshot.files else ()

    def _define(self) -> None:
        """Bring the index of who defines what up to date."""
        for name in list(self.files):
            known = self._state.files.get(name)
            before = {key for result in known.outcomes if (key := _key(result)) is not None} if known else set()
            now = self._keyed(name).keys()
            for key in before - now:
                left = tuple(other for other in self._definers[key] if other != name)
                if left:
                    self._definers[key] = left
                else:
                    del self._definers[key]
            for key in now - before:
                self._definers[key] = tuple(sorted((*self._definers.get(key, ()), name)))

    def _widen(self) -> None:
        """Add the files that share an object with one that is being settled, and theirs, until there are no more."""
        self.keys: dict[Key, None] = {}
        pending = list(self.files)
        while pending:
            name = pending.pop()
            known = self._state.files.get(name)
            mine: Iterable[Key] = self._keyed(name)
            if known is not None:
                earlier = (key for result in known.outcomes if (key := _key(result)) is not None)
                mine = chain(mine, earlier, known.keys)
            for key in mine:
                if key in self.keys:
                    continue
                self.keys[key] = None
                owner = self._state.owners.get(key)
                others = (
                    *self._state.definers.get(key, ()),
                    *self._definers.get(key, ()),
                    *((owner,) if owner else ()),
                )
                for other in others:
                    if other not in self.files:
                        self.files[other] = None
                        pending.append(other)

    def run(self) -> State:
        """Settle, and give the new state."""
        state, before = self._state, self._state.good
        good: dict[Key, Accepted] = {}
        owned: dict[str, set[Key]] = {name: set() for name in self.files}
        said: dict[str, list[Verdict]] = {name: [] for name in self.files}
        for key in sorted(self.keys):
            found = [(name, result) for name in self._definers.get(key, ()) for result in self._keyed(name)[key]]
            if not found:
                continue
            owner = state.owners.get(key)
            found.sort(key=lambda item: (item[0] != owner, _age(item[1])))
            for name, verdict in _settle(key, found, before.get(key), good, owned):
                said[name].append(verdict)
        for name in sorted(self.files):
            causes = [item for item in self._results(name) if isinstance(item, Rejected) and item.key is None]
            if not causes:
                continue
            known = state.files.get(name)
            kept = sorted(key for key in (known.keys if known else ()) if key not in good and key not in self._definers)
            for key in kept:
                good[key] = before[key]
                owned[name].add(key)
                said[name].append(_retained(key, good[key], causes[0]))
            said[name].extend(_rejection(cause, last_good=bool(kept)) for cause in causes)
        return replace(self._state, **self._merged(good, owned, said))

    def _merged(
        self, good: dict[Key, Accepted], owned: dict[str, set[Key]], said: dict[str, list[Verdict]]
    ) -> dict[str, Any]:
        """The state's tables: the old ones, with what was settled in its place."""
        files, everything, owners = dict(self._state.files), dict(self._state.good), dict(self._state.owners)
        for name in self._gone:
            del files[name]
        fresh = False
        for name in self.files:
            if name not in self._snapshot.files:
                continue
            verdicts = tuple(sorted(said[name], key=_place))
            documents = self._snapshot.files[name].documents
            fresh = fresh or name not in files
            strays = bool(documents) and any(verdict.file != documents[0].file for verdict in verdicts)
            files[name] = FileState(documents, self._results(name), frozenset(owned[name]), verdicts, strays)
        more = False
        for key in self.keys:
            if key in good:
                more = more or key not in everything
                everything[key] = good[key]
            else:
                everything.pop(key, None)
                owners.pop(key, None)
        for name, keys in owned.items():
            owners.update(dict.fromkeys(keys, name))
        return {
            "files": dict(sorted(files.items())) if fresh else files,
            "good": dict(sorted(everything.items(), key=_first)) if more else everything,
            "definers": self._definers,
            "owners": owners,
        }


def _first(item: tuple[Key, Accepted]) -> Key:
    return item[0]


def _key(result: Outcome) -> Key | None:
    """The object that a document defines, as far as it could be read."""
    return result.object.meta.key if isinstance(result, Accepted) else result.key


def _convert(file: File) -> tuple[Outcome, ...]:
    results = (convert(document, file.modified) for document in file.documents)
    return tuple(result for result in results if result is not None)


def _settle(
    key: Key,
    found: list[tuple[str, Outcome]],
    previous: Accepted | None,
    good: dict[Key, Accepted],
    owners: dict[str, set[Key]],
) -> Iterable[tuple[str, Verdict]]:
    """Choose one object's version: its first valid definition in the order given, else the last good one.

    Gives what is said of each definition, with the file that it is in.
    """
    winner = next(((name, result) for name, result in found if isinstance(result, Accepted)), None)
    if winner is not None:
        name, accepted = winner
        good[key] = _aged(accepted, previous)
        owners[name].add(key)
    elif previous is not None:
        good[key] = previous
        owners[found[0][0]].add(key)
    for file, result in found:
        if isinstance(result, Rejected):
            yield file, _rejection(result, last_good=key in good)
        elif winner is not None and result is winner[1]:
            meta, notes = result.object.meta, result.notes
            yield (
                file,
                Verdict(key.kind, key.namespace, key.name, meta.source.file, meta.source.line, "accepted", notes=notes),
            )
        elif winner is not None:
            meta, first = result.object.meta, winner[1].object.meta.source
            verdict = Verdict(
                key.kind,
                key.namespace,
                key.name,
                meta.source.file,
                meta.source.line,
                "shadowed",
                "duplicate-object",
                f"{key} is already defined at {first}; that definition is in force",
                last_good=True,
                notes=result.notes,
            )
            yield file, verdict


def _age(outcome: Outcome) -> float:
    """Two files that define one object: the one already in force stays, else the older, else the first by name."""
    return outcome.object.meta.created if isinstance(outcome, Accepted) else 0.0


def _aged(accepted: Accepted, previous: Accepted | None) -> Accepted:
    """An edited object keeps its age: a file's modification time only stands in for a creation time at first sight.

    One that says what it said before (its file was edited elsewhere) stays the same object, so nothing is made anew.
    """
    if previous is None:
        return accepted
    now, before = accepted.object.meta.created, previous.object.meta.created
    aged = _with_age(accepted, before) if before < now else accepted
    return previous if aged == previous else aged


def _with_age(accepted: Accepted, created: float) -> Accepted:
    item: Any = accepted.object
    return Accepted(replace(item, meta=replace(item.meta, created=created)), accepted.notes)


def _rejection(result: Rejected, *, last_good: bool) -> Verdict:
    key = result.key or Key("", "", "")
    return Verdict(
        key.kind,
        key.namespace,
        key.name,
        result.source.file,
        result.source.line,
        "rejected",
        result.code,
        result.message,
        last_good,
    )


def _retained(key: Key, accepted: Accepted, cause: Rejected) -> Verdict:
    source = accepted.object.meta.source
    note = Note(
        cause.source.line,
        "last-good",
        f"its file can not be read as a whole any more ({cause.source}: {cause.message}); this last good version stays",
    )
    return Verdict(
        key.kind,
        key.namespace,
        key.name,
        source.file,
        source.line,
        "accepted",
        last_good=True,
        notes=(*accepted.notes, note),
    )


def _place(verdict: Verdict) -> tuple[str, int, str, str, str]:
    return (verdict.file, verdict.line, verdict.kind, verdict.namespace, verdict.name)


def with_review(verdicts: Iterable[Verdict], built: Built) -> tuple[Verdict, ...]:
    """Add what the mesh as a whole says about each object."""
    if not built.notes and not built.shadowed:
        return tuple(verdicts)
    concerned = {*built.notes, *built.shadowed}
    result: list[Verdict] = []
    for verdict in verdicts:
        key = (verdict.kind, verdict.namespace, verdict.name)
        if key in concerned and verdict.state == "accepted":
            named = Key(*key)
            notes = tuple(sorted({*verdict.notes, *built.notes.get(named, ())}))
            code, reason = built.shadowed.get(named, ("", ""))
            verdict = replace(verdict, notes=notes, state="shadowed" if code else "accepted", code=code, reason=reason)
        result.append(verdict)
    return tuple(result)
