"""How many free upstreams to keep for one (workload, endpoint): pure policy, time is an argument.

A miss is a request that found the stock empty and went through home instead. Each miss raises the target by one, so a
burst of N new connections costs at most N slow requests; long without misses, the target sinks again. What was lent at
the same time a moment ago is likely to be lent again: for a minute or two the peak, and an eighth more, stays in hand,
so that requests in flight that waver between endpoints, and clients that come back together, miss nothing. Numbers are
counts of connections and seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the policy.

    warm: kept for a pair in use even without misses; free: most that are kept free, below the kernel's UP_STOCK_SLOTS
    so that returning wires find room; total: most for a pair, lent ones included; burst: most opened in a step; decay:
    without a miss for that long, the target sinks by a quarter; idle: unused for that long, nothing is kept at all;
    lapse: unused for that long, what the endpoint closes for its own idleness is not opened again; memory: for that
    long at least, and at most twice as long, a peak is remembered.
    """

    warm: int = 2
    free: int = 128
    total: int = 1024
    burst: int = 64
    decay: float = 15.0
    idle: float = 600.0
    lapse: float = 10.0
    memory: float = 60.0


@dataclass(slots=True)
class Orders:
    """What to do: connections to open, free ones to close, lent ones to take back from idle clients."""

    open: int = 0
    close: int = 0
    reclaim: int = 0

    def __bool__(self) -> bool:
        return bool(self.open or self.close or self.reclaim)


@dataclass(slots=True)
class Stock:
    """The state of one pair. total: connections that exist, being opened or not; opening: those being opened."""

    limits: Limits = field(default_factory=Limits)
    target: int = 0
    total: int = 0
    opening: int = 0
    failures: int = 0
    retry_at: float = 0.0
    used_at: float = 0.0
    missed_at: float = 0.0
    _misses: int | None = None
    _peak: int = 0  # most wires wanted at the same time since _peak_at; and in the `memory` before
    _peak_before: int = 0
    _peak_at: float = 0.0

    def observe(self, free: int, misses: int, used: bool, now: float) -> Orders:
        """Compares with what the kernel's stock says: its free wires and its wrapping 16-bit count of misses.

        used: whether any request went to the endpoint since the last call.
        """
        fresh = (misses - self._misses) & 0xFFFF if self._misses is not None else misses
        self._misses = misses
        if fresh or used:
            self.used_at = now
        if fresh:
            self.target = min(self.limits.free, max(self.target, self.limits.warm) + fresh)
            self.missed_at = now
        self._remember(self._lent(free) + fresh, now)
        return self._orders(free, now)

    def want(self, now: float) -> None:
        """Somebody will need this pair soon: a client of its cluster has come."""
        self.used_at = now
        if self.target < self.limits.warm:
            self.target = self.limits.warm

    def tick(self, free: int, now: float) -> Orders:
        """The slow part: lets the target sink, and closes what is too much."""
        if now - self.used_at >= self.limits.idle:
            self.forget()
        elif self.target > self.limits.warm and now - self.missed_at >= self.limits.decay:
            self.target = max(self.limits.warm, self.target - max(1, self.target // 4))
            self.missed_at = now
        orders = self._orders(free, now)
        # a margin, so that a wire that is lent and comes back is not closed and opened again
        surplus = free - (max(2 * self.target, self._goal(free)) + self.limits.warm if self.target else 0)
        if surplus > 0:
            orders.close = surplus
        return orders

    def forget(self) -> None:
        """Nobody is expected any more: nothing is kept."""
        self.target = self._peak = self._peak_before = 0

    def _lent(self, free: int) -> int:
        return max(0, self.total - self.opening - free)

    def _remember(self, wanted: int, now: float) -> None:
        age = now - self._peak_at
        if age >= self.limits.memory:
            self._peak_before = self._peak if age < 2 * self.limits.memory else 0
            self._peak, self._peak_at = 0, now
        self._peak = min(self.limits.total, max(self._peak, wanted))

    def _goal(self, free: int) -> int:
        """How many shall be free now."""
        peak = max(self._peak, self._peak_before)
        if not self.target or not peak:
            return self.target
        return min(self.limits.free, max(self.target, peak + peak // 8 - self._lent(free)))

    def _orders(self, free: int, now: float) -> Orders:
        missing = self._goal(free) - free - self.opening
        if missing <= 0:
            return Orders()
        room = max(0, self.limits.total - self.total)
        orders = Orders(reclaim=max(0, missing - room))
        if now >= self.retry_at:
            orders.open = min(missing, room, self.limits.burst)
        return orders

    def opened(self, count: int) -> None:
        """That many connections are being opened."""
        self.total += count
        self.opening += count

    def established(self) -> None:
        """One of them is there."""
        self.opening -= 1
        self.failures = 0
        self.retry_at = 0.0

    def failed(self, now: float) -> None:
        """One of them could not be opened: wait, from 0.1 s, doubling up to 5 s."""
        self.opening -= 1
        self.total -= 1
        if now >= self.retry_at:  # a burst that fails together counts once
            self.retry_at = now + min(5.0, 0.1 * 2**self.failures)
            self.failures = min(self.failures + 1, 16)

    def closed(self) -> None:
        """An established one is gone."""
        self.total -= 1

    def lapsed(self, now: float) -> None:
        """The endpoint has closed a free one: it does not keep idle connections as long as we do."""
        if now - self.used_at >= self.limits.lapse:
            self.forget()
