"""Rules that home carries out, as users write them: a VirtualService, through control plane, agent, maps and home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nodeagent.telemetry.read import RouteCount, read_routes
from tests.support.tiers import repository
from underpass.lab import lab
from underpass.lab.cli_files import read_file
from underpass.lab.host import BPFFS
from underpass.lab.model import Options
from underpass.lab.state import State

NAME = f"h{os.getpid()}"
SHOP = repository() / "samples" / "shop"
CLIENT = repository() / "tests" / "support" / "keepalive_client.py"


@pytest.fixture(name="state", scope="module")
def _state() -> Iterator[State]:
    names = ("shop.yaml", "destination-rules.yaml", "catalog-rules.yaml")
    _, state = lab.up([read_file(str(SHOP / name)) for name in names], None, Options(NAME), lambda _line: None)
    try:
        yield state
    finally:
        lab.down(NAME)


def ask(state: State, *requests: str) -> list[dict[str, Any]]:
    """Requests of shop/web over one connection to the service's address."""
    code = "import socket; print(socket.gethostbyname('catalog'))"
    argv, env = lab.exec_command(NAME, "shop/web", [sys.executable, "-c", code])
    address = subprocess.run(argv, env=env, check=True, capture_output=True, text=True).stdout.strip()
    order = {"host": address, "port": 80, "requests": [{"send": request} for request in requests]}
    given = state.paths.config.parent / "order.json"
    given.write_text(json.dumps(order))
    argv, env = lab.exec_command(NAME, "shop/web", [sys.executable, str(CLIENT), str(given)])
    done = subprocess.run(argv, env=env, check=True, capture_output=True, text=True, timeout=60)
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def get(path: str, **headers: str) -> str:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"GET {path} HTTP/1.1\r\nHost: catalog\r\n{lines}\r\n"


@pytest.mark.timeout(120)
def test_every_rule_of_the_sample(state: State) -> None:
    chunked = (
        "POST /api/upload?call= HTTP/1.1\r\nHost: catalog\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    )
    moved, teapot, broken, late, edited, upload, plain = ask(
        state, get("/old/x"), get("/teapot"), get("/broken"), get("/slow?delay=2s&call="),
        get("/api/item?call=", X_Secret="s", X_Kept="k"), chunked, get("/item?call="),
    )  # fmt: skip
    assert (moved["status"], moved["headers"]["location"]) == (308, "http://catalog/new")
    assert (teapot["status"], teapot["body"]) == (418, "short and stout")
    assert (broken["status"], broken["body"]) == (555, "fault filter abort")
    assert (late["status"], late["body"]) == (504, "upstream request timeout")
    assert (edited["status"], edited["headers"]["x-answered-by"]) == (200, "the mesh")
    seen = json.loads(edited["body"])
    headers = {name.lower(): value for name, value in seen["headers"]}
    assert (seen["path"].partition("?")[0], headers["x-edited"], headers["x-kept"]) == ("/item", "yes", "k")
    assert "x-secret" not in headers
    assert json.loads(upload["body"])["body_bytes"] == 3
    assert plain["status"] == 200

    for _ in range(100):  # home writes its counts once a second
        counted = {count.route: count for node in state.nodes for count in counts(node)}
        if counted.get("edited") is not None and counted["edited"].home >= 2:
            break
        time.sleep(0.1)
    assert (counted["edited"].home, counted["edited"].refused, counted["edited"].where) == (2, 0, "home")
    assert counted["edited"].punts.keys() <= {"route-rewrite", "route-headers", "chunked-request"}
    assert counted["plain"].kernel + counted["plain"].home == 1
    assert counted["plain"].where == "kernel"


def counts(node: str) -> list[RouteCount]:
    """The routes of a node, as `underpass routes` reads them."""
    return read_routes(BPFFS / "underpass" / node)
