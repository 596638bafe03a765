from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.store.copy import Copy, CopyError, dump, load
from controlplane.store.layout import Entry

entries = st.builds(Entry, st.text(), st.binary(max_size=20), st.integers(0, 2**40), st.integers(0, 2**40))
copies = st.builds(
    Copy,
    st.just("/p/"),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**60),
    st.lists(entries, max_size=4).map(lambda found: {entry.key: entry for entry in found}),
)


@given(copies)
def test_a_copy_is_what_it_was(copy: Copy) -> None:
    assert load(dump(copy), "/p/") == copy
    with pytest.raises(CopyError, match="copy of /p/"):
        load(dump(copy), "/q/")


@given(copies, st.data())
def test_a_damaged_copy_is_none(copy: Copy, data: st.DataObject) -> None:
    whole = dump(copy)
    at = data.draw(st.integers(0, len(whole) - 2))
    for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
        with pytest.raises(CopyError):
            load(damaged, "/p/")


@given(st.binary())
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(CopyError):
        load(data, "/p/")
