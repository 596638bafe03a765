"""Filter expressions of access logs: the part of CEL that is let through.  Pure.

An Envoy refuses a whole listener for an expression that it cannot read. So only what is known to be readable gets that
far: comparisons of request attributes with literals, ``has``, ``size``, the methods of texts, ``in``, ``! && ||``.
"""

from __future__ import annotations

import re
from typing import Final

_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<number>\d+(?:\.\d+)?)|(?P<text>'[^'\\\n]*'|"[^"\\\n]*")|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"""
    r"""|(?P<mark>&&|\|\||==|!=|<=|>=|[<>!()\[\],.]))"""
)
_ROOTS: Final = frozenset(
    {"request", "response", "connection", "source", "destination", "upstream", "metadata", "filter_state", "xds"}
)
_METHODS: Final = frozenset({"startsWith", "endsWith", "contains", "matches"})
_FUNCTIONS: Final = frozenset({"has", "size"})
_COMPARE: Final = frozenset({"==", "!=", "<", "<=", ">", ">=", "in"})
_WORDS: Final = frozenset({"true", "false", "null"})
_DEEPEST: Final = 32
_LONGEST: Final = 4096


class ExpressionError(ValueError):
    """The expression is not let through; the text says where it stops being readable."""


def check(text: str) -> None:
    """Raise :class:`ExpressionError` for an expression that an Envoy might refuse."""
    if len(text) > _LONGEST:
        raise ExpressionError(f"longer than {_LONGEST} characters")
    _Reader(text).whole()


class _Reader:
    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at, end = 0, len(text.rstrip())
        while at < end:
            found = _TOKEN.match(text, at)
            if found is None:
                raise ExpressionError(f"unreadable at {text[at : at + 20]!r}")
            self._tokens.append((str(found.lastgroup), str(found[str(found.lastgroup)])))
            at = found.end()
        self._at = 0
        self._depth = 0

    def _next(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _kind(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _take(self, wanted: str = "") -> str:
        found = self._next()
        if not found or (wanted and found != wanted) or (wanted and self._kind() == "text"):
            raise ExpressionError(f"{wanted or 'more'} expected, not {found or 'the end'}")
        self._at += 1
        return found

    def whole(self) -> None:
        self._either()
        if self._next():
            raise ExpressionError(f"nothing is expected where {self._next()!r} stands")

    def _either(self) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ExpressionError(f"deeper than {_DEEPEST} levels")
        self._both()
        while self._next() == "||":
            self._take()
            self._both()
        self._depth -= 1

    def _both(self) -> None:
        self._relation()
        while self._next() == "&&":
            self._take()
            self._relation()

    def _relation(self) -> None:
        while self._next() == "!" and self._kind() == "mark":
            self._take()
        self._term()
        if self._next() in _COMPARE and self._kind() != "text":
            self._take()
            self._term()

    def _term(self) -> None:
        kind, word = self._kind(), self._next()
        if kind in ("number", "text"):
            self._take()
        elif word == "(":
            self._take()
            self._either()
            self._take(")")
        elif word == "[":
            self._take()
            self._list("]")
        elif kind == "name" and word in _WORDS:
            self._take()
        elif kind == "name" and word in _FUNCTIONS:
            self._take()
            self._take("(")
            self._path()
            self._take(")")
        else:
            self._path()

    def _list(self, end: str) -> None:
        while self._next() != end:
            if self._kind() not in ("number", "text"):
                raise ExpressionError(f"a literal is expected, not {self._next() or 'the end'}")
            self._take()
            if self._next() != end:
                self._take(",")
        self._take(end)

    def _path(self) -> None:
        if self._kind() != "name" or self._next() not in _ROOTS:
            raise ExpressionError(
                f"an attribute is expected ({', '.join(sorted(_ROOTS))}), not {self._next() or 'the end'}"
            )
        self._take()
        while self._kind() == "mark" and self._next() in (".", "["):
            if self._take() == "[":
                if self._kind() != "text":
                    raise ExpressionError("a text is expected in brackets")
                self._take()
                self._take("]")
                continue
            if self._kind() != "name":
                raise ExpressionError(f"a name is expected behind the dot, not {self._next() or 'the end'}")
            name = self._take()
            if self._next() == "(" and self._kind() == "mark":
                if name not in _METHODS:
                    raise ExpressionError(f"{name}() is none of {', '.join(sorted(_METHODS))}")
                self._take()
                if self._kind() != "text":
                    raise ExpressionError(f"{name}() takes a text")
                self._take()
                self._take(")")
