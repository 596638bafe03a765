"""AuthorizationPolicy and PeerAuthentication as ztunnel enforces them, ``istio.security.Authorization``.  Pure.

ztunnel sees connections, not requests.  What only HTTP has can not be judged by it: an ALLOW rule with such an
attribute is left out (and allows less), a DENY rule is taken without the attribute (and denies more), as in Istio.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from controlplane.model.labels import Labels, freeze, get, selects
from controlplane.model.mesh import Mesh
from controlplane.model.objects import Config
from controlplane.translate.authorization import ALLOW, AUDIT, CUSTOM, DENY
from controlplane.translate.peer import policies_by_level
from underpass.api import istio

Authorization: Any = istio.message("istio.security.Authorization")
_Group: Any = istio.message("istio.security.Group")
_Rules: Any = istio.message("istio.security.Rules")
_Match: Any = istio.message("istio.security.Match")

#: What a workload under strict mutual TLS refers to; an underscore is in no Kubernetes name.
STATIC_STRICT: Final = "istio_converted_static_strict"
_CONVERTED: Final = "converted_peer_authentication_"

_GLOBAL, _NAMESPACE, _WORKLOAD = range(3)
_NO_IDENTITY: Final[dict[str, Any]] = {"not_principals": [{"presence": {}}]}
_UNSET, _STRICT = 0, 3


class _NeverError(Exception):
    """An ALLOW rule that no connection can be known to satisfy."""


def policies(mesh: Mesh) -> dict[str, Any]:
    """All policies, by resource name ``namespace/name``: converted ones, and the one for strict mutual TLS."""
    found: dict[str, Any] = {}
    for policy in mesh.authorization_policies:
        made = authorization(policy, mesh)
        if made is not None:
            found[f"{made.namespace}/{made.name}"] = made
    for policy in mesh.peer_authentications:
        made = peer(policy, mesh)
        if made is not None:
            found[f"{made.namespace}/{made.name}"] = made
    static = Authorization(
        name=STATIC_STRICT,
        namespace=mesh.root_namespace,
        scope=_WORKLOAD,
        action=1,
        groups=[{"rules": [{"matches": [_NO_IDENTITY]}]}],
    )
    found[f"{static.namespace}/{static.name}"] = static
    return dict(sorted(found.items()))


def referred(mesh: Mesh, namespace: str, labels: Labels) -> list[str]:
    """Names of the policies that a workload must refer to, because they select it by labels."""
    chosen = sorted(
        f"{policy.meta.key.namespace}/{policy.meta.key.name}"
        for policy in mesh.authorization_policies
        if policy.meta.key.namespace in (namespace, mesh.root_namespace)
        and (selector := freeze(policy.spec.selector.match_labels))
        and selects(selector, labels)
        and _enforced(policy)
    )
    levels = policies_by_level(mesh, namespace, labels)
    own = levels.get(2)
    converted = [] if own is None else [f"{namespace}/{_CONVERTED}{own.meta.key.name}"]
    if own is not None and peer(own, mesh) is not None:
        return chosen + converted
    if _mode(levels.get(level) for level in (2, 1, 0)) == _STRICT:
        return [*chosen, f"{mesh.root_namespace}/{STATIC_STRICT}"]
    return chosen


def _enforced(policy: Config) -> bool:
    """Whether ztunnel is given the policy.

    One that only logs, or only would, has no effect there; one with a target is for that gateway or waypoint alone.
    """
    if policy.spec.HasField("target_ref") or policy.spec.target_refs:
        return False
    return policy.spec.action != AUDIT and get(policy.meta.annotations, "istio.io/dry-run") != "true"


def authorization(policy: Config, mesh: Mesh) -> Any | None:
    """An AuthorizationPolicy for ztunnel, or None where it has no effect."""
    if not _enforced(policy):
        return None
    key = policy.meta.key
    scope = _NAMESPACE
    if policy.spec.selector.match_labels:
        scope = _WORKLOAD
    elif key.namespace == mesh.root_namespace:
        scope = _GLOBAL
    made = Authorization(name=key.name, namespace=key.namespace, scope=scope)
    # ztunnel can ask nobody: what somebody else should have judged is refused, not let in.
    made.action = 1 if policy.spec.action in (DENY, CUSTOM) else 0
    for rule in policy.spec.rules:
        try:
            made.groups.append(_Group(rules=_Rule(key.namespace, mesh, policy.spec.action == ALLOW).clauses(rule)))
        except _NeverError:
            continue
    return made


class _Rule:
    """One rule of a policy: its operations, its sources and each of its conditions, all of which must hold."""

    def __init__(self, namespace: str, mesh: Mesh, allow: bool) -> None:
        self._namespace = namespace
        self._mesh = mesh
        self._allow = allow

    def clauses(self, rule: Any) -> list[Any]:
        """The rule's clauses. Raises :class:`_NeverError` for an ALLOW rule that can not be judged."""
        out = []
        if rule.to:
            out.append(_Rules(matches=[self._operation(item.operation) for item in rule.to]))
        sources = getattr(rule, "from")
        if sources:
            out.append(_Rules(matches=[self._source(item.source) for item in sources]))
        out.extend(_Rules(matches=[self._condition(item)]) for item in rule.when)
        return out

    def _operation(self, operation: Any) -> Any:
        self._unjudged(
            *(operation.hosts, operation.not_hosts, operation.methods, operation.not_methods),
            *(operation.paths, operation.not_paths),
        )
        match = _Match()
        self._fill(match, "destination_ports", _port, operation.ports, operation.not_ports)
        return match

    def _source(self, source: Any) -> Any:
        self._unjudged(
            *(source.request_principals, source.not_request_principals),
            *(source.remote_ip_blocks, source.not_remote_ip_blocks),
            *(source.trust_domains, source.not_trust_domains),
        )
        match = _Match()
        self._fill(match, "namespaces", _text, source.namespaces, source.not_namespaces)
        self._fill(match, "principals", self._principal, source.principals, source.not_principals)
        self._fill(match, "service_accounts", self._account, source.service_accounts, source.not_service_accounts)
        self._fill(match, "source_ips", _block, source.ip_blocks, source.not_ip_blocks)
        return match

    def _condition(self, condition: Any) -> Any:
        known: dict[str, tuple[str, Callable[[str], Any]]] = {
            "source.namespace": ("namespaces", _text),
            "source.principal": ("principals", self._principal),
            "source.serviceAccount": ("service_accounts", self._account),
            "source.ip": ("source_ips", _block),
            "destination.ip": ("destination_ips", _block),
            "destination.port": ("destination_ports", _port),
        }
        match = _Match()
        found = known.get(condition.key)
        if found is None:
            self._unjudged(condition.values, condition.not_values)
        else:
            self._fill(match, *found, condition.values, condition.not_values)
        return match

    def _unjudged(self, *fields: Sequence[str]) -> None:
        if self._allow and any(fields):
            raise _NeverError

    def _fill(
        self, match: Any, name: str, make: Callable[[str], Any], values: Iterable[str], excluded: Iterable[str]
    ) -> None:
        """Set a field and its negation. A value that makes no sense matches nothing, so it is left out."""
        wanted = list(values)
        made = [item for item in map(make, wanted) if item is not None]
        if self._allow and wanted and not made:
            raise _NeverError
        unwanted = [item for item in map(make, excluded) if item is not None]
        match.MergeFrom(_Match(**{name: made, f"not_{name}": unwanted}))

    def _principal(self, value: str) -> Any:
        """``cluster.local`` in a policy stands for the mesh's trust domain, whatever its name."""
        domain, slash, rest = value.partition("/")
        if slash and domain == "cluster.local":
            value = f"{self._mesh.trust_domain}/{rest}"
        return _text(value)

    def _account(self, value: str) -> Any:
        space, slash, name = value.partition("/")
        return (
            {"namespace": space, "serviceAccount": name}
            if slash
            else {
                "namespace": self._namespace,
                "serviceAccount": value,
            }
        )


def _text(value: str) -> Any:
    if value == "*":
        return {"presence": {}}
    if value.startswith("*"):
        return {"suffix": value[1:]}
    return {"prefix": value[:-1]} if value.endswith("*") else {"exact": value}


def _port(value: str) -> int | None:
    return int(value) if value.isascii() and value.isdigit() and len(value) < 6 and int(value) < 65536 else None


def _block(value: str) -> Any:
    try:
        block = ipaddress.ip_network(value, strict=False)
        # The address as it was written: ztunnel masks it by itself.
        address = ipaddress.ip_address(value.partition("/")[0])
    except ValueError:
        return None
    return {"address": address.packed, "length": block.prefixlen}


# ------------------------------------------------------------------------------------------------- PeerAuthentication
def _mode(levels: Iterable[Config | None]) -> int:
    """The mode of the first level that says one; 0 when nobody does, which is permissive."""
    for config in levels:
        if config is not None and config.spec.mtls.mode != _UNSET:
            return int(config.spec.mtls.mode)
    return _UNSET


def peer(policy: Config, mesh: Mesh) -> Any | None:
    """A workload's PeerAuthentication as a policy, where its ports differ from the rest; None where they do not.

    What is strict as a whole is :data:`STATIC_STRICT`. A workload that refers to this one does not refer to that.
    """
    key, spec = policy.meta.key, policy.spec
    if key.namespace == mesh.root_namespace or not spec.selector.match_labels or not spec.port_level_mtls:
        return None
    above = policies_by_level(mesh, key.namespace, ())
    strict = _mode((policy, above.get(1), above.get(0))) == _STRICT
    # An unset port inherits: it is no exception.
    ports = {number: int(item.mode) for number, item in sorted(spec.port_level_mtls.items()) if item.mode != _UNSET}
    groups: list[Any] = []
    if strict:
        exceptions = [{"matches": [{"not_destination_ports": [n]}]} for n, mode in ports.items() if mode != _STRICT]
        if exceptions:
            identity = {"matches": [_NO_IDENTITY]}
            own = spec.mtls.mode == _STRICT
            groups = [{"rules": [identity, *exceptions] if own else [*exceptions, identity]}]
    else:
        groups = [
            {"rules": [{"matches": [{**_NO_IDENTITY, "destination_ports": [number]}]}]}
            for number, mode in ports.items()
            if mode == _STRICT
        ]
    if not groups:
        return None
    return Authorization(
        name=f"{_CONVERTED}{key.name}", namespace=key.namespace, scope=_WORKLOAD, action=1, groups=groups
    )
