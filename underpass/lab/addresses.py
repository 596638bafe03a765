"""The addresses and names of a lab. Pure arithmetic.

A lab owns one /16: 10.OCTET.0.0/24 joins the machine (`.1`) and its nodes (`.10 + i`); 10.OCTET.i.0/24 are the pods of
node i, with the node itself, and home, at `.1`. The IPv6 side is fd00:OCTET:i::/64 likewise. Service VIPs come from
10.96.0.0/16 and fd00:96::/112; no route leads there, because a mesh never lets a packet to a VIP onto a wire.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass

from underpass.lab.errors import LabError

DEFAULT_NAME = "default"
OCTETS = (244, 245, 246, 247, 240, 241, 242, 243)
"""Second octets that a lab may take, in order of preference; 244 is what Kubernetes clusters use by custom."""

MAX_NODES = 32
FIRST_POD = 10
PODS_PER_NODE = 240
VIP4 = ipaddress.IPv4Network("10.96.0.0/16")
VIP6 = ipaddress.IPv6Network("fd00:96::/112")
FIRST_VIP = 10

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?")


def check_name(name: str) -> str:
    """`name` if it can name a lab. Raises LabError."""
    if _NAME.fullmatch(name) is None:
        raise LabError(
            f"{name!r} cannot name a lab",
            "a name has 1 to 24 lower-case letters, digits and dashes",
            "give another --name",
            exit_code=2,
        )
    return name


def node_names(lab: str, count: int) -> list[str]:
    """`node-1`, `node-2` ... in the default lab, `NAME-node-1` ... in another, so that two labs never share a node."""
    if not 1 <= count <= MAX_NODES:
        raise LabError(f"--nodes {count}", f"a lab has 1 to {MAX_NODES} nodes", "give another number", exit_code=2)
    prefix = "" if lab == DEFAULT_NAME else f"{lab}-"
    return [f"{prefix}node-{index}" for index in range(1, count + 1)]


def host_interface_name(lab: str) -> str:
    """The one interface of a lab in the machine's own namespace (at most 15 bytes)."""
    if lab == DEFAULT_NAME:
        return "underpass0"
    if len(lab) <= 12:
        return f"up-{lab}"
    return f"up-{hashlib.sha256(lab.encode()).hexdigest()[:12]}"


def fabric_netns(lab: str) -> str:
    """The namespace that holds the bridge between the nodes."""
    return "underpass.fabric" if lab == DEFAULT_NAME else f"underpass.{lab}.fabric"


@dataclass(frozen=True, slots=True)
class Addressing:
    """All addresses of a lab by its octet."""

    octet: int
    dual_stack: bool = False

    @property
    def network4(self) -> str:
        """Everything of the lab, IPv4."""
        return f"10.{self.octet}.0.0/16"

    @property
    def network6(self) -> str:
        """Everything of the lab, IPv6."""
        return f"fd00:{self.octet}::/32"

    def host(self) -> tuple[str, ...]:
        """The machine's own addresses in the lab."""
        return self._both(0, 1)

    def uplink(self, node: int) -> tuple[str, ...]:
        """Node `node`'s addresses towards the machine and the other nodes."""
        return self._both(0, 10 + node)

    def gateway(self, node: int) -> tuple[str, ...]:
        """Node `node`'s addresses on its pods' bridge; home listens there."""
        return self._both(node, 1)

    def pod(self, node: int, slot: int) -> tuple[str, ...]:
        """The addresses of slot `slot` (0-based) of node `node`."""
        return self._both(node, FIRST_POD + slot)

    def pods(self, node: int) -> tuple[str, ...]:
        """The pod networks of node `node`."""
        four = f"10.{self.octet}.{node}.0/24"
        return (four, f"fd00:{self.octet}:{node:x}::/64") if self.dual_stack else (four,)

    def vip(self, slot: int) -> tuple[str, ...]:
        """The VIPs of slot `slot` (0-based)."""
        four = str(VIP4[FIRST_VIP + slot])
        return (four, str(VIP6[FIRST_VIP + slot])) if self.dual_stack else (four,)

    def _both(self, third: int, last: int) -> tuple[str, ...]:
        four = f"10.{self.octet}.{third}.{last}"
        if not self.dual_stack:
            return (four,)
        return four, str(ipaddress.IPv6Address(f"fd00:{self.octet}:{third:x}::{last:x}"))


def choose_octet(taken: list[str]) -> int:
    """The first octet whose /16 overlaps none of the routes `taken` (CIDR texts). Raises LabError."""
    networks = [ipaddress.ip_network(text, strict=False) for text in taken]
    for octet in OCTETS:
        mine = ipaddress.ip_network(f"10.{octet}.0.0/16")
        if not any(mine.overlaps(other) for other in networks if other.version == 4 and other.prefixlen > 0):
            return octet
    raise LabError(
        "no network is free for the lab",
        f"routes of this machine overlap all of 10.{min(OCTETS)}.0.0 to 10.{max(OCTETS)}.255.255",
        "take another lab down, or remove a route (`ip route`)",
    )
