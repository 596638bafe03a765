"""One step from files to a mesh: ``old state, new snapshot -> new state, mesh, verdicts``.  Pure.

The last good version of an object stays in force when its new version is rejected, and so do the objects of a file
that suddenly holds something unreadable: whichever of them the broken part was, traffic keeps its rules.  An object
goes when its file, readable, no longer has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from controlplane.model.build import Built, build
from controlplane.model.mesh import Mesh
from controlplane.model.objects import Key, Object
from controlplane.model.registry import Remembered
from controlplane.model.verdict import Note, Verdict
from controlplane.sources.convert import Accepted, Outcome, Rejected, convert
from controlplane.sources.documents import RawDocument
from controlplane.sources.snapshot import File, Snapshot


@dataclass(frozen=True, slots=True)
class FileState:
    """What one file's documents were converted to, and which objects in force are this file's."""

    documents: tuple[RawDocument, ...]
    outcomes: tuple[Outcome, ...]
    keys: frozenset[Key] = frozenset()


@dataclass(frozen=True, slots=True)
class State:
    """Everything that the next step must know.  Start with ``State()``."""

    files: Mapping[str, FileState] = field(default_factory=dict)
    good: Mapping[Key, Accepted] = field(default_factory=dict)
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
    """Decide which objects are in force, without looking at how they relate."""
    outcomes = {name: _convert(state.files.get(name), file) for name, file in sorted(snapshot.files.items())}
    candidates: dict[Key, list[tuple[str, Outcome]]] = {}
    verdicts: list[Verdict] = []
    broken: dict[str, list[Rejected]] = {}
    for name, results in outcomes.items():
        for result in results:
            if isinstance(result, Accepted):
                candidates.setdefault(result.object.meta.key, []).append((name, result))
            elif result.key is not None:
                candidates.setdefault(result.key, []).append((name, result))
            else:
                broken.setdefault(name, []).append(result)
    good: dict[Key, Accepted] = {}
    owners: dict[str, set[Key]] = {name: set() for name in outcomes}
    owner = {key: name for name, file in state.files.items() for key in file.keys}
    for key, found in sorted(candidates.items()):
        found.sort(key=lambda item: (item[0] != owner.get(key), _age(item[1])))
        verdicts.extend(_settle(key, found, state.good.get(key), good, owners))
    for name, causes in broken.items():
        known = state.files.get(name)
        kept = sorted((known.keys if known is not None else frozenset()) - good.keys() - candidates.keys())
        for key in kept:
            good[key] = state.good[key]
            owners[name].add(key)
            verdicts.append(_retained(key, good[key], causes[0]))
        verdicts.extend(_rejection(cause, last_good=bool(kept)) for cause in causes)
    files = {
        name: FileState(snapshot.files[name].documents, results, frozenset(owners[name]))
        for name, results in outcomes.items()
    }
    return State(files, dict(sorted(good.items()))), tuple(sorted(verdicts, key=_place))


def _convert(known: FileState | None, file: File) -> tuple[Outcome, ...]:
    if known is not None and known.documents is file.documents:
        return known.outcomes
    results = (convert(document, file.modified) for document in file.documents)
    return tuple(result for result in results if result is not None)


def _settle(
    key: Key,
    found: list[tuple[str, Outcome]],
    previous: Accepted | None,
    good: dict[Key, Accepted],
    owners: dict[str, set[Key]],
) -> Iterable[Verdict]:
    """Choose one object's version: its first valid definition in the order given, else the last good one."""
    winner = next(((name, result) for name, result in found if isinstance(result, Accepted)), None)
    if winner is not None:
        name, accepted = winner
        good[key] = _aged(accepted, previous)
        owners[name].add(key)
    elif previous is not None:
        good[key] = previous
        owners[found[0][0]].add(key)
    for _, result in found:
        if isinstance(result, Rejected):
            yield _rejection(result, last_good=key in good)
        elif winner is not None and result is winner[1]:
            meta = result.object.meta
            yield Verdict(
                key.kind, key.namespace, key.name, meta.source.file, meta.source.line, "accepted", notes=result.notes
            )
        elif winner is not None:
            meta, first = result.object.meta, winner[1].object.meta.source
            yield Verdict(
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


def _age(outcome: Outcome) -> float:
    """Two files that define one object: the one already in force stays, else the older, else the first by name."""
    return outcome.object.meta.created if isinstance(outcome, Accepted) else 0.0


def _aged(accepted: Accepted, previous: Accepted | None) -> Accepted:
    """An edited object keeps its age: a file's modification time only stands in for a creation time at first sight."""
    if previous is None:
        return accepted
    now, before = accepted.object.meta.created, previous.object.meta.created
    return _with_age(accepted, before) if before < now else accepted


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
    result: list[Verdict] = []
    for verdict in verdicts:
        if verdict.state == "accepted":
            key = Key(verdict.kind, verdict.namespace, verdict.name)
            notes = tuple(sorted({*verdict.notes, *built.notes.get(key, ())}))
            code, reason = built.shadowed.get(key, ("", ""))
            verdict = replace(verdict, notes=notes, state="shadowed" if code else "accepted", code=code, reason=reason)
        result.append(verdict)
    return tuple(result)
