"""`underpass analyze`: YAML texts judged without any process, by the code of both programs.

The control plane's rooms say what is accepted and what each client would be served; the agent's rooms say what of that
the kernel would do. Nothing here decides anything itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from controlplane.analyze import Analysis, analyze
from controlplane.model.hosts import is_wildcard
from controlplane.model.mesh import Mesh, Service
from controlplane.model.node import Node
from controlplane.model.objects import Config, Key
from controlplane.model.targets import target_refs
from controlplane.translate import prepare, translate
from nodeagent.cache.resources import Value
from nodeagent.cache.store import Decoder, Resources, resources_from
from nodeagent.errors import ResourceError
from nodeagent.intent.compile import Compiler
from nodeagent.intent.model import NOT_CAPTURED, NOT_ENFORCED, Rejection, RouteInfo
from underpass.equivalence.completion import clients, complete

ERROR: Final = "error"
WARNING: Final = "warning"

KERNEL: Final = "kernel"
HOME: Final = "home"
WAYPOINT: Final = "waypoint"
UNSUPPORTED: Final = "unsupported"
#: For gateways' Envoys only: no workload of a node has it in its view.
GATEWAY: Final = "gateway"
#: Nobody's: the object is not in force, or another rule takes all of its requests.
NOWHERE: Final = "nowhere"
#: The worst first: what a rule with several routes is called after.
PLACES: Final = (UNSUPPORTED, WAYPOINT, HOME, KERNEL, GATEWAY, NOWHERE)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that its author should know. `code` is stable; `severity` is ERROR or WARNING."""

    severity: str
    code: str
    file: str
    line: int
    kind: str
    namespace: str
    name: str
    message: str


@dataclass(frozen=True, slots=True)
class Placement:
    """One route that a rule yields, and who would decide it. features: why it is not the kernel."""

    host: str
    match: str
    clusters: tuple[tuple[str, int], ...]
    where: str
    reason: str = ""
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of an object: its path in the spec, its line, and where it runs. told: by another object's rules."""

    path: str
    index: int
    name: str
    line: int
    where: str
    why: str = ""
    placements: tuple[Placement, ...] = ()
    told: bool = False


@dataclass(frozen=True, slots=True)
class Judged:
    """An object and its rules."""

    kind: str
    namespace: str
    name: str
    file: str
    line: int
    state: str
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """The whole judgement. assumed: hosts that rules name and no file defines, taken to exist on port 80."""

    files: tuple[str, ...]
    objects: tuple[Judged, ...]
    problems: tuple[Problem, ...]
    assumed: tuple[str, ...]
    views: int

    def count(self, severity: str) -> int:
        """How many problems are of this severity."""
        return sum(problem.severity == severity for problem in self.problems)

    def failed(self, *, strict: bool) -> bool:
        """Whether the judgement is negative."""
        return bool(self.count(ERROR) or (strict and self.count(WARNING)))

    def rules(self) -> dict[str, int]:
        """How many rules run where; a port that another object's rules govern does not count again."""
        places = [rule.where for item in self.objects for rule in item.rules if not rule.told]
        return {place: places.count(place) for place in PLACES if place in places}


@dataclass(slots=True)
class _Compiled:
    """What the agent's rooms make of all views."""

    placements: dict[tuple[str, str, str, int], dict[Placement, None]] = field(default_factory=dict)
    connections: dict[str, Placement] = field(default_factory=dict)  # by `address:port`
    rejections: dict[tuple[str, str, str, str], Rejection] = field(default_factory=dict)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)  # resources, by type and name
    views: int = 0


def judge(files: Mapping[str, str], *, domain: str = "cluster.local") -> Report:
    """Judge YAML texts by file name. Never raises for what they contain."""
    done = analyze(files, domain=domain)
    mesh, assumed = complete(done.mesh)
    compiled = _compile(mesh, clients(done, mesh))
    states = {(v.kind, v.namespace, v.name): v for v in done.verdicts if v.state != "rejected"}
    rejected = {(v.kind, v.namespace, v.name) for v in done.verdicts if v.state == "rejected"}
    hosts = {str(address): service.hostname for service in mesh.services for address in service.addresses}
    objects = []
    for verdict in done.verdicts:
        key = (verdict.kind, verdict.namespace, verdict.name)
        rules: tuple[Rule, ...] = ()
        if verdict.state == "accepted" or (verdict.code == "duplicate-host" and key not in rejected):
            found = _rules(mesh, compiled, Key(*key), verdict.state == "accepted")
            rules = tuple(_without_service(rule, assumed) for rule in found)
        objects.append(Judged(*key, file=verdict.file, line=verdict.line, state=verdict.state, rules=rules))
    problems = [*_verdict_problems(done), *_rule_problems(objects), *_agent_problems(compiled, hosts, states)]
    ordered = sorted(dict.fromkeys(problems), key=lambda p: (p.file, p.line, p.severity, p.message))
    return Report(tuple(sorted(files)), tuple(objects), tuple(ordered), tuple(assumed), compiled.views)


# ---- the agent's side ----


def _compile(mesh: Mesh, clients: Sequence[Node]) -> _Compiled:
    compiled, decoder, compiler = _Compiled(), Decoder(), Compiler()
    prepared, seen = prepare(mesh), set[tuple[tuple[str, bytes], ...]]()
    for client in clients:
        values: dict[str, dict[str, Value]] = {}
        digests: list[tuple[str, bytes]] = []
        for url, messages in translate(prepared, client).items():
            for name, message in messages.items():
                try:
                    digest, value = decoder.decode(url, message.SerializeToString(deterministic=True))
                except ResourceError as error:
                    compiled.refused[url.rpartition(".")[2], name] = str(error)
                    continue
                except KeyError:
                    continue  # a type that agents do not ask for
                values.setdefault(url, {})[name] = value
                digests.append((name, digest))
        identity = tuple(sorted(digests))
        if identity not in seen:
            seen.add(identity)
            _take(compiled, compiler, client.id, resources_from(values))
    compiled.views = len(seen)
    return compiled


def _take(compiled: _Compiled, compiler: Compiler, view: str, resources: Resources) -> None:
    intent = compiler.compile({view: resources}, ())
    for info in intent.routes.values():
        placement = _placement(info)
        if info.source is not None:
            key = (info.source.kind, info.source.namespace, info.source.name, info.source.rule)
            compiled.placements.setdefault(key, {})[placement] = None
        elif info.route == "tcp":
            compiled.connections[info.host] = placement
    for rejection in intent.rejections:
        source = rejection.source
        if source is None and rejection.kind == "route":
            continue  # Istio's own answer to unknown hosts, for which nobody wrote a rule
        compiled.rejections[rejection.kind, rejection.name, rejection.reason, rejection.effect] = rejection
        if source is None or rejection.kind != "route" or "503" in rejection.effect:
            continue
        # A virtual host that is over a budget has no routes in the maps: what is refused stands for them.
        key = (source.kind, source.namespace, source.name, source.rule)
        host, _, match = rejection.name.partition(" ")
        if not any(p.host == host and p.match == match for p in compiled.placements.get(key, ())):
            features = tuple(rejection.reason.split("; "))
            reason = "over-capacity" if "capacity" in features else ""
            made = Placement(host, match, (), WAYPOINT, reason, features)
            compiled.placements.setdefault(key, {})[made] = None


def _placement(info: RouteInfo) -> Placement:
    return Placement(info.host, info.match, info.clusters, info.where.value, info.reason, info.features)


# ---- rules ----


def _rules(mesh: Mesh, compiled: _Compiled, key: Key, in_force: bool) -> Iterator[Rule]:
    if key.kind == "VirtualService":
        config = mesh.delegates.get(key) or next((c for c in mesh.virtual_services if c.meta.key == key), None)
        if config is not None:
            yield from _virtual_service(compiled, config, in_force)
    elif key.kind in ("Service", "ServiceEntry"):
        for service in mesh.services:
            if (service.kind, service.namespace, service.object or service.name) == (key.kind, key.namespace, key.name):
                yield from _service(compiled, service)
    elif key.kind == "AuthorizationPolicy":
        policy = next((c for c in mesh.authorization_policies if c.meta.key == key), None)
        if policy is not None:
            yield from _policy(policy, "rules", policy.spec.rules)
    elif key.kind == "RequestAuthentication":
        tokens = next((c for c in mesh.request_authentications if c.meta.key == key), None)
        if tokens is not None and tokens.spec.jwt_rules:
            yield from _policy(tokens, "jwtRules", tokens.spec.jwt_rules)
    elif key.kind == "PeerAuthentication":
        peer = next((c for c in mesh.peer_authentications if c.meta.key == key), None)
        if peer is not None:
            yield from _peer(peer)


def _without_service(rule: Rule, assumed: Sequence[str]) -> Rule:
    """The rule, which tells of a destination that is only taken to exist."""
    named = {name.rpartition("|")[2] for placement in rule.placements for name, _ in placement.clusters}
    missing = ", ".join(host for host in assumed if host in named)
    if not missing:
        return rule
    return replace(rule, why="; ".join(filter(None, (rule.why, f"503 while there is no service {missing}"))))


def _virtual_service(compiled: _Compiled, config: Config, in_force: bool) -> Iterator[Rule]:
    key, spec = config.meta.key, config.spec
    only_gateways = bool(spec.gateways) and "mesh" not in spec.gateways
    catch_all = -1
    for index, rule in enumerate(spec.http):
        found = tuple(compiled.placements.get((key.kind, key.namespace, key.name, index), ()))
        where, why = _summary(found)
        if not found:
            elsewhere = only_gateways or _gateways_only(rule)
            why = _absence(in_force, elsewhere, catch_all)
            where = GATEWAY if in_force and elsewhere else NOWHERE
        if catch_all < 0 and (not rule.match or any(_takes_all(match) for match in rule.match)):
            catch_all = index
        yield Rule(f"http[{index}]", index, rule.name, config.line(f"http[{index}]"), where, why, found)
    for kind, rules in (("tls", spec.tls), ("tcp", spec.tcp)):
        for index, rule in enumerate(rules):
            where, why = _connection_rule(compiled, kind, rule, in_force, only_gateways)
            yield Rule(f"{kind}[{index}]", index, "", config.line(f"{kind}[{index}]"), where, why)


def _gateways_only(rule: Any) -> bool:
    """Whether each of a rule's matches is for gateways."""
    return bool(rule.match) and all(match.gateways and "mesh" not in match.gateways for match in rule.match)


_NEVER: Final = "never reached"


def _takes_all(match: Any) -> bool:
    return match.uri.WhichOneof("match_type") == "prefix" and match.uri.prefix == "/" and len(match.ListFields()) == 1


def _absence(in_force: bool, only_gateways: bool, catch_all: int) -> str:
    if not in_force:
        return "the object is not in force"
    if only_gateways:
        return "for the Envoys of the gateways that it names"
    if catch_all >= 0:
        return f"{_NEVER}: http[{catch_all}] takes every request before it"
    return "no client of these files sees it (exportTo, Sidecar, or the ports of its hosts)"


def _connection_rule(compiled: _Compiled, kind: str, rule: Any, in_force: bool, only_gateways: bool) -> tuple[str, str]:
    if not in_force or only_gateways:
        return GATEWAY if in_force else NOWHERE, _absence(in_force, only_gateways, -1)
    if kind == "tls":
        return UNSUPPORTED, "the server name of TLS is not looked at: connections to the service are refused"
    wanted = {(route.destination.host.partition(".")[0], route.destination.subset) for route in rule.route}
    for placement in compiled.connections.values():
        parts = [name.split("|") for name, _ in placement.clusters]
        if {(part[3].partition(".")[0], part[2]) for part in parts if len(part) == 4} == wanted:
            return placement.where, "; ".join(placement.features) or "once, when it connects"
    return NOWHERE, "no TCP port of its hosts takes it"


def _summary(found: Sequence[Placement]) -> tuple[str, str]:
    """The worst place of several, and why."""
    for place in PLACES:
        mine = [placement for placement in found if placement.where == place]
        if mine:
            features = dict.fromkeys(feature for placement in mine for feature in placement.features)
            return place, "; ".join(features)
    return NOWHERE, ""


def _service(compiled: _Compiled, service: Service) -> Iterator[Rule]:
    for index, port in enumerate(service.ports):
        found = [
            placement
            for (kind, namespace, name, _), placements in compiled.placements.items()
            for placement in placements
            if placement.host == f"{service.hostname}:{port.number}"
            and (kind, namespace, name) == (service.kind, service.namespace, service.object or service.name)
        ]
        path = f"ports[{index}]"
        label = f"{port.number} {port.protocol}"
        where, why = _summary(found)
        if found and _not_captured(compiled, f"{service.hostname}:{port.number}"):
            where, why = NOWHERE, "no address of its own: connections are left alone"
        if found:
            yield Rule(path, index, label, service.source.line, where, why, tuple(found))
            continue
        ruled = _ruled_by(compiled, f"{service.hostname}:{port.number}")
        tcp = [_connection(compiled, address, port.number) for address in service.addresses]
        connections = [placement for placement in tcp if placement is not None]
        if ruled:
            where, why = ruled[0], f"by the rules of {ruled[1]}"
        elif connections:
            where, why = _summary(connections)
            why = why or "once, when it connects"
        elif port.protocol == "UDP":
            where, why = UNSUPPORTED, "UDP is left alone: datagrams go where Kubernetes sends them"
        elif refused := _refused(compiled, service, port.number):
            where, why = UNSUPPORTED, refused
        elif service.headless or is_wildcard(service.hostname):
            where, why = NOWHERE, "no address of its own: connections are left alone"
        else:
            where, why = NOWHERE, "no client of these files sees it"
        yield Rule(path, index, label, service.source.line, where, why, told=ruled is not None)


def _not_captured(compiled: _Compiled, host: str) -> bool:
    """Whether no client's connection can reach the rules of this host."""
    return any(item.kind == NOT_CAPTURED and item.name == host for item in compiled.rejections.values())


def _ruled_by(compiled: _Compiled, host: str) -> tuple[str, str] | None:
    for (kind, namespace, name, _), placements in compiled.placements.items():
        mine = [placement for placement in placements if placement.host == host]
        if mine:
            return _summary(mine)[0], f"{kind} {namespace}/{name}"
    return None


def _connection(compiled: _Compiled, address: str, port: int) -> Placement | None:
    return compiled.connections.get(f"{address}:{port}")


def _refused(compiled: _Compiled, service: Service, port: int) -> str:
    for rejection in compiled.rejections.values():
        if rejection.kind == "service" and rejection.name in {f"{address}:{port}" for address in service.addresses}:
            return f"{rejection.reason}: {rejection.effect}"
    return ""


_NOT_ENFORCED: Final = "the kernel does not enforce it yet; only an Envoy sidecar of this control plane would"


_TARGETED: Final = "enforced by the Envoys that it is for"


def _policy(config: Config, field: str, rules: Sequence[Any]) -> Iterator[Rule]:
    targeted = bool(target_refs(config))
    where, why = (GATEWAY, _TARGETED) if targeted else (UNSUPPORTED, _NOT_ENFORCED)
    for index in range(len(rules)):
        path = f"{field}[{index}]"
        yield Rule(path, index, "", config.line(path), where, why)
    if not rules:
        yield Rule("action", 0, "", config.line("action"), where, why)


def _peer(config: Config) -> Iterator[Rule]:
    modes = {"mtls": config.spec.mtls.mode}
    modes |= {f"portLevelMtls.{port}": item.mode for port, item in sorted(config.spec.port_level_mtls.items())}
    descriptor = config.spec.mtls.DESCRIPTOR.fields_by_name["mode"].enum_type
    for index, (path, mode) in enumerate(modes.items()):
        if descriptor.values_by_number[mode].name == "STRICT":
            why = "the kernel's wires carry plain text: a server that insists on mTLS refuses them"
            yield Rule(path, index, "STRICT", config.line(path), UNSUPPORTED, why)


# ---- problems ----


def _verdict_problems(done: Analysis) -> Iterator[Problem]:
    for verdict in done.verdicts:
        who = (verdict.kind, verdict.namespace, verdict.name)
        if verdict.state != "accepted":
            yield Problem(ERROR, verdict.code, verdict.file, verdict.line, *who, f"{verdict.state}: {verdict.reason}")
        for note in verdict.notes:
            if note.code == "not-enforced":
                continue  # an error here, rule by rule
            yield Problem(WARNING, note.code, verdict.file, note.line, *who, note.message)


def _idle(item: Judged, rule: Rule) -> bool:
    """Whether a rule does nothing and nobody has said so: what is never reached the control plane notes by itself."""
    alive = item.state == "accepted" and item.kind == "VirtualService"
    return alive and rule.where == NOWHERE and not rule.why.startswith(_NEVER)


def _rule_problems(objects: Iterable[Judged]) -> Iterator[Problem]:
    for item in objects:
        who = (item.kind, item.namespace, item.name)
        over: dict[str, list[Rule]] = {}
        for rule in item.rules:
            if rule.where == UNSUPPORTED and item.kind not in ("Service", "ServiceEntry"):
                yield Problem(ERROR, "unsupported", item.file, rule.line, *who, f"{rule.path}: {rule.why}")
            elif rule.where == UNSUPPORTED:
                yield Problem(WARNING, "unsupported", item.file, rule.line, *who, f"port {rule.name}: {rule.why}")
            elif any("capacity" in placement.features for placement in rule.placements):
                over.setdefault(rule.why.replace("capacity; ", "", 1), []).append(rule)
            elif rule.where == WAYPOINT and rule.placements:
                text = f"{rule.path} needs a waypoint ({rule.why}); where none is, its requests get a 503 that says so"
                yield Problem(WARNING, "needs-waypoint", item.file, rule.line, *who, text)
            elif _idle(item, rule):
                yield Problem(WARNING, "no-effect", item.file, rule.line, *who, f"{rule.path}: {rule.why}")
        for detail, rules in over.items():
            more = f" and {len(rules) - 1} more rules" if len(rules) > 1 else ""
            text = f"{rules[0].path}{more}: {detail}; their requests go to the home peer"
            yield Problem(ERROR, "over-capacity", item.file, rules[0].line, *who, text)


def _agent_problems(
    compiled: _Compiled, hosts: Mapping[str, str], states: Mapping[tuple[str, str, str], Any]
) -> Iterator[Problem]:
    for (kind, name), reason in sorted(compiled.refused.items()):
        yield Problem(ERROR, "refused-by-agents", "", 0, kind, "", name, f"agents refuse {kind} {name}: {reason}")
    for rejection in compiled.rejections.values():
        source = rejection.source
        if rejection.kind == NOT_CAPTURED:
            who = (source.kind, source.namespace, source.name) if source is not None else ("host", "", rejection.name)
            file, line = (source.file, source.line) if source is not None else ("", 0)
            text = f"{rejection.name}: {rejection.reason}: {rejection.effect}, so that its rules do not apply"
            yield Problem(WARNING, NOT_CAPTURED, file, line, *who, text)
            continue
        if rejection.kind == NOT_ENFORCED:
            continue  # told with the policy's own rules
        if rejection.kind == "route" or source is not None:
            continue  # told with its rule, or as an unknown host
        address, _, port = rejection.name.rpartition(":")
        name = f"{hosts[address]}:{port}" if address in hosts else rejection.name
        if rejection.kind == "service":
            continue  # told with the service's port
        text = f"{rejection.kind} {name}: {rejection.reason}; {rejection.effect}"
        yield Problem(ERROR, "over-capacity", "", 0, rejection.kind, "", name, text)
