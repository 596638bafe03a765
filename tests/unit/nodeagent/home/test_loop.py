"""The loop: handlers, timers, faults, and descriptors that change hands within a round."""

from __future__ import annotations

import os
import socket
from functools import partial

from nodeagent.home.loop import IN, Loop


def test_an_event_is_not_given_to_a_successor_of_the_same_number() -> None:
    loop, seen = Loop(), []
    pairs = [socket.socketpair() for _ in range(2)]
    for _, far in pairs:
        far.send(b"x")
    quiet, quiet_far = socket.socketpair()

    def handler(own: int) -> None:
        """Closes the other one, and gives its number to a socket on which nothing has happened."""
        other = pairs[1 - own][0]
        seen.append(own)
        loop.remove(other.fileno())
        os.dup2(quiet.fileno(), other.fileno())
        loop.add(other.fileno(), IN, lambda mask: seen.append(-1))
        loop.remove(pairs[own][0].fileno())
        loop.call_later(0.05, loop.stop)

    for number, (near, _) in enumerate(pairs):
        loop.add(near.fileno(), IN, lambda _, own=number: handler(own))  # type: ignore[misc]
    loop.run()
    assert seen in ([0], [1])
    loop.close()
    for near, far in [*pairs, (quiet, quiet_far)]:
        near.close()
        far.close()


def test_timers_come_in_order_and_can_be_cancelled() -> None:
    loop, seen = Loop(), []
    loop.call_later(0.03, loop.stop)
    loop.call_later(0.02, lambda: seen.append("b"))
    loop.call_later(0.01, lambda: seen.append("a"))
    cancelled = loop.call_later(0.015, lambda: seen.append("never"))
    cancelled.cancel()
    cancelled.cancel()
    loop.call_soon(lambda: seen.append("soon"))
    loop.run()
    assert seen == ["soon", "a", "b"]


def test_cancelled_timers_do_not_pile_up() -> None:
    """Requests with a timeout of an hour cancel it after a millisecond."""
    loop, seen = Loop(), list[int]()
    kept = [loop.call_later(0.02, partial(seen.append, number)) for number in range(3)]
    for _ in range(50_000):
        loop.call_later(3600, lambda: seen.append(-1)).cancel()
    assert len(loop._timers) < 3000
    kept[1].cancel()
    loop.call_later(0.03, loop.stop)
    loop.run()
    assert seen == [0, 2]
    assert loop.cancelled <= len(loop._timers)


def test_a_fault_costs_nobody_else() -> None:
    loop, seen = Loop(), []
    loop.call_every(0.005, lambda: seen.append(1 // len(seen[:0])))
    near, far = socket.socketpair()
    far.send(b"x")

    def fails(_: int) -> None:
        loop.remove(near.fileno())
        raise ValueError("on purpose")

    loop.add(near.fileno(), IN, fails)
    loop.call_later(0.05, loop.stop)
    loop.run()
    assert loop.faults >= 3
    near.close()
    far.close()
