"""Kubernetes Gateway API objects after conversion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from controlplane.model.identity import Meta
from controlplane.model.labels import Labels


@dataclass(frozen=True, slots=True)
class ParentRef:
    """What a route attaches to: a Service (mesh) or a Gateway, perhaps one port or listener of it."""

    kind: str
    namespace: str
    name: str
    section: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class BackendRef:
    """Where a rule sends requests: (kind, namespace, name, port, weight)."""

    kind: str
    namespace: str
    name: str
    port: int
    weight: int = 1
    headers: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class RouteRule:
    """One rule.  ``action`` is an Istio HTTPRoute without matches and destinations; ``matches`` are its match blocks.

    ``problem`` says why the rule can not be carried out: it then answers 500, as the API demands.
    """

    line: int
    matches: tuple[Any, ...]
    action: Any
    backends: tuple[BackendRef, ...]
    mirrors: tuple[tuple[BackendRef, float], ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class KubeRoute:
    """HTTPRoute, GRPCRoute, TLSRoute or TCPRoute."""

    meta: Meta
    parents: tuple[ParentRef, ...]
    hostnames: tuple[str, ...]
    rules: tuple[RouteRule, ...]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, KubeRoute)
            and (self.meta, self.parents, self.hostnames)
            == (
                other.meta,
                other.parents,
                other.hostnames,
            )
            and [_comparable(r) for r in self.rules] == [_comparable(r) for r in other.rules]
        )

    def __hash__(self) -> int:
        return hash(self.meta)


def _comparable(rule: RouteRule) -> tuple[Any, ...]:
    return (rule.line, list(rule.matches), rule.action, rule.backends, rule.mirrors, rule.problem)


@dataclass(frozen=True, slots=True)
class Listener:
    """One listener of a Gateway."""

    name: str
    port: int
    protocol: str
    hostname: str = ""
    tls_mode: str = ""
    has_certificates: bool = False
    from_namespaces: str = "Same"
    selector: Labels = ()
    line: int = 0


@dataclass(frozen=True, slots=True)
class KubeGateway:
    """``gateway.networking.k8s.io Gateway``."""

    meta: Meta
    class_name: str
    listeners: tuple[Listener, ...]


@dataclass(frozen=True, slots=True)
class KubeReferenceGrant:
    """``ReferenceGrant``: who may refer to what of its namespace."""

    meta: Meta
    sources: tuple[tuple[str, str], ...]
    targets: tuple[tuple[str, str], ...]


GatewayObject = KubeRoute | KubeGateway | KubeReferenceGrant
