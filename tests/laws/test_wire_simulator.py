"""Wires under a simulated network: whatever it does, each request reaches its endpoint once, each response its client.

The numbers are made by libcore.so; see tests/support/wire_datapath.py.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.wire_simulator import Plan, Request, World
from tests.support.wire_tcp import Shape, Violation

pytestmark = pytest.mark.needs("core")


def requests(*hosts: int, first: int = 0, body: int = 0) -> tuple[Request, ...]:
    return tuple(Request(first + k, host, body) for k, host in enumerate(hosts))


def played(plan: Plan, tape: list[int] | None = None) -> World:
    world = World(plan, tape or [])
    world.play()
    return world


def test_a_calm_network_needs_no_home() -> None:
    world = played(Plan((requests(0, 1, 0, 0, 1, 1, 0, 1, 0, 1, body=250),), seed=1))
    assert world.path.counts["kernel"] == 10
    assert "home" not in world.path.counts
    assert [len(server.served) for server in world.servers] == [5, 5]
    assert world.path.counts["same wire"] == 2


def test_clients_give_each_other_their_wires() -> None:
    world = played(Plan((requests(*[0, 1] * 6), requests(*[1, 0] * 6, first=100)), seed=2))
    assert world.path.counts["kernel"] > 12


def test_a_host_of_homes_is_served_by_home() -> None:
    world = played(Plan((requests(0, 7, 1, 7, 7, 0, body=130),), seed=3))
    assert [number for number, _ in world.homes[0].served] == [1, 3, 4]
    assert world.path.counts["kernel"] == 3


def test_cut_heads_go_home_and_the_kernel_takes_over_again() -> None:
    size = len(Request(0, 0).wire())
    for cut in range(1, size):
        world = played(Plan(((Request(0, 0, cuts=(cut,)), Request(1, 1), Request(2, 0)),), seed=cut))
        assert [number for number, _ in world.homes[0].served] == [0]
        assert world.path.counts["kernel"] == 2
        assert world.path.counts["sync"] >= 1


def test_pipelined_requests_are_answered_in_order_by_their_endpoints() -> None:
    plan = Plan((tuple(Request(k, k % 2, 40 * (k % 3), behind=k % 4 in (1, 2)) for k in range(12)),), seed=4)
    world = played(plan)
    assert world.path.counts["home"] + world.path.counts.get("pipelined", 0) > 0


def test_a_small_window_holds_packets_back() -> None:
    small = Shape(room=220, mss=90)
    world = played(Plan((requests(0, 1, 0, 1, body=600),), servers=(small,), home=Shape(room=5000), seed=5))
    assert world.path.counts["window held"] > 0
    assert not any(server.tcp.refused for server in world.servers)


def test_an_owner_is_answered_in_its_own_numbers() -> None:
    world = played(Plan((requests(0, 1, 0, 1),), seed=6))
    for k, owner in enumerate(world.owners):
        before = owner.rcv, owner.una
        for _ in range(3):
            owner.probe()
            world.servers[k].tcp.probe()
            while world.flight:
                world.deliver(*world.flight.pop(0))
        assert (owner.rcv, owner.una) == before


# ---- any schedule ----

_SHAPE = st.builds(
    Shape,
    room=st.sampled_from([150, 400, 1000, 5000]),
    mss=st.sampled_from([60, 100, 1000]),
    scale=st.sampled_from([0, 0, 1, 4]),
    tsoff=st.sampled_from([0, 5, 2**31 - 1500, 2**32 - 1500, 123456789]),
    delay=st.booleans(),
)


@st.composite
def _plans(draw: st.DrawFn) -> Plan:
    endpoints = draw(st.integers(1, 3))
    clients = []
    for i in range(draw(st.integers(1, 3))):
        one = []
        for k in range(draw(st.integers(1, 8))):
            one.append(
                Request(
                    100 * i + k,
                    draw(st.sampled_from([*range(endpoints), *range(endpoints), 9])),
                    draw(st.sampled_from([0, 0, 1, 90, 350])),
                    tuple(draw(st.lists(st.integers(1, 200), max_size=2))) if draw(st.integers(0, 5)) == 0 else (),
                    draw(st.integers(0, 5)) == 0,
                )
            )
        clients.append(tuple(one))
    return Plan(
        tuple(clients), endpoints, draw(st.integers(1, 2)), draw(_SHAPE), draw(_SHAPE),
        tuple(draw(st.lists(_SHAPE, min_size=1, max_size=3))), draw(_SHAPE), draw(st.integers(0, 2**16)),
    )  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(plan=_plans(), tape=st.lists(st.integers(0, 15), max_size=400))
def test_any_schedule_ends_well(plan: Plan, tape: list[int]) -> None:
    played(plan, tape)


def schedules(first: int, count: int) -> dict[str, int]:
    """Random plans and tapes, longer and rougher than hypothesis likes them; what happened in them."""
    seen: dict[str, int] = {}
    for seed in range(first, first + count):
        chance = random.Random(seed)
        largest = chance.choice((60, 100, 400))
        shapes = [
            Shape(
                chance.choice((2 * largest, 3 * largest, 1000, 5000)), largest if k != 4 else 1000,
                chance.choice((0, 0, 1, 4)), chance.getrandbits(32), chance.random() < 0.5,
            )
            for k in range(5)
        ]  # fmt: skip
        endpoints = chance.randint(1, 3)
        clients = tuple(
            tuple(
                Request(
                    100 * i + k, chance.choice([*range(endpoints)] * 3 + [9]), chance.choice((0, 0, 1, 90, 350)),
                    (chance.randint(1, 120),) if chance.random() < 0.1 else (), chance.random() < 0.1,
                )
                for k in range(chance.randint(1, 25))
            )
            for i in range(chance.randint(1, 4))
        )  # fmt: skip
        wires = chance.randint(1, 2)
        plan = Plan(clients, endpoints, wires, shapes[0], shapes[1], tuple(shapes[2:4]), shapes[4], seed)
        world = World(plan, [chance.choice((0, 0, chance.randrange(16))) for _ in range(chance.choice((0, 300, 3000)))])
        try:
            world.play()
        except Violation as wrong:
            raise AssertionError(f"seed {seed}: {wrong}") from wrong
        for name, number in world.path.counts.items():
            seen[name] = seen.get(name, 0) + number
    return seen


def test_many_rough_schedules() -> None:
    seen = schedules(0, 300)
    for name in ("kernel", "home", "switch", "same wire", "held", "cut", "window held", "owner silenced", "turned",
                 "reclaimed", "wire gone", "sync", "gap", "pipelined"):  # fmt: skip
        assert seen.get(name, 0) > 5, (name, seen)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_very_many_rough_schedules() -> None:
    schedules(1_000_000, 20_000)
