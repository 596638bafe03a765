"""HTTP/1.1 requests as a server reads them, without I/O (RFC 9112).

Bytes go in by `feed`, events come out of `next_event`. The reader is strict: what RFC 9112 lets a server repair
(bare LF, folded lines, blanks before the colon, both framings at once) is refused, because the sample server stands
behind a data path whose whole point is that nobody guesses where a message ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_HEAD = 64 * 1024
MAX_CHUNK_LINE = 4096

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([\x21-\x7e\x80-\xff]+) HTTP/1\.([01])")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_DIGITS = re.compile(rb"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(;[\t\x20-\x7e\x80-\xff]*)?")


class BadRequest(Exception):
    """The bytes are not a request that this server takes. `status` is what to answer before closing."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Head:
    """A request's head. `headers` are name and value as received, in order; names keep their case."""

    method: str
    target: str
    minor: int
    headers: tuple[tuple[str, str], ...]
    length: int | None
    chunked: bool
    keep_alive: bool
    expects_continue: bool

    @property
    def has_body(self) -> bool:
        """Whether bytes of a body follow the head."""
        return self.chunked or bool(self.length)

    def values(self, name: str) -> list[str]:
        """All values of the header `name` (lower case), in order."""
        return [value for key, value in self.headers if key.lower() == name]


@dataclass(frozen=True, slots=True)
class Data:
    """A piece of the request's body."""

    data: bytes | bytearray


@dataclass(frozen=True, slots=True)
class End:
    """The request is over; trailers are read and dropped."""


Event = Head | Data | End


def parse_head(raw: bytes) -> Head:
    """The head in `raw`, which ends in the empty line. Raises BadRequest."""
    lines = raw[:-4].split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        version = re.fullmatch(rb"\S+ \S+ HTTP/(\d)\.\d", lines[0])
        if version is not None and version[1] != b"1":
            raise BadRequest(505, "HTTP version is not 1.x")
        raise BadRequest(400, "malformed request line")
    headers: list[tuple[str, str]] = []
    lengths: set[bytes] = set()
    codings: list[bytes] = []
    connection: list[bytes] = []
    hosts = 0
    expects = False
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or _TOKEN.fullmatch(name) is None:
            raise BadRequest(400, "malformed header line")
        value = value.strip(b" \t")
        if _VALUE.fullmatch(value) is None:
            raise BadRequest(400, "control character in a header value")
        headers.append((name.decode("ascii"), value.decode("latin-1")))
        lower = name.lower()
        if lower == b"content-length":
            lengths.update(part.strip(b" \t") for part in value.split(b","))
        elif lower == b"transfer-encoding":
            codings += [part.strip(b" \t").lower() for part in value.split(b",")]
        elif lower == b"connection":
            connection += [part.strip(b" \t").lower() for part in value.split(b",")]
        elif lower == b"host":
            hosts += 1
        elif lower == b"expect":
            if value.lower() != b"100-continue":
                raise BadRequest(417, "unknown expectation")
            expects = True
    minor = int(match[3])
    if hosts > 1 or (minor == 1 and hosts == 0):
        raise BadRequest(400, "one Host header is needed")
    length: int | None = None
    if lengths:
        value = next(iter(lengths))
        if len(lengths) > 1 or _DIGITS.fullmatch(value) is None:
            raise BadRequest(400, "malformed Content-Length")
        length = int(value)
    if codings:
        if length is not None:
            raise BadRequest(400, "both Content-Length and Transfer-Encoding")
        if minor == 0:
            raise BadRequest(400, "Transfer-Encoding in HTTP/1.0")
        if codings != [b"chunked"]:
            raise BadRequest(501, "transfer coding is not just chunked")
    keep = b"close" not in connection and (minor == 1 or b"keep-alive" in connection)
    return Head(
        method=match[1].decode("ascii"),
        target=match[2].decode("latin-1"),
        minor=minor,
        headers=tuple(headers),
        length=length,
        chunked=bool(codings),
        keep_alive=keep,
        expects_continue=expects and minor == 1,
    )


class RequestReader:
    """The requests of one connection. `next_event` gives None when it needs more bytes.

    Pipelined requests stay in the buffer: nothing is parsed ahead of what `next_event` was asked for.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._state = "head"
        self._left = 0
        self._scanned = 0
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> None:
        """Append bytes that came from the peer."""
        self._buffer += data

    @property
    def buffered(self) -> int:
        """How many bytes wait to be parsed."""
        return len(self._buffer)

    @property
    def idle(self) -> bool:
        """Whether the connection is between two requests and nothing waits."""
        return self._state == "head" and not self._buffer

    def next_event(self) -> Event | None:
        """The next event, or None when more bytes are needed. Raises BadRequest; the connection is then over."""
        while True:
            if self._state == "head":
                return self._head()
            if self._state == "length":
                return self._body("end")
            if self._state == "chunk":
                return self._body("chunk-end")
            if self._state == "end":
                self._state = "head"
                return End()
            if not self._step():
                return None

    def _head(self) -> Head | None:
        buffer = self._buffer
        while buffer.startswith(b"\r\n"):  # RFC 9112 2.2: an empty line before the request line is ignored
            del buffer[:2]
            self._scanned = 0
        end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3))
        if end < 0:
            if len(buffer) > MAX_HEAD:
                raise BadRequest(431, "the head is too long")
            self._scanned = len(buffer)
            return None
        if end > MAX_HEAD:
            raise BadRequest(431, "the head is too long")
        raw = bytes(buffer[: end + 4])
        del buffer[: end + 4]
        self._scanned = 0
        head = parse_head(raw)
        if head.chunked:
            self._state = "size"
        elif head.length:
            self._state, self._left = "length", head.length
        else:
            self._state = "end"
        return head

    def _body(self, after: str) -> Data | None:
        if not self._buffer:
            return None
        if len(self._buffer) <= self._left:
            piece, self._buffer = self._buffer, bytearray()  # handed over, not copied: uploads are large
        else:
            piece = bytearray(self._buffer[: self._left])
            del self._buffer[: self._left]
        self._left -= len(piece)
        if not self._left:
            self._state = after
        return Data(piece)

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > MAX_CHUNK_LINE:
                raise BadRequest(400, "a line of the chunked body is too long")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _step(self) -> bool:
        """One line of chunked framing. False when it has not come yet."""
        line = self._line()
        if line is None:
            return False
        if self._state == "chunk-end":
            if line:
                raise BadRequest(400, "a chunk is longer than its size")
            self._state = "size"
        elif self._state == "size":
            match = _CHUNK_SIZE.fullmatch(line)
            if match is None:
                raise BadRequest(400, "malformed chunk size")
            self._left = int(match[1], 16)
            self._trailer_bytes = 0
            self._state = "chunk" if self._left else "trailer"
        else:
            self._trailer_bytes += len(line) + 2
            if self._trailer_bytes > MAX_HEAD:
                raise BadRequest(431, "the trailers are too long")
            if not line:
                self._state = "end"
        return True
