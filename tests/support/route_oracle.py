"""A second, naive reading of Envoy's route matching, for tests: one condition after the other, no automata, no bits.

It shares nothing with the compiler but the input values.
"""

from __future__ import annotations

from dataclasses import dataclass

import re2

from nodeagent.cache.resources import PathKind, RouteMatch, StringKind, ValueMatch


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
            return "https" if (self.value("x-forwarded-proto") or "").lower() == "https" else "http"
        return next((v for n, v in self.headers if n.lower() == name), None)


def first(matches: list[RouteMatch], request: Request) -> int | None:
    """The first route that takes the request; None when none does."""
    return next((i for i, match in enumerate(matches) if holds(match, request)), None)


def holds(match: RouteMatch, request: Request) -> bool:
    """Whether all conditions of a route hold."""
    return (
        _path(match, request)
        and all(_header(header, request) for header in match.headers)
        and all(_parameter(parameter, request) for parameter in match.query)
    )


def _path(match: RouteMatch, request: Request) -> bool:
    path, value = request.target.partition("?")[0], match.path.value
    if match.path.kind is PathKind.REGEX:
        return re2.fullmatch(value, path) is not None
    if match.path.ignore_case:
        path, value = path.lower(), value.lower()
    if match.path.kind is PathKind.PREFIX:
        return path.startswith(value)
    if match.path.kind is PathKind.EXACT:
        return path == value
    assert match.path.kind is PathKind.SEPARATED
    return path == value or path[: len(value) + 1] == value + "/"


def _header(header: ValueMatch, request: Request) -> bool:
    value = request.value(header.name)
    if header.kind is StringKind.PRESENT:
        return (value is not None) != header.invert
    if value is None:
        if not header.missing_as_empty:
            return False
        value = ""
    return _compare(header, value) != header.invert


def _parameter(parameter: ValueMatch, request: Request) -> bool:
    """The first parameter of that name counts, as in Envoy; one that is not there fulfils nothing."""
    for part in request.target.partition("?")[2].split("&"):
        name, _, value = part.partition("=")
        if part and name == parameter.name:
            return _compare(parameter, value)
    return False


def _compare(condition: ValueMatch, value: str) -> bool:
    wanted = condition.value
    if condition.kind is StringKind.REGEX:
        return re2.fullmatch(wanted, value) is not None
    if condition.ignore_case:
        value, wanted = value.lower(), wanted.lower()
    return {
        StringKind.EXACT: value == wanted,
        StringKind.PREFIX: value.startswith(wanted),
        StringKind.SUFFIX: value.endswith(wanted),
        StringKind.CONTAINS: wanted in value,
    }[condition.kind]
