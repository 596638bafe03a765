"""From translated messages to snapshots, doing the work once per content.

Translation hands the same message objects to every view and every generation whose inputs did not change, and where
it can the same mapping of them. So both are remembered by identity: a message is serialised once, a state is built
once, and equal states become one object, which lets the differences between them be computed once for all clients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from controlplane.snapshot.resource import Resource, encode
from controlplane.snapshot.state import Change, Snapshot, TypeState, diff_flat, diff_layers

#: An entry that no snapshot used for this many rounds is forgotten. More than one, because clients of the round before
#: may still be served from it.
_KEEP_ROUNDS: Final = 2


class Builder:
    """Caches of one process; ``begin_round`` marks a change of configuration, between two nothing is dropped."""

    def __init__(self) -> None:
        self._round = 0
        # id -> (round last used, the object itself so that its id cannot be reused, result)
        self._resources: dict[int, tuple[int, Any, Resource]] = {}
        self._states: dict[int, tuple[int, Any, TypeState]] = {}
        self._layered: dict[tuple[int, int], tuple[int, Any, Any, TypeState]] = {}
        self._known: dict[tuple[str, str, str], Resource] = {}
        self._interned: dict[int, tuple[int, TypeState]] = {}
        self._changes: dict[tuple[int, int], tuple[int, TypeState, TypeState, Change]] = {}

    @property
    def size(self) -> int:
        """Serialised messages that are remembered."""
        return len(self._resources)

    def begin_round(self) -> None:
        """A new generation of messages follows; forget what the last generations did not use.

        Serialised messages are gone through only once a quarter of them may be of no use: most generations change few.
        """
        self._round += 1
        oldest = self._round - _KEEP_ROUNDS
        self._states = {k: v for k, v in self._states.items() if v[0] >= oldest}
        self._layered = {k: v for k, v in self._layered.items() if v[0] >= oldest}
        self._interned = {k: v for k, v in self._interned.items() if v[0] >= oldest}
        self._changes = {k: v for k, v in self._changes.items() if v[0] >= oldest}
        tables = {id(table): len(table) for table in self._tables()}
        if len(self._resources) > 1.25 * sum(tables.values()):
            self._sweep(oldest)

    def _tables(self) -> Iterator[Mapping[str, Any]]:
        """The tables of messages of which states are remembered."""
        yield from (messages for _, messages, _ in self._states.values())
        yield from (own for _, _, own, _ in self._layered.values())

    def _sweep(self, oldest: int) -> None:
        live = {id(message) for table in self._tables() for message in table.values()}
        self._resources = {k: v for k, v in self._resources.items() if v[0] >= oldest or k in live}
        self._known = {
            (resource.type_url, resource.name, resource.version): resource
            for _, _, resource in self._resources.values()
        }

    def resource(self, type_url: str, name: str, message: Any) -> Resource:
        """*message* as a resource; the same object for equal content."""
        found = self._resources.get(id(message))
        if found is not None and found[2].name == name:
            if found[0] != self._round:
                self._resources[id(message)] = (self._round, message, found[2])
            return found[2]
        made = encode(type_url, name, message)
        made = self._known.setdefault((type_url, name, made.version), made)
        self._resources[id(message)] = (self._round, message, made)
        return made

    def state(self, type_url: str, messages: Mapping[str, Any]) -> TypeState:
        """The state of *messages*; the same object for equal content."""
        found = self._states.get(id(messages))
        if found is not None and found[0] == self._round:
            return found[2]
        made = found[2] if found is not None else self._new_state(type_url, messages)
        self._states[id(messages)] = (self._round, messages, made)
        self._interned[made.identity] = (self._round, made)
        return made

    def _new_state(self, type_url: str, messages: Mapping[str, Any]) -> TypeState:
        """A state that nobody asked for yet.

        A table that says what it was derived from, and how, costs what differs; see ``translate.resources.Table``.
        """
        origin = getattr(messages, "origin", None)
        parent = origin() if origin is not None else None
        known = self._states.get(id(parent)) if parent is not None else None
        if known is None:
            made = TypeState(self.resource(type_url, name, message) for name, message in messages.items())
            return self._interned.get(made.identity, (0, made))[1]
        changed, removed = [], []
        for name in sorted(getattr(messages, "differing", ())):
            message, old = messages.get(name), known[2].get(name)
            if message is None:
                removed += [name] if old is not None else []
                continue
            resource = self.resource(type_url, name, message)
            if resource != old:
                changed.append(resource)
        change = Change(tuple(changed), tuple(removed))
        if not change:
            return known[2]
        made = known[2].patched(change)
        made = self._interned.get(made.identity, (0, made))[1]
        self._changes[known[2].identity, made.identity] = (self._round, known[2], made, change)
        return made

    def layered(self, type_url: str, shared: Mapping[str, Any], own: Mapping[str, Any]) -> TypeState:
        """The state of *shared* and *own* messages; only *own* costs anything when *shared* was seen before."""
        base = self.state(type_url, shared)
        if not own:
            return base
        key = (id(shared), id(own))
        found = self._layered.get(key)
        if found is not None:
            if found[0] != self._round:
                self._layered[key] = (self._round, *found[1:])
            return found[3]
        made = TypeState((self.resource(type_url, name, message) for name, message in own.items()), base)
        _, made = self._interned.get(made.identity, (0, made))
        self._interned[made.identity] = (self._round, made)
        self._layered[key] = (self._round, shared, own, made)
        return made

    def snapshot(
        self, resources: Mapping[str, Mapping[str, Any]], own: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Snapshot:
        """The snapshot of what translation returned: type URL -> name -> message; *own* lies over *resources*."""
        mine = own or {}
        return Snapshot(
            {
                type_url: self.layered(type_url, resources.get(type_url, {}), mine.get(type_url, {}))
                for type_url in sorted({*resources, *mine})
            }
        )

    def diff(self, old: TypeState, new: TypeState) -> Change:
        """As :func:`controlplane.snapshot.diff`, with the bases compared once for all who share them."""
        return diff_layers(old, new, self._base_diff)

    def _base_diff(self, old: TypeState, new: TypeState) -> Change:
        if old is new:
            return _NOTHING
        key = (old.identity, new.identity)
        found = self._changes.get(key)
        if found is None:
            found = self._changes[key] = (self._round, old, new, diff_flat(old, new))
        return found[3]


_NOTHING: Final = Change()
