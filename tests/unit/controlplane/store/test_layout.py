from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controlplane.model.objects import Key
from controlplane.store.layout import Entry, Stored, decode, documents, encode, identity, path, same

names = st.text(min_size=1, max_size=12)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(names, st.text(max_size=12), names)
def test_a_key_names_one_object(kind: str, namespace: str, name: str) -> None:
    key = Key(kind, namespace, name)
    assert identity(path(key)) == key


@given(st.text())
def test_any_key_names_an_object_or_none(text: str) -> None:
    found = identity(text)
    assert found is None or path(found) == text


def test_where_objects_are() -> None:
    assert path(Key("VirtualService", "shop", "web")) == "VirtualService/shop/web"
    assert path(Key("Node", "", "a/b")) == "Node/a%2Fb"
    assert identity("VirtualService//web") is None
    assert identity("a/b/c/d") is None


@given(values, st.text(), st.integers(0, 2**31), st.dictionaries(st.text(), st.integers()), st.integers(0, 2**33))
def test_an_envelope_keeps_what_it_is_given(data: Any, file: str, line: int, lines: dict[str, int], at: int) -> None:
    stored = Stored(data, file, line, lines, at)
    found = decode(encode(stored))
    assert found == stored
    assert same(stored, Stored(data, file, line, lines, at + 1))
    [document] = documents(Entry("k", encode(stored), 1, 1), stored)
    assert (document.data, document.file, document.line, document.lines) == (data, file, line, lines)


@given(st.binary() | values.map(lambda value: json.dumps(value).encode()))
def test_any_value_gives_documents(value: bytes) -> None:
    assert isinstance(documents(Entry("k", value, 1, 1), decode(value)), tuple)


def test_values_of_others() -> None:
    [document] = documents(Entry("VirtualService/a/b", b"kind: X\n", 1, 1), None)
    assert (document.file, document.line, document.data) == ("etcd:VirtualService/a/b", 1, {"kind": "X"})
    [document] = documents(Entry("k", b"\xff", 1, 1), None)
    assert document.error is not None
    assert document.error[0] == "not-utf8"
    later = encode(Stored({}, "f", 1)).replace(b'"underpass":1', b'"underpass":2')
    [document] = documents(Entry("k", later, 1, 1), decode(later))
    assert document.error is not None
    assert document.error[0] == "unknown-form"
    for broken in ('{"underpass":1}', '{"underpass":1,"data":{},"file":1,"line":1,"at":0,"lines":{}}'):
        assert decode(broken.encode()) is None
