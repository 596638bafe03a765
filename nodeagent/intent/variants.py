"""Equally named things of several views: which of them are one, and what the others are called (pure)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

_Content = TypeVar("_Content")


class Variants(Generic[_Content]):
    """Names shared by views that agree.

    Where they do not, each version has a name of its own: `label(content)` is put behind the common one. A version's
    name must then tell its content, since views move between versions one at a time: what is named so never changes.
    Without `label` the version of the first view keeps the name, and others are `NAME @ VIEW`; that will do where a
    name is only a name.
    """

    def __init__(self, label: Callable[[_Content], str] | None = None) -> None:
        self._label = label
        self._by_name: dict[str, dict[str, _Content]] = {}
        self._variant: dict[tuple[str, str], str] = {}
        self._all: dict[str, _Content] = {}

    def add(self, view: str, contents: Mapping[str, _Content]) -> None:
        """The contents of a view by name. Views are added in the order of their keys."""
        for name, content in contents.items():
            self._by_name.setdefault(name, {})[view] = content

    def settle(self) -> None:
        """Decide, once all views are added."""
        for name in sorted(self._by_name):
            versions: list[tuple[_Content, list[str]]] = []
            for view, content in self._by_name[name].items():
                users = next((users for other, users in versions if other is content or other == content), None)
                if users is None:
                    versions.append((content, [view]))
                else:
                    users.append(view)
            for index, (content, users) in enumerate(versions):
                known = name
                if len(versions) > 1 and self._label is not None:
                    known = f"{name} # {self._label(content)}"
                elif index:
                    known = f"{name} @ {users[0]}"
                self._all[known] = content
                for view in users:
                    self._variant[view, name] = known

    def variant(self, view: str, name: str) -> str:
        """What `name` of `view` is called. Raises KeyError for a name that the view has not got."""
        return self._variant[view, name]

    def all(self) -> Mapping[str, _Content]:
        """Every version by its name, sorted."""
        return self._all
