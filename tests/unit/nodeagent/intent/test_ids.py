"""Ids: stable, never given out again early, never a silent collision."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nodeagent.abi.numbers import NameKind
from nodeagent.intent.ids import Known, assign


def test_new_names_get_new_numbers_in_order() -> None:
    assert assign({}, 0, ["b", "a"], 100).ids == {"a": 1, "b": 2}


def test_a_freed_number_is_not_given_out_while_there_are_others() -> None:
    done = assign({"a": 1, "b": 2}, 2, ["b", "c"], 100)
    assert done.ids == {"b": 2, "c": 3}
    assert assign({"b": 2, "c": 3}, 3, ["b", "c", "a"], 100).ids["a"] == 4


def test_when_they_run_out_the_free_ones_are_used_but_not_those_still_referred_to() -> None:
    known = {"a": 1, "b": 2, "c": 3}
    assert assign(known, 3, ["c", "x", "y"], 4).ids == {"c": 3, "x": 1, "y": 2}
    busy = assign(known, 3, ["c", "x", "y"], 4, frozenset({1, 3}))
    assert busy.ids == {"c": 3, "x": 2}
    assert busy.failed == ("y",)


def test_too_many_is_a_named_failure() -> None:
    done = assign({}, 0, ["a", "b", "c"], 3)
    assert (done.ids, done.failed) == ({"a": 1, "b": 2}, ("c",))


_NAMES = st.sets(st.sampled_from("abcdefgh"), max_size=6)


@given(rounds=st.lists(_NAMES, max_size=8), limit=st.integers(2, 9))
def test_no_two_names_share_a_number_and_a_wanted_name_keeps_its(rounds: list[set[str]], limit: int) -> None:
    known: dict[str, int] = {}
    last, live = 0, frozenset[int]()
    for wanted in rounds:
        done = assign(known, last, wanted, limit, live)
        assert len(set(done.ids.values())) == len(done.ids)
        assert all(0 < number < limit for number in done.ids.values())
        assert set(done.ids) | set(done.failed) == wanted
        for name in wanted & known.keys():
            assert done.ids[name] == known[name]
        taken = set(done.ids.values())
        known = {name: number for name, number in known.items() if number not in taken} | done.ids
        last, live = done.last, frozenset(taken)


def test_over_keeps_what_a_partial_round_did_not_see() -> None:
    kind = NameKind.CLUSTER
    older = Known({kind: {"a": 1, "b": 2}}, {kind: 2}, {kind: frozenset({1, 2})})
    newer = Known({kind: {"b": 2, "c": 3}}, {kind: 3}, {kind: frozenset({2, 3})})
    both = newer.over(older)
    assert both.of(kind) == {"a": 1, "b": 2, "c": 3}
    assert both.last[kind] == 3
    assert both.live[kind] == {1, 2, 3}
