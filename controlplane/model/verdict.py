"""What became of an object that somebody wrote: the answer that users see, so it is output and not an exception."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

State = Literal["accepted", "rejected", "shadowed"]


@dataclass(frozen=True, slots=True, order=True)
class Note:
    """A remark on an accepted object: a stable code, the message, and the line that it is about."""

    line: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """One object's state.

    ``rejected``: this version is not in force (``last_good`` tells whether an earlier one is).  ``shadowed``: valid,
    but another object that is older, or written first, takes its place entirely.  ``code`` and ``reason`` are empty
    for an accepted object.  ``kind``, ``namespace`` and ``name`` are empty when a document has no readable identity.
    """

    kind: str
    namespace: str
    name: str
    file: str
    line: int
    state: State
    code: str = ""
    reason: str = ""
    last_good: bool = False
    notes: tuple[Note, ...] = field(default=())
