"""The supervisor's machine: every turn it can take, and laws that hold whatever happens in which order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.waypoint.supervisor import USUAL, Bounds, Order, State, Supervisor


def ready(now: float = 0.0) -> Supervisor:
    machine = Supervisor()
    assert machine.begin(now) == [Order.SPAWN]
    assert not machine.ready
    assert machine.probed(now + 0.1, alive=False) == []
    assert machine.state is State.STARTING
    assert machine.probed(now + 0.2, alive=True) == []
    assert machine.ready
    return machine


def test_it_is_started_once_and_believed_when_it_says_so() -> None:
    machine = ready()
    assert machine.begin(1.0) == []
    assert machine.wake == pytest.approx(0.2 + USUAL.probe_ready)


def test_a_crash_is_answered_by_another_start_after_the_first_delay() -> None:
    machine = ready()
    assert machine.exited(5.0, "killed by SIGKILL") == []
    assert (machine.state, machine.reason, machine.ready) == (State.WAITING, "killed by SIGKILL", False)
    assert machine.wake == pytest.approx(5.0 + USUAL.first_delay)
    assert machine.tick(5.01) == []
    assert machine.tick(5.06) == [Order.SPAWN]
    assert machine.restarts == 1
    machine.probed(5.5, alive=True)
    assert (machine.state, machine.reason) == (State.READY, "")


def test_the_delay_doubles_until_one_has_lasted() -> None:
    machine, now, delays = Supervisor(), 0.0, []
    machine.begin(now)
    for _ in range(4):
        machine.exited(now, "ended with status 1")
        assert machine.wake is not None
        delays.append(machine.wake - now)
        now = machine.wake
        assert machine.tick(now) == [Order.SPAWN]
    assert delays == pytest.approx([0.05, 0.1, 0.2, 0.4])
    machine.probed(now, alive=True)
    machine.exited(now + USUAL.steady, "killed by SIGSEGV")
    assert machine.wake == pytest.approx(now + USUAL.steady + USUAL.first_delay)


def test_one_that_never_is_ready_is_ended_and_killed_in_the_end() -> None:
    machine = Supervisor()
    machine.begin(0.0)
    assert machine.tick(29.9) == []
    assert machine.tick(30.0) == [Order.TERMINATE]
    assert (machine.state, machine.reason) == (State.ENDING, "not ready within 30 s")
    assert machine.tick(34.0) == []
    assert machine.tick(35.0) == [Order.KILL]
    assert machine.tick(40.0) == [Order.KILL]
    machine.exited(40.1, "killed by SIGKILL")
    assert (machine.state, machine.reason) == (State.WAITING, "not ready within 30 s")


def test_one_that_answers_no_more_is_replaced() -> None:
    machine = ready()
    assert machine.probed(9.0, alive=False) == []
    assert machine.probed(9.5, alive=True) == []
    assert machine.probed(19.4, alive=False) == []
    assert machine.ready
    assert machine.probed(19.5, alive=False) == [Order.TERMINATE]
    assert not machine.ready


def test_stopping_drains_until_nobody_is_connected() -> None:
    machine = ready()
    assert machine.stop(1.0) == [Order.DRAIN]
    assert not machine.ready
    assert machine.probed(1.2, alive=False, idle=False) == []
    assert machine.probed(1.3, alive=False, idle=True) == [Order.TERMINATE]
    assert machine.stop(1.4) == []
    machine.exited(1.5, "ended with status 0")
    assert (machine.state, machine.wake) == (State.STOPPED, None)
    assert machine.tick(99.0) == []


def test_draining_and_stopping_have_their_bounds() -> None:
    machine = ready()
    machine.stop(1.0)
    assert machine.probed(5.9, alive=False) == []
    assert machine.probed(6.0, alive=False) == [Order.TERMINATE]
    assert machine.tick(10.9) == []
    assert machine.tick(11.0) == [Order.KILL]


@pytest.mark.parametrize("crashed", [False, True])
def test_stopping_what_does_not_run_is_over_at_once(crashed: bool) -> None:
    machine = Supervisor()
    if crashed:
        machine.begin(0.0)
        machine.exited(0.1, "ended with status 1")
    assert machine.stop(0.2) == []
    assert machine.state is State.STOPPED
    assert machine.tick(100.0) == []


FACTS = st.lists(
    st.tuples(st.sampled_from(["tick", "alive", "silent", "idle", "exited", "stop"]), st.floats(0, 40)), max_size=80
)


@given(FACTS)
def test_laws(facts: list[tuple[str, float]]) -> None:
    """Never two processes at once, never more starts than the window allows, none after a stop, always a next look."""
    bounds = Bounds(most_starts=4, window=60.0)
    machine, now, runs, stopped = Supervisor(bounds), 0.0, False, False
    starts: list[float] = []

    def take(orders: list[Order]) -> None:
        nonlocal runs
        for order in orders:
            if order is Order.SPAWN:
                assert not runs
                assert not stopped
                runs = True
                starts.append(now)
            else:
                assert runs, f"{order} for nobody"

    take(machine.begin(now))
    for fact, later in facts:
        now += later
        if fact == "exited" and runs:
            runs = False
            take(machine.exited(now, "died"))
        elif fact == "stop":
            stopped = True
            take(machine.stop(now))
        elif fact in ("alive", "silent", "idle") and machine.probing:
            take(machine.probed(now, fact == "alive", fact == "idle"))
        elif fact == "tick":
            take(machine.tick(now))
        assert machine.state is State.STOPPED or machine.wake is not None
        assert not (machine.ready and not runs)
        if stopped:
            assert not machine.ready
            assert runs or machine.state is State.STOPPED
    for first, fifth in zip(starts, starts[4:], strict=False):
        assert fifth - first >= bounds.window
