"""Routes with rules, end to end: the kernel punts them, home carries them out, real clients and servers see it."""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from nodeagent.abi.numbers import Counter, Reason
from nodeagent.rules.model import (
    Abort,
    Delay,
    DirectReply,
    Edits,
    Field,
    Hashed,
    HashOn,
    HashSource,
    Mirror,
    Placing,
    Redirect,
    Retry,
    Rewrite,
    Rule,
)
from tests.support.little_node import SERVICE_PORT, VIP4, LittleNode

pytestmark = [pytest.mark.needs("root", "bpf", "core", "netns", "cgroup2"), pytest.mark.timeout(120)]

SUPPORT = Path(__file__).parents[1] / "support"
CLIENT, ODD = str(SUPPORT / "keepalive_client.py"), str(SUPPORT / "odd_server.py")
LEAVING = str(SUPPORT / "leaving_client.py")
PORT = 8081
HEADERS = Rule(
    request=(Edits(("x-gone",), (Field("x-set", "new", Placing.SET), Field("x-add", "%REQ(x-set)% 100%%"))),),
    response=(Edits(("x-up",), (Field("x-down", "b"),)),),
    rewrite=Rewrite("/new", 4, authority="other.example"),
)
RULES = {
    "headers": (Reason.ROUTE_HEADERS, HEADERS),
    "redirect": (Reason.ROUTE_REDIRECT, Rule(redirect=Redirect(308, "https", port=8443, rewrite=Rewrite("/z", 4)))),
    "direct": (Reason.ROUTE_DIRECT, Rule(direct=DirectReply(418, "tea"), response=(Edits((), (Field("x-a", "b"),)),))),
    "abort": (Reason.ROUTE_FAULT, Rule(abort=Abort(555))),
    "delay": (Reason.ROUTE_FAULT, Rule(delay=Delay(0.4))),
    "timeout": (Reason.ROUTE_TIMEOUT, Rule(timeout=0.3)),
    "tries": (Reason.ROUTE_RETRY, Rule(retry=Retry(("5xx",), 2, per_try=0.2))),
    "retry": (Reason.ROUTE_RETRY, Rule(retry=Retry(("gateway-error", "connect-failure", "reset"), 2, avoid=5))),
    "mirror": (Reason.ROUTE_MIRROR, Rule(mirrors=(Mirror(number=2),), rewrite=Rewrite("/m", 1))),
}


class Setup:
    """A client, a server `a` with a log and a shadow `b` with another; a route for each rule, by host name."""

    def __init__(self, node: LittleNode) -> None:
        self.node = node
        self.client, self.a, self.b = node.pod("client", 11), node.pod("a", 12), node.pod("b", 13)
        self.logs = {pod.name: node.root / f"{pod.name}.log" for pod in (self.a, self.b)}
        for pod in (self.a, self.b):
            node.spawn(pod, [sys.executable, ODD, str(PORT), str(self.logs[pod.name])])
            node.await_port(pod.ns, pod.ip4, PORT)
        node.service()
        node.cluster(1, node.endpoint(1, self.a, port=PORT))
        node.cluster(2, node.endpoint(2, self.b, port=PORT))
        node.cluster(3, node.endpoint(3, self.a, port=9), 1)
        node.cluster(4, 3)
        for number, (host, (reason, rule)) in enumerate(RULES.items(), 1):
            node.route(host, number, (1, 1), reason=reason, rule=rule)
        node.route("plain", 50, (1, 1))
        node.route("lame", 51, (1, 3), reason=Reason.ROUTE_RETRY, rule=RULES["retry"][1])
        node.route("dead", 52, (1, 4), reason=Reason.ROUTE_RETRY, rule=RULES["retry"][1])
        node.cluster(5, 1, 2)
        rule = Rule(hash_on=(HashOn(HashSource.HEADER, "x-user"),), hashed=(Hashed(number=5),))
        node.route("hash", 53, (1, 5), reason=Reason.ROUTE_HASH, rule=rule)
        node.route("lame-plain", 54, (1, 3), rule=Rule(retry=Retry(("connect-failure",), 2, avoid=5)))
        node.route("dead-plain", 55, (1, 4), rule=Rule(retry=Retry(("connect-failure",), 2, avoid=5)))
        node.enroll(self.client, 1)
        node.start_home()

    def ask(self, *requests: Any, **more: Any) -> list[dict[str, Any]]:
        """Requests over one connection: text, or a dictionary for keepalive_client."""
        order = [{"send": r} if isinstance(r, str) else r for r in requests]
        given = self.node.root / "order.json"
        given.write_text(json.dumps({"host": VIP4, "port": SERVICE_PORT, "requests": order, **more}))
        answers: list[dict[str, Any]] = json.loads(self.node.run(self.client, [sys.executable, CLIENT, str(given)]))
        return answers

    def seen(self, name: str = "a") -> list[list[Any]]:
        """What a server was asked since the last call."""
        log = self.logs[name]
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]


def get(host: str, path: str = "/", **headers: str) -> str:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n"


def post(host: str, body: str, path: str = "/") -> str:
    return f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n{body}"


def chunked(host: str, *chunks: str, path: str = "/", end: str = "0\r\n\r\n") -> list[str]:
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n"
    return [head, *(f"{len(chunk):x}\r\n{chunk}\r\n" for chunk in chunks), end]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    with LittleNode(tmp_path_factory.mktemp("rules")) as node:
        yield Setup(node)


@pytest.fixture
def setup(made: Setup) -> Setup:
    made.seen("a")
    made.seen("b")
    return made


def test_heads_are_changed_on_both_ways(setup: Setup) -> None:
    (answer,) = setup.ask(get("headers", "/old/x?q=1", X_Gone="1", X_Set="old", x_stays="yes"))
    ((line, headers, _),) = setup.seen()
    assert line == "GET /new/x?q=1 HTTP/1.1"
    assert headers == {
        "host": "other.example", "x-set": "new", "x-add": "old 100%", "x-stays": "yes",
        "x-envoy-original-host": "headers", "x-envoy-original-path": "/old/x?q=1",
    }  # fmt: skip
    assert (answer["status"], answer["headers"]["x-down"]) == (200, "b")
    assert "x-up" not in answer["headers"]


def test_answers_of_homes_own(setup: Setup) -> None:
    answers = setup.ask(
        get("redirect", "/old/x?q=1"), get("direct"), get("abort"), post("direct", "x" * 50_000), get("plain")
    )
    assert [answer["status"] for answer in answers] == [308, 418, 555, 418, 200]
    assert answers[0]["headers"]["location"] == "https://redirect:8443/z/x?q=1"
    assert (answers[1]["body"], answers[1]["headers"]["x-a"]) == ("tea", "b")
    assert answers[1]["headers"]["content-type"] == "text/plain"
    assert answers[2]["body"] == "fault filter abort"
    assert [entry[0] for entry in setup.seen()] == ["GET / HTTP/1.1"], "only the plain one reaches a server"


def test_a_delay_and_a_timeout(setup: Setup) -> None:
    begun = time.monotonic()
    (delayed,) = setup.ask(get("delay"))
    assert delayed["status"] == 200
    assert time.monotonic() - begun >= 0.4
    begun = time.monotonic()
    late, after = setup.ask(get("timeout", "/slow"), get("timeout"))
    assert (late["status"], late["body"]) == (504, "upstream request timeout")
    assert after["status"] == 200
    assert time.monotonic() - begun < 4


def test_tries_have_clocks_of_their_own(setup: Setup) -> None:
    (answer,) = setup.ask(get("tries", "/slow"))
    assert (answer["status"], answer["body"]) == (504, "upstream request timeout")
    assert len(setup.seen()) == 3


def test_a_failed_request_is_tried_again(setup: Setup) -> None:
    answers = setup.ask(
        get("retry", "/fail-2"), post("retry", "body", "/fail-1"), get("retry", "/fail-5"), get("retry", "/reset")
    )
    assert [answer["status"] for answer in answers] == [200, 200, 503, 503]
    assert answers[3]["body"].endswith("retried and the latest reset reason: connection termination")
    seen = setup.seen()
    assert [line.split()[1] for line, _, _ in seen] == ["/fail-2"] * 3 + ["/fail-1"] * 2 + ["/fail-5"] * 3 + [
        "/reset"
    ] * 3
    assert [body for line, _, body in seen if line.startswith("POST")] == ["body", "body"]


def test_another_endpoint_is_tried(setup: Setup) -> None:
    answers = setup.ask(*[get("lame")] * 10, get("dead"))
    assert [answer["status"] for answer in answers] == [200] * 10 + [503]
    assert "remote connection failure" in answers[-1]["body"]
    assert answers[-1]["headers"]["x-underpass-reason"] == "connect-failed"


def test_a_key_stays_with_its_endpoint(setup: Setup) -> None:
    users = [f"u{number % 10}" for number in range(30)]
    assert {answer["status"] for answer in setup.ask(*(get("hash", X_User=user) for user in users))} == {200}
    by_server = [{headers["x-user"] for _, headers, _ in setup.seen(name)} for name in ("a", "b")]
    assert by_server[0] | by_server[1] == set(users)
    assert not by_server[0] & by_server[1]
    assert all(by_server), "ten users are on both"


def test_a_kernels_route_is_tried_elsewhere_when_it_comes_to_home(setup: Setup) -> None:
    """Istio's default policy does not take a route out of the kernel, and is kept where the kernel left a request."""
    answers = setup.ask(*[post("lame-plain", "body")] * 10, get("dead-plain"))
    assert [answer["status"] for answer in answers] == [200] * 10 + [503]
    assert answers[-1]["headers"]["x-underpass-reason"] == "connect-failed"
    assert [body for _, _, body in setup.seen()] == ["body"] * 10


def test_a_mirror_gets_what_the_endpoint_gets(setup: Setup) -> None:
    answers = setup.ask(post("mirror", "hello", "/x"), {"send": chunked("mirror", "a", "b"), "pause": 0.05})
    assert [answer["status"] for answer in answers] == [200, 200]
    time.sleep(0.3)
    copies = setup.seen("b")
    assert [(line, headers["host"], body) for line, headers, body in copies] == [
        ("POST /mx HTTP/1.1", "mirror-shadow", "hello"),
        ("POST /m HTTP/1.1", "mirror-shadow", "ab"),
    ]
    assert [headers["host"] for _, headers, _ in setup.seen()] == ["mirror", "mirror"]


@pytest.mark.parametrize("host", ["plain", "headers", "retry"])
def test_chunked_requests(setup: Setup, host: str) -> None:
    big = "x" * 40_000
    answers = setup.ask(
        {"send": chunked(host, "hello", big, big, path="/c")},
        {"send": "".join(chunked(host, "a", end="0\r\nx-trailer: 1\r\n\r\n")) + get("plain"), "answers": 2},
        get("plain"),
    )
    assert [answer["status"] for answer in answers] == [200] * 4
    bodies = [body for line, _, body in setup.seen() if line.startswith("POST")]
    assert bodies == ["hello" + big + big, "a"]


def test_the_kernel_has_the_connection_again_behind_what_home_did(setup: Setup) -> None:
    setup.ask(*[get("plain")] * 5)  # wires are in stock
    before, home = setup.node.counter(Counter.KERNEL), setup.node.counter(Counter.HOME)
    requests: list[Any] = []
    for upload in ("plain", "headers", "retry", "mirror", "hash"):
        requests += [{"send": chunked(upload, "hello"), "pause": 0.02}, get("plain")]
    answers = setup.ask(*requests)
    assert {answer["status"] for answer in answers[1::2]} == {200}
    assert setup.node.counter(Counter.KERNEL) - before >= 4, "but for one whose wire was not there"
    assert setup.node.counter(Counter.HOME) - home <= 6


def test_bodies_come_through_whole(setup: Setup) -> None:
    """Sizes, framings and cuts at random, both ways, many requests of one connection."""
    chance = random.Random(13)
    requests: list[Any] = []
    expected = []
    for _ in range(60):
        host = chance.choice(("plain", "timeout", "retry", "mirror", "hash", "headers"))
        body = chance.randbytes(chance.choice((0, 1, 1000, 65_536, 70_000, 400_000))).hex()
        back, piece = chance.choice((0, 100, 70_000, 300_000)), chance.choice((0, 1000, 100_000))
        path = f"/old/sum-{back}-{piece}" if host == "headers" else f"/sum-{back}-{piece}"
        if chance.random() < 0.5:
            cuts = sorted(chance.sample(range(len(body)), min(5, len(body))))
            chunks = [body[a:b] for a, b in pairwise((0, *cuts, len(body))) if a < b]
            whole = "".join(chunked(host, *chunks, path=path))
        else:
            whole = post(host, body, path)
        at = chance.randrange(1, len(whole))
        requests.append({"send": [whole[:at], whole[at:]], "pause": 0.002})
        expected.append((200, hashlib.sha256(body.encode()).hexdigest(), 64 + back))
    answers = setup.ask(*requests, timeout=60)
    assert [(a["status"], a["body"][:64], len(a["body"])) for a in answers] == expected


def test_a_bad_chunk_is_refused(setup: Setup) -> None:
    for host in ("plain", "retry", "direct"):
        (answer,) = setup.ask({"send": [*chunked(host, "a")[:1], "zz\r\n"], "pause": 0.1})
        assert answer["status"] == (418 if host == "direct" else 400), answer


def test_a_response_that_is_cut_short_is_a_reset(setup: Setup) -> None:
    (answer,) = setup.ask(get("timeout", "/half"))
    assert "reset" in answer["error"].lower()


def test_a_response_that_stalls_ends_with_the_timeout(setup: Setup) -> None:
    begun = time.monotonic()
    (answer,) = setup.ask(get("timeout", "/stall"))
    assert "reset" in answer["error"].lower()
    assert time.monotonic() - begun < 4


def test_an_early_answer_to_an_upload(setup: Setup) -> None:
    first, second = setup.ask({"send": post("timeout", "x" * 300_000, "/refuse")}, get("timeout"))
    assert first["status"] == 503
    assert second["status"] == 200


def test_clients_that_leave_cost_nothing(setup: Setup) -> None:
    hosts = [*RULES, "plain", "lame", "dead"]
    command = [sys.executable, LEAVING, VIP4, str(SERVICE_PORT), "7", "120", *hosts]
    ends = json.loads(setup.node.run(setup.client, command))
    assert min(ends.values()) > 20
    assert [answer["status"] for answer in setup.ask(get("plain"), get("headers"), get("retry"))] == [200] * 3

    def settled() -> bool:
        status: dict[str, Any] = setup.node.status()
        return not any(status["clients"][what] for what in ("clients", "legs", "closing"))

    for _ in range(300):
        if settled():
            break
        time.sleep(0.1)
    assert settled(), setup.node.status()
    assert setup.node.status()["faults"] == 0, setup.node.home_log.read_text()
    assert "Traceback" not in setup.node.home_log.read_text()
