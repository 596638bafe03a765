"""RE2's regular expressions, as far as they are regular, as positions and what may follow them (pure).

Glushkov's construction: every character class of the expression is a position; reading a byte moves from a position to
those that may follow it and whose class has the byte. There are no empty moves, so a set of positions is exactly a
state of `automaton`. Matches are over the whole text, as Envoy's are.

Only printable ASCII is told apart: the head parser leaves everything else to the home peer before any rule is asked.
What this parser does not know for certain it refuses (`Unsupported`); such a route stays the home peer's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

#: The bytes that a canonical path or header value can have.
ALPHABET: Final = frozenset(range(0x20, 0x7F))
#: More positions than that are a regex for the waypoint.
POSITIONS: Final = 1000
_REPEATS: Final = 1000  # RE2's own limit

_DIGIT: Final = frozenset(b"0123456789")
_WORD: Final = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz")
_SPACE: Final = frozenset(b"\t\n\f\r ")
_UPPER: Final = frozenset(range(0x41, 0x5B))
_LOWER: Final = frozenset(range(0x61, 0x7B))
_CLASSES: Final = {
    "d": _DIGIT, "D": ALPHABET - _DIGIT, "w": _WORD, "W": ALPHABET - _WORD, "s": _SPACE, "S": ALPHABET - _SPACE,
}  # fmt: skip
_POSIX: Final = {
    "alnum": _DIGIT | _UPPER | _LOWER, "alpha": _UPPER | _LOWER, "digit": _DIGIT, "lower": _LOWER, "upper": _UPPER,
    "word": _WORD, "xdigit": frozenset(b"0123456789abcdefABCDEF"), "space": _SPACE | {0x0B}, "graph": ALPHABET - {0x20},
    "print": ALPHABET, "punct": ALPHABET - _DIGIT - _UPPER - _LOWER - {0x20}, "blank": frozenset(b"\t "),
}  # fmt: skip
_ONLY_FLAGS: Final = re.compile(r"\^?(\(\?[is]+\))*")
_CONTROLS: Final = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D, "a": 0x07}
#: ASCII punctuation may be escaped; letters and digits mean something else when they are.
_PUNCTUATION: Final = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ")


class Unsupported(ValueError):
    """The expression uses something that is not compiled here."""


@dataclass(frozen=True, slots=True)
class Positions:
    """An expression: `classes[p]` are the bytes of position p (0 is the beginning), `follow[p]` the positions after it.

    `accepting`: the text may end there. `universal`: once there, every continuation matches.
    """

    classes: tuple[frozenset[int], ...]
    follow: tuple[tuple[int, ...], ...]
    accepting: frozenset[int]
    universal: frozenset[int]

    def matches(self, text: bytes) -> bool:
        """Whether the whole of `text` matches."""
        at = {0}
        for byte in text:
            at = {q for p in at for q in self.follow[p] if byte in self.classes[q]}
        return not at.isdisjoint(self.accepting)


@lru_cache(maxsize=4096)
def parse(expression: str) -> Positions:
    """The positions of an expression that RE2 accepts. Raises Unsupported."""
    parser = _Parser(expression)
    tree = parser.alternatives()
    if parser.at < len(expression):
        raise Unsupported(f"unbalanced {expression[parser.at]!r}")
    return _number(tree)


# ---- the tree: a node numbers itself and says whether it can be empty, how it can begin and end ----

_Ends = tuple[bool, frozenset[int], frozenset[int]]
_Node = Callable[["_Numbering"], _Ends]


class _Numbering:
    def __init__(self) -> None:
        self.classes: list[frozenset[int]] = [frozenset()]
        self.follow: list[set[int]] = [set()]

    def new(self, members: frozenset[int]) -> int:
        if len(self.classes) > POSITIONS:
            raise Unsupported(f"more than {POSITIONS} positions")
        self.classes.append(members & ALPHABET)
        self.follow.append(set())
        return len(self.classes) - 1

    def link(self, ends: Iterable[int], begins: frozenset[int]) -> None:
        for position in ends:
            self.follow[position] |= begins


def _number(tree: _Node) -> Positions:
    numbering = _Numbering()
    empty, first, last = tree(numbering)
    numbering.link((0,), first)
    accepting = last | ({0} if empty else frozenset())
    universal = frozenset(p for p in last if p in numbering.follow[p] and numbering.classes[p] == ALPHABET)
    return Positions(
        tuple(numbering.classes), tuple(tuple(sorted(f)) for f in numbering.follow), frozenset(accepting), universal
    )


def _one(members: frozenset[int]) -> _Node:
    def number(numbering: _Numbering) -> _Ends:
        position = frozenset({numbering.new(members)})
        return False, position, position

    return number


def _nothing(_: _Numbering) -> _Ends:
    return True, frozenset(), frozenset()


def _sequence(parts: list[_Node]) -> _Node:
    def number(numbering: _Numbering) -> _Ends:
        empty, first, last = True, frozenset[int](), frozenset[int]()
        for part in parts:
            part_empty, part_first, part_last = part(numbering)
            numbering.link(last, part_first)
            first = first | part_first if empty else first
            last = last | part_last if part_empty else part_last
            empty = empty and part_empty
        return empty, first, last

    return number


def _choice(parts: list[_Node]) -> _Node:
    def number(numbering: _Numbering) -> _Ends:
        empty, first, last = False, frozenset[int](), frozenset[int]()
        for part in parts:
            part_empty, part_first, part_last = part(numbering)
            empty, first, last = empty or part_empty, first | part_first, last | part_last
        return empty, first, last

    return number


def _repeated(part: _Node) -> _Node:
    def number(numbering: _Numbering) -> _Ends:
        empty, first, last = part(numbering)
        numbering.link(last, first)
        return empty, first, last

    return number


def _optional(part: _Node) -> _Node:
    return _choice([part, _nothing])


def _counted(part: _Node, least: int, most: int | None) -> _Node:
    copies = [part] * least
    if most is None:
        return _sequence([*copies, _optional(_repeated(part))])
    return _sequence([*copies, *[_optional(part)] * (most - least)])


class _Parser:
    """Reads RE2's syntax. `fold`: whether case is ignored here."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.fold = text, 0, False

    def alternatives(self) -> _Node:
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else _choice(parts)

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            if self._take("^"):
                if _ONLY_FLAGS.fullmatch(self.text[: self.at - 1]) is None:
                    raise Unsupported("^ that is not at the beginning")
                continue
            if self._take("$"):
                if self.at < len(self.text):
                    raise Unsupported("$ that is not at the end")
                continue
            parts.append(self._quantified(self._atom()))
        return _sequence(parts)

    def _atom(self) -> _Node:
        char = self.text[self.at]
        if char == "(":
            return self._group()
        if char == "[":
            return _one(self._bracket())
        self.at += 1
        if char == ".":
            return _one(ALPHABET)
        if char == "\\":
            return _one(self._folded(self._escape()))
        if char in "*+?":
            raise Unsupported(f"nothing to repeat before {char!r}")
        if not char.isascii():
            raise Unsupported("characters beyond ASCII")
        return _one(self._folded(frozenset({ord(char)})))

    def _group(self) -> _Node:
        outer = self.fold
        self.at += 1
        if self._take("?"):
            if self._take("P<") or self._take("<"):
                end = self.text.find(">", self.at)
                if end < 0 or not self.text[self.at : end].isidentifier():
                    raise Unsupported("a group that is not capturing by name")
                self.at = end + 1
            else:
                flags, self.at = self._flags()
                if flags.endswith(")"):  # (?i): from here to the end of the enclosing group
                    self.fold = "i" in flags
                    return _nothing
                self.fold = outer or "i" in flags
        node = self.alternatives()
        if not self._take(")"):
            raise Unsupported("an open group")
        self.fold = outer
        return node

    def _flags(self) -> tuple[str, int]:
        end = self.at
        while end < len(self.text) and self.text[end] in "is":
            end += 1
        if end >= len(self.text) or self.text[end] not in ":)":
            raise Unsupported("flags other than i and s")
        return self.text[self.at : end + 1], end + 1

    def _quantified(self, node: _Node) -> _Node:
        """A node with what repeats it. Twice in a row is an error to RE2."""
        if self._take("*"):
            node = _optional(_repeated(node))
        elif self._take("+"):
            node = _repeated(node)
        elif self._take("?"):
            node = _optional(node)
        elif self._peek("{"):
            bounds = self._bounds()
            if bounds is None:
                return node
            node = _counted(node, *bounds)
        else:
            return node
        self._take("?")  # lazy: the same set of whole matches
        if self.at < len(self.text) and self.text[self.at] in "*+?{":
            raise Unsupported("a repetition of a repetition")
        return node

    def _bounds(self) -> tuple[int, int | None] | None:
        end = self.text.find("}", self.at)
        body = self.text[self.at + 1 : end] if end >= 0 else ""
        low, comma, high = body.partition(",")
        if not (low.isascii() and low.isdigit() and (not high or (high.isascii() and high.isdigit()))):
            raise Unsupported("a brace that is no repetition")
        least, most = int(low), (int(high) if high else None) if comma else int(low)
        if least > _REPEATS or (most is not None and not least <= most <= _REPEATS):
            raise Unsupported("repetition bounds out of range")
        self.at = end + 1
        return least, most

    def _bracket(self) -> frozenset[int]:
        self.at += 1
        negated = self._take("^")
        members: set[int] = set()
        begun = self.at
        while True:
            if self.at >= len(self.text):
                raise Unsupported("an open bracket")
            if self._peek("]") and self.at > begun:
                self.at += 1
                break
            members |= self._member()
        found = self._folded(frozenset(members))
        return ALPHABET - found if negated else found

    def _member(self) -> frozenset[int]:
        """One element of a bracket: a POSIX class, an escape, a character, or a range."""
        if self._peek("[:"):
            end = self.text.find(":]", self.at)
            name = self.text[self.at + 2 : end] if end >= 0 else ""
            found = _POSIX.get(name.removeprefix("^"))
            if found is None:
                raise Unsupported("an unknown POSIX class")
            self.at = end + 2
            return ALPHABET - found if name.startswith("^") else found
        low = self._bracket_char()
        if len(low) > 1 or not self._peek("-") or self._peek("-]"):
            return low
        self.at += 1
        high = self._bracket_char()
        (first,) = low
        if len(high) != 1 or min(high) < first:
            raise Unsupported("a range without ends")
        return frozenset(range(first, min(high) + 1))

    def _bracket_char(self) -> frozenset[int]:
        if self.at >= len(self.text):
            raise Unsupported("an open bracket")
        char = self.text[self.at]
        self.at += 1
        if char == "\\":
            return self._escape()
        if not char.isascii():
            raise Unsupported("characters beyond ASCII")
        return frozenset({ord(char)})

    def _escape(self) -> frozenset[int]:
        """What stands behind a backslash; the position is behind that then."""
        if self.at >= len(self.text):
            raise Unsupported("a backslash at the end")
        char = self.text[self.at]
        self.at += 1
        if char in _CLASSES:
            return _CLASSES[char]
        if char in _CONTROLS:
            return frozenset({_CONTROLS[char]})
        if char in _PUNCTUATION:
            return frozenset({ord(char)})
        if char == "x":
            digits = self.text[self.at : self.at + 2]
            if len(digits) == 2 and set(digits) <= set("0123456789abcdefABCDEF"):
                self.at += 2
                return frozenset({int(digits, 16)})
        raise Unsupported(f"the escape \\{char}")

    def _folded(self, members: frozenset[int]) -> frozenset[int]:
        if not self.fold:
            return members
        return members | {m + 32 for m in members & _UPPER} | {m - 32 for m in members & _LOWER}

    def _peek(self, text: str) -> bool:
        return self.text.startswith(text, self.at)

    def _take(self, text: str) -> bool:
        if not self._peek(text):
            return False
        self.at += len(text)
        return True
