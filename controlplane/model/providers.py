"""Extension providers of the mesh configuration: services that authorization asks.  Pure.

They are declared in ``extensionProviders`` of the ConfigMap ``istio`` in the root namespace, and named by policies of
action CUSTOM.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from controlplane.model.mesh import Provider, Service
from controlplane.model.objects import Config


@dataclass(frozen=True, slots=True)
class Providers:
    """The providers by name, and why the others cannot be asked (field path and reason)."""

    usable: Mapping[str, Provider] = field(default_factory=dict)
    problems: tuple[tuple[str, str], ...] = ()


def resolve(settings: Config | None, services: Iterable[Service]) -> Providers:
    """Find each provider's service; ``settings`` is the mesh's configuration, if there is one."""
    usable: dict[str, Provider] = {}
    problems: list[tuple[str, str]] = []
    if settings is None:
        return Providers()
    known = list(services)
    for index, item in enumerate(settings.spec.extension_providers):
        kind = item.WhichOneof("provider")
        if kind not in ("envoy_ext_authz_http", "envoy_ext_authz_grpc"):
            continue  # a log's, or of a kind that has no effect here; conversion said so
        spec = getattr(item, kind)
        found = _find(spec.service, known)
        if isinstance(found, str):
            problems.append((f"extensionProviders[{index}]", found))
        elif found.port(spec.port) is None:
            problems.append((f"extensionProviders[{index}]", f"{found.hostname} has no port {spec.port}"))
        else:
            usable[item.name] = Provider(item.name, found.hostname, spec.port, spec)
    return Providers(usable, tuple(problems))


def _find(reference: str, services: Iterable[Service]) -> Service | str:
    """The service of ``[NAMESPACE/]HOST``, or why there is none."""
    space, slash, host = reference.partition("/")
    if not slash:
        space, host = "", reference
    found = [item for item in services if item.hostname == host and space in ("", item.namespace)]
    if not found:
        return f"there is no service {reference}"
    if len(found) > 1:
        spaces = ", ".join(sorted(item.namespace for item in found))
        return f"{host} is a service of several namespaces ({spaces}): write NAMESPACE/{host}"
    return found[0]
