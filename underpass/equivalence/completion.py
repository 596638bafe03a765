"""What YAML files leave out and a mesh has: addresses, services that only rules name, clients that rules ask for.

Manifests hold Deployments rather than Pods and Services without addresses; whoever judges them without a cluster
fills that in as a cluster would (pure).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Final

from controlplane.analyze import Analysis
from controlplane.model.hosts import is_wildcard, matches
from controlplane.model.labels import freeze
from controlplane.model.mesh import Mesh, Port, Service, fqdn
from controlplane.model.node import Node
from controlplane.model.objects import Config, SourceRef

#: Services without an address get one of these for the judgement, as the lab or Kubernetes would give them one.
_FIRST_VIP: Final = int(ip_address("198.18.0.1"))


def complete(mesh: Mesh) -> tuple[Mesh, list[str]]:
    """The mesh with an address for each service, and with the services that rules name but nobody defines.

    Only the question "where does this rule run" is asked of it; that a host is unknown is told from the mesh as it is.
    """
    services = list(mesh.services)
    names = {service.hostname for service in services}
    patterns = [name for name in names if is_wildcard(name)]
    wanted: dict[str, tuple[str, SourceRef, set[int]]] = {}
    for config in (*mesh.virtual_services, *mesh.delegates.values()):
        space = config.meta.key.namespace
        for host, port in _named_hosts(config):
            full = fqdn(host, space, mesh.domain)
            if is_wildcard(full) or full in names or any(matches(pattern, full) for pattern in patterns):
                continue
            entry = wanted.setdefault(full, (_namespace(full, mesh.domain) or space, config.meta.source, set()))
            entry[2].add(port or 80)
    for host, (namespace, source, ports) in sorted(wanted.items()):
        made = tuple(Port(f"http-{number}", number, "HTTP") for number in sorted(ports))
        name = host.partition(".")[0]
        services.append(Service(host, namespace, name, "Service", source, 0.0, made, ()))
    spare = iter(range(_FIRST_VIP, _FIRST_VIP + len(services)))
    addressed = [
        service
        if service.addresses or service.headless or is_wildcard(service.hostname)
        else replace(service, addresses=(str(ip_address(next(spare))),))
        for service in sorted(services, key=lambda s: (s.hostname, s.namespace))
    ]
    return replace(mesh, services=tuple(addressed)), sorted(wanted)


def _named_hosts(config: Config) -> Iterator[tuple[str, int]]:
    spec = config.spec
    mesh_bound = not spec.gateways or "mesh" in spec.gateways
    if mesh_bound:
        yield from ((host, 0) for host in spec.hosts if not _is_ip(host))
    for rules in (spec.http, spec.tls, spec.tcp):
        for rule in rules:
            for route in rule.route:
                yield route.destination.host, route.destination.port.number


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _namespace(host: str, domain: str) -> str:
    """The namespace in `name.namespace.svc.domain`."""
    parts = host.removesuffix(f".svc.{domain}").split(".")
    return parts[1] if host.endswith(f".svc.{domain}") and len(parts) == 2 else ""


def clients(done: Analysis, mesh: Mesh) -> list[Node]:
    """The views of the files' own workloads, and one for each kind of client that a rule's match asks for.

    Manifests hold Deployments rather than Pods, and often neither; a rule for `sourceLabels` shall be judged all the
    same.
    """
    found = list(done.clients)
    asked: dict[tuple[str, tuple[tuple[str, str], ...]], None] = {}
    have = {(node.namespace, node.labels) for node in found}
    spaces = {node.namespace for node in found}
    for config in mesh.virtual_services:
        own = config.meta.key.namespace
        if own not in spaces:
            asked[own, ()] = None
        for rules in (config.spec.http, config.spec.tcp, config.spec.tls):
            for rule in rules:
                for match in rule.match:
                    if match.source_labels or match.source_namespace:
                        asked[match.source_namespace or own, freeze(dict(match.source_labels))] = None
    for namespace, labels in asked:
        if (namespace, labels) not in have:
            found.append(_client(namespace, labels, mesh.domain))
    return found


def _client(namespace: str, labels: tuple[tuple[str, str], ...], domain: str) -> Node:
    suffix = f"{namespace}.svc.{domain}"
    return Node(
        id=f"sidecar~192.0.2.1~client.{namespace}~{suffix}",
        type="sidecar",
        ips=("192.0.2.1",),
        name="client",
        namespace=namespace,
        domain=suffix,
        labels=labels,
    )
