"""What the control plane is told when it is started: flags, and a password from the environment."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from controlplane.errors import UsageProblem

LogFormat = Literal["text", "json"]

DEFAULT_PORT: Final = 2379
DEFAULT_PREFIX: Final = "/underpass"
_STORE_FILES: Final = ("ca", "cert", "key")


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
class Tls:
    """The port with TLS: its files, and how callers prove who they are."""

    listen: Address
    certificate: Path
    key: Path
    client_ca: Path | None = None
    jwt_keys: Path | None = None
    jwt_issuers: tuple[str, ...] = ()
    jwt_audiences: tuple[str, ...] = ("istio-ca",)


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """An etcd's members as ``HOST:PORT``, the prefix without a slash at its end, and how to speak to them.

    ``compact`` is after how many seconds the leader lets old revisions go; 0 leaves that to the etcd's operator.
    ``password_file`` is read whenever a token is asked for, so that a changed password needs no restart.
    """

    members: tuple[str, ...]
    prefix: str = DEFAULT_PREFIX
    tls: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""
    user: str = ""
    password_file: str = ""
    password: str = ""
    compact: float = 0.0
    #: A file for a copy of what was read last, for starts while the etcd is away; empty: none.
    copy: str = ""

    def __repr__(self) -> str:
        """Without the password: settings end up in logs."""
        return str(self)

    def __str__(self) -> str:
        return f"{'etcds' if self.tls else 'etcd'}://{','.join(self.members)}{self.prefix}"


@dataclass(frozen=True, slots=True)
class Settings:
    """All that a process depends on besides its configuration. It is read from ``config``, or from ``store``."""

    config: Path | None
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
    tls: Tls | None = None
    store: StoreSettings | None = None
    operators: tuple[str, ...] = ("istio-system/*",)
    """Who may use debug types and claim any identity: patterns ``NAMESPACE/ACCOUNT``."""
    node_proxies: tuple[str, ...] = ("istio-system/ztunnel", "istio-system/underpass-agent")
    """Who speaks for the workloads of a node."""
    streams_per_client: int = 2_000


def parse(argv: Sequence[str] | None = None) -> Settings:
    """Settings from command line arguments. Exits with status 2 on an unknown flag, as argparse does."""
    parser = argparse.ArgumentParser(
        prog="underpass-controlplane",
        description="Reads Istio and Kubernetes YAML from a directory, or for several replicas from an etcd, and "
        "serves it as xDS to Envoy, gRPC and agents.",
    )
    parser.add_argument("--config", metavar="DIR", help="directory of YAML files, watched for changes")
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
    _add_store(parser)
    _add_identity(parser)
    given = parser.parse_args(argv)
    if (given.config is None) == (given.store is None):
        raise UsageProblem("give either --config DIR or --store etcd://HOST:PORT/PREFIX: where the configuration is")
    for flag in ("max_streams", "max_streams_per_client"):
        if getattr(given, flag) < 1:
            raise UsageProblem(f"--{flag.replace('_', '-')} {getattr(given, flag)}: at least 1")
    first, *others = [Address.parse(text, "--listen") for text in given.listen or ["127.0.0.1:15010"]]
    return Settings(
        config=None if given.config is None else Path(given.config),
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
        tls=_tls(given),
        store=_store(given),
        operators=_accounts(given.operator, "--operator") or (f"{given.root_namespace}/*",),
        node_proxies=_accounts(given.node_proxy, "--node-proxy")
        or (f"{given.root_namespace}/ztunnel", f"{given.root_namespace}/underpass-agent"),
        streams_per_client=given.max_streams_per_client,
    )


def _add_store(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "more than one replica", "configuration in an etcd (3.4 or later) in place of --config"
    )
    group.add_argument(
        "--store",
        metavar="URL",
        help="etcd://HOST:PORT[,HOST:PORT]/PREFIX; etcds:// or ?ca=FILE&cert=FILE&key=FILE for TLS",
    )
    group.add_argument("--store-user", default="", metavar="NAME", help="user of the etcd, where it has any")
    group.add_argument(
        "--store-password-file",
        default="",
        metavar="FILE",
        help="the user's password (or the environment's UNDERPASS_STORE_PASSWORD)",
    )
    group.add_argument(
        "--store-copy",
        default="",
        metavar="FILE",
        help="keep a copy of what was read last there, and start from it when the etcd is away",
    )
    group.add_argument(
        "--store-compact",
        type=float,
        default=0.0,
        metavar="MINUTES",
        help="the leading replica lets the etcd's revisions go that are so old; 0 leaves that to etcd (%(default)g)",
    )


def _store(given: argparse.Namespace) -> StoreSettings | None:
    if given.store is None:
        if given.store_user or given.store_password_file or given.store_compact or given.store_copy:
            raise UsageProblem(
                "--store-user, --store-password-file and --store-compact are about --store: give that, too"
            )
        return None
    if not 0 <= given.store_compact < 1e6:
        raise UsageProblem(f"--store-compact {given.store_compact}: minutes, 0 or more")
    return parse_store(
        given.store,
        user=given.store_user,
        password_file=given.store_password_file,
        password=os.environ.get("UNDERPASS_STORE_PASSWORD", ""),
        compact=given.store_compact * 60,
        copy=given.store_copy,
    )


def parse_store(
    url: str, *, user: str = "", password_file: str = "", password: str = "", compact: float = 0.0, copy: str = ""
) -> StoreSettings:
    """Read ``--store``: ``etcd://HOST:PORT[,HOST:PORT]/PREFIX``; ``etcds://`` or ``?ca=&cert=&key=`` (files) for TLS.

    A password is never part of it: command lines are there for every process of the machine to read. Raises
    :class:`UsageProblem`.
    """
    try:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise UsageProblem(f"--store {url!r}: {error}") from error
    if parts.scheme not in ("etcd", "etcds"):
        raise UsageProblem("--store begins with etcd:// or etcds://, as etcd://127.0.0.1:2379/underpass")
    hosts = parts.netloc
    if "@" in hosts:
        who, _, hosts = hosts.rpartition("@")
        if ":" in who:
            raise UsageProblem(
                "--store holds a password, which every process of this machine could read; give --store-user and "
                "--store-password-file, or UNDERPASS_STORE_PASSWORD"
            )
        user = user or unquote(who)
    unknown = sorted(set(query) - set(_STORE_FILES))
    if unknown or parts.fragment:
        raise UsageProblem(f"--store: {', '.join(unknown) or '#'} is not known; after ? may come ca=, cert= and key=")
    if bool(query.get("cert")) != bool(query.get("key")):
        raise UsageProblem("--store: cert= and key= are given together or not at all")
    prefix = "/" + unquote(parts.path).strip("/") if parts.path.strip("/") else DEFAULT_PREFIX
    if user and not (password_file or password):
        raise UsageProblem(f"--store: user {user} needs --store-password-file, or UNDERPASS_STORE_PASSWORD")
    if password_file and not user:
        raise UsageProblem("--store-password-file is of no use without --store-user")
    return StoreSettings(
        members=tuple(_member(text) for text in hosts.split(",")),
        prefix=prefix,
        tls=parts.scheme == "etcds" or bool(query),
        ca=query.get("ca", ""),
        cert=query.get("cert", ""),
        key=query.get("key", ""),
        user=user,
        password_file=password_file,
        password=password if user else "",
        compact=compact,
        copy=copy,
    )


def _member(text: str) -> str:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, port = text, str(DEFAULT_PORT)
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise UsageProblem(f"--store: write an IPv6 address in brackets, as [::1]:{DEFAULT_PORT}, not {text!r}")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageProblem(f"--store: {text!r} is not HOST:PORT")
    return f"{host}:{port}"


def _add_identity(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "who may ask", "a second port with TLS, for clients that prove who they are by a certificate or a token"
    )
    group.add_argument(
        "--tls-listen", metavar="HOST:PORT", help="xDS with TLS (0.0.0.0:15012, once there is a certificate)"
    )
    group.add_argument("--tls-certificate", type=Path, metavar="FILE", help="PEM: the server's certificate chain")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM: its key")
    group.add_argument("--tls-client-ca", type=Path, metavar="FILE", help="PEM: authorities of client certificates")
    group.add_argument(
        "--jwt-keys", type=Path, metavar="FILE", help="JWK set or PEM: public keys of service account tokens"
    )
    group.add_argument("--jwt-issuer", action="append", metavar="ISS", help="issuer of tokens; may be repeated (any)")
    group.add_argument(
        "--jwt-audience", action="append", metavar="AUD", help="audience of tokens; may be repeated (istio-ca)"
    )
    group.add_argument(
        "--operator",
        action="append",
        metavar="NS/ACCOUNT",
        help="may use debug types and claim to be anybody; * is any but a node proxy; may be repeated (root namespace)",
    )
    group.add_argument(
        "--node-proxy",
        action="append",
        metavar="NS/ACCOUNT",
        help="speaks for its node's workloads; may be repeated (ztunnel and underpass-agent in the root namespace)",
    )
    group.add_argument(
        "--max-streams-per-client",
        type=int,
        default=2_000,
        metavar="N",
        help="streams of one identity, or of one address beyond this machine (%(default)s)",
    )


def _tls(given: argparse.Namespace) -> Tls | None:
    wanted = [name for name in ("tls_listen", "tls_client_ca", "jwt_keys") if getattr(given, name) is not None]
    if given.tls_certificate is None or given.tls_key is None:
        if wanted or given.tls_certificate is not None or given.tls_key is not None:
            raise UsageProblem("a port with TLS needs both --tls-certificate and --tls-key")
        return None
    if given.tls_client_ca is None and given.jwt_keys is None:
        raise UsageProblem("nobody could ask on the port with TLS: give --tls-client-ca, --jwt-keys, or both")
    return Tls(
        listen=Address.parse(given.tls_listen or "0.0.0.0:15012", "--tls-listen"),
        certificate=given.tls_certificate,
        key=given.tls_key,
        client_ca=given.tls_client_ca,
        jwt_keys=given.jwt_keys,
        jwt_issuers=tuple(given.jwt_issuer or ()),
        jwt_audiences=tuple(given.jwt_audience or ("istio-ca",)),
    )


def _accounts(patterns: Sequence[str] | None, flag: str) -> tuple[str, ...]:
    for pattern in patterns or ():
        namespace, slash, account = pattern.partition("/")
        if not (namespace and slash and account) or "/" in account:
            raise UsageProblem(f"{flag} {pattern}: expected NAMESPACE/ACCOUNT, where * stands for any")
    return tuple(patterns or ())
