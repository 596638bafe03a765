"""Istio Gateways for clients of node type ``router``: a listener for each port, virtual hosts for each host.  Pure.

Servers that need a secret by ``credentialName`` are left out: this control plane serves no secrets yet, and a listener
that waits for one for ever would hold up the others.  The analysis says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from controlplane.model.hosts import is_wildcard, matches
from controlplane.model.labels import freeze, selects
from controlplane.model.mesh import Mesh, fqdn
from controlplane.model.objects import Config
from controlplane.translate import filters, names
from controlplane.translate.outbound import forward_filter, listener_name
from controlplane.translate.protection import Protection
from controlplane.translate.route_match import is_catch_all
from controlplane.translate.routes import Place, metadata, virtual_service_routes
from controlplane.translate.scope import Scope
from controlplane.translate.tls import CIPHERS, TLS_SOCKET
from controlplane.translate.virtual_hosts import ATTEMPT_COUNT, configuration
from underpass.api import envoy

PASSTHROUGH, SIMPLE, MUTUAL, AUTO_PASSTHROUGH, ISTIO_MUTUAL, OPTIONAL_MUTUAL = range(6)
_VERSIONS: Final = {0: "TLS_AUTO", 1: "TLSv1_0", 2: "TLSv1_1", 3: "TLSv1_2", 4: "TLSv1_3"}
_HTTP: Final = frozenset({"HTTP", "HTTP2", "GRPC", "GRPC-WEB"})


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """One server of a Gateway that selects this client."""

    gateway: Config
    index: int
    server: Any
    port: int

    @property
    def name(self) -> str:
        """``namespace/name`` of the Gateway."""
        key = self.gateway.meta.key
        return f"{key.namespace}/{key.name}"

    @property
    def protocol(self) -> str:
        """Protocol of the port, upper case."""
        return str(self.server.port.protocol).upper()

    @property
    def terminates(self) -> bool:
        """Whether this proxy ends TLS."""
        return self.protocol in ("HTTPS", "TLS") and self.server.tls.mode not in (PASSTHROUGH, AUTO_PASSTHROUGH)

    @property
    def is_http(self) -> bool:
        """Whether requests are routed."""
        return self.protocol in _HTTP or (self.protocol == "HTTPS" and self.terminates)

    @property
    def route(self) -> str:
        """Name of its route configuration."""
        key = self.gateway.meta.key
        number = self.server.port.number
        if self.terminates:
            return f"https.{number}.{self.server.port.name}.{key.name}.{key.namespace}"
        return f"http.{number}"


def lacks_secret(server: Any) -> bool:
    """Whether a server needs a certificate that nobody can give it."""
    tls = server.tls
    named = tls.credential_name or tls.credential_names
    return bool(named) or tls.mode == ISTIO_MUTUAL


def servers(scope: Scope, mesh: Mesh) -> list[Served]:
    """Return the servers of all Gateways that select this client, the oldest Gateway first."""
    out: list[Served] = []
    for config in mesh.gateways:
        if not selects(freeze(config.spec.selector), scope.key.labels):
            continue
        for index, server in enumerate(config.spec.servers):
            made = Served(config, index, server, _listen_port(server.port, scope, mesh))
            if not (made.terminates and lacks_secret(server)):
                out.append(made)
    return out


def _listen_port(port: Any, scope: Scope, mesh: Mesh) -> int:
    """A gateway listens on the target port of its own Service, where one maps this port."""
    for service in mesh.services:
        if service.namespace != scope.key.namespace or not service.selector:
            continue
        if not selects(service.selector, scope.key.labels) or service.port(port.number) is None:
            continue
        for endpoint in mesh.endpoints_of(service, port.number):
            return endpoint.port
    return int(port.target_port or port.number)


def resources(scope: Scope, mesh: Mesh, rules: Protection) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return listeners, behind what protects the gateway, and route configurations."""
    listeners: dict[str, Any] = {}
    routes: dict[str, list[Served]] = {}
    by_port: dict[tuple[str, int], list[Served]] = {}
    wildcard = names.WILDCARD[scope.key.families[0]]
    for item in servers(scope, mesh):
        by_port.setdefault((item.server.bind or wildcard, item.port), []).append(item)
        if item.is_http:
            routes.setdefault(item.route, []).append(item)
    for (address, port), items in by_port.items():
        name = listener_name(address, port)
        listener = _listener(name, address, port, items, scope, mesh, rules)
        if listener.filter_chains:
            listeners[name] = listener
    rds = {name: _configuration(name, items, scope, mesh) for name, items in routes.items()}
    return listeners, rds


# ---------------------------------------------------------------------------------------------------- listeners
def _listener(
    name: str, address: str, port: int, items: list[Served], scope: Scope, mesh: Mesh, rules: Protection
) -> Any:
    out = envoy.Listener(
        name=name,
        address={"socket_address": {"address": address, "port_value": port}},
        traffic_direction="OUTBOUND",
        max_connections_to_accept_per_socket_event={"value": 1},
    )
    plain = [item for item in items if item.protocol in _HTTP]
    if plain:
        out.filter_chains.append(
            filters.chain([filters.gateway_http(name, plain[0].route, filters=rules.http)], slow=True)
        )
    seen: set[tuple[str, ...]] = set()
    for item in items:
        for chain in _chains(item, name, scope, mesh, rules):
            key = tuple(chain.filter_chain_match.server_names)
            if key in seen or (plain and not key):
                continue  # two servers on one port with the same hosts: the older keeps them
            seen.add(key)
            out.filter_chains.append(chain)
    if any(item.protocol in ("HTTPS", "TLS") for item in items):
        out.listener_filters.append(filters.tls_inspector())
    return out


def _chains(item: Served, name: str, scope: Scope, mesh: Mesh, rules: Protection) -> Iterable[Any]:
    if item.protocol in _HTTP:
        return
    if item.is_http:
        match = _sni_match(item.server.hosts)
        yield filters.chain(
            [filters.gateway_http(name, item.route, filters=rules.http)],
            match=match,
            socket=_server_tls(item.server.tls, http=True),
            slow=True,
        )
    elif item.protocol in ("HTTPS", "TLS") and not item.terminates:
        yield from _l4(item, "tls", scope, mesh, None, rules)
    elif item.protocol == "TLS":
        yield from _l4(item, "tcp", scope, mesh, _server_tls(item.server.tls, http=False), rules)
    else:
        yield from _l4(item, "tcp", scope, mesh, None, rules)


def _bare(host: str) -> str:
    return host.partition("/")[2] if "/" in host else host


def _sni_match(hosts: Iterable[str]) -> Any:
    bare = [_bare(host) for host in hosts]
    return None if "*" in bare else envoy.FilterChainMatch(server_names=sorted(set(bare)))


def _server_tls(tls: Any, *, http: bool) -> Any:
    """Terminate TLS with certificates from files."""
    common = envoy.CommonTlsContext(
        alpn_protocols=["h2", "http/1.1"] if http else [],
        tls_params=envoy.message("envoy.extensions.transport_sockets.tls.v3.TlsParameters")(
            tls_minimum_protocol_version=_VERSIONS[tls.min_protocol_version or 3],
            tls_maximum_protocol_version=_VERSIONS[tls.max_protocol_version],
            cipher_suites=list(tls.cipher_suites) or CIPHERS,
            ecdh_curves=list(tls.ecdh_curves),
        ),
    )
    pairs = [(cert.server_certificate, cert.private_key) for cert in tls.tls_certificates]
    for certificate, key in pairs or [(tls.server_certificate, tls.private_key)]:
        common.tls_certificates.add(certificate_chain={"filename": certificate}, private_key={"filename": key})
    context = envoy.DownstreamTlsContext(
        common_tls_context=common, require_client_certificate={"value": tls.mode == MUTUAL}
    )
    if tls.mode in (MUTUAL, OPTIONAL_MUTUAL):
        validation = context.common_tls_context.validation_context
        validation.trusted_ca.filename = tls.ca_certificates
        validation.verify_certificate_spki.extend(tls.verify_certificate_spki)
        validation.verify_certificate_hash.extend(tls.verify_certificate_hash)
        if tls.ca_crl:
            validation.crl.filename = tls.ca_crl
        matcher = envoy.message("envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher")
        validation.match_typed_subject_alt_names.extend(
            matcher(san_type="URI" if "://" in san else "DNS", matcher={"exact": san}) for san in tls.subject_alt_names
        )
    return envoy.TransportSocket(name=TLS_SOCKET, typed_config=envoy.pack_any(context))


def _l4(item: Served, kind: str, scope: Scope, mesh: Mesh, socket: Any, rules: Protection) -> Iterable[Any]:
    """Chains of tls (by SNI) or tcp rules of the VirtualServices bound to this server."""
    for config in _bound(item, scope):
        place = _place(item, config)
        hosts = _shared_hosts(item, config, mesh)
        if not hosts:
            continue
        for index, rule in enumerate(getattr(config.spec, kind)):
            blocks = [block for block in rule.match if _l4_applies(block, place)]
            if rule.match and not blocks:
                continue
            forward = forward_filter(rule, config, scope, mesh, item.server.port.number)
            for block in blocks or [None]:
                wanted = list(block.sni_hosts) if kind == "tls" and block is not None else []
                match = envoy.FilterChainMatch(server_names=[name for name in wanted if name != "*"])
                if socket is not None and not match.server_names:
                    match = _sni_match(item.server.hosts) or match
                found = match if match.ListFields() else None
                chain = filters.chain([*rules.tcp, forward], match=found, socket=socket, slow=True)
                key = config.meta.key
                chain.metadata.CopyFrom(
                    metadata(
                        key.kind,
                        key.namespace,
                        key.name,
                        index,
                        config.meta.source.file,
                        config.line(f"{kind}[{index}]"),
                        istio=True,
                    )
                )
                yield chain


def _l4_applies(block: Any, place: Place) -> bool:
    if block.port and block.port != place.port:
        return False
    return not block.gateways or any(name in place.gateways for name in block.gateways)


# -------------------------------------------------------------------------------------------------- virtual hosts
def _bound(item: Served, scope: Scope) -> list[Config]:
    """VirtualServices that name this Gateway, from namespaces that its hosts admit, the oldest first."""
    key = item.gateway.meta.key
    out: list[Config] = []
    for config in scope.virtual_services:
        space = config.meta.key.namespace
        wanted = set(config.spec.gateways)
        if item.name in wanted or (key.namespace == space and key.name in wanted):
            out.append(config)
    return out


def _place(item: Served, config: Config) -> Place:
    key = item.gateway.meta.key
    known = {item.name}
    if config.meta.key.namespace == key.namespace:
        known.add(key.name)
    return Place(int(item.server.port.number), frozenset(known), tls=item.terminates)


def _admits(scope_text: str, gateway_namespace: str, namespace: str) -> bool:
    return scope_text in ("", "*", namespace) or (scope_text == "." and gateway_namespace == namespace)


def _shared_hosts(item: Served, config: Config, mesh: Mesh) -> list[str]:
    """Hosts that the server and the VirtualService have in common: the narrower of each pair."""
    space = config.meta.key.namespace
    out: set[str] = set()
    for text in item.server.hosts:
        left, slash, right = text.partition("/")
        pattern, admitted = (right, left) if slash else (left, "")
        if not _admits(admitted, item.gateway.meta.key.namespace, space):
            continue
        for host in config.spec.hosts:
            name = fqdn(host, space, mesh.domain)
            if matches(pattern, name):
                out.add(name)
            elif is_wildcard(name) and matches(name, pattern):
                out.add(pattern)
    return sorted(out)


def _configuration(name: str, items: list[Served], scope: Scope, mesh: Mesh) -> Any:
    routes: dict[str, list[Any]] = {}
    redirects: set[str] = set()
    for item in items:
        if item.server.tls.https_redirect:
            redirects.update(_bare(host) for host in item.server.hosts)
        for config in _bound(item, scope):
            hosts = _shared_hosts(item, config, mesh)
            made = virtual_service_routes(config, scope, mesh, _place(item, config)) if hosts else []
            for host in hosts:
                if made:
                    routes.setdefault(host, []).extend(made)
    port = int(items[0].server.port.number)
    for host in redirects:
        if not any(matches(host, other) for other in routes):
            routes[host] = []
    out: list[Any] = []
    for host in sorted(routes):
        virtual = envoy.VirtualHost(
            name=names.domain(host, port),
            domains=[host],
            routes=_catch_all_last(routes[host]),
            include_request_attempt_count=ATTEMPT_COUNT,
        )
        if any(matches(pattern, host) for pattern in redirects):
            virtual.require_tls = 2  # ALL
        out.append(virtual)
    if not out:
        out.append(envoy.VirtualHost(name=f"blackhole:{port}", domains=["*"]))
    return configuration(name, out)


def _catch_all_last(routes: list[Any]) -> list[Any]:
    """Rules of several VirtualServices for one host: those that take everything wait behind the others."""
    return [
        *(route for route in routes if not is_catch_all(route.match)),
        *(route for route in routes if is_catch_all(route.match)),
    ]
