"""The compiled route program, walked by the kernel's own code, decides as Envoy's rules say."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.abi.numbers import Reason
from nodeagent.abi.records import Action
from nodeagent.cache.resources import PathKind, PathMatch, RouteMatch, StringKind, ValueMatch
from nodeagent.core.libcore import Core, HeadReader, RouteProgram
from nodeagent.intent.automaton import Pattern, PatternKind, build
from nodeagent.intent.packing import assemble
from nodeagent.intent.vhost import compile_matches, literal_prefix
from tests.support.route_oracle import Request, first

pytestmark = pytest.mark.needs("core")

_TEXT = st.text(alphabet="abA/-", max_size=5)
_SEGMENTS = st.lists(st.text(alphabet="abA-", min_size=1, max_size=3), max_size=4)
_PATHS = _SEGMENTS.map(lambda parts: "/" + "/".join(parts))
_CUTS = st.tuples(_PATHS, st.integers(0, 3)).map(lambda p: p[0][: max(len(p[0]) - p[1], 1)])


def _path_matches() -> st.SearchStrategy[PathMatch]:
    kinds = st.sampled_from((PathKind.PREFIX, PathKind.EXACT, PathKind.SEPARATED, PathKind.REGEX))
    return st.builds(_path_match, kinds, _CUTS, st.booleans())


_REGEXES = ("/a+.*", "/[ab]*", ".*", "/a/b?", "/(a|b)", "/A{1,2}/a")


def _path_match(kind: PathKind, value: str, fold: bool) -> PathMatch:
    if kind is PathKind.REGEX:
        return PathMatch(kind, _REGEXES[len(value) % len(_REGEXES)])
    if kind is PathKind.SEPARATED:
        value = value.rstrip("/") or "/a"
    return PathMatch(kind, value, fold)


_VALUES = st.text(alphabet="abAB1", max_size=4)
_HEADERS = st.builds(
    ValueMatch,
    st.sampled_from(("x-user", "x-group", "cookie", ":authority")),
    st.sampled_from((StringKind.EXACT, StringKind.PREFIX, StringKind.SUFFIX, StringKind.CONTAINS)),
    _VALUES,
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
_HEADER_REGEXES = st.builds(
    lambda name, value, invert, empty: ValueMatch(name, StringKind.REGEX, value, False, invert, empty),
    st.sampled_from(("x-user", "cookie")),
    st.sampled_from((".*", ".+", "(?i)a.*", "[^1]*", "a?b?", "(a|B)+1?")),
    st.booleans(),
    st.booleans(),
)
_PRESENT = st.builds(
    lambda name, invert: ValueMatch(name, StringKind.PRESENT, invert=invert),
    st.sampled_from(("x-user", "x-group", "x-other")),
    st.booleans(),
)
_METHOD_MATCHES = st.builds(
    lambda value, kind, invert: ValueMatch(":method", kind, value, invert=invert),
    st.sampled_from(("GET", "POST", "P", "")),
    st.sampled_from((StringKind.EXACT, StringKind.PREFIX)),
    st.booleans(),
)
_QUERY = st.just(ValueMatch("q", StringKind.EXACT, "1"))
_MATCHES = st.builds(
    RouteMatch,
    _path_matches(),
    st.lists(st.one_of(_HEADERS, _HEADER_REGEXES, _PRESENT, _METHOD_MATCHES), max_size=3).map(tuple),
    st.one_of(st.just(()), _QUERY.map(lambda q: (q,))),
)
_REQUESTS = st.builds(
    lambda method, path, query, host, values: Request(
        method, path + query, host, tuple((n, v) for n, v in values.items())
    ),
    st.sampled_from(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")),
    _PATHS,
    st.sampled_from(("", "?q=1", "?a/b")),
    st.sampled_from(("a", "ab", "b1.a", "A")),
    st.dictionaries(st.sampled_from(("x-user", "X-Group", "Cookie", "x-more")), _VALUES, max_size=4),
)


@pytest.fixture(scope="module")
def reader() -> HeadReader:
    return HeadReader(Core())


@settings(max_examples=400, deadline=None)
@given(matches=st.lists(_MATCHES, min_size=1, max_size=8), requests=st.lists(_REQUESTS, min_size=1, max_size=12))
def test_the_core_takes_the_route_that_envoy_takes(
    reader: HeadReader, matches: list[RouteMatch], requests: list[Request]
) -> None:
    compiled = compile_matches(matches)
    program = None
    if compiled.image is not None:
        actions = [Action(route=i + 1) for i in range(len(matches))]
        program = RouteProgram(assemble(compiled.image, actions))
    for request in requests:
        head = reader.parse(request.wire())
        assert head.reason == 0, (request, head)
        expected = first(matches, request)
        if program is None:
            found = compiled.only
        else:
            index = reader.match(program)
            assert index >= 0 or index == -Reason.NO_ROUTE
            found = None if index < 0 else int.from_bytes(program.action(index)[:4], "little") - 1
        if found != expected:
            # Only a route that the kernel cannot evaluate may stand in for what comes after it: it is then punted.
            assert found is not None, (request, matches)
            assert compiled.undecided[found], (request, matches)
            assert expected is None or found < expected, (request, matches)


_PATTERNS = st.builds(
    Pattern, st.sampled_from(tuple(PatternKind)), st.text("abA/", max_size=4).map(str.encode), st.booleans()
)


@settings(max_examples=400, deadline=None)
@given(patterns=st.lists(_PATTERNS, max_size=6), texts=st.lists(_TEXT.map(str.encode), max_size=10))
def test_an_automaton_accepts_what_its_patterns_hold_for(patterns: list[Pattern], texts: list[bytes]) -> None:
    automaton = build(patterns, 10_000)
    for text in texts:
        assert automaton.matched(text) == {i for i, p in enumerate(patterns) if p.holds(text)}


@settings(max_examples=100, deadline=None)
@given(matches=st.lists(_MATCHES, min_size=1, max_size=6))
def test_compiling_is_deterministic(matches: list[RouteMatch]) -> None:
    assert compile_matches(matches) == compile_matches(list(matches))


def test_header_hashes_are_the_cores() -> None:
    from nodeagent.intent.packing import name_hash

    core = Core()
    for name in (b"x-user", b"end-user", b"a", b"host", b"x" * 64):
        assert name_hash(name) == core.name_hash(name)


@pytest.mark.parametrize(
    ("regex", "prefix"),
    [
        ("/v[0-9]+/.*", "/v"), ("/a|/b", ""), ("/ab*", "/a"), ("/ab?c", "/a"), ("/ab{0,1}", "/a"), ("/ab+", "/ab"),
        (".*", ""), ("(?i)/x", ""), ("/a\\.b", "/a"), ("^/a", ""), ("/exact", "/exact"),
    ],
)  # fmt: skip
def test_a_regexs_literal_prefix_is_never_too_long(regex: str, prefix: str) -> None:
    assert literal_prefix(regex) == prefix
