"""The result of translation."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

Message = Any
"""An upb message of :mod:`underpass.api.envoy`; shared, never to be modified."""

Resources = Mapping[str, Mapping[str, Message]]
"""Type URL -> resource name -> message."""


class Table(dict[str, Message]):
    """Messages of one type by name, sorted, that may know which table they were derived from.

    ``origin`` refers to it weakly, so that no chain of generations is kept alive; ``differing`` are the names whose
    messages are others, new or gone since.  Whoever made something of the origin need look at those only.
    """

    __slots__ = ("__weakref__", "differing", "origin")

    def __init__(self, items: Mapping[str, Message] | Iterable[tuple[str, Message]] = ()) -> None:
        super().__init__(items)
        self.origin: weakref.ref[Table] | None = None
        self.differing: frozenset[str] = frozenset()

    def derived(self, drop: Iterable[str], put: Mapping[str, Message]) -> Table:
        """This table without *drop*, and with *put*; the same object if that changes nothing."""
        gone = {name for name in drop if name in self and name not in put}
        new = {name: message for name, message in put.items() if self.get(name) is not message}
        if not gone and not new:
            return self
        if gone or any(name not in self for name in new):
            merged = {name: message for name, message in self.items() if name not in gone} | new
            made = Table((name, merged[name]) for name in sorted(merged))
        else:
            made = Table(self)
            made.update(new)
        made.origin, made.differing = weakref.ref(self), frozenset((*gone, *new))
        return made
