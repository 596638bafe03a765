"""A bound on the bytes that are under way to all clients together.

A route table of a megabyte for each of a thousand clients is a gigabyte when it is handed to gRPC at once. Writers
wait for room before they assemble their message, which also makes it the newest. No message is counted for longer than
``patience``, and nobody waits longer while nothing arrives: clients that do not read would hold up all others for ever.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Final

#: Bytes in flight above which further writers wait.
LIMIT: Final = 16 << 20
#: Longest wait for room while nothing arrives, and longest time that a message counts, seconds.
PATIENCE: Final = 2.0
#: Messages below this do not count: a timer for each would cost more than they do.
LEAST: Final = 16 << 10
#: Writers that are let in when one leaves; small messages would otherwise drain one by one.
_BATCH: Final = 4


class Throttle:
    """Counts bytes in flight; all methods belong to one event loop."""

    def __init__(self, limit: int = LIMIT, patience: float = PATIENCE, least: int = LEAST) -> None:
        self._limit = limit
        self._least = least
        self._patience = patience
        self._waiting: deque[asyncio.Future[None]] = deque()
        #: When a message last arrived, by the loop's clock.
        self._moved = -math.inf
        self.in_flight = 0

    async def room(self) -> None:
        """Return when there is room, or when for so long as patience goes nothing arrived at anybody."""
        if self.in_flight < self._limit:
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append(future)
        try:
            while not future.done():
                await asyncio.wait((future,), timeout=self._patience)
                if loop.time() - self._moved >= self._patience:
                    return  # nobody reads; go on regardless
        finally:
            future.cancel()  # one that is cancelled is not let in, nor counted as if it were

    def enter(self, size: int) -> asyncio.TimerHandle | None:
        """A message of *size* bytes is handed to gRPC; gives what :meth:`leave` wants back. Small ones do not count."""
        if size < self._least:
            return None
        self.in_flight += size
        return asyncio.get_running_loop().call_later(self._patience, self._left, size)

    def leave(self, ticket: asyncio.TimerHandle | None, size: int) -> None:
        """It arrived, or never will. If that took too long, it is not counted any more."""
        if ticket is not None and ticket.when() > asyncio.get_running_loop().time() and not ticket.cancelled():
            ticket.cancel()
            self._moved = asyncio.get_running_loop().time()
            self._left(size)

    def _left(self, size: int) -> None:
        self.in_flight -= size
        let_in = 0
        while self._waiting and let_in < _BATCH and self.in_flight < self._limit:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                let_in += 1
