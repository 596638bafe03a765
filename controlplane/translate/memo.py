"""Messages by the content that they were made from, carried from one generation of the mesh to the next.

This is why an unchanged resource stays the same object, and why a thousand clients do not cost a thousand
translations.  Keys are the complete inputs (values, compared by content), so nothing can go stale.

A generation that changes little asks for little, so nobody knows what of the table is still of use.  Therefore a table
serves many generations, until it has grown by half; then a new one begins, everything is translated once more as if
nothing were known of the last generation (which finds nearly all of it here), and what that did not ask for is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final, TypeVar

_T = TypeVar("_T")


#: A table may grow by so many results, and by a share of what it began with.
_ROOM: Final = 2000


class Memo:
    """A table of results; ``previous`` is the one before."""

    def __init__(self, previous: Memo | None = None) -> None:
        self._now: dict[Hashable, Any] = {}
        self._before: dict[Hashable, Any] = previous._now if previous is not None else {}
        self._began_with: int | None = None

    def get(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Return the result for ``key``, making it if neither this table nor the last one has it."""
        found: _T | None = self._now.get(key)
        if found is None:
            found = self._before.get(key)
            if found is None:
                found = make()
            self._now[key] = found
        return found

    def settle(self) -> bool:
        """A generation was asked for everything that it needs.  Tells whether the table can serve the next one, too."""
        self._before = {}
        if self._began_with is None:
            self._began_with = len(self._now)
        return len(self._now) <= self._began_with + max(_ROOM, self._began_with // 2)
