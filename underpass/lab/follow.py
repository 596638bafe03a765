"""After a change: what the control plane says of it, and whether the nodes follow it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from underpass.lab.state import State


def report_verdicts(state: State, paths: Sequence[str], say: Callable[[str], None]) -> bool:
    """Print what the control plane says of the objects of `paths`. True when one of them was rejected."""
    if not state.options.mesh:
        return False
    raise NotImplementedError


def wait_applied(state: State) -> None:
    """Wait until every node's agent has applied what the control plane serves."""
    if not state.options.mesh:
        return
    raise NotImplementedError
