"""Objects in force to a mesh, with what can only be said about them together.  Pure; input order does not matter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from controlplane.model import targets, telemetry
from controlplane.model.gateway_api import Combined, combine
from controlplane.model.gateway_objects import KubeGateway, KubeReferenceGrant, KubeRoute
from controlplane.model.hosts import is_wildcard, matches
from controlplane.model.labels import freeze
from controlplane.model.mesh import Mesh, Service, fqdn, visible
from controlplane.model.objects import Config, Key, KubeNamespace, Object
from controlplane.model.providers import resolve
from controlplane.model.registry import Registry, Remembered, collect
from controlplane.model.verdict import Note
from controlplane.model.waypoints import bind


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
    for the whole mesh live.  ``previous`` is what the last mesh remembers; it saves work and changes nothing.
    """
    registry = collect(objects, domain, previous)
    by_kind: dict[str, list[Config]] = defaultdict(list)
    for item in objects.values():
        if isinstance(item, Config):
            by_kind[item.meta.key.kind].append(item)
    for configs in by_kind.values():
        configs.sort(key=lambda config: config.meta.age)
    combined = _gateway_api(objects, registry, domain)
    virtual = [*combined.rules, *(config for config in by_kind["VirtualService"] if config.spec.hosts)]
    delegates = {config.meta.key: config for config in by_kind["VirtualService"] if not config.spec.hosts}
    settings = next((c for c in by_kind["ConfigMap"] if c.meta.key.namespace == root_namespace), None)
    providers = resolve(settings, registry.services)
    bound = bind(objects, registry.services, registry.members)
    mesh = Mesh(
        services=tuple(registry.services),
        endpoints=registry.endpoints,
        workloads=registry.workloads,
        members=tuple(registry.members),
        targets=registry.targets,
        virtual_services=tuple(virtual),
        delegates=delegates,
        destination_rules=tuple(by_kind["DestinationRule"]),
        gateways=(*by_kind["Gateway"], *combined.gateways),
        sidecars=tuple(by_kind["Sidecar"]),
        envoy_filters=tuple(by_kind["EnvoyFilter"]),
        peer_authentications=tuple(by_kind["PeerAuthentication"]),
        authorization_policies=tuple(by_kind["AuthorizationPolicy"]),
        request_authentications=tuple(by_kind["RequestAuthentication"]),
        providers=providers.usable,
        waypoints=bound.waypoints,
        telemetries=tuple(by_kind["Telemetry"]),
        settings=settings,
        trust_domain=trust_domain,
        domain=domain,
        root_namespace=root_namespace,
    )
    review = _Review(mesh)
    notes = defaultdict(list, registry.notes)
    for key, remarks in combined.notes.items():
        notes[key].extend(remarks)
    for key, found in review.notes.items():
        notes[key].extend(found)
    for key, note in (
        *bound.notes,
        *targets.review(mesh, objects),
        *telemetry.review(mesh.telemetries, settings),
    ):
        notes[key].append(note)
    for config in by_kind["ConfigMap"]:
        if config is settings:
            notes[config.meta.key].extend(
                Note(config.line("data.mesh"), "unusable-provider", f"{path}: {why}: policies that name it refuse all")
                for path, why in providers.problems
            )
        else:
            text = f"only the ConfigMap of namespace {root_namespace} is read: no effect"
            notes[config.meta.key].append(Note(config.line("data.mesh"), "no-effect", text))
    return Built(
        mesh,
        {key: tuple(sorted(set(found))) for key, found in notes.items() if found},
        review.shadowed,
        registry.remembered,
    )


def _gateway_api(objects: Mapping[Key, Object], registry: Registry, domain: str) -> Combined:
    ports = {
        (service.namespace, service.object): frozenset(port.number for port in service.ports)
        for service in registry.services
        if service.kind == "Service"
    }
    namespaces = {
        item.meta.key.name: freeze({"kubernetes.io/metadata.name": item.meta.key.name, **dict(item.meta.labels)})
        for item in objects.values()
        if isinstance(item, KubeNamespace)
    }
    mine = [item for item in objects.values() if isinstance(item, KubeRoute | KubeGateway | KubeReferenceGrant)]
    return combine(mine, ports, namespaces, domain)


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
            return
        for service in self._services.get(host, []):
            for index, subset in enumerate(rule.spec.subsets):
                wanted = dict(subset.labels)
                if not wanted or service.resolution == "PASSTHROUGH":
                    continue
                pools = [self._mesh.endpoints_of(service, port.number) for port in service.ports]
                if any(pools) and not any(
                    all(dict(endpoint.labels).get(k) == v for k, v in wanted.items())
                    for pool in pools
                    for endpoint in pool
                ):
                    self._note(
                        rule,
                        f"subsets[{index}]",
                        "empty-subset",
                        f"no endpoint of {host} has the labels of subset {subset.name!r}",
                    )

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
