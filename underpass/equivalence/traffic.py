"""Any number of requests for a table, at random: its own words in new combinations, and bytes changed at random.

Pure, and reproducible: the same table and chance give the same requests. The covering corpus is `corpus`; this looks
where nobody thought of looking.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from nodeagent.cache.resources import Route, RouteConfiguration, ValueMatch
from underpass.equivalence.corpus import NORMAL, domain_sample, hit, near, path_sample, value_sample, with_value
from underpass.equivalence.hostile import Draft
from underpass.equivalence.outcome import Request, Sort

#: What stands for the scheme of a request that was forwarded.
_PROTOS: Final = ("https", "http", "HTTPS", "wss", "https, http")
_METHODS: Final = ("GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
#: What is put somewhere into a head, or in the place of something.
_PIECES: Final = (
    b"\r\n", b"\n", b"\r", b" ", b"\t", b"\0", b":", b"/", b"//", b"/./", b"/../", b"%2f", b"%", b"?", b"#", b";", b".",
    b"\\",
    b"Host: b\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"X: a\r\n", b"Connection: x\r\n",
    b"x" * 70, b"\xff", b"A", b"\r\n\r\n",
)  # fmt: skip
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d{1,9})\r", re.IGNORECASE)
#: A body that was not there is made up to this length; longer ones are somebody else's test.
_BODY: Final = 4096


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the requests: those with bytes changed at random, and those with a header twice."""

    hostile: float = 0.15
    twice: float = 0.05


def traffic(table: RouteConfiguration, chance: random.Random, count: int, mix: Mix = Mix()) -> Iterator[Request]:
    """`count` requests."""
    routes = [(vhost, route) for vhost in table.virtual_hosts for route in vhost.routes]
    headers = [header for _, route in routes for header in route.match.headers]
    for number in range(count):
        if routes:
            vhost, route = chance.choice(routes)
            draft = hit(route, domain_sample(chance.choice(vhost.domains), chance), chance)
            host = vhost.name
        else:
            draft, host = Draft(host="any.example"), ""
        for _ in range(chance.choice((0, 0, 1, 1, 2, 3))):
            draft = _changed(draft, routes[chance.randrange(len(routes))][1] if routes else None, headers, chance)
        sort, data = Sort.PLAIN if NORMAL.fullmatch(draft.path) else Sort.EDGE, draft.wire()
        dice = chance.random()
        if dice < mix.hostile:
            sort, data = Sort.HOSTILE, mutated(data, chance)
        elif dice < mix.hostile + mix.twice and draft.headers:
            name, value = chance.choice(draft.headers)
            other = chance.choice((value, "other", ""))
            sort, data = Sort.EDGE, replace(draft, headers=(*draft.headers, (name, other))).wire()
        end = data.find(b"\r\n\r\n")
        yield Request(data, end + 4 if end >= 0 else len(data), sort, f"random {number}", host)


def _changed(draft: Draft, other: Route | None, headers: list[ValueMatch], chance: random.Random) -> Draft:
    """One thing about the request is another."""
    what = chance.randrange(9)
    if what == 8 and chance.random() < 0.5:
        return draft.with_header("X-Forwarded-Proto", chance.choice(_PROTOS))
    if what == 0:
        return replace(draft, method=chance.choice(_METHODS), body=chance.choice(("", "hello")))
    if what == 1 and other is not None:
        return _path(draft, path_sample(other.match.path, chance))
    if what == 2:
        return _path(draft, chance.choice((*near(draft.path), draft.path + "/", draft.path + "/x")))
    if what == 3:
        host = draft.host
        forms = (host.upper(), f"{host}:80", f"x.{host}", f"{host}.", host.partition(".")[2] or host, "x" + host)
        return replace(draft, host=chance.choice(forms))
    if what == 4:
        return replace(draft, query=chance.choice(("", "a=b", f"{draft.query}&x", "q=1&q=2", "a", "=", "%20=1")))
    if what == 5 and draft.headers:
        return draft.with_header(chance.choice(draft.headers)[0])
    if what >= 5 and headers:
        header = chance.choice(headers)
        value = value_sample(header, chance)
        if value is not None and chance.random() < 0.6:
            value = chance.choice((*near(value), "", value.swapcase()))
        if value is None or (value.isascii() and value.isprintable() and value == value.strip()):
            return with_value(draft, header, value)
    return draft


def _path(draft: Draft, path: str) -> Draft:
    return replace(draft, path=path if path.startswith("/") and " " not in path else "/" + path.strip("/ "))


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, taken out or put in. A body that is announced is there."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at, what = chance.randrange(len(out)), chance.random()
        if what < 0.4:
            out[at : at + 1] = chance.choice((bytes([chance.randrange(256)]), chance.choice(_PIECES)))
        elif what < 0.6:
            del out[at : at + chance.choice((1, 1, 2, 8))]
        elif what < 0.9:
            out[at:at] = chance.choice(_PIECES)
        else:
            out[at : at + 1] = bytes([out[at] ^ 0x20])
        if not out:
            return data
    end = out.find(b"\r\n\r\n")
    length = _LENGTH.search(bytes(out[: end + 2])) if end >= 0 else None
    missing = int(length[1]) - (len(out) - end - 4) if length else 0
    if missing > _BODY:
        return data
    return bytes(out) + b"x" * max(missing, 0)
