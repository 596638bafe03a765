"""What the control plane is told when it is started: flags, nothing else."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from controlplane.errors import UsageProblem

LogFormat = Literal["text", "json"]


@dataclass(frozen=True, slots=True)
class Address:
    """A host and port to listen on; port 0 lets the kernel choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, flag: str) -> Address:
        """``HOST:PORT`` or ``[IPV6]:PORT``; raises :class:`UsageProblem` naming the flag."""
        host, colon, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise UsageProblem(f"{flag} {text}: write an IPv6 address in brackets, as [::1]:15010")
        if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise UsageProblem(f"{flag} {text}: expected HOST:PORT with a port from 0 to 65535, as 127.0.0.1:15010")
        return cls(host, int(port))


@dataclass(frozen=True, slots=True)
class Settings:
    """All that a process depends on besides its configuration directory."""

    config: Path
    listen: Address
    http: Address
    log_format: LogFormat = "text"
    log_level: str = "info"
    max_streams: int = 100_000
    domain: str = "cluster.local"
    trust_domain: str = "cluster.local"
    root_namespace: str = "istio-system"
    name: str = "underpass-controlplane"
    addresses_file: Path | None = None
    also_listen: tuple[Address, ...] = ()
    """Further addresses for xDS, as for nodes that do not share this machine's loopback."""


def parse(argv: Sequence[str] | None = None) -> Settings:
    """Settings from command line arguments. Exits with status 2 on an unknown flag, as argparse does."""
    parser = argparse.ArgumentParser(
        prog="underpass-controlplane",
        description="Reads Istio and Kubernetes YAML from a directory and serves it as xDS to Envoy, gRPC and agents.",
    )
    parser.add_argument("--config", required=True, metavar="DIR", help="directory of YAML files, watched for changes")
    parser.add_argument(
        "--listen", action="append", metavar="HOST:PORT", help="xDS over gRPC; may be repeated (127.0.0.1:15010)"
    )
    parser.add_argument(
        "--http", default="127.0.0.1:15014", metavar="HOST:PORT", help="health, metrics, status, debug (%(default)s)"
    )
    parser.add_argument("--log-format", choices=["text", "json"], default="text", help="(%(default)s)")
    levels = ["debug", "info", "warning", "error"]
    parser.add_argument("--log-level", choices=levels, default="info", help="(%(default)s)")
    parser.add_argument(
        "--max-streams", type=int, default=100_000, metavar="N", help="streams served at once (%(default)s)"
    )
    parser.add_argument("--domain", default="cluster.local", help="DNS domain of services (%(default)s)")
    parser.add_argument("--trust-domain", default="cluster.local", help="SPIFFE trust domain (%(default)s)")
    parser.add_argument(
        "--root-namespace", default="istio-system", metavar="NS", help="namespace of mesh-wide rules (%(default)s)"
    )
    parser.add_argument("--name", default="underpass-controlplane", help="how this replica calls itself (%(default)s)")
    parser.add_argument(
        "--addresses-file",
        type=Path,
        metavar="FILE",
        help="write the bound addresses as JSON there once serving (for port 0)",
    )
    given = parser.parse_args(argv)
    if given.max_streams < 1:
        raise UsageProblem(f"--max-streams {given.max_streams}: at least 1")
    first, *others = [Address.parse(text, "--listen") for text in given.listen or ["127.0.0.1:15010"]]
    return Settings(
        config=Path(given.config),
        listen=first,
        also_listen=tuple(others),
        http=Address.parse(given.http, "--http"),
        log_format=given.log_format,
        log_level=given.log_level,
        max_streams=given.max_streams,
        domain=given.domain,
        trust_domain=given.trust_domain,
        root_namespace=given.root_namespace,
        name=given.name,
        addresses_file=given.addresses_file,
    )
