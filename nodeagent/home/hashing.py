"""Consistent hashing as Envoy does it: the hash of a request, rings, Maglev tables (pure).

xxHash (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md, XXH64) of addresses and of what a policy names,
so that home and an Envoy with the same endpoints send the same request to the same one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import ceil
from typing import Final

from nodeagent.rules.model import HashOn, HashSource

_MASK: Final = (1 << 64) - 1
_P1, _P2, _P3, _P4, _P5 = (
    0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5,
)  # fmt: skip


def _rotl(value: int, bits: int) -> int:
    return (value << bits | value >> (64 - bits)) & _MASK


def _round(acc: int, lane: int) -> int:
    return _rotl((acc + lane * _P2) & _MASK, 31) * _P1 & _MASK


def xxh64(data: bytes, seed: int = 0) -> int:
    """XXH64."""
    size, at = len(data), 0
    if size >= 32:
        lanes = [(seed + _P1 + _P2) & _MASK, (seed + _P2) & _MASK, seed, (seed - _P1) & _MASK]
        while at + 32 <= size:
            for i in range(4):
                lanes[i] = _round(lanes[i], int.from_bytes(data[at : at + 8], "little"))
                at += 8
        acc = sum(_rotl(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True)) & _MASK
        for lane in lanes:
            acc = ((acc ^ _round(0, lane)) * _P1 + _P4) & _MASK
    else:
        acc = (seed + _P5) & _MASK
    acc = (acc + size) & _MASK
    while at + 8 <= size:
        acc = (_rotl(acc ^ _round(0, int.from_bytes(data[at : at + 8], "little")), 27) * _P1 + _P4) & _MASK
        at += 8
    if at + 4 <= size:
        acc = (_rotl(acc ^ (int.from_bytes(data[at : at + 4], "little") * _P1 & _MASK), 23) * _P2 + _P3) & _MASK
        at += 4
    for byte in data[at:]:
        acc = _rotl(acc ^ (byte * _P5 & _MASK), 11) * _P1 & _MASK
    acc = (acc ^ acc >> 33) * _P2 & _MASK
    acc = (acc ^ acc >> 29) * _P3 & _MASK
    return acc ^ acc >> 32


def request_hash(
    policies: Sequence[HashOn], values: dict[bytes, list[bytes]], query: bytes, source: bytes, fresh: bytes
) -> tuple[int | None, str]:
    """(hash of a request, `set-cookie` value for its response or nothing); None: no policy applies.

    values: headers by lower-case name; source: the client's address; fresh: a new cookie's value.
    """
    total: int | None = None
    told = ""
    for policy in policies:
        data: bytes | None = None
        if policy.source is HashSource.HEADER:
            found = values.get(policy.name.encode(), [])
            data = b"".join(sorted(found)) if found else None
        elif policy.source is HashSource.QUERY:
            data = _parameter(query, policy.name.encode())
        elif policy.source is HashSource.ADDRESS:
            data = source or None
        else:
            data = _cookie(values.get(b"cookie", []), policy.name.encode())
            if data is None and policy.ttl is not None:
                data, told = fresh, _set_cookie(policy, fresh.decode())
        if data is not None:
            one = xxh64(data)
            total = one if total is None else _rotl(total, 1) ^ one
        if policy.terminal and total is not None:
            break
    return total, told


def _parameter(query: bytes, name: bytes) -> bytes | None:
    for part in query.removeprefix(b"?").split(b"&"):
        key, _, value = part.partition(b"=")
        if key == name:
            return value
    return None


def _cookie(lines: Sequence[bytes], name: bytes) -> bytes | None:
    for line in lines:
        for part in line.split(b";"):
            key, equals, value = part.strip(b" \t").partition(b"=")
            if equals and key == name:
                quoted = len(value) >= 2 and value[:1] == value[-1:] == b'"'
                return value[1:-1] if quoted else value
    return None


def _set_cookie(policy: HashOn, value: str) -> str:
    parts = [f'{policy.name}="{value}"']
    if policy.ttl:
        parts.append(f"Max-Age={int(policy.ttl)}")
    if policy.path:
        parts.append(f"Path={policy.path}")
    return "; ".join([*parts, "HttpOnly"])


class Ring:
    """A ketama ring. endpoints: (key, `address:port`, weight)."""

    def __init__(self, endpoints: Sequence[tuple[int, str, int]], smallest: int, largest: int) -> None:
        total = sum(weight for _, _, weight in endpoints)
        least = min((weight / total for _, _, weight in endpoints), default=1.0)
        scale = min(ceil(least * smallest) / least, float(largest))
        points: list[tuple[int, int]] = []
        target = current = 0.0
        for key, text, weight in endpoints:
            target += scale * (weight / total)
            number = 0
            while current < target:
                points.append((xxh64(f"{text}_{number}".encode()), key))
                number += 1
                current += 1
        points.sort()
        self._hashes, self._keys = [point[0] for point in points], [point[1] for point in points]

    def find(self, value: int, attempt: int) -> int:
        """The endpoint of a hash; another attempt takes a neighbour."""
        at = bisect_left(self._hashes, value)
        return self._keys[(at + attempt) % len(self._keys)]


class Maglev:
    """A Maglev table of a prime size. endpoints: (key, `address:port`, weight)."""

    def __init__(self, endpoints: Sequence[tuple[int, str, int]], size: int) -> None:
        most = max(weight for _, _, weight in endpoints)
        rows = []
        for key, text, weight in endpoints:
            offset, skip = xxh64(text.encode()) % size, xxh64(text.encode(), 1) % (size - 1) + 1
            rows.append([offset, skip, weight, 0, key])  # the fourth: what it has to wait for
        table = [-1] * size
        filled, turn = 0, 1
        while filled < size:
            for row in rows:
                if filled == size:
                    break
                if turn * row[2] < row[3]:
                    continue
                row[3] += most
                at, skip = row[0], row[1]
                while table[at] >= 0:
                    at = (at + skip) % size
                table[at] = row[4]
                row[0] = (at + skip) % size
                filled += 1
            turn += 1
        self._table = table

    def find(self, value: int, attempt: int) -> int:
        """The endpoint of a hash; another attempt turns it round."""
        if attempt:
            value ^= ~attempt & _MASK
        return self._table[value % len(self._table)]
