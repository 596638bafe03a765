"""What every configuration object has: a name, a place in a file, an age."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from controlplane.model.labels import Labels


@dataclass(frozen=True, slots=True, order=True)
class SourceRef:
    """Where an object was written: file as its author knows it, and the 1-based line."""

    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Key(NamedTuple):
    """Identity of an object.  Cluster-scoped kinds have an empty namespace.

    A tuple, because every change looks all of a large mesh's objects up by it: hashing one costs a tenth of what a
    class's own ``__hash__`` does.
    """

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Meta:
    """What every object has.  ``created`` is seconds since the epoch; it decides which of two rivals is older."""

    key: Key
    source: SourceRef
    created: float = 0.0
    labels: Labels = ()
    annotations: Labels = ()

    @property
    def age(self) -> tuple[float, str, str]:
        """Sort key: older first, ties by name and namespace, as istiod sorts configuration."""
        return (self.created, self.key.name, self.key.namespace)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one rule of a combined object was written: the object, its rule's index and line."""

    meta: Meta
    index: int
    line: int
