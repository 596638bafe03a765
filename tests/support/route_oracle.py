"""A second, naive reading of Envoy's route matching, for tests: one condition after the other, no automata, no bits.

It shares nothing with the compiler but the input values. `Outcome.UNSURE` stands for a condition that the kernel does
not evaluate: such a route must be punted for every request that fulfils its other conditions.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from nodeagent.cache.resources import PathKind, RouteMatch, StringKind, ValueMatch


class Outcome(Enum):
    """Whether a condition holds."""

    YES = 1
    NO = 2
    UNSURE = 3


@dataclass(frozen=True)
class Request:
    """A request as it stands on the wire; `headers` without Host."""

    method: str
    target: str
    host: str
    headers: tuple[tuple[str, str], ...] = ()

    def wire(self) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/1.1", f"Host: {self.host}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def value(self, name: str) -> str | None:
        if name in (":authority", "host"):
            return self.host
        if name == ":method":
            return self.method
        if name == ":scheme":
            return "http"
        return next((v for n, v in self.headers if n.lower() == name), None)


def first(matches: list[RouteMatch], request: Request) -> tuple[int, bool] | None:
    """(route, sure) of the first route that takes the request; None when none does."""
    for index, match in enumerate(matches):
        outcome = holds(match, request)
        if outcome is not Outcome.NO:
            return index, outcome is Outcome.YES
    return None


def holds(match: RouteMatch, request: Request) -> Outcome:
    outcomes = [_path(match, request), *(_header(header, request) for header in match.headers)]
    outcomes += [Outcome.UNSURE] * (len(match.query) + len(match.unsupported))
    if Outcome.NO in outcomes:
        return Outcome.NO
    return Outcome.UNSURE if Outcome.UNSURE in outcomes else Outcome.YES


def _path(match: RouteMatch, request: Request) -> Outcome:
    path, value = request.target.partition("?")[0], match.path.value
    if match.path.ignore_case:
        path, value = path.lower(), value.lower()
    if match.path.kind is PathKind.PREFIX:
        return _told(path.startswith(value))
    if match.path.kind is PathKind.EXACT:
        return _told(path == value)
    if match.path.kind is PathKind.SEPARATED:
        return _told(path == value or path[: len(value) + 1] == value + "/")
    return Outcome.UNSURE


def _header(header: ValueMatch, request: Request) -> Outcome:
    value = request.value(header.name)
    if header.kind is StringKind.PRESENT:
        return _told((value is not None) != header.invert)
    if header.kind in (StringKind.REGEX, StringKind.RANGE):
        return Outcome.UNSURE
    if value is None:
        if not header.missing_as_empty:
            return Outcome.NO
        value = ""
    wanted = header.value
    if header.ignore_case:
        value, wanted = value.lower(), wanted.lower()
    found = {
        StringKind.EXACT: value == wanted,
        StringKind.PREFIX: value.startswith(wanted),
        StringKind.SUFFIX: value.endswith(wanted),
        StringKind.CONTAINS: wanted in value,
    }[header.kind]
    return _told(found != header.invert)


def _told(holds: bool) -> Outcome:
    return Outcome.YES if holds else Outcome.NO
