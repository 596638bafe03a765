"""A route configuration as drafts of virtual hosts: matches compiled, actions still by name (pure)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from nodeagent.abi import numbers as n
from nodeagent.cache.resources import (
    Forward,
    PathKind,
    Route,
    RouteConfiguration,
    RouteMatch,
    StringKind,
    ValueMatch,
    VirtualHost,
    WeightedCluster,
)
from nodeagent.errors import CapacityError
from nodeagent.intent import features as f
from nodeagent.intent.services import TableUse
from nodeagent.intent.vhost import Matches, compile_matches
from nodeagent.rules.model import Rule


@dataclass(frozen=True, slots=True)
class RouteDraft:
    """A route with all that is known of it before ids are given: `key` identifies it over edits.

    features: why it is not for the kernel; refused: those of them that home does not do either.
    """

    key: str
    match: str
    route: Route
    clusters: tuple[WeightedCluster, ...]
    features: tuple[str, ...]
    refused: tuple[str, ...]
    rule: Rule


@dataclass(frozen=True, slots=True)
class VhostDraft:
    """A virtual host: its domains as keys of the map, its routes, and their matches.

    With `matches` None the virtual host is over a budget, named by `over`.
    """

    name: str
    hosts: tuple[str, ...]
    routes: tuple[RouteDraft, ...]
    matches: Matches | None
    over: str = ""


@dataclass(frozen=True, slots=True)
class TableDraft:
    """A route table. With `refused` set no request of it is decided in the kernel."""

    name: str
    vhosts: tuple[VhostDraft, ...]
    ignore_port: bool
    refused: str = ""
    unreachable: tuple[tuple[str, str], ...] = ()


class TableCompiler:
    """Compiles tables; remembers the matches of virtual hosts, which most edits leave alone."""

    def __init__(self) -> None:
        self._matches: dict[tuple[RouteMatch, ...], Matches | str] = {}
        self._fresh: dict[tuple[RouteMatch, ...], Matches | str] = {}
        self._drafts: dict[int, tuple[TableUse, TableDraft]] = {}

    def begin(self) -> None:
        """A new compilation begins: what the last one did not use is forgotten."""
        self._matches, self._fresh = self._fresh, {}
        self._drafts.clear()

    def draft(self, use: TableUse) -> TableDraft:
        """The draft of one table."""
        known = self._drafts.get(id(use.routes))
        if known is not None and use.routes is not None and known[0] == use:
            return known[1]
        draft = self._draft(use)
        if use.routes is not None:
            self._drafts[id(use.routes)] = (use, draft)
        return draft

    def _draft(self, use: TableUse) -> TableDraft:
        routes = use.routes
        if routes is None:
            return TableDraft(use.name, (), False)
        unreachable: list[tuple[str, str]] = []
        refused = ""
        vhosts = []
        for vhost in routes.virtual_hosts:
            hosts = []
            for domain in vhost.domains:
                problem, fatal = _domain_problem(domain, routes)
                if fatal:
                    refused = refused or f"domain {domain!r} of {vhost.name}: {problem}"
                elif problem:
                    unreachable.append((f"{vhost.name}: {domain}", problem))
                elif not _with_port(domain):
                    hosts.append(domain)
            vhosts.append(self._vhost(use.name, vhost, tuple(hosts), (*routes.unsupported, *use.features)))
        return TableDraft(use.name, tuple(vhosts), routes.ignore_port, refused, tuple(unreachable))

    def _vhost(self, table: str, vhost: VirtualHost, hosts: tuple[str, ...], common: tuple[str, ...]) -> VhostDraft:
        matches = self._compiled(tuple(route.match for route in vhost.routes))
        over = matches if isinstance(matches, str) else ""
        drafts = []
        ordinals: dict[str, int] = {}
        for index, route in enumerate(vhost.routes):
            text = match_text(route.match)
            identity = _identity(table, vhost.name, route, text)
            ordinal = ordinals[identity] = ordinals.get(identity, -1) + 1
            key = hashlib.blake2b(f"{identity}\0{ordinal}".encode(), digest_size=8).hexdigest()
            rule = f.rule_of(route)
            found = [*f.refused(route), *route.unsupported, *vhost.unsupported, *common]
            if isinstance(matches, Matches):
                found += matches.undecided[index]
                found += _behind(vhost, matches, index)
            clusters = _destinations(route)
            if len(clusters) > n.WEIGHTS:
                found += ["capacity", f"{len(clusters)} destinations, a route holds {n.WEIGHTS}"]
            features = tuple(dict.fromkeys([*f.of_rule(rule), *found]))
            drafts.append(RouteDraft(key, text, route, clusters, features, tuple(dict.fromkeys(found)), rule))
        compiled = matches if isinstance(matches, Matches) else None
        return VhostDraft(vhost.name, hosts, tuple(drafts), compiled, over)

    def _compiled(self, matches: tuple[RouteMatch, ...]) -> Matches | str:
        known = self._fresh.get(matches) or self._matches.get(matches)
        if known is None:
            try:
                known = compile_matches(matches)
            except CapacityError as error:
                known = str(error)
        self._fresh[matches] = known
        return known


def _behind(vhost: VirtualHost, matches: Matches, index: int) -> list[str]:
    """What a route gets from one in front of it that takes everything.

    Behind a plain catch-all it is never reached; behind one that only the home peer can evaluate, it is the home
    peer's, too.
    """
    last = matches.last
    if last is None or index <= last or not matches.undecided[last]:
        return []
    return [f"behind {match_text(vhost.routes[last].match)}", *matches.undecided[last]]


def _destinations(route: Route) -> tuple[WeightedCluster, ...]:
    """The clusters that can be chosen at all: Envoy never takes one of weight 0, unless it is the only one."""
    if not isinstance(route.action, Forward):
        return ()
    clusters = route.action.clusters
    return clusters if len(clusters) == 1 else tuple(cluster for cluster in clusters if cluster.weight)


def _identity(table: str, host: str, route: Route, match: str) -> str:
    source = route.source
    origin = f"{source.kind}/{source.namespace}/{source.name}" if source is not None else ""
    return "\0".join((table, host, origin, route.name, match))


def _with_port(domain: str) -> bool:
    return ":" in domain.rpartition("]")[2] and not domain.startswith("*")


def _domain_problem(domain: str, routes: RouteConfiguration) -> tuple[str, bool]:
    """Why a domain cannot be a key, and whether leaving it out would change where *other* hosts go."""
    star = domain.find("*")
    if star > 0 or (star == 0 and domain != "*" and not domain.startswith("*.")):
        return "only wildcards of the form *.suffix are looked up in the kernel", True
    if len(domain.encode()) >= n.HOST_MAX:
        # Hosts as long as that are left to the home peer by the head parser, so nothing else can match them.
        return f"longer than {n.HOST_MAX - 1} bytes", star == 0
    if _with_port(domain) and not routes.ignore_port:
        return "domains with a port are left to the home peer", False
    return "", False


def match_text(match: RouteMatch) -> str:
    """A match as one line for people, in the order in which Envoy lists its conditions."""
    return " ".join(_words(match))


def _words(match: RouteMatch) -> Iterator[str]:
    path = match.path
    sign = {
        PathKind.PREFIX: f"{path.value}*",
        PathKind.EXACT: path.value,
        PathKind.SEPARATED: f"{path.value}[/*]",
        PathKind.REGEX: f"~{path.value}",
        PathKind.TEMPLATE: f"template {path.value}",
        PathKind.CONNECT: "CONNECT",
    }[path.kind]
    yield sign + (" (any case)" if path.ignore_case else "")
    for header in match.headers:
        yield _value_text(header, "")
    for parameter in match.query:
        yield _value_text(parameter, "?")
    for feature in match.unsupported:
        yield f"[{feature}]"


def _value_text(value: ValueMatch, mark: str) -> str:
    sign = {
        StringKind.EXACT: f"={value.value}",
        StringKind.PREFIX: f"={value.value}*",
        StringKind.SUFFIX: f"=*{value.value}",
        StringKind.CONTAINS: f"=*{value.value}*",
        StringKind.REGEX: f"~{value.value}",
        StringKind.PRESENT: "",
        StringKind.RANGE: f" in {value.value}",
    }[value.kind]
    fold = " (any case)" if value.ignore_case else ""
    empty = " (or missing)" if value.missing_as_empty else ""
    return f"{'!' if value.invert else ''}{mark}{value.name}{sign}{fold}{empty}"
