"""The entry points of this room: prepare a mesh once, then translate it for any number of clients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

from controlplane.model.labels import Labels
from controlplane.model.mesh import Mesh, Port, Service
from controlplane.model.node import Node
from controlplane.translate import (
    ambient,
    clusters,
    gateway,
    grpc_client,
    inbound,
    logs,
    names,
    outbound,
    patches,
    tokens,
    virtual_hosts,
    waypoint,
)
from controlplane.translate.endpoints import depends_on_place, load_assignment
from controlplane.translate.memo import Memo
from controlplane.translate.peer import service_mode
from controlplane.translate.policy import resolve
from controlplane.translate.protection import protection
from controlplane.translate.resources import Message, Resources, Table
from controlplane.translate.scope import (
    Scope,
    ScopeKey,
    build_scope,
    labels_depend_on,
    relevant_labels,
    scope_depends_on,
    scope_key,
)
from controlplane.translate.targets import Spot

#: Generations for which the translation of a scope is kept though nobody asked for it.
_KEEP = 3


@dataclass(frozen=True, slots=True)
class _Made:
    """What a scope was translated to, and from which mesh."""

    number: int
    mesh: Mesh
    scope: Scope
    tables: Mapping[str, Table]


class Prepared:
    """A mesh together with what was translated of it already.

    Make one with :func:`prepare`; treat it as a value.  The tables inside only remember results of pure functions.
    """

    def __init__(self, mesh: Mesh, previous: Prepared | None = None) -> None:
        self.mesh = mesh
        self._number: int = previous._number + 1 if previous is not None else 0
        fits = previous is not None and previous.memo.settle()
        self.memo: Memo = previous.memo if previous is not None and fits else Memo(previous.memo if previous else None)
        same_labels = previous is not None and _stand(labels_depend_on(previous.mesh), labels_depend_on(mesh))
        self.relevant: frozenset[str] = previous.relevant if previous and same_labels else relevant_labels(mesh)
        self._scopes: dict[ScopeKey, Scope] = {}
        self._outbound: dict[ScopeKey, _Made] = {}
        # With a new memo nothing is taken over as a whole: what is of use shall be asked for, piece by piece.
        self._made_before = previous._still_kept(self._number) if previous is not None and fits else {}
        self._moved: dict[int, tuple[Mesh, frozenset[tuple[str, str]]]] = {}
        self._ambient: Resources | None = None
        self._finished: dict[tuple[object, ...], Resources] = {}
        self._own: dict[tuple[object, ...], tuple[object, Resources]] = {}
        alike = previous is not None and _inbound_settings(previous.mesh) == _inbound_settings(mesh)
        self._own_before = previous._own if previous is not None and alike else {}

    def _still_kept(self, number: int) -> dict[ScopeKey, _Made]:
        now = self._outbound.copy()  # at once: a client may be connecting meanwhile
        kept = {key: made for key, made in self._made_before.items() if number - made.number <= _KEEP}
        return {**kept, **now}

    def scope(self, node: Node) -> Scope:
        """Return what this client may see."""
        key = scope_key(node, self.relevant, self.locality(node))
        found = self._scopes.get(key)
        if found is None:
            old = self._made_before.get(key)
            if old is not None and _stand(scope_depends_on(old.mesh), scope_depends_on(self.mesh)):
                found = old.scope
            else:
                found = build_scope(self.mesh, key, (old.mesh, old.scope) if old is not None else None)
            self._scopes[key] = found
        return found

    def moved(self, since: Mesh) -> frozenset[tuple[str, str]]:
        """Namespaces and host names of services whose endpoints are not what they were in another mesh."""
        known = self._moved.get(id(since))
        if known is None:
            old, new = since.endpoints, self.mesh.endpoints
            places = [where for where, pool in new.items() if old.get(where) is not pool]
            if len(old) + sum(where not in old for where in places) != len(new):
                places += [where for where in old if where not in new]
            known = self._moved[id(since)] = (since, frozenset((space, host) for space, host, _ in places))
        return known[1]

    def locality(self, node: Node) -> tuple[str, str, str]:
        """Where a client is: what it says, else where its workload is known to be."""
        if any(node.locality):
            return node.locality
        for ip in node.ips:
            workload = self.mesh.workloads.get(ip)
            if workload is not None:
                place = workload.locality
                return (place.region, place.zone, place.subzone)
        return ("", "", "")

    def outbound(self, scope: Scope) -> Mapping[str, Table]:
        """Return the resources that do not depend on which workload of the scope asks."""
        found = self._outbound.get(scope.key)
        if found is None:
            old = self._made_before.get(scope.key)
            tables = (_patched(self, scope, old) if old is not None else None) or _outbound(self, scope)
            found = self._outbound[scope.key] = _Made(self._number, self.mesh, scope, tables)
        return found.tables

    def ambient(self) -> Resources:
        """Return what every ztunnel is served."""
        if self._ambient is None:
            self._ambient = ambient.resources(self.mesh, self.memo)
        return self._ambient

    def own(self, node: Node, scope: Scope) -> Resources:
        """Return the inbound resources of a sidecar; the same objects as in the last generation if nothing changed."""
        served = tuple(inbound.served(self.mesh, node))
        rules = tuple(scope.rules.get(item.services[0].hostname) for item in served)
        spot = Spot.of(node.type, node.namespace, node.labels)
        keys = tokens.fetches(tokens.rules(self.mesh, spot), scope)
        inputs = (served, tuple(rule.sources if rule is not None else () for rule in rules), keys)
        found = self._own.get(node.view) or self._own_before.get(node.view)
        if found is None or found[0] != inputs:
            guard = protection(self.mesh, scope, spot)
            listener = _same(self.memo, inbound.listener(self.mesh, node, guard))
            made = {**inbound.clusters(self.mesh, node, scope), **guard.clusters}
            found = (
                inputs,
                {
                    names.LISTENER: {"virtualInbound": listener},
                    names.CLUSTER: {name: _same(self.memo, item) for name, item in made.items()},
                },
            )
        self._own[node.view] = found
        return found[1]

    def finished(self, node: Node, scope: Scope, shared: Resources, own: Resources) -> tuple[Resources, Resources]:
        """Return both parts with what is for Envoys only: access logs, and then the client's EnvoyFilters."""
        key = (scope.key, node.version)
        if key not in self._finished:
            self._finished[key] = self._finish(shared, node, scope.key.labels, whole=True)
        return self._finished[key], self._finish(own, node, node.labels, whole=False) if own else own

    def _finish(self, before: Resources, node: Node, labels: Labels, *, whole: bool) -> Resources:
        made = before
        logged = logs.loggers(self.mesh, node.type, node.namespace, labels)
        if logged:
            made = logs.apply(made, logged, node.type)
        found = patches.chosen(self.mesh, node.type, node.namespace, labels, node.version)
        if found:
            more: dict[str, dict[str, Message]] = {url: dict(table) for url, table in made.items()}
            for url, message in patches.added(found, node.type) if whole else ():
                more.setdefault(url, {}).setdefault(message.name, message)
            made = patches.apply(more, found, node.type)
        return self._settled(made, before) if made is not before else before

    def _settled(self, made: Resources, before: Resources) -> Resources:
        """What was patched keeps its identity from generation to generation; the rest has it already."""
        return {
            url: {
                name: item if item is before.get(url, {}).get(name) else _same(self.memo, item)
                for name, item in table.items()
            }
            for url, table in made.items()
        }


def _stand(before: tuple[object, ...], now: tuple[object, ...]) -> bool:
    """Whether parts of two meshes are the same objects."""
    return all(old is new for old, new in zip(before, now, strict=True))


def _inbound_settings(mesh: Mesh) -> tuple[object, ...]:
    """What every inbound listener depends on, besides the workload and the services that lead to it."""
    return (
        mesh.authorization_policies,
        mesh.request_authentications,
        tuple(mesh.providers.items()),
        mesh.peer_authentications,
        mesh.trust_domain,
        mesh.domain,
        mesh.root_namespace,
    )


def prepare(mesh: Mesh, previous: Prepared | None = None) -> Prepared:
    """Get ready to translate ``mesh``.

    ``previous`` is the last generation: messages whose inputs did not change are taken over as the same objects.
    """
    return Prepared(mesh, previous)


def translate(prepared: Prepared, node: Node) -> Resources:
    """Translate the mesh for one client.

    Returns all resources that the client may get, by type URL and name.  Sidecars get LDS, RDS, CDS and EDS for their
    outbound and inbound traffic; routers what the Gateways that select them ask for; proxyless gRPC clients
    (``GENERATOR=grpc``) its own shapes, their LDS under every name that a service has; waypoints what is bound to them;
    ztunnels workloads, services and policies.  Node type ``agentgateway`` gets nothing.
    """
    shared, own = parts(prepared, node)
    if not own:
        return shared
    merged = {kind: {**table, **own.get(kind, {})} for kind, table in shared.items()}
    return {kind: dict(sorted(table.items())) for kind, table in merged.items()}


def parts(prepared: Prepared, node: Node) -> tuple[Resources, Resources]:
    """As :func:`translate`, in two parts: what clients of one scope share, and what only this client gets.

    The tables of the first part are the same objects for all of these clients, so whoever serves many of them does the
    work that depends on size once.
    """
    if node.type == "ztunnel":
        return prepared.ambient(), {}
    scope = prepared.scope(node)
    shared: Resources = prepared.outbound(scope)
    own: Resources = {}
    if node.type == "sidecar" and node.generator != "grpc" and node.interception in ("REDIRECT", "TPROXY"):
        own = prepared.own(node, scope)
    mesh = prepared.mesh
    wanted = mesh.envoy_filters or mesh.telemetries or mesh.settings
    if wanted and not node.kernel and node.generator != "grpc":
        return prepared.finished(node, scope, shared, own)
    return shared, own


def resource_for(prepared: Prepared, node: Node, type_url: str, name: str) -> Message | None:
    """Return a resource that exists only once somebody asks for it by name, or None.

    That is the case for proxyless gRPC: a Listener's name is whatever the application dialled.
    """
    shared, own = parts(prepared, node)
    found = own.get(type_url, {}).get(name) or shared.get(type_url, {}).get(name)
    if found is None and type_url == names.LISTENER and node.generator == "grpc":
        return grpc_client.listener_for(prepared.scope(node), name)
    return found


def _depends(scope: Scope, service: Service, port: Port, inline: bool) -> tuple[object, ...]:
    """What a service's clusters depend on, besides its endpoints' identities and addresses.

    ``inline``: the clusters hold their endpoints, so where the client is may matter.
    """
    rule = scope.rules.get(service.hostname)
    key = scope.key
    where = (key.families, key.locality, key.labels) if inline else ()
    return (
        service,
        port,
        rule.sources if rule is not None else None,
        key.generator,
        key.mesh_certificates,
        key.type,
        where,
    )


def _outbound(prepared: Prepared, scope: Scope) -> Mapping[str, Table]:
    mesh, memo = prepared.mesh, prepared.memo
    cds: dict[str, Message] = {}
    eds: dict[str, Message] = {}
    if scope.key.type == "waypoint":
        return {kind: Table(table) for kind, table in _waypoint(scope, mesh, memo).items()}
    if scope.key.type in ("sidecar", "router"):
        for service in scope.services.values():
            _service(cds, eds, service, scope, mesh, memo)
        if scope.key.generator != "grpc":
            cds[names.BLACK_HOLE] = memo.get("black-hole", clusters.black_hole)
            if scope.key.type == "sidecar":
                cds[names.PASSTHROUGH] = memo.get("passthrough", partial(clusters.passthrough, names.PASSTHROUGH))
    lds, rds, more = memo.get(_depends_routes(scope, mesh), partial(_listeners_and_routes, scope, mesh, memo))
    cds.update(more)
    out = {names.LISTENER: lds, names.ROUTE: rds, names.CLUSTER: cds, names.ENDPOINT: eds}
    return {kind: Table(sorted(table.items())) for kind, table in out.items()}


def _patched(prepared: Prepared, scope: Scope, old: _Made) -> Mapping[str, Table] | None:
    """The tables that were made of an older mesh, with what depends on the differences made anew.

    None when that cannot be told service by service: a waypoint's tables, a change of the mesh's identity or of its
    clients' certificates, clusters that are there for the sake of routes.
    """
    mesh, key = prepared.mesh, scope.key
    if key.type not in ("sidecar", "router") or old.mesh.trust_domain != mesh.trust_domain:
        return None
    if key.mesh_certificates and old.mesh.peer_authentications != mesh.peer_authentications:
        return None
    before = old.tables
    touched = dict.fromkeys(_touched(prepared, scope, old))
    if 2 * len(touched) > len(scope.services):
        return None
    gone: tuple[dict[str, Message], dict[str, Message]] = ({}, {})
    come: tuple[dict[str, Message], dict[str, Message]] = ({}, {})
    for host in touched:
        was, now = old.scope.services.get(host), scope.services.get(host)
        if was is not None:
            _service(*gone, was, old.scope, old.mesh, prepared.memo)
        if now is not None:
            _service(*come, now, scope, mesh, prepared.memo)
    cds = before[names.CLUSTER].derived(gone[0], come[0])
    eds = before[names.ENDPOINT].derived(gone[1], come[1])
    lds, rds = before[names.LISTENER], before[names.ROUTE]
    if not _routes_stand(scope, mesh, old, touched):
        if key.type == "router" and (_guards(old.mesh) or _guards(mesh)):
            return None
        new_lds, new_rds, _ = _listeners_and_routes(scope, mesh, prepared.memo)
        lds, rds = lds.derived(lds, new_lds), rds.derived(rds, new_rds)
    return {names.LISTENER: lds, names.ROUTE: rds, names.CLUSTER: cds, names.ENDPOINT: eds}


def _touched(prepared: Prepared, scope: Scope, old: _Made) -> Iterator[str]:
    """Host names whose clusters or endpoints may be others than before."""
    was = old.scope
    if scope is not was and scope.services is not was.services:
        yield from (host for host, service in scope.services.items() if was.services.get(host) is not service)
        yield from (host for host in was.services if host not in scope.services)
    if scope is not was and scope.rules is not was.rules:
        for host, rule in scope.rules.items():
            known = was.rules.get(host)
            if known is not rule and (known is None or known.sources != rule.sources):
                yield host
        yield from (host for host in was.rules if host not in scope.rules)
    for space, host in prepared.moved(old.mesh):
        service = scope.services.get(host)
        if service is not None and service.namespace == space:
            yield host


def _routes_stand(scope: Scope, mesh: Mesh, old: _Made, touched: Mapping[str, None]) -> bool:
    """Whether listeners and routes are what they were; see :func:`_depends_routes`."""
    if scope is not old.scope or mesh.delegates is not old.mesh.delegates or mesh.domain != old.mesh.domain:
        return False
    if any(scope.services[host].headless for host in touched if host in scope.services):
        return False
    if scope.key.type != "router":
        return True
    parts = (
        (one.services, one.endpoints, one.gateways, one.authorization_policies, one.request_authentications)
        for one in (old.mesh, mesh)
    )
    return _stand(*parts) and mesh.providers == old.mesh.providers


def _guards(mesh: Mesh) -> bool:
    """Whether routers may have clusters for their routes' sake: authorizers and key sets."""
    return bool(mesh.authorization_policies or mesh.request_authentications or mesh.providers)


def _waypoint(scope: Scope, mesh: Mesh, memo: Memo) -> dict[str, dict[str, Message]]:
    made = waypoint.resources(scope, mesh, memo)
    for host in sorted(made.others):
        service = scope.services.get(host)
        if service is not None:
            _service(made.cds, made.eds, service, scope, mesh, memo)
    tables = {names.LISTENER: made.lds, names.ROUTE: {}, names.CLUSTER: made.cds, names.ENDPOINT: made.eds}
    return {kind: {name: _same(memo, item) for name, item in sorted(table.items())} for kind, table in tables.items()}


def _depends_routes(scope: Scope, mesh: Mesh) -> tuple[object, ...]:
    """What listeners and routes depend on.

    Endpoints, which change most, are not among it, except where clients of a headless service connect to them, and
    where a gateway listens on its own pods' port.
    """
    services = tuple(scope.services.values())
    pools: tuple[object, ...] = tuple(
        mesh.endpoints_of(service, port.number) for service in services if service.headless for port in service.ports
    )
    if scope.key.type == "router":
        pools += (mesh.gateways, mesh.authorization_policies, tuple(mesh.providers.items()), mesh.trust_domain)
        pools += (mesh.request_authentications,)
        pools += tuple(
            mesh.endpoints_of(service, port.number)
            for service in mesh.services
            if service.namespace == scope.key.namespace
            for port in service.ports
        )
    return (
        "listeners and routes",
        scope.key,
        services,
        scope.virtual_services,
        tuple(sorted(mesh.delegates.items())),
        tuple((host, rule.sources) for host, rule in scope.rules.items()),
        scope.allow_any,
        scope.sidecar,
        mesh.domain,
        pools,
    )


def _listeners_and_routes(
    scope: Scope, mesh: Mesh, memo: Memo
) -> tuple[dict[str, Message], dict[str, Message], dict[str, Message]]:
    """Listeners, routes, and the clusters that are there for their sake."""
    cds: Mapping[str, Message] = {}
    lds: dict[str, Message] = {}
    rds: dict[str, Message] = {}
    if scope.key.generator == "grpc":
        lds, rds = grpc_client.resources(scope, mesh, memo)
    elif scope.key.type == "sidecar":
        for number in outbound.http_ports(scope):
            rds[str(number)] = virtual_hosts.port_configuration(scope, mesh, number, memo)
        for service, number in outbound.sniffed_ports(scope):
            made = virtual_hosts.sniffed_configuration(scope, mesh, service, number, memo)
            rds[made.name] = made
        lds = outbound.listeners(scope, mesh)
    elif scope.key.type == "router":
        guard = protection(mesh, scope, Spot.of(scope.key.type, scope.key.namespace, scope.key.labels))
        lds, rds = gateway.resources(scope, mesh, guard)
        cds = guard.clusters
    return (
        {name: _same(memo, item) for name, item in lds.items()},
        {name: _same(memo, item) for name, item in rds.items()},
        {name: _same(memo, item) for name, item in cds.items()},
    )


def _service(
    cds: dict[str, Message], eds: dict[str, Message], service: Service, scope: Scope, mesh: Mesh, memo: Memo
) -> None:
    for port in service.ports:
        if port.protocol != "UDP":
            _port(cds, eds, service, port, scope, mesh, memo)


def _port(
    cds: dict[str, Message], eds: dict[str, Message], service: Service, port: Port, scope: Scope, mesh: Mesh, memo: Memo
) -> None:
    pool = mesh.endpoints_of(service, port.number)
    accounts = tuple(clusters.identities(service, pool, mesh)) if scope.key.mesh_certificates else ()
    inline = service.resolution in ("DNS", "DNS_ROUND_ROBIN")
    made = memo.get(
        (
            "clusters",
            mesh.trust_domain,
            service_mode(mesh, service.namespace) if scope.key.mesh_certificates else "",
            accounts,
            pool if inline else (),
            *_depends(scope, service, port, inline),
        ),
        lambda: clusters.service_clusters(service, port, scope, mesh),
    )
    rule = scope.rules.get(service.hostname)
    sources = rule.sources if rule is not None else None
    for item in made:
        cds[item.name] = item
        if not item.HasField("eds_cluster_config"):
            continue
        subset = item.name.split("|")[2]
        chosen = clusters.endpoints_of(service, port, subset, scope, mesh)
        policy = resolve(rule, port.number, subset)
        where = (scope.key.locality, scope.key.labels) if depends_on_place(policy) else ()
        key = ("endpoints", item.name, chosen, sources, where)
        eds[item.name] = memo.get(key, partial(load_assignment, item.name, chosen, policy, scope))


def _same(memo: Memo, message: Message) -> Message:
    """Return the object that an equal message had before, so that unchanged resources keep their identity."""
    digest = blake2b(message.SerializeToString(deterministic=True), digest_size=20).digest()
    found: Message = memo.get(("content", message.DESCRIPTOR.full_name, digest), lambda: message)
    return found
