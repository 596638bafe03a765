"""Weighted choice and the choice of an endpoint: exact where they are exact, statistically right where they are not."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.abi.codec import offset_of
from nodeagent.abi.numbers import CLUSTER_SLOTS, WEIGHTS, ActionKind, Lb, Reason
from nodeagent.abi.records import Action, Cluster, Weight
from tests.support.core_memory import core

pytestmark = pytest.mark.needs("core")

RANDOM = st.integers(0, 2**32 - 1)
# The 99.99 % quantiles of chi-square, by degrees of freedom: seeds are fixed, so this is no lottery.
CHI_SQUARE = {1: 15.1, 2: 18.4, 3: 21.1, 7: 29.9, 15: 44.3, 99: 162.5, 255: 347.7}


def action(*weights: int) -> bytes:
    total, to = 0, []
    for k, weight in enumerate(weights):
        total += weight
        to.append(Weight(total, k + 1))
    return Action(1, ActionKind.CLUSTERS, 0, len(to), 0, total, tuple(to)).pack()


def cluster(*slots: int, lb: int = Lb.ROUND_ROBIN, live: int = 1, turn: int = 0) -> bytearray:
    return bytearray(Cluster(n=len(slots), lb=lb, turn=turn, choices=2, live=live, slot=slots).pack())


def chi_square(counts: Counter[int], expected: dict[int, float]) -> float:
    return sum((counts[k] - e) ** 2 / e for k, e in expected.items())


@settings(deadline=None)
@given(weights=st.lists(st.integers(0, 2**16), min_size=2, max_size=WEIGHTS), chance=RANDOM)
def test_the_destination_whose_share_the_number_falls_into(weights: list[int], chance: int) -> None:
    """Envoy's rule: a number below the total, the first running sum above it."""
    if not any(weights):
        weights[-1] = 1
    drawn = chance * sum(weights) >> 32
    running, expected = 0, 0
    for k, weight in enumerate(weights):
        running += weight
        if drawn < running:
            expected = k + 1
            break
    chosen = core().action_cluster(action(*weights), chance)
    assert chosen == expected
    assert weights[chosen - 1] > 0


@settings(deadline=None)
@given(chance=RANDOM, weight=st.integers(0, 2**32 - 1))
def test_one_destination_needs_no_number(chance: int, weight: int) -> None:
    assert core().action_cluster(action(weight), chance) == 1


@pytest.mark.parametrize("weights", [(50, 50), (90, 10), (1, 1, 98), (75, 5, 5, 15), (1,) * WEIGHTS])
def test_weights_hold(weights: tuple[int, ...]) -> None:
    draw, data, n = random.Random(11), action(*weights), 20_000
    counts = Counter(core().action_cluster(data, draw.getrandbits(32)) for _ in range(n))
    assert set(counts) == set(range(1, len(weights) + 1))
    shares = {k + 1: n * weight / sum(weights) for k, weight in enumerate(weights)}
    assert chi_square(counts, shares) < CHI_SQUARE[len(weights) - 1]


@pytest.mark.parametrize("n", [1, 2, 3, 7, CLUSTER_SLOTS])
def test_round_robin_is_even_and_in_order(n: int) -> None:
    slots = tuple(range(100, 100 + n))
    memory = cluster(*slots)
    found = [core().balance(memory, 0)[1] for _ in range(3 * n)]
    assert found == list(slots) * 3


def test_round_robin_begins_anew_when_the_cluster_has_shrunk() -> None:
    for turn in (3, 2**32 - 1):
        memory = cluster(5, 6, turn=turn)
        assert [core().balance(memory, 0)[1] for _ in range(3)] == [5, 6, 5]


@pytest.mark.parametrize("n", [2, 3, 4, 8, 16, CLUSTER_SLOTS])
def test_random_is_uniform(n: int) -> None:
    draw, memory, rounds = random.Random(5), cluster(*range(1, n + 1), lb=Lb.RANDOM), 100 * n + 5000
    counts = Counter(core().balance(memory, draw.getrandbits(32))[1] for _ in range(rounds))
    assert chi_square(counts, dict.fromkeys(range(1, n + 1), rounds / n)) < CHI_SQUARE[n - 1]
    assert Cluster.unpack(bytes(memory)).turn == 0


@pytest.mark.parametrize("n", [2, 3, 4, 8, 16])
def test_least_request_draws_two_as_if_independently(n: int) -> None:
    """Every pair is as likely as every other, so that comparing the two balances as Envoy's two choices do."""
    draw, memory, rounds = random.Random(6), cluster(*range(n), lb=Lb.LEAST_REQUEST), 4000 + 60 * n * n
    pairs: Counter[tuple[int, int]] = Counter()
    for _ in range(rounds):
        reason, one, two = core().balance(memory, draw.getrandbits(32))
        assert reason == Reason.OK
        pairs[one, two] += 1
    expected = rounds / n**2
    found = sum((pairs[i, j] - expected) ** 2 / expected for i in range(n) for j in range(n))
    free = n**2 - 1
    # the normal approximation of chi-square, four standard deviations
    assert found < free + 4 * (2 * free) ** 0.5, (found, free)


def test_least_request_is_a_power_of_two_choices() -> None:
    """With the counts that the data path keeps, no endpoint falls behind: at most a few requests apart."""
    draw, n = random.Random(7), 8
    memory, active = cluster(*range(1, n + 1), lb=Lb.LEAST_REQUEST), Counter[int]()
    for _ in range(8000):
        _, one, two = core().balance(memory, draw.getrandbits(32))
        active[two if active[two] < active[one] else one] += 1
    assert max(active.values()) - min(active.values()) < 12


@settings(deadline=None)
@given(
    chance=RANDOM, n=st.integers(1, CLUSTER_SLOTS), lb=st.sampled_from([Lb.ROUND_ROBIN, Lb.RANDOM, Lb.LEAST_REQUEST])
)
def test_a_choice_is_always_a_member(chance: int, n: int, lb: Lb) -> None:
    reason, one, two = core().balance(cluster(*range(1, n + 1), lb=lb, turn=chance), chance)
    assert reason == Reason.OK
    assert 1 <= one <= n
    assert (1 <= two <= n) if lb == Lb.LEAST_REQUEST else two == 0


def test_nothing_to_choose_from() -> None:
    assert core().balance(cluster(live=0), 1)[0] == Reason.NO_CLUSTER
    assert core().balance(cluster(1, live=0), 1)[0] == Reason.NO_CLUSTER
    assert core().balance(cluster(), 1)[0] == Reason.NO_ENDPOINT
    damaged = cluster(1)
    at = offset_of("up_cluster", "n")
    damaged[at : at + 4] = (CLUSTER_SLOTS + 1).to_bytes(4, "little")
    assert core().balance(damaged, 1) == (Reason.NO_ENDPOINT, 0, 0)
