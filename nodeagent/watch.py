"""Waiting: for quiet, for the next look, for anything to be done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Coalescer:
    """Turns many `touch`es into one wake-up.

    It comes as soon as it has been quiet for `quiet` seconds, and `longest` after the first touch at the latest. What
    several streams say about one edit is so applied together.
    """

    def __init__(self, quiet: float = 0.003, longest: float = 0.025) -> None:
        self._quiet, self._longest = quiet, longest
        self._event = asyncio.Event()
        self._last = 0.0

    def touch(self) -> None:
        """Something happened."""
        self._last = time.monotonic()
        self._event.set()

    async def wait(self) -> None:
        """Until something happened and it is quiet again."""
        await self._event.wait()
        begun = time.monotonic()
        while True:
            self._event.clear()
            now = time.monotonic()
            rest = min(self._last + self._quiet, begun + self._longest) - now
            if rest <= 0:
                return
            await asyncio.sleep(rest)


async def every(interval: float, look: Callable[[], None], trouble: Callable[[Exception], None]) -> None:
    """Call `look` at once and then every `interval` seconds, until cancelled.

    An error is told to `trouble` (once in a row for the same text), and the next look comes all the same.
    """
    told = ""
    while True:
        try:
            look()
            told = ""
        except Exception as error:  # noqa: BLE001 - whatever one look stumbles over must not end the others
            if str(error) != told:
                told = str(error)
                trouble(error)
        await asyncio.sleep(interval)
