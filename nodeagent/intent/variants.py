"""Equally named things of several views: which of them are one, and what the others are called (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

_Content = TypeVar("_Content")


class Variants(Generic[_Content]):
    """Names shared by views that agree.

    Where they do not, the version of the first view keeps the name, and each other version is `NAME @ VIEW` after the
    first view that has it.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, dict[str, _Content]] = {}
        self._variant: dict[tuple[str, str], str] = {}
        self._all: dict[str, _Content] = {}
        self._split: set[str] = set()

    def add(self, view: str, contents: Mapping[str, _Content]) -> None:
        """The contents of a view by name. Views are added in the order of their keys."""
        for name, content in contents.items():
            self._by_name.setdefault(name, {})[view] = content

    def settle(self) -> None:
        """Decide, once all views are added."""
        for name in sorted(self._by_name):
            versions: list[tuple[_Content, str]] = []
            for view, content in self._by_name[name].items():
                known = next((variant for other, variant in versions if other is content or other == content), None)
                if known is None:
                    known = name if not versions else f"{name} @ {view}"
                    versions.append((content, known))
                    self._all[known] = content
                self._variant[view, name] = known
            if len(versions) > 1:
                self._split.update(variant for _, variant in versions)

    def variant(self, view: str, name: str) -> str:
        """What `name` of `view` is called. Raises KeyError for a name that the view has not got."""
        return self._variant[view, name]

    def all(self) -> Mapping[str, _Content]:
        """Every version by its name, sorted."""
        return self._all

    def split(self) -> frozenset[str]:
        """Versions of names that are not equal in all views."""
        return frozenset(self._split)
