"""The judge: what counts as the same, and what must not."""

from __future__ import annotations

from collections import Counter

import pytest

from underpass.equivalence.compare import head_difference, judge, split_difference
from underpass.equivalence.outcome import Kind, Outcome, Request, Result, Sort

HEAD = b"GET /a HTTP/1.1\r\nHost: a\r\nX-B: c\r\n\r\n"
FORWARD = Outcome(Kind.FORWARD, "c0", head=HEAD, may=frozenset({"c0"}), route="r", domain="a")
ENVOY = Outcome(Kind.FORWARD, "c0", 200, head=b"GET /a HTTP/1.1\r\nhost: a\r\nx-b: c\r\nx-request-id: 1\r\n\r\n")


def verdict(native: Outcome, envoy: Outcome | None, kernel: Outcome | None = None, sort: Sort = Sort.PLAIN) -> Result:
    return judge("t", Request(HEAD, len(HEAD), sort, ""), native, kernel, envoy).result


def test_the_same() -> None:
    assert verdict(FORWARD, ENVOY, FORWARD) is Result.EQUAL
    assert verdict(Outcome(Kind.REPLY, status=404), Outcome(Kind.REPLY, status=404)) is Result.EQUAL
    assert verdict(Outcome(Kind.PUNT, reason="upgrade"), Outcome(Kind.NOTHING)) is Result.PUNTED
    assert verdict(Outcome(Kind.PUNT, reason="split-head"), None, sort=Sort.CUT) is Result.PUNTED


@pytest.mark.parametrize(
    "envoy",
    [
        Outcome(Kind.FORWARD, "c1", 200, head=ENVOY.head),
        Outcome(Kind.REPLY, status=404),
        Outcome(Kind.NOTHING, reason="connection closed"),
        Outcome(Kind.FORWARD, "c0", 200, head=ENVOY.head.replace(b"/a", b"/b")),
        Outcome(Kind.FORWARD, "c0", 200, head=ENVOY.head.replace(b"x-b: c\r\n", b"")),
    ],
)
def test_not_the_same(envoy: Outcome) -> None:
    assert verdict(FORWARD, envoy) is Result.DIFFERENT


def test_an_answer_is_held_against_envoys() -> None:
    answer = Outcome(Kind.REPLY, status=404)
    assert verdict(answer, Outcome(Kind.REPLY, status=503)) is Result.DIFFERENT
    assert verdict(answer, ENVOY) is Result.DIFFERENT


def test_a_cluster_that_does_not_exist_may_be_drawn_by_either() -> None:
    may = frozenset({"", "c0"})
    drawn = Outcome(Kind.FORWARD, "c0", head=HEAD, may=may)
    missed = Outcome(Kind.REPLY, status=503, reason="no-cluster", may=may)
    for core in (drawn, missed):
        assert verdict(core, Outcome(Kind.REPLY, status=503)) is Result.EQUAL
        assert verdict(core, ENVOY) is Result.EQUAL
    assert verdict(drawn, Outcome(Kind.REPLY, status=500)) is Result.DIFFERENT


@pytest.mark.parametrize(
    "kernel",
    [
        Outcome(Kind.PUNT, reason="upgrade"),
        Outcome(Kind.FORWARD, "c0", head=HEAD, may=frozenset({"c0"}), route="other", domain="a"),
        Outcome(Kind.FORWARD, "c0", head=HEAD[:-1], may=frozenset({"c0"}), route="r", domain="a"),
    ],
)
def test_cores_that_disagree(kernel: Outcome) -> None:
    assert verdict(FORWARD, ENVOY, kernel) is Result.DIFFERENT


def test_a_part_of_a_head_is_never_decided() -> None:
    assert verdict(FORWARD, None, sort=Sort.CUT) is Result.DIFFERENT


@pytest.mark.parametrize(
    ("got", "says"),
    [
        (b"GET /a HTTP/1.1\r\nhost: a\r\nx-b: c\r\n\r\n", ""),
        (b"GET /a HTTP/1.1\r\nHost: a\r\nX-B: c\r\nx-forwarded-proto: http\r\nx-envoy-attempt-count: 1\r\n\r\n", ""),
        (b"GET /a HTTP/1.1\r\nHost: a\r\nX-B: c\r\ncontent-length: 0\r\n\r\n", ""),
        (b"GET /a HTTP/1.1\r\nHost: a\r\nX-B: c\r\ncontent-length: 1\r\n\r\n", "Envoy adds content-length: 1"),
        (b"GET /a HTTP/1.1\r\nHost: b\r\nX-B: c\r\n\r\n", "host: a, from Envoy host: b"),
        (b"GET /a HTTP/1.1\r\nHost: a\r\nX-B: C\r\n\r\n", "x-b: c, from Envoy x-b: C"),
        (b"GET /a HTTP/1.1\r\nHost: a\r\nX-B: c\r\nx-b: d\r\n\r\n", "x-b: c, from Envoy x-b: c, d"),
        (b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n", "Envoy takes out x-b: c"),
        (b"GET /A HTTP/1.1\r\nHost: a\r\nX-B: c\r\n\r\n", "request line"),
    ],
)
def test_heads(got: bytes, says: str) -> None:
    found = head_difference(HEAD, got)
    assert found.startswith(says)
    assert bool(found) == bool(says)


def test_what_a_client_sends_itself_is_no_addition() -> None:
    sent = b"GET / HTTP/1.1\r\nHost: a\r\nx-request-id: mine\r\n\r\n"
    assert head_difference(sent, sent.replace(b"mine", b"other"))
    assert head_difference(sent, sent.replace(b"x-request-id: mine\r\n", b""))


def test_splits() -> None:
    weights = {"a": 80, "b": 20, "c": 0}
    assert not split_difference(weights, Counter(a=160, b=40))
    assert not split_difference(weights, Counter(a=150, b=50))
    assert split_difference(weights, Counter(a=100, b=100))
    assert split_difference(weights, Counter(a=155, b=40, c=5))
    assert split_difference({"a": 50, "b": 50}, Counter(a=200))
