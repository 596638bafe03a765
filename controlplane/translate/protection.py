"""All that is enforced in front of a workload or at a gateway: tokens, then policies on what they claim.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from controlplane.model.mesh import Mesh
from controlplane.translate import authorization, tokens
from controlplane.translate.scope import Scope
from controlplane.translate.targets import Spot


@dataclass(frozen=True, slots=True)
class Protection:
    """Filters to put before the router, and before the TCP proxy; and the clusters that they need."""

    http: tuple[Any, ...] = ()
    tcp: tuple[Any, ...] = ()
    clusters: Mapping[str, Any] = field(default_factory=dict)


def protection(mesh: Mesh, scope: Scope, spot: Spot) -> Protection:
    """Return what protects ``spot``, which a client of ``scope`` is."""
    rules = authorization.enforcement(mesh, spot)
    listed = tokens.rules(mesh, spot)
    checked = tokens.http_filter(listed, scope, reroute=scope.key.type != "sidecar")
    http = rules.http if checked is None else (checked, *rules.http)
    return Protection(http, rules.tcp, tokens.clusters(listed, scope))
