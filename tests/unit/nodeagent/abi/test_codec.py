"""Codecs: round trips, limits, and the same layout as the header and the built objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.abi import btf, layout, records
from nodeagent.abi.codec import Record
from nodeagent.errors import CapacityError, LayoutError
from tests.support import abi_layout

RECORDS = [
    value
    for value in vars(records).values()
    if isinstance(value, type) and issubclass(value, Record) and value is not Record
]
_BITS = {"u8": 8, "u16": 16, "u32": 32, "u64": 64, "be16": 16}


def _values(record: type[Record]) -> st.SearchStrategy[Any]:
    """Any value of a record, normal as `unpack` gives it: no zeros at the end of arrays, nor NULs at that of texts."""
    hints = get_type_hints(record)
    kinds = {name: (kind, count) for name, _, kind, count in layout.STRUCTS[record.STRUCT][1]}
    arguments: dict[str, st.SearchStrategy[Any]] = {}
    for field in fields(record):  # type: ignore[arg-type]
        kind, count = kinds[field.name]
        hint = hints[field.name]
        if kind == "char":
            arguments[field.name] = st.binary(max_size=count).map(lambda b: b.rstrip(b"\0"))
        elif (kind == "u32" and count == 4) or (kind == "u8" and count):
            size = 16 if kind == "u32" else count
            arguments[field.name] = st.binary(min_size=size, max_size=size)
        elif kind.startswith("up_"):
            inner = get_args(hint)[0] if count else hint
            one = _values(inner)
            zero = inner()
            arguments[field.name] = st.lists(one, max_size=count).map(_trimmer(zero)) if count else one
        else:
            number: st.SearchStrategy[Any] = st.integers(0, (1 << _BITS[kind]) - 1)
            arguments[field.name] = st.lists(number, max_size=min(count, 20)).map(_trimmer(0)) if count else number
    return st.builds(record, **arguments)


def _trimmer(zero: Any) -> Callable[[list[Any]], tuple[Any, ...]]:
    def trimmed(items: list[Any]) -> tuple[Any, ...]:
        while items and items[-1] == zero:
            items.pop()
        return tuple(items)

    return trimmed


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.STRUCT)
def test_round_trip(record: type[Record]) -> None:
    @settings(max_examples=40, deadline=None)
    @given(value=_values(record))
    def law(value: Record) -> None:
        data = value.pack()
        assert len(data) == record.size()
        assert record.unpack(data) == value

    law()


def test_fields_lie_where_the_layout_says() -> None:
    data = records.Address(records.address("10.1.2.3"), 0x1234, 4).pack()
    assert data[10:16] == b"\xff\xff\x0a\x01\x02\x03"
    assert data[16:18] == b"\x12\x34", "ports are network order in the map"
    assert data[18:20] == b"\x04\x00"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(CapacityError, match="8 elements, not 9"):
        records.Action(to=tuple(records.Weight(i, 1) for i in range(9))).pack()
    with pytest.raises(CapacityError, match="holds 92 bytes"):
        records.VhostKey(1, b"x" * 93).pack()
    with pytest.raises(CapacityError, match="does not fit"):
        records.Weight(1 << 32, 0).pack()
    with pytest.raises(LayoutError, match="the map gave 3"):
        records.Weight.unpack(b"abc")


def test_addresses() -> None:
    assert records.address_text(records.address("10.0.0.1")) == "10.0.0.1"
    assert records.address_text(records.address("FD00::1")) == "fd00::1"
    assert [records.family(records.address(a)) for a in ("10.0.0.1", "fd00::1")] == [4, 6]


def test_constants_are_evaluated_not_guessed() -> None:
    lines = ["UP_A 3", "UP_B (1 << 20) /* why */", "UP_C 2 * UP_A", "UP_D 1000ULL", "X 1"]
    text = "".join(f"#define {line}\n" for line in lines)
    assert btf.constants(text) == {"UP_A": 3, "UP_B": 1 << 20, "UP_D": 1000}


@pytest.mark.needs("clang")
def test_generated_files_are_those_of_the_header() -> None:
    for path, text in abi_layout.rendered().items():
        assert path.read_text() == text, f"{path} is stale: python -m tests.support.abi_layout --write"


_OBJECTS = sorted((Path(__file__).parents[4] / "kernel" / "build").glob("*.bpf.o"))


@pytest.mark.needs("core", "clang")
def test_built_objects_have_this_layout() -> None:
    assert _OBJECTS, "make -C kernel builds the objects together with the core"
    seen = set()
    for path in _OBJECTS:
        for name, shape in btf.structures(_shared(abi_layout.dump(path))).items():
            assert layout.STRUCTS[name] == shape, f"{name} in {path.name}"
            seen.add(name)
    assert {"up_conn", "up_service", "up_vhost", "up_program", "up_cluster"} <= seen


def _shared(data: Any) -> Any:
    """Without structures that only one object has (the core's scratch, for example)."""
    kept = [
        t for t in data["types"] if t["kind"] != "STRUCT" or t["name"] in layout.STRUCTS or t["name"] == "bpf_spin_lock"
    ]
    return {"types": kept}
