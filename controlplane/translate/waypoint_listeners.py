"""A waypoint's listeners, with istiod's names: the tunnel's end, what is decided inside it, and the way out.  Pure.

``connect_terminate`` takes HBONE (HTTP/2 CONNECT in mutual TLS) and leaves in the connection's filter state where it
was going and who is at its other end; ``main_internal`` chooses by that address the chain of a service's port;
``connect_originate`` opens a tunnel to an endpoint that takes no other connections.  An address that leads to nothing
which is bound here finds no chain, and its connection is closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from controlplane.model.mesh import Port
from controlplane.translate import filters, names
from controlplane.translate.authorization import PEER_PRINCIPAL
from controlplane.translate.protection import Protection
from controlplane.translate.tls import server_mutual
from underpass.api import envoy

HBONE_PORT: Final = 15008
TERMINATE: Final = "connect_terminate"
MAIN: Final = "main_internal"
ORIGINATE: Final = "connect_originate"
#: What Envoy's original_dst filter reads in place of the socket's own addresses.
LOCAL: Final = "envoy.filters.listener.original_dst.local_ip"
_REMOTE: Final = "envoy.filters.listener.original_dst.remote_ip"
_LOCAL_PRINCIPAL: Final = "io.istio.local_principal"
_INPUTS: Final = "envoy.extensions.matching.common_inputs.network.v3"
_STATE: Final = "envoy.filters.http.set_filter_state"


@dataclass(frozen=True, slots=True)
class Chains:
    """Filter chains of one port of a service (port 0: of workloads' own addresses), by what is spoken on it.

    ``http`` and ``tcp`` are names of chains, empty where that is not spoken; both: it is found out by looking.
    """

    addresses: tuple[str, ...]
    port: int
    http: str
    tcp: str


def terminate(wildcard: str, trust_domain: str, *, certificates: bool, refuse: bool) -> Any:
    """The tunnel's end.  Without certificates it is in plain text, or (``refuse``) lets nobody in."""
    out = envoy.Listener(name=TERMINATE)
    out.address.socket_address.address, out.address.socket_address.port_value = wildcard, HBONE_PORT
    out.traffic_direction = 1  # INBOUND
    if refuse and not certificates:
        out.filter_chains.append(filters.chain([filters.tcp(names.BLACK_HOLE)], name="refused"))
        return out
    socket = server_mutual(trust_domain) if certificates else None
    out.filter_chains.append(filters.chain([_tunnel_end()], name="default", socket=socket, slow=certificates))
    return out


def _tunnel_end() -> Any:
    route = envoy.Route(match={"connect_matcher": {}})
    route.route.cluster = MAIN
    route.route.upgrade_configs.add(upgrade_type="CONNECT").connect_config.SetInParent()
    host = envoy.VirtualHost(name="default", domains=["*"], routes=[route])
    state: Any = envoy.message("envoy.extensions.filters.http.set_filter_state.v3.Config")()
    for key, factory, text in (
        (LOCAL, "", "%REQ(:AUTHORITY)%"),
        (_REMOTE, "", "%DOWNSTREAM_REMOTE_ADDRESS%"),
        (PEER_PRINCIPAL, "envoy.string", "%DOWNSTREAM_PEER_URI_SAN%"),
        (_LOCAL_PRINCIPAL, "envoy.string", "%DOWNSTREAM_LOCAL_URI_SAN%"),
    ):
        value = state.on_request_headers.add(
            object_key=key, factory_key=factory, shared_with_upstream="ONCE", skip_if_empty=True
        )
        value.format_string.text_format_source.inline_string = text
    manager = envoy.HttpConnectionManager(
        stat_prefix=TERMINATE,
        route_config={"name": "default", "virtual_hosts": [host], "validate_clusters": {"value": False}},
        http_filters=[
            envoy.HttpFilter(name=_STATE, typed_config=envoy.pack_any(state)),
            envoy.HttpFilter(name="envoy.filters.http.router", typed_config=envoy.pack_any(envoy.Router())),
        ],
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
        stream_idle_timeout={},
        use_remote_address={"value": False},
        forward_client_cert_details="SANITIZE",
    )
    manager.http2_protocol_options.allow_connect = True
    return envoy.Filter(name=names.HCM, typed_config=envoy.pack_any(manager))


def http_chain(name: str, configuration: Any, rules: Protection, *, tunnels: bool = False) -> Any:
    """Requests are routed by ``configuration``; ``tunnels``: into a tunnel to where the connection was going."""
    before = [_onward()] if tunnels else []
    return filters.chain([*before, filters.waypoint_http(f"{name};", configuration, rules.http)], name=name)


def tcp_chain(name: str, forward: Any, rules: Protection, *, tunnels: bool = False) -> Any:
    """A chain whose bytes are forwarded; ``tunnels`` as above."""
    before = [_onward()] if tunnels else []
    return filters.chain([*before, *rules.tcp, forward], name=name)


def _onward() -> Any:
    """Tell the next listener inside where the connection was going, as the tunnel's end told this one."""
    state: Any = envoy.message("envoy.extensions.filters.network.set_filter_state.v3.Config")()
    value = state.on_new_connection.add(object_key=LOCAL, shared_with_upstream="ONCE")
    value.format_string.text_format_source.inline_string = "%DOWNSTREAM_LOCAL_ADDRESS%"
    return envoy.Filter(name="envoy.filters.network.set_filter_state", typed_config=envoy.pack_any(state))


def main_internal(listed: Sequence[Chains], made: Mapping[str, Any]) -> Any:
    """The listener inside: a chain is found by address, then port, then by what is spoken."""
    out = envoy.Listener(name=MAIN)
    out.internal_listener.SetInParent()
    out.listener_filters.append(filters.original_destination())
    sniffed = {item.port for item in listed if item.http and item.tcp}
    declared = sorted({item.port for item in listed} - sniffed - {0})
    if sniffed:
        # A server that speaks first would wait for a client that does not.
        out.listener_filters.append(filters.http_inspector(filters.disabled_on(declared) if 0 not in sniffed else None))
        out.continue_on_listener_filters_timeout = True
    out.filter_chains.extend(made[name] for name in sorted(made))
    by_address: dict[str, dict[int, Chains]] = {}
    for item in listed:
        for address in item.addresses:
            by_address.setdefault(address, {}).setdefault(item.port, item)
    if by_address:
        out.filter_chain_matcher.CopyFrom(_by_address(by_address))
    return out


def originate() -> Any:
    """The way into an endpoint's tunnel: the connection's own address, once more, is what it asks for."""
    out = envoy.Listener(name=ORIGINATE)
    out.internal_listener.SetInParent()
    out.listener_filters.append(filters.original_destination())
    proxy = envoy.TcpProxy(stat_prefix=ORIGINATE, cluster=ORIGINATE)
    proxy.tunneling_config.hostname = "%DOWNSTREAM_LOCAL_ADDRESS%"
    forward = envoy.Filter(name=names.TCP_PROXY, typed_config=envoy.pack_any(proxy))
    out.filter_chains.append(filters.chain([forward], name=ORIGINATE))
    return out


# --------------------------------------------------------------------------------------------------------- matching
def _by_address(table: Mapping[str, Mapping[int, Chains]]) -> Any:
    matcher = envoy.message("xds.type.matcher.v3.IPMatcher")
    trees: Any = matcher()
    groups: dict[tuple[tuple[int, str, str], ...], list[str]] = {}
    for address in sorted(table):
        ports = tuple((port, item.http, item.tcp) for port, item in sorted(table[address].items()))
        groups.setdefault(ports, []).append(address)
    for ports, addresses in groups.items():
        one = trees.range_matchers.add()
        for address in addresses:
            one.ranges.add(address_prefix=address, prefix_len={"value": 128 if ":" in address else 32})
        one.on_match.CopyFrom(_by_port(ports))
    out: Any = _matcher()
    out.matcher_tree.input.CopyFrom(_extension("ip", f"{_INPUTS}.DestinationIPInput"))
    out.matcher_tree.custom_match.name = "ip"
    out.matcher_tree.custom_match.typed_config.CopyFrom(envoy.pack_any(trees))
    return out


def _by_port(ports: Iterable[tuple[int, str, str]]) -> Any:
    """What happens at one address; port 0 is for all ports."""
    listed = list(ports)
    if len(listed) == 1 and listed[0][0] == 0:
        return _by_protocol(listed[0][1], listed[0][2])
    out: Any = _matcher()
    out.matcher_tree.input.CopyFrom(_extension("port", f"{_INPUTS}.DestinationPortInput"))
    for port, http, tcp in listed:
        if port:
            out.matcher_tree.exact_match_map.map[str(port)].CopyFrom(_by_protocol(http, tcp))
        else:
            out.on_no_match.CopyFrom(_by_protocol(http, tcp))
    return _nested(out)


def _by_protocol(http: str, tcp: str) -> Any:
    if not (http and tcp):
        return _chain_named(http or tcp)
    out: Any = _matcher()
    out.matcher_tree.input.CopyFrom(_extension("protocol", f"{_INPUTS}.ApplicationProtocolInput"))
    for spoken in filters.PLAIN_HTTP:
        out.matcher_tree.exact_match_map.map[f"'{spoken}'"].CopyFrom(_chain_named(http))
    out.on_no_match.CopyFrom(_chain_named(tcp))
    return _nested(out)


def _matcher() -> Any:
    return envoy.message("xds.type.matcher.v3.Matcher")()


def _nested(matcher: Any) -> Any:
    return envoy.message("xds.type.matcher.v3.Matcher.OnMatch")(matcher=matcher)


def _chain_named(name: str) -> Any:
    out: Any = envoy.message("xds.type.matcher.v3.Matcher.OnMatch")()
    out.action.name = name
    out.action.typed_config.CopyFrom(envoy.pack_any(envoy.message("google.protobuf.StringValue")(value=name)))
    return out


def _extension(name: str, kind: str) -> Any:
    out: Any = envoy.message("xds.core.v3.TypedExtensionConfig")(name=name)
    out.typed_config.CopyFrom(envoy.pack_any(envoy.message(kind)()))
    return out


def protocols(port: Port) -> tuple[bool, bool]:
    """Whether HTTP, and whether bytes, are forwarded on a service's port."""
    return port.is_http or port.protocol == "AUTO", not port.is_http
