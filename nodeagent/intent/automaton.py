"""Sets of string patterns as one deterministic automaton over bytes (pure).

Subset construction: a state is the set of patterns that are matched for good (whatever follows) and of those that are
still being read, with the position in each. Only bytes that some pattern can read next have an edge of their own;
every other byte takes the state's `fallback`. That is exactly the shape of the kernel's route program.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from nodeagent.errors import CapacityError
from nodeagent.intent.regex import ALPHABET, Positions, Unsupported, parse


class PatternKind(StrEnum):
    """What a pattern demands of the whole input."""

    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    CONTAINS = "contains"
    #: equal, or the pattern followed by "/" and anything
    SEPARATED = "separated"
    #: an expression that `regex.parse` can read, over the whole input
    REGEX = "regex"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern over bytes; with `fold` ASCII letters match either case."""

    kind: PatternKind
    value: bytes
    fold: bool = False

    def holds(self, text: bytes) -> bool:
        """Whether `text` as a whole satisfies the pattern: the definition that the automaton must agree with."""
        if self.kind is PatternKind.REGEX:
            return parse(self.value.decode()).matches(text)
        value = self.value
        if self.fold:
            text, value = text.lower(), value.lower()
        if self.kind is PatternKind.EXACT:
            return text == value
        if self.kind is PatternKind.PREFIX:
            return text.startswith(value)
        if self.kind is PatternKind.SUFFIX:
            return text.endswith(value)
        if self.kind is PatternKind.CONTAINS:
            return value in text
        return text == value or text.startswith(value + b"/")


@dataclass(frozen=True, slots=True)
class State:
    """One state: own edges by byte, the edge of all other bytes, and the patterns that hold if the input ends here."""

    edges: dict[int, int]
    fallback: int
    matched: frozenset[int]


@dataclass(frozen=True, slots=True)
class Automaton:
    """States by number; `start` is where reading begins."""

    states: tuple[State, ...]
    start: int = 0

    def matched(self, text: bytes) -> frozenset[int]:
        """Patterns that hold for `text`, by walking. For tests and golden dumps; the kernel has its own walk."""
        state = self.start
        for byte in text:
            here = self.states[state]
            state = here.edges.get(byte, here.fallback)
        return self.states[state].matched


def _turned(fallback: int, edges: dict[int, int]) -> tuple[int, dict[int, int]]:
    """The same edges with the commonest target as the default. Bytes outside the alphabet never come."""
    counts = Counter(edges.get(byte, fallback) for byte in ALPHABET)
    best = min(counts, key=lambda target: (-counts[target], target))
    return best, {byte: edges.get(byte, fallback) for byte in sorted(ALPHABET) if edges.get(byte, fallback) != best}


_Key = tuple[frozenset[int], frozenset[tuple[int, int]]]
#: A regex whose own automaton is larger is one for the waypoint.
REGEX_STATES: Final = 1024
#: Moves by a regex's positions that one automaton may cost: about two seconds of compiling.
WORK: Final = 4_000_000
_LOOPING = (PatternKind.SUFFIX, PatternKind.CONTAINS)
_LASTING = (PatternKind.PREFIX, PatternKind.CONTAINS)


def build(patterns: Sequence[Pattern], limit: int, final: frozenset[int] = frozenset()) -> Automaton:
    """The automaton of `patterns`.

    `final`: patterns (by index, in order of precedence) that decide when they hold; where one of them holds for good,
    later patterns are of no interest and are left out of `matched`. Raises CapacityError above `limit` states.
    """
    return _Builder(patterns, limit, final).run()


@lru_cache(maxsize=4096)
def fits(regex: str) -> bool:
    """Whether an expression can be read, and alone needs no more than REGEX_STATES states."""
    try:
        build((Pattern(PatternKind.REGEX, regex.encode()),), REGEX_STATES)
    except (Unsupported, CapacityError):
        return False
    return True


class _Builder:
    def __init__(self, patterns: Sequence[Pattern], limit: int, final: frozenset[int]) -> None:
        self._patterns = [(p.kind, p.value.lower() if p.fold else p.value, p.fold) for p in patterns]
        self._limit = limit
        self._final = final
        self._loops = frozenset((i, 0) for i, (kind, _, _) in enumerate(self._patterns) if kind in _LOOPING)
        self._regexes: dict[int, Positions] = {
            i: parse(p.value.decode()) for i, p in enumerate(patterns) if p.kind is PatternKind.REGEX
        }
        self._work = 0
        self._numbers: dict[_Key, int] = {}
        self._keys: list[_Key] = []

    def run(self) -> Automaton:
        at_once = (*_LOOPING, PatternKind.PREFIX)
        done = frozenset(i for i, (kind, value, _) in enumerate(self._patterns) if not value and kind in at_once)
        live = frozenset((i, 0) for i in range(len(self._patterns)))
        start = self._number(done, live)
        states: list[State] = []
        while len(states) < len(self._keys):
            states.append(self._state(*self._keys[len(states)]))
            if self._work > WORK:
                raise CapacityError("the regular expressions take too long to tell apart")
        return Automaton(tuple(states), start)

    def _number(self, done: frozenset[int], live: frozenset[tuple[int, int]]) -> int:
        decided = min((i for i in done if i in self._final), default=None)
        if decided is not None:
            done = frozenset(i for i in done if i <= decided)
        bound = len(self._patterns) if decided is None else decided
        live = frozenset(item for item in live if item[0] not in done and item[0] < bound)
        key = (done, live)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._keys)
            if number >= self._limit:
                raise CapacityError(
                    f"more than {self._limit} automaton states are needed to tell {len(self._patterns)} patterns apart"
                )
            self._keys.append(key)
        return number

    def _read_regex(
        self,
        i: int,
        position: int,
        moves: dict[int, set[tuple[int, int]]],
        arrived: dict[int, set[int]],
        matched: set[int],
    ) -> None:
        regex = self._regexes[i]
        if position in regex.accepting:
            matched.add(i)
        for q in regex.follow[position]:
            self._work += len(regex.classes[q])
            for b in regex.classes[q]:
                if q in regex.universal:
                    arrived.setdefault(b, set()).add(i)
                else:
                    moves.setdefault(b, set()).add((i, q))

    def _state(self, done: frozenset[int], live: frozenset[tuple[int, int]]) -> State:
        moves: dict[int, set[tuple[int, int]]] = {}
        arrived: dict[int, set[int]] = {}
        matched = set(done)
        for i, position in live:
            kind, value, fold = self._patterns[i]
            if kind is PatternKind.REGEX:
                self._read_regex(i, position, moves, arrived, matched)
                continue
            if position == len(value):
                if kind in (PatternKind.EXACT, PatternKind.SEPARATED, PatternKind.SUFFIX):
                    matched.add(i)
                if kind is PatternKind.SEPARATED:
                    arrived.setdefault(0x2F, set()).add(i)
                continue
            byte = value[position]
            for b in (byte, byte - 32) if fold and 0x61 <= byte <= 0x7A else (byte,):
                if position + 1 == len(value) and kind in _LASTING:
                    arrived.setdefault(b, set()).add(i)
                else:
                    moves.setdefault(b, set()).add((i, position + 1))
        fallback = self._number(done, self._loops)
        edges = {}
        for b in sorted(moves.keys() | arrived.keys()):
            target = self._number(done | arrived.get(b, set()), self._loops | moves.get(b, set()))
            if target != fallback:
                edges[b] = target
        if len(edges) > len(ALPHABET) // 2:
            # Most bytes go elsewhere (`[^/]`): the commonest target is the better default.
            fallback, edges = _turned(fallback, edges)
        decided = min((i for i in matched if i in self._final), default=None)
        if decided is not None:
            matched = {i for i in matched if i <= decided}
        return State(edges, fallback, frozenset(matched))
