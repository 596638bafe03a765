"""The bound on bytes in flight: room is given in order, and patience ends."""

from __future__ import annotations

import asyncio
import time

from controlplane.xds.throttle import Throttle


def test_writers_wait_for_room_and_are_let_in_in_order() -> None:
    async def run() -> list[int]:
        throttle = Throttle(limit=10, patience=5, least=0)
        order: list[int] = []

        async def writer(number: int) -> None:
            await throttle.room()
            order.append(number)
            ticket = throttle.enter(10)
            await asyncio.sleep(0.001)
            throttle.leave(ticket, 10)

        began = time.monotonic()
        await asyncio.gather(*(writer(n) for n in range(5)))
        assert time.monotonic() - began < 1
        assert throttle.in_flight == 0
        return order

    assert asyncio.run(run()) == [0, 1, 2, 3, 4]


def test_nobody_waits_for_a_client_that_does_not_read() -> None:
    async def run() -> float:
        throttle = Throttle(limit=10, patience=0.05, least=0)
        throttle.enter(10)  # never leaves
        began = time.monotonic()
        await asyncio.gather(*(throttle.room() for _ in range(100)))
        return time.monotonic() - began

    assert 0.04 < asyncio.run(run()) < 1


def test_clients_that_never_read_are_waited_for_once_not_for_ever() -> None:
    async def run() -> float:
        throttle = Throttle(limit=10, patience=0.05, least=0)
        tickets = [throttle.enter(10) for _ in range(50)]
        await throttle.room()
        began = time.monotonic()
        for _ in range(100):
            await throttle.room()
        for ticket in tickets:
            throttle.leave(ticket, 10)  # it did read in the end: not counted twice
        assert throttle.in_flight == 0
        return time.monotonic() - began

    assert asyncio.run(run()) < 0.05


def test_small_messages_do_not_count() -> None:
    async def run() -> None:
        throttle = Throttle(limit=10, patience=5, least=5)
        tickets = [throttle.enter(4) for _ in range(100)]
        await asyncio.wait_for(throttle.room(), 1)
        for ticket in tickets:
            throttle.leave(ticket, 4)
        assert throttle.in_flight == 0

    asyncio.run(run())


def test_a_waiter_that_is_cancelled_loses_its_place_only() -> None:
    async def run() -> None:
        throttle = Throttle(limit=1, patience=5, least=0)
        ticket = throttle.enter(1)
        first, second = asyncio.ensure_future(throttle.room()), asyncio.ensure_future(throttle.room())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        throttle.leave(ticket, 1)
        await asyncio.wait_for(second, 1)

    asyncio.run(run())


def test_while_others_read_one_waits_longer_than_patience() -> None:
    """A thousand clients, each served soon after the last: the ones at the end must not all be let in at once."""

    async def run() -> tuple[int, float]:
        throttle, most = Throttle(limit=10, patience=0.05, least=0), 0

        async def writer() -> None:
            nonlocal most
            await throttle.room()
            ticket = throttle.enter(10)
            most = max(most, throttle.in_flight)
            await asyncio.sleep(0.01)
            throttle.leave(ticket, 10)

        began = time.monotonic()
        await asyncio.gather(*(writer() for _ in range(30)))
        return most, time.monotonic() - began

    most, took = asyncio.run(run())
    assert took > 0.05, "longer than patience"
    assert most <= 50, "a few more than there is room for, never all"


def test_a_writer_that_gives_up_takes_nobodys_place() -> None:
    async def run() -> None:
        throttle = Throttle(limit=10, patience=5, least=0)
        ticket = throttle.enter(10)
        gone = asyncio.ensure_future(throttle.room())
        waiting = asyncio.ensure_future(throttle.room())
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        throttle.leave(ticket, 10)
        await asyncio.wait_for(waiting, 1)

    asyncio.run(run())
