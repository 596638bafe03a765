"""What the kernel counts of its requests is what clients and servers saw: statuses, bytes, latencies, cut responses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent.abi.numbers import LATENCY_FIRST_US, LATENCY_SLOTS
from nodeagent.abi.records import FlowKey, FlowStat
from nodeagent.telemetry.flows import added
from tests.support.little_node import SERVICE_PORT, VIP4, LittleNode
from tests.support.traps import eventually

pytestmark = [pytest.mark.needs("root", "bpf", "netns", "cgroup2"), pytest.mark.timeout(120)]
CLIENT = str(Path(__file__).parents[1] / "support" / "counting_client.py")


class Setup:
    def __init__(self, node: LittleNode) -> None:
        self.node, self.client = node, node.pod("client", 11)
        self.endpoints = {}
        for number, name in enumerate(("a", "b"), 1):
            server = node.pod(name, 11 + number)
            node.serve(server)
            self.endpoints[number] = node.endpoint(number, server)
            node.cluster(number, self.endpoints[number])
            node.route(name, number, (1, number))
        node.service()
        node.enroll(self.client, 7)
        node.start_home()

    def ask(self, requests: list[str], leave: int | None = None) -> dict[str, Any]:
        given = self.node.root / "order.json"
        given.write_text(json.dumps({"host": VIP4, "port": SERVICE_PORT, "requests": requests, "leave": leave}))
        answer: dict[str, Any] = json.loads(self.node.run(self.client, [sys.executable, CLIENT, str(given)]))
        return answer

    def flows(self) -> dict[FlowKey, FlowStat]:
        """Summed over the CPUs."""
        stats, found = self.node.loaded.maps["flow_stats"], {}
        for key in stats.keys():  # noqa: SIM118 - a BPF map, not a dict
            rows = [FlowStat.unpack(value) for value in stats.lookup_percpu(key) or []]
            found[FlowKey.unpack(key)] = FlowStat(
                sum(row.requests for row in rows),
                sum(row.asked for row in rows),
                sum(row.answered for row in rows),
                sum(row.us for row in rows),
                added(row.slot for row in rows),
            )
        return found


@pytest.fixture(scope="module", name="setup")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    with LittleNode(tmp_path_factory.mktemp("flows")) as node:
        setup = Setup(node)
        setup.ask([get("a"), get("b")] * 4)  # warms the stocks: what home serves is not in the kernel's flows
        yield setup


def get(host: str, query: str = "", body: bytes = b"") -> str:
    framing = f"content-length: {len(body)}\r\n" if body else ""
    return f"{'POST' if body else 'GET'} /x{query} HTTP/1.1\r\nhost: {host}\r\n{framing}\r\n{body.decode()}"


def test_statuses_bytes_and_latencies_are_those_that_the_client_saw(setup: Setup) -> None:
    before = setup.flows()
    asked: list[tuple[int, str]] = []
    for round_ in range(12):
        asked += [(1, get("a")), (2, get("b", "?status=503")), (1, get("a", f"?bytes={70000 * round_}"))]
        asked += [(2, get("b", body=b"b" * 3000 * round_)), (1, get("a", "?status=404"))]
    slow = len(asked)
    asked.append((2, get("b", "?delay=150ms")))
    seen = setup.ask([text for _, text in asked])
    expected: dict[tuple[int, int], list[int]] = {}
    for (number, _), status, sent, received in zip(
        asked, seen["statuses"], seen["sent"], seen["received"], strict=True
    ):
        row = expected.setdefault((setup.endpoints[number], status), [0, 0, 0])
        for i, more in enumerate((1, sent, received)):
            row[i] += more
    found: dict[tuple[int, int], list[int]] = {}
    slots, us = [0] * LATENCY_SLOTS, 0
    for key, stat in setup.flows().items():
        old = before.get(key, FlowStat(slot=(0,) * LATENCY_SLOTS))
        row = [stat.requests - old.requests, stat.asked - old.asked, stat.answered - old.answered]
        assert key.workload == 7 and key.route
        if row[0]:
            found[key.endpoint, key.status] = row
        us += stat.us - old.us
        slots = [x + new - was for x, new, was in zip(slots, stat.slot, old.slot, strict=True)]
    assert found == expected
    assert {status for _, status in found} == {200, 503, 404}
    assert sum(slots) == len(asked)
    # The kernel sees the request leave after, and the response arrive before, the client does.
    assert 150_000 <= us <= 1e6 * sum(seen["seconds"])
    late = [i for i, count in enumerate(slots) if count and LATENCY_FIRST_US << i > 150_000]
    assert late, f"no request took 150 ms: {slots}, the client saw {seen['seconds'][slow]}"


def test_a_response_that_its_client_leaves_is_counted_as_cut(setup: Setup) -> None:
    setup.ask([get("a", "?bytes=50000000")], leave=100_000)

    def cut() -> bool:
        return any(key.status == 0 and stat.requests == 1 for key, stat in setup.flows().items())

    assert eventually(cut)
    stat = next(stat for key, stat in setup.flows().items() if key.status == 0)
    assert 100_000 <= stat.answered < 50_000_000
