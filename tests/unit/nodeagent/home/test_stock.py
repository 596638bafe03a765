"""The stock's policy: enough after a burst, little after silence, never over a limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nodeagent.home.stock import Limits, Orders, Stock

LIMITS = Limits(warm=2, free=16, total=32, burst=8, decay=10.0, idle=100.0)


def test_a_first_miss_opens_one_more_than_the_warm_ones() -> None:
    stock = Stock(LIMITS)
    assert stock.observe(0, 1, True, 0.0) == Orders(open=3)


def test_a_burst_of_misses_is_answered_by_as_many() -> None:
    stock = Stock(LIMITS)
    assert stock.observe(0, 12, True, 0.0) == Orders(open=8)  # in bursts
    stock.opened(8)
    assert stock.observe(0, 12, True, 0.0) == Orders(open=6)
    stock.opened(6)
    assert not stock.observe(0, 12, True, 0.0)
    assert stock.target == 14


def test_the_count_of_misses_wraps() -> None:
    stock = Stock(LIMITS)
    stock.observe(5, 0xFFFE, True, 0.0)
    stock.target = 5
    stock.observe(5, 1, True, 1.0)
    assert stock.target == 8


def test_the_target_is_bounded_and_sinks_again() -> None:
    stock = Stock(LIMITS)
    stock.observe(0, 500, True, 0.0)
    assert stock.target == 16
    targets = []
    for step in range(1, 20):
        stock.observe(16, 500, True, step * 10.0)
        stock.tick(16, step * 10.0)
        targets.append(stock.target)
    assert targets[:3] == [12, 9, 7]
    assert targets[-1] == LIMITS.warm


def test_surplus_is_closed_with_a_margin() -> None:
    stock = Stock(LIMITS)
    stock.total = 14
    stock.want(0.0)
    assert stock.tick(6, 1.0).close == 0
    assert stock.tick(14, 1.0).close == 8


def test_long_unused_everything_goes() -> None:
    stock = Stock(LIMITS)
    stock.want(0.0)
    stock.total = 2
    assert not stock.tick(2, 99.0)
    assert stock.tick(2, 100.0).close == 2
    assert not stock.tick(0, 101.0)


def test_what_an_endpoint_closes_for_idleness_is_not_opened_for_ever() -> None:
    stock = Stock(LIMITS)
    stock.total = 2
    stock.want(0.0)
    stock.closed()
    stock.lapsed(9.0)
    assert stock.observe(1, 0, False, 9.0) == Orders(open=1)
    stock.lapsed(10.0)
    assert not stock.observe(1, 0, False, 10.0)


def test_at_the_limit_idle_clients_give_wires_back() -> None:
    stock = Stock(LIMITS)
    stock.total = 30
    assert stock.observe(0, 4, True, 0.0) == Orders(open=2, reclaim=4)
    stock.total = 32
    assert stock.observe(0, 4, True, 0.0) == Orders(reclaim=6)


def test_a_peak_is_kept_in_hand_for_a_while() -> None:
    stock = Stock(Limits(free=16, total=32, memory=60.0))
    stock.want(0.0)
    stock.total = 8
    assert stock.observe(0, 0, True, 0.0) == Orders(open=2)  # eight lent, the warm ones free
    stock.opened(2)
    stock.established()
    stock.established()
    for now in (1.0, 59.0, 61.0, 119.0):
        stock.observe(10, 0, True, now)
        assert not stock.tick(10, now), now  # all came back, and stay: eight may be wanted at once again
    stock.observe(10, 0, True, 125.0)
    assert stock.tick(10, 125.0).close == 4  # but not for ever


def test_an_eighth_more_than_the_peak_is_opened_before_it_is_missed() -> None:
    stock = Stock(Limits(warm=2, free=64, total=128))
    stock.want(0.0)
    stock.total = 42
    assert stock.observe(2, 0, True, 0.0) == Orders(open=3)  # 40 lent: 5 shall be free


def test_failures_wait_longer_and_longer() -> None:
    stock = Stock(LIMITS)
    now, waits = 0.0, []
    for _ in range(9):
        assert stock.observe(0, 1, True, now).open
        stock.opened(2)
        stock.failed(now)
        stock.failed(now)  # the same burst
        waits.append(round(stock.retry_at - now, 3))
        assert not stock.observe(0, 1, True, now + waits[-1] / 2).open
        now = stock.retry_at
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert stock.total == 0
    stock.opened(1)
    stock.established()
    assert stock.retry_at == 0.0


@given(
    st.lists(st.tuples(st.sampled_from(["observe", "tick", "want", "fail", "close"]), st.integers(0, 40)), max_size=60)
)
def test_orders_never_break_a_limit(script: list[tuple[str, int]]) -> None:
    stock, free, misses, now = Stock(LIMITS), 0, 0, 0.0
    for happening, number in script:
        now += number / 4
        orders = Orders()
        if happening == "observe":
            misses = (misses + number) & 0xFFFF
            orders = stock.observe(free, misses, bool(number % 2), now)
        elif happening == "tick":
            orders = stock.tick(free, now)
        elif happening == "want":
            stock.want(now)
        elif happening == "fail" and stock.opening:
            stock.failed(now)
        elif happening == "close" and free:
            free -= 1
            stock.closed()
        assert 0 <= orders.open <= LIMITS.burst
        assert stock.total + orders.open <= LIMITS.total
        assert 0 <= orders.close <= free
        assert not (orders.open and orders.close)
        stock.opened(orders.open)
        for _ in range(orders.close):
            stock.closed()
        free -= orders.close
        if number % 3 == 0:
            while stock.opening:
                stock.established()
                free += 1
        assert 0 <= stock.opening <= stock.total
        assert stock.target <= LIMITS.free
