"""States of one type and of all types, and the difference between two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeVar, overload

from controlplane.snapshot.resource import Resource, sotw_pieces

_T = TypeVar("_T")

_SUM_BITS: Final = 128
_MASK: Final = (1 << _SUM_BITS) - 1


class TypeState(Mapping[str, Resource]):
    """All resources of one type that one view is served: name -> resource, immutable, equal by content.

    A state may lie over a ``base`` with which it shares no name. Thousands of views have the mesh's clusters in common
    and a few of their own; in layers, each costs what is its own, in memory and in every comparison.

    Iteration is in name order within a layer, base first, whatever order the resources came in.
    """

    __slots__ = ("__dict__", "_base", "_own")

    def __init__(self, resources: Iterable[Resource] = (), base: TypeState | None = None) -> None:
        listed = {resource.name: resource for resource in resources}
        if base is not None and (base._base is not None or not listed.keys().isdisjoint(base._own)):
            listed = {**dict(base), **listed}  # layers do not overlap, and there are two at most
            base = None
        self._base: TypeState | None = base
        self._own: dict[str, Resource] = {name: listed[name] for name in sorted(listed)}

    def patched(self, change: Change) -> TypeState:
        """This state after *change*, for the price of what changed.  Only a flat state has one."""
        if self._base is not None:
            raise ValueError("a layered state is put together of its layers")
        own = dict(self._own)
        total, sorted_still = self.identity, True
        for name in change.removed:
            gone = own.pop(name, None)
            if gone is not None:
                total -= gone.identity
        for resource in change.changed:
            old = own.get(resource.name)
            sorted_still = sorted_still and old is not None
            total += resource.identity - (0 if old is None else old.identity)
            own[resource.name] = resource
        made = TypeState()
        made._own = own if sorted_still else {name: own[name] for name in sorted(own)}
        made.__dict__["identity"] = total & _MASK
        return made

    def __getitem__(self, name: str) -> Resource:
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    @overload
    def get(self, key: str, /) -> Resource | None: ...
    @overload
    def get(self, key: str, /, default: Resource | _T) -> Resource | _T: ...
    def get(self, key: str, /, default: object = None) -> object:
        """The resource called *key*, or *default*."""
        found = self._own.get(key)
        if found is None and self._base is not None:
            found = self._base._own.get(key)
        return default if found is None else found

    def __iter__(self) -> Iterator[str]:
        if self._base is not None:
            yield from self._base._own
        yield from self._own

    def __len__(self) -> int:
        return len(self._own) + (0 if self._base is None else len(self._base._own))

    def __contains__(self, name: object) -> bool:
        return name in self._own or (self._base is not None and name in self._base._own)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TypeState):
            return NotImplemented
        return self is other or self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def find(self, name: str) -> Resource | None:
        """The resource called *name*, or one that has it as an alias."""
        found = self.get(name) or self._aliases.get(name)
        return found or (None if self._base is None else self._base._aliases.get(name))

    @cached_property
    def _aliases(self) -> dict[str, Resource]:
        return {alias: resource for resource in self._own.values() for alias in resource.aliases}

    def members(self, group: str) -> tuple[str, ...]:
        """Names of the resources that come along with *group*, which itself need not be one."""
        below = () if self._base is None else self._base.members(group)
        return below + self._members.get(group, ())

    @cached_property
    def _members(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, list[str]] = {}
        for resource in self._own.values():
            for group in resource.groups:
                found.setdefault(group, []).append(resource.name)
        return {group: tuple(names) for group, names in found.items()}

    @cached_property
    def identity(self) -> int:
        """A number that is equal for equal states (the sum of the resources' identities, so order cannot matter)."""
        total = sum(resource.identity for resource in self._own.values())
        return (total if self._base is None else total + self._base.identity) & _MASK

    @property
    def version(self) -> str:
        """The state's version as text, for ``version_info``; never empty."""
        return f"{self.identity:032x}"[:16]

    @property
    def in_sotw(self) -> bytes:
        """All resources as fields of a ``DiscoveryResponse``; a layer is joined once, however many clients get it."""
        return self._joined if self._base is None else self._base._joined + self._joined

    @cached_property
    def _joined(self) -> bytes:
        return b"".join(sotw_pieces(self._own.values()))

    def layers(self) -> tuple[TypeState, Mapping[str, Resource]]:
        """The base (empty for a flat state's own part), and what lies over it."""
        return (self._base, self._own) if self._base is not None else (self, {})

    def __repr__(self) -> str:
        return f"TypeState({len(self)} resources, version {self.version})"


EMPTY: Final = TypeState()


@dataclass(frozen=True, slots=True)
class Change:
    """What leads from one state to another: ``changed`` resources (new or different) and ``removed`` names."""

    changed: tuple[Resource, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed)


def diff(old: TypeState, new: TypeState) -> Change:
    """The change that turns *old* into *new*: minimal, in name order."""
    return diff_layers(old, new, diff_flat)


def diff_flat(old: TypeState, new: TypeState) -> Change:
    """As :func:`diff`, name by name."""
    if old is new:
        return Change()
    return Change(
        changed=tuple(sorted((r for name, r in new.items() if old.get(name) != r), key=_name)),
        removed=tuple(sorted(name for name in old if name not in new)),
    )


def diff_layers(old: TypeState, new: TypeState, base_diff: Callable[[TypeState, TypeState], Change]) -> Change:
    """As :func:`diff`, layer by layer: *base_diff* compares the bases, so that it may remember what it found."""
    if old is new:
        return Change()
    (old_base, old_own), (new_base, new_own) = old.layers(), new.layers()
    below = base_diff(old_base, new_base)
    changed = [resource for name, resource in new_own.items() if old_own.get(name) != resource]
    removed = [name for name in old_own if name not in new_own]
    if not changed and not removed and not old_own and not new_own:
        return below
    # A name may have moved from one layer to the other: judge by the whole states.
    changed = [resource for resource in (*below.changed, *changed) if old.get(resource.name) != resource]
    removed = [name for name in (*below.removed, *removed) if name not in new]
    return Change(tuple(sorted(changed, key=_name)), tuple(sorted(removed)))


def _name(resource: Resource) -> str:
    return resource.name


def apply(old: TypeState, change: Change) -> TypeState:
    """*old* after *change*; ``apply(a, diff(a, b)) == b``."""
    result = dict(old)
    for name in change.removed:
        result.pop(name, None)
    for resource in change.changed:
        result[resource.name] = resource
    return TypeState(result.values())


@dataclass(frozen=True)
class Snapshot:
    """One consistent set of states, by type URL; equal by content."""

    types: Mapping[str, TypeState]

    def __getitem__(self, type_url: str) -> TypeState:
        return self.types.get(type_url, EMPTY)

    def __hash__(self) -> int:
        return hash(self.identity)

    @cached_property
    def identity(self) -> int:
        """A number that is equal for equal snapshots."""
        return sum(state.identity for state in self.types.values()) & _MASK

    @property
    def version(self) -> str:
        """The content address of the snapshot."""
        return f"{self.identity:032x}"[:16]
