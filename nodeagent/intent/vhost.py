"""A virtual host's matches as a program image (pure).

What decides *where* a route's requests go is not looked at here, only *which* route a request takes; so an edit of
weights or clusters reuses the image. A condition that the kernel cannot evaluate is left out of a route's predicates,
which makes the route match more than it should; such a route is then marked `undecided` and its action is a punt, so
that the home peer, or the waypoint behind it, decides every request that might be meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

from nodeagent.abi import numbers as n
from nodeagent.cache.resources import PathKind, RouteMatch, StringKind, ValueMatch
from nodeagent.errors import CapacityError
from nodeagent.intent.automaton import Automaton, Pattern, PatternKind, build, fits
from nodeagent.intent.packing import ANY_METHOD, HeaderRule, Image, RouteRule, pack

METHODS: Final = tuple(method for method in n.Method if method is not n.Method.NONE)
PREDICATES: Final = 64
#: Conditions "absent or ..." of one route: each doubles its rules.
ALTERNATIVES: Final = 4

_PATHS: Final = {
    PathKind.PREFIX: PatternKind.PREFIX,
    PathKind.EXACT: PatternKind.EXACT,
    PathKind.SEPARATED: PatternKind.SEPARATED,
}
_VALUES: Final = {
    StringKind.EXACT: PatternKind.EXACT,
    StringKind.PREFIX: PatternKind.PREFIX,
    StringKind.SUFFIX: PatternKind.SUFFIX,
    StringKind.CONTAINS: PatternKind.CONTAINS,
    StringKind.REGEX: PatternKind.REGEX,
}
#: Headers that Envoy itself writes, removes or joins before it looks for a route: their bytes on the wire are not what
#: a rule about them means.
_NOT_AS_SENT: Final = frozenset(
    {
        "connection", "content-length", "expect", "forwarded", "keep-alive", "proxy-connection", "te",
        "transfer-encoding", "upgrade", "via", "x-client-trace-id", "x-envoy-attempt-count", "x-forwarded-client-cert",
        "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto", "x-request-id",
    }
)  # fmt: skip
_EVERY_PATH: Final = Pattern(PatternKind.PREFIX, b"")


@dataclass(frozen=True, slots=True)
class Matches:
    """What the matches of a virtual host compile to.

    `undecided[i]` are the features of route i's match that the kernel cannot evaluate. With `image` None route `only`
    takes every request, or, with `only` None too, no route takes any. `last` is the last route that a request can
    reach: it takes everything that comes so far.
    """

    undecided: tuple[tuple[str, ...], ...]
    image: Image | None = None
    only: int | None = None
    last: int | None = None
    path: Automaton | None = None
    headers: tuple[HeaderRule, ...] = ()
    rules: tuple[RouteRule, ...] = ()


class _Predicates:
    """Predicate bits of a program: one per (header, pattern) and one per header's presence."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.patterns: dict[str, dict[Pattern, int]] = {}
        self.presence: dict[str, int] = {}
        self._used = 0

    def present(self, name: str) -> int:
        self._header(name)
        if name not in self.presence:
            self.presence[name] = self._bit()
        return self.presence[name]

    def pattern(self, name: str, pattern: Pattern) -> int:
        self._header(name)
        table = self.patterns[name]
        if pattern not in table:
            table[pattern] = self._bit()
        return table[pattern]

    def _header(self, name: str) -> None:
        if name not in self.patterns:
            if len(name.encode()) > n.NAME_MAX:
                raise CapacityError(f"the header name {name!r} is longer than {n.NAME_MAX} bytes")
            self.order.append(name)
            self.patterns[name] = {}

    def _bit(self) -> int:
        if self._used == PREDICATES:
            raise CapacityError(f"more than {PREDICATES} different header conditions in one virtual host")
        self._used += 1
        return 1 << (self._used - 1)

    def rules(self) -> tuple[HeaderRule, ...]:
        """Header rules in the order of first use."""
        result = []
        for name in self.order:
            table = self.patterns[name]
            automaton = build(tuple(table), n.STATES) if table else None
            result.append(HeaderRule(name.encode(), self.presence.get(name, 0), automaton, tuple(table.values())))
        return tuple(result)


#: One way for a route to match: bits that must be set, bits that must not.
_Way = tuple[int, int]


def compile_matches(matches: Sequence[RouteMatch]) -> Matches:
    """The program of a list of matches in order of precedence; route i's action index is i.

    Regular expressions whose automaton does not fit are left to the home peer, as if they could not be read.
    Raises CapacityError when another budget is exceeded.
    """
    try:
        return _compile(matches, regexes=True)
    except CapacityError:
        if not any(_has_regex(match) for match in matches):
            raise
        return _compile(matches, regexes=False)


def _has_regex(match: RouteMatch) -> bool:
    return match.path.kind is PathKind.REGEX or any(h.kind is StringKind.REGEX for h in match.headers)


def _compile(matches: Sequence[RouteMatch], *, regexes: bool) -> Matches:
    predicates = _Predicates()
    undecided: list[tuple[str, ...]] = []
    paths: list[Pattern] = []
    rules: list[RouteRule] = []
    final: set[int] = set()
    last: int | None = None
    for index, match in enumerate(matches):
        features = list(match.unsupported)
        path = _path(match, features, regexes)
        methods, ways = _ways(match, predicates, features, regexes)
        undecided.append(tuple(dict.fromkeys(features)))
        for need, forbid in ways if methods else ():
            if not rules and path == _EVERY_PATH and methods == ANY_METHOD and not need and not forbid:
                return Matches(_padded(undecided, len(matches)), only=index, last=index)
            if not need and not forbid and methods == ANY_METHOD:
                final.add(len(rules))
            paths.append(path)
            rules.append(RouteRule(need, forbid, methods, index))
        if path == _EVERY_PATH and methods == ANY_METHOD and (0, 0) in ways:
            last = index
            break  # nothing behind a route that takes everything is ever reached
    undecided_all = _padded(undecided, len(matches))
    if not rules:
        return Matches(undecided_all)
    if len(rules) > n.ROUTES:
        raise CapacityError(f"{len(rules)} routes, the kernel's route program holds {n.ROUTES}")
    automaton = build(paths, n.STATES, frozenset(final))
    headers = predicates.rules()
    image = pack(automaton, headers, rules, len(matches))
    return Matches(undecided_all, image, None, last, automaton, headers, tuple(rules))


def _padded(undecided: list[tuple[str, ...]], length: int) -> tuple[tuple[str, ...], ...]:
    return (*undecided, *(() for _ in range(length - len(undecided))))


def _path(match: RouteMatch, features: list[str], regexes: bool) -> Pattern:
    kind = match.path.kind
    if kind is PathKind.REGEX:
        if regexes and fits(match.path.value):
            return Pattern(PatternKind.REGEX, match.path.value.encode())
        features.append("path-regex")
        return Pattern(PatternKind.PREFIX, literal_prefix(match.path.value).encode())
    if kind is PathKind.TEMPLATE:
        features.append("path-template")
        return _EVERY_PATH
    if kind is PathKind.CONNECT:
        # CONNECT never gets here: the head parser leaves it to the home peer.
        features.append("connect")
        return _EVERY_PATH
    value = match.path.value.encode()
    if kind is PathKind.PREFIX and value in (b"", b"/"):
        return _EVERY_PATH  # canonical paths begin with a slash
    return Pattern(_PATHS[kind], value, match.path.ignore_case)


def literal_prefix(regex: str) -> str:
    """Characters that every full match of `regex` begins with: as much as is plain to see, maybe nothing."""
    if "|" in regex:
        return ""
    text = ""
    for i, char in enumerate(regex):
        if not (char.isalnum() or char in "/-_~!@#%&=:;,<>\"'` ") or not char.isascii():
            break
        if regex[i + 1 : i + 2] in ("*", "?", "{"):
            break  # this character may be missing
        text += char
    return text


def _ways(match: RouteMatch, predicates: _Predicates, features: list[str], regexes: bool) -> tuple[int, list[_Way]]:
    methods = ANY_METHOD
    options: list[list[_Way]] = []
    if match.query:
        features.append("query")
    for header in match.headers:
        if header.name == ":method":
            methods &= _methods(header, features)
        elif header.name == ":scheme":
            ways_by_scheme = _scheme(header, predicates, features)
            if not ways_by_scheme:
                return 0, []
            options.append(ways_by_scheme)
        elif header.name == ":path":
            features.append("header :path")
        else:
            options.append(_header(header, predicates, features, regexes))
    if sum(1 for option in options if len(option) > 1) > ALTERNATIVES:
        raise CapacityError(f"more than {ALTERNATIVES} conditions of a route hold for an absent header, too")
    ways = []
    for combination in product(*options):
        need = forbid = 0
        for more_need, more_forbid in combination:
            need, forbid = need | more_need, forbid | more_forbid
        if not need & forbid:
            ways.append((need, forbid))
    return methods, ways


def _header(header: ValueMatch, predicates: _Predicates, features: list[str], regexes: bool) -> list[_Way]:
    """The ways in which a header condition can hold; an unconditional way when it cannot be evaluated."""
    name = "host" if header.name == ":authority" else header.name
    if name.startswith((":", "x-envoy-")) or name in _NOT_AS_SENT:
        features.append(f"header {name}")
        return [(0, 0)]
    if header.kind is StringKind.PRESENT:
        if header.missing_as_empty:
            features.append("header-present-or-empty")
            return [(0, 0)]
        bit = predicates.present(name)
        return [(0, bit)] if header.invert else [(bit, 0)]
    if not _readable(header, regexes):
        features.append("header-regex" if header.kind is StringKind.REGEX else "header-range")
        return [(0, 0)]
    pattern = Pattern(_VALUES[header.kind], header.value.encode(), header.ignore_case)
    bit = predicates.pattern(name, pattern)
    holds_for_nothing = pattern.holds(b"")
    if not header.invert:
        if header.missing_as_empty and holds_for_nothing:
            return [(bit, 0), (0, predicates.present(name))]
        return [(bit, 0)]
    if header.missing_as_empty and not holds_for_nothing:
        return [(0, bit)]
    return [(predicates.present(name), bit)]


def _readable(header: ValueMatch, regexes: bool) -> bool:
    if header.kind is StringKind.REGEX:
        return regexes and fits(header.value)
    return header.kind is not StringKind.RANGE


def _methods(header: ValueMatch, features: list[str]) -> int:
    """The methods that a condition on `:method` allows, as a bit set over the eight that the kernel knows."""
    if not _readable(header, True):
        features.append("header-regex" if header.kind is StringKind.REGEX else "header-range")
        return ANY_METHOD
    allowed = 0
    for method in METHODS:
        if _holds(header, method.name):
            allowed |= 1 << method
    every = sum(1 << method for method in METHODS)
    return ANY_METHOD if allowed == every else allowed


def _scheme(header: ValueMatch, predicates: _Predicates, features: list[str]) -> list[_Way]:
    """The ways in which a condition on the scheme can hold; none: it never does.

    The requests that come here are plaintext; Envoy takes one for https all the same when who forwarded it says so.
    """
    if not _readable(header, True):
        features.append("header-regex")
        return [(0, 0)]
    plain, secure = _holds(header, "http"), _holds(header, "https")
    if plain and secure:
        return [(0, 0)]
    if not plain and not secure:
        return []
    said = predicates.pattern("x-forwarded-proto", Pattern(PatternKind.EXACT, b"https", True))
    return [(0, said)] if plain else [(said, 0)]


def _holds(header: ValueMatch, value: str) -> bool:
    if header.kind is StringKind.PRESENT:
        return not header.invert
    pattern = Pattern(_VALUES[header.kind], header.value.encode(), header.ignore_case)
    return pattern.holds(value.encode()) != header.invert
