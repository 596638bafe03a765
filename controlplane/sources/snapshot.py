"""What a source hands over: files with their documents, at one moment.  Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.sources.documents import RawDocument

Stamp = tuple[int, int, int]
"""Modification time in ns, size, inode."""


@dataclass(frozen=True, slots=True)
class File:
    """One file's documents.  Equal stamps mean the same ``documents`` object."""

    name: str
    stamp: Stamp
    documents: tuple[RawDocument, ...]

    @property
    def modified(self) -> float:
        """Modification time, whole seconds since the epoch."""
        return float(self.stamp[0] // 1_000_000_000)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All files at one moment, by name relative to the directory, in sorted order."""

    files: Mapping[str, File] = field(default_factory=dict)
