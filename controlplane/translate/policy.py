"""Which traffic policy counts for one cluster: a DestinationRule's levels resolved by Istio's rules of override.  Pure.

A subset overrides the host block by block.  A port level replaces the host's (or subset's) whole policy for that port:
what it does not set falls to the defaults, not to the level above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from controlplane.translate.scope import Rule


@dataclass(frozen=True, slots=True)
class Policy:
    """The blocks in force for one cluster; None where nobody said anything."""

    load_balancer: Any = None
    connection_pool: Any = None
    outlier_detection: Any = None
    tls: Any = None
    tunnel: Any = None
    proxy_protocol: Any = None
    retry_budget: Any = None


_BLOCKS = ("load_balancer", "connection_pool", "outlier_detection", "tls")
_TOP = ("tunnel", "proxy_protocol", "retry_budget")


def _level(policy: Any, name: str) -> Any:
    return getattr(policy, name) if policy is not None and policy.HasField(name) else None


def _port_level(policy: Any, port: int) -> Any:
    if policy is not None:
        for level in policy.port_level_settings:
            if level.port.number == port:
                return level
    return None


def resolve(rule: Rule | None, port: int, subset: str = "") -> Policy:
    """Resolve the policy for ``port`` of the rule's host, in ``subset`` if one is given."""
    if rule is None:
        return Policy()
    base = rule.policy
    chosen = rule.subset(subset) if subset else None
    own = chosen.traffic_policy if chosen is not None and chosen.HasField("traffic_policy") else None
    values: dict[str, Any] = {name: _level(base, name) for name in (*_BLOCKS, *_TOP)}
    level = _port_level(base, port)
    if level is not None:
        values.update({name: _level(level, name) for name in _BLOCKS})
    if own is not None:
        values.update({name: found for name in (*_BLOCKS, *_TOP) if (found := _level(own, name)) is not None})
        level = _port_level(own, port)
        if level is not None:
            values.update({name: _level(level, name) for name in _BLOCKS})
    return Policy(**values)


def hash_of(rule: Rule | None, port: int, subset: str) -> Any:
    """Return the consistent-hash settings for a destination, or None when its load balancer is of another kind."""
    balancer = resolve(rule, port, subset).load_balancer
    if balancer is not None and balancer.WhichOneof("lb_policy") == "consistent_hash":
        return balancer.consistent_hash
    return None
