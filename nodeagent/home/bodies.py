"""Bodies of requests, sans-IO: which of a client's bytes belong to the one under way."""

from __future__ import annotations

import re
from typing import Final, Protocol

_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e]*)?\r\n")
_LINE_MAX: Final = 256
_TRAILERS_MAX: Final = 8192
_TRAILER: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")
_CODING: Final = re.compile(rb"\r\ntransfer-encoding: ?chunked(?=\r\n)", re.IGNORECASE)
_CODINGS: Final = re.compile(rb"\r\n(?:transfer-encoding|content-length)[ \t]*:", re.IGNORECASE)


class Body(Protocol):
    """A body that is being received."""

    @property
    def left(self) -> int:
        """Bytes that are sure to be body, and may pass unseen."""
        ...

    @property
    def over(self) -> bool:
        """All of it was taken."""
        ...

    @property
    def bad(self) -> bool:
        """It is not in canonical form: nobody can say where it ends."""
        ...

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """(bytes to forward, bytes behind the body) of what came next."""
        ...

    def passed(self, size: int) -> None:
        """That many bytes went on unseen; at most `left`."""
        ...


class SizedBody:
    """A body of known length; also none at all."""

    bad = False

    def __init__(self, size: int) -> None:
        self.left = size

    @property
    def over(self) -> bool:
        """All of it was taken."""
        return not self.left

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """The first `left` bytes are its own."""
        own = data[: self.left]
        self.left -= len(own)
        return own, data[len(own) :]

    def passed(self, size: int) -> None:
        """Bytes that went on unseen."""
        self.left -= size


class ChunkedBody:
    """A chunked body. Chunks go on as they came; extensions and trailers, which nobody may rely on, are left out."""

    left = 0  # frames must be seen

    def __init__(self) -> None:
        self.over = self.bad = False
        self._line = bytearray()
        self._data = 0  # bytes of the chunk still to come, its line end included
        self._trailers = 0  # bytes of the trailer section so far
        self._last = False

    def passed(self, size: int) -> None:
        """Nothing passes unseen."""

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Forwards what is whole; sets `bad` at the first byte that does not fit."""
        out = bytearray()
        while data and not self.over and not self.bad:
            data = self._chunk(data, out) if self._data else self._frame(data, out)
        return bytes(out), data

    def _chunk(self, data: bytes, out: bytearray) -> bytes:
        own = data[: self._data]
        rest = self._data - len(own)
        if rest < 2 and not own.endswith(b"\r\n"[: 2 - rest][-len(own) :]):  # as much of the line end as is here
            self.bad = True
            return b""
        self._data -= len(own)
        out += own
        return data[len(own) :]

    def _frame(self, data: bytes, out: bytearray) -> bytes:
        end = data.find(b"\n") + 1
        self._line += data[:end] if end else data
        if len(self._line) > (_TRAILERS_MAX if self._last else _LINE_MAX):
            self.bad = True
        if not end or self.bad:
            return b""
        line, self._line = bytes(self._line), bytearray()
        if self._last:
            self._trailer(line, out)
            return data[end:]
        match = _SIZE.fullmatch(line)
        if match is None:
            self.bad = True
            return b""
        size = int(match[1], 16)
        self._last = not size
        if size:
            out += match[1] + b"\r\n"
            self._data = size + 2
        return data[end:]

    def _trailer(self, line: bytes, out: bytearray) -> None:
        self._trailers += len(line)
        if line == b"\r\n":
            out += b"0\r\n\r\n"
            self.over = True
        elif self._trailers > _TRAILERS_MAX or not _TRAILER.fullmatch(line.removesuffix(b"\r\n")):
            self.bad = True


def without_coding(head: bytes) -> bytes | None:
    """A head that says `transfer-encoding: chunked`, and nothing else about its length, without that line; else None.

    What is left is the core's to judge, as any other head.
    """
    end = head.find(b"\r\n\r\n")
    whole = head[: end + 4] if end >= 0 else b""
    if len(_CODINGS.findall(whole)) != 1:
        return None
    found = _CODING.search(whole)
    return None if found is None else whole[: found.start()] + whole[found.end() :]
