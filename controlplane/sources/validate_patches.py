"""EnvoyFilter: what istiod refuses, and what has no effect here.  Pure.

What a patch's value says is Envoy's matter; :mod:`controlplane.translate.patches` judges it.
"""

from __future__ import annotations

from typing import Any, Final

from controlplane.model.objects import Config
from controlplane.sources.findings import Findings
from controlplane.sources.validate_tokens import targets, whole_proxies

_INSERTS: Final = ("INSERT_BEFORE", "INSERT_AFTER", "INSERT_FIRST")
_MERGES: Final = ("MERGE", "MERGE_AND_REPLACE_LIST")
_FILTERS: Final = frozenset({*_MERGES, *_INSERTS, "ADD", "REMOVE", "REPLACE"})
#: What can be done to what.
OPERATIONS: Final = {
    "LISTENER": frozenset({*_MERGES, "ADD", "REMOVE"}),
    "FILTER_CHAIN": frozenset({*_MERGES, "ADD", "REMOVE"}),
    "NETWORK_FILTER": _FILTERS,
    "HTTP_FILTER": _FILTERS,
    "LISTENER_FILTER": _FILTERS,
    "ROUTE_CONFIGURATION": frozenset(_MERGES),
    "VIRTUAL_HOST": frozenset({*_MERGES, "ADD", "REMOVE"}),
    "HTTP_ROUTE": frozenset({*_MERGES, *_INSERTS, "ADD", "REMOVE"}),
    "CLUSTER": frozenset({*_MERGES, "ADD", "REMOVE"}),
}
#: Of no effect; :mod:`controlplane.sources.support` says so.
_ELSEWHERE: Final = ("BOOTSTRAP", "EXTENSION_CONFIG")
_MATCHES: Final = {
    "listener": ("LISTENER", "FILTER_CHAIN", "NETWORK_FILTER", "HTTP_FILTER", "LISTENER_FILTER"),
    "route_configuration": ("ROUTE_CONFIGURATION", "VIRTUAL_HOST", "HTTP_ROUTE"),
    "cluster": ("CLUSTER",),
}


def envoy_filter(config: Config, out: Findings) -> None:
    """Check an EnvoyFilter."""
    spec = config.spec
    targets(config, out)
    whole_proxies(config, out)
    out.note("envoys-only", "for Envoys of this control plane; workloads of underpass-agent get the rules without it")
    if not spec.config_patches:
        out.note("no-effect", "no configPatches")
    for index, patch in enumerate(spec.config_patches):
        _patch(patch, f"configPatches[{index}]", out)


def _enum(message: Any, field: str) -> str:
    values = message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number
    return str(values[getattr(message, field)].name)


def _patch(item: Any, path: str, out: Findings) -> None:
    kind, operation = _enum(item, "apply_to"), _enum(item.patch, "operation")
    if kind in _ELSEWHERE:
        return
    allowed = OPERATIONS.get(kind)
    if allowed is None:
        out.error("bad-patch", "applyTo is missing", path)
    elif operation not in allowed:
        what = "patch.operation is missing" if operation == "INVALID" else f"{operation} can not be done to a {kind}"
        out.error("bad-patch", f"{what}; possible are {', '.join(sorted(allowed))}", path)
    elif operation != "REMOVE" and not item.patch.value.fields:
        out.error("bad-patch", f"{operation} needs patch.value", path)
    match = item.match
    chosen = match.WhichOneof("object_types")
    if chosen == "waypoint":
        out.error("unsupported-match", "match.waypoint is not known here; use match.listener and its like", path)
    elif chosen is not None and kind not in _MATCHES[chosen]:
        out.error("bad-match", f"a {kind} is not matched by {chosen}", f"{path}.match")
    if match.proxy.proxy_version:
        out.regex(match.proxy.proxy_version, f"{path}.match.proxy.proxyVersion")
    if match.proxy.metadata:
        out.error("unsupported-match", "match.proxy.metadata is not judged here", f"{path}.match")
    if match.listener.port_name or match.route_configuration.port_name:
        out.error("unsupported-match", "portName is not judged here; use portNumber", path)
    if match.route_configuration.gateway:
        out.error("unsupported-match", "routeConfiguration.gateway is not judged here; use its name", path)
    chain = match.listener.filter_chain
    if (
        kind == "HTTP_FILTER"
        and chain.filter.name
        and chain.filter.name != "envoy.filters.network.http_connection_manager"
    ):
        out.error("bad-match", "HTTP filters are in a filter envoy.filters.network.http_connection_manager", path)
    if chain.transport_socket:
        out.error("unsupported-match", "filterChain.transportSocket is not judged here; use transportProtocol", path)
