"""States of one type and of all types, and the difference between two of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from controlplane.snapshot.resource import Resource

_SUM_BITS: Final = 128
_MASK: Final = (1 << _SUM_BITS) - 1


class TypeState(Mapping[str, Resource]):
    """All resources of one type that one view is served: name -> resource, immutable, equal by content.

    Iteration is in name order, whatever order the resources came in, so everything derived from it is deterministic.
    """

    __slots__ = ("__dict__", "_by_name")

    def __init__(self, resources: Iterable[Resource] = ()) -> None:
        listed = {resource.name: resource for resource in resources}
        self._by_name: dict[str, Resource] = {name: listed[name] for name in sorted(listed)}

    def __getitem__(self, name: str) -> Resource:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TypeState):
            return NotImplemented
        return self is other or self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def find(self, name: str) -> Resource | None:
        """The resource called *name*, or one that has it as an alias."""
        return self._by_name.get(name) or self._aliases.get(name)

    @cached_property
    def _aliases(self) -> dict[str, Resource]:
        return {alias: resource for resource in self._by_name.values() for alias in resource.aliases}

    @cached_property
    def identity(self) -> int:
        """A number that is equal for equal states (the sum of the resources' identities, so order cannot matter)."""
        return sum(resource.identity for resource in self._by_name.values()) & _MASK

    @property
    def version(self) -> str:
        """The state's version as text, for ``version_info``; never empty."""
        return f"{self.identity:032x}"[:16]

    @cached_property
    def in_sotw(self) -> bytes:
        """All resources as fields of a ``DiscoveryResponse``; joined once, however many clients are sent it."""
        return b"".join(resource.in_sotw for resource in self._by_name.values())

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
    if old is new:
        return Change()
    return Change(
        changed=tuple(resource for name, resource in new.items() if old.get(name) != resource),
        removed=tuple(name for name in old if name not in new),
    )


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
