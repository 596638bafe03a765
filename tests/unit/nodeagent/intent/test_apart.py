"""Which workloads keep to underpass-home."""

from __future__ import annotations

from nodeagent.abi import numbers as n
from nodeagent.abi.records import Workload, address
from nodeagent.intent.apart import set_apart
from nodeagent.intent.model import Intent, Table


def test_only_those_that_are_named_are_marked_and_keep_what_they_had() -> None:
    one = Workload(7, 4, address("10.0.0.1"))
    two = Workload(8, 0, address("10.0.0.2"))
    keys = [number.to_bytes(4, "little") for number in (1, 2)]
    before = Intent(
        {Table.WORKLOADS: {keys[0]: one.pack(), keys[1]: two.pack()}, Table.TABLES: {b"x": b"y"}},
        enrolled={"a/one": 1, "a/two": 2},
    )
    after = set_apart(before, ["a/one", "a/unknown"])
    found = {key: Workload.unpack(value) for key, value in after.entries[Table.WORKLOADS].items()}
    assert found[keys[0]].flags == 4 | n.WF_APART
    assert (found[keys[0]].view, found[keys[0]].addr4) == (7, one.addr4)
    assert found[keys[1]] == two
    assert after.entries[Table.TABLES] == before.entries[Table.TABLES]
    assert set_apart(before, []) == before
