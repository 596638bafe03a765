"""Bodies of requests: which bytes are theirs, however they are cut."""

from __future__ import annotations

import pytest

from nodeagent.home.bodies import Body, ChunkedBody, SizedBody, without_coding

RAW = b"3;x=1\r\nabc\r\n5\r\nhello\r\n0\r\nx-t: 1\r\n\r\nGET /"
SENT = b"3\r\nabc\r\n5\r\nhello\r\n0\r\n\r\n"


def fed(body: Body, *parts: bytes) -> tuple[bytes, bytes]:
    out = rest = b""
    for part in parts:
        if body.over:
            rest += part
            continue
        own, behind = body.take(part)
        out, rest = out + own, rest + behind
    return out, rest


@pytest.mark.parametrize("cut", range(len(RAW)))
def test_a_chunked_body_cut_twice(cut: int) -> None:
    for other in range(cut, len(RAW)):
        body = ChunkedBody()
        assert fed(body, RAW[:cut], RAW[cut:other], RAW[other:]) == (SENT, b"GET /")
        assert body.over
        assert not body.bad


def test_a_chunked_body_byte_by_byte() -> None:
    body = ChunkedBody()
    assert fed(body, *(bytes([byte]) for byte in RAW)) == (SENT, b"GET /")


@pytest.mark.parametrize(
    "bad",
    [
        b"3\r\nabcX\n", b"3\r\nabc\r\r", b"3\nabc", b"g\r\n", b"+3\r\n", b"0x3\r\n", b"3 3\r\n", b"\r\n", b"1_0\r\n",
        b"f" * 20 + b"\r\n", b"0\r\nbad\r\n", b"0\r\n x: y\r\n", b"0\r\nx: \0\r\n", b"3;\x01\r\n", b"1" * 300,
        b"0\r\n" + b"x: " + b"y" * 9000 + b"\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_chunk(bad: bytes) -> None:
    whole, slowly = ChunkedBody(), ChunkedBody()
    whole.take(bad)
    for byte in bad:
        slowly.take(bytes([byte]))
    assert whole.bad
    assert slowly.bad
    assert not whole.over


def test_a_body_of_known_length() -> None:
    body = SizedBody(5)
    assert fed(body, b"ab", b"cdeGET") == (b"abcde", b"GET")
    assert body.over
    assert SizedBody(0).over


HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n%s\r\nx: y\r\n\r\nbody"


@pytest.mark.parametrize("line", [b"Transfer-Encoding: chunked", b"transfer-encoding:Chunked"])
def test_a_head_without_its_coding(line: bytes) -> None:
    assert without_coding(HEAD % line) == b"POST / HTTP/1.1\r\nHost: a\r\nx: y\r\n\r\n"


@pytest.mark.parametrize(
    "line",
    [
        b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 3", b"Transfer-Encoding : chunked", b"x: chunked",
        b"Transfer-Encoding: chunked\r\ncontent-length : 3", b"Transfer-Encoding: \x0bchunked",
    ],
)  # fmt: skip
def test_a_coding_that_is_not_plain(line: bytes) -> None:
    assert without_coding(HEAD % line) is None
