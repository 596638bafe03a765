"""Heads as lists of lines, and what a rule does to them: edits, rewrites, Envoy's order of both (pure).

Names keep the spelling in which they came. What is compared is lower case; the core has made sure that names are
tokens and values hold no control characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any, Final

from nodeagent.rules.model import Comparison, Cors, Edits, Field, Origin, Placing, Redirect, Regex, Rewrite

Line = tuple[bytes, bytes]
_OPERATOR: Final = re.compile(r"%%|%REQ\(([^)]*)\)%")
_STATUS: Final = re.compile(rb"HTTP/1\.1 ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_HEADER: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t\x20-\x7e\x80-\xff]*)")
#: Headers of requests of which Envoy 1.40 keeps one line: more values are joined to it.
JOINED: Final = frozenset(
    {
        b"accept", b"accept-encoding", b"authorization", b"cache-control", b"content-encoding", b"content-type",
        b"grpc-timeout", b"if-match", b"if-modified-since", b"if-none-match", b"if-range", b"if-unmodified-since",
        b"origin", b"pragma", b"referer", b"user-agent", b"via", b"x-client-trace-id", b"x-forwarded-for",
        b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-proto", b"x-request-id",
        b"access-control-request-method", b"access-control-request-headers", b"access-control-request-private-network",
        b"proxy-status", b"grpc-accept-encoding", b"cdn-loop",
    }
)  # fmt: skip
_GROUP: Final = re.compile(r"\\([0-9\\])")


def first(lines: Iterable[Line], name: bytes) -> bytes | None:
    """The value of the first header of that lower-case name."""
    return next((value for key, value in lines if key.lower() == name), None)


def removed(lines: Iterable[Line], name: bytes) -> list[Line]:
    """The lines without that header."""
    return [line for line in lines if line[0].lower() != name]


def put(lines: Iterable[Line], name: bytes, value: bytes) -> list[Line]:
    """The lines with that header once, at the end."""
    return [*removed(lines, name), (name, value)]


def render(start: bytes, lines: Iterable[Line]) -> bytes:
    """A head's bytes."""
    return b"\r\n".join([start, *(name + b": " + value for name, value in lines), b"", b""])


def parse_response(head: bytes) -> tuple[bytes, int, list[Line]] | None:
    """(status line, status, lines) of a whole response head; None for one that would have to be repaired."""
    start, *rest = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    status = _STATUS.fullmatch(start)
    if status is None:
        return None
    lines: list[Line] = []
    for text in rest:
        found = _HEADER.fullmatch(text)
        if found is None:
            return None
        lines.append((found[1], found[2].strip(b" \t")))
    return start, int(status[1]), lines


def edited(lines: list[Line], levels: Iterable[Edits], request: Callable[[bytes], bytes] | None = None) -> list[Line]:
    """The lines after all levels' changes.

    request: value of a header of the request, for `%REQ(name)%`; without it the lines are the request's own, and each
    level sees what those before it made of them, and what it removed itself.
    """
    for edits in levels:
        for gone in edits.remove:
            lines = removed(lines, gone.encode())
        value_of = request or partial(_value, lines)
        there = {key.lower() for key, _ in lines}
        replaced: list[Line] = []
        added: list[Line] = []
        for field in edits.put:
            name, value = field.name.encode(), _formatted(field, value_of)
            if not value and not field.keep_empty:
                continue
            if field.placing is Placing.APPEND or (field.placing is Placing.IF_ABSENT and name not in there):
                added.append((name, value))
            elif field.placing is Placing.SET or (field.placing is Placing.IF_PRESENT and name in there):
                replaced.append((name, value))
        for name, value in replaced:
            lines = put(lines, name, value)
        for name, value in added:
            lines = appended(lines, name, value) if request is None else [*lines, (name, value)]
    return lines


def _value(lines: list[Line], name: bytes) -> bytes:
    return first(lines, name) or b""


def appended(lines: list[Line], name: bytes, value: bytes) -> list[Line]:
    """The lines with one more header, or, where Envoy has only one line for it, with one more value."""
    if name in JOINED:
        for index, (key, before) in enumerate(lines):
            if key.lower() == name:
                joined = b",".join(filter(None, (before, value)))
                return [*lines[:index], (key, joined), *lines[index + 1 :]]
    return [*lines, (name, value)]


def _formatted(field: Field, request: Callable[[bytes], bytes]) -> bytes:
    def one(match: re.Match[str]) -> str:
        name = match[1]
        return "%" if name is None else request(name.lower().encode()).decode("latin-1")

    if "%" not in field.value:
        return field.value.encode()
    # Bytes of the request are carried as they are: what is ours is UTF-8, what is theirs may be anything.
    ours = field.value.encode().decode("latin-1")
    return _OPERATOR.sub(one, ours).encode("latin-1")


def rewritten(target: bytes, path: bytes, rewrite: Rewrite) -> bytes | None:
    """The request target after a path rewrite; None: there is none, or it would leave nothing of the path.

    path: the target's path; what is behind it (the query) stays.
    """
    query = target[len(path) :]
    if rewrite.path:
        rest = path[rewrite.replaced :] if rewrite.replaced >= 0 else b""
        return rewrite.path.encode() + rest + query
    if rewrite.regex is not None:
        changed = substituted(rewrite.regex, path)
        return changed + query if changed else None
    return None


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    import re2  # only where a rule needs it: most homes never do

    return re2.compile(pattern)


def substituted(regex: Regex, text: bytes) -> bytes:
    """All that the pattern finds, replaced. Canonical paths are ASCII."""

    def one(match: Any) -> str:
        def part(group: re.Match[str]) -> str:
            if group[1] == "\\":
                return "\\"
            return (match.group(int(group[1])) or "") if int(group[1]) <= match.re.groups else ""

        return _GROUP.sub(part, regex.substitution)

    subject, out, end, last = text.decode("latin-1"), "", 0, -1
    for match in _compiled(regex.pattern).finditer(subject):
        if match.start() == match.end() == last:
            continue  # RE2 finds nothing empty right behind what it found
        out += subject[end : match.start()] + one(match)
        end = last = match.end()
    return (out + subject[end:]).encode("latin-1", "replace")


def scheme_of(forwarded_proto: bytes) -> str:
    """The scheme of a plaintext request, as far as Envoy believes who forwarded it."""
    return "https" if forwarded_proto.lower() == b"https" else "http"


def location(redirect: Redirect, host: bytes, target: bytes, path: bytes, came_by: str = "http") -> bytes:
    """The `location` of a redirect (Envoy's `newUri`). came_by: the request's scheme."""
    scheme = redirect.scheme or came_by
    port = f":{redirect.port}".encode() if redirect.port else b""
    where = redirect.host.encode()
    if not where:
        name, colon, number = _split_port(host)
        usual = b"80" if came_by == "http" else b"443"
        drop = bool(port) or (scheme != came_by and number == usual)
        where = name if drop else name + colon + number
    there = target
    if redirect.rewrite is not None:
        there = rewritten(target, path, redirect.rewrite) or target
    elif redirect.path:
        there = redirect.path.encode()
        if "?" not in redirect.path:
            there += target[len(path) :]
    if not there.startswith(b"/"):
        there = b"/" + there
    if redirect.strip_query and "?" not in redirect.path:
        there = there.partition(b"?")[0]
    return scheme.encode() + b"://" + where + port + there


def _split_port(host: bytes) -> tuple[bytes, bytes, bytes]:
    name, colon, number = host.rpartition(b":")
    if colon and not number.endswith(b"]"):
        return name, colon, number
    return host, b"", b""


def shadow_host(host: bytes) -> bytes:
    """The host of a mirrored request: `-shadow` in front of the port."""
    name, colon, number = _split_port(host)
    return name + b"-shadow" + colon + number


def origin_allowed(cors: Cors, origin: bytes) -> bool:
    """Whether an origin is one of those that may ask."""
    text = origin.decode("latin-1")
    return any(_matches(allowed, text) for allowed in cors.origins)


def _matches(origin: Origin, text: str) -> bool:
    value = origin.value
    if origin.comparison is Comparison.REGEX:
        return _compiled(value).fullmatch(text) is not None
    if value == "*" and origin.comparison is Comparison.EXACT:
        return True
    if origin.ignore_case:
        value, text = value.lower(), text.lower()
    return {
        Comparison.EXACT: text == value,
        Comparison.PREFIX: text.startswith(value),
        Comparison.SUFFIX: text.endswith(value),
        Comparison.CONTAINS: value in text,
    }[origin.comparison]


def cors_lines(cors: Cors, origin: bytes, *, preflight: bool) -> list[Line]:
    """What an allowed origin is told."""
    values = [
        (b"access-control-allow-origin", origin.decode("latin-1")),
        (b"access-control-allow-credentials", "true" if cors.credentials else ""),
        (b"access-control-allow-methods", cors.methods if preflight else ""),
        (b"access-control-allow-headers", cors.headers if preflight else ""),
        (b"access-control-max-age", cors.max_age if preflight else ""),
        (b"access-control-expose-headers", cors.expose),
    ]
    return [(name, value.encode("latin-1", "replace")) for name, value in values if value]


def phrase(status: int) -> str:
    """A status in words, as Envoy writes it on the status line."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def reply(status: int, lines: Iterable[Line], body: bytes, *, close: bool, head_only: bool) -> bytes:
    """A whole response of our own."""
    own = [*removed(lines, b"content-length"), (b"content-length", b"%d" % len(body))]
    if status in (204, 304):
        own, body = removed(own, b"content-length"), b""
    if close:
        own.append((b"connection", b"close"))
    return render(f"HTTP/1.1 {status} {phrase(status)}".encode(), own) + (b"" if head_only else body)
