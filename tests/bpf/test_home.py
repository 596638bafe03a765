"""Home and the data path together, without an agent: what a client sees, and what is left in the maps."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nodeagent.abi.codec import offset_of
from nodeagent.abi.numbers import Counter, Kind, Reason, State
from tests.support.little_node import SERVICE_PORT, VIP4, VIP6, LittleNode, Pod

pytestmark = [pytest.mark.needs("root", "bpf", "core", "netns", "cgroup2"), pytest.mark.timeout(120)]

HOSTILE = str(Path(__file__).parents[1] / "support" / "hostile_client.py")
CLIENT = str(Path(__file__).parents[1] / "support" / "keepalive_client.py")


@dataclass(frozen=True)
class Entry:
    """What these tests look at in an `up_conn`."""

    kind: int
    state: int
    endpoint: int
    home: int

    @classmethod
    def read(cls, value: bytes) -> Entry:
        endpoint, home = offset_of("up_conn", "endpoint"), offset_of("up_conn", "home")
        return cls(
            value[offset_of("up_conn", "kind")],
            value[offset_of("up_conn", "state")],
            int.from_bytes(value[endpoint : endpoint + 4], "little"),
            int.from_bytes(value[home : home + 4], "little"),
        )


class Setup:
    """A client, two servers a and b, and routes by host name."""

    def __init__(self, node: LittleNode) -> None:
        self.node = node
        self.client, self.a, self.b = node.pod("client", 11), node.pod("a", 12), node.pod("b", 13)
        node.serve(self.a)
        node.serve(self.b)
        node.service()
        node.cluster(1, node.endpoint(1, self.a))
        node.cluster(2, node.endpoint(2, self.b))
        node.cluster(3, node.endpoint(3, self.a, family=6))
        node.cluster(4)
        node.cluster(5, node.endpoint(5, self.b, port=9))
        node.route("a", 1, (1, 1))
        node.route("b", 2, (1, 2))
        node.route("six", 3, (1, 3))
        node.route("empty", 4, (1, 4))
        node.route("refusing", 5, (1, 5))
        node.route("unsupported", 6, reason=Reason.ROUTE_REWRITE)
        node.enroll(self.client, 1)
        node.start_home()

    def ask(self, requests: list[Any], host: str = VIP4, **more: Any) -> list[dict[str, Any]]:
        """Requests over one connection: a request is text, or a dictionary for keepalive_client."""
        order = [{"send": r} if isinstance(r, str) else r for r in requests]
        given = self.node.root / "order.json"  # longer than a command line may be
        given.write_text(json.dumps({"host": host, "port": SERVICE_PORT, "requests": order, **more}))
        output = self.node.run(self.client, [sys.executable, CLIENT, str(given)])
        answers: list[dict[str, Any]] = json.loads(output)
        return answers

    def conns(self) -> list[Entry]:
        return [Entry.read(value) for _, value in self.node.loaded.maps["conns"].items()]

    def upstreams(self, state: int | None = None) -> int:
        return sum(1 for c in self.conns() if c.kind == Kind.UPSTREAM and state in (None, c.state))


def get(host: str, path: str = "/", **headers: str) -> str:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n"


def post(host: str, body: str, path: str = "/") -> str:
    return f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n{body}"


def eventually(condition: Callable[[], bool], seconds: float = 15.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def servers(answers: list[dict[str, Any]]) -> list[str]:
    return [
        json.loads(answer["body"])["workload"] if answer.get("status") == 200 else str(answer) for answer in answers
    ]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    with LittleNode(tmp_path_factory.mktemp("home")) as node:
        yield Setup(node)


def test_requests_of_one_connection_go_where_they_belong(setup: Setup) -> None:
    hosts = ["a", "b", "a", "a", "b", "b"] * 20
    before = setup.node.counter(Counter.KERNEL)
    answers = setup.ask([get(host, f"/{i}") for i, host in enumerate(hosts)])
    assert servers(answers) == hosts
    assert [json.loads(answer["body"])["path"] for answer in answers] == [f"/{i}" for i in range(len(hosts))]
    # a cold stock sends the first requests through home; it must not take many
    assert setup.node.counter(Counter.KERNEL) - before >= len(hosts) - 10


def test_ipv6_and_mapped(setup: Setup) -> None:
    for _ in range(2):
        assert servers(setup.ask([get("six")] * 10, host=VIP6)) == ["a"] * 10
    before = setup.node.counter(Counter.KERNEL)
    assert servers(setup.ask([get("six")] * 10, host=VIP6)) == ["a"] * 10
    assert setup.node.counter(Counter.KERNEL) - before == 10
    assert servers(setup.ask([get("a")] * 10, host=f"::ffff:{VIP4}")) == ["a"] * 10
    # an IPv4 connection to an IPv6 endpoint cannot be lent a wire; home serves it
    assert servers(setup.ask([get("six")] * 3)) == ["a"] * 3


def test_a_head_cut_anywhere_is_served_and_the_kernel_takes_over_again(setup: Setup) -> None:
    whole = post("b", "x" * 50)
    for cut in (1, 5, 20, 40, len(whole) - 60, len(whole) - 51):
        before = setup.node.counter(Counter.KERNEL)
        answers = setup.ask([{"send": [whole[:cut], whole[cut:]], "pause": 0.02}, *[get("a")] * 5])
        assert servers(answers) == ["b", *["a"] * 5], cut
        assert json.loads(answers[0]["body"])["body_bytes"] == 50
        assert setup.node.counter(Counter.KERNEL) - before >= 5, cut


def test_pipelined_requests_are_answered_in_order(setup: Setup) -> None:
    hosts = ["a", "b", "b", "a", "b", "a"]
    text = "".join(post(host, f"body{i}", f"/{i}") for i, host in enumerate(hosts))
    for parts in ([text], [text[:70], text[70:]], [text[i : i + 11] for i in range(0, len(text), 11)]):
        answers = setup.ask([{"send": parts, "answers": len(hosts), "pause": 0.002}, get("b"), get("a")])
        assert servers(answers) == [*hosts, "b", "a"]
        assert [json.loads(a["body"])["path"] for a in answers[:6]] == [f"/{i}" for i in range(6)]


@pytest.mark.parametrize(
    ("request_text", "status", "reason"),
    [
        (get("nobody"), 404, "no-virtual-host"),
        (get("empty"), 503, "no-endpoint"),
        (get("unsupported"), 503, "route-rewrite"),
        (get("refusing"), 503, "connect-failed"),
        (get("a").replace("HTTP/1.1", "HTTP/1.0"), 505, "bad-version"),
        (get("a").replace("Host", "Hos t"), 400, "bad-header-name"),
        (get("a", "/a/../b"), 501, "path-not-normal"),
        (get("a", X="a\x01b"), 400, "bad-header-value"),
        ("GET / HTTP/1.1\r\nX: y\r\n\r\n", 400, "no-host"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501, "chunked-request"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400, "bad-content-length"),
        (get("a", Upgrade="websocket", Connection="upgrade"), 501, "upgrade"),
        (get("a", X="y" * 5000), 431, "head-too-long"),
        (get("a", **{f"X{i}": "y" for i in range(70)}), 431, "too-many-lines"),
        ("BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501, "bad-method"),
    ],
)
def test_refusals_name_their_reason(setup: Setup, request_text: str, status: int, reason: str) -> None:
    answer = setup.ask([request_text])[0]
    assert (answer.get("status"), answer.get("headers", {}).get("x-underpass-reason")) == (status, reason), answer


def test_a_refused_request_with_a_body_leaves_the_connection_usable(setup: Setup) -> None:
    answers = setup.ask([post("nobody", "y" * 300_000), get("b"), post("empty", "z"), get("a")])
    assert [answer.get("status") for answer in answers] == [404, 200, 503, 200]
    assert servers([answers[1], answers[3]]) == ["b", "a"]


def test_long_bodies_through_home(setup: Setup) -> None:
    size = 24 << 20
    head = get("a", f"/?bytes={size}")
    answers = setup.ask([{"send": [head[:9], head[9:]]}, get("b")])
    assert answers[0]["status"] == 200
    assert len(answers[0]["body"]) == size
    assert servers(answers[1:]) == ["b"]
    body = os.urandom(3 << 20).hex()
    text = post("b", body)
    answers = setup.ask([{"send": [text[:9], text[9:]]}, get("a")])
    answer = json.loads(answers[0]["body"])
    assert answer["body_sha256"] == hashlib.sha256(body.encode()).hexdigest()
    assert servers(answers) == ["b", "a"]
    chunked = get("a", "/?bytes=3000000&chunked=1")
    answers = setup.ask([{"send": [chunked[:9], chunked[9:]]}, get("b")])
    assert len(answers[0]["body"]) == 3_000_000
    assert servers(answers[1:]) == ["b"]


def test_interim_responses_and_head_and_close(setup: Setup) -> None:
    cut = [
        {"send": [text[:9], text[9:]]}
        for text in (
            get("a", "/?interim=2"),
            get("b").replace("GET", "HEAD"),
            get("b", "/?status=204"),
            get("a", "/?status=503"),
        )
    ]
    answers = setup.ask([*cut, get("b"), {"send": [get("a", "/?close=1")[:9], get("a", "/?close=1")[9:]]}])
    assert [answer["status"] for answer in answers] == [200, 200, 204, 503, 200, 200]


def test_an_endpoint_that_goes_takes_its_upstreams_with_it(setup: Setup) -> None:
    node = setup.node
    node.cluster(9, node.endpoint(9, setup.b, port=8080))
    node.route("leaving", 9, (1, 9))
    assert servers(setup.ask([get("leaving")] * 5)) == ["b"] * 5
    assert eventually(lambda: any(c.endpoint == 9 and c.kind == Kind.UPSTREAM for c in setup.conns()))
    node.endpoint(9, setup.b, live=0)
    node.cluster(9)
    node.bump()
    assert eventually(lambda: not any(c.endpoint == 9 and c.kind == Kind.UPSTREAM for c in setup.conns()))
    answer = setup.ask([get("leaving")])[0]
    assert answer["headers"]["x-underpass-reason"] == "no-endpoint"


def sockets_to(server: Pod, client: Pod) -> int:
    """Established connections that the server has with the client's address, as the server's kernel sees them."""
    command = ["ip", "netns", "exec", server.ns, "ss", "-Htn", "state", "established", "dst", client.ip4]
    return len(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines())


def test_what_home_closes_is_closed_at_the_endpoint(setup: Setup) -> None:
    """Wires that were lent have other numbers than their sockets: the reset must carry the wire's."""
    node = setup.node
    extra = node.pod("extra", 14)
    node.serve(extra)
    node.cluster(10, node.endpoint(10, extra))
    node.route("extra", 10, (1, 10))
    hosts = ["extra", "a"] * 20
    assert servers(setup.ask([get(host) for host in hosts])) == hosts
    # the server may repeat its last bytes once, 200 ms later; a socket that is closed by then would answer with a
    # reset of the right numbers anyhow, and hide what this test is about
    time.sleep(0.7)
    assert sockets_to(extra, setup.client) > 0
    node.endpoint(10, extra, live=0)
    node.cluster(10)
    node.bump()
    assert eventually(lambda: sockets_to(extra, setup.client) == 0), "the endpoint still believes in connections"


def test_many_connections_leave_nothing_behind(setup: Setup) -> None:
    script = (
        "import socket,sys\n"
        "for i in range(400):\n"
        f" s=socket.create_connection(('{VIP4}',{SERVICE_PORT}),5)\n"
        " s.sendall(b'GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n')\n"
        " assert s.recv(65536).startswith(b'HTTP/1.1 200'), i\n"
        " s.close()\n"
    )
    setup.node.run(setup.client, [sys.executable, "-c", script])
    assert eventually(lambda: not any(c.kind == Kind.CLIENT for c in setup.conns())), "client entries stay"
    assert eventually(lambda: setup.upstreams() == setup.upstreams(State.FREE))


def retransmitted(setup: Setup) -> int:
    output = setup.node.run(setup.client, ["cat", "/proc/self/net/snmp"])
    names, values = (line.split() for line in output.splitlines() if line.startswith("Tcp:"))
    return int(values[names.index("RetransSegs")])


def test_connections_of_one_request_lose_no_packet(setup: Setup) -> None:
    """Fresh wires are lent the moment they are there, and ports come back within a second."""
    script = (
        "import socket\n"
        "for i in range(2000):\n"
        f" s=socket.create_connection(('{VIP4}',{SERVICE_PORT}),5); s.settimeout(5)\n"
        " s.sendall(b'GET / HTTP/1.1\\r\\nHost: b\\r\\nConnection: close\\r\\n\\r\\n')\n"
        " data=b''\n"
        " while more:=s.recv(65536): data+=more\n"
        " assert data.startswith(b'HTTP/1.1 200'), data\n"
        " s.close()\n"
    )
    before = retransmitted(setup)
    setup.node.run(setup.client, [sys.executable, "-c", script])
    assert retransmitted(setup) - before <= 1


def test_concurrent_connections(setup: Setup) -> None:
    script = (
        "import asyncio\n"
        "async def one(n):\n"
        f" r,w=await asyncio.open_connection('{VIP4}',{SERVICE_PORT})\n"
        " for i in range(20):\n"
        "  h='ab'[(n+i)%2]\n"
        "  w.write(f'GET /{n}/{i} HTTP/1.1\\r\\nHost: {h}\\r\\n\\r\\n'.encode())\n"
        "  head=await r.readuntil(b'\\r\\n\\r\\n')\n"
        "  size=int([l for l in head.split(b'\\r\\n') if l.lower().startswith(b'content-length')][0].split(b':')[1])\n"
        "  body=await r.readexactly(size)\n"
        "  assert f'\"workload\": \"{h}\"'.encode() in body and f'/{n}/{i}'.encode() in body, body\n"
        " w.close()\n"
        "async def main(): await asyncio.gather(*(one(n) for n in range(200)))\n"
        "asyncio.run(main())\n"
    )
    before = setup.node.counter(Counter.KERNEL)
    setup.node.run(setup.client, [sys.executable, "-c", script])
    assert setup.node.counter(Counter.KERNEL) - before > 0.8 * 4000


def test_restart_cleans_up_after_a_crash(setup: Setup) -> None:
    node = setup.node
    setup.ask([get("a"), get("b")] * 5)
    assert setup.upstreams() > 0
    node.stop_home(kill=True)
    node.start_home()
    assert eventually(
        lambda: all(c.home == node.status()["generation"] for c in setup.conns() if c.kind == Kind.UPSTREAM)
    )
    hosts = ["a", "b"] * 10
    assert servers(setup.ask([get(host) for host in hosts])) == hosts
    assert not re.search("Traceback", node.home_log.read_text())


def test_a_lent_wire_outlives_a_crash_of_home(setup: Setup) -> None:
    script = (
        "import socket,time\n"
        f"s=socket.create_connection(('{VIP4}',{SERVICE_PORT}),5)\n"
        "for n in range(3):\n"
        " s.sendall(b'GET /?bytes=%d HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n' % (20000000 if n==2 else 10))\n"
        " head=b''\n"
        " while b'\\r\\n\\r\\n' not in head: head+=s.recv(1)\n"
        " left=20000000 if n==2 else 10\n"
        " if n==2: print('begun',flush=True)\n"
        " while left:\n"
        "  data=s.recv(min(left,200000)); left-=len(data)\n"
        "  assert data, left\n"
        "  if n==2: time.sleep(.01)\n"
        "print('whole',flush=True)\n"
    )
    child = setup.node.spawn(setup.client, [sys.executable, "-c", script], enrolled=True)
    assert child.stdout is not None
    assert child.stdout.readline() == b"begun\n"
    setup.node.stop_home(kill=True)
    setup.node.start_home()
    assert child.stdout.readline() == b"whole\n"
    assert servers(setup.ask([get("a"), get("b")] * 5)) == ["a", "b"] * 5


def test_a_workload_that_goes_takes_its_upstreams_with_it(setup: Setup) -> None:
    node = setup.node
    setup.ask([get("a"), get("b")] * 5)
    path = node.paths.workloads / "default.client.json"
    data = path.read_bytes()
    path.unlink()
    assert eventually(lambda: setup.upstreams() == 0)
    path.with_suffix(".tmp").write_bytes(data)
    path.with_suffix(".tmp").rename(path)
    assert eventually(lambda: node.status()["workloads"] == ["default/client"])
    assert servers(setup.ask([get("a"), get("b")] * 5)) == ["a", "b"] * 5


def test_sigterm_answers_what_is_under_way(setup: Setup) -> None:
    node = setup.node
    slow = get("a", "/?delay=700ms")
    order = node.root / "slow.json"
    requests = [{"send": [slow[:9], slow[9:]]}]
    order.write_text(json.dumps({"host": VIP4, "port": SERVICE_PORT, "requests": requests}))
    child = node.spawn(setup.client, [sys.executable, CLIENT, str(order)], enrolled=True)
    time.sleep(0.4)
    assert 0.1 < node.stop_home() < 4
    output, _ = child.communicate(timeout=10)
    assert json.loads(output)[0]["status"] == 200
    assert setup.upstreams() == 0
    node.start_home()


def test_two_homes_of_one_node(setup: Setup) -> None:
    command = [
        sys.executable,
        "-m",
        "nodeagent.home.app",
        "--node",
        setup.node.node,
        "--run-dir",
        str(setup.node.paths.run),
    ]
    second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert second.returncode == 2
    assert "another home of this node is running" in second.stderr
    assert "Traceback" not in second.stderr


def idle_clients(node: LittleNode, pod: Pod, count: int) -> subprocess.Popen[bytes]:
    """Connections that have each asked once, and ask once more when a line comes on standard input."""
    script = (
        "import socket,sys\n"
        "def ask(s):\n"
        " s.sendall(b'GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n')\n"
        " assert s.recv(65536).startswith(b'HTTP/1.1 200')\n"
        f"all=[socket.create_connection(('{VIP4}',{SERVICE_PORT}),5) for i in range({count})]\n"
        "for s in all: s.settimeout(5); ask(s)\n"
        "for s in all: ask(s)\n"
        "print('ready',flush=True)\n"
        "sys.stdin.readline()\n"
        "for s in all: ask(s)\n"
        "print('done',flush=True)\n"
    )
    return node.spawn(pod, [sys.executable, "-c", script], enrolled=True)


def test_idle_clients_give_their_wires_back_at_the_limit(tmp_path: Path) -> None:
    with LittleNode(tmp_path, ["--max-upstreams", "6"]) as node:
        setup = Setup(node)
        idle = idle_clients(node, setup.client, 12)
        assert idle.stdin is not None
        assert idle.stdout is not None
        assert idle.stdout.readline() == b"ready\n"
        assert eventually(lambda: setup.upstreams(State.FREE) > 0), "wires of idle clients"
        assert setup.upstreams() <= 6
        before = node.counter(Counter.KERNEL)
        assert servers(setup.ask([get("a")] * 20)) == ["a"] * 20
        assert node.counter(Counter.KERNEL) - before >= 15
        idle.stdin.write(b"\n")
        idle.stdin.flush()
        assert idle.stdout.readline() == b"done\n"
        assert node.counter(Counter.RECLAIMED) > 0
        assert "Traceback" not in node.home_log.read_text()


@pytest.mark.parametrize(("mode", "rounds"), [("mutate", 400), ("pipeline", 300)])
def test_hostile_clients_hurt_nobody(setup: Setup, mode: str, rounds: int) -> None:
    """Nobody is left without an answer, no answer is another's, and wires stay fit for their next client."""
    for number in range(2):
        command = [sys.executable, HOSTILE, mode, VIP4, str(SERVICE_PORT), str(rounds), str(number)]
        assert setup.node.run(setup.client, command, 100) == f"rounds {rounds}\n"
        assert servers(setup.ask([get("a"), get("b")] * 10)) == ["a", "b"] * 10
    time.sleep(1.2)
    assert setup.node.status()["faults"] == 0, setup.node.home_log.read_text()
