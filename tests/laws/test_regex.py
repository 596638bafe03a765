"""Our reading of regular expressions agrees with RE2's, or says that it has none."""

from __future__ import annotations

import re2
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nodeagent.errors import CapacityError
from nodeagent.intent.automaton import Pattern, PatternKind, build, fits
from nodeagent.intent.regex import Unsupported, parse

_ATOMS = st.sampled_from(
    (
        *"ab/1.-",
        *("\\d", "\\w", "\\.", "\\x61"),
        *("[ab]", "[^/]", "[a-c1]", "[[:digit:]]", "[^\\d-]", "[]a]"),
    )
)
_QUANTIFIERS = st.sampled_from(("", "", "", "*", "+", "?", "{2}", "{1,2}", "{1,}", "*?", "+?"))


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    groups = st.sampled_from(("({})", "(?:{})", "(?i:{})", "(?P<n>{})"))
    sequence = st.lists(inner, min_size=1, max_size=3).map("".join)
    choice = st.lists(sequence, min_size=1, max_size=3).map("|".join)
    return st.builds(lambda group, body, times: group.format(body) + times, groups, choice, _QUANTIFIERS)


_PIECES = st.recursive(st.builds(lambda atom, times: atom + times, _ATOMS, _QUANTIFIERS), _grown, max_leaves=8)
_EXPRESSIONS = st.builds(
    lambda flag, body: flag + "".join(body), st.sampled_from(("", "", "(?i)", "^")), st.lists(_PIECES, max_size=4)
)
_WILD = st.text("ab/1.\\dw[]^-|(){}*+?$,i:sPx<>6", max_size=10)
_TEXTS = st.lists(st.text("abAB/1.-2c", max_size=6), min_size=1, max_size=12)


def _accepted(expression: str) -> object | None:
    options = re2.Options()
    options.log_errors = False
    try:
        compiled: object = re2.compile(expression, options)
    except re2.error:
        return None
    return compiled


@settings(max_examples=500)
@given(expression=st.one_of(_EXPRESSIONS, _WILD), texts=_TEXTS)
@example("a|^b", ["b", "a"])
@example("(a|b$)", ["b"])
@example("(?i)a|b", ["A", "B"])
@example("(?:(?i)a)b", ["Ab", "AB"])
@example("(a(?i)b|c)d", ["aB", "aBd", "Cd", "CD"])
@example("a{,2}", ["a", "a{,2}"])
@example("[a-]", ["-"])
@example("a**", ["a"])
@example("x{0}", ["", "x"])
def test_as_re2_reads_it(expression: str, texts: list[str]) -> None:
    theirs = _accepted(expression)
    if theirs is None:
        return  # refused before it gets to the compiler
    try:
        ours = parse(expression)
    except Unsupported:
        return
    try:
        automaton = build([Pattern(PatternKind.REGEX, expression.encode())], 5000)
    except CapacityError:
        return  # a named rejection: the route is left to the waypoint
    for text in texts:
        expected = re2.fullmatch(expression, text) is not None
        assert ours.matches(text.encode()) == expected, (expression, text)
        assert bool(automaton.matched(text.encode())) == expected, (expression, text)


def test_what_people_write_is_read() -> None:
    for expression in (
        "/api/v[0-9]+/.*", "^/static/.+\\.(css|js|png)$", "(?i)/Users/[a-z]+", "[^/]+", "/a{2,3}b?", ".*",
        "/\\d{4}-\\d{2}", "^(.*?;)?(user=jason)(;.*)?$", "(?i)^/a",
    ):  # fmt: skip
        assert fits(expression)


def test_an_expression_that_would_explode_is_left_to_the_waypoint() -> None:
    assert not fits("(a|b)*a(a|b){12}")
    assert not fits(".*a.{14}")
    assert not fits("((a{100}){10}){10}")
