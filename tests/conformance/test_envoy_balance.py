"""Shares of endpoints and ejections against a real Envoy's: the same cluster, the same requests, the same outcome."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any, Final

import pytest

from nodeagent.cache.clusters import decode_cluster
from nodeagent.core.decide import Decision
from nodeagent.core.libcore import Core, ResponseReader
from nodeagent.health.outlier import Detector, Run, Watch, What
from nodeagent.home.budgets import Budgets
from nodeagent.home.commands import Send
from nodeagent.home.exchange import Exchange, Request
from nodeagent.intent.clusters import draft
from nodeagent.rules.model import Rule
from tests.conformance.test_home_rules import _HTTP, _TYPE
from tests.support.backends import free_port
from tests.support.envoy_process import EnvoyProcess
from underpass.api import envoy

pytestmark = [pytest.mark.timeout(120), pytest.mark.needs("envoy")]

REQUESTS: Final = 1000
#: Standard deviations that a share may be off: one test in 30,000 with as many endpoints as there are here.
FAR: Final = 4.7
_LOCALITIES: Final[dict[str, Any]] = {
    "common_lb_config": {"healthy_panic_threshold": {}, "locality_weighted_lb_config": {}}
}
_BELIEVED: Final[dict[str, Any]] = {"common_lb_config": {"healthy_panic_threshold": {}}}


def place(priority: int, states: str, weight: int = 0, zone: str = "a") -> dict[str, Any]:
    """Endpoints of a locality: h healthy, u unhealthy, d degraded, H healthy with three times the weight."""
    status = {"h": "HEALTHY", "H": "HEALTHY", "u": "UNHEALTHY", "d": "DEGRADED"}
    found: dict[str, Any] = {"locality": {"region": "r", "zone": zone}, "priority": priority, "lb_endpoints": []}
    if weight:
        found["load_balancing_weight"] = weight
    for number, state in enumerate(states):
        address = f"127.0.{10 * priority + ord(zone) - ord('a') + 1}.{number + 1}"
        where = {"socket_address": {"address": address, "port_value": 1}}
        weighs = 3 if state == "H" else 1
        end = {"endpoint": {"address": where}, "health_status": status[state], "load_balancing_weight": weighs}
        found["lb_endpoints"].append(end)
    return found


CASES: Final[dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]] = {
    "whole": ([place(0, "hhh"), place(1, "hh")], _BELIEVED),
    "spills": ([place(0, "hhhuu"), place(1, "hh")], _BELIEVED),
    "spills-least-request": ([place(0, "hhhuu"), place(1, "hh")], {**_BELIEVED, "lb_policy": "LEAST_REQUEST"}),
    "three": ([place(0, "hu"), place(1, "huuuu"), place(2, "hh")], _BELIEVED),
    "short-of-all": ([place(0, "huuuu"), place(1, "huuuuuuuuu")], _BELIEVED),
    "degraded": ([place(0, "hddd")], _BELIEVED),
    "degraded-later": ([place(0, "hudd"), place(1, "hu")], _BELIEVED),
    "weights": ([place(0, "Hhu")], _BELIEVED),
    "localities": ([place(0, "hh", 3), place(0, "hhh", 1, "b")], _LOCALITIES),
    "localities-fail": ([place(0, "huuu", 3), place(0, "hhuu", 1, "b"), place(1, "h", 1)], _LOCALITIES),
    "localities-unweighted": ([place(0, "h"), place(0, "hhh", zone="b")], _LOCALITIES),
    "localities-ignored": ([place(0, "h", 9), place(0, "hhh", 1, "b")], _BELIEVED),
    "panic": ([place(0, "huuu")], {}),
    "panic-of-one": ([place(0, "huuuuu"), place(1, "hhhuuu")], {}),
    "nobody-believed": ([place(0, "uu"), place(1, "u")], _BELIEVED),
    "nobody": ([place(0, "uu"), place(1, "uuu")], {}),
}
#: Percent, whether one may always be out, how many of four fail.
LIMITS: Final = [
    (10, False, 1),
    (10, True, 2),
    (24, False, 2),
    (25, False, 2),
    (50, False, 3),
    (74, False, 4),
    (100, False, 4),
]


def limited(percent: int, one: bool) -> dict[str, Any]:
    return {
        **_BELIEVED,
        "outlier_detection": {
            "consecutive_5xx": 3, "enforcing_success_rate": 0, "max_ejection_percent": percent, "interval": "60s",
            "always_eject_one_host": one,
        },
    }  # fmt: skip


def clusters() -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    out = {f"out-{percent}-{int(one)}": ([place(0, "hhhh")], limited(percent, one)) for percent, one, _ in LIMITS}
    few = {"circuit_breakers": {"thresholds": [{"max_requests": 1}]}}
    return {**CASES, **out, "few": ([place(0, "h")], few)}


def cluster(name: str, port: int) -> dict[str, Any]:
    places, settings = clusters()[name]
    moved = [
        {
            **place_,
            "lb_endpoints": [
                {**end, "endpoint": {"address": {"socket_address": {"address": _address(end), "port_value": port}}}}
                for end in place_["lb_endpoints"]
            ],
        }
        for place_ in places
    ]
    assignment = {"cluster_name": name, "endpoints": moved}
    return {"name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": assignment, **settings}


def _address(end: dict[str, Any]) -> str:
    return str(end["endpoint"]["address"]["socket_address"]["address"])


def serve(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def answer(connection: socket.socket) -> None:
    """Says its address; 503 where the header x-bad names it, after a while with x-slow."""
    own = connection.getsockname()[0].encode()
    bad = False
    with connection, connection.makefile("rb") as stream:
        while line := stream.readline():
            if line.lower().startswith(b"x-bad:"):
                bad = own in line.split(b":")[1].strip().split(b",")
            if line.lower().startswith(b"x-slow:"):
                threading.Event().wait(0.5)
            if line == b"\r\n":
                status = b"503 Bad" if bad else b"200 OK"
                connection.sendall(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(own), own))
                bad = False


@dataclass
class Oracle:
    """An Envoy, and the port that all its endpoints have."""

    envoy: EnvoyProcess
    port: int
    server: int

    def ask(self, name: str, count: int, bad: str = "") -> Counter[str]:
        """Who answered so many requests; empty: nobody."""
        found: Counter[str] = Counter()
        with socket.create_connection(("127.0.0.1", self.port), 10) as client, client.makefile("rb") as stream:
            for _ in range(count):
                client.sendall(f"GET /{name}/ HTTP/1.1\r\nhost: a\r\nx-bad: {bad}\r\n\r\n".encode())
                size, first = 0, stream.readline()
                while (line := stream.readline()) != b"\r\n":
                    if line.lower().startswith(b"content-length:"):
                        size = int(line.split(b":")[1])
                body = stream.read(size).decode()
                found[body if body.startswith("127.") else ""] += 1
                assert first.startswith(b"HTTP/1.1 ")
        return found

    def out(self, name: str) -> set[str]:
        """Who is ejected."""
        rows = (line.split("::") for line in self.envoy.get("/clusters").splitlines())
        return {row[1] for row in rows if row[0] == name and row[-2:-1] == ["health_flags"] and "outlier" in row[-1]}


@pytest.fixture(name="oracle", scope="module")
def _oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    listener = socket.create_server(("0.0.0.0", 0), backlog=64)
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    port, server = free_port(), listener.getsockname()[1]
    names = list(clusters())
    entries = [{"match": {"prefix": f"/{name}/"}, "route": {"cluster": name}} for name in names]
    manager = {
        "@type": f"{_TYPE}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "route_config": {"name": "t", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": entries}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{_TYPE}{_HTTP}router.v3.Router"}}],
    }
    chain = {"filters": [{"name": "hcm", "typed_config": manager}]}
    where = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    static = {
        "listeners": [{"name": "l", "address": where, "filter_chains": [chain]}],
        "clusters": [cluster(name, server) for name in names],
    }
    with EnvoyProcess(
        tmp_path_factory.mktemp("balance"), "127.0.0.1:1", "balance", {}, "GRPC", static=static
    ) as process:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            threading.Event().wait(0.02)
        yield Oracle(process, port, server)
    listener.close()


@pytest.mark.parametrize("name", CASES)
def test_shares_are_envoys(oracle: Oracle, name: str) -> None:
    value = decode_cluster(envoy.from_dict("Cluster", cluster(name, oracle.server)).SerializeToString())
    made = draft(value, None)
    assert made.features == ()
    whole = sum(target.weight for target in made.targets)
    wanted = {target.key.rpartition(":")[0]: target.weight / whole for target in made.targets} or {"": 1.0}
    found = oracle.ask(name, REQUESTS)
    for who in wanted.keys() | found.keys():
        share = wanted.get(who, 0.0)
        off = abs(found[who] / REQUESTS - share)
        assert off <= FAR * sqrt(share * (1 - share) / REQUESTS) + 0.5 / max(whole, 1), (who, wanted, found)


@pytest.mark.parametrize(("percent", "one", "failing"), LIMITS)
def test_as_many_are_out_as_in_an_envoy(oracle: Oracle, percent: int, one: bool, failing: int) -> None:
    name = f"out-{percent}-{int(one)}"
    value = decode_cluster(envoy.from_dict("Cluster", cluster(name, oracle.server)).SerializeToString())
    assert value.outlier is not None
    assert value.unsupported == ()
    every = sorted(draft(value, None).members)
    bad = every[:failing]
    oracle.ask(name, 40, ",".join(key.rpartition(":")[0] for key in bad))
    detector, watch = Detector(), Watch(name, value.outlier)
    detector.watch({watch: every}, 0.0)
    assert detector.look({key: Run(2, 0) for key in bad}, 0.1)[0] == []
    events, _ = detector.look({key: Run(3, 0) for key in bad}, 0.2)
    ours = {event.endpoint for event in events if event.what is What.EJECTED}
    theirs = oracle.out(name)
    assert theirs <= set(bad)
    assert len(theirs) == len(ours), (percent, one, theirs, ours)


def test_one_request_too_many(oracle: Oracle) -> None:
    """What is answered to it, and that the one under way is not disturbed."""
    value = decode_cluster(envoy.from_dict("Cluster", cluster("few", oracle.server)).SerializeToString())
    assert value.limit is not None
    budgets, core = Budgets(), Core()
    request = Request(b"GET", b"/few/", b"/few/", ((b"host", b"a"),))
    limit = replace(value.limit, number=3)
    decision = Decision(0, cluster=3, endpoint=1)
    ours = [
        Exchange(
            Rule(limits=(limit,)), request, decision, ResponseReader(core), lambda *_: decision, core.reason_name,
            lambda: 0.0, budgets.of(1),
        )
        for _ in range(2)
    ]  # fmt: skip
    told = []
    for exchange in ours:
        exchange.begin()
        told.append(b"".join(c.data for c in exchange.opened(reused=False) if isinstance(c, Send)))
    with (
        socket.create_connection(("127.0.0.1", oracle.port), 10) as first,
        socket.create_connection(("127.0.0.1", oracle.port), 10) as second,
    ):
        first.sendall(b"GET /few/ HTTP/1.1\r\nhost: a\r\nx-slow: 1\r\n\r\n")
        threading.Event().wait(0.2)
        second.sendall(b"GET /few/ HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        theirs = second.makefile("rb").read()
        assert first.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert told[0] == b"", "forwarded"
    for answer_ in (theirs, told[1]):
        head, _, body = answer_.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"x-envoy-overloaded: true" in head.lower()
        assert body == theirs.partition(b"\r\n\r\n")[2]
