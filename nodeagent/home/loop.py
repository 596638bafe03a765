"""One thread, one epoll: descriptors with handlers, timers, nothing else.

Not asyncio: an accept-heavy node opens tens of thousands of connections a second whose bytes home never sees, and a
transport, a protocol and several callbacks for each would cost more than all the rest of home.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import select
import time
from collections.abc import Callable

Handler = Callable[[int], None]
IN, OUT, HANGUP, ERROR = select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP, select.EPOLLERR | select.EPOLLHUP

log = logging.getLogger("underpass.home")

_DEAD = 1024  # cancelled timers that are not worth a look


class Timer:
    """A call that is due at some time, unless cancelled."""

    __slots__ = ("_loop", "call")

    def __init__(self, call: Callable[[], None], loop: Loop) -> None:
        self.call: Callable[[], None] | None = call
        self._loop = loop

    def cancel(self) -> None:
        """It will not be called; twice is harmless."""
        if self.call is not None:
            self.call = None
            self._loop.cancelled += 1


class Loop:
    """Calls handlers with the epoll mask of their descriptor.

    now: the monotonic clock at the last wake-up, in s; longest: time between two waits, in s; faults: handlers that
    failed.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._removed: set[int] = set()
        self._soon: list[Callable[[], None]] = []
        self.cancelled = 0  # timers that are still in the heap
        self._running = False
        self.longest = 0.0
        self.now = time.monotonic()
        self.faults = 0

    def add(self, fd: int, mask: int, handler: Handler) -> None:
        """Watches a descriptor."""
        self._epoll.register(fd, mask)
        self._handlers[fd] = handler

    def change(self, fd: int, mask: int) -> None:
        """Watches it for other events."""
        self._epoll.modify(fd, mask)

    def remove(self, fd: int) -> None:
        """Stops watching it; before it is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            self._removed.add(fd)

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        """Calls once, `delay` seconds from now."""
        if self.cancelled > max(_DEAD, len(self._timers) // 2):
            # most requests are done long before their clocks are due: nobody waits for all of those
            self._timers = [entry for entry in self._timers if entry[2].call is not None]
            heapq.heapify(self._timers)
            self.cancelled = 0
        timer = Timer(call, self)
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._order), timer))
        return timer

    def call_soon(self, call: Callable[[], None]) -> None:
        """Calls after the events at hand."""
        self._soon.append(call)

    def call_every(self, interval: float, call: Callable[[], None]) -> None:
        """Calls every `interval` seconds, as long as the loop runs."""

        def again() -> None:
            try:
                call()
            finally:
                self.call_later(interval, again)

        self.call_later(interval, again)

    def stop(self) -> None:
        """Ends `run` after the events at hand."""
        self._running = False

    def run(self) -> None:
        """Runs until `stop`. A handler's exception is logged and counted; it costs its own connection at most."""
        self._running = True
        while self._running:
            timeout = 0.0 if self._soon else 1.0
            if self._timers:
                timeout = min(timeout, max(0.0, self._timers[0][0] - time.monotonic()))
            events = self._epoll.poll(timeout, 64)
            self.now = time.monotonic()
            self._removed.clear()
            for fd, mask in events:
                # An earlier handler of this round may have removed it; and an accept or a connect may have got the same
                # number since, whom this event does not concern.
                if fd not in self._removed:
                    self._guard(self._handlers[fd], mask)
            while self._timers and self._timers[0][0] <= self.now:
                timer = heapq.heappop(self._timers)[2]
                if timer.call is None:
                    self.cancelled -= 1
                    continue
                call, timer.call = timer.call, None
                self._guard_call(call)
            soon, self._soon = self._soon, []
            for each in soon:
                self._guard_call(each)
            self.longest = max(self.longest, time.monotonic() - self.now)

    def _guard_call(self, call: Callable[[], None]) -> None:
        self._guard(lambda _: call(), 0)

    def _guard(self, handler: Handler, mask: int) -> None:
        try:
            handler(mask)
        except Exception:  # one connection's fault must not end all others
            self.faults += 1
            log.exception("handler failed")

    def close(self) -> None:
        """Frees the epoll descriptor."""
        self._epoll.close()
