"""The structures of kernel/include/abi.h as records: what each field means stands there, beside its C type.

Addresses are 16 bytes in network order, an IPv4 address IPv4-mapped (`address` makes one); ports are host-order ints.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import ClassVar

from nodeagent.abi.codec import Record

NO_ADDRESS = bytes(16)


def address(text: str) -> bytes:
    """16 bytes of an IP address in text form. Raises ValueError for anything else."""
    parsed = ip_address(text)
    return parsed.packed if parsed.version == 6 else bytes(10) + b"\xff\xff" + parsed.packed


def address_text(data: bytes) -> str:
    """The other way round: dotted for IPv4-mapped addresses."""
    parsed = IPv6Address(data)
    return str(parsed.ipv4_mapped or parsed)


def family(data: bytes) -> int:
    """4 for an IPv4-mapped address, else 6."""
    return 4 if IPv6Address(data).ipv4_mapped else 6


@dataclass(frozen=True, slots=True)
class Tuple(Record):
    """Both ends of a connection as the pod sees it: local is the pod's own."""

    STRUCT: ClassVar[str] = "up_tuple"
    laddr: bytes = NO_ADDRESS
    raddr: bytes = NO_ADDRESS
    lport: int = 0
    rport: int = 0


@dataclass(frozen=True, slots=True)
class Socket(Record):
    """Private storage of a socket."""

    STRUCT: ClassVar[str] = "up_socket"
    kind: int = 0
    workload: int = 0
    table: int = 0
    endpoint: int = 0
    vip: bytes = NO_ADDRESS
    vport: int = 0
    family: int = 0
    home: int = 0
    cluster: int = 0


@dataclass(frozen=True, slots=True)
class Origin(Record):
    """What a client connected to, for a peer that is not the kernel."""

    STRUCT: ClassVar[str] = "up_origin"
    vip: bytes = NO_ADDRESS
    workload: int = 0
    vport: int = 0


@dataclass(frozen=True, slots=True)
class StockKey(Record):
    """Whose free upstreams, to which endpoint."""

    STRUCT: ClassVar[str] = "up_stock_key"
    workload: int = 0
    endpoint: int = 0


@dataclass(frozen=True, slots=True)
class Stock(Record):
    """Free upstreams of a (workload, endpoint), by local port."""

    STRUCT: ClassVar[str] = "up_stock"
    n: int = 0
    misses: int = 0
    wanted_ns: int = 0
    laddr: bytes = NO_ADDRESS
    port: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Address(Record):
    """An address and port; family 0 when not set."""

    STRUCT: ClassVar[str] = "up_address"
    addr: bytes = NO_ADDRESS
    port: int = 0
    family: int = 0


@dataclass(frozen=True, slots=True)
class Config(Record):
    """The one entry of the `config` map."""

    STRUCT: ClassVar[str] = "up_config"
    version: int = 0
    generation: int = 0
    home_generation: int = 0
    flags: int = 0
    home4: Address = Address()
    home6: Address = Address()
    home_kind: int = 0
    own4: int = 0
    own6: int = 0


@dataclass(frozen=True, slots=True)
class Cgroup(Record):
    """Which workload a cgroup is; 0: none."""

    STRUCT: ClassVar[str] = "up_cgroup"
    workload: int = 0


@dataclass(frozen=True, slots=True)
class Workload(Record):
    """An enrolled workload: its view (0: unused) and own addresses."""

    STRUCT: ClassVar[str] = "up_workload"
    view: int = 0
    flags: int = 0
    addr4: bytes = NO_ADDRESS
    addr6: bytes = NO_ADDRESS


@dataclass(frozen=True, slots=True)
class ServiceKey(Record):
    """A VIP and port as a view sees it."""

    STRUCT: ClassVar[str] = "up_service_key"
    view: int = 0
    port: int = 0
    protocol: int = 6
    addr: bytes = NO_ADDRESS


@dataclass(frozen=True, slots=True)
class Weight(Record):
    """A destination: running sum of the weights, and its cluster (0: does not exist)."""

    STRUCT: ClassVar[str] = "up_weight"
    upto: int = 0
    cluster: int = 0


@dataclass(frozen=True, slots=True)
class Action(Record):
    """What a route does."""

    STRUCT: ClassVar[str] = "up_action"
    route: int = 0
    kind: int = 0
    reason: int = 0
    n: int = 0
    flags: int = 0
    total: int = 0
    to: tuple[Weight, ...] = ()
    reply: int = 0
    rule: int = 0


@dataclass(frozen=True, slots=True)
class Reply(Record):
    """A whole response that the kernel gives itself; `len` bytes of `text`, `head` of them its head."""

    STRUCT: ClassVar[str] = "up_reply"
    len: int = 0
    head: int = 0
    status: int = 0
    text: bytes = b""


@dataclass(frozen=True, slots=True)
class Service(Record):
    """What a VIP and port is: HTTP by a table, TCP by an action, or refused."""

    STRUCT: ClassVar[str] = "up_service"
    kind: int = 0
    table: int = 0
    tcp: Action = Action()


@dataclass(frozen=True, slots=True)
class Table(Record):
    """A route configuration."""

    STRUCT: ClassVar[str] = "up_table"
    flags: int = 0


@dataclass(frozen=True, slots=True)
class VhostKey(Record):
    """A domain of a table, lower case; `*.x` and `*` as they stand."""

    STRUCT: ClassVar[str] = "up_vhost_key"
    table: int = 0
    host: bytes = b""


@dataclass(frozen=True, slots=True)
class Vhost(Record):
    """A virtual host: a program, or one direct route."""

    STRUCT: ClassVar[str] = "up_vhost"
    program: int = 0
    direct: Action = Action()


@dataclass(frozen=True, slots=True)
class Cluster(Record):
    """A cluster's slots: endpoint ids, one per unit of weight."""

    STRUCT: ClassVar[str] = "up_cluster"
    n: int = 0
    lb: int = 0
    turn: int = 0
    choices: int = 0
    live: int = 0
    slot: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint(Record):
    """An endpoint's address."""

    STRUCT: ClassVar[str] = "up_endpoint"
    addr: bytes = NO_ADDRESS
    port: int = 0
    family: int = 0
    live: int = 0


@dataclass(frozen=True, slots=True)
class EndpointStat(Record):
    """Requests of an endpoint on lent wires."""

    STRUCT: ClassVar[str] = "up_endpoint_stat"
    active: int = 0
    requests: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True)
class EndpointRun(Record):
    """Requests of an endpoint that failed one after the other, and the longest such rows since zeros were written."""

    STRUCT: ClassVar[str] = "up_endpoint_run"
    errors: int = 0
    gateway: int = 0
    errors_peak: int = 0
    gateway_peak: int = 0


@dataclass(frozen=True, slots=True)
class NameKey(Record):
    """Kind (`numbers.NameKind`) and id of a name."""

    STRUCT: ClassVar[str] = "up_name_key"
    kind: int = 0
    id: int = 0


@dataclass(frozen=True, slots=True)
class NameText(Record):
    """What an id stands for, UTF-8."""

    STRUCT: ClassVar[str] = "up_name_text"
    text: bytes = b""


@dataclass(frozen=True, slots=True)
class RouteStat(Record):
    """Requests of a route, of one CPU."""

    STRUCT: ClassVar[str] = "up_route_stat"
    kernel: int = 0
    punted: int = 0


@dataclass(frozen=True, slots=True)
class PuntKey(Record):
    """A route (0: unknown) and the reason for a punt."""

    STRUCT: ClassVar[str] = "up_punt_key"
    route: int = 0
    reason: int = 0


@dataclass(frozen=True, slots=True)
class FlowKey(Record):
    """Who asked, by which route, whom, and how it was answered (0: no whole response came)."""

    STRUCT: ClassVar[str] = "up_flow_key"
    workload: int = 0
    route: int = 0
    endpoint: int = 0
    status: int = 0


@dataclass(frozen=True, slots=True)
class FlowStat(Record):
    """Requests of a flow, of one CPU: count, bytes either way, sum of latencies in microseconds, and their slots."""

    STRUCT: ClassVar[str] = "up_flow_stat"
    requests: int = 0
    asked: int = 0
    answered: int = 0
    us: int = 0
    slot: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class HomeStat(Record):
    """Requests of a route that home served or refused."""

    STRUCT: ClassVar[str] = "up_home_stat"
    requests: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class HomeRule(Record):
    """What home does with a route's requests: `len` bytes of JSON (`nodeagent.rules.text`)."""

    STRUCT: ClassVar[str] = "up_home_rule"
    len: int = 0
    text: bytes = b""


@dataclass(frozen=True, slots=True)
class InterfaceStat(Record):
    """Packets and bytes at a workload's host interface, of one CPU."""

    STRUCT: ClassVar[str] = "up_interface_stat"
    to_pod_packets: int = 0
    to_pod_bytes: int = 0
    from_pod_packets: int = 0
    from_pod_bytes: int = 0
    ifindex: int = 0


@dataclass(frozen=True, slots=True)
class Event(Record):
    """Kernel to home."""

    STRUCT: ClassVar[str] = "up_event"
    type: int = 0
    workload: int = 0
    endpoint: int = 0
    cluster: int = 0
    cookie: int = 0
    tuple: Tuple = Tuple()


@dataclass(frozen=True, slots=True)
class Control(Record):
    """Home to kernel: the packet of `up_control`'s test run."""

    STRUCT: ClassVar[str] = "up_control"
    op: int = 0
    tuple: Tuple = Tuple()
    received: int = 0
    sent: int = 0
    cookie: int = 0
