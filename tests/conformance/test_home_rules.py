"""Home's exchanges against a real Envoy: the same RouteConfiguration, the same requests, the same servers' answers.

Compared are what the server gets and what the client gets, but for headers that only describe a proxy (`_PROXYS`).
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from nodeagent.cache.routes import routes_from
from nodeagent.core.libcore import Core, HeadReader, ResponseReader
from nodeagent.home.commands import Arm, Command, Copy, Forward, Open, Send
from nodeagent.home.exchange import Exchange
from nodeagent.home.requests import request_of
from nodeagent.intent.features import rule_of
from nodeagent.intent.homerules import numbered
from nodeagent.rules.model import Rule
from nodeagent.rules.text import decode, encode
from tests.support.envoy_process import EnvoyProcess
from underpass.api import envoy

pytestmark = [pytest.mark.needs("envoy", "core"), pytest.mark.timeout(120)]

_TYPE = "type.googleapis.com/"
_HTTP = "envoy.extensions.filters.http."
_PROXYS = frozenset({
    "date", "server", "x-envoy-expected-rq-timeout-ms", "x-envoy-upstream-service-time", "x-forwarded-proto",
    "x-request-id", "x-envoy-internal", "x-forwarded-for", "x-underpass-reason", "content-length",
})  # fmt: skip
_RESET = struct.pack("ii", 1, 0)


def _add(key: str, value: str, action: str = "APPEND_IF_EXISTS_OR_ADD") -> dict[str, Any]:
    return {"header": {"key": key, "value": value}, "append_action": action}


def _fault(**what: Any) -> dict[str, Any]:
    return {"envoy.filters.http.fault": {"@type": f"{_TYPE}{_HTTP}fault.v3.HTTPFault", **what}}


_CORS = {
    "envoy.filters.http.cors": {
        "@type": f"{_TYPE}{_HTTP}cors.v3.CorsPolicy",
        "allow_origin_string_match": [{"exact": "http://o"}, {"safe_regex": {"regex": "http://[a-z]+"}}],
        "allow_methods": "GET,PUT", "allow_headers": "x-a", "expose_headers": "x-e", "max_age": "100",
        "allow_credentials": True,
    }
}  # fmt: skip
_SET, _ABSENT, _PRESENT = "OVERWRITE_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT", "OVERWRITE_IF_EXISTS"
_UP = {"cluster": "up"}
_DEST = {
    "name": "up", "weight": 1, "request_headers_to_remove": ["x-gone"],
    "request_headers_to_add": [_add("x-lvl", "dest", _SET), _add("x-app", "dest")],
    "response_headers_to_add": [_add("x-r", "dest")],
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A route but for its match, and requests for it: (method, what follows the prefix, headers)."""

    route: dict[str, Any]
    requests: tuple[tuple[str, str, dict[str, str]], ...]
    match: dict[str, Any] = field(default_factory=dict)


_PLAIN: tuple[tuple[str, str, dict[str, str]], ...] = (("GET", "/a?q=1", {}),)
CASES = {
    "levels": Case(
        {
            "route": {"weighted_clusters": {"clusters": [_DEST]}},
            "request_headers_to_add": [
                _add("x-lvl", "route", _SET), _add("x-app", "route %REQ(x-in)% 100%%"), _add("x-empty", ""),
                _add("x-absent", "new", _ABSENT), _add("x-in", "new", _ABSENT), _add("x-old", "new", _PRESENT),
                _add("x-none", "new", _PRESENT), _add("x-miss", "%REQ(nope)%"),
            ],
            "response_headers_to_add": [_add("x-r", "route"), _add("x-dup", "new", _SET)],
            "response_headers_to_remove": ["x-up"],
        },
        (("GET", "/", {"x-lvl": "in", "x-app": "in", "x-in": "hi", "x-gone": "1", "x-old": "o"}), ("HEAD", "/", {})),
    ),
    "prefix": Case({"route": {**_UP, "prefix_rewrite": "/new"}}, (("GET", "/a/b?q=1", {}), ("GET", "", {}))),
    "root": Case({"route": {**_UP, "prefix_rewrite": "/"}}, _PLAIN),
    "regex": Case(
        {"route": {**_UP, "regex_rewrite": {"pattern": {"regex": "/a+(b*)"}, "substitution": "/<\\1>\\0"}}},
        (("GET", "/aab/a/aaabb?q=/a", {}),),
    ),
    "host": Case({"route": {**_UP, "host_rewrite_literal": "other:99"}}, _PLAIN),
    "to-host": Case({"redirect": {"host_redirect": "h.example", "path_redirect": "/p"}}, _PLAIN),
    "to-https": Case({"redirect": {"https_redirect": True, "prefix_rewrite": "/z", "response_code": "FOUND"}}, _PLAIN),
    "to-port": Case(
        {"redirect": {"port_redirect": 8443, "strip_query": True, "response_code": "PERMANENT_REDIRECT"}}, _PLAIN
    ),
    "to-query": Case(
        {"redirect": {"scheme_redirect": "https", "path_redirect": "/p?a=b", "strip_query": True}}, _PLAIN
    ),
    "to-regex": Case(
        {"redirect": {"regex_rewrite": {"pattern": {"regex": "to-regex/(.*)"}, "substitution": "x/\\1"}}}, _PLAIN
    ),
    "direct": Case(
        {
            "direct_response": {"status": 418, "body": {"inline_string": "tea"}},
            "response_headers_to_add": [_add("content-type", "a/b", _SET), _add("x-rr", "1")],
        },
        (("GET", "", {}), ("HEAD", "", {}), ("POST", "", {})),
    ),
    "bare": Case({"direct_response": {"status": 200}}, _PLAIN),
    "late": Case(
        {"route": {**_UP, "timeout": "0.3s"}, "response_headers_to_add": [_add("x-rr", "1")]},
        (("GET", "/slow", {}),),
    ),
    "tries": Case(
        {"route": {**_UP, "retry_policy": {"retry_on": "5xx", "num_retries": 2, "per_try_timeout": "0.2s"}}},
        (("GET", "/slow", {}), ("GET", "/503", {}), ("GET", "/reset", {}), ("GET", "/404", {})),
    ),
    "gateway": Case(
        {"route": {**_UP, "retry_policy": {"retry_on": "gateway-error"}}},
        (("GET", "/503", {}), ("GET", "/500", {}), ("GET", "/reset", {}), ("GET", "/limited", {})),
    ),
    "codes": Case(
        {
            "route": {
                **_UP,
                "retry_policy": {
                    "retry_on": "retriable-status-codes,retriable-4xx", "retriable_status_codes": [404],
                },
            }
        },
        (("GET", "/404", {}), ("GET", "/503", {}), ("GET", "/409", {}), ("GET", "/reset", {})),
    ),
    "resets": Case(
        {"route": {**_UP, "retry_policy": {"retry_on": "reset", "num_retries": 3}}},
        (("GET", "/reset", {}), ("GET", "/503", {})),
    ),
    "limited": Case(
        {"route": {**_UP, "retry_policy": {"retry_on": "5xx", "num_retries": 1}}}, (("GET", "/limited", {}),)
    ),
    "no-retry": Case({"route": {**_UP, "prefix_rewrite": "/n"}}, (("GET", "/reset", {}),)),
    "dead": Case(
        {"route": {"cluster": "dead", "retry_policy": {"retry_on": "connect-failure", "num_retries": 2}}}, _PLAIN
    ),
    "mirror": Case(
        {"route": {**_UP, "prefix_rewrite": "/m", "request_mirror_policies": [{"cluster": "copy"}]}},
        (("GET", "/a", {}), ("POST", "", {})),
    ),
    "abort": Case(
        {
            "route": _UP, "response_headers_to_add": [_add("x-rr", "1")],
            "typed_per_filter_config": _fault(abort={"http_status": 555, "percentage": {"numerator": 100}}),
        },
        _PLAIN,
    ),
    "delay": Case(
        {
            "route": _UP,
            "typed_per_filter_config": _fault(delay={"fixed_delay": "0.1s", "percentage": {"numerator": 100}}),
        },
        _PLAIN,
    ),
    "cors": Case(
        {"route": _UP, "typed_per_filter_config": _CORS, "response_headers_to_add": [_add("x-rr", "1")]},
        tuple(
            (method, "", {"origin": origin, **({"access-control-request-method": "PUT"} if asks else {})})
            for method, origin, asks in (
                ("OPTIONS", "http://o", True), ("OPTIONS", "http://abc", True), ("OPTIONS", "http://1", True),
                ("OPTIONS", "http://o", False), ("GET", "http://o", False), ("GET", "http://1", False),
            )
        ),
    ),
}  # fmt: skip


def table() -> dict[str, Any]:
    """The RouteConfiguration: a prefix for each case."""
    routes = [
        {"name": name, "match": {"prefix": f"/{name}", **case.match}, **case.route} for name, case in CASES.items()
    ]
    return {
        "name": "t",
        "request_headers_to_add": [_add("x-lvl", "table", _SET), _add("x-app", "table")],
        "response_headers_to_add": [_add("x-r", "table")],
        "virtual_hosts": [
            {"name": "v", "domains": ["*"], "request_headers_to_add": [_add("x-lvl", "vhost", _SET)], "routes": routes}
        ],
    }


def answer(target: str) -> bytes:
    """What the server answers; nothing: a reset."""
    last = target.partition("?")[0].rpartition("/")[2]
    if last == "reset":
        return b""
    status = int(last) if last.isdigit() else 503 if last == "limited" else 200
    extra = b"x-envoy-ratelimited: true\r\n" if last == "limited" else b""
    return b"HTTP/1.1 %d X\r\nx-up: 1\r\nx-dup: a\r\nx-dup: b\r\n%scontent-length: 2\r\n\r\nok" % (status, extra)


@dataclass(frozen=True)
class Seen:
    """A head without what only describes a proxy: first line, sorted headers; body."""

    start: str
    headers: tuple[tuple[str, str], ...]
    body: str = ""

    @classmethod
    def of(cls, data: bytes) -> Seen:
        head, _, body = data.partition(b"\r\n\r\n")
        start, *lines = head.decode("latin-1").split("\r\n")
        pairs = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        status = start.startswith("HTTP/")
        if status and any(pair == ("connection", "close") for pair in pairs):
            pairs.remove(("connection", "close"))
        kept = sorted(pair for pair in pairs if pair[0] not in _PROXYS)
        return cls(" ".join(start.split(" ")[: 2 if status else 3]), tuple(kept), body.decode("latin-1"))


class Server:
    """Answers and notes what it was asked, per path of the first request of a connection."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while True:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    line = stream.readline()
                    if not line:
                        return
                    head += line
                self.seen.append(Seen.of(head))
                target = head.split()[1].decode()
                if target.endswith("/slow"):
                    continue
                data = answer(target)
                if not data:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    return
                connection.sendall(data.removesuffix(b"ok") if head.startswith(b"HEAD") else data)

    def close(self) -> None:
        self._socket.close()


def _cluster(name: str, port: int) -> dict[str, Any]:
    where = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    ends = [{"lb_endpoints": [{"endpoint": {"address": where}}]}]
    return {
        "name": name, "type": "STATIC", "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": ends},
    }  # fmt: skip


def _static(port: int, servers: dict[str, int]) -> dict[str, Any]:
    filters = [
        {"name": f"envoy.filters.http.{name}", "typed_config": {"@type": f"{_TYPE}{_HTTP}{kind}"}}
        for name, kind in (("cors", "cors.v3.Cors"), ("fault", "fault.v3.HTTPFault"), ("router", "router.v3.Router"))
    ]
    manager = {
        "@type": f"{_TYPE}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x", "http_filters": filters,
        "route_config": table(),
    }  # fmt: skip
    listener = {
        "name": "l", "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
    }  # fmt: skip
    return {"listeners": [listener], "clusters": [_cluster(name, port) for name, port in servers.items()]}


@dataclass
class World:
    """A running Envoy, and its servers."""

    port: int
    up: Server
    copy: Server

    def ask(self, request: bytes) -> tuple[list[Seen], list[Seen], Seen]:
        """What the server, the mirror and the client got."""
        self.up.seen.clear()
        self.copy.seen.clear()
        with socket.create_connection(("127.0.0.1", self.port), 10) as client:
            client.sendall(request)
            client.settimeout(10)
            data = client.recv(65536)
            size = next(int(v) for n, v in _pairs(data) if n == "content-length")
            while not request.startswith(b"HEAD") and len(data.partition(b"\r\n\r\n")[2]) < size:
                data += client.recv(65536)
        if request.split()[1].startswith(b"/mirror"):
            for _ in range(100):
                if self.copy.seen:
                    break
                threading.Event().wait(0.02)
        return list(self.up.seen), list(self.copy.seen), Seen.of(data)


def _pairs(data: bytes) -> list[tuple[str, str]]:
    lines = data.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    up, copy = Server(), Server()
    static = _static(port, {"up": up.port, "copy": copy.port, "dead": 1})
    with EnvoyProcess(tmp_path_factory.mktemp("envoy"), "127.0.0.1:1", "home-rules", {}, "GRPC", static=static):
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            threading.Event().wait(0.02)
        yield World(port, up, copy)
    up.close()
    copy.close()


@pytest.fixture(scope="module")
def rules() -> dict[str, Rule]:
    (vhost,) = routes_from(envoy.from_dict("RouteConfiguration", table())).virtual_hosts
    assert not [route.unsupported for route in vhost.routes if route.unsupported]
    numbers = {"up": 1, "copy": 2, "dead": 3}
    # through the map's text, as home gets them
    return {r.name: decode(encode(numbered(rule_of(r), lambda name: numbers[name]))) for r in vhost.routes}


@dataclass(frozen=True)
class Answer:
    """A decision."""

    cluster: int
    rule: Rule
    reason: int = 0
    route: int = 1
    endpoint: int = 1


def by_home(core: Core, rule: Rule, name: str, request: bytes) -> tuple[list[Seen], list[Seen], Seen]:
    """The same by an exchange, whose clocks are due at once when nothing else happens."""
    reader = HeadReader(core)
    head = reader.parse(request)
    assert not head.reason
    decision = Answer(3 if name == "dead" else 1, rule)
    exchange = Exchange(
        rule, request_of(reader, request, head, False), decision, ResponseReader(core), lambda *_: decision,
        core.reason_name, lambda: 0.0,
    )  # fmt: skip
    exchange.body(b"", True)
    got, copies, sent = list[Seen](), list[Seen](), b""
    queue: list[Command] = exchange.begin()
    clocks: dict[str, None] = {}
    while queue or not exchange.over:
        command = queue.pop(0) if queue else Arm("", 0)
        if isinstance(command, Open):
            queue += exchange.failed("connect-failed") if decision.cluster == 3 else exchange.opened(False)
        elif isinstance(command, Forward):
            got.append(Seen.of(command.data))
            target = command.data.split()[1].decode()
            if not target.endswith("/slow"):
                data = answer(target)
                data = data.removesuffix(b"ok") if request.startswith(b"HEAD") else data
                queue += exchange.received(data) if data else exchange.eof()
        elif isinstance(command, Copy):
            copies.append(Seen.of(command.request))
        elif isinstance(command, Send):
            sent += command.data
        elif isinstance(command, Arm) and command.name:
            clocks.pop(command.name, None)
            clocks[command.name] = None
        elif isinstance(command, Arm):
            due = next(name for name in ("delay", "pause", "try", "timeout") if clocks.pop(name, 0) is None)
            queue += exchange.timer(due)
    return got, copies, Seen.of(sent)


ASKED = [(name, *request) for name, case in CASES.items() for request in case.requests]


@pytest.mark.parametrize(("name", "method", "rest", "headers"), ASKED, ids=lambda v: v if isinstance(v, str) else "")
def test_home_does_what_envoy_does(
    world: World, rules: dict[str, Rule], core: Core, name: str, method: str, rest: str, headers: dict[str, str]
) -> None:
    lines = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
    length = "content-length: 0\r\n" if method == "POST" else ""
    request = f"{method} /{name}{rest} HTTP/1.1\r\nhost: a:80\r\n{length}{lines}\r\n".encode()
    assert by_home(core, rules[name], name, request) == world.ask(request)


@pytest.fixture(scope="module")
def core() -> Core:
    return Core()
