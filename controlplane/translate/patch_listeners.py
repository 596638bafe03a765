"""Patches of EnvoyFilters carried out on one listener, route configuration or cluster.  Pure.

Each function returns the same object where nothing applies, a patched copy, or None where the resource is removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from controlplane.translate import names
from controlplane.translate.patch_parts import Patch, edit
from controlplane.translate.resources import Message
from underpass.api import envoy

_OF_LISTENERS: Final = frozenset({"LISTENER", "FILTER_CHAIN", "NETWORK_FILTER", "HTTP_FILTER", "LISTENER_FILTER"})
_OF_ROUTES: Final = frozenset({"ROUTE_CONFIGURATION", "VIRTUAL_HOST", "HTTP_ROUTE"})
_INBOUND: Final = 1
_ACTIONS: Final = {1: "route", 2: "redirect", 3: "direct_response"}
#: Listeners of a waypoint that are plumbing: patched only by name.
_PLUMBING: Final = frozenset({"connect_terminate", "connect_originate"})


@dataclass(frozen=True, slots=True)
class Context:
    """Which of Istio's contexts a resource is in."""

    name: str

    @classmethod
    def of(cls, kind: str, url: str, message: Message) -> Context:
        """The context of a resource that a client of node type ``kind`` is sent."""
        if kind in ("router", "waypoint"):
            return cls("GATEWAY" if kind == "router" else "WAYPOINT")
        inbound = False
        if url == names.LISTENER:
            inbound = message.traffic_direction == _INBOUND
        elif url == names.CLUSTER:
            inbound = message.name.startswith("inbound|") or message.name == names.INBOUND_PASSTHROUGH
        return cls("SIDECAR_INBOUND" if inbound else "SIDECAR_OUTBOUND")

    def fits(self, patch: Patch) -> bool:
        """Whether a patch is for this context."""
        return patch.context in ("ANY", self.name)


# -------------------------------------------------------------------------------------------------------- listeners
def patch_listener(message: Message, patches: Sequence[Patch], context: Context) -> Message | None:
    """Carry out everything that concerns a listener, the routes inside it included."""
    mine = [patch for patch in patches if context.fits(patch)]
    out: Any = None
    for patch in mine:
        if (patch.kind in _OF_LISTENERS and patch.operation != "ADD") or patch.kind in _OF_LISTENERS - {"LISTENER"}:
            if not _is_listener(out or message, patch):
                continue
            if patch.kind == "LISTENER" and patch.operation == "REMOVE":
                return None
            out = out or _copy(message)
            _listener(out, patch)
    routes = [patch for patch in mine if patch.kind in _OF_ROUTES]
    if routes:
        out = out or _copy(message)
        for chain in _chains(out):
            _inline_routes(chain, routes, context)
    return message if out is None or out == message else out


def _is_listener(message: Any, patch: Patch) -> bool:
    match = patch.match.listener
    if match.name:
        return bool(match.name == message.name)
    if message.name in _PLUMBING:
        return False
    port = message.address.socket_address.port_value
    if not match.port_number or match.port_number == port:
        return True
    if patch.kind == "LISTENER":
        return False
    # What a workload listens on is one listener with a chain for each port.
    return any(chain.filter_chain_match.destination_port.value == match.port_number for chain in message.filter_chains)


def _chains(message: Any) -> list[Any]:
    return [
        *message.filter_chains,
        *([message.default_filter_chain] if message.HasField("default_filter_chain") else []),
    ]


def _listener(message: Any, patch: Patch) -> None:
    match = patch.match.listener
    if patch.kind == "LISTENER":
        patch.merge_into(message)
    elif patch.kind == "LISTENER_FILTER":
        wanted = match.listener_filter
        edit(message.listener_filters, patch, lambda item: not wanted or item.name == wanted, named=bool(wanted))
    elif patch.kind == "FILTER_CHAIN":
        edit(message.filter_chains, patch, lambda chain: _is_chain(chain, message, patch), named=False)
        default = message.default_filter_chain
        if patch.merges and message.HasField("default_filter_chain") and _is_chain(default, message, patch):
            patch.merge_into(default)
    else:
        for chain in _chains(message):
            if _is_chain(chain, message, patch):
                _filters(chain, patch)


def _is_chain(chain: Any, message: Any, patch: Patch) -> bool:
    port, match = patch.match.listener.port_number, patch.match.listener.filter_chain
    found = chain.filter_chain_match
    if port and port not in (message.address.socket_address.port_value, found.destination_port.value):
        return False
    spoken = [text.strip() for text in match.application_protocols.split(",") if text.strip()]
    return (
        match.name in ("", chain.name)
        and (not match.sni or match.sni in found.server_names)
        and match.transport_protocol in ("", found.transport_protocol)
        and set(spoken) <= set(found.application_protocols)
        and (not match.destination_port or match.destination_port == found.destination_port.value)
    )


def _filters(chain: Any, patch: Patch) -> None:
    wanted = patch.match.listener.filter_chain.filter
    if patch.kind == "NETWORK_FILTER":
        named = bool(wanted.name)
        edit(chain.filters, patch, lambda item: not named or item.name == wanted.name, named=named, terminal=True)
        return
    sub = wanted.sub_filter.name
    for item in chain.filters:
        manager = _manager(item)
        if manager is not None:
            edit(manager.http_filters, patch, lambda one: not sub or one.name == sub, named=bool(sub), terminal=True)
            item.typed_config.CopyFrom(envoy.pack_any(manager))


def _manager(item: Any) -> Any:
    url = item.typed_config.type_url
    return (
        envoy.HttpConnectionManager.FromString(item.typed_config.value)
        if url.endswith("HttpConnectionManager")
        else None
    )


def _inline_routes(chain: Any, patches: Sequence[Patch], context: Context) -> None:
    for item in chain.filters:
        manager = _manager(item)
        if manager is not None and manager.HasField("route_config"):
            made = patch_routes(manager.route_config, patches, context)
            if made is not manager.route_config and made is not None:
                manager.route_config.CopyFrom(made)
                item.typed_config.CopyFrom(envoy.pack_any(manager))


# ------------------------------------------------------------------------------------------------------------ routes
def patch_routes(message: Message, patches: Sequence[Patch], context: Context) -> Message | None:
    """Carry out everything that concerns a route configuration."""
    out: Any = None
    for patch in patches:
        if patch.kind not in _OF_ROUTES or not context.fits(patch) or not _is_configuration(message, patch):
            continue
        out = out or _copy(message)
        vhost = patch.match.route_configuration.vhost
        if patch.kind == "ROUTE_CONFIGURATION":
            patch.merge_into(out)
        elif patch.kind == "VIRTUAL_HOST":
            edit(out.virtual_hosts, patch, partial(_is_host, match=vhost), named=False)
        else:
            named = bool(vhost.route.ListFields())
            for host in out.virtual_hosts:
                if _is_host(host, vhost):
                    edit(host.routes, patch, partial(_is_route, match=vhost.route), named=named)
    return message if out is None or out == message else out


def _is_configuration(message: Any, patch: Patch) -> bool:
    match = patch.match.route_configuration
    if match.name:
        return bool(match.name == message.name)
    return not match.port_number or match.port_number == port_of(message.name)


def port_of(name: str) -> int:
    """The port in a route configuration's name: ``80``, ``http.80``, ``https.443.x``, ``host:80``, ``inbound|80||``."""
    for mark, index in (("|", 1), (":", -1), (".", 1)):
        parts = name.split(mark)
        if len(parts) > 1 and parts[index].isdigit():
            return int(parts[index])
    return int(name) if name.isdigit() else 0


def _is_host(host: Any, match: Any) -> bool:
    return match.name in ("", host.name) and (not match.domain_name or match.domain_name in host.domains)


def _is_route(route: Any, match: Any) -> bool:
    action = _ACTIONS.get(match.action)
    return match.name in ("", route.name) and (action is None or route.WhichOneof("action") == action)


# ---------------------------------------------------------------------------------------------------------- clusters
def patch_cluster(message: Message, patches: Iterable[Patch], context: Context) -> Message | None:
    """Carry out everything that concerns a cluster."""
    out: Any = None
    for patch in patches:
        if patch.kind != "CLUSTER" or patch.operation == "ADD" or not context.fits(patch):
            continue
        if not _is_cluster(message.name, patch.match.cluster):
            continue
        if patch.operation == "REMOVE":
            return None
        out = out or _copy(message)
        patch.merge_into(out)
    return message if out is None or out == message else out


def _is_cluster(name: str, match: Any) -> bool:
    if match.name:
        return bool(match.name == name)
    if not (match.service or match.port_number or match.subset):
        return True
    parts = name.split("|")
    if len(parts) != 4:
        return False
    subset = parts[2].partition("/")[2] if parts[0] == "inbound-vip" else parts[2]
    return (
        match.service in ("", parts[3])
        and (not match.port_number or str(match.port_number) == parts[1])
        and match.subset in ("", subset)
    )


def _copy(message: Any) -> Any:
    out = type(message)()
    out.CopyFrom(message)
    return out
