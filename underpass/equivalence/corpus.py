"""Requests that cover a route table: conditions hit, missed, just missed; boundaries, weights, hostile forms, cuts.

Pure, and reproducible: the same table and seed give the same requests in the same order.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from nodeagent.cache.resources import (
    Forward,
    PathKind,
    PathMatch,
    Route,
    RouteConfiguration,
    StringKind,
    ValueMatch,
    VirtualHost,
)
from nodeagent.errors import CapacityError
from nodeagent.intent.automaton import REGEX_STATES, Automaton, Pattern, PatternKind, build
from nodeagent.intent.regex import Unsupported
from nodeagent.intent.vhost import literal_prefix
from underpass.equivalence.hostile import Draft, changes
from underpass.equivalence.outcome import Request, Sort

#: Requests by which a weighted choice is judged.
DRAWS: Final = 200
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
_BROWSER: Final = (
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    ("Accept-Language", "en-US,en;q=0.5"), ("Accept-Encoding", "gzip, deflate"), ("Cookie", "session=abc; user=jason"),
    ("Cache-Control", "max-age=0"), ("Connection", "keep-alive"), ("Referer", "http://a/b?c=d"),
)  # fmt: skip
#: Paths that every reader reads alike, whose segments are neither empty nor dots.
NORMAL: Final = re.compile(r"(/(?!\.{0,2}(/|$))[A-Za-z0-9._~!$&'()*+,=:@-]+)*/?")
_UNKNOWN: Final = ("nobody.example", "x", "10.255.255.254", "a.b.c.d.e.f.g.h.i")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is asked of one table. `hostile` and `cuts`: of how many routes; `routes`: of a virtual host."""

    routes: int = 64
    hostile: int = 4
    cuts: int = 2
    draws: int = DRAWS


def requests(table: RouteConfiguration, seed: int, limits: Limits = Limits()) -> list[Request]:
    """The covering corpus of a table."""
    chance = random.Random(f"{seed} {table.name}")
    found: dict[tuple[bytes, Sort], Request] = {}
    repeated: list[Request] = []
    hostile, cuts = limits.hostile, limits.cuts
    for vhost in table.virtual_hosts:
        host = domain_sample(vhost.domains[0], chance)
        for item in _hosts(vhost, chance):
            found.setdefault((item.data, item.sort), item)
        routes = vhost.routes if len(vhost.routes) <= limits.routes else chance.sample(vhost.routes, limits.routes)
        for route in routes:
            base = hit(route, host, chance)
            aim = f"{vhost.name} {route.name or route.match.path.value}"
            for what, draft in _around(route, base, chance):
                add(found, draft.wire(), len(draft.head()), Sort.PLAIN, f"{aim}: {what}", vhost.name)
            for what, draft in _unusual(route, base):
                add(found, draft.wire(), len(draft.head()), Sort.EDGE, f"{aim}: {what}", vhost.name)
            if isinstance(route.action, Forward) and len(route.action.clusters) > 1:
                data = base.wire()
                repeated += [Request(data, len(data), Sort.PLAIN, f"{aim}: weights", vhost.name)] * limits.draws
            if hostile > 0:
                hostile -= 1
                for what, data in changes(base):
                    add(found, data, _head_size(data), Sort.HOSTILE, f"{aim}: {what}", vhost.name)
            if cuts > 0:
                cuts -= 1
                data = base.head()
                for size in range(1, len(data)):
                    add(found, data[:size], size, Sort.CUT, f"{aim}: cut behind byte {size}", vhost.name)
    for host in _UNKNOWN:
        data = Draft(host=host).wire()
        add(found, data, len(data), Sort.PLAIN, f"unknown host {host}", "")
    return [*found.values(), *repeated]


def add(found: dict[tuple[bytes, Sort], Request], data: bytes, size: int, sort: Sort, aim: str, host: str) -> None:
    """Take a request in, unless the same bytes are there already."""
    found.setdefault((data, sort), Request(data, size, sort, aim, host))


def _head_size(data: bytes) -> int:
    end = data.find(b"\r\n\r\n")
    return end + 4 if end >= 0 else len(data)


# ---- hosts ----


def domain_sample(domain: str, chance: random.Random) -> str:
    """A host that the domain is for."""
    if domain == "*":
        return "any.example"
    if domain.startswith("*"):
        return chance.choice(("w", "a.b", "x-1")) + domain[1:]
    return domain[:-1] + "x" if domain.endswith("*") else domain


def _hosts(vhost: VirtualHost, chance: random.Random) -> Iterator[Request]:
    for domain in vhost.domains:
        name = domain_sample(domain, chance)
        forms = {name: Sort.PLAIN, name.upper(): Sort.EDGE, f"{name}:{chance.choice((80, 9080, 1))}": Sort.PLAIN}
        forms |= {f"x{name}": Sort.PLAIN, f"x.{name}": Sort.PLAIN, name[:-1] or "y": Sort.EDGE, f"{name}.": Sort.EDGE}
        if domain.startswith("*."):
            forms |= {domain[2:]: Sort.PLAIN, domain[1:]: Sort.EDGE}
        for form, sort in forms.items():
            data = Draft(host=form).wire()
            yield Request(data, len(data), sort, f"{vhost.name} host {form}", vhost.name)


# ---- one route ----


def hit(route: Route, host: str, chance: random.Random) -> Draft:
    """A request that the route's own conditions all hold for (an earlier route may take it)."""
    draft = Draft(host=host, path=path_sample(route.match.path, chance))
    pairs = [f"{p.name}={value_sample(p, chance) or ''}" for p in route.match.query if not p.invert]
    draft = replace(draft, query="&".join(pairs).replace(" ", "%20"))
    for header in route.match.headers:
        draft = with_value(draft, header, value_sample(header, chance))
    return draft


def with_value(draft: Draft, header: ValueMatch, value: str | None) -> Draft:
    """The draft with a header's value, None for none; pseudo headers are what they stand for."""
    if header.name == ":method":
        return replace(draft, method=value if value in METHODS else _method(header))
    if header.name in (":authority", "host"):
        return replace(draft, host=value or draft.host)
    if header.name == ":path":
        path, _, query = (value or "/").partition("?")
        return replace(draft, path=path, query=query)
    if header.name.startswith(":"):
        return draft
    return draft.with_header(header.name, *(() if value is None else (value,)))


def _method(header: ValueMatch) -> str:
    """A method of those that clients use for which a condition holds."""
    try:
        pattern = Pattern(PatternKind(header.kind.value), header.value.encode(), header.ignore_case)
        return next((m for m in METHODS if pattern.holds(m.encode()) != header.invert), "GET")
    except (ValueError, Unsupported):
        return "GET"


def path_sample(match: PathMatch, chance: random.Random) -> str:
    """A path that the condition holds for."""
    value = match.value
    if match.kind is PathKind.REGEX:
        return regex_sample(value, chance) or literal_prefix(value) or "/"
    if match.kind is PathKind.PREFIX:
        value = value or "/"
        return value + chance.choice(("", "", "x", "y/z" if value.endswith("/") else "/y", "z/"))
    if match.kind is PathKind.SEPARATED:
        return value + chance.choice(("", "/", "/x"))
    return value if value.startswith("/") else "/"


def value_sample(match: ValueMatch, chance: random.Random) -> str | None:
    """A value that the condition holds for; None: the header is absent."""
    if match.kind is StringKind.PRESENT:
        return None if match.invert else "1"
    if match.invert:
        return f"not-{match.value[:20]}-at-all"
    return _matching(match, chance)


def _matching(match: ValueMatch, chance: random.Random) -> str:
    value = match.value
    if match.kind is StringKind.REGEX:
        return regex_sample(value, chance) or value
    if match.kind is StringKind.PREFIX:
        return value + chance.choice(("", "z", "-9"))
    if match.kind is StringKind.SUFFIX:
        return chance.choice(("", "z", "9-")) + value
    if match.kind is StringKind.CONTAINS:
        return chance.choice(("", "z")) + value + chance.choice(("", "z"))
    if match.kind is StringKind.RANGE:
        return value.partition("..")[0]
    return value if value or match.kind is StringKind.EXACT else "1"


def near(value: str) -> Iterator[str]:
    """Values just beside one."""
    yield value + "x"
    yield value[:-1]
    yield value.swapcase()
    yield "x" + value
    if value:
        yield value[:-1] + chr(ord(value[-1]) ^ 1)
        yield value[1:]


def _around(route: Route, base: Draft, chance: random.Random) -> Iterator[tuple[str, Draft]]:
    yield "hit", base
    for method in METHODS:
        yield f"as {method}", replace(base, method=method, body="hello" if method in ("POST", "PUT", "PATCH") else "")
    yield "from a browser", replace(base, headers=(*base.headers, *_BROWSER))
    yield "with a query", replace(base, query=base.query + ("&" if base.query else "") + "a=b&c")
    for path in _paths(route.match.path, base.path, chance):
        yield f"path {path}", replace(base, path=path)
    yield "path /", replace(base, path="/")
    yield "without headers", replace(base, headers=())
    for header in route.match.headers:
        values: list[str | None] = [None, "", "1", *near(_matching(header, chance)), _matching(header, chance)]
        for value in dict.fromkeys(values):
            if value is None or (value.isprintable() and value == value.strip() and value.isascii()):
                shown = "absent" if value is None else repr(value)
                yield f"{header.name} {shown}", with_value(base, header, value)
    for parameter in route.match.query:
        wanted = _matching(parameter, chance)
        for query in (
            "", parameter.name, f"{parameter.name}=", f"{parameter.name}={wanted}", f"{parameter.name}={wanted}x",
            f"{parameter.name.upper()}={wanted}", f"a=b&{parameter.name}={wanted}", f"x{parameter.name}={wanted}",
            f"{parameter.name}=x&{parameter.name}={wanted}", f"{parameter.name}={wanted}&{parameter.name}=x",
        ):  # fmt: skip
            yield f"query {query}", replace(base, query=query.replace(" ", "%20"))


def _paths(match: PathMatch, path: str, chance: random.Random) -> Iterable[str]:
    literal = match.value if match.kind not in (PathKind.REGEX, PathKind.TEMPLATE) else path
    literal = literal if literal.startswith("/") else path
    candidates = [literal, f"{literal}/", f"{literal}/x", f"{path}/", *(near(literal)), f"/x{literal}"]
    if match.kind is PathKind.REGEX:
        candidates += [regex_sample(match.value, chance) or path for _ in range(6)]
        candidates += [sample + "x" for sample in candidates[-3:]]
    for candidate in dict.fromkeys(candidates):
        if candidate and NORMAL.fullmatch(candidate):
            yield candidate


def _unusual(route: Route, base: Draft) -> Iterator[tuple[str, Draft]]:
    """Canonical, but a header that the route names comes twice, or with more than is usual."""
    for header in route.match.headers:
        name = header.name
        if name.startswith(":") or name == "host":
            continue
        values = [value for key, value in base.headers if key == name] or ["1"]
        yield f"{name} twice", base.with_header(name, values[0], values[0])
        yield f"{name} twice, the second another", base.with_header(name, values[0], "other")
        yield f"{name} twice, the first another", base.with_header(name, "other", values[0])
        yield f"{name} as a list", base.with_header(name, f"{values[0]},other")
        yield f"{name} with its name in upper case", base.with_header(name.upper(), values[0])
    yield "a long value", base.with_header("X-Long", "v" * 2000)
    yield "many headers", replace(base, headers=(*base.headers, *((f"X-{i}", "a") for i in range(40))))


# ---- strings of regular expressions ----


@lru_cache(maxsize=1024)
def _automaton(regex: str) -> tuple[Automaton, tuple[int, ...]] | None:
    """The automaton of an expression, and how many bytes each state is from accepting (-1: it cannot any more)."""
    try:
        automaton = build((Pattern(PatternKind.REGEX, regex.encode()),), REGEX_STATES)
    except (Unsupported, CapacityError):
        return None
    far = [0 if state.matched else -1 for state in automaton.states]
    changed = True
    while changed:
        changed = False
        for index, state in enumerate(automaton.states):
            near = min((far[t] for t in (*state.edges.values(), state.fallback) if far[t] >= 0), default=-2) + 1
            if near > 0 and (far[index] < 0 or near < far[index]):
                far[index], changed = near, True
    return automaton, tuple(far)


_FILLERS: Final = b"az09-_Qx"


def regex_sample(regex: str, chance: random.Random, longest: int = 24) -> str | None:
    """A string that the whole expression matches: a random walk that ends; None when none was found."""
    found = _automaton(regex)
    if found is None:
        return None
    automaton, far = found
    text, state = bytearray(), automaton.start
    while len(text) < 200:
        if far[state] == 0 and chance.random() < 0.3 + len(text) / longest:
            return text.decode("latin-1")
        here = automaton.states[state]
        free = [b for b in _FILLERS if b not in here.edges]
        ways = [(b, t) for b, t in here.edges.items() if far[t] >= 0 and 0x21 <= b < 0x7F]
        ways += [(b, here.fallback) for b in free if far[here.fallback] >= 0]
        if len(text) > longest:
            ways = [way for way in ways if far[way[1]] < far[state]] or ways
        if not ways:
            return text.decode("latin-1") if far[state] == 0 else None
        byte, state = chance.choice(ways)
        text.append(byte)
    return text.decode("latin-1") if far[state] == 0 else None
