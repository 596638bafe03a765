"""Objects in force to a mesh, with what can only be said about them together.  Pure; input order does not matter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import is_
from typing import Any, Final, TypeVar

from controlplane.model import registry, targets, telemetry
from controlplane.model.gateway_api import Combined, combine
from controlplane.model.gateway_objects import KubeGateway, KubeReferenceGrant, KubeRoute
from controlplane.model.hosts import is_wildcard, matches
from controlplane.model.labels import freeze, selects
from controlplane.model.mesh import Endpoint, Mesh, Provider, Service, Waypoint, fqdn, visible
from controlplane.model.objects import Config, Key, KubeNamespace, Object
from controlplane.model.providers import resolve
from controlplane.model.registry import Registry, collect
from controlplane.model.tables import Changed, changes
from controlplane.model.verdict import Note
from controlplane.model.waypoints import Bound, bind

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the next :func:`build` may take over: the objects, what was made of them, and its parts."""

    objects: Mapping[Key, Object] = field(default_factory=dict)
    registry: registry.Remembered | None = None
    configs: Mapping[str, tuple[Config, ...]] = field(default_factory=dict)
    combined: Combined = field(default_factory=Combined)
    bound: Bound = field(default_factory=Bound)
    mesh: Mesh | None = None
    review: _Review | None = None
    subsets: Mapping[Key, _Subsets] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Built:
    """A mesh, remarks by object, and which objects another one shadows (with code and reason).

    ``remembered`` saves the next :func:`build` work.
    """

    mesh: Mesh
    notes: Mapping[Key, tuple[Note, ...]] = field(default_factory=dict)
    shadowed: Mapping[Key, tuple[str, str]] = field(default_factory=dict)
    remembered: Remembered = field(default_factory=Remembered)


def build(
    objects: Mapping[Key, Object],
    previous: Remembered | None = None,
    /,
    *,
    domain: str = "cluster.local",
    trust_domain: str = "cluster.local",
    root_namespace: str = "istio-system",
) -> Built:
    """Build the mesh of all ``objects``.

    ``domain`` completes short names; ``trust_domain`` is that of SPIFFE identities; ``root_namespace`` is where rules
    for the whole mesh live.  ``previous`` is what the last mesh remembers; it saves work and changes nothing: parts of
    the mesh whose objects are the same as then are the same objects again.
    """
    last = previous if previous is not None and previous.mesh is not None else Remembered()
    if last.mesh is not None and last.mesh.domain != domain:
        last = Remembered()
    changed = changes(last.objects, objects)
    found, remembered = collect(objects, domain, last.registry, changed if last.mesh is not None else None)
    configs = _configs(last.configs, changed)
    services_stand = last.mesh is not None and found.services is last.mesh.services
    combined = last.combined
    if last.mesh is None or not services_stand or any(item.concerns(*_GATEWAY_API) for item in changed):
        combined = _standing(last.combined, _gateway_api(objects, found, domain))
    bound = last.bound
    members_stand = last.mesh is not None and found.members is last.mesh.members
    if not services_stand or not members_stand or any(item.concerns(KubeGateway, KubeNamespace) for item in changed):
        bound = _same(last.bound, bind(objects, found.services, found.members))
    mesh = _mesh(last.mesh or Mesh(), configs, combined, found, bound.waypoints, domain, trust_domain, root_namespace)
    review = last.review
    if review is None or not review.holds(mesh):
        review = _Review(mesh)
    subsets = _subsets(mesh, review, last.subsets)
    notes = _notes(mesh, objects, configs, combined, bound, review, subsets, found)
    return Built(
        mesh,
        {key: tuple(sorted(set(remarks))) for key, remarks in notes.items() if remarks},
        review.shadowed,
        Remembered(objects, remembered, configs, combined, bound, mesh, review, subsets),
    )


def _configs(last: Mapping[str, tuple[Config, ...]], changed: Iterable[Changed]) -> Mapping[str, tuple[Config, ...]]:
    """Istio's objects by kind, oldest first; kinds of which nothing changed keep their tuple."""
    touched: dict[str, dict[Key, Config | None]] = defaultdict(dict)
    for item in changed:
        if item.concerns(Config):
            touched[item.key.kind][item.key] = item.new if isinstance(item.new, Config) else None
    if not touched:
        return last
    out = dict(last)
    for kind, items in touched.items():
        kept = [config for config in last.get(kind, ()) if config.meta.key not in items]
        fresh = [config for config in items.values() if config is not None]
        out[kind] = tuple(sorted([*kept, *fresh], key=lambda config: config.meta.age))
    return out


def _mesh(
    last: Mesh,
    configs: Mapping[str, tuple[Config, ...]],
    combined: Combined,
    found: Registry,
    waypoints: tuple[Waypoint, ...],
    domain: str,
    trust_domain: str,
    root_namespace: str,
) -> Mesh:
    """Put the mesh together; sequences that have the same members as in the last one are the same objects."""

    def of(kind: str) -> tuple[Config, ...]:
        return configs.get(kind, ())

    settings = next((c for c in of("ConfigMap") if c.meta.key.namespace == root_namespace), None)
    virtual = (*combined.rules, *(config for config in of("VirtualService") if config.spec.hosts))
    delegates = {config.meta.key: config for config in of("VirtualService") if not config.spec.hosts}
    providers: Mapping[str, Provider] = last.providers
    if settings is not last.settings or found.services is not last.services:
        providers = _same(last.providers, resolve(settings, found.services).usable)
    return Mesh(
        services=found.services,
        endpoints=found.endpoints,
        workloads=found.workloads,
        members=found.members,
        targets=found.targets,
        virtual_services=_same_objects(last.virtual_services, virtual),
        delegates=delegates if _differ(last.delegates, delegates) else last.delegates,
        destination_rules=of("DestinationRule"),
        gateways=_same_objects(last.gateways, (*of("Gateway"), *combined.gateways)),
        sidecars=of("Sidecar"),
        envoy_filters=of("EnvoyFilter"),
        peer_authentications=of("PeerAuthentication"),
        authorization_policies=of("AuthorizationPolicy"),
        request_authentications=of("RequestAuthentication"),
        providers=providers,
        waypoints=waypoints,
        telemetries=of("Telemetry"),
        settings=settings,
        trust_domain=trust_domain,
        domain=domain,
        root_namespace=root_namespace,
    )


def _same(last: _T, now: _T) -> _T:
    return last if last == now else now


def _same_objects(last: tuple[_T, ...], now: tuple[_T, ...]) -> tuple[_T, ...]:
    """*last* if *now* has the very same members."""
    return last if len(last) == len(now) and all(map(is_, last, now)) else now


def _differ(last: Mapping[Key, Config], now: Mapping[Key, Config]) -> bool:
    return len(last) != len(now) or any(last.get(key) is not config for key, config in now.items())


def _standing(last: Combined, now: Combined) -> Combined:
    """Combined rules are made anew each time; those that are as they were keep their objects."""

    def kept(before: tuple[Config, ...], after: tuple[Config, ...]) -> tuple[Config, ...]:
        known = {config.meta.key: config for config in before}
        return tuple(old if (old := known.get(config.meta.key)) == config else config for config in after)

    return replace(now, rules=kept(last.rules, now.rules), gateways=kept(last.gateways, now.gateways))


def _notes(
    mesh: Mesh,
    objects: Mapping[Key, Object],
    configs: Mapping[str, tuple[Config, ...]],
    combined: Combined,
    bound: Bound,
    review: _Review,
    subsets: Mapping[Key, _Subsets],
    found: Registry,
) -> Mapping[Key, list[Note]]:
    """All remarks, by object."""
    notes: dict[Key, list[Note]] = defaultdict(list)
    several: tuple[Mapping[Key, Iterable[Note]], ...] = (found.notes, combined.notes, review.notes)
    for source in several:
        for key, remarks in source.items():
            notes[key].extend(remarks)
    for key, known in subsets.items():
        notes[key].extend(known.notes)
    for key, note in (
        *bound.notes,
        *targets.review(mesh, objects),
        *telemetry.review(mesh.telemetries, mesh.settings),
    ):
        notes[key].append(note)
    for config in configs.get("ConfigMap", ()):
        if config is mesh.settings:
            notes[config.meta.key].extend(
                Note(config.line("data.mesh"), "unusable-provider", f"{path}: {why}: policies that name it refuse all")
                for path, why in resolve(config, mesh.services).problems
            )
        else:
            text = f"only the ConfigMap of namespace {mesh.root_namespace} is read: no effect"
            notes[config.meta.key].append(Note(config.line("data.mesh"), "no-effect", text))
    return notes


_GATEWAY_API: Final = (KubeRoute, KubeGateway, KubeReferenceGrant, KubeNamespace)


def _gateway_api(objects: Mapping[Key, Object], found: Registry, domain: str) -> Combined:
    mine = [item for item in objects.values() if isinstance(item, KubeRoute | KubeGateway | KubeReferenceGrant)]
    ports = {
        (service.namespace, service.object): frozenset(port.number for port in service.ports)
        for service in (found.services if mine else ())
        if service.kind == "Service"
    }
    namespaces = {
        item.meta.key.name: freeze({"kubernetes.io/metadata.name": item.meta.key.name, **dict(item.meta.labels)})
        for item in objects.values()
        if isinstance(item, KubeNamespace)
    }
    return combine(mine, ports, namespaces, domain)


@dataclass(frozen=True, slots=True)
class _Subsets:
    """Remarks on a rule's subsets, and the endpoints that they were made of."""

    rule: Config
    pools: tuple[tuple[Endpoint, ...], ...]
    notes: tuple[Note, ...]


def _subsets(mesh: Mesh, review: _Review, last: Mapping[Key, _Subsets]) -> Mapping[Key, _Subsets]:
    """Remarks on subsets that no endpoint belongs to; the only ones that depend on endpoints."""
    out: dict[Key, _Subsets] = {}
    for rule in mesh.destination_rules:
        if not rule.spec.subsets:
            continue
        host = fqdn(rule.spec.host, rule.meta.key.namespace, mesh.domain)
        services = [one for one in review.services(host) if one.resolution != "PASSTHROUGH"]
        grouped = [tuple(mesh.endpoints_of(one, port.number) for port in one.ports) for one in services]
        pools = tuple(pool for group in grouped for pool in group)
        known = last.get(rule.meta.key)
        if known is None or known.rule is not rule or not _same_pools(known.pools, pools):
            known = _Subsets(rule, pools, tuple(_empty(rule, host, grouped)))
        out[rule.meta.key] = known
    return out


def _same_pools(last: tuple[tuple[Endpoint, ...], ...], now: tuple[tuple[Endpoint, ...], ...]) -> bool:
    return len(last) == len(now) and all(map(is_, last, now))


def _empty(rule: Config, host: str, grouped: Iterable[tuple[tuple[Endpoint, ...], ...]]) -> Iterator[Note]:
    for pools in grouped:
        if not any(pools):
            continue
        for index, subset in enumerate(rule.spec.subsets):
            wanted = freeze(subset.labels)
            if wanted and not any(selects(wanted, endpoint.labels) for pool in pools for endpoint in pool):
                text = f"no endpoint of {host} has the labels of subset {subset.name!r}"
                yield Note(rule.line(f"subsets[{index}]"), "empty-subset", text)


def _reviewed(mesh: Mesh) -> tuple[object, ...]:
    return (
        mesh.services,
        mesh.virtual_services,
        mesh.delegates,
        mesh.destination_rules,
        mesh.authorization_policies,
        mesh.providers,
        mesh.domain,
        mesh.root_namespace,
    )


class _Review:
    """Looks for what an object says about others: hosts that nobody has, hosts that somebody else rules already."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.notes: dict[Key, list[Note]] = defaultdict(list)
        self.shadowed: dict[Key, tuple[str, str]] = {}
        self._services: dict[str, list[Service]] = defaultdict(list)
        for service in mesh.services:
            self._services[service.hostname].append(service)
        self._wildcards = [name for name in self._services if is_wildcard(name)]
        self._subsets: dict[str, set[str]] = defaultdict(set)
        for rule in mesh.destination_rules:
            host = fqdn(rule.spec.host, rule.meta.key.namespace, mesh.domain)
            self._subsets[host].update(subset.name for subset in rule.spec.subsets)
        self._virtual_services()
        self._delegates()
        for rule in mesh.destination_rules:
            self._destination_rule(rule)
        self._external_authorization()

    def holds(self, mesh: Mesh) -> bool:
        """Whether all that was looked at is in *mesh* as it was."""
        return all(map(is_, _reviewed(self._mesh), _reviewed(mesh)))

    def services(self, host: str) -> Sequence[Service]:
        """The services of exactly this name."""
        return self._services.get(host, ())

    def _known(self, host: str) -> bool:
        return host in self._services or any(matches(name, host) for name in self._wildcards)

    def _note(self, config: Config, path: str, code: str, message: str) -> None:
        self.notes[config.meta.key].append(Note(config.line(path), code, message))

    # ------------------------------------------------------------------------------------------ VirtualServices
    def _virtual_services(self) -> None:
        """The oldest VirtualService owns a host in the mesh; gateways merge instead."""
        owners: dict[str, list[Config]] = defaultdict(list)
        for config in self._mesh.virtual_services:
            if not config.gateway_api:  # those have remarks of their own
                self._destinations(config)
            if config.spec.gateways and "mesh" not in config.spec.gateways:
                continue
            lost: list[tuple[str, Config]] = []
            for host in config.spec.hosts:
                name = fqdn(host, config.meta.key.namespace, self._mesh.domain)
                rival = next((other for other in owners[name] if self._covers(other, config)), None)
                if rival is not None:
                    lost.append((name, rival))
                owners[name].append(config)
            if not lost:
                continue
            name, rival = lost[0]
            text = f"{name}: {rival.meta.key} ({rival.meta.source}) is older and rules this host"
            if config.gateway_api:
                continue
            if len(lost) == len(config.spec.hosts) and not config.spec.gateways:
                self.shadowed[config.meta.key] = ("duplicate-host", text)
            else:
                for name, rival in lost:
                    self._note(
                        config,
                        "hosts",
                        "duplicate-host",
                        f"{name}: {rival.meta.key} ({rival.meta.source}) is older and rules this host in the mesh",
                    )

    @staticmethod
    def _covers(older: Config, newer: Config) -> bool:
        """Whether every client that sees ``newer`` sees ``older`` too."""
        old, new = tuple(older.spec.export_to), tuple(newer.spec.export_to)
        if not old or "*" in old:
            return True
        if not new or "*" in new:
            return False
        spaces = {newer.meta.key.namespace if item == "." else item for item in new}
        return all(visible(old, older.meta.key.namespace, space) for space in spaces)

    def _destinations(self, config: Config) -> None:
        spec = config.spec
        for kind, rules in (("http", spec.http), ("tls", spec.tls), ("tcp", spec.tcp)):
            for index, rule in enumerate(rules):
                path = f"{kind}[{index}]"
                for number, route in enumerate(rule.route):
                    self._destination(config, route.destination, f"{path}.route[{number}]")
                if kind != "http":
                    continue
                if rule.HasField("mirror"):
                    self._destination(config, rule.mirror, f"{path}.mirror")
                for number, mirror in enumerate(rule.mirrors):
                    self._destination(config, mirror.destination, f"{path}.mirrors[{number}]")
                if rule.HasField("delegate"):
                    space = rule.delegate.namespace or config.meta.key.namespace
                    if Key("VirtualService", space, rule.delegate.name) not in self._mesh.delegates:
                        self._note(
                            config,
                            f"{path}.delegate",
                            "unknown-delegate",
                            f"there is no delegate VirtualService {space}/{rule.delegate.name} (one without hosts): "
                            "the rule has no effect",
                        )

    def _destination(self, config: Config, destination: Any, path: str) -> None:
        """destination: a Destination of istio.networking; messages made from descriptors have no static types."""
        host = fqdn(destination.host, config.meta.key.namespace, self._mesh.domain)
        subset: str = destination.subset
        number: int = destination.port.number
        if not self._known(host):
            self._note(
                config,
                path,
                "unknown-host",
                f"no service {host!r}: requests that take this route are answered with 503",
            )
            return
        services = self._services.get(host, [])
        if number and services and not any(service.port(number) for service in services):
            self._note(
                config,
                path,
                "unknown-port",
                f"{host} has no port {number}: requests that take this route are answered with 503",
            )
        if subset and subset not in self._subsets.get(host, set()):
            self._note(
                config,
                path,
                "unknown-subset",
                f"no DestinationRule for {host} defines subset {subset!r}: requests that take this route are answered "
                "with 503",
            )

    def _delegates(self) -> None:
        used = {
            Key("VirtualService", rule.delegate.namespace or config.meta.key.namespace, rule.delegate.name)
            for config in self._mesh.virtual_services
            for rule in config.spec.http
            if rule.HasField("delegate")
        }
        for key, config in self._mesh.delegates.items():
            self._destinations(config)
            if key not in used:
                self._note(config, "", "no-hosts", "no hosts, and no other VirtualService delegates to it: no effect")

    # ----------------------------------------------------------------------------------------- DestinationRules
    def _destination_rule(self, rule: Config) -> None:
        host = fqdn(rule.spec.host, rule.meta.key.namespace, self._mesh.domain)
        if not is_wildcard(host) and not self._known(host):
            self._note(rule, "host", "unknown-host", f"no service {host!r}: the rule has no effect")

    # ---------------------------------------------------------------------------------- external authorization
    def _external_authorization(self) -> None:
        """Policies that ask somebody who cannot be asked; then everything is refused, and that must be said."""
        asking: dict[str, list[Config]] = defaultdict(list)
        for policy in self._mesh.authorization_policies:
            name = policy.spec.provider.name
            if not name:
                continue
            asking[policy.meta.key.namespace].append(policy)
            if name not in self._mesh.providers:
                text = (
                    f"the mesh configuration (ConfigMap istio of {self._mesh.root_namespace}) has no usable external "
                    f"authorizer {name!r}: everything that reaches the policy's workloads is refused"
                )
                self._note(policy, "provider", "unknown-provider", text)
        everywhere = asking.get(self._mesh.root_namespace, [])
        for space, policies in asking.items():
            together = policies if space == self._mesh.root_namespace else [*policies, *everywhere]
            names = sorted({policy.spec.provider.name for policy in together})
            if len(names) > 1:
                for policy in policies:
                    text = (
                        f"one provider can be asked for a workload; those that {' and '.join(names)} are to be asked "
                    )
                    self._note(policy, "provider", "several-providers", f"{text}about refuse everything")
