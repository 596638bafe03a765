"""Messages by the content that they were made from, carried from one generation of the mesh to the next.

This is why an unchanged resource stays the same object, and why a thousand clients do not cost a thousand
translations.  Keys are the complete inputs (values, compared by content), so nothing can go stale; entries that a
generation did not ask for are dropped with it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

_T = TypeVar("_T")


class Memo:
    """A table of results; ``previous`` is the last generation's."""

    def __init__(self, previous: Memo | None = None) -> None:
        self._now: dict[Hashable, Any] = {}
        self._before: dict[Hashable, Any] = previous._now if previous is not None else {}

    def get(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Return the result for ``key``, making it if neither this generation nor the last one has it."""
        found: _T | None = self._now.get(key)
        if found is None:
            found = self._before.get(key)
            if found is None:
                found = make()
            self._now[key] = found
        return found

    def settle(self) -> None:
        """Forget the last generation, once this one has been asked for everything that it needs."""
        self._before = {}
