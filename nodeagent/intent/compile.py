"""Views' resources and workloads -> what the maps should hold (pure; `Compiler` only remembers work done).

Three passes: draft every view by name; find out which of equally named things differ between views; give ids and write
records. Clusters, routes and programs that are equal are shared by all views. Route tables are not: a connection holds
the number of its table for as long as it lives, so a table must never come to mean another view's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from nodeagent.abi import numbers as n
from nodeagent.abi.numbers import ActionKind, NameKind, Reason, ServiceKind
from nodeagent.abi.records import (
    NO_ADDRESS,
    Action,
    Service,
    Vhost,
    Weight,
    Workload,
    address,
    family,
)
from nodeagent.abi.records import Table as TableRecord
from nodeagent.cache.resources import Forward, Source
from nodeagent.cache.store import Resources
from nodeagent.health.outlier import Watch
from nodeagent.intent import features as f
from nodeagent.intent import homerules, replies
from nodeagent.intent.clusters import ClusterDraft, draft, slots, version
from nodeagent.intent.entries import cluster_entry, endpoint_entry, name_entry, route_text, service_key, vhost_key
from nodeagent.intent.ids import LASTING, LIMITS, Known, assign
from nodeagent.intent.inbound import Unenforced, unenforced
from nodeagent.intent.model import NOT_CAPTURED, NOT_ENFORCED, Intent, Program, Rejection, RouteInfo, Table, Where
from nodeagent.intent.packing import digest
from nodeagent.intent.services import PASSTHROUGH, Services, TcpService, services_of
from nodeagent.intent.tables import RouteDraft, TableCompiler, TableDraft, VhostDraft
from nodeagent.intent.variants import Variants
from nodeagent.rules.model import NO_RULE

#: What a request gets that takes a route to a cluster that does not exist, unless the route says otherwise.
_NO_CLUSTER: Final = 503
#: Effects of a rejection, in words.
_HOME: Final = "its requests go to the home peer"
_REFUSED: Final = "connections to it are refused"
_UNTOUCHED: Final = "connections to it are left alone"


class WorkloadLike(Protocol):
    """What the compiler needs to know of a workload."""

    @property
    def key(self) -> str:
        """`namespace/name`."""
        ...

    @property
    def ips(self) -> tuple[str, ...]:
        """Own addresses."""
        ...


@dataclass(slots=True)
class _View:
    """One view while it is compiled."""

    key: str
    services: Services
    tables: dict[str, TableDraft]
    clusters: dict[str, ClusterDraft]
    unenforced: tuple[Unenforced, ...] = ()
    tcp: dict[TcpService, RouteInfo] = field(default_factory=dict)


#: Drafts by their resources' identities, with what they were made of.
_Drafts = dict[tuple[int, int], tuple[object, object, frozenset[str], ClusterDraft]]
_NOBODY: Final[frozenset[str]] = frozenset()


class Compiler:
    """Compiles again and again, faster where little changed. Same inputs give the same intent, remembered or not."""

    def __init__(self) -> None:
        self._tables = TableCompiler()
        self._clusters: _Drafts = {}

    def compile(
        self,
        views: Mapping[str, Resources],
        workloads: Iterable[tuple[WorkloadLike, str]],
        known: Known | None = None,
        ejected: Mapping[Watch, frozenset[str]] | None = None,
    ) -> Intent:
        """The intent for `views` by key and `workloads` with their view's key.

        known: the ids so far; ejected: keys of the endpoints that outlier detection has taken out, by cluster.
        """
        self._tables.begin()
        fresh: _Drafts = {}
        drafted = [self._view(key, views[key], fresh, ejected or {}) for key in sorted(views)]
        self._clusters = fresh
        enrolled = sorted(((w, view) for w, view in workloads if view in views), key=lambda item: item[0].key)
        return _Writer(drafted, enrolled, known or Known()).write()

    def _view(self, key: str, resources: Resources, fresh: _Drafts, ejected: Mapping[Watch, frozenset[str]]) -> _View:
        services = services_of(resources)
        tables = {use.name: self._tables.draft(use) for use in services.tables}
        names = {c.name for t in tables.values() for v in t.vhosts for r in v.routes for c in r.clusters}
        names |= {m.cluster for t in tables.values() for v in t.vhosts for r in v.routes for m in r.rule.mirrors}
        names |= {c.name for service in services.tcp for c in service.clusters}
        clusters = {}
        for name in sorted(names):
            cluster = resources.clusters.get(name)
            if cluster is None:
                continue  # a dangling cluster is normal input: 503 when hit
            assignment = resources.assignments.get(cluster.eds_name)
            memo = (id(cluster), id(assignment))
            out = ejected.get(Watch(name, cluster.outlier), _NOBODY) if cluster.outlier is not None else _NOBODY
            known = fresh.get(memo) or self._clusters.get(memo)
            if known is None or known[0] is not cluster or known[1] is not assignment or known[2] != out:
                known = (cluster, assignment, out, draft(cluster, assignment, out))
            fresh[memo] = known
            clusters[name] = known[3]
        return _View(key, services, tables, clusters, unenforced(resources))


class _Writer:
    """Passes two and three of one compilation."""

    def __init__(self, views: list[_View], workloads: list[tuple[WorkloadLike, str]], known: Known) -> None:
        self._views = views
        self._workloads = workloads
        self._known = known
        self._ids: dict[NameKind, dict[str, int]] = {}
        self._last: dict[NameKind, int] = dict(known.last)
        self._texts: dict[tuple[NameKind, int], str] = {}
        self._entries: dict[Table, dict[bytes, bytes]] = {table: {} for table in Table if table is not Table.PROGRAMS}
        self._entries[Table.REPLIES] |= replies.of_reasons()
        self._programs: dict[str, Program] = {}
        self._routes: dict[int, RouteInfo] = {}
        self._rejections: list[Rejection] = []
        self._clusters: Variants[ClusterDraft] = Variants(version)
        self._infos: Variants[RouteInfo] = Variants()

    def write(self) -> Intent:
        for view in self._views:
            usable = {name: d for name, d in view.clusters.items() if not d.features}
            self._clusters.add(view.key, usable)
        self._clusters.settle()
        for view in self._views:
            self._infos.add(view.key, self._route_infos(view))
        self._infos.settle()
        self._number()
        self._write_endpoints()
        self._write_clusters()
        vhosts = [(view, table, self._table_id(view, table)) for view in self._views for table in view.tables.values()]
        pending = self._draft_vhosts(vhosts)
        self._write_tables(vhosts, pending)
        for view in self._views:
            self._write_services(view)
        enrolled = self._write_workloads()
        self._write_names()
        programs = self._ids[NameKind.PROGRAM]
        return Intent(
            entries=self._entries,
            programs={programs[d]: program for d, program in self._programs.items() if d in programs},
            enrolled=enrolled,
            routes=self._routes,
            rejections=tuple(dict.fromkeys(self._rejections)),
            known=self._next_known(),
            watched=self._watched(),
        )

    def _watched(self) -> dict[Watch, frozenset[str]]:
        found: dict[Watch, frozenset[str]] = {}
        for view in self._views:
            for draft_ in view.clusters.values():
                if draft_.outlier is not None and not draft_.features:
                    watch = Watch(draft_.name, draft_.outlier)
                    found[watch] = found.get(watch, _NOBODY) | draft_.members
        return found

    # ---- routes by name ----

    def _route_infos(self, view: _View) -> dict[str, RouteInfo]:
        infos = {}
        for table in view.tables.values():
            for vhost in table.vhosts:
                for draft_ in vhost.routes:
                    infos[draft_.key] = self._info(view, table, vhost, draft_)
        for service in view.services.tcp:
            info = self._tcp_info(view, service)
            view.tcp[service] = info
            infos[info.key] = info
        return infos

    def _info(self, view: _View, table: TableDraft, vhost: VhostDraft, route: RouteDraft) -> RouteInfo:
        refused = list(route.refused)
        if vhost.matches is None:
            refused += ["capacity", vhost.over]
        if table.refused:
            refused.append(table.refused)
        named = [*(c.name for c in route.clusters), *(m.cluster for m in route.rule.mirrors)]
        refused += self._cluster_features(view, named)
        mirrored = [view.clusters[m.cluster] for m in route.rule.mirrors if m.cluster in view.clusters]
        refused += [f"mirror-{draft_.balance}" for draft_ in mirrored if draft_.hashed is not None]
        action = route.route.action
        if isinstance(action, Forward) and action.not_found_code != _NO_CLUSTER:
            missing = [c.name for c in route.clusters if c.name not in view.clusters]
            refused += [f"{action.not_found_code} for a cluster that does not exist"] if missing else []
        drafts = [view.clusters[c.name] for c in route.clusters if c.name in view.clusters]
        hashed = tuple(draft_.hashed for draft_ in drafts if draft_.hashed is not None)
        limits = tuple(draft_.limit for draft_ in drafts if draft_.limit is not None)
        rule = replace(route.rule, hashed=hashed, hash_on=route.rule.hash_on if hashed else (), limits=limits)
        own = [*route.features, *(draft_.balance for draft_ in drafts if draft_.hashed is not None)]
        own += ["max-requests"] if any(limit.requests >= 0 for limit in limits) else []
        refused += ["mirror-max-requests" for d in mirrored if d.limit is not None and d.limit.requests >= 0]
        if not f.idle(rule.retry):
            refused += ["retry-budget" for draft_ in drafts if draft_.retry_budget]
        if problem := own and homerules.problem(rule):
            refused += ["capacity", problem]
        found = tuple(dict.fromkeys([*own, *refused]))
        where = Where.WAYPOINT if refused else Where.HOME
        return RouteInfo(
            key=route.key,
            host=vhost.name,
            route=route.route.name,
            match=route.match,
            clusters=tuple((c.name, c.weight) for c in route.clusters),
            where=where if found else Where.KERNEL,
            reason=n.REASON_LABELS[f.reason(found)] if found else "",
            features=found,
            source=route.route.source,
            rule=homerules.kept(rule, found, where),
        )

    def _tcp_info(self, view: _View, service: TcpService) -> RouteInfo:
        features = list(service.features) + self._cluster_features(view, (c.name for c in service.clusters))
        drafts = [view.clusters[c.name] for c in service.clusters if c.name in view.clusters]
        features += [draft_.balance for draft_ in drafts if draft_.hashed is not None]
        # Nobody here counts connections that fail, which is all that there is to judge by.
        features += ["outlier-detection" for draft_ in drafts if draft_.outlier is not None]
        if len(service.clusters) > n.WEIGHTS:
            features += ["capacity", f"{len(service.clusters)} destinations, a service holds {n.WEIGHTS}"]
        found = tuple(dict.fromkeys(features))
        return RouteInfo(
            key=f"tcp {service.address} {service.port}",
            host=f"{service.address}:{service.port}",
            route="tcp",
            match="any connection",
            clusters=tuple((c.name, c.weight) for c in service.clusters),
            where=Where.WAYPOINT if found else Where.KERNEL,
            reason=n.REASON_LABELS[f.reason(found)] if found else "",
            features=found,
        )

    @staticmethod
    def _cluster_features(view: _View, names: Iterable[str]) -> list[str]:
        found = []
        for name in names:
            if name == PASSTHROUGH:
                found.append("original-destination")
            elif name in view.clusters:
                found += view.clusters[name].features
        return found

    # ---- ids ----

    def _number(self) -> None:
        views = {view.key for view in self._views}
        self._assign(NameKind.VIEW, views)
        self._assign(NameKind.WORKLOAD, (_workload_key(w) for w, _ in self._workloads))
        self._assign(NameKind.TABLE, (_table_key(view, t) for view in self._views for t in view.tables.values()))
        self._assign(NameKind.CLUSTER, self._clusters.all())
        targets = (target for d in self._clusters.all().values() for target in (*d.targets, *d.resting))
        self._assign(NameKind.ENDPOINT, (target.key for target in targets))
        self._assign(NameKind.ROUTE, self._infos.all())
        for kind in (NameKind.VIEW, NameKind.WORKLOAD, NameKind.TABLE):
            for key, number in self._ids[kind].items():
                self._texts[kind, number] = key
        for variant, draft_ in self._clusters.all().items():
            number_ = self._ids[NameKind.CLUSTER].get(variant)
            if number_ is not None:
                self._texts[NameKind.CLUSTER, number_] = variant
                for target in (*draft_.targets, *draft_.resting):
                    endpoint = self._ids[NameKind.ENDPOINT].get(target.key)
                    if endpoint is not None:
                        self._texts.setdefault((NameKind.ENDPOINT, endpoint), f"{target.key} {target.workload}".strip())

    def _assign(self, kind: NameKind, wanted: Iterable[str]) -> None:
        fits: list[str] = []
        long: list[str] = []
        for key in sorted(set(wanted)):
            (fits if len(key.encode()) < n.NAME_TEXT else long).append(key)
        busy = self._known.live.get(kind, frozenset())
        done = assign(self._known.of(kind), self._last.get(kind, 0), fits, LIMITS[kind], busy)
        self._ids[kind], self._last[kind] = done.ids, done.last
        for key in (*done.failed, *long):
            limit = f"all {LIMITS[kind] - 1} numbers are in use" if key in done.failed else "the name is too long"
            self._reject("", kind.name.lower(), key, limit, _HOME)

    def _next_known(self) -> Known:
        ids: dict[NameKind, dict[str, int]] = {}
        for kind, assigned in self._ids.items():
            ids[kind] = dict(assigned)
            if kind in LASTING or kind is NameKind.ENDPOINT:
                taken = set(assigned.values())
                for key, number in self._known.of(kind).items():
                    if key not in assigned and number not in taken:
                        ids[kind][key] = number
        live = {kind: frozenset(assigned.values()) for kind, assigned in self._ids.items()}
        return Known(ids, self._last, live)

    # ---- records ----

    def _write_endpoints(self) -> None:
        ids = self._ids[NameKind.ENDPOINT]
        numbers = set(ids.values())
        for key, number in self._known.of(NameKind.ENDPOINT).items():
            if number not in numbers:
                self._put(Table.ENDPOINTS, number, endpoint_entry(key, False))
        for key, number in ids.items():
            self._put(Table.ENDPOINTS, number, endpoint_entry(key, True))

    def _write_clusters(self) -> None:
        endpoints = self._ids[NameKind.ENDPOINT]
        for variant, draft_ in self._clusters.all().items():
            number = self._ids[NameKind.CLUSTER].get(variant)
            if number is None:
                continue
            missing = [target.key for target in draft_.targets if target.key not in endpoints]
            if missing:
                # Its routes would silently lose endpoints: they are punted instead.
                self._reject("", "cluster", variant, f"no number for endpoint {missing[0]}", _HOME)
                del self._ids[NameKind.CLUSTER][variant]
                self._texts.pop((NameKind.CLUSTER, number), None)
                continue
            self._put(Table.CLUSTERS, number, cluster_entry(draft_.lb, slots(draft_.targets, endpoints)))

    def _draft_vhosts(
        self, tables: list[tuple[_View, TableDraft, int]]
    ) -> dict[tuple[str, str], list[tuple[VhostDraft, Program | None, Action]]]:
        """Programs and direct actions of every virtual host; then the programs get their numbers."""
        pending: dict[tuple[str, str], list[tuple[VhostDraft, Program | None, Action]]] = {}
        titles: dict[str, str] = {}
        for view, table, _ in tables:
            rows: list[tuple[VhostDraft, Program | None, Action]] = []
            for vhost in table.vhosts:
                program, direct = self._vhost(view, vhost)
                if program is not None:
                    self._programs[program.digest] = program
                    titles.setdefault(program.digest, vhost.name)
                rows.append((vhost, program, direct))
                self._report(view, table, vhost)
            pending[view.key, table.name] = rows
        self._assign(NameKind.PROGRAM, self._programs)
        for name, number in self._ids[NameKind.PROGRAM].items():
            self._texts[NameKind.PROGRAM, number] = f"{name} {titles[name]}"
        return pending

    def _vhost(self, view: _View, vhost: VhostDraft) -> tuple[Program | None, Action]:
        matches = vhost.matches
        if matches is None:
            return None, Action(kind=ActionKind.PUNT, reason=Reason.CAPACITY)
        if matches.image is None:
            if matches.only is None:
                return None, Action(kind=ActionKind.NONE)
            return None, self._action(view, vhost.routes[matches.only].key)
        actions = tuple(self._action(view, route.key) for route in vhost.routes)
        return Program(digest(matches.image, actions), matches.image, actions), Action()

    def _action(self, view: _View, key: str) -> Action:
        """The action of a route (or TCP service) of a view, by the route's key."""
        variant = self._infos.variant(view.key, key)
        info = self._infos.all()[variant]
        number = self._ids[NameKind.ROUTE].get(variant, 0)
        if number:
            self._routes[number] = info
            self._texts[NameKind.ROUTE, number] = route_text(variant, info)
        reason = f.reason(info.features)
        if info.where is Where.WAYPOINT:
            return Action(route=number, kind=ActionKind.PUNT, reason=reason)
        to, total = [], 0
        for name, weight in info.clusters:
            total += weight if len(info.clusters) > 1 else 1
            cluster = self._cluster_id(view, name)
            if cluster is None:
                return Action(route=number, kind=ActionKind.PUNT, reason=Reason.CAPACITY)
            to.append(Weight(total, cluster))
        rule = self._rule(view, info) if info.rule != NO_RULE else 0
        if info.where is Where.KERNEL:
            # What of these requests still comes to home (a stock was empty, say) is tried elsewhere if it has to be.
            return Action(number, ActionKind.CLUSTERS, 0, len(to), 0, total, tuple(to), rule=rule)
        if not rule:
            return Action(route=number, kind=ActionKind.PUNT, reason=Reason.CAPACITY)
        # The kernel does not look at the destinations of a punt; home chooses among them as the kernel would.
        reply = self._reply(rule, info)
        return Action(number, ActionKind.PUNT, reason, len(to), 0, total, tuple(to), int(reply), rule)

    def _reply(self, rule: int, info: RouteInfo) -> bool:
        """Whether the kernel can give the rule's answer itself, which is then written; beyond the budget home does."""
        value = replies.of_rule(info.rule)
        entries = self._entries[Table.REPLIES]
        if value is None or len(entries) >= n.REPLIES:
            return False
        entries[rule.to_bytes(8, "little")] = value
        return True

    def _cluster_id(self, view: _View, name: str) -> int | None:
        """The number of a cluster, 0 for one that does not exist, None when there was none left for it."""
        if name not in view.clusters:
            return 0
        return self._ids[NameKind.CLUSTER].get(self._clusters.variant(view.key, name))

    def _rule(self, view: _View, info: RouteInfo) -> int:
        """The key of a route's rule, which is written; 0 when that cannot be."""
        rule = info.rule
        named = {d.cluster for d in rule.destinations} | {m.cluster for m in rule.mirrors}
        named |= {h.cluster for h in rule.hashed} | {limit.cluster for limit in rule.limits}
        numbers = {name: self._cluster_id(view, name) for name in named}
        known = {name: number for name, number in numbers.items() if number is not None}
        entries = self._entries[Table.RULES]
        key, value = homerules.entry(homerules.numbered(rule, lambda name: known.get(name, 0)))
        raw = key.to_bytes(8, "little")
        if len(known) < len(numbers) or entries.get(raw, value) != value or len(entries) >= n.RULES:
            self._reject(view.key, "rule", f"{info.host} {info.match}", "no room among the rules of home", _HOME)
            return 0
        entries[raw] = value
        return key

    def _write_tables(
        self,
        tables: list[tuple[_View, TableDraft, int]],
        pending: Mapping[tuple[str, str], list[tuple[VhostDraft, Program | None, Action]]],
    ) -> None:
        programs = self._ids[NameKind.PROGRAM]
        entries = self._entries[Table.VHOSTS]
        for view, table, number in tables:
            rows = pending[view.key, table.name]
            hosts = sum(len(vhost.hosts) for vhost, _, _ in rows)
            if not number or table.refused or len(entries) + hosts > n.VHOSTS:
                reason = table.refused or (f"more than {n.VHOSTS} domains on this node" if number else "no number left")
                self._reject(view.key, "route table", table.name, reason, _HOME)
                continue
            flags = n.TABLE_LIVE | (n.TABLE_IGNORE_PORT if table.ignore_port else 0)
            for vhost, program, direct in rows:
                record = Vhost(0, direct)
                if program is not None:
                    program_number = programs.get(program.digest)
                    if program_number is None:
                        record = Vhost(0, Action(kind=ActionKind.PUNT, reason=Reason.CAPACITY))
                        self._reject(view.key, "virtual host", vhost.name, "no route program left", _HOME)
                    else:
                        record = Vhost(program_number, Action())
                value = record.pack()
                for host in vhost.hosts:
                    flags |= n.TABLE_ANY if host == "*" else n.TABLE_WILD if host.startswith("*") else 0
                    entries[vhost_key(number, host)] = value
            self._put(Table.TABLES, number, TableRecord(flags).pack())
            for name, reason in table.unreachable:
                self._reject(view.key, "domain", name, reason, _HOME)

    def _write_services(self, view: _View) -> None:
        number = self._ids[NameKind.VIEW].get(view.key, 0)
        if not number:
            return
        for http in view.services.http:
            table = self._table_id(view, view.tables[http.table])
            self._service(view, http.address, http.port, Service(ServiceKind.HTTP, table))
        for tcp in view.services.tcp:
            action = self._action(view, view.tcp[tcp].key)
            if action.kind == ActionKind.CLUSTERS:
                self._service(view, tcp.address, tcp.port, Service(ServiceKind.TCP, 0, action))
            else:
                info = view.tcp[tcp]
                reason = "; ".join(info.features) or n.REASON_LABELS[action.reason]
                self._reject(view.key, "service", f"{tcp.address}:{tcp.port}", reason, _REFUSED)
                self._service(view, tcp.address, tcp.port, Service(ServiceKind.REFUSE, 0, action))
        for item in view.services.uncaptured:
            if item.address:
                self._reject(view.key, "service", f"{item.address}:{item.port}", item.reason, _REFUSED)
                self._service(view, item.address, item.port, Service(ServiceKind.REFUSE))
            elif item.host:
                self._reject(view.key, NOT_CAPTURED, item.host, item.reason, _UNTOUCHED, item.source)
            else:
                self._reject(view.key, "listener", item.listener, item.reason, _UNTOUCHED)

    def _service(self, view: _View, ip: str, port: int, service: Service) -> None:
        entries = self._entries[Table.SERVICES]
        if len(entries) >= n.SERVICES:
            self._reject(
                view.key, "service", f"{ip}:{port}", f"more than {n.SERVICES} services on this node", _UNTOUCHED
            )
            return
        entries[service_key(self._ids[NameKind.VIEW][view.key], ip, port)] = service.pack()

    def _write_workloads(self) -> dict[str, int]:
        enrolled = {}
        asked = {view.key: view.unenforced for view in self._views}
        for workload, view in self._workloads:
            for item in asked.get(view, ()):
                self._reject(view, NOT_ENFORCED, workload.key, item.reason, item.effect)
            number = self._ids[NameKind.WORKLOAD].get(_workload_key(workload))
            view_number = self._ids[NameKind.VIEW].get(view)
            if number is None or view_number is None:
                self._reject(view, "workload", workload.key, "no number left", "it is not enrolled")
                continue
            addresses = [address(ip) for ip in workload.ips]
            four = next((a for a in addresses if family(a) == 4), NO_ADDRESS)
            six = next((a for a in addresses if family(a) == 6), NO_ADDRESS)
            self._put(Table.WORKLOADS, number, Workload(view_number, 0, four, six).pack())
            enrolled[workload.key] = number
        return enrolled

    def _write_names(self) -> None:
        entries = self._entries[Table.NAMES]
        for kind in LASTING:
            for key, number in self._known.of(kind).items():
                name, value = name_entry(kind, number, key)
                entries[name] = value
        for (kind, number), text in self._texts.items():
            name, value = name_entry(kind, number, text)
            entries[name] = value

    # ---- odds and ends ----

    def _report(self, view: _View, table: TableDraft, vhost: VhostDraft) -> None:
        for route in vhost.routes:
            info = self._infos.all()[self._infos.variant(view.key, route.key)]
            if info.where is Where.WAYPOINT:
                name = f"{vhost.name} {info.match}"
                self._reject(view.key, "route", name, "; ".join(info.features), _HOME, info.source)
            for cluster, _weight in info.clusters:
                if cluster not in view.clusters:
                    reason = f"cluster {cluster} does not exist"
                    effect = "requests that take it get 503"
                    self._reject(view.key, "route", f"{vhost.name} {info.match}", reason, effect, info.source)

    def _table_id(self, view: _View, table: TableDraft) -> int:
        return self._ids[NameKind.TABLE].get(_table_key(view, table), 0)

    def _put(self, table: Table, number: int, value: bytes) -> None:
        self._entries[table][number.to_bytes(4, "little")] = value

    def _reject(self, view: str, kind: str, name: str, reason: str, effect: str, source: Source | None = None) -> None:
        self._rejections.append(Rejection(view, kind, name, reason, effect, source))


def _workload_key(workload: WorkloadLike) -> str:
    """A workload that comes back with another address is another one: wires of the old one are not its own."""
    return f"{workload.key} {','.join(workload.ips)}"


def _table_key(view: _View, table: TableDraft) -> str:
    return f"{table.name} @ {view.key}"
