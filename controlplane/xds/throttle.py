"""A bound on the bytes that are being written to all clients together.

A route table of a megabyte for each of a thousand clients is a gigabyte when it is handed to gRPC at once. Writers
wait for room before they assemble their message, which also makes it the newest. Nobody waits longer than ``patience``:
clients that do not read keep their share occupied, and must not hold up the others for more than that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

#: Bytes in flight above which further writers wait.
LIMIT: Final = 48 << 20
#: Longest wait for room, seconds.
PATIENCE: Final = 2.0
#: Writers that are let in when one leaves; small messages would otherwise drain one by one.
_BATCH: Final = 4


class Throttle:
    """Counts bytes in flight; all methods belong to one event loop."""

    def __init__(self, limit: int = LIMIT, patience: float = PATIENCE) -> None:
        self._limit = limit
        self._patience = patience
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.in_flight = 0

    async def room(self) -> None:
        """Return when there is room, or patience ends."""
        if self.in_flight < self._limit:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            async with asyncio.timeout(self._patience):
                await future
        except TimeoutError:
            pass  # somebody does not read; go on regardless

    def enter(self, size: int) -> None:
        """A message of *size* bytes is handed to gRPC."""
        self.in_flight += size

    def leave(self, size: int) -> None:
        """It is on its way."""
        self.in_flight -= size
        let_in = 0
        while self._waiting and let_in < _BATCH and self.in_flight < self._limit:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                let_in += 1
