"""The bound on bytes in flight: room is given in order, and patience ends."""

from __future__ import annotations

import asyncio
import time

from controlplane.xds.throttle import Throttle


def test_writers_wait_for_room_and_are_let_in_in_order() -> None:
    async def run() -> list[int]:
        throttle = Throttle(limit=10, patience=5)
        order: list[int] = []

        async def writer(number: int) -> None:
            await throttle.room()
            order.append(number)
            throttle.enter(10)
            await asyncio.sleep(0.001)
            throttle.leave(10)

        began = time.monotonic()
        await asyncio.gather(*(writer(n) for n in range(5)))
        assert time.monotonic() - began < 1
        assert throttle.in_flight == 0
        return order

    assert asyncio.run(run()) == [0, 1, 2, 3, 4]


def test_nobody_waits_for_a_client_that_does_not_read() -> None:
    async def run() -> float:
        throttle = Throttle(limit=10, patience=0.05)
        throttle.enter(10)  # never leaves
        began = time.monotonic()
        await asyncio.gather(*(throttle.room() for _ in range(100)))
        return time.monotonic() - began

    assert 0.04 < asyncio.run(run()) < 1


def test_a_waiter_that_is_cancelled_loses_its_place_only() -> None:
    async def run() -> None:
        throttle = Throttle(limit=1, patience=5)
        throttle.enter(1)
        first, second = asyncio.ensure_future(throttle.room()), asyncio.ensure_future(throttle.room())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        throttle.leave(1)
        await asyncio.wait_for(second, 1)

    asyncio.run(run())
