"""What the data path would do with a request, decided by libcore.so over the live maps.

Needs what an agent pinned, not the agent. Nothing is sent and nothing is counted.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from nodeagent.abi import numbers as n
from nodeagent.abi.numbers import REASON_LABELS, ActionKind, NameKind, Reason, ServiceKind
from nodeagent.abi.records import (
    Config,
    Endpoint,
    Reply,
    Service,
    ServiceKey,
    Stock,
    StockKey,
    Vhost,
    VhostKey,
    Workload,
    address,
    address_text,
    family,
)
from nodeagent.bpf.abc import Kernel, Map
from nodeagent.bpf.errors import NotPinnedError
from nodeagent.bpf.kernel import LinuxKernel
from nodeagent.core.decide import MAPS, Decider, Decision
from nodeagent.core.libcore import FLAG_CLOSE, FLAG_EXPECT, Core, HeadReader
from nodeagent.errors import AgentError, NotRunningError
from nodeagent.rules.refusal import status_of
from nodeagent.rules.text import encode, key_of
from nodeagent.telemetry.read import RouteCount, names_of, route_of

_TCP: Final = 6


class ExplainError(AgentError):
    """The question does not name a workload of the node, or is no request."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An endpoint that the request may go to.

    cluster: the one through which; free: how many wires to it this workload has in stock; obstacle: the reason for
    which the kernel would not use it, empty if it would.
    """

    address: str
    port: int
    workload: str
    live: bool
    id: int = 0
    cluster: str = ""
    free: int = 0
    obstacle: str = ""


@dataclass(frozen=True, slots=True)
class Considered:
    """A route of the virtual host that answered, and whether it is the one that was taken."""

    route: RouteCount
    taken: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer.

    outcome: `kernel` (one of `candidates`; with a `status` the kernel answers itself), `home` (left to the home peer,
    `reason` says why), `tcp` (the connection itself is sent to one of `candidates`), `refused` (the connection is),
    `untouched` (not a service of the view).
    clusters: what the weighted choice is between. domain: the virtual host's domain that matched.

    drawn: the cluster that this one draw of the weights gave; endpoint: the one that its balancing gave. Another
    request may draw otherwise. home: who the home peer is, `underpass-home` or `envoy`; status: what the kernel or
    underpass-home answers itself, 0 when the request is forwarded. considered: all routes of the virtual host, the
    earlier first.
    """

    outcome: str
    reason: str
    view: str
    workload: str
    service: str
    table: str = ""
    domain: str = ""
    route: RouteCount | None = None
    clusters: tuple[tuple[str, int], ...] = ()
    candidates: tuple[Candidate, ...] = ()
    drawn: str = ""
    endpoint: Candidate | None = None
    home: str = ""
    status: int = 0
    considered: tuple[Considered, ...] = ()


def request(
    bpffs_dir: Path,
    workload: str,
    method: str,
    url: str,
    headers: Sequence[tuple[str, str]] = (),
    *,
    kernel: Kernel | None = None,
    core: Core | None = None,
    draw: Callable[[], int] = lambda: secrets.randbits(32),
) -> Explanation:
    """Explain `method url` from `workload` (`namespace/name`).

    The URL's host is a service's address, or a name: then the address is the one that the view knows for a virtual
    host of that name. A `Host` among `headers` takes the URL's place there, as on the wire. `draw` gives 32 random bits
    for the choice between destinations.
    Raises ExplainError for a question without an answer, NotRunningError when nothing is pinned.
    """
    edge = kernel or LinuxKernel()
    with ExitStack() as stack:
        maps: dict[str, Map] = {}
        for name in (*MAPS, "replies", "names", "workloads", "services", "stocks", "config"):
            try:
                maps[name] = edge.pinned_map(bpffs_dir / "maps" / name)
            except NotPinnedError as error:
                raise NotRunningError(
                    f"no maps are pinned under {bpffs_dir}", str(error), "start underpass-agent on this node"
                ) from error
            stack.callback(maps[name].close)
        return _Explainer(edge, maps, core or Core(), draw).explain(workload, method, url, headers)


class _Explainer:
    def __init__(self, kernel: Kernel, maps: dict[str, Map], core: Core, draw: Callable[[], int]) -> None:
        self._maps, self._core = maps, core
        self._decider = Decider(core, kernel, maps, draw)
        config = maps["config"].lookup(bytes(4))
        envoy = config is not None and Config.unpack(config).home_kind == 1
        self._home = "envoy" if envoy else "underpass-home"
        self._number, self._own, self._family = 0, Workload(), 4
        self._reader, self._plain = HeadReader(core), False
        self._names = {kind: names_of(maps, kind) for kind in NameKind}

    def explain(self, workload: str, method: str, url: str, headers: Sequence[tuple[str, str]]) -> Explanation:
        view, who = self._workload(workload)
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
        except ValueError as error:
            raise ExplainError(f"{url!r} is no URL", str(error), "http://HOST/PATH") from None
        if parts.scheme not in ("http", "tcp") or not parts.hostname:
            raise ExplainError(f"{url!r} is no http URL", "only plaintext HTTP/1.1 is decided here", "http://HOST/PATH")
        try:
            port = parts.port or 80
        except ValueError as error:
            raise ExplainError(f"{url!r} has no usable port", str(error)) from None
        view_name = self._names[NameKind.VIEW].get(view, str(view))
        key = self._service_key(view, parts.hostname, port)
        service_name = f"{parts.hostname}:{port}"
        value = self._maps["services"].lookup(key.pack()) if key is not None else None
        if key is None or value is None:
            return Explanation("untouched", "no service of this view", view_name, who, service_name)
        service_name = f"{address_text(key.addr)}:{port}"
        self._family = family(key.addr)
        service = Service.unpack(value)
        if service.kind != ServiceKind.HTTP:
            return self._connection(service, view_name, who, service_name)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        authority = parts.netloc.rpartition("@")[2]
        decision = self._decide(service.table, method, target, authority, headers)
        found = self._answer(decision, service.table, view_name, who, service_name)
        return replace(found, home=self._home, considered=self._considered(found, decision, service.table))

    def _decide(
        self, table: int, method: str, target: str, authority: str, headers: Sequence[tuple[str, str]]
    ) -> Decision:
        host = next((value for name, value in headers if name.lower() == "host"), authority)
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name}: {value}" for name, value in headers if name.lower() != "host"]
        head = self._reader.parse(("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape"))
        if head.reason:
            return Decision(head.reason)
        # What the kernel can answer at once (decide.h, up_judge): nothing waits, nothing ends, and the body is short.
        self._plain = not head.flags & (FLAG_CLOSE | FLAG_EXPECT) and head.body <= n.REPLY_BODY_MAX
        return self._decider.decide(self._reader, table)

    def _answer(self, decision: Decision, table: int, view: str, workload: str, service: str) -> Explanation:
        route = self._route(decision.route)
        clusters = route.clusters if route is not None else ()
        names = [name for name, _ in clusters]
        drawn = self._names[NameKind.CLUSTER].get(decision.cluster, "").partition(" # ")[0]
        chosen = self._candidate(decision.endpoint, drawn) if decision.endpoint else None
        punt = decision.reason or decision.punt
        answered = self._answered(decision)
        reason = REASON_LABELS.get(punt, str(punt)) if punt else ""
        status = status_of(decision.reason) if decision.reason and self._home == "underpass-home" else 0
        if not reason and chosen is not None:
            reason = chosen.obstacle  # of the kernel alone: home can reach any endpoint
        return Explanation(
            outcome="home" if reason and not answered else "kernel",
            reason=reason,
            view=view,
            workload=workload,
            service=service,
            table=self._names[NameKind.TABLE].get(table, "").partition(" @ ")[0],
            domain=decision.domain.decode("latin-1"),
            route=route,
            clusters=clusters,
            candidates=self._candidates(names, decision.cluster),
            drawn=drawn,
            endpoint=chosen,
            status=answered or status,
        )

    def _answered(self, decision: Decision) -> int:
        """The status that the kernel gives itself; 0 when it does not."""
        if not self._plain:
            return 0
        key = decision.reason or (key_of(encode(decision.rule)) if decision.rule is not None else 0)
        value = self._maps["replies"].lookup(key.to_bytes(8, "little")) if key else None
        return Reply.unpack(value).status if value is not None else 0

    def _considered(self, found: Explanation, decision: Decision, table: int) -> tuple[Considered, ...]:
        """The routes of the virtual host: what was taken, and what else there was."""
        host = found.route.host if found.route is not None else ""
        if not host and decision.domain:
            value = self._maps["vhosts"].lookup(_vhost(table, found.domain))
            program = Vhost.unpack(value).program if value is not None else 0
            host = self._names[NameKind.PROGRAM].get(program, "").partition(" ")[2]
        routes = [route_of(number, text) for number, text in self._names[NameKind.ROUTE].items()] if host else []
        mine = [route for route in routes if route.host == host]
        mine.sort(key=lambda route: (route.source.rule if route.source is not None else -1, route.id))
        return tuple(Considered(route, route.id == decision.route) for route in mine)

    def _connection(self, service: Service, view: str, workload: str, name: str) -> Explanation:
        route = self._route(service.tcp.route)
        if service.kind == ServiceKind.TCP and service.tcp.kind == ActionKind.CLUSTERS:
            members = [weight.cluster for weight in service.tcp.to if weight.cluster]
            names = self._names[NameKind.CLUSTER]
            found = tuple(c for cluster in members for c in self._members(cluster, names.get(cluster, "")))
            return Explanation(
                "tcp", "", view, workload, name, route=route, clusters=route.clusters if route else (), candidates=found
            )
        reason = REASON_LABELS.get(service.tcp.reason, "refused")
        return Explanation("refused", reason, view, workload, name, route=route)

    def _workload(self, key: str) -> tuple[int, str]:
        """View id and full key of a workload; its namespace may be left out where the name is unique."""
        found = {}
        for number, text in self._names[NameKind.WORKLOAD].items():
            name = text.partition(" ")[0]
            value = self._maps["workloads"].lookup(number.to_bytes(4, "little"))
            record = Workload.unpack(value) if value is not None else Workload()
            if record.view and (name == key or name.partition("/")[2] == key):
                found[name] = record.view
                self._number, self._own = number, record
                if record.flags & n.WF_APART:
                    self._home = "underpass-home"
        if len(found) != 1:
            known = sorted({text.partition(" ")[0] for text in self._names[NameKind.WORKLOAD].values()})
            why = f"{len(found)} workloads have this name" if found else "no enrolled workload here has this name"
            raise ExplainError(f"workload {key!r}", why, f"known: {', '.join(known) or 'none'}")
        name, view = found.popitem()
        return view, name

    def _service_key(self, view: int, host: str, port: int) -> ServiceKey | None:
        """The key of the service behind a host.

        The host is its address, or a name that stands beside the address among the domains of a virtual host. A service
        that is not HTTP has none: it is known by the host of its only cluster.
        """
        try:
            return ServiceKey(view, port, _TCP, address(str(ip_address(host))))
        except ValueError:
            pass
        keys = [ServiceKey.unpack(key) for key in self._maps["services"].keys()]  # noqa: SIM118 - a BPF map
        mine = [key for key in keys if key.view == view and key.port == port]
        for key in sorted(mine, key=lambda k: k.addr):
            value = self._maps["services"].lookup(key.pack())
            service = Service.unpack(value) if value is not None else Service()
            if service.kind == ServiceKind.HTTP and self._same_host(service.table, host, key):
                return key
            if service.kind == ServiceKind.TCP and host.lower() in self._tcp_names(service, view):
                return key
        return None

    def _tcp_names(self, service: Service, view: int) -> set[str]:
        """What clients of the view may call a TCP service: its host, and the short forms of a Kubernetes name."""
        route = self._route(service.tcp.route)
        if route is None or len(route.clusters) != 1:
            return set()
        host = route.clusters[0][0].rpartition("|")[2]
        parts = host.split(".")
        if parts[2:3] != ["svc"]:
            return {host}
        names = {host, f"{parts[0]}.{parts[1]}", f"{parts[0]}.{parts[1]}.svc"}
        return names | {parts[0]} if self._names[NameKind.VIEW].get(view, "").startswith(f"{parts[1]}/") else names

    def _same_host(self, table: int, host: str, key: ServiceKey) -> bool:
        """Whether a host and a VIP are domains of one virtual host: then they have the same record."""
        text = address_text(key.addr)
        vip = f"[{text}]" if ":" in text else text
        records = [self._maps["vhosts"].lookup(_vhost(table, name)) for name in (host.lower(), vip)]
        return records[0] is not None and records[0] == records[1]

    def _route(self, number: int) -> RouteCount | None:
        text = self._names[NameKind.ROUTE].get(number)
        return route_of(number, text) if text is not None else None

    def _candidates(self, names: list[str], chosen: int) -> tuple[Candidate, ...]:
        """Endpoints of the clusters called `names`; the chosen cluster tells which version of the name is meant."""
        ids: dict[str, int] = {}
        for number, text in self._names[NameKind.CLUSTER].items():
            base = text.partition(" # ")[0]
            if base not in ids or number == chosen:
                ids[base] = number
        found: dict[Candidate, None] = {}
        for name in names:
            if name in ids:
                found.update(dict.fromkeys(self._members(ids[name], name)))
        return tuple(found)

    def _members(self, cluster: int, name: str) -> list[Candidate]:
        name = name.partition(" # ")[0]
        return [self._candidate(number, name) for number in self._decider.members(cluster)]

    def _candidate(self, number: int, cluster: str) -> Candidate:
        value = self._maps["endpoints"].lookup(number.to_bytes(4, "little"))
        record = Endpoint.unpack(value) if value is not None else Endpoint()
        name = self._names[NameKind.ENDPOINT].get(number, "").partition(" ")[2]
        stock = self._maps["stocks"].lookup(StockKey(self._number, number).pack())
        free = Stock.unpack(stock).n if stock is not None else 0
        return Candidate(
            address_text(record.addr),
            record.port,
            name.partition(";")[0],
            bool(record.live),
            id=number,
            cluster=cluster,
            free=free,
            obstacle=self._obstacle(record),
        )

    def _obstacle(self, endpoint: Endpoint) -> str:
        """Why the kernel lends no wire to an endpoint, as the packet program asks when one has been chosen."""
        if not endpoint.live:
            return REASON_LABELS[Reason.ENDPOINT_GONE]
        if endpoint.family != self._family:
            return REASON_LABELS[Reason.FAMILY]
        own = self._own.addr4 if endpoint.family == 4 else self._own.addr6
        return REASON_LABELS[Reason.HAIRPIN] if own == endpoint.addr else ""


def _vhost(table: int, host: str) -> bytes:
    return VhostKey(table, host.encode()[:91]).pack()
