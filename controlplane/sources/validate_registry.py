"""ServiceEntry and WorkloadEntry: what istiod refuses.  Pure."""

from __future__ import annotations

from typing import Any, Final

from controlplane.model.hosts import is_wildcard
from controlplane.model.objects import Config
from controlplane.sources.findings import Findings, is_ip

NONE, STATIC, DNS, DNS_ROUND_ROBIN, DYNAMIC_DNS = range(5)

PROTOCOLS: Final = frozenset(
    {"HTTP", "HTTPS", "HTTP2", "GRPC", "GRPC-WEB", "MONGO", "REDIS", "MYSQL", "TCP", "TLS", "UDP"}
)


def ports(values: Any, path: str, out: Findings) -> None:
    """Check a port list: numbers and names unique, protocols known."""
    names: set[str] = set()
    numbers: set[int] = set()
    for index, port in enumerate(values):
        here = f"{path}[{index}]"
        out.port(port.number, here)
        if port.target_port:
            out.port(port.target_port, here)
        if not port.name:
            out.error("no-name", "a port needs a name", here)
        if port.name in names:
            out.error("duplicate-port", f"two ports are named {port.name!r}", here)
        if port.number in numbers:
            out.error("duplicate-port", f"port {port.number} is listed twice", here)
        names.add(port.name)
        numbers.add(port.number)
        if port.protocol and port.protocol.upper() not in PROTOCOLS:
            out.error("bad-protocol", f"protocol {port.protocol!r} is none of {', '.join(sorted(PROTOCOLS))}", here)


def service_entry(config: Config, out: Findings) -> None:
    """Check a ServiceEntry."""
    spec = config.spec
    if not spec.hosts:
        out.error("no-hosts", "hosts is empty")
    for index, host in enumerate(spec.hosts):
        out.host(host, f"hosts[{index}]", ip=False)
        if host == "*":
            out.error("bad-host", "'*' can not be a service", f"hosts[{index}]")
    if not spec.ports:
        out.error("no-port", "ports is empty")
    ports(spec.ports, "ports", out)
    out.subnets(spec.addresses, "addresses")
    cidr = any("/" in address for address in spec.addresses)
    if spec.HasField("workload_selector") and spec.endpoints:
        out.error("conflicting-settings", "workloadSelector and endpoints exclude each other")
    if spec.resolution == NONE:
        if spec.endpoints:
            out.error("bad-resolution", "resolution NONE can have no endpoints; use STATIC", "endpoints")
        if spec.HasField("workload_selector"):
            out.note("no-effect", "workloadSelector has no effect with resolution NONE", "workloadSelector")
    elif spec.resolution == STATIC:
        if not spec.endpoints and not spec.HasField("workload_selector"):
            out.note("no-endpoints", "resolution STATIC without endpoints: every request will be answered with 503")
    elif spec.resolution == DYNAMIC_DNS:
        if not all(is_wildcard(host) for host in spec.hosts):
            out.error("bad-resolution", "resolution DYNAMIC_DNS is for wildcard hosts", "hosts")
    else:
        if cidr:
            out.error("bad-address", "a CIDR block is only possible with resolution NONE or STATIC", "addresses")
        if not spec.endpoints and any(is_wildcard(host) for host in spec.hosts):
            out.error("bad-resolution", "a wildcard host has no address in DNS; give endpoints", "hosts")
        if spec.resolution == DNS_ROUND_ROBIN and len(spec.endpoints) > 1:
            out.error("bad-resolution", "resolution DNS_ROUND_ROBIN takes at most one endpoint", "endpoints")
    named = {port.name for port in spec.ports}
    for index, endpoint in enumerate(spec.endpoints):
        path = f"endpoints[{index}]"
        _endpoint(endpoint, path, out)
        unix = endpoint.address.startswith("unix://")
        if spec.resolution == STATIC and endpoint.address and not unix and not is_ip(endpoint.address):
            out.error("bad-address", f"resolution STATIC needs IP addresses, not {endpoint.address!r}", path)
        if unix and len(spec.ports) != 1:
            out.error("bad-address", "a unix socket serves exactly one port", path)
        for name in sorted(endpoint.ports):
            if name not in named:
                out.error("bad-port", f"the ServiceEntry has no port named {name!r}", f"{path}.ports")
    out.export_to(spec.export_to)


def _endpoint(entry: Any, path: str, out: Findings) -> None:
    if entry.address.startswith("unix://"):
        if entry.ports:
            out.error("bad-address", "a unix socket has no ports", path)
        if not entry.address.removeprefix("unix://").startswith(("/", "@")):
            out.error("bad-address", "a unix socket's path must be absolute", path)
    elif entry.address:
        out.host(entry.address, path)
        if is_wildcard(entry.address):
            out.error("bad-address", "an endpoint's address must be one host", path)
    elif not entry.network:
        out.error("no-address", "address is missing", path)
    for name in sorted(entry.ports):
        out.port(entry.ports[name], f"{path}.ports.{name}" if path else f"ports.{name}")


def workload_entry(config: Config, out: Findings) -> None:
    """Check a WorkloadEntry."""
    _endpoint(config.spec, "", out)
