"""After a change: what the control plane says of it, and whether the nodes follow it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from underpass.lab.state import State


def report_verdicts(state: State, paths: Sequence[str], say: Callable[[str], None]) -> bool:
    raise NotImplementedError


def wait_applied(state: State) -> None:
    raise NotImplementedError
