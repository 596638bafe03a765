"""What a real Envoy is told of where its clients were going, and who cannot make it believe something else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from nodeagent.abi.numbers import WF_APART
from nodeagent.abi.records import Config, Service, ServiceKey, Workload, address
from tests.support.controlplane import wait_for
from tests.support.envoy_process import EnvoyProcess
from tests.support.little_node import HOME_PORT, SERVICE_PORT, TABLE, VIEW, VIP4, VIP6, LittleNode, Pod, ip

pytestmark = [pytest.mark.needs("root", "bpf", "core", "netns", "cgroup2", "envoy"), pytest.mark.timeout(60)]

BESIDE = HOME_PORT + 1
OTHER4 = "10.96.7.2"
_FILTERS = "type.googleapis.com/envoy.extensions.filters"
#: Connects ROUNDS times, from an address if one is given; prints what it was sent before the end.
CLIENT = """
import socket, sys
host, port, rounds, mine, mapped = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
for _ in range(rounds):
    sock = socket.socket(socket.AF_INET6 if ":" in host or mapped else socket.AF_INET)
    sock.settimeout(10)
    if mine:
        sock.bind((mine, 0))
    try:
        sock.connect(("::ffff:" + host if mapped else host, port))
        said = b""
        while more := sock.recv(100):
            said += more
        print(said.decode())
    except OSError as error:
        print(type(error).__name__)
    sock.close()
"""


def _listener(name: str, host: str, port: int, *, bound: bool = False) -> dict[str, Any]:
    """One that tells its name to whoever connects, and closes."""
    say = {"@type": f"{_FILTERS}.network.direct_response.v3.Config", "response": {"inline_string": name}}
    found: dict[str, Any] = {
        "name": name,
        "address": {"socket_address": {"address": host, "port_value": port}},
        "bind_to_port": bound,
        "filter_chains": [{"filters": [{"name": "say", "typed_config": say}]}],
    }
    if bound:
        what = {"@type": f"{_FILTERS}.listener.original_dst.v3.OriginalDst"}
        found |= {"use_original_dst": True, "listener_filters": [{"name": "where", "typed_config": what}]}
    return found


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LittleNode]:
    node = LittleNode(tmp_path_factory.mktemp("origin"))
    node.home_kind = 1
    with node:
        node.enroll(node.pod("client", 11), 1)
        node.pod("stranger", 12)
        node.service()
        for vip, port in ((OTHER4, SERVICE_PORT), (OTHER4, 81), (VIP4, 82)):
            node.put("services", ServiceKey(VIEW, port, 6, address(vip)).pack(), Service(kind=1, table=TABLE).pack())
        node.attacher.attach_waypoint()
        listeners = [
            _listener("nowhere", node.home4, HOME_PORT, bound=True),
            _listener("nowhere6", node.home6, HOME_PORT, bound=True),
            _listener("beside", node.home4, BESIDE, bound=True) | {"use_original_dst": False},
            _listener("first", VIP4, SERVICE_PORT),
            _listener("first6", VIP6, SERVICE_PORT),
            _listener("any81", "0.0.0.0", 81),
            _listener("any80", "0.0.0.0", SERVICE_PORT),
        ]
        enter = ["sh", "-c", f'echo $$ > {node.paths.waypoint_cgroup}/cgroup.procs; exec "$@"', "sh"]
        static = {"listeners": listeners}
        with EnvoyProcess(node.root, "127.0.0.1:1", "home", {}, "GRPC", static=static, prefix=enter) as envoy:
            wait_for("Envoy is ready", envoy.ready)
            yield node


def ask(
    node: LittleNode, pod: Pod, host: str, port: int, *, rounds: int = 1, mine: str = "", mapped: bool = False
) -> list[str]:
    command = [sys.executable, "-c", CLIENT, host, str(port), str(rounds), mine, "mapped" if mapped else ""]
    child = node.spawn(pod, command, enrolled=pod.name == "client")
    return child.communicate(timeout=30)[0].decode().split("\n")[:-1]


def test_the_listener_of_what_was_connected_to_is_chosen(node: LittleNode) -> None:
    """By address and port, by port alone, over IPv6, and from an IPv6 socket that speaks IPv4."""
    client = node.pods["client"]
    assert ask(node, client, VIP4, SERVICE_PORT, rounds=3) == ["first"] * 3
    assert ask(node, client, OTHER4, SERVICE_PORT) == ["any80"]
    assert ask(node, client, OTHER4, 81) == ["any81"]
    assert ask(node, client, VIP6, SERVICE_PORT) == ["first6"]
    assert ask(node, client, VIP4, SERVICE_PORT, mapped=True) == ["first"]


def test_many_at_once_are_each_told_their_own(node: LittleNode) -> None:
    client = node.pods["client"]
    command = [sys.executable, "-c", CLIENT]
    children = [
        (name, node.spawn(client, [*command, host, str(port), "100", "", ""], enrolled=True))
        for name, host, port in (
            ("first", VIP4, 80),
            ("any81", OTHER4, 81),
            ("first6", VIP6, 80),
            ("any80", OTHER4, 80),
        )
    ]
    for name, child in children:
        assert child.communicate(timeout=50)[0].decode().split() == [name] * 100
    assert list(node.loaded.maps["origins"].keys()) == []  # each was taken over


def test_who_was_not_sent_here_is_sent_nowhere(node: LittleNode) -> None:
    """A workload that connects to the home address itself, one that is not enrolled, the node's own processes."""
    assert ask(node, node.pods["client"], node.home4, HOME_PORT) == ["nowhere"]
    assert ask(node, node.pods["client"], node.home6, HOME_PORT) == ["nowhere6"]
    assert ask(node, node.pods["stranger"], node.home4, HOME_PORT) == ["nowhere"]
    here = subprocess.run(
        [sys.executable, "-c", CLIENT, node.home4, str(HOME_PORT), "1", "", ""], check=True, capture_output=True
    )
    assert here.stdout == b"nowhere\n"


def test_a_service_that_envoy_has_no_listener_for_leads_nowhere(node: LittleNode) -> None:
    assert ask(node, node.pods["client"], VIP4, 82) == ["nowhere"]


def test_a_workload_that_takes_another_address_is_nobodys_client(node: LittleNode) -> None:
    """What Envoy sees as the client's address is the workload's whose socket it is, or it is told nothing."""
    client = node.pods["client"]
    alien = f"{node.net4}.99"
    ip("addr", "add", f"{alien}/24", "dev", "eth0", ns=client.ns)
    try:
        assert ask(node, client, VIP4, SERVICE_PORT, mine=alien) == ["nowhere"]
        assert ask(node, client, VIP4, SERVICE_PORT, mine=client.ip4) == ["first"]
    finally:
        ip("addr", "del", f"{alien}/24", "dev", "eth0", ns=client.ns)


def test_a_workload_that_is_apart_goes_to_home_itself(node: LittleNode) -> None:
    """Where home listens beside Envoy; nowhere rather than to an Envoy that sees something else."""
    client, config, workloads = node.pods["client"], node.loaded.maps["config"], node.loaded.maps["workloads"]
    before, key = config.lookup(bytes(4)) or b"", (1).to_bytes(4, "little")
    record = Workload.unpack(workloads.lookup(key) or b"")
    config.update(bytes(4), replace(Config.unpack(before), own4=BESIDE).pack())
    workloads.update(key, replace(record, flags=WF_APART).pack())
    try:
        assert ask(node, client, VIP4, SERVICE_PORT) == ["beside"]
        assert ask(node, client, VIP4, SERVICE_PORT, mapped=True) == ["beside"]
        assert ask(node, client, VIP6, SERVICE_PORT) == ["ConnectionRefusedError"]
    finally:
        workloads.update(key, record.pack())
        config.update(bytes(4), before)
    assert ask(node, client, VIP4, SERVICE_PORT) == ["first"]


def test_a_tuple_used_again_is_not_taken_for_what_it_was(node: LittleNode) -> None:
    """The same four numbers for one service, for another, and straight to the home address."""
    again = """
import socket, struct, sys
def once(host, port):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no TIME_WAIT
    sock.bind((sys.argv[1], 40999))
    sock.connect((host, port))
    print(sock.recv(100).decode())
    sock.close()
for where in sys.argv[2:]:
    host, _, port = where.partition("=")
    once(host, int(port))
"""
    client = node.pods["client"]
    command = [sys.executable, "-c", again, client.ip4]
    services = [f"{VIP4}={SERVICE_PORT}", f"{OTHER4}=81"]
    assert node.run(client, [*command, *services * 3]).split() == ["first", "any81"] * 3
    conns = node.loaded.maps["conns"]
    conns.delete_many(list(conns.keys()))  # as home does a while after the client has closed
    assert node.run(client, [*command, f"{node.home4}={HOME_PORT}"]).split() == ["nowhere"]


def test_other_options_are_what_they_were(node: LittleNode) -> None:
    """In the same cgroup: values and lengths of options, of buffers beyond a page too; what is not ours is refused."""
    code = """
import ctypes, socket
libc = ctypes.CDLL(None, use_errno=True)
sock = socket.socket()
assert len(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1000)) > 200
assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
room, length = ctypes.create_string_buffer(9000), ctypes.c_uint32(9000)
assert libc.getsockopt(sock.fileno(), 6, 11, room, ctypes.byref(length)) == 0, ctypes.get_errno()
assert 200 < length.value < 1000, length.value
try:
    sock.getsockopt(socket.SOL_IP, 80, 16)
except OSError:
    print("refused")
"""
    enter = f'echo $$ > {node.paths.waypoint_cgroup}/cgroup.procs; exec "$@"'
    done = subprocess.run(["sh", "-c", enter, "sh", sys.executable, "-c", code], check=False, capture_output=True)
    assert done.stdout == b"refused\n", done.stderr.decode()
