"""The sample server's reader of requests: strict framing, and the same events however the bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from underpass.lab.http1 import MAX_HEAD, BadRequest, Data, End, Head, RequestReader


def read(pieces: list[bytes]) -> list[Head | bytes | End]:
    """All events of the pieces, adjoining body pieces joined."""
    reader = RequestReader()
    out: list[Head | bytes | End] = []
    for piece in pieces:
        reader.feed(piece)
        while (event := reader.next_event()) is not None:
            if isinstance(event, Data):
                if out and isinstance(out[-1], bytes):
                    out[-1] = out[-1] + bytes(event.data)
                else:
                    out.append(bytes(event.data))
            else:
                out.append(event)
    return out


STREAM = (
    b"GET /a?x=1 HTTP/1.1\r\nHost: h\r\nX-One: 1\r\nx-one:  two \r\n\r\n"
    b"POST /b HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello"
    b"PUT /c HTTP/1.1\r\nhost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3;ext=1\r\nabc\r\n0A\r\n0123456789\r\n0\r\nt: 1\r\n\r\n"
    b"\r\nGET /d HTTP/1.0\r\nconnection: keep-alive\r\n\r\n"
)


def test_reads_every_kind_of_request_in_order() -> None:
    events = read([STREAM])
    heads = [event for event in events if isinstance(event, Head)]
    assert [(h.method, h.target, h.minor, h.keep_alive) for h in heads] == [
        ("GET", "/a?x=1", 1, True),
        ("POST", "/b", 1, True),
        ("PUT", "/c", 1, True),
        ("GET", "/d", 0, True),
    ]
    assert heads[0].headers == (("Host", "h"), ("X-One", "1"), ("x-one", "two"))
    assert heads[0].values("x-one") == ["1", "two"]
    assert [event for event in events if isinstance(event, bytes)] == [b"hello", b"abc0123456789"]
    assert sum(isinstance(event, End) for event in events) == 4


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_cutting_the_bytes_changes_nothing(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert read([STREAM[a:b] for a, b in itertools.pairwise(edges)]) == read([STREAM])


@given(st.binary(max_size=300))
def test_any_bytes_give_events_or_a_refusal(data: bytes) -> None:
    refused: BadRequest | None = None
    try:
        read([data, b"\r\n\r\n"])
    except BadRequest as error:
        refused = error
    assert refused is None or 400 <= refused.status <= 505


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nhost: a\r\n\r\n", 505),
        (b"GET / HTTP/1.1\nhost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: \x00\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\nexpect: magic\r\n\r\n", 417),
        (b"GET /" + b"a" * MAX_HEAD + b" HTTP/1.1\r\nhost: a\r\n\r\n", 431),
    ],
)
def test_refuses_what_leaves_room_for_guessing(head: bytes, status: int) -> None:
    with pytest.raises(BadRequest) as caught:
        read([head])
    assert caught.value.status == status


@pytest.mark.parametrize("body", [b"g\r\n", b"-1\r\n", b"0x3\r\nabc\r\n", b"3\r\nabcd\r\n", b"\r\n", b"3 3\r\nabc\r\n"])
def test_refuses_malformed_chunks(body: bytes) -> None:
    with pytest.raises(BadRequest):
        read([b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + body])


def test_equal_lengths_said_twice_are_one_length() -> None:
    head = read([b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2, 2\r\ncontent-length: 2\r\n\r\nab"])[0]
    assert isinstance(head, Head)
    assert head.length == 2


def test_a_head_without_end_is_refused_before_memory_is() -> None:
    reader = RequestReader()
    reader.feed(b"GET / HTTP/1.1\r\nx: " + b"a" * MAX_HEAD)
    with pytest.raises(BadRequest):
        reader.next_event()
