"""The request head parser: canonical form or a named reason, on whatever bytes and wherever they are cut."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.abi.numbers import HEAD_MAX, LINES_MAX, Method, Reason
from nodeagent.core.libcore import FLAG_CLOSE, FLAG_EXPECT, FLAG_LENGTH, FLAG_PORT, Head, HeadReader
from tests.support.core_memory import core
from tests.support.hostile_heads import CANONICAL, CLASSES, ENVOY_58, LIMITS, Case, get, post

pytestmark = pytest.mark.needs("core")


@pytest.fixture(scope="module")
def reader() -> HeadReader:
    return HeadReader(core())


# ---- verdicts ----

_CASES = {f"envoy: {name}": case for name, case in ENVOY_58.items()}
_CASES |= {f"class {number}: {name}": case for number, cases in CLASSES.items() for name, case in cases.items()}
_CASES |= {f"limit: {name}": case for name, case in LIMITS.items()}


def test_all_of_envoys_requests_are_there() -> None:
    assert len(ENVOY_58) >= 58
    assert set(CLASSES) == {*range(1, 8), 10}


@pytest.mark.parametrize("case", _CASES.values(), ids=_CASES.keys())
def test_verdict(reader: HeadReader, case: Case) -> None:
    data, expected = case
    found = reader.parse(data)
    assert Reason(found.reason) == expected
    assert core().reason_name(found.reason) not in ("unknown", "")


@pytest.mark.parametrize("data", CANONICAL.values(), ids=CANONICAL.keys())
def test_canonical_is_accepted(reader: HeadReader, data: bytes) -> None:
    head = reader.parse(data + b"whatever follows")
    assert head.reason == 0
    assert head.size == len(data)


def test_what_is_read(reader: HeadReader) -> None:
    data = (
        b"PUT /a/b?c=/../d HTTP/1.1\r\nX-A:b c\r\nHOST: Ab.C-d_e:8080\r\nContent-LENGTH: 0012\r\n"
        b"Connection: CLOSE\r\nexpect: 100-Continue\r\nX-Empty:\r\n\r\n"
    )
    head = reader.parse(data)
    assert (Reason(head.reason), Method(head.method), head.size, head.body) == (0, Method.PUT, len(data), 12)
    assert head.flags & (FLAG_LENGTH | FLAG_CLOSE | FLAG_EXPECT | FLAG_PORT) == 1 | 2 | 4 | 16
    assert (data[head.path : head.path_end], data[head.path : head.target_end]) == (b"/a/b", b"/a/b?c=/../d")
    assert reader.host() == b"ab.c-d_e"
    assert reader.has_port
    assert reader.header_lines(data) == [
        (b"X-A", b"b c"), (b"HOST", b"Ab.C-d_e:8080"), (b"Content-LENGTH", b"0012"), (b"Connection", b"CLOSE"),
        (b"expect", b"100-Continue"), (b"X-Empty", b""),
    ]  # fmt: skip


@pytest.mark.parametrize("method", [m for m in Method if m is not Method.NONE])
def test_methods(reader: HeadReader, method: Method) -> None:
    name = method.name.encode()
    assert reader.parse(name + b" / HTTP/1.1\r\nHost: a\r\n\r\n").method == method
    for other in (name[:-1], name + b"X", name.lower(), name[:1] + name[1:].lower(), b"X" + name, name + b"\t"):
        assert reader.parse(other + b" / HTTP/1.1\r\nHost: a\r\n\r\n").reason != 0, other


def test_flags_of_one_head_do_not_stay_for_the_next(reader: HeadReader) -> None:
    full = post(b"Connection: close", b"Expect: 100-continue", b"Content-Length: 9")
    assert reader.parse(full.replace(b"Host: a", b"Host: longer.name:80")).reason == 0
    head = reader.parse(get())
    assert (head.reason, head.flags & (FLAG_LENGTH | FLAG_CLOSE | FLAG_EXPECT | FLAG_PORT), head.body) == (0, 0, 0)
    assert reader.host() == b"a"
    assert reader.header_lines(get()) == [(b"Host", b"a")]


# ---- cuts ----


@pytest.mark.parametrize("data", CANONICAL.values(), ids=CANONICAL.keys())
@pytest.mark.parametrize("stale", [b"\0", b"\r\n", b"x", b" ", b":", b"/"])
def test_a_part_of_a_head_is_never_a_verdict(reader: HeadReader, data: bytes, stale: bytes) -> None:
    """Whatever an earlier head left in the buffer."""
    for cut in range(len(data)):
        reader.parse((stale * HEAD_MAX)[:HEAD_MAX])
        head = reader.parse(data[:cut])
        assert (cut, Reason(head.reason)) == (cut, Reason.SPLIT_HEAD)
        assert head.size == 0


@pytest.mark.parametrize("case", _CASES.values(), ids=_CASES.keys())
def test_a_refused_head_is_accepted_at_no_cut(reader: HeadReader, case: Case) -> None:
    data, expected = case
    if expected == Reason.OK:
        return
    for cut in range(min(len(data), 400)):
        assert reader.parse(data[:cut]).reason != 0, cut


def test_a_head_that_never_ends_is_too_long(reader: HeadReader) -> None:
    data = get(b"/", b"X: " + b"v" * HEAD_MAX)
    assert reader.parse(data[: HEAD_MAX - 1]).reason == Reason.SPLIT_HEAD
    assert reader.parse(data[:HEAD_MAX]).reason == Reason.HEAD_TOO_LONG
    many = get(b"/", *[b"X%d: a" % i for i in range(LINES_MAX + 8)])
    assert reader.parse(many).reason == Reason.TOO_MANY_LINES


# ---- every byte everywhere ----

_ALPHA = set(range(65, 91)) | set(range(97, 123))
_DIGITS = set(range(48, 58))
_TCHAR = _ALPHA | _DIGITS | set(b"!#$%&'*+-.^_`|~")
_PLAIN = _ALPHA | _DIGITS | set(b"-_~!$&'()*+,:@=")  # RFC 3986 pchar without the escapes and the semicolon
_VALUE = set(range(0x20, 0x7F))
_HOST = _ALPHA | _DIGITS | set(b"-._")


@pytest.mark.parametrize(
    ("before", "after", "accepted"),
    [
        pytest.param(b"GET /a", b"b HTTP/1.1\r\nHost: a\r\n\r\n", _PLAIN | set(b"/.?"), id="path"),
        pytest.param(b"GET /", b" HTTP/1.1\r\nHost: a\r\n\r\n", _PLAIN | set(b"?"), id="whole path"),
        pytest.param(b"GET /?a", b"b HTTP/1.1\r\nHost: a\r\n\r\n", _PLAIN | set(b"/.?%;\\"), id="query"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nx", b"y: z\r\n\r\n", _TCHAR | {58}, id="name"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n", b": z\r\n\r\n", _TCHAR, id="whole name"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX: y", b"z\r\n\r\n", _VALUE, id="value"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"z\r\n\r\n", _VALUE - {32}, id="value's first"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX: y", b"\r\n\r\n", _VALUE - {32}, id="value's last"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX:", b"z\r\n\r\n", _VALUE, id="behind the colon"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a", b"b\r\n\r\n", _HOST, id="host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a:8", b"\r\n\r\n", _DIGITS, id="port"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1", b"\r\n\r\n", _DIGITS, id="length"),
        pytest.param(b"GET / HTTP/1.", b"\r\nHost: a\r\n\r\n", {0x31}, id="minor version"),
        pytest.param(b"GET", b"/ HTTP/1.1\r\nHost: a\r\n\r\n", {0x20}, id="behind the method"),
        pytest.param(b"GET ", b" HTTP/1.1\r\nHost: a\r\n\r\n", {0x2F}, id="target's first"),
        pytest.param(b"GET / HTTP/1.1", b"\nHost: a\r\n\r\n", {0x0D}, id="CR of the request line"),
        pytest.param(b"GET / HTTP/1.1\r", b"Host: a\r\n\r\n", {0x0A}, id="LF of the request line"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a", b"\n\r\n", {0x0D}, id="CR of a line"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r", b"\r\n", {0x0A}, id="LF of a line"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n", b"\n", {0x0D}, id="CR of the empty line"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n\r", b"", {0x0A}, id="LF of the empty line"),
    ],
)
def test_every_byte(reader: HeadReader, before: bytes, after: bytes, accepted: set[int]) -> None:
    found = {c for c in range(256) if reader.parse(before + bytes([c]) + after).reason == 0}
    assert found == accepted, (found - accepted, accepted - found)


@pytest.mark.parametrize(
    "name",
    [
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"upgrade",
        b"expect",
        b"te",
        b"x-forwarded-client-cert",
    ],
)
def test_names_that_decide_are_compared_whole(reader: HeadReader, name: bytes) -> None:
    """In any case; and no other token of that length is taken for one, whatever bits the two differ in."""
    sure = b"close"

    def refused(line: bytes) -> Head:
        return reader.parse(b"GET / HTTP/1.1\r\nHost: a\r\n%s: %s\r\n\r\n" % (line, sure))

    plain = refused(b"x" * len(name))
    assert plain.reason == 0
    for k in range(len(name)):
        assert refused(name[:k] + name[k : k + 1].upper() + name[k + 1 :]) == refused(name)
        for c in _TCHAR - set(name[k : k + 1] + name[k : k + 1].upper()):
            other = refused(name[:k] + bytes([c]) + name[k + 1 :])
            assert (other.reason, other.flags) == (0, plain.flags), (name, k, c)


# ---- a second reader ----

_NAMES = st.sampled_from(
    [b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Expect", b"Accept", b"X-A", b"x_b", b"Cookie"]
)
_VALUES = st.one_of(
    st.sampled_from(
        [b"a", b"a.b:80", b"[::1]:8080", b"0", b"5", b"007", b"close", b"keep-alive", b"100-continue", b""]
    ),
    st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=12).map(str.encode),
)
_LINE = st.tuples(_NAMES, st.sampled_from([b": ", b":", b": ", b" : ", b":  ", b":\t"]), _VALUES).map(b"".join)
_TARGETS = st.one_of(
    st.sampled_from([b"/", b"/a/b", b"/?q", b"/a?b=c/d", b"/a/./b", b"//", b"/%41", b"*", b"http://b/"]),
    st.text(alphabet="/ab.?%;#~", max_size=10).map(lambda text: b"/" + text.encode()),
)
_METHODS = st.sampled_from([b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"DELETE", b"PATCH", b"TRACE", b"get", b"X"])


def _joined(method: bytes, target: bytes, version: bytes, lines: list[bytes], ends: list[bytes]) -> bytes:
    parts = [method + b" " + target + b" " + version, *lines, b""]
    return b"".join(part + ends[k % len(ends)] for k, part in enumerate(parts))


_CANONICAL_ENDS = st.just([b"\r\n"])
_ODD_ENDS = st.lists(st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n"]), min_size=1, max_size=4)
_LINES = st.lists(_LINE, max_size=6).map(lambda lines: [b"Host: h.x", *lines])
_HEADS = st.builds(
    _joined, _METHODS, _TARGETS, st.sampled_from([b"HTTP/1.1"] * 7 + [b"HTTP/1.0"]), st.one_of(_LINES, st.lists(_LINE)),
    st.one_of(_CANONICAL_ENDS, _CANONICAL_ENDS, _ODD_ENDS),
)  # fmt: skip


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(_HEADS))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.integers(0, 2))
        if kind == 0:
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == 1:
            del data[at : at + draw(st.integers(1, 4))]
        else:
            data[at:at] = draw(st.sampled_from([b"\r\n", b" ", b"\n", b":", b"\0", b"\r\n\r\n"]))
    return bytes(data)


_METHOD_NAMES = {int(m): m.name.encode() for m in Method}


@settings(max_examples=3000, deadline=None)
@given(data=_mutated())
def test_h11_reads_whatever_is_accepted_alike(reader: HeadReader, data: bytes) -> None:
    head = reader.parse(data)
    if head.reason:
        return
    server = h11.Connection(h11.SERVER)
    server.receive_data(data[: head.size])
    event = server.next_event()
    assert isinstance(event, h11.Request)
    assert event.method == _METHOD_NAMES[head.method]
    assert event.target == data[head.path : head.target_end]
    assert event.http_version == b"1.1"
    ours = [(name.lower(), value) for name, value in reader.header_lines(data)]
    assert list(event.headers) == ours
    hosts = [value for name, value in event.headers if name == b"host"]
    assert len(hosts) == 1
    port = hosts[0][len(reader.host()) :]
    assert hosts[0].lower() == reader.host() + port
    assert port == b"" or (reader.has_port and port[:1] == b":" and port[1:].strip(b"0123456789") == b"")
    if head.body > 100_000:
        assert [int(value) for name, value in event.headers if name == b"content-length"] == [head.body]
        return
    # the head's own length and the body's: h11 must end the request exactly there
    server.receive_data(b"b" * head.body + b"NEXT")
    got = b""
    while not isinstance(event := server.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data), event
        got += bytes(event.data)
    assert (got, server.trailing_data[0]) == (b"b" * head.body, b"NEXT")


@settings(max_examples=300, deadline=None)
@given(method=_METHODS.filter(bytes.isupper), lines=st.lists(_VALUES, max_size=4))
def test_the_comparison_is_not_empty(reader: HeadReader, method: bytes, lines: list[bytes]) -> None:
    """Heads of that shape are accepted unless something in them is not canonical."""
    values = [value.strip() for value in lines]
    data = _joined(method, b"/", b"HTTP/1.1", [b"Host: a", *(b"X-A: " + value for value in values)], [b"\r\n"])
    assert (reader.parse(data).reason == 0) == (method != b"X")
