"""What istiod refuses beyond the schema, kind by kind.  Pure.

The rules are Istio's (its validation package); the words are ours.  Rules about other objects (an unknown host in a
route, two VirtualServices for one host) are not here: they depend on the whole mesh and are notes of
:mod:`controlplane.model.build`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from controlplane.model.objects import Config
from controlplane.model.verdict import Note
from controlplane.sources.findings import Findings
from controlplane.sources.validate_destination import destination_rule
from controlplane.sources.validate_patches import envoy_filter
from controlplane.sources.validate_registry import service_entry, workload_entry
from controlplane.sources.validate_scope import (
    authorization_policy,
    gateway,
    peer_authentication,
    sidecar,
)
from controlplane.sources.validate_telemetry import telemetry
from controlplane.sources.validate_tokens import request_authentication
from controlplane.sources.validate_virtual import virtual_service

_CHECKS: Final[Mapping[str, Callable[[Config, Findings], None]]] = {
    "VirtualService": virtual_service,
    "DestinationRule": destination_rule,
    "ServiceEntry": service_entry,
    "WorkloadEntry": workload_entry,
    "Gateway": gateway,
    "Sidecar": sidecar,
    "AuthorizationPolicy": authorization_policy,
    "PeerAuthentication": peer_authentication,
    "EnvoyFilter": envoy_filter,
    "Telemetry": telemetry,
    "RequestAuthentication": request_authentication,
}


def validate(config: Config) -> list[Note]:
    """Return remarks on a usable object; raise :class:`RejectedError` for one that is not."""
    findings = Findings(config)
    check = _CHECKS.get(config.meta.key.kind)
    if check is not None:
        check(config, findings)
    return findings.finish()
