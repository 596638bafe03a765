"""The network of a lab as commands."""

from __future__ import annotations

import ipaddress

import pytest

from underpass.lab.addresses import Addressing, check_name, choose_octet, fabric_netns, host_interface_name, node_names
from underpass.lab.errors import LabError
from underpass.lab.images import Images
from underpass.lab.model import LinkOptions, Options, Plan, SourceFile
from underpass.lab.plan import make_plan
from underpass.lab.topology import (
    Step,
    base_steps,
    base_sysctls,
    batches,
    lossy_links,
    namespaces,
    workload_steps,
)

POD = """---
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec: {{containers: [{{name: c, image: i}}]}}
{rest}
"""


def plan(*names: str, rest: str = "", **options: object) -> Plan:
    text = "".join(POD.format(name=name, rest=rest) for name in names)
    return make_plan([SourceFile("a", "a", text)], Images(), Options(**options), 244)  # type: ignore[arg-type]


def test_one_node_is_joined_to_the_machine_directly() -> None:
    found = plan("a")
    assert namespaces(found) == ["underpass.node-1"]
    steps = base_steps(found)
    assert Step("", "link add underpass0 type veth peer name uplink netns underpass.node-1") in steps
    assert Step("", "route add 10.244.1.0/24 via 10.244.0.11") in steps
    assert Step("underpass.node-1", "address add 10.244.1.1/24 dev pods") in steps
    assert not any("fabric" in step.arguments for step in steps)


def test_several_nodes_meet_at_a_bridge_of_its_own_namespace() -> None:
    found = plan("a", "b", nodes=2)
    assert namespaces(found) == ["underpass.fabric", "underpass.node-1", "underpass.node-2"]
    steps = base_steps(found)
    assert Step("underpass.node-1", "route add 10.244.2.0/24 via 10.244.0.12") in steps
    assert Step("underpass.node-2", "route add 10.244.1.0/24 via 10.244.0.11") in steps
    assert {step.netns for step in steps} == {"", *namespaces(found)}


def test_only_a_bad_link_has_a_forwarder() -> None:
    assert lossy_links(plan("a", nodes=3)) == []
    bad = plan("a", nodes=3, link=LinkOptions(loss=0.01))
    assert [link.node.name for link in lossy_links(bad)] == ["node-2", "node-3"]
    steps = base_steps(bad)
    assert Step("underpass.fabric", "link set tapn-2 netns underpass.node-2") in steps
    assert Step("underpass.node-2", "link set tapn-2 name uplink") in steps


def test_a_workloads_own_network() -> None:
    found = plan("a", dual_stack=True)
    steps = workload_steps(found, found.workloads[0])
    netns = "underpass.node-1.default.a"
    assert Step("underpass.node-1", f"link add veth-0 type veth peer name eth0 netns {netns}") in steps
    assert Step(netns, "address add 10.244.1.10/24 dev eth0") in steps
    assert Step(netns, "address add fd00:244:1::a/64 nodad dev eth0") in steps
    assert Step(netns, "route add default via 10.244.1.1") in steps
    assert Step(netns, "route add default via fd00:244:1::1") in steps


@pytest.mark.parametrize(("ip", "from_machine"), [("172.20.0.5", True), ("8.8.4.4", False)])
def test_an_address_from_elsewhere_is_reachable_and_the_internet_stays_the_machines(
    ip: str, from_machine: bool
) -> None:
    found = plan("a", rest=f"status: {{podIP: {ip}}}", nodes=2)
    steps = workload_steps(found, found.workloads[0])
    netns = "underpass.node-1.default.a"
    assert Step(netns, f"address add {ip}/32 dev eth0") in steps
    assert steps.index(Step(netns, "route add 10.244.1.1 dev eth0")) < steps.index(
        Step(netns, "route add default via 10.244.1.1")
    )
    assert Step("underpass.node-1", f"route replace {ip} dev pods") in steps
    assert Step("underpass.node-2", f"route replace {ip} via 10.244.0.11") in steps
    assert (Step("", f"route add {ip} via 10.244.0.11") in steps) == from_machine


def test_nodes_forward() -> None:
    keys = {(sysctl.netns, sysctl.key) for sysctl in base_sysctls(plan("a", nodes=2))}
    assert ("underpass.node-1", "ipv4/ip_forward") in keys
    assert ("underpass.fabric", "ipv4/ip_forward") in keys


def test_steps_of_one_namespace_are_one_batch() -> None:
    steps = [Step("a", "1"), Step("a", "2"), Step("", "3"), Step("a", "4")]
    assert batches(steps) == [("a", ["1", "2"]), ("", ["3"]), ("a", ["4"])]


def test_addresses_never_collide() -> None:
    for dual in (False, True):
        addressing = Addressing(244, dual)
        made = [*addressing.host()]
        for node in range(1, 33):
            made += [*addressing.uplink(node), *addressing.gateway(node)]
            made += [ip for slot in range(240) for ip in addressing.pod(node, slot)]
        assert len(made) == len(set(made))
        networks = [ipaddress.ip_network(addressing.network4), ipaddress.ip_network(addressing.network6)]
        assert all(any(ipaddress.ip_address(ip) in network for network in networks) for ip in made)


def test_a_lab_takes_a_network_that_is_free() -> None:
    assert choose_octet(["192.168.0.0/16", "0.0.0.0/0"]) == 244
    assert choose_octet(["10.244.0.0/24", "10.245.3.4"]) == 246
    with pytest.raises(LabError, match="no network is free"):
        choose_octet(["10.0.0.0/8"])


def test_names() -> None:
    assert node_names("default", 2) == ["node-1", "node-2"]
    assert node_names("x", 1) == ["x-node-1"]
    assert fabric_netns("x") != fabric_netns("default")
    lengths = [len(host_interface_name(name)) for name in ("default", "a", "a" * 12, "a" * 24)]
    assert max(lengths) <= 15
    assert host_interface_name("a" * 23) != host_interface_name("a" * 24)
    for bad in ("", "A", "a.b", "a/b", "-a", "a" * 25, "a b"):
        with pytest.raises(LabError):
            check_name(bad)
    for count in (0, 33):
        with pytest.raises(LabError):
            node_names("x", count)
