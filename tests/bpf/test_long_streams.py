"""More than half of the sequence space on one wire: 32-bit numbers wrap, and nothing may stand still."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bench.bodies
from nodeagent.abi.numbers import Counter
from tests.support.little_node import SERVER_PORT, SERVICE_PORT, VIP4, LittleNode, Pod

pytestmark = [pytest.mark.needs("root", "bpf", "core", "netns", "cgroup2"), pytest.mark.timeout(180)]

BODIES = bench.bodies.__file__
HALF = 1 << 31


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LittleNode, Pod]]:
    with LittleNode(tmp_path_factory.mktemp("long")) as node:
        client, sink, source = node.pod("client", 11), node.pod("sink", 12), node.pod("source", 13)
        node.spawn(sink, [sys.executable, "-I", BODIES, "sink", str(SERVER_PORT)])
        node.await_port(sink.ns, sink.ip4, SERVER_PORT)
        node.serve(source)
        node.service()
        node.cluster(1, node.endpoint(1, sink))
        node.cluster(2, node.endpoint(2, source))
        node.route("sink", 1, (1, 1))
        node.route("source", 2, (1, 2))
        node.enroll(client, 1)
        node.start_home()
        yield node, client


def move(place: tuple[LittleNode, Pod], mode: str, path: str, host: str, *more: str) -> dict[str, Any]:
    node, client = place
    command = [sys.executable, "-I", BODIES, mode, f"{VIP4}:{SERVICE_PORT}", path, "--host", host, "--seconds", "0"]
    answer: dict[str, Any] = json.loads(node.run(client, [*command, *more], timeout=150))
    return answer


def warm(place: tuple[LittleNode, Pod], host: str) -> None:
    """One small request, so that the stock has an upstream and the long ones are the kernel's."""
    move(place, "put", "/", host, "--size", "1")


@pytest.mark.parametrize(("size", "requests"), [(HALF + HALF // 4, 1), (HALF // 3, 4)])
def test_uploads(place: tuple[LittleNode, Pod], size: int, requests: int) -> None:
    warm(place, "sink")
    before = place[0].counter(Counter.KERNEL)
    answer = move(place, "put", "/", "sink", "--size", str(size), "--least", str(requests))
    assert answer["errors"] == []
    assert answer["bytes"] == size * requests
    assert place[0].counter(Counter.KERNEL) - before == requests


@pytest.mark.parametrize(("size", "requests"), [(HALF + HALF // 4, 1), (HALF // 3, 4)])
def test_downloads(place: tuple[LittleNode, Pod], size: int, requests: int) -> None:
    warm(place, "source")
    before = place[0].counter(Counter.KERNEL)
    answer = move(place, "get", f"/?bytes={size}", "source", "--least", str(requests))
    assert answer["errors"] == []
    assert answer["bytes"] == size * requests
    assert place[0].counter(Counter.KERNEL) - before == requests


def test_the_bodies_program_is_a_file_of_its_own() -> None:
    assert Path(BODIES).read_text(encoding="utf-8").count("from bench") == 0
