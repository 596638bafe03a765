"""The oracle of the smuggling corpus: what it takes for certain, what it does not."""

from __future__ import annotations

import pytest

from tests.support.framing import End, meaning
from tests.support.smuggling import attacks, chunked, request

GET = request(b"a", b"/x")


@pytest.mark.parametrize(
    ("data", "bodies", "end"),
    [
        (b"", [], End.CLEAN),
        (GET + GET, [b"", b""], End.CLEAN),
        (request(b"a", b"/", b"Content-Length: 5", body=b"hello") + GET, [b"hello", b""], End.CLEAN),
        (request(b"a", b"/", b"Content-Length: 9", body=b"hello"), [b"hello"], End.SHORT),
        (request(b"a", b"/", b"Transfer-Encoding: chunked", body=chunked(b"ab", b"c")) + GET, [b"abc", b""], End.CLEAN),
        (
            request(b"a", b"/", b"Transfer-Encoding: chunked", body=b"2;x=y\r\nab\r\n0\r\nT: u\r\n\r\n"),
            [b"ab"],
            End.CLEAN,
        ),
        (request(b"a", b"/", b"Transfer-Encoding: chunked", body=b"2\r\na"), [b"a"], End.SHORT),
        (request(b"a", b"/", b"Transfer-Encoding: chunked", body=b"2\nab\r\n"), [b""], End.DOUBT),
        (request(b"a", b"/", b"Transfer-Encoding: chunked", b"Content-Length: 1", body=b"x"), [], End.DOUBT),
        (request(b"a", b"/", b"Connection: close") + GET, [b""], End.CLOSING),
        (GET + b"GET / HTTP/1.1\r\nHo", [b""], End.SHORT),
        (GET + b"\r\n" + GET, [b""], End.DOUBT),
        (request(b"a", b"/", b"X: y\r\n z"), [], End.DOUBT),
        (request(b"a", b"/", b"Host: a"), [], End.DOUBT),
        (request(b"a", b"/", b"X : y"), [], End.DOUBT),
        (GET.replace(b"\r\n", b"\n") + GET, [], End.DOUBT),
    ],
)
def test_what_bytes_mean(data: bytes, bodies: list[bytes], end: End) -> None:
    read = meaning(data)
    assert ([r.body for r in read.requests], read.end) == (bodies, end)


def test_the_corpus_has_all_kinds() -> None:
    """An oracle that doubted all, or nothing, would hold nothing."""
    ends = [meaning(data).end for data in attacks(b"a", b"/m").values()]
    assert len(ends) > 200
    for end in End:
        assert ends.count(end) >= 2, end
