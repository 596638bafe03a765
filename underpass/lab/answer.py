"""What the sample server answers: identity, the query parameters that make it misbehave, and the JSON body. Pure.

The pattern that pads a body of a wished size is position-dependent: a byte lost, doubled or moved by any packet size
changes the body's hash, and `pattern` lets a client recompute any part of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from underpass.lab.http1 import Head

MAX_BYTES = 16 << 30
MAX_DELAY = 3600.0
HASHED_LIMIT = 4 << 20
"""Bodies of a wished size up to this carry their SHA-256 in the header `x-body-sha256`."""

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()

# A prime length, so that no power of two, MSS or page size ever meets the same place of the pattern twice in a row.
_PERIOD = 65521
_ALPHABET = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"


def _block() -> bytes:
    out = bytearray()
    for counter in range((_PERIOD + 31) // 32):
        out += hashlib.sha256(b"underpass%d" % counter).digest()
    return bytes(_ALPHABET[byte & 63] for byte in out[:_PERIOD])


_BLOCK = _block() * 4


def pattern(offset: int, size: int) -> bytes:
    """The `size` bytes of the padding pattern from `offset` on (printable ASCII, period 65,521)."""
    start = offset % _PERIOD
    if start + size <= len(_BLOCK):
        return _BLOCK[start : start + size]
    repeats = (start + size) // _PERIOD + 1
    return (_BLOCK[:_PERIOD] * repeats)[start : start + size]


class BadParameter(ValueError):
    """A query parameter of a request to the sample server cannot be understood."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who answers. `version` is the workload's `version` label."""

    workload: str = "sample"
    namespace: str = "default"
    service_account: str = "default"
    version: str | None = None
    pod: str = "sample"
    node: str = ""

    @staticmethod
    def from_environment(env: Mapping[str, str]) -> Identity:
        """The identity that the lab puts into a process's environment (`UNDERPASS_*`)."""
        try:
            labels = json.loads(env.get("UNDERPASS_LABELS") or "{}")
        except ValueError as error:
            raise BadParameter(f"UNDERPASS_LABELS is not JSON: {error}") from error
        if not isinstance(labels, dict):
            raise BadParameter("UNDERPASS_LABELS is not a JSON object")
        workload = env.get("UNDERPASS_WORKLOAD") or "sample"
        version = labels.get("version", labels.get("app.kubernetes.io/version"))
        return Identity(
            workload=workload,
            namespace=env.get("UNDERPASS_NAMESPACE") or "default",
            service_account=env.get("UNDERPASS_SERVICE_ACCOUNT") or "default",
            version=None if version is None else str(version),
            pod=env.get("UNDERPASS_POD") or workload,
            node=env.get("UNDERPASS_NODE") or "",
        )


@dataclass(frozen=True, slots=True)
class Order:
    """What the query parameters of one request ask for. Times in seconds."""

    status: int = 200
    delay: float = 0.0
    size: int | None = None
    chunked: bool = False
    close: bool = False
    interim: int = 0
    stall: float = 0.0
    calls: tuple[str, ...] | None = None

    @property
    def plain(self) -> bool:
        """Whether the answer depends on the head alone and is written at once (so that it may be kept)."""
        return not (self.delay or self.stall or self.size or self.close or self.interim or self.calls)


_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(us|ms|s|m)?")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def duration(name: str, text: str) -> float:
    """Seconds of `200ms`, `1.5s`, `2m`, `50us`; a bare number is milliseconds."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise BadParameter(f"{name}={text}: not a duration such as 200ms or 1.5s")
    seconds = float(match[1]) * _UNITS[match[2] or "ms"]
    if seconds > MAX_DELAY:
        raise BadParameter(f"{name}={text}: at most an hour")
    return seconds


def _integer(name: str, text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"\d{1,12}", text) or not low <= int(text) <= high:
        raise BadParameter(f"{name}={text}: not a number from {low} to {high}")
    return int(text)


def _flag(name: str, text: str) -> bool:
    if text.lower() in ("1", "true", "yes", ""):
        return True
    if text.lower() in ("0", "false", "no"):
        return False
    raise BadParameter(f"{name}={text}: not 1 or 0")


def parse_order(target: str) -> Order:
    """The order in a request target's query. Parameters that are not ours are ignored. Raises BadParameter."""
    query = target.partition("#")[0].partition("?")[2]
    if not query:
        return Order()
    found: dict[str, Any] = {}
    calls: list[str] | None = None
    for part in query.split("&"):
        name, _, raw = part.partition("=")
        value = unquote(raw)
        if name == "status":
            found["status"] = _integer(name, value, 200, 599)
        elif name in ("delay", "stall"):
            found[name] = duration(name, value)
        elif name == "bytes":
            found["size"] = _integer(name, value, 0, MAX_BYTES)
        elif name in ("chunked", "close"):
            found[name] = _flag(name, value)
        elif name == "interim":
            found["interim"] = _integer(name, value, 0, 16)
        elif name == "call":
            calls = calls or []
            if value:
                calls.append(value)
    if calls is not None:
        found["calls"] = tuple(calls)
    return Order(**found)


def answer_json(
    identity: Identity, head: Head, body_bytes: int, body_sha256: str, calls: list[dict[str, Any]] | None = None
) -> bytes:
    """The JSON answer to a request whose body had `body_bytes` bytes."""
    answer: dict[str, Any] = {
        "workload": identity.workload,
        "namespace": identity.namespace,
        "service_account": identity.service_account,
        "version": identity.version,
        "pod": identity.pod,
        "node": identity.node,
        "method": head.method,
        "path": head.target,
        "headers": [list(pair) for pair in head.headers],
        "body_bytes": body_bytes,
        "body_sha256": body_sha256,
    }
    if calls:
        answer["calls"] = calls
    return json.dumps(answer).encode("ascii")


@dataclass(frozen=True, slots=True)
class Body:
    """A response body of a known size: some first bytes, padding of the pattern, some last bytes."""

    prefix: bytes
    padding: int = 0
    suffix: bytes = b""

    @property
    def size(self) -> int:
        """The size in bytes."""
        return len(self.prefix) + self.padding + len(self.suffix)

    def pieces(self, step: int = 128 * 1024) -> Iterator[bytes]:
        """The body in pieces of at most `step` bytes."""
        if self.prefix:
            yield self.prefix
        done = 0
        while done < self.padding:
            size = min(step, self.padding - done)
            yield pattern(done, size)
            done += size
        if self.suffix:
            yield self.suffix

    def sha256(self) -> str:
        """The SHA-256 of the whole body."""
        digest = hashlib.sha256()
        for piece in self.pieces():
            digest.update(piece)
        return digest.hexdigest()


def shape_body(answer: bytes, size: int | None) -> Body:
    """`answer` (a JSON object) as a body of exactly `size` bytes.

    Where the answer fits it stays JSON, with a last member `padding`; a smaller body is the bare pattern.
    """
    if size is None:
        return Body(answer)
    opening, closing = answer[:-1] + b', "padding": "', b'"}'
    room = size - len(opening) - len(closing)
    if room >= 0:
        return Body(opening, room, closing)
    return Body(b"", size)


_REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(slots=True)
class Framing:
    """How a response's body is delimited, and whether it has one at all."""

    head: bytes
    body: bool
    chunked: bool
    close: bool


def response_head(head: Head, order: Order, body: Body) -> Framing:
    """The response's head and framing for `body`: RFC 9112 6.3 (HEAD, 204 and 304 have none), RFC 9110 8.6."""
    bodiless_status = order.status in (204, 304)
    close = order.close or not head.keep_alive
    chunked = order.chunked and not bodiless_status
    lines = [f"HTTP/1.1 {order.status} {_REASONS.get(order.status, 'Status')}", "server: underpass-sample"]
    if not bodiless_status:
        lines.append(f"content-type: {'application/json' if body.prefix else 'application/octet-stream'}")
        if not chunked:
            lines.append(f"content-length: {body.size}")
        elif head.minor == 1:
            lines.append("transfer-encoding: chunked")
        else:
            close = True  # an HTTP/1.0 client knows no chunks: the end of the connection ends the body
        if order.size is not None and body.size <= HASHED_LIMIT:
            lines.append(f"x-body-sha256: {body.sha256()}")
    if close:
        lines.append("connection: close")
    elif head.minor == 0:
        lines.append("connection: keep-alive")
    raw = ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
    return Framing(
        head=raw,
        body=not bodiless_status and head.method != "HEAD",
        chunked=chunked and head.minor == 1,
        close=close,
    )


def listen_ports(text: str) -> list[int]:
    """The ports of a comma-separated list. Raises BadParameter."""
    return [_integer("port", part.strip(), 1, 65535) for part in text.split(",") if part.strip()]


def environment_ports(env: Mapping[str, str] = os.environ) -> list[int]:
    """The ports that the lab names in `UNDERPASS_PORTS`."""
    return listen_ports(env.get("UNDERPASS_PORTS", ""))
