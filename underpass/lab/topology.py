"""The network of a lab as commands for `ip` and values for sysctls. Pure; `host.py` carries them out.

    machine  underpass0 ---+                                  10.O.0.1
                           |  (fabric: a bridge of its own namespace, only with two nodes or more)
    node i   uplink -------+                                  10.O.0.(10+i)
             pods (bridge) --- veth-N === eth0 of a workload  10.O.i.1   10.O.i.(10+N)

A node is a network namespace, so that iptables rules, forwarding and routes of the machine neither help nor hinder, and
everything goes when the namespace goes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from underpass.lab.addresses import VIP4, VIP6, fabric_netns, host_interface_name
from underpass.lab.model import Node, Plan, Workload

FABRIC = "fabric"
BRIDGE = "pods"
UPLINK = "uplink"


@dataclass(frozen=True, slots=True)
class Step:
    """Arguments of one `ip` command in the namespace `netns` (empty: the machine's own)."""

    netns: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A value under /proc/sys/net in the namespace `netns`. `optional`: not every kernel has it."""

    netns: str
    key: str
    value: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class LossyLink:
    """A forwarder that stands in for one node's cable: two TAP devices in the fabric's namespace."""

    node: Node
    fabric_end: str
    node_end: str


def _with_prefix(addresses: Iterable[str], four: int, six: int) -> Iterator[str]:
    for address in addresses:
        yield f"{address}/{six} nodad" if ":" in address else f"{address}/{four}"


def namespaces(plan: Plan) -> list[str]:
    """Every network namespace of the lab but the workloads'."""
    names = [node.netns for node in plan.nodes]
    return [fabric_netns(plan.options.name), *names] if len(plan.nodes) > 1 else names


def lossy_links(plan: Plan) -> list[LossyLink]:
    """The links that need a forwarder: with a bad link, that of every node but the first."""
    if not plan.options.link.lossy:
        return []
    return [LossyLink(node, f"tap-{node.index}", f"tapn-{node.index}") for node in plan.nodes[1:]]


def base_sysctls(plan: Plan) -> list[Sysctl]:
    """Settings of the nodes' namespaces: they forward, and bridged frames meet no firewall."""
    out = []
    for netns in namespaces(plan):
        out += [
            Sysctl(netns, "ipv4/ip_forward", "1"),
            Sysctl(netns, "ipv4/conf/all/rp_filter", "0"),
            Sysctl(netns, "ipv4/conf/default/rp_filter", "0"),
            Sysctl(netns, "bridge/bridge-nf-call-iptables", "0", optional=True),
            Sysctl(netns, "bridge/bridge-nf-call-ip6tables", "0", optional=True),
        ]
        if plan.addressing.dual_stack:
            out.append(Sysctl(netns, "ipv6/conf/all/forwarding", "1"))
    return out


def base_steps(plan: Plan) -> list[Step]:
    """The machine's end, the fabric and the nodes. The forwarders' TAP devices exist already."""
    name, addressing = plan.options.name, plan.addressing
    host = host_interface_name(name)
    out: list[Step] = []
    fabric = fabric_netns(name) if len(plan.nodes) > 1 else ""
    if fabric:
        out += [
            Step(fabric, "link set lo up"),
            Step(fabric, f"link add {FABRIC} type bridge"),
            Step(fabric, f"link set {FABRIC} up"),
            Step("", f"link add {host} type veth peer name host netns {fabric}"),
            Step(fabric, f"link set host master {FABRIC} up"),
        ]
    lossy = {link.node: link for link in lossy_links(plan)}
    for node in plan.nodes:
        if node in lossy:
            link = lossy[node]
            out += [
                Step(fabric, f"link set {link.node_end} netns {node.netns}"),
                Step(fabric, f"link set {link.fabric_end} master {FABRIC} up"),
                Step(node.netns, f"link set {link.node_end} name {UPLINK}"),
            ]
        elif fabric:
            out += [
                Step(fabric, f"link add port-{node.index} type veth peer name {UPLINK} netns {node.netns}"),
                Step(fabric, f"link set port-{node.index} master {FABRIC} up"),
            ]
        else:
            out.append(Step("", f"link add {host} type veth peer name {UPLINK} netns {node.netns}"))
        out += _node_steps(plan, node)
    for address in _with_prefix(addressing.host(), 24, 64):
        out.append(Step("", f"address add {address} dev {host}"))
    out.append(Step("", f"link set {host} up"))
    for node in plan.nodes:
        for network, via in zip(addressing.pods(node.index), addressing.uplink(node.index), strict=True):
            out.append(Step("", f"route add {network} via {via}"))
    return out


def _node_steps(plan: Plan, node: Node) -> list[Step]:
    addressing, netns = plan.addressing, node.netns
    # A bridge without an address of its own takes its ports' lowest, and changes it whenever a workload joins or
    # leaves: neighbours, and wires that learnt their next hop, would send to nobody for seconds.
    steps = ["link set lo up", f"link add {BRIDGE} address 02:75:70:00:00:{node.index:02x} type bridge"]
    steps += [f"address add {address} dev {BRIDGE}" for address in _with_prefix(addressing.gateway(node.index), 24, 64)]
    steps += [f"link set {BRIDGE} up"]
    steps += [f"address add {address} dev {UPLINK}" for address in _with_prefix(addressing.uplink(node.index), 24, 64)]
    steps += [f"link set {UPLINK} up"]
    for other in plan.nodes:
        if other is not node:
            for network, via in zip(addressing.pods(other.index), addressing.uplink(other.index), strict=True):
                steps.append(f"route add {network} via {via}")
    for address in addressing.host():
        steps.append(f"route add default via {address}")
    # What still goes to a VIP was not picked up by the mesh: say so at once instead of losing it somewhere.
    steps.append(f"route add unreachable {VIP4}")
    if addressing.dual_stack:
        steps.append(f"route add unreachable {VIP6}")
    return [Step(netns, step) for step in steps]


def workload_steps(plan: Plan, workload: Workload) -> list[Step]:
    """A workload's veth, addresses and routes. Its namespace exists already."""
    node, netns = plan.node(workload), plan.netns(workload)
    gateway = plan.addressing.gateway(workload.node)
    out = [
        Step(node.netns, f"link add {workload.host_interface} type veth peer name eth0 netns {netns}"),
        Step(node.netns, f"link set {workload.host_interface} master {BRIDGE} up"),
        Step(netns, "link set lo up"),
    ]
    own = [ipaddress.ip_network(network) for network in plan.addressing.pods(workload.node)]
    foreign = [ip for ip in workload.ips if not any(ipaddress.ip_address(ip) in network for network in own)]
    regular = [ip for ip in workload.ips if ip not in foreign]
    out += [Step(netns, f"address add {address} dev eth0") for address in _with_prefix(regular, 24, 64)]
    out += [Step(netns, f"address add {address} dev eth0") for address in _with_prefix(foreign, 32, 128)]
    out.append(Step(netns, "link set eth0 up"))
    for address in gateway:
        four_or_six = [ip for ip in workload.ips if (":" in ip) == (":" in address)]
        if not four_or_six:
            continue
        if not [ip for ip in regular if ip in four_or_six]:
            out.append(Step(netns, f"route add {address} dev eth0"))
        out.append(Step(netns, f"route add default via {address}"))
    for ip in foreign:
        out += _foreign_routes(plan, node, ip)
    return out


def _foreign_routes(plan: Plan, node: Node, ip: str) -> Iterator[Step]:
    """Routes to an address from outside the lab's networks (a WorkloadEntry's own)."""
    via = plan.addressing.uplink(node.index)[1 if ":" in ip else 0] if plan.addressing.dual_stack else None
    via = via or plan.addressing.uplink(node.index)[0]
    yield Step(node.netns, f"route replace {ip} dev {BRIDGE}")
    if (":" in ip) != (":" in via):
        return
    for other in plan.nodes:
        if other is not node:
            yield Step(other.netns, f"route replace {ip} via {via}")
    if not ipaddress.ip_address(ip).is_global:  # the machine keeps its own way to addresses of the Internet
        yield Step("", f"route add {ip} via {via}")


def batches(steps: Sequence[Step]) -> list[tuple[str, list[str]]]:
    """Adjoining steps of one namespace together, so that each batch costs one process."""
    out: list[tuple[str, list[str]]] = []
    for step in steps:
        if not out or out[-1][0] != step.netns:
            out.append((step.netns, []))
        out[-1][1].append(step.arguments)
    return out
