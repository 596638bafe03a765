"""Rings and Maglev tables against a real Envoy's: the same endpoints, the same keys, the same choice."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from nodeagent.cache.clusters import decode_cluster
from nodeagent.cache.routes import routes_from
from nodeagent.home.hashing import Maglev, Ring, request_hash, xxh64
from nodeagent.rules.model import HashOn, HashSource
from tests.conformance.test_home_rules import _HTTP, _TYPE
from tests.support.envoy_process import EnvoyProcess
from underpass.api import envoy

pytestmark = [pytest.mark.timeout(120)]

HOSTS = {f"127.0.0.{number}": weight for number, weight in ((11, 1), (12, 1), (13, 3), (14, 1), (15, 2))}
POLICIES: dict[str, list[dict[str, Any]]] = {
    "header": [{"header": {"header_name": "X-User"}}],
    "query": [{"query_parameter": {"name": "u"}}],
    "cookie": [{"cookie": {"name": "c"}}],
    "both": [{"header": {"header_name": "x-user"}}, {"query_parameter": {"name": "u"}}],
    "first": [{"header": {"header_name": "x-user"}, "terminal": True}, {"query_parameter": {"name": "u"}}],
}
CLUSTERS: dict[str, dict[str, Any]] = {
    "ring": {"lb_policy": "RING_HASH"},
    "small": {"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": 64}},
    "maglev": {"lb_policy": "MAGLEV"},
    "little": {"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 251}},
}


def routes() -> dict[str, Any]:
    """A route for each policy and cluster: /POLICY/CLUSTER."""
    entries = [
        {"match": {"prefix": f"/{name}/{cluster}"}, "route": {"cluster": cluster, "hash_policy": policy}}
        for name, policy in POLICIES.items()
        for cluster in CLUSTERS
    ]
    return {"name": "t", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": entries}]}


def cluster(name: str, port: int) -> dict[str, Any]:
    ends = [
        {
            "endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}},
            "load_balancing_weight": weight,
        }
        for host, weight in reversed(HOSTS.items())  # their order is nobody's business
    ]
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": ends}]}
    return {"name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": assignment, **CLUSTERS[name]}


def serve(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def answer(connection: socket.socket) -> None:
    own = connection.getsockname()[0].encode()
    with connection, connection.makefile("rb") as stream:
        while line := stream.readline():
            if line == b"\r\n":
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(own), own))


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Where Envoy listens, and where every server does."""
    listener = socket.create_server(("0.0.0.0", 0), backlog=64)
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = listener.getsockname()[1]
    manager = {
        "@type": f"{_TYPE}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x", "route_config": routes(),
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{_TYPE}{_HTTP}router.v3.Router"}}],
    }  # fmt: skip
    chain = {"filters": [{"name": "hcm", "typed_config": manager}]}
    where = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    static = {
        "listeners": [{"name": "l", "address": where, "filter_chains": [chain]}],
        "clusters": [cluster(name, server) for name in CLUSTERS],
    }
    with EnvoyProcess(tmp_path_factory.mktemp("hash"), "127.0.0.1:1", "home-hash", {}, "GRPC", static=static):
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            threading.Event().wait(0.02)
        yield port, server
    listener.close()


@pytest.mark.needs("envoy")
@pytest.mark.parametrize("name", CLUSTERS)
def test_home_chooses_as_envoy_does(ports: tuple[int, int], name: str) -> None:
    port, server = ports
    hashed = decode_cluster(envoy.from_dict("Cluster", cluster(name, server)).SerializeToString()).hashed
    assert hashed is not None
    ends = [(number, f"{host}:{server}", weight) for number, (host, weight) in enumerate(HOSTS.items())]
    ring = Maglev(ends, hashed.table) if hashed.table else Ring(ends, hashed.smallest, hashed.largest)
    by_path = {
        route.match.path.value: route.rule.hash_on
        for route in routes_from(envoy.from_dict("RouteConfiguration", routes())).virtual_hosts[0].routes
    }
    hosts, seen, wrong = list(HOSTS), set(), []
    with socket.create_connection(("127.0.0.1", port), 10) as client, client.makefile("rb") as stream:
        for policy in POLICIES:
            for number in range(40):
                user, query, cookie = f"user-{number}" * (1 + number % 5), f"?u=q{number}&x=y", f"a=b; c=v{number}"
                head = f"GET /{policy}/{name}{query} HTTP/1.1\r\nhost: a\r\nx-user: {user}\r\ncookie: {cookie}\r\n\r\n"
                client.sendall(head.encode())
                while stream.readline() != b"\r\n":
                    pass
                found = stream.read(len(hosts[0])).decode()
                values = {b"x-user": [user.encode()], b"cookie": [cookie.encode()]}
                value, told = request_hash(by_path[f"/{policy}/{name}"], values, query.encode(), b"", b"")
                assert value is not None
                assert not told
                seen.add(found)
                if hosts[ring.find(value, 0)] != found:
                    wrong.append((policy, number, found))
    assert not wrong
    assert len(seen) == len(HOSTS)


@pytest.mark.parametrize(
    ("data", "seed", "expected"),
    [
        (b"", 0, 0xEF46DB3751D8E999), (b"a", 0, 0xD24EC4F1A98C6E5B), (b"abc", 0, 0x44BC2CF5AD770999),
        (b"Nobody inspects the spammish repetition", 0, 0xFBCEA83C8A378BF1), (b"xxhash", 20141025, 0xB559B98D844E0635),
    ],
)  # fmt: skip
def test_the_hash_is_xxh64(data: bytes, seed: int, expected: int) -> None:
    """Known answers of the reference implementation."""
    assert xxh64(data, seed) == expected


def test_a_cookie_is_made_once() -> None:
    policy = HashOn(HashSource.COOKIE, "c", ttl=5.0, path="/")
    value, told = request_hash((policy,), {}, b"", b"", b"0123456789abcdef")
    assert told == 'c="0123456789abcdef"; Max-Age=5; Path=/; HttpOnly'
    again = request_hash((policy,), {b"cookie": [b'x=y; c="0123456789abcdef"']}, b"", b"", b"other")
    assert again == (value, "")
    assert request_hash((HashOn(HashSource.COOKIE, "c"),), {}, b"", b"", b"x") == (None, "")
    assert request_hash((HashOn(HashSource.ADDRESS),), {}, b"", b"10.0.0.1", b"") == (xxh64(b"10.0.0.1"), "")
