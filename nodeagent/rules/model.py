"""What a route does beyond choosing an endpoint, as plain frozen values.

The agent's cache makes them of xDS, the compiler resolves their clusters, home carries them out; a compiler for the
kernel may take of them what it can. Everything is Envoy's meaning (config.route.v3, extensions.filters.http.fault and
cors), after the precedence of table, virtual host, route and destination was settled. Durations are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Placing(StrEnum):
    """What happens to a header that is to be written (`HeaderValueOption.append_action`)."""

    APPEND = "append"
    IF_ABSENT = "if-absent"
    SET = "set"
    IF_PRESENT = "if-present"


@dataclass(frozen=True, slots=True)
class Field:
    """A header to write. name: lower case; value: with Envoy's `%` operators, of which `%%` and `%REQ(name)%` occur.

    A value that turns out empty is not written unless `keep_empty`.
    """

    name: str
    value: str
    placing: Placing = Placing.APPEND
    keep_empty: bool = False


@dataclass(frozen=True, slots=True)
class Edits:
    """Changes of one level: removals first, then headers that take another's place, then those that are added."""

    remove: tuple[str, ...] = ()
    put: tuple[Field, ...] = ()


@dataclass(frozen=True, slots=True)
class Destination:
    """Header changes for requests that take one of several weighted clusters. number: the cluster's id, once known."""

    cluster: str = ""
    request: Edits = Edits()
    response: Edits = Edits()
    number: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """A part of all requests: `n` of `of`."""

    n: int = 100
    of: int = 100


@dataclass(frozen=True, slots=True)
class Regex:
    """A substitution of everything that RE2's `pattern` finds; a backslash and a digit stand for a group."""

    pattern: str
    substitution: str


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Another path or host for the endpoint.

    path: takes the place of the path's first `replaced` bytes, of all of it (without the query) when that is -1.
    """

    path: str = ""
    replaced: int = -1
    regex: Regex | None = None
    authority: str = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """When and how often a request is tried again.

    on: Envoy's conditions; attempts: beyond the first; base and ceiling: of the exponential back-off; avoid: how often
    the choice of an endpoint is repeated when it falls on one that was tried already.
    """

    on: tuple[str, ...] = ()
    attempts: int = 1
    per_try: float = 0.0
    codes: tuple[int, ...] = ()
    base: float = 0.025
    ceiling: float = 0.25
    avoid: int = 0


@dataclass(frozen=True, slots=True)
class Mirror:
    """A copy of a share of the requests, whose response nobody sees. number: the cluster's id, once known."""

    cluster: str = ""
    share: Share = Share()
    suffix: bool = True
    number: int = 0


@dataclass(frozen=True, slots=True)
class Abort:
    """A share of the requests is answered with a status instead."""

    status: int
    share: Share = Share()


@dataclass(frozen=True, slots=True)
class Delay:
    """A share of the requests waits first."""

    seconds: float
    share: Share = Share()


class Comparison(StrEnum):
    """How an origin is compared."""

    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    CONTAINS = "contains"
    REGEX = "regex"


@dataclass(frozen=True, slots=True)
class Origin:
    """An origin that may ask."""

    value: str
    comparison: Comparison = Comparison.EXACT
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class Cors:
    """Cross-origin resource sharing: header values as they are sent, empty for those that are not."""

    origins: tuple[Origin, ...]
    methods: str = ""
    headers: str = ""
    expose: str = ""
    max_age: str = ""
    credentials: bool = False
    forward_unmatched: bool = True


class HashSource(StrEnum):
    """Of what a hash is made."""

    HEADER = "header"
    COOKIE = "cookie"
    QUERY = "query"
    ADDRESS = "address"


@dataclass(frozen=True, slots=True)
class HashOn:
    """A part of a request's hash. ttl: a cookie that is not there is made, and lasts so long (0: as the browser)."""

    source: HashSource
    name: str = ""
    terminal: bool = False
    ttl: float | None = None
    path: str = ""


@dataclass(frozen=True, slots=True)
class Hashed:
    """A destination whose endpoint is chosen by the request's hash: a ring, or, with `table`, a Maglev table."""

    cluster: str = ""
    smallest: int = 1024
    largest: int = 8_388_608
    table: int = 0
    number: int = 0


@dataclass(frozen=True, slots=True)
class Limit:
    """How many requests and retries of one workload a destination takes at once; -1: any number."""

    cluster: str = ""
    requests: int = -1
    retries: int = -1
    number: int = 0


@dataclass(frozen=True, slots=True)
class Redirect:
    """Answer with another place. Empty, 0 and None keep what the request says; `rewrite` changes its path."""

    code: int = 301
    scheme: str = ""
    host: str = ""
    port: int = 0
    path: str = ""
    strip_query: bool = False
    rewrite: Rewrite | None = None


@dataclass(frozen=True, slots=True)
class DirectReply:
    """Answer with a status and a text."""

    status: int
    body: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """All that a route does beyond choosing an endpoint.

    request and response: changes of the route, the virtual host and the table, in the order in which they are made,
    those of the destination before them, or behind them if `specific_last`. timeout: 0 means none. hash_on counts for
    `hashed` destinations only.
    """

    request: tuple[Edits, ...] = ()
    response: tuple[Edits, ...] = ()
    destinations: tuple[Destination, ...] = ()
    specific_last: bool = False
    timeout: float = 0.0
    retry: Retry | None = None
    rewrite: Rewrite | None = None
    mirrors: tuple[Mirror, ...] = ()
    abort: Abort | None = None
    delay: Delay | None = None
    cors: Cors | None = None
    redirect: Redirect | None = None
    direct: DirectReply | None = None
    hash_on: tuple[HashOn, ...] = ()
    hashed: tuple[Hashed, ...] = ()
    limits: tuple[Limit, ...] = ()


NO_RULE = Rule()
"""A route that does nothing of all this."""
