"""When an Envoy is started, believed, given up, started again and ended.  Sans-IO.

Facts go in with the time at which they were seen; orders come out. Whoever carries them out asks again at `wake`. Times
are seconds of any clock that does not jump.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class State(StrEnum):
    """How the process stands."""

    IDLE = "idle"  # not asked for yet
    STARTING = "starting"
    READY = "ready"
    ENDING = "ending"  # told to die, because it never was ready or answers no more; another one comes
    WAITING = "waiting"  # dead; started again at `wake`
    DRAINING = "draining"  # takes no new connections and tells the old ones to close
    STOPPING = "stopping"
    STOPPED = "stopped"  # for good


class Order(StrEnum):
    """What is to be done."""

    SPAWN = "spawn"
    DRAIN = "drain"  # fail its health check, then close its listeners
    TERMINATE = "terminate"
    KILL = "kill"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds and counts.

    first_delay, longest_delay: back-off before another start, doubled each time that one did not last `steady`.
    most_starts: of them in any `window`. start: until it must be ready; silence: how long a ready one may answer no
    probe; drain: for requests under way; term: between SIGTERM and SIGKILL. probe_*: between two probes.
    """

    first_delay: float = 0.05
    longest_delay: float = 30.0
    steady: float = 10.0
    window: float = 60.0
    most_starts: int = 10
    start: float = 30.0
    silence: float = 10.0
    drain: float = 5.0
    term: float = 5.0
    probe_starting: float = 0.05
    probe_ready: float = 1.0


USUAL: Final = Bounds()


class Supervisor:
    """One process, over all its lives. Each method takes a fact and returns the orders that follow from it."""

    def __init__(self, bounds: Bounds = USUAL) -> None:
        self._bounds = bounds
        self.state = State.IDLE
        self.reason = ""
        self.restarts = 0
        self.wake: float | None = None
        self._starts: deque[float] = deque(maxlen=bounds.most_starts)
        self._delay = bounds.first_delay
        self._deadline = 0.0
        self._ready_since = 0.0

    @property
    def ready(self) -> bool:
        """Whether it is believed to serve."""
        return self.state is State.READY

    @property
    def probing(self) -> bool:
        """Whether an answer of the process would be of use now."""
        return self.state in (State.STARTING, State.READY, State.DRAINING)

    def begin(self, now: float) -> list[Order]:
        """It is wanted."""
        return self._spawn(now) if self.state is State.IDLE else []

    def probed(self, now: float, alive: bool, idle: bool = False) -> list[Order]:
        """Its readiness was asked for. alive: it said that it serves; idle: it has no connections."""
        if self.state is State.STARTING and alive:
            self.state, self.reason = State.READY, ""
            self._ready_since = now
            self._deadline = now + self._bounds.silence
        elif self.state is State.READY and alive:
            self._deadline = now + self._bounds.silence
            if now - self._ready_since >= self._bounds.steady:
                self._delay = self._bounds.first_delay
        elif self.state is State.DRAINING and idle:
            return self._terminate(now)
        return self.tick(now)

    def exited(self, now: float, how: str) -> list[Order]:
        """The process is no more, or could not be started; `how` says it for people."""
        if self.state in (State.DRAINING, State.STOPPING):
            self.state, self.reason, self.wake = State.STOPPED, how, None
            return []
        if self.state not in (State.STARTING, State.READY, State.ENDING):
            return []
        steady = self.state is State.READY and now - self._ready_since >= self._bounds.steady
        if self.state is not State.ENDING:
            self.reason = how
        if steady:
            self._delay = self._bounds.first_delay
        at = now + self._delay
        self._delay = min(2 * self._delay, self._bounds.longest_delay)
        if len(self._starts) == self._bounds.most_starts:
            at = max(at, self._starts[0] + self._bounds.window)
        self.state, self.wake = State.WAITING, at
        return []

    def stop(self, now: float) -> list[Order]:
        """It is not wanted any more."""
        if self.state in (State.IDLE, State.WAITING):
            self.state, self.reason, self.wake = State.STOPPED, "", None
            return []
        if self.state is State.READY:
            self.state, self.reason = State.DRAINING, "told to stop"
            self._deadline = now + self._bounds.drain
            self.wake = now
            return [Order.DRAIN]
        if self.state is State.STARTING:
            return self._terminate(now)
        if self.state is State.ENDING:
            self.state = State.STOPPING  # the order to die was given and has its bound
        return []

    def tick(self, now: float) -> list[Order]:
        """Time went by."""
        if self.state is State.WAITING:
            if self.wake is not None and now >= self.wake:
                self.restarts += 1
                return self._spawn(now)
            return []
        if self.state in (State.IDLE, State.STOPPED):
            return []
        if now < self._deadline:
            self._set_wake(now)
            return []
        if self.state is State.STARTING:
            return self._end(now, f"not ready within {self._bounds.start:g} s")
        if self.state is State.READY:
            return self._end(now, f"no answer for {self._bounds.silence:g} s")
        if self.state is State.DRAINING:
            return self._terminate(now)
        self._deadline = now + self._bounds.term  # ENDING, STOPPING: and again, should it survive even that
        self._set_wake(now)
        return [Order.KILL]

    def _spawn(self, now: float) -> list[Order]:
        self._starts.append(now)
        self.state = State.STARTING
        self._deadline = now + self._bounds.start
        self._set_wake(now)
        return [Order.SPAWN]

    def _end(self, now: float, why: str) -> list[Order]:
        self.state, self.reason = State.ENDING, why
        self._deadline = now + self._bounds.term
        self._set_wake(now)
        return [Order.TERMINATE]

    def _terminate(self, now: float) -> list[Order]:
        self.state, self.reason = State.STOPPING, "told to stop"
        self._deadline = now + self._bounds.term
        self._set_wake(now)
        return [Order.TERMINATE]

    def _set_wake(self, now: float) -> None:
        probe = self._bounds.probe_ready if self.state is State.READY else self._bounds.probe_starting
        self.wake = min(self._deadline, now + probe) if self.probing else self._deadline
