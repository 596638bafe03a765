"""Gateway, Sidecar and the security objects: what istiod refuses.  Pure."""

from __future__ import annotations

from typing import Any, Final

from controlplane.model.labels import get
from controlplane.model.objects import Config
from controlplane.sources.findings import Findings
from controlplane.sources.validate_destination import connection_pool
from controlplane.sources.validate_registry import PROTOCOLS
from controlplane.sources.validate_tokens import targets
from controlplane.sources.validate_virtual import destination

_TLS_FILES_MODES: Final = {1: "SIMPLE", 2: "MUTUAL", 5: "OPTIONAL_MUTUAL"}
_WHEN: Final = (
    "request.headers[", "source.ip", "remote.ip", "source.namespace", "source.principal", "source.serviceAccount",
    "request.auth.principal", "request.auth.audiences", "request.auth.presenter", "request.auth.claims[",
    "destination.ip", "destination.port", "connection.sni", "experimental.envoy.filters.",
)  # fmt: skip


def gateway(config: Config, out: Findings) -> None:
    """Check a Gateway."""
    if not config.spec.servers:
        out.error("no-servers", "servers is empty")
    names: set[str] = set()
    for index, server in enumerate(config.spec.servers):
        path = f"servers[{index}]"
        out.port(server.port.number, f"{path}.port")
        protocol = server.port.protocol.upper()
        if protocol not in PROTOCOLS:
            out.error("bad-protocol", f"protocol {server.port.protocol!r} is not known", f"{path}.port")
        if not server.port.name:
            out.error("no-name", "a port needs a name", f"{path}.port")
        if server.name:
            if server.name in names:
                out.error("duplicate-name", f"two servers are named {server.name!r}", path)
            names.add(server.name)
        if not server.hosts:
            out.error("no-hosts", "hosts is empty", path)
        for host in server.hosts:
            scope, slash, name = host.partition("/")
            out.host(name if slash else scope, f"{path}.hosts")
        _server_tls(server, protocol, path, out)


def _server_tls(server: Any, protocol: str, path: str, out: Findings) -> None:
    if not server.HasField("tls"):
        if protocol in ("HTTPS", "TLS"):
            out.error("no-tls", f"protocol {protocol} needs tls settings", path)
        return
    tls = server.tls
    if protocol not in ("HTTPS", "TLS") and not tls.https_redirect:
        out.note("no-effect", f"tls has no effect on protocol {protocol}", f"{path}.tls")
        return
    if protocol not in ("HTTPS", "TLS"):
        return
    mode = _TLS_FILES_MODES.get(tls.mode)
    named = tls.credential_name or tls.credential_names
    if mode and not named and not tls.tls_certificates and not (tls.server_certificate and tls.private_key):
        out.error("bad-tls", f"mode {mode} needs credentialName, or serverCertificate and privateKey", f"{path}.tls")
    if mode in ("MUTUAL", "OPTIONAL_MUTUAL") and not named and not tls.ca_certificates and not tls.tls_certificates:
        out.error("bad-tls", f"mode {mode} needs caCertificates or credentialName", f"{path}.tls")


def sidecar(config: Config, out: Findings) -> None:
    """Check a Sidecar."""
    spec = config.spec
    if not (
        spec.egress
        or spec.ingress
        or spec.HasField("outbound_traffic_policy")
        or spec.HasField("inbound_connection_pool")
    ):
        out.error("empty-policy", "one of egress, ingress, outboundTrafficPolicy and inboundConnectionPool is needed")
    catch_all = False
    for index, listener in enumerate(spec.egress):
        path = f"egress[{index}]"
        if not listener.hosts:
            out.error("no-hosts", "hosts is empty", path)
        for host in listener.hosts:
            scope, slash, name = host.partition("/")
            if not slash or not scope or not name:
                out.error("bad-host", f"{host!r} is not namespace/host", f"{path}.hosts")
            else:
                out.host(name, f"{path}.hosts", ip=False)
                if scope == "~" and name != "*":
                    out.error(
                        "bad-host", f"{host!r}: the namespace ~ (none) goes with the host * only", f"{path}.hosts"
                    )
        if listener.HasField("port"):
            out.port(listener.port.number, f"{path}.port")
        else:
            if listener.bind:
                out.error("bad-bind", "bind needs a port", path)
            if catch_all:
                out.error("duplicate-egress", "only one egress listener can be without a port", path)
            catch_all = True
    for index, listener in enumerate(spec.ingress):
        path = f"ingress[{index}]"
        out.port(listener.port.number, f"{path}.port")
        if not listener.default_endpoint:
            out.note("no-effect", "defaultEndpoint is not set: traffic goes to the same port of the workload", path)
        if listener.HasField("connection_pool"):
            connection_pool(listener.connection_pool, f"{path}.connectionPool", out)
    if spec.HasField("outbound_traffic_policy") and spec.outbound_traffic_policy.HasField("egress_proxy"):
        destination(spec.outbound_traffic_policy.egress_proxy, "outboundTrafficPolicy.egressProxy", out)


#: Who enforces what a sidecar's inbound listener says. Clients that are Envoys do; the kernel's programs not yet.
_ENVOYS_ONLY: Final = "only Envoys of this control plane enforce it; underpass-agent's workloads go unprotected"


def authorization_policy(config: Config, out: Findings) -> None:
    """Check an AuthorizationPolicy."""
    spec = config.spec
    if not targets(config, out) and get(config.meta.annotations, "istio.io/dry-run") != "true":
        out.note("not-enforced", _ENVOYS_ONLY)
    custom = spec.action == 3
    if custom and not spec.provider.name:
        out.error("no-provider", "action CUSTOM needs provider.name")
    if not custom and spec.HasField("provider"):
        out.error("conflicting-settings", "provider is for action CUSTOM only", "provider")
    if spec.action == 1 and not spec.rules:
        out.error("no-rules", "action DENY without rules never matches; use rules: [{}] to deny everything")
    for index, rule in enumerate(spec.rules):
        path = f"rules[{index}]"
        for number, item in enumerate(getattr(rule, "from")):
            here = f"{path}.from[{number}].source"
            if not item.source.ListFields():
                out.error("empty-rule", "a source must name something", here)
            for name in ("ip_blocks", "not_ip_blocks", "remote_ip_blocks", "not_remote_ip_blocks"):
                out.subnets(getattr(item.source, name), here)
        for number, item in enumerate(rule.to):
            here = f"{path}.to[{number}].operation"
            if not item.operation.ListFields():
                out.error("empty-rule", "an operation must name something", here)
            for port in (*item.operation.ports, *item.operation.not_ports):
                if not port.isdigit():
                    out.error("bad-port", f"{port!r} is not a port (1 to 65535)", here)
                else:
                    out.port(int(port), here)
        for number, when in enumerate(rule.when):
            here = f"{path}.when[{number}]"
            if not when.key.startswith(_WHEN):
                out.error("bad-condition", f"unknown condition {when.key!r}", here)
            if not (when.values or when.not_values):
                out.error("bad-condition", "one of values and notValues is needed", here)


def peer_authentication(config: Config, out: Findings) -> None:
    """Check a PeerAuthentication."""
    spec = config.spec
    if spec.port_level_mtls and not spec.selector.match_labels:
        out.error("bad-policy", "portLevelMtls needs a selector", "portLevelMtls")
    for number in sorted(spec.port_level_mtls):
        out.port(number, "portLevelMtls")
    modes = [spec.mtls.mode, *(item.mode for item in spec.port_level_mtls.values())]
    names = spec.mtls.DESCRIPTOR.fields_by_name["mode"].enum_type.values_by_number
    if any(names[mode].name == "STRICT" for mode in modes if mode in names):
        out.note("not-enforced", f"STRICT: {_ENVOYS_ONLY}")
