"""What clients are served, as values: content-addressed resources, their states, and the difference between states.

Pure. The law that ``tests/laws`` holds: ``apply(a, diff(a, b)) == b`` for any two states.
"""

from controlplane.snapshot.build import Builder
from controlplane.snapshot.references import Dangling, check, needs
from controlplane.snapshot.resource import Resource, encode
from controlplane.snapshot.state import EMPTY, Change, Snapshot, TypeState, apply, diff

__all__ = [
    "EMPTY",
    "Builder",
    "Change",
    "Dangling",
    "Resource",
    "Snapshot",
    "TypeState",
    "apply",
    "check",
    "diff",
    "encode",
    "needs",
]
