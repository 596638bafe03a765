"""What the sample server answers: orders, sizes, identity."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from underpass.lab.answer import (
    BadParameter,
    Body,
    Identity,
    Order,
    answer_json,
    duration,
    listen_ports,
    parse_order,
    pattern,
    shape_body,
)
from underpass.lab.http1 import parse_head

HEAD = parse_head(b"GET /x HTTP/1.1\r\nHost: h\r\nA: 1\r\na: 2\r\n\r\n")


def test_orders() -> None:
    order = parse_order("/x?status=503&delay=200ms&bytes=1048576&chunked=1&close=1&other=1")
    assert order == Order(status=503, delay=0.2, size=1048576, chunked=True, close=True)
    assert parse_order("/x").calls is None
    assert parse_order("/x?call=").calls == ()
    assert parse_order("/x?call=http%3A%2F%2Fa%2F&call=http://b/").calls == ("http://a/", "http://b/")


@pytest.mark.parametrize(
    "query", ["status=99", "status=abc", "delay=soon", "delay=-1s", "bytes=-1", "bytes=1e6", "chunked=2", "delay=9999m"]
)
def test_orders_that_are_not(query: str) -> None:
    with pytest.raises(BadParameter, match=query.partition("=")[0]):
        parse_order("/?" + query)


@pytest.mark.parametrize(("text", "seconds"), [("200ms", 0.2), ("1.5s", 1.5), ("50us", 5e-5), ("7", 0.007), ("1m", 60)])
def test_durations(text: str, seconds: float) -> None:
    assert duration("delay", text) == pytest.approx(seconds)


@given(st.integers(0, 3000))
def test_a_wished_size_is_exact_and_stays_json_where_it_can(size: int) -> None:
    answer = answer_json(Identity(), HEAD, 0, "x")
    body = shape_body(answer, size)
    raw = b"".join(body.pieces(100))
    assert len(raw) == body.size == size
    assert hashlib.sha256(raw).hexdigest() == body.sha256()
    if size >= len(answer) + 20:
        assert json.loads(raw)["workload"] == "sample"


@given(st.integers(0, 300_000), st.integers(0, 300_000))
def test_the_pattern_is_the_same_from_wherever_it_is_read(offset: int, size: int) -> None:
    assert pattern(offset, size) == pattern(0, offset + size)[offset:]


def test_large_bodies_are_made_piecewise() -> None:
    assert b"".join(Body(b"<", 1_000_000, b">").pieces()) == b"<" + pattern(0, 1_000_000) + b">"


def test_the_answer_tells_headers_as_received() -> None:
    answer = json.loads(answer_json(Identity("w", "ns", "sa", "v2"), HEAD, 3, "abc"))
    assert answer["headers"] == [["Host", "h"], ["A", "1"], ["a", "2"]]
    assert [answer[key] for key in ("workload", "namespace", "service_account", "version")] == ["w", "ns", "sa", "v2"]
    assert (answer["method"], answer["path"], answer["body_bytes"], answer["body_sha256"]) == ("GET", "/x", 3, "abc")


def test_identity_from_the_environment() -> None:
    env = {"UNDERPASS_WORKLOAD": "reviews-v2", "UNDERPASS_NAMESPACE": "n", "UNDERPASS_LABELS": '{"version": "v2"}'}
    identity = Identity.from_environment(env)
    assert (identity.workload, identity.namespace, identity.version) == ("reviews-v2", "n", "v2")
    assert Identity.from_environment({}).version is None
    with pytest.raises(BadParameter):
        Identity.from_environment({"UNDERPASS_LABELS": "["})


def test_ports() -> None:
    assert listen_ports("9080, 9081,") == [9080, 9081]
    with pytest.raises(BadParameter):
        listen_ports("0")
