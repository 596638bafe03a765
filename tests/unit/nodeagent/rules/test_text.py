"""Rules as JSON: round trip, and bytes that are no rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.errors import RuleError
from nodeagent.rules.model import Destination, Mirror, Retry, Rule
from nodeagent.rules.text import decode, encode, key_of

st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))


@given(st.from_type(Rule))
def test_a_rule_comes_back(rule: Rule) -> None:
    text = encode(rule)
    assert decode(text) == rule
    assert 0 < key_of(text) < 1 << 64


def test_defaults_are_left_out() -> None:
    assert encode(Rule()) == b"{}"
    assert encode(Rule(retry=Retry(), mirrors=(Mirror(number=3),))) == b'{"retry":{},"mirrors":[{"number":3}]}'
    assert decode(encode(Rule(destinations=(Destination(),)))) == Rule(destinations=(Destination(),))


@given(st.binary())
def test_bytes_that_are_no_rule(text: bytes) -> None:
    try:
        decode(text)
    except RuleError:
        pass


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"1", b'{"new":1}', b'{"timeout":"1"}', b'{"timeout":true}', b'{"mirrors":{}}', b'{"retry":[]}',
        b'{"timeout":NaN}', b'{"redirect":{"code":"x"}}', b'{"direct":{}}',
        b'{"request":[{"put":[{"name":"a","value":"b","placing":"?"}]}]}',
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(text: bytes) -> None:
    with pytest.raises(RuleError):
        decode(text)
