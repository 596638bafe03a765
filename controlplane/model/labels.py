"""Labels as sorted tuples of pairs, so that everything which holds them stays hashable and ordered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Labels = tuple[tuple[str, str], ...]
"""Key and value pairs, sorted by key, keys unique."""


def freeze(labels: Mapping[str, str] | Iterable[tuple[str, str]]) -> Labels:
    """Return the labels as a sorted tuple; a later duplicate of a key wins, as in a mapping."""
    return tuple(sorted(dict(labels).items()))


def selects(selector: Labels, labels: Labels) -> bool:
    """True when every pair of ``selector`` is among ``labels``.  An empty selector selects everything."""
    if not selector:
        return True
    have = dict(labels)
    return all(have.get(key) == value for key, value in selector)


def get(labels: Labels, key: str, default: str = "") -> str:
    """Return the value of one label, or ``default``."""
    for name, value in labels:
        if name == key:
            return value
    return default
