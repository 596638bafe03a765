"""A real Envoy as the home peer: it answers what is punted, the kernel the rest; home keeps upstreams, no listener."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent.abi.numbers import Counter, Reason
from tests.support.envoy_process import EnvoyProcess
from tests.support.little_node import HOME_PORT, SERVER_PORT, SERVICE_PORT, VIP4, VIP6, LittleNode

pytestmark = [pytest.mark.needs("root", "bpf", "core", "netns", "cgroup2", "envoy"), pytest.mark.timeout(120)]

CLIENT = str(Path(__file__).parents[1] / "support" / "keepalive_client.py")
_EXTENSIONS = "type.googleapis.com/envoy.extensions.filters"


def bootstrap(node: LittleNode, routes: dict[str, str]) -> dict[str, Any]:
    """Envoy's listeners at the home addresses, and the routes (host -> pod) that the kernel has."""
    hosts = [
        {"name": host, "domains": [host], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": pod}}]}
        for host, pod in routes.items()
    ]
    manager = {
        "@type": f"{_EXTENSIONS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "home",
        "route_config": {"virtual_hosts": hosts},
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{_EXTENSIONS}.http.router.v3.Router"}}],
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    listeners = [
        {
            "name": where,
            "address": {"socket_address": {"address": where, "port_value": HOME_PORT}},
            "filter_chains": [chain],
        }
        for where in (node.home4, node.home6)
    ]
    clusters = [
        {
            "name": name,
            "type": "STATIC",
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {
                    "address": node.pods[name].ip4, "port_value": SERVER_PORT}}}}]}],
            },
        }
        for name in sorted(set(routes.values()))
    ]  # fmt: skip
    return {"listeners": listeners, "clusters": clusters}


class Setup:
    """A client, servers a and b, an Envoy in home's place."""

    def __init__(self, node: LittleNode) -> None:
        self.node, self.client = node, node.pod("client", 11)
        for name, host in (("a", 12), ("b", 13)):
            node.serve(node.pod(name, host))
        node.service()
        a, b = node.pods["a"], node.pods["b"]
        node.cluster(1, node.endpoint(1, a))
        node.cluster(2, node.endpoint(2, b))
        node.cluster(3, node.endpoint(3, b, port=SERVER_PORT + 1))
        node.cluster(6, node.endpoint(6, a, family=6))
        node.route("a", 1, (1, 1))
        node.route("b", 2, (1, 2))
        node.route("dry", 3, (1, 3))  # nothing listens there: its stock stays empty for ever
        node.route("rewritten", 4, reason=Reason.ROUTE_REWRITE)
        node.route("six", 6, (1, 6))
        node.enroll(self.client, 1)
        node.start_home()

    def ask(self, requests: list[Any], host: str = VIP4) -> list[tuple[str, str]]:
        """Who decided (envoy or kernel) and who answered each request of one connection."""
        order = self.node.root / "order.json"
        sends = [{"send": r} if isinstance(r, str) else r for r in requests]
        order.write_text(json.dumps({"host": host, "port": SERVICE_PORT, "requests": sends}))
        answers = json.loads(self.node.run(self.client, [sys.executable, CLIENT, str(order)]))
        assert [answer.get("status") for answer in answers] == [200] * len(answers), answers
        return [
            ("envoy" if "x-envoy-upstream-service-time" in answer["headers"] else "kernel", who(answer["body"]))
            for answer in answers
        ]

    def warm(self, *hosts: str, vip: str = VIP4) -> None:
        """Until the stock of every host is there."""
        deadline = time.monotonic() + 15
        while any(decider != "kernel" for decider, _ in self.ask([get(host) for host in hosts], vip)):
            assert time.monotonic() < deadline, "the kernel never takes over"
            time.sleep(0.1)


def who(body: str) -> str:
    try:
        return str(json.loads(body)["workload"])
    except ValueError:
        return f"{len(body)} bytes"


def get(host: str, path: str = "/") -> str:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    node = LittleNode(tmp_path_factory.mktemp("home-envoy"))
    node.home_kind = 1
    with node:
        made = Setup(node)
        routes = {"a": "a", "b": "b", "dry": "b", "rewritten": "a", "six": "a"}
        static = bootstrap(node, routes)
        with EnvoyProcess(node.root, "127.0.0.1:1", "home", {}, "GRPC", static=static):
            yield made


def test_home_only_keeps_upstreams(setup: Setup) -> None:
    setup.warm("a", "b")
    status = setup.node.status()
    assert status["listen"] == []
    assert status["requests"] == 0


def test_the_first_request_finds_an_empty_stock_and_the_next_ones_the_kernel(setup: Setup) -> None:
    assert setup.ask([get("dry")] * 3) == [("envoy", "b")] * 3
    setup.warm("a")
    assert setup.ask([get("a"), get("dry"), get("a"), get("a")]) == [
        ("kernel", "a"), ("envoy", "b"), ("kernel", "a"), ("kernel", "a"),
    ]  # fmt: skip


LATER = {"send": ["POST /path HTTP/1.1\r\nHost: rewritten\r\nContent-Length: 5\r\n\r\n", "hello"], "pause": 0.05}


def check_back(setup: Setup, punted: Any) -> None:
    setup.warm("a", "b")
    kernel = setup.node.counter(Counter.KERNEL)
    deciders = [decider for decider, _ in setup.ask([get("a"), punted, get("b"), punted, get("a"), get("b")])]
    assert deciders == ["kernel", "envoy", "kernel", "envoy", "kernel", "kernel"]
    assert setup.node.counter(Counter.KERNEL) - kernel == 4


@pytest.mark.parametrize(
    "punted",
    [
        get("rewritten"),
        get("rewritten", "/?chunked=1"),
        get("rewritten", "/?bytes=300000"),
        "POST / HTTP/1.1\r\nHost: rewritten\r\nContent-Length: 70000\r\n\r\n" + "x" * 70000,
        LATER,
    ],
    ids=["small", "chunked", "long", "upload", "body-later"],
)
def test_after_a_punt_the_kernel_takes_over_again(setup: Setup, punted: Any) -> None:
    """No SYNC comes from an Envoy: the kernel itself sees where the response on the home wire ends."""
    check_back(setup, punted)


def test_a_head_of_another_form_is_envoys_to_answer(setup: Setup) -> None:
    """Its framing is not the kernel's to judge, so the connection stays where it is, and every answer is right."""
    setup.warm("a", "b")
    answers = setup.ask([get("a"), get("b", "/a%20b"), get("a"), get("b")])
    assert answers[:2] == [("kernel", "a"), ("envoy", "b")]
    assert [name for _, name in answers[2:]] == ["a", "b"]


@pytest.mark.xfail(strict=True, reason="the parser stops at the path, before it knows the request's framing")
def test_after_a_head_of_another_form_the_kernel_takes_over_again(setup: Setup) -> None:
    check_back(setup, get("b", "/a%20b"))


def test_what_has_no_certain_end_stays_with_envoy(setup: Setup) -> None:
    """Pipelined requests: in order, all by Envoy, and so is what follows on that connection, correctly."""
    setup.warm("a", "b")
    piped = {"send": get("a") + get("b") + get("a"), "answers": 3}
    assert setup.ask([piped, get("b"), get("a")]) == [("envoy", name) for name in "ababa"]
    assert setup.ask([get("b")]) == [("kernel", "b")]


def test_ipv6(setup: Setup) -> None:
    setup.warm("six", vip=VIP6)
    answers = setup.ask([get("six"), get("rewritten"), get("six")], VIP6)
    assert [decider for decider, _ in answers] == ["kernel", "envoy", "kernel"]
