"""What a client's bytes mean to a reader that takes nothing on trust: RFC 9112, and nothing that is read in two ways.

`meaning` is the oracle of the smuggling corpus, written without a look at the product: each request that begins where
the one before ended, until the first byte whose meaning would have to be guessed. Behind that nothing may ever be
served.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

Line = tuple[str, str]

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_START = re.compile(rb"(" + _TOKEN + rb") (/[\x21-\x7e]*) HTTP/1\.1")
_LINE = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_METHODS = {b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE"}
_HEAD_MAX = 1 << 16


class End(Enum):
    """How a reading ends."""

    CLEAN = "behind a whole request"
    CLOSING = "behind a request that is the connection's last"
    SHORT = "in the middle of a request, or of what cannot become one"
    DOUBT = "at bytes that have no certain meaning"


@dataclass(frozen=True, slots=True)
class Request:
    """One request. whole: its body is all there; end: where it ends in the bytes."""

    method: str
    target: str
    lines: tuple[Line, ...]
    body: bytes
    whole: bool
    end: int

    @property
    def host(self) -> str:
        """Its Host."""
        return next(value for name, value in self.lines if name == "host")


@dataclass(frozen=True, slots=True)
class Meaning:
    """The requests in some bytes, and why there are no more; a request that is not whole is the last."""

    requests: tuple[Request, ...]
    end: End


def meaning(data: bytes) -> Meaning:
    """Reads a connection's bytes from their beginning."""
    found: list[Request] = []
    at = 0
    while at < len(data):
        head_end = data.find(b"\r\n\r\n", at)
        if head_end < 0:
            return Meaning(tuple(found), End.SHORT)
        head = _head(data[at:head_end])
        if head is None:
            return Meaning(tuple(found), End.DOUBT)
        method, target, lines = head
        length = _length(lines)
        if length is None:
            return Meaning(tuple(found), End.DOUBT)
        at = head_end + 4
        if length >= 0:
            body, whole, stop = data[at : at + length], len(data) >= at + length, at + length
        else:
            read = _chunked(data, at)
            if read is None:  # the head is certain, its body is not: it may be begun, and is never whole
                found.append(Request(method, target, lines, b"", False, len(data)))
                return Meaning(tuple(found), End.DOUBT)
            body, whole, stop = read
        found.append(Request(method, target, lines, body, whole, min(stop, len(data))))
        if not whole:
            return Meaning(tuple(found), End.SHORT)
        if any(name == "connection" and value.lower() == "close" for name, value in lines):
            return Meaning(tuple(found), End.CLOSING)
        at = stop
    return Meaning(tuple(found), End.CLEAN)


def _head(data: bytes) -> tuple[str, str, tuple[Line, ...]] | None:
    start, *rest = data.split(b"\r\n")
    match = _START.fullmatch(start)
    if match is None or match[1] not in _METHODS or b"#" in match[2] or len(data) > _HEAD_MAX:
        return None
    lines: list[Line] = []
    for text in rest:
        line = _LINE.fullmatch(text)
        if line is None:  # also a folded line, and one with a blank in front of its colon
            return None
        lines.append((line[1].decode().lower(), line[2].decode("latin-1")))
    names = [name for name, _ in lines]
    if names.count("host") != 1 or "upgrade" in names:
        return None
    if any(name == "connection" and value.lower() not in ("close", "keep-alive") for name, value in lines):
        return None
    return match[1].decode(), match[2].decode(), tuple(lines)


def _length(lines: tuple[Line, ...]) -> int | None:
    """Bytes of the body, -1 for chunks, None where that is not certain."""
    lengths = [value for name, value in lines if name == "content-length"]
    codings = [value for name, value in lines if name == "transfer-encoding"]
    if codings:
        return -1 if not lengths and len(codings) == 1 and codings[0].lower() == "chunked" else None
    if not lengths:
        return 0
    return int(lengths[0]) if len(lengths) == 1 and re.fullmatch(r"[0-9]{1,15}", lengths[0]) else None


def _chunked(data: bytes, at: int) -> tuple[bytes, bool, int] | None:
    """(body, whether it is whole, where it ends)."""
    body = b""
    while True:
        end = data.find(b"\r\n", at)
        line = data[at : max(end, at)]
        match = _CHUNK.fullmatch(line)
        if end < 0:
            return body, False, len(data)
        if match is None:
            return None
        at, size = end + 2, int(match[1], 16)
        if not size:
            break
        body += data[at : at + size]
        tail = data[at + size : at + size + 2]
        if tail != b"\r\n"[: len(tail)]:
            return None
        if len(tail) < 2:
            return body, False, len(data)
        at += size + 2
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return body, False, len(data)
        if end == at:
            return body, True, at + 2
        if _LINE.fullmatch(data[at:end]) is None:
            return None
        at = end + 2
