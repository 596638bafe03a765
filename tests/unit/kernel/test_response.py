"""Where a response ends: by its framing alone, wherever packets cut it, at any sequence number."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.abi.numbers import RSP_HEAD_MAX, ResponseState
from tests.support.core_memory import CLOSES, DONE, MASK, Response, begin, follow, over, passed, wants

pytestmark = pytest.mark.needs("core")

STARTS = (0, 7, 2**31 - 20, 2**32 - 30, 2**32 - 1)
NEXT = b"HTTP/1.1 999 the next response\r\n\r\n"
STRIDE = 1 << 30  # UP_STRIDE of core/response.h


@dataclass(frozen=True)
class Stream:
    """Bytes of one response (with its interim ones), and what must become of them."""

    data: bytes
    status: int = 200
    head: bool = False  # the request was HEAD
    state: ResponseState | None = None  # CLOSE or LOST: it has no end of its own
    closes: bool = False


def response(*lines: bytes, body: bytes = b"", status: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([status, *lines, b""]) + b"\r\n" + body


def sized(body: bytes, *lines: bytes, **more: bytes) -> bytes:
    return response(*lines, b"Content-Length: %d" % len(body), body=body, **more)


_TE = b"Transfer-Encoding: chunked"
_CLOSE, _LOST = ResponseState.CLOSE, ResponseState.LOST
STREAMS = {
    "length": Stream(sized(b"hello")),
    "length 0": Stream(sized(b"")),
    "length, no blank": Stream(response(b"Content-Length:5", body=b"hello")),
    "length, upper case": Stream(response(b"CONTENT-LENGTH: 5", body=b"hello")),
    "length, outer blanks": Stream(response(b"Content-Length: \t 5 ", body=b"hello")),
    "length, zeros in front": Stream(response(b"Content-Length: 0000000000000000005", body=b"hello")),
    "length between others": Stream(sized(b"hello", b"Server: x", b"Date: now", b"Connection: keep-alive")),
    "body that looks like a head": Stream(sized(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")),
    "no reason": Stream(sized(b"hello", status=b"HTTP/1.1 200 ")),
    "no reason, no blank": Stream(sized(b"hello", status=b"HTTP/1.1 200")),
    "error": Stream(sized(b"oops", status=b"HTTP/1.1 503 Service Unavailable"), 503),
    "LF": Stream(b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello"),
    "LF and CRLF": Stream(b"HTTP/1.1 200 OK\nContent-Length: 5\r\nA: b\n\r\nhello"),
    "HEAD": Stream(response(b"Content-Length: 500"), head=True),
    "HEAD, chunked": Stream(response(_TE), head=True),
    "HEAD, nothing said": Stream(response(), head=True),
    "204": Stream(response(status=b"HTTP/1.1 204 No Content"), 204),
    "204 with a length": Stream(response(b"Content-Length: 0", status=b"HTTP/1.1 204 No Content"), 204),
    "304 with a length": Stream(response(b"Content-Length: 77", status=b"HTTP/1.1 304 Not Modified"), 304),
    "100, then it": Stream(response(status=b"HTTP/1.1 100 Continue") + sized(b"hello")),
    "103 with lines, twice": Stream(
        response(b"Link: </a>", b"Content-Length: 3", status=b"HTTP/1.1 103 Early Hints") * 2 + sized(b"hello")
    ),
    "interim before HEAD": Stream(response(status=b"HTTP/1.1 102 P") + response(b"Content-Length: 4"), head=True),
    "connection: close": Stream(sized(b"hello", b"Connection: close"), closes=True),
    "connection: CLOSE": Stream(sized(b"hello", b"connection:CLOSE"), closes=True),
    "1.0": Stream(sized(b"hello", status=b"HTTP/1.0 200 OK"), closes=True),
    "interim says close": Stream(
        response(b"Connection: close", status=b"HTTP/1.1 100 Continue") + sized(b"hello"), closes=True
    ),
    "chunked": Stream(response(_TE, body=b"5\r\nhello\r\n0\r\n\r\n")),
    "chunked, Chunked": Stream(response(b"transfer-encoding:CHUNKED", body=b"5\r\nhello\r\n0\r\n\r\n")),
    "chunked, empty": Stream(response(_TE, body=b"0\r\n\r\n")),
    "chunked, many": Stream(response(_TE, body=b"1\r\nx\r\n" * 40 + b"0\r\n\r\n")),
    "chunked, hex": Stream(response(_TE, body=b"1F\r\n" + b"x" * 31 + b"\r\n00a\r\n0123456789\r\n000\r\n\r\n")),
    "chunked, extensions": Stream(response(_TE, body=b'5;a=b\r\nhello\r\n1 ; "x"\r\ny\r\n0;last\r\n\r\n')),
    "chunked, trailers": Stream(response(_TE, body=b"5\r\nhello\r\n0\r\nA: b\r\nContent-Length: 7\r\n\r\n")),
    "chunked, LF": Stream(response(_TE, body=b"5\nhello\n0\nA: b\n\n")),
    "chunked and length": Stream(response(b"Content-Length: 3", _TE, body=b"5\r\nhello\r\n0\r\n\r\n")),
    "body that looks like a last chunk": Stream(response(_TE, body=b"5\r\n0\r\n\r\n\r\n0\r\n\r\n")),
    "to the end": Stream(response(body=b"hello"), state=_CLOSE),
    "to the end, other coding": Stream(response(b"Transfer-Encoding: gzip", body=b"hello"), state=_CLOSE),
    "two codings": Stream(response(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), state=_CLOSE),
    "chunked twice": Stream(response(_TE, _TE, body=b"0\r\n\r\n"), state=_CLOSE),
    "two lengths": Stream(response(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"), state=_LOST),
    "two lengths that differ": Stream(response(b"Content-Length: 5", b"Content-Length: 6", body=b"hello"), state=_LOST),
    "two lengths in one line": Stream(response(b"Content-Length: 5, 5", body=b"hello"), state=_LOST),
    "negative length": Stream(response(b"Content-Length: -5", body=b"hello"), state=_LOST),
    "empty length": Stream(response(b"Content-Length:", body=b"hello"), state=_LOST),
    "length over 2^64": Stream(response(b"Content-Length: 99999999999999999999", body=b"x"), state=_LOST),
    "101": Stream(response(b"Upgrade: x", status=b"HTTP/1.1 101 Switching"), 101, state=_LOST),
    "099": Stream(response(status=b"HTTP/1.1 099 x"), 99, state=_LOST),
    "chunk without size": Stream(response(_TE, body=b"\r\n0\r\n\r\n"), state=_LOST),
    "chunk size no number": Stream(response(_TE, body=b"x\r\n0\r\n\r\n"), state=_LOST),
    "chunk longer than it says": Stream(response(_TE, body=b"2\r\nabc\r\n0\r\n\r\n"), state=_LOST),
    "chunk of 2^30 and 1": Stream(response(_TE, body=b"40000001\r\nabc"), state=_LOST),
    "chunk of 2^64": Stream(response(_TE, body=b"10000000000000000\r\nabc"), state=_LOST),
    "not HTTP": Stream(b"220 mail.example ESMTP\r\n", 0, state=_LOST),
}  # fmt: skip


def play(stream: Stream, cuts: list[int], start: int, behind: bytes = NEXT) -> Response:
    """The stream in packets cut at those places, with more bytes behind it in the last packet."""
    r = Response()
    begin(r, start, stream.head)
    data = stream.data + behind
    edges = [0, *sorted(set(cuts) - {0}), len(data)]
    for at, end in itertools.pairwise(edges):
        assert follow(r, (start + at) & MASK, data[at:end])
    return r


def check(stream: Stream, r: Response, start: int) -> None:
    end = (start + len(stream.data)) & MASK
    if stream.state is not None:
        assert ResponseState(r.state) == stream.state
        assert not r.flags & DONE
        if stream.state == _CLOSE:  # it is over for nobody, whatever is acknowledged
            assert not any(over(r, ack) for ack in (start, end, r.next, r.high, r.end))
    else:
        assert r.flags & DONE
        assert (r.end, r.left, ResponseState(r.state)) == (end, 0, r.state)
        assert over(r, end)
        assert not over(r, end - 1)
        assert not over(r, end + 1)
        assert not over(r, start)
    assert bool(r.flags & CLOSES) == stream.closes
    if stream.status:
        assert r.status == stream.status


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS.keys())
@pytest.mark.parametrize("start", STARTS)
def test_in_one_packet_and_byte_by_byte(stream: Stream, start: int) -> None:
    check(stream, play(stream, [], start), start)
    check(stream, play(stream, list(range(len(stream.data))), start), start)


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS.keys())
def test_cut_at_every_byte(stream: Stream) -> None:
    start = 2**32 - 40
    for cut in range(1, len(stream.data) + 1):
        check(stream, play(stream, [cut], start), start)


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS.keys())
def test_not_over_before_its_end(stream: Stream) -> None:
    """No prefix of a response is over, whatever the client has acknowledged of it."""
    start = 2**32 - 40
    for cut in range(len(stream.data)):
        r = Response()
        begin(r, start, stream.head)
        follow(r, start, stream.data[:cut])
        if r.state == _LOST:
            break
        assert not over(r, start + cut), cut


# ---- any response, any cuts; and a second reader ----

_NAME = st.sampled_from(
    [b"Server", b"Content-Type", b"Content-Lengths", b"Content-", b"Connectio", b"T", b"TE", b"X-A"]
)
_VALUE = st.text(alphabet="ab c;=,5\t:", max_size=40).map(lambda text: text.strip().encode())
_NOISE = st.lists(st.tuples(_NAME, st.sampled_from([b": ", b":", b":  "]), _VALUE).map(b"".join), max_size=5)
_CHUNK = st.binary(min_size=1, max_size=40)
_EXTENSION = st.sampled_from([b"", b"", b";a", b';a="b"', b" ;x=y"])


@st.composite
def _streams(draw: st.DrawFn) -> Stream:
    data, eol = b"", draw(st.sampled_from([b"\r\n", b"\r\n", b"\n"]))
    for _ in range(draw(st.integers(0, 2))):
        data += eol.join([b"HTTP/1.1 %d x" % draw(st.sampled_from([100, 102, 103])), *draw(_NOISE), b"", b""])
    status = draw(st.sampled_from([200, 204, 304, 404, 500, 599]))
    head, closes = draw(st.booleans()), draw(st.booleans())
    lines = draw(_NOISE)
    body = draw(st.binary(max_size=60))
    kind = draw(st.sampled_from(["length", "chunked", "none"]))
    silent = head or status in (204, 304)
    if kind == "length":
        lines.append(b"Content-Length: %d" % len(body))
    elif kind == "chunked":
        lines.append(_TE)
        body = b""
        for chunk in draw(st.lists(_CHUNK, max_size=4)):
            body += b"%x" % len(chunk) + draw(_EXTENSION) + eol + chunk + eol
        body += b"0" + draw(_EXTENSION) + eol
        body += b"".join(line + eol for line in draw(_NOISE)) + eol
    if closes:
        lines.append(draw(st.sampled_from([b"Connection: close", b"connection:Close"])))
    data += eol.join([b"HTTP/1.1 %d x" % status, *draw(st.permutations(lines)), b"", b""])
    ends = silent or kind != "none"
    return Stream(data + (b"" if silent else body), status, head, None if ends else _CLOSE, closes)


@settings(max_examples=1500, deadline=None)
@given(
    stream=_streams(),
    cuts=st.lists(st.integers(1, 900), max_size=12),
    start=st.integers(0, MASK),
    piece=st.sampled_from([RSP_HEAD_MAX, 1, 2, 7, 15, 16, 17, 32]),
)
def test_any_response_in_any_cuts(stream: Stream, cuts: list[int], start: int, piece: int) -> None:
    r = Response()
    begin(r, start, stream.head)
    data = stream.data + NEXT
    edges = [0, *sorted({cut for cut in cuts if cut < len(data)}), len(data)]
    for at, end in itertools.pairwise(edges):
        assert follow(r, (start + at) & MASK, data[at:end], piece)
    check(stream, r, start)


@settings(max_examples=500, deadline=None)
@given(stream=_streams())
def test_h11_ends_it_in_the_same_place(stream: Stream) -> None:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=b"HEAD" if stream.head else b"GET", target=b"/", headers=[(b"Host", b"a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(stream.data + NEXT)
    try:
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:  # up to the end of the connection
                assert stream.state == _CLOSE
                return
    except h11.RemoteProtocolError:  # stricter than it must be with a peer that it trusts
        return
    assert stream.state is None
    assert client.trailing_data[0] == NEXT


# ---- packets out of order ----


@pytest.mark.parametrize("name", ["chunked", "chunked, trailers", "length", "100, then it", "chunked, many"])
def test_repeated_and_early_packets(name: str) -> None:
    """Repetitions change nothing; a packet ahead of an unread frame must wait, and is welcome when it comes again."""
    stream, start = STREAMS[name], 2**32 - 40
    data = stream.data + NEXT
    for first in range(1, len(stream.data) - 1, 3):
        for second in range(first + 1, len(stream.data), 5):
            r = Response()
            begin(r, start, stream.head)
            parts = [(0, first), (first, second), (second, len(data))]
            assert follow(r, start, data[:first])
            unread = wants(r) and (r.next - start) & MASK < second
            assert follow(r, (start + second) & MASK, data[second:]) != unread
            for at, end in (parts[0], parts[1], parts[0], parts[2], parts[1]):
                assert follow(r, (start + at) & MASK, data[at:end])
            check(stream, r, start)


def test_a_body_does_not_pass_in_front_of_its_head() -> None:
    """Were the head that of a chunked response, nobody could tell any more where that ends."""
    for name in ("length", "chunked"):
        data, start = STREAMS[name].data, 100
        cut = data.index(b"\r\n\r\n") + 4
        r = Response()
        begin(r, start)
        assert not follow(r, start + cut, data[cut:])
        assert follow(r, start, data[:cut])
        assert follow(r, start + cut, data[cut:])
        assert over(r, start + len(data))


# ---- long bodies ----


@pytest.mark.parametrize("length", [2**30 - 1, 2**30, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 5 * 2**30 + 3])
@pytest.mark.parametrize("start", [0, 2**32 - 100])
@pytest.mark.parametrize("step", [2**27, 2**20 * 300 + 7])
def test_bodies_longer_than_sequence_numbers(length: int, start: int, step: int) -> None:
    head = response(b"Content-Length: %d" % length)
    r = Response()
    begin(r, start)
    assert follow(r, start, head)
    at = start + len(head)
    end = at + length
    while at < end:
        # not over although 32-bit numbers may have met the same end before
        assert not over(r, at), at - start
        at = min(at + step, end)
        passed(r, at)
        passed(r, at - 1000)  # a repetition
    assert over(r, end)
    assert not over(r, end - 1)
    assert r.left == 0


def test_chunks_of_a_gigabyte() -> None:
    head, start = response(_TE), 2**31 - 50
    r = Response()
    begin(r, start)
    at, frame = start, head + b"40000000\r\n"
    for _ in range(6):  # six gigabytes in all
        assert follow(r, at & MASK, frame)
        at += len(frame)
        for _ in range(8):
            at += STRIDE // 8
            assert follow(r, (at - STRIDE // 8) & MASK, b"") and not over(r, at)
            passed(r, at)
        frame = b"\r\n40000000\r\n"
    tail = b"\r\n0\r\n\r\n"
    assert follow(r, at & MASK, tail)
    assert over(r, at + len(tail))
    assert not over(r, at)


def test_heads_longer_than_what_is_read_at_once() -> None:
    lines = [b"X-%d: %s" % (i, b"v" * 200) for i in range(40)]
    stream = Stream(sized(b"hello", *lines))
    for cuts in ([], [RSP_HEAD_MAX], [1000, 2000, 3000], list(range(0, len(stream.data), 97))):
        check(stream, play(stream, cuts, 0), 0)


def test_nothing_asked_is_over() -> None:
    assert over(Response(), 5)


def test_a_lost_response_is_over_only_when_all_that_was_sent_is_acknowledged() -> None:
    stream, start = STREAMS["two lengths"], 50
    r = Response()
    begin(r, start)
    follow(r, start, stream.data[:-2])
    assert r.state == _LOST
    assert not over(r, start)
    assert not over(r, start + len(stream.data) - 3)
    assert over(r, start + len(stream.data) - 2)
    passed(r, start + len(stream.data))
    assert not over(r, start + len(stream.data) - 2)
