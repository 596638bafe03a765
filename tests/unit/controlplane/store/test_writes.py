from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from controlplane.model.objects import Key
from controlplane.store.layout import Entry, decode
from controlplane.store.writes import MAX_BYTES, MAX_CHANGES, MAX_VALUE, Change, back, batches, judge, plan
from tests.support import shop

RULES = Key("VirtualService", "default", "greeter")


def stored(text: str, at: int = 7, revision: int = 3) -> dict[str, Entry]:
    planned = plan(judge({"rules.yaml": text}).wanted, {}, at)
    return {
        "/".join(change.key): Entry("/".join(change.key), change.value or b"", revision, revision)
        for change in planned.changes
    }


def test_good_objects_are_planned_with_their_place_and_age() -> None:
    judged = judge(
        {"rules.yaml": f"# ours\n---\n{shop.rules(10)}---\napiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\n"}
    )
    assert judged.problems == ()
    [(file, _, kind)] = judged.ignored
    assert (file, kind) == ("rules.yaml", "Secret")
    [change] = plan(judged.wanted, {}, 1234).changes
    assert (change.key, change.verb, change.expected, change.at) == (RULES, "created", 0, "rules.yaml:3")
    found = decode(change.value or b"")
    assert found is not None
    assert (found.file, found.line, found.at) == ("rules.yaml", 3, 1234)
    assert found.lines["spec.http[0]"] == 9


def test_one_bad_object_is_named_with_its_line() -> None:
    text = shop.rules(10) + "---\n" + shop.rules(10, name="bad").replace("hosts: [bad]", "hosts: 3") + "---\nkey: [\n"
    problems = judge({"rules.yaml": text}).problems
    assert [(item.name, item.code) for item in problems] == [("bad", "invalid-field"), ("", "invalid-yaml")]
    assert problems[0].line == text.split("hosts: 3")[0].count("\n") + 1
    [twice] = judge({"a.yaml": shop.rules(1), "b.yaml": shop.rules(2)}).problems
    assert (twice.file, twice.code) == ("b.yaml", "duplicate-object")
    assert "a.yaml:1" in twice.reason


def test_what_is_as_wanted_is_left_alone() -> None:
    present = stored(shop.rules(10))
    planned = plan(judge({"rules.yaml": shop.rules(10)}).wanted, present, 99)
    assert (planned.changes, planned.unchanged) == ((), (RULES,))
    [change] = plan(judge({"rules.yaml": shop.rules(20)}).wanted, present, 99).changes
    assert (change.verb, change.expected) == ("configured", 3)
    found = decode(change.value or b"")
    assert found is not None
    assert found.at == 7, "an edited object keeps its age"


def versioned(version: str) -> str:
    return shop.rules(20).replace("name: greeter,", f"name: greeter, resourceVersion: {version}, uid: x,", 1)


def test_a_version_is_replaced_or_nothing() -> None:
    present = stored(shop.rules(10))
    [change] = plan(judge({"r": versioned('"3"')}).wanted, present, 1).changes
    found = decode(change.value or b"")
    assert found is not None
    assert found.data["metadata"] == {"name": "greeter", "namespace": "default"}, "what a server adds is not kept"
    for there, word in ((present, "it is at 3 now"), ({}, "not there any more")):
        planned = plan(judge({"r": versioned('"2"')}).wanted, there, 1)
        assert planned.changes == ()
        assert [item.code for item in planned.conflicts] == ["conflict"]
        assert word in planned.conflicts[0].reason
    for bad in ("[1]", '"x"', "7"):
        [problem] = judge({"r": versioned(bad)}).problems
        assert problem.code == "bad-version"


def test_an_object_that_etcd_would_not_take() -> None:
    hosts = json.dumps([f"{'x' * 50}-{number}.example.com" for number in range(20_000)])
    planned = plan(judge({"r": shop.rules(10).replace("[greeter]", hosts, 1)}).wanted, {}, 1)
    assert planned.changes == ()
    assert [item.code for item in planned.conflicts] == ["too-large"]


@given(st.lists(st.one_of(st.none(), st.integers(0, MAX_VALUE // 3)), max_size=250))
def test_batches_fit_and_keep_the_order(sizes: list[int | None]) -> None:
    block = b"x" * (MAX_VALUE // 3)
    changes = [
        Change(Key("K", "", str(number)), "v", 0, None if size is None else block[:size])
        for number, size in enumerate(sizes)
    ]
    found = batches(changes)
    assert [change for batch in found for change in batch] == changes
    for batch in found:
        assert 0 < len(batch) <= MAX_CHANGES
        assert sum(len(change.value or b"") for change in batch) <= MAX_BYTES


keyed = st.dictionaries(st.sampled_from("abcd"), st.binary(max_size=1))


@given(keyed, keyed)
def test_the_way_back_leads_back(past: dict[str, bytes], present: dict[str, bytes]) -> None:
    entries = {key: Entry(key, value, 1, number + 2) for number, (key, value) in enumerate(present.items())}
    after = dict(present)
    for key, value, expected in back(past, entries):
        assert expected == (entries[key].modified if key in entries else 0)
        assert after.get(key) != value, "nothing is written that is there already"
        if value is None:
            del after[key]
        else:
            after[key] = value
    assert after == past
