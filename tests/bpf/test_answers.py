"""Requests that the kernel answers itself: no wire, no server, no home."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent.abi.codec import offset_of
from nodeagent.abi.numbers import CF_CLOSED, Counter, Reason, State
from nodeagent.intent.homerules import entry
from nodeagent.intent.replies import of_reasons
from nodeagent.rules.model import DirectReply, Edits, Field, Rule
from tests.support.little_node import SERVICE_PORT, VIP4, VIP6, LittleNode, Pod

pytestmark = [pytest.mark.needs("root", "bpf", "netns", "cgroup2"), pytest.mark.timeout(120)]
CLIENT = str(Path(__file__).parents[1] / "support" / "keepalive_client.py")
BODY = "short and stout\n" * 20
TEA = Rule(direct=DirectReply(418, BODY), response=(Edits(put=(Field("x-said-by", "rule"),)),))

GONE = Rule(direct=DirectReply(410, "gone"))


class Setup:
    def __init__(self, node: LittleNode) -> None:
        self.node, self.client = node, node.pod("client", 11)
        for number, name in enumerate(("a", "b"), 1):
            server = node.pod(name, 11 + number)
            node.serve(server)
            node.cluster(number, node.endpoint(number, server))
            node.route(name, number, (1, number))
        six = node.pods["a"]
        node.cluster(3, node.endpoint(3, six, family=6))
        node.route("six", 3, (1, 3))
        node.cluster(4)
        node.route("empty", 4, (1, 4))
        node.service()
        for key, value in of_reasons().items():
            node.put("replies", key, value)
        node.route("tea", 5, reason=Reason.ROUTE_DIRECT, rule=TEA, reply=True)
        node.enroll(self.client, 7)
        node.start_home()

    def ask(self, requests: list[Any], host: str = VIP4, **more: Any) -> list[dict[str, Any]]:
        order = [{"send": r} if isinstance(r, str) else r for r in requests]
        given = self.node.root / "order.json"
        given.write_text(json.dumps({"host": host, "port": SERVICE_PORT, "requests": order, **more}))
        answers: list[dict[str, Any]] = json.loads(self.node.run(self.client, [sys.executable, CLIENT, str(given)]))
        return answers

    def counts(self) -> dict[str, int]:
        return {c.name: self.node.counter(c) for c in (Counter.KERNEL, Counter.HOME, Counter.REPLIES)}


def get(host: str, path: str = "/", *lines: str, method: str = "GET", body: str = "") -> str:
    more = "".join(f"{line}\r\n" for line in lines)
    length = f"Content-Length: {len(body)}\r\n" if body or method == "POST" else ""
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}{length}\r\n{body}"


def who(answer: dict[str, Any]) -> str:
    if answer.get("status") == 200:
        return str(json.loads(answer["body"])["workload"])
    return str(answer.get("status", answer))


@pytest.fixture(scope="module", name="setup")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    with LittleNode(tmp_path_factory.mktemp("answers")) as node:
        setup = Setup(node)
        setup.ask([get("a"), get("b")] * 20)
        yield setup


def spent(setup: Setup, before: dict[str, int]) -> dict[str, int]:
    return {name: count - before[name] for name, count in setup.counts().items()}


def test_between_requests_to_servers(setup: Setup) -> None:
    hosts = ["a", "tea", "tea", "b", "tea", "a", "a", "tea"] * 10
    before = setup.counts()
    answers = setup.ask([get(host) for host in hosts])
    assert [who(answer) for answer in answers] == [{"tea": "418"}.get(host, host) for host in hosts]
    assert {answer["body"] for answer in answers if answer["status"] == 418} == {BODY}
    assert spent(setup, before) == {"KERNEL": 80, "HOME": 0, "REPLIES": 40}


def test_the_first_request_of_a_connection_and_the_last(setup: Setup) -> None:
    for hosts in (["tea"], ["tea", "a"], ["a", "tea"], ["tea", "tea"]):
        before = setup.counts()
        assert [who(answer) for answer in setup.ask([get(host) for host in hosts])] == [
            {"tea": "418"}.get(host, host) for host in hosts
        ]
        assert spent(setup, before)["REPLIES"] == hosts.count("tea")


def test_ipv6_and_mapped(setup: Setup) -> None:
    assert [who(a) for a in setup.ask([get("six")] * 4, host=VIP6)] == ["a"] * 4
    for host, name in ((VIP6, "six"), (f"::ffff:{VIP4}", "a")):
        before = setup.counts()
        answers = setup.ask([get(name), get("tea"), get(name), get("tea"), get("nobody")], host=host)
        assert [who(a) for a in answers] == ["a", "418", "a", "418", "404"]
        assert spent(setup, before)["REPLIES"] == 3


def test_no_host_and_no_endpoint(setup: Setup) -> None:
    before = setup.counts()
    answers = setup.ask([get("nobody"), get("empty"), get("a"), get("nobody")])
    assert [who(answer) for answer in answers] == ["404", "503", "a", "404"]
    assert answers[1]["headers"]["x-underpass-reason"] == "no-endpoint"
    assert spent(setup, before) == {"KERNEL": 4, "HOME": 0, "REPLIES": 3}


def test_a_head_is_answered_by_a_head(setup: Setup) -> None:
    answers = setup.ask([get("tea", method="HEAD"), get("a"), get("tea")])
    assert [who(answer) for answer in answers] == ["418", "a", "418"]
    assert answers[0]["headers"]["content-length"] == str(len(BODY))


@pytest.mark.parametrize("size", [1, 1000, 20_000, 65_536])
def test_bodies_are_taken_and_thrown_away(setup: Setup, size: int) -> None:
    body = "x" * size
    before = setup.counts()
    whole = get("tea", method="POST", body=body)
    answers = setup.ask([get("a"), whole, get("b"), {"send": [whole[:-size], body[: size // 2], body[size // 2 :]]}])
    assert [who(answer) for answer in answers] == ["a", "418", "b", "418"]
    answers = setup.ask([whole, get("a", method="POST", body=body), whole, get("b")])
    assert [who(answer) for answer in answers] == ["418", "a", "418", "b"]
    assert spent(setup, before)["REPLIES"] == 4


def test_what_cannot_be_answered_at_once_goes_home_which_says_the_same(setup: Setup) -> None:
    (ours,) = setup.ask([get("tea")])
    for request in (
        get("tea", "/", "Expect: 100-continue", method="POST", body="x"),
        get("tea", method="POST", body="x" * 65_537),
        get("tea", "/", "Connection: close"),
        get("tea", "/", "Upgrade-Insecure: no", "Transfer-Encoding: chunked", method="PUT") + "0\r\n\r\n",
    ):
        before = setup.counts()
        (answer,) = setup.ask([request])
        answer["headers"].pop("connection", None)
        assert answer == ours
        assert spent(setup, before)["REPLIES"] == 0
    answers = setup.ask([{"send": get("a") + get("tea"), "answers": 2}, get("b"), get("tea")])
    assert [who(answer) for answer in answers] == ["a", "418", "b", "418"]


@pytest.mark.needs("nft")
def test_answers_that_are_lost_are_given_again(setup: Setup) -> None:
    """A third of all that comes from the home peer's address is dropped on its way in, in a chain behind tc."""
    pod: Pod = setup.client
    nft = ["ip", "netns", "exec", pod.ns, "nft"]
    rules = "add table inet lose; add chain inet lose in { type filter hook input priority 0; }; "
    rules += "add rule inet lose in tcp sport 15001 numgen random mod 3 == 0 drop"
    subprocess.run([*nft, rules], check=True)
    try:
        chance = random.Random(4)
        hosts = [chance.choice(["a", "b", "tea", "tea"]) for _ in range(60)]
        requests = [
            get(host, method="POST", body="y" * chance.choice([1, 3000, 30_000]))
            if chance.random() < 0.4
            else get(host)
            for host in hosts
        ]
        before, again = setup.counts(), setup.node.counter(Counter.REPLIED_AGAIN)
        answers = setup.ask(requests, timeout=60)
        assert [who(answer) for answer in answers] == [{"tea": "418"}.get(host, host) for host in hosts]
        assert spent(setup, before)["REPLIES"] == hosts.count("tea")
        assert setup.node.counter(Counter.REPLIED_AGAIN) > again
    finally:
        subprocess.run([*nft, "delete table inet lose"], check=True)


@pytest.mark.needs("nft")
def test_a_client_whose_answer_is_lost_and_then_gone_is_reset(setup: Setup) -> None:
    """The rule goes while nobody has heard its answer: nothing could be said any more, and nobody shall wait for it."""
    pod: Pod = setup.client
    nft = ["ip", "netns", "exec", pod.ns, "nft"]
    setup.node.route("gone", 6, reason=Reason.ROUTE_DIRECT, rule=GONE, reply=True)
    rules = "add table inet lose; add chain inet lose in { type filter hook input priority 0; }; "
    subprocess.run(
        [*nft, rules + "add rule inet lose in tcp sport 15001 tcp flags & (psh|rst) == psh drop"], check=True
    )
    try:
        before = setup.node.counter(Counter.REPLIES)
        order = setup.node.root / "gone.json"
        order.write_text(json.dumps({"host": VIP4, "port": SERVICE_PORT, "requests": [{"send": get("gone")}]}))
        asking = setup.node.spawn(pod, [sys.executable, CLIENT, str(order)], enrolled=True)
        end = time.monotonic() + 10
        while setup.node.counter(Counter.REPLIES) == before and time.monotonic() < end:
            time.sleep(0.01)
        setup.node.loaded.maps["replies"].delete(entry(GONE)[0].to_bytes(8, "little"))
        output, _ = asking.communicate(timeout=20)
    finally:
        subprocess.run([*nft, "delete table inet lose"], check=True)
    (answer,) = json.loads(output)
    assert "reset" in answer["error"].lower()
    assert [who(a) for a in setup.ask([get("tea"), get("a")])] == ["418", "a"]


def test_clients_that_leave_in_the_middle_leave_nothing_behind(setup: Setup) -> None:
    program = (
        "import socket, struct, sys\n"
        f"for k in range(20):\n"
        f"    s = socket.create_connection(({VIP4!r}, {SERVICE_PORT}), 5)\n"
        "    s.sendall(b'POST / HTTP/1.1\\r\\nHost: tea\\r\\nContent-Length: 9000\\r\\n\\r\\n' + b'x' * (k * 100))\n"
        "    if k % 2: s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\n"
        "    if k % 4 == 0: s.shutdown(socket.SHUT_WR)\n"
        "    if k % 3 == 0: s.recv(100)\n"
        "    s.close()\n"
    )
    setup.node.run(setup.client, [sys.executable, "-c", program])
    assert [who(answer) for answer in setup.ask([get("tea"), get("a")])] == ["418", "a"]

    def away() -> list[bytes]:
        state, flags = offset_of("up_conn", "state"), offset_of("up_conn", "flags")
        values = [value for _, value in setup.node.loaded.maps["conns"].items()]
        return [value for value in values if value[state] == State.AWAY and not value[flags] & CF_CLOSED]

    end = time.monotonic() + 10
    while away() and time.monotonic() < end:
        time.sleep(0.1)
    assert away() == []
