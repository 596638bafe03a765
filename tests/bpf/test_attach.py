"""Enrolment of a real workload: what was taken away is put back, an upgrade loses no packet, and nothing stays."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.abi.numbers import Counter
from nodeagent.bpf import objects
from nodeagent.bpf.abc import AttachType, LinkInfo
from nodeagent.bpf.errors import NoSuchDeviceError
from nodeagent.node import programs
from nodeagent.node.attach import Attacher, Repair, workload_id
from nodeagent.node.netns import inside
from nodeagent.node.registry import Workload, parse
from tests.support.little_node import SERVICE_PORT, VIP4, LittleNode

pytestmark = [pytest.mark.needs("root", "bpf", "netns", "cgroup2"), pytest.mark.timeout(90)]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[LittleNode]:
    with LittleNode(tmp_path) as node:
        client = node.pod("client", 11)
        node.enroll(client, 7)
        yield node


def workload(node: LittleNode) -> Workload:
    return parse((node.paths.workloads / "default.client.json").read_bytes())


def links(node: LittleNode) -> dict[str, LinkInfo]:
    found = {}
    for path in node.paths.links_of("default/client").iterdir():
        link = node.kernel.pinned_link(path)
        found[path.name] = link.info()
        link.close()
    return found


def whys(repairs: list[Repair]) -> dict[str, str]:
    return {repair.slot: repair.why for repair in repairs}


@pytest.mark.needs("tcx")
def test_everything_is_attached_where_it_belongs(node: LittleNode) -> None:
    found = links(node)
    assert set(found) == {slot.name for slot in programs.SLOTS}
    cgroup = node.pods["client"].cgroup.stat().st_ino
    for slot in programs.SLOTS:
        info = found[slot.name]
        assert info.attach_type == slot.attach_type
        assert info.program_id == node.loaded.programs[slot.program].info().id
        assert (info.cgroup_id == cgroup) if slot.place == "cgroup" else (info.ifindex > 0)
    assert node.attacher.attach(workload(node)) == []
    assert workload_id(node.loaded.maps["cgroup_workload"], node.pods["client"].cgroup) == 7


@pytest.mark.needs("tcx")
def test_what_others_detach_is_put_back(node: LittleNode) -> None:
    found = links(node)
    for name in ("connect4", "pod_egress"):
        subprocess.run(["bpftool", "link", "detach", "id", str(found[name].id)], check=True)
    (node.paths.links_of("default/client") / "host_egress").unlink()
    assert whys(node.attacher.attach(workload(node))) == {
        "connect4": "it was detached", "pod_egress": "it was detached", "host_egress": "its pin was gone"
    }  # fmt: skip
    assert node.attacher.attach(workload(node)) == []
    # the number outlives the hooks: it belongs to the cgroup
    assert workload_id(node.loaded.maps["cgroup_workload"], node.pods["client"].cgroup) == 7


def test_a_restarted_agent_takes_over_what_is_there(node: LittleNode) -> None:
    before = links(node)
    again = programs.load(node.kernel, node.paths)
    assert again.replaced == []
    assert Attacher(node.kernel, node.paths, again.programs).attach(workload(node)) == []
    assert links(node) == before
    again.close()


def test_an_upgrade_under_load_fails_no_request(node: LittleNode, tmp_path: Path) -> None:
    """The same programs, compiled so that their tags differ: links stay, programs change, a client notices nothing."""
    server = node.pod("a", 12)
    node.serve(server)
    node.service()
    node.cluster(1, node.endpoint(1, server))
    node.route("a", 1, (1, 1))
    node.start_home()
    order = tmp_path / "order.json"
    request = {"send": "GET / HTTP/1.1\r\nHost: a\r\n\r\n"}
    order.write_text(json.dumps({"host": VIP4, "port": SERVICE_PORT, "requests": [request] * 4000}))
    client = str(Path(__file__).parents[1] / "support" / "keepalive_client.py")
    running = node.spawn(node.pods["client"], [sys.executable, client, str(order)], enrolled=True)
    before = links(node)
    other = tmp_path / "other"
    other.mkdir()
    kernel = Path(__file__).parents[2] / "kernel"
    for name in programs.OBJECTS:
        shutil.copy(objects.find(name), other / name)
    build = objects.find("vmlinux.h").parent
    source = (
        (kernel / "tc_host.bpf.c")
        .read_text()
        .replace("skb->len;\n\t}\n\treturn 0;", "skb->len;\n\t}\n\treturn skb->len > 1 << 30;")
    )
    (kernel_copy := other / "tc_host.bpf.c").write_text(source)
    subprocess.run(
        ["clang-19", "-g", "-O2", "-target", "bpf", "-mcpu=v3", "-D__TARGET_ARCH_x86", "-D__BPF__", f"-I{build}",
         f"-I{kernel}/include", f"-I{kernel}", "-c", str(kernel_copy), "-o", str(other / "tc_host.bpf.o")],
        check=True,
    )  # fmt: skip
    again = programs.load(node.kernel, node.paths, files=tuple(other / name for name in programs.OBJECTS))
    assert sorted(again.replaced) == ["up_from_pod", "up_to_pod"]
    after = links(node)
    assert {name: info.id for name, info in after.items()} == {name: info.id for name, info in before.items()}
    for name in ("host_ingress", "host_egress"):
        assert after[name].program_id != before[name].program_id
    output, _ = running.communicate(timeout=60)
    answers = json.loads(output)
    assert [answer for answer in answers if answer.get("status") != 200] == []
    assert len(answers) == 4000
    again.close()


def test_without_tcx_filters_under_clsact(node: LittleNode) -> None:
    node.attacher.detach("default/client", workload(node))
    assert not node.paths.links_of("default/client").exists()
    clsact = Attacher(node.kernel, node.paths, node.loaded.programs, tcx=False)
    assert set(whys(clsact.attach(workload(node))).values()) == {"new"}
    assert clsact.attach(workload(node)) == []
    pod = node.pods["client"]
    with inside(Path("/run/netns") / pod.ns):
        assert node.kernel.detach_clsact(socket.if_nametoindex("eth0"), AttachType.TCX_EGRESS)
    assert whys(clsact.attach(workload(node))) == {"pod_egress": "its filter was gone"}
    clsact.detach("default/client", workload(node))
    shown = subprocess.run(["tc", "filter", "show", "dev", pod.veth, "ingress"], check=True, capture_output=True)
    assert shown.stdout == b""


def test_a_workload_that_is_not_there(node: LittleNode) -> None:
    gone = workload(node)
    node.attacher.detach("default/client", gone)
    subprocess.run(["ip", "netns", "delete", node.pods["client"].ns], check=True)
    with pytest.raises(NoSuchDeviceError, match="has gone"):
        node.attacher.attach(gone)
    node.attacher.detach("default/client", gone)


REFUSED = """
#include "maps.h"
extern void up_no_such_function_of_a_kernel(void) __ksym;
char LICENSE[] SEC("license") = "Dual BSD/GPL";
SEC("tc") int up_egress(struct __sk_buff *skb) { up_no_such_function_of_a_kernel(); return skb->len > 1 << 30; }
SEC("tc") int up_ingress(struct __sk_buff *skb) { return skb->len > 1 << 30; }
"""


def test_a_kernel_that_refuses_the_programs_gets_the_older_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What kernels before 6.2 do: the object names a function that they lack. Requests are switched all the same."""
    mine = tmp_path / "objects"
    shutil.copytree(objects.find("tc_workload.bpf.o").parent, mine)
    kernel = Path(__file__).parents[2] / "kernel"
    (mine / "tc_workload.bpf.c").write_text(REFUSED)
    subprocess.run(
        ["clang-19", "-g", "-O2", "-target", "bpf", "-mcpu=v3", "-D__TARGET_ARCH_x86", "-D__BPF__", f"-I{mine}",
         f"-I{kernel}/include", f"-I{kernel}", "-c", str(mine / "tc_workload.bpf.c"),
         "-o", str(mine / "tc_workload.bpf.o")],
        check=True,
    )  # fmt: skip
    monkeypatch.setenv("UNDERPASS_OBJECTS", str(mine))
    with LittleNode(tmp_path) as node:
        client, servers = node.pod("client", 11), [node.pod("a", 12), node.pod("b", 13)]
        for number, server in enumerate(servers, 1):
            node.serve(server)
            node.cluster(number, node.endpoint(number, server))
            node.route(server.name, number, (1, number))
        node.service()
        node.enroll(client, 7)
        node.start_home()
        hosts = ["a", "b", "b", "a"] * 50
        requests = [{"send": f"GET /?bytes=3000 HTTP/1.1\r\nHost: {host}\r\n\r\n"} for host in hosts]
        (order := tmp_path / "order.json").write_text(
            json.dumps({"host": VIP4, "port": SERVICE_PORT, "requests": requests})
        )
        support = str(Path(__file__).parents[1] / "support" / "keepalive_client.py")
        answers = json.loads(node.run(client, [sys.executable, support, str(order)]))
        assert [answer.get("status") for answer in answers] == [200] * len(hosts)
        assert node.counter(Counter.KERNEL) >= len(hosts) - 10
        assert node.counter(Counter.SWITCHES) >= len(hosts) // 2 - 10
