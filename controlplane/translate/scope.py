"""What one kind of client may see: services, VirtualServices and DestinationRules after exportTo and Sidecar.  Pure.

Two clients with equal :class:`ScopeKey` see the same, so a scope is computed once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from controlplane.model.gateway_api import GATEWAY_NAME
from controlplane.model.hosts import is_wildcard, matches, specificity
from controlplane.model.labels import Labels, freeze, get, selects
from controlplane.model.mesh import Mesh, Service, fqdn, visible
from controlplane.model.node import Node
from controlplane.model.objects import Config, Key
from controlplane.translate import names


@dataclass(frozen=True, slots=True)
class ScopeKey:
    """The part of a node's identity on which its outbound view depends.

    ``labels`` holds only those labels that some rule of the mesh looks at.
    """

    type: str
    namespace: str
    domain: str
    labels: Labels
    generator: str
    mesh_certificates: bool
    interception: str
    locality: tuple[str, str, str]
    families: tuple[int, ...]
    cluster_id: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A DestinationRule as it counts for one host: same-host rules of a namespace merged.

    ``sources`` are the objects, the first gives the policy; ``subsets`` is in order of definition.
    """

    policy: Any
    subsets: tuple[Any, ...]
    sources: tuple[Config, ...]

    def subset(self, name: str) -> Any:
        """Return the subset of this name, or None."""
        for subset in self.subsets:
            if subset.name == name:
                return subset
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """A client's view of the mesh."""

    key: ScopeKey
    services: dict[str, Service]
    virtual_services: tuple[Config, ...]
    rules: dict[str, Rule] = field(default_factory=dict)
    allow_any: bool = True
    egress_proxy: Any = None
    sidecar: Config | None = None
    ports: tuple[int, ...] = ()
    #: Of a waypoint: names of the services that are bound to it.
    vips: frozenset[str] = frozenset()

    def cluster(self, hostname: str, port: int, subset: str = "", *, http: bool = True) -> str:
        """Name of the cluster that requests (or connections) for a host are sent to."""
        if hostname in self.vips:
            return names.vip(hostname, port, "http" if http else "tcp", subset)
        return names.cluster(hostname, port, subset)

    def service(self, host: str) -> Service | None:
        """Return the service of exactly this name."""
        return self.services.get(host)


def labels_depend_on(mesh: Mesh) -> tuple[object, ...]:
    """All that :func:`relevant_labels` looks at."""
    return (
        mesh.virtual_services,
        mesh.delegates,
        mesh.destination_rules,
        mesh.sidecars,
        mesh.telemetries,
        mesh.envoy_filters,
        mesh.gateways,
    )


def scope_depends_on(mesh: Mesh) -> tuple[object, ...]:
    """All that :func:`build_scope` looks at, besides the names of the domain and the root namespace."""
    return (*_services_depend_on(mesh), mesh.virtual_services, mesh.delegates)


def _services_depend_on(mesh: Mesh) -> tuple[object, ...]:
    return (mesh.services, mesh.destination_rules, mesh.sidecars, mesh.waypoints)


def relevant_labels(mesh: Mesh) -> frozenset[str]:
    """Label keys of clients that outbound configuration depends on."""
    keys: set[str] = set()
    for config in (*mesh.virtual_services, *mesh.delegates.values()):
        for rule in (*config.spec.http, *config.spec.tcp, *config.spec.tls):
            for block in rule.match:
                keys.update(block.source_labels)
    for config in mesh.destination_rules:
        keys.update(config.spec.workload_selector.match_labels)
        for policy in (config.spec.traffic_policy, *(subset.traffic_policy for subset in config.spec.subsets)):
            for level in (policy, *policy.port_level_settings):
                keys.update(
                    item.partition("=")[0] for item in level.load_balancer.locality_lb_setting.failover_priority
                )
    for config in mesh.sidecars:
        keys.update(config.spec.workload_selector.labels)
    for config in mesh.telemetries:
        keys.update(config.spec.selector.match_labels)
    for config in mesh.envoy_filters:
        keys.update(config.spec.workload_selector.labels)
    for config in mesh.gateways:
        keys.update(config.spec.selector)
    return frozenset(keys)


def scope_key(node: Node, relevant: frozenset[str], locality: tuple[str, str, str]) -> ScopeKey:
    """Reduce a node to what its outbound view depends on."""
    families = tuple(dict.fromkeys(6 if ":" in ip else 4 for ip in node.ips))
    return ScopeKey(
        type=node.type,
        namespace=node.namespace,
        domain=node.domain,
        # A gateway's own policies are part of what it is sent, so all of its labels count.
        labels=tuple(pair for pair in node.labels if node.type != "sidecar" or pair[0] in relevant),
        generator=node.generator,
        mesh_certificates=node.mesh_certificates,
        interception=node.interception,
        locality=locality,
        families=families or (4,),
        cluster_id=node.cluster_id,
    )


def build_scope(mesh: Mesh, key: ScopeKey, last: tuple[Mesh, Scope] | None = None) -> Scope:
    """Compute what a client of this kind sees.

    ``last`` is a mesh and what such a client saw of it.  It saves work and changes nothing: services and rules that are
    the same are the same tables again.
    """
    sidecar = _sidecar(mesh, key) if key.type == "sidecar" else None
    virtual = [config for config in mesh.virtual_services if _sees(config, key.namespace)]
    narrowed = sidecar is not None and bool(sidecar.spec.egress)
    known = last is not None and not narrowed and key.type != "waypoint" and _same_services(last[0], mesh)
    services: dict[str, Service] = last[1].services if known and last is not None else {}
    vips: frozenset[str] = frozenset()
    if not known:
        services = _visible_services(mesh, key.namespace)
    if sidecar is not None and narrowed:
        patterns = _egress(sidecar, key.namespace)
        virtual = [config for config in virtual if _imports_rule(patterns, config, mesh)]
        services = _imported(patterns, services, virtual, mesh)
    if key.type in ("sidecar", "waypoint"):
        virtual = [config for config in virtual if not config.spec.gateways or "mesh" in _gateways(config)]
    if key.type == "waypoint":
        virtual = [config for config in virtual if not config.gateway_api or "*" in config.spec.export_to]
        waypoint = mesh.waypoint(key.namespace, get(key.labels, GATEWAY_NAME))
        # A bound service is seen whoever it is exported to: its clients see it, and the waypoint stands for it.
        bound = set(waypoint.services) if waypoint is not None else set()
        services.update({item.hostname: item for item in mesh.services if (item.namespace, item.hostname) in bound})
        vips = frozenset(hostname for _, hostname in bound)
    if known and last is not None:
        rules = last[1].rules
    else:
        services = dict(sorted(services.items()))
        index = RuleIndex(mesh, key)
        rules = {host: rule for host in services if (rule := index.find(services[host])) is not None}
    policy = sidecar.spec.outbound_traffic_policy if sidecar is not None else None
    explicit = policy is not None and sidecar is not None and sidecar.spec.HasField("outbound_traffic_policy")
    return Scope(
        key=key,
        services=services,
        virtual_services=tuple(virtual),
        rules=rules,
        allow_any=bool(policy.mode == 1) if explicit and policy is not None else True,
        egress_proxy=policy.egress_proxy
        if explicit and policy is not None and policy.HasField("egress_proxy")
        else None,
        sidecar=sidecar,
        vips=vips,
    )


def _same_services(last: Mesh, mesh: Mesh) -> bool:
    parts = zip(_services_depend_on(last), _services_depend_on(mesh), strict=True)
    return all(old is new for old, new in parts) and last.root_namespace == mesh.root_namespace


def _visible_services(mesh: Mesh, namespace: str) -> dict[str, Service]:
    """Services by name that a namespace may see; of several with one name, the one that it prefers."""
    seen: dict[str, Service] = {}
    for service in mesh.services:
        if service.visible_from(namespace):
            rival = seen.get(service.hostname)
            if rival is None or _preference(service, namespace) < _preference(rival, namespace):
                seen[service.hostname] = service
    return seen


def _gateways(config: Config) -> set[str]:
    """Gateways that a VirtualService is bound to, those of its match blocks included."""
    names = set(config.spec.gateways)
    for rule in (*config.spec.http, *config.spec.tcp, *config.spec.tls):
        for block in rule.match:
            names.update(block.gateways)
    return names


def _sees(config: Config, namespace: str) -> bool:
    return visible(tuple(config.spec.export_to), config.meta.key.namespace, namespace)


def _preference(service: Service, namespace: str) -> tuple[bool, bool, tuple[float, str, str]]:
    """Of several services with one name: the client's namespace first, then Kubernetes, then the older."""
    return (service.namespace != namespace, service.kind != "Service", service.age)


# ------------------------------------------------------------------------------------------------------ Sidecar
def _sidecar(mesh: Mesh, key: ScopeKey) -> Config | None:
    """Workload's own Sidecar, else the namespace's, else the root namespace's."""
    own = [config for config in mesh.sidecars if config.meta.key.namespace == key.namespace]
    for config in own:
        selector = freeze(config.spec.workload_selector.labels)
        if selector and selects(selector, key.labels):
            return config
    for config in own:
        if not config.spec.workload_selector.labels:
            return config
    for config in mesh.sidecars:
        if config.meta.key.namespace == mesh.root_namespace and not config.spec.workload_selector.labels:
            return config
    return None


def _egress(sidecar: Config, namespace: str) -> list[tuple[str, str]]:
    patterns: list[tuple[str, str]] = []
    for listener in sidecar.spec.egress:
        for text in listener.hosts:
            space, _, host = text.partition("/")
            patterns.append((namespace if space == "." else space, host))
    return patterns


def _imports(patterns: Iterable[tuple[str, str]], namespace: str, host: str) -> bool:
    return any(space in ("*", namespace) and (matches(name, host) or matches(host, name)) for space, name in patterns)


def _imports_rule(patterns: list[tuple[str, str]], config: Config, mesh: Mesh) -> bool:
    space = config.meta.key.namespace
    return any(_imports(patterns, space, fqdn(host, space, mesh.domain)) for host in config.spec.hosts)


def _imported(
    patterns: list[tuple[str, str]], seen: dict[str, Service], virtual: list[Config], mesh: Mesh
) -> dict[str, Service]:
    """Services that the Sidecar names, and the destinations of the VirtualServices that it names."""
    chosen = {name: item for name, item in seen.items() if _imports(patterns, item.namespace, name)}
    for config in virtual:
        for host in destinations(config, mesh):
            if host in seen:
                chosen.setdefault(host, seen[host])
    return chosen


def destinations(config: Config, mesh: Mesh) -> set[str]:
    """Hosts that a VirtualService sends traffic to, delegates followed."""
    space = config.meta.key.namespace
    found: set[str] = set()
    for rule in (*config.spec.http, *config.spec.tcp, *config.spec.tls):
        found.update(fqdn(route.destination.host, space, mesh.domain) for route in rule.route)
    for rule in config.spec.http:
        if rule.HasField("mirror"):
            found.add(fqdn(rule.mirror.host, space, mesh.domain))
        found.update(fqdn(mirror.destination.host, space, mesh.domain) for mirror in rule.mirrors)
        if rule.HasField("delegate"):
            other = mesh.delegates.get(Key("VirtualService", rule.delegate.namespace or space, rule.delegate.name))
            if other is not None:
                found.update(destinations(other, mesh))
    return found


# ---------------------------------------------------------------------------------------------- DestinationRules
class RuleIndex:
    """DestinationRules that one kind of client may see, by namespace and host."""

    def __init__(self, mesh: Mesh, key: ScopeKey) -> None:
        self._mesh = mesh
        self._key = key
        self._exact: dict[tuple[str, str], list[Config]] = {}
        self._wild: dict[str, dict[str, list[Config]]] = {}
        for config in mesh.destination_rules:
            space = config.meta.key.namespace
            if not _sees(config, key.namespace):
                continue
            host = fqdn(config.spec.host, space, mesh.domain)
            if is_wildcard(host):
                self._wild.setdefault(space, {}).setdefault(host, []).append(config)
            else:
                self._exact.setdefault((space, host), []).append(config)

    def find(self, service: Service) -> Rule | None:
        """The client's namespace, then the service's, then the root namespace; in each the most specific host.

        A rule whose workloadSelector picks the client goes before one without.
        """
        for space in dict.fromkeys((self._key.namespace, service.namespace, self._mesh.root_namespace)):
            found = self._find_in(space, service.hostname)
            if found is not None:
                return found
        return None

    def _find_in(self, space: str, hostname: str) -> Rule | None:
        candidates = [self._exact.get((space, hostname), [])]
        wild = self._wild.get(space, {})
        candidates.extend(wild[host] for host in sorted(wild, key=specificity) if matches(host, hostname))
        for configs in candidates:
            selected = [config for config in configs if _selected(config, space, self._key)]
            plain = [config for config in configs if not config.spec.workload_selector.match_labels]
            if selected:
                return _merge(selected[:1])
            if plain:
                return _merge(plain)
        return None


def _selected(config: Config, space: str, key: ScopeKey) -> bool:
    selector = freeze(config.spec.workload_selector.match_labels)
    return bool(selector) and space == key.namespace and selects(selector, key.labels)


def _merge(configs: list[Config]) -> Rule:
    """Merge rules for one host: subsets of all, the first of a name; the policy of the first that has one."""
    subsets: dict[str, Any] = {}
    policy: Any = None
    for config in configs:
        for subset in config.spec.subsets:
            subsets.setdefault(subset.name, subset)
        if policy is None and config.spec.HasField("traffic_policy"):
            policy = config.spec.traffic_policy
    return Rule(policy, tuple(subsets.values()), tuple(configs))
