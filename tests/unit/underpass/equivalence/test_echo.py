"""Where a message ends, as the two ends of the oracle read it."""

from __future__ import annotations

import pytest

from underpass.equivalence.echo import whole


@pytest.mark.parametrize(
    "message",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n10;x=y\r\n0123456789abcdef\r\n0\r\n\r\n",
    ],
)
def test_whole(message: bytes) -> None:
    for size in range(len(message)):
        assert whole(message[:size]) == 0
    assert whole(message) == len(message)
    assert whole(message + b"GET /next") == len(message)


def test_an_answer_to_head_has_no_body() -> None:
    message = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
    assert whole(message, bodyless=True) == len(message)
    assert whole(message) == 0
