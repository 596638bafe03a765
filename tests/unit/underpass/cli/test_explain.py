"""Explanations by libcore over maps that both programs' rooms filled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nodeagent.abi.numbers import NameKind
from nodeagent.abi.records import Stock, StockKey
from nodeagent.admin import explain as agent
from nodeagent.errors import NotRunningError
from tests.support.fake_node import SHOP, FakeNode, build
from underpass.cli.errors import USAGE, CliError
from underpass.cli.records import explain as records

pytestmark = pytest.mark.needs("core")

V1, V2 = "outbound|80|v1|api.shop.svc.cluster.local", "outbound|80|v2|api.shop.svc.cluster.local"


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return build(tmp_path, SHOP, [("shop", "web", ("10.244.0.9",)), ("shop", "api-1", ("10.244.0.1",))])


def ask(
    node: FakeNode, url: str, *headers: str, who: str = "shop/web", draw: int = 0, method: str = "GET"
) -> dict[str, Any]:
    parsed = records.parse_headers(headers)
    found = agent.request(node.bpffs, who, method, url, parsed, kernel=node.kernel, draw=lambda: draw)
    question = records.Question("node-1", "shop", who.partition("/")[2], "web", method, url, parsed)
    assert list(records.lines(question, found))
    return records.document(question, found)


def test_a_header_route(node: FakeNode) -> None:
    found = ask(node, "http://api/x", "End-User: jason")
    assert found["decision"] == "kernel"
    assert (found["route"], found["cluster"], found["domain"]) == ("jason", V2, "api")
    assert found["source"]["rule"] == 0
    assert found["source"]["file"] == "mesh.yaml"
    assert SHOP.splitlines()[found["source"]["line"] - 1] == "  - name: jason"
    assert [(e["address"], e["port"], e["workload"], e["live"]) for e in found["endpoints"]] == [
        ("10.244.0.2", 8080, "api-2", True)
    ]
    assert [item["taken"] for item in found["considered"]] == [True, False, False]


def test_a_weighted_route_tells_all_destinations_and_the_drawn_one(node: FakeNode) -> None:
    low, high = ask(node, "http://api/v/1"), ask(node, "http://10.96.0.10/v/1", "Host: api", draw=0xF0000000)
    assert [(c["name"], c["weight"], c["share"]) for c in low["clusters"]] == [(V1, 75, 0.75), (V2, 25, 0.25)]
    assert (low["cluster"], high["cluster"]) == (V1, V2)
    assert {e["address"]: e["drawn"] for e in low["endpoints"]} == {"10.244.0.1": True, "10.244.0.2": False}
    assert {e["address"]: e["drawn"] for e in high["endpoints"]} == {"10.244.0.1": False, "10.244.0.2": True}


def test_wires_in_stock(node: FakeNode) -> None:
    assert ask(node, "http://api/v")["wires_in_stock"] == 0
    mine = StockKey(node.number(NameKind.WORKLOAD, "shop/web "), node.number(NameKind.ENDPOINT, "10.244.0.1:"))
    node.maps["stocks"].update(mine.pack(), Stock(n=2, port=(7, 8)).pack())
    assert ask(node, "http://api/v")["wires_in_stock"] == 2
    assert ask(node, "http://api/v", who="shop/api-1", draw=0xF0000000)["wires_in_stock"] == 0


@pytest.mark.parametrize(
    ("url", "headers", "reason", "status"),
    [
        ("http://api/none", ("Connection: close",), "no-route", 404),
        ("http://api/slow", (), "route-timeout", 0),
        ("http://empty/", ("Content-Length: 70000",), "no-endpoint", 503),
        ("http://api/v", ("Upgrade: websocket",), "upgrade", 501),
        ("http://api//v", (), "path-not-normal", 501),
        ("http://api/v", ("Bad Name: x",), "bad-header-name", 400),
    ],
)
def test_what_home_answers_and_why(
    node: FakeNode, url: str, headers: tuple[str, ...], reason: str, status: int
) -> None:
    found = ask(node, url, *headers)
    assert (found["decision"], found["reason"], found["status"]) == ("home", reason, status)


@pytest.mark.parametrize(
    ("url", "reason", "status"), [("http://api/none", "no-route", 404), ("http://empty/", "no-endpoint", 503)]
)
def test_what_the_kernel_answers_itself(node: FakeNode, url: str, reason: str, status: int) -> None:
    found = ask(node, url)
    assert (found["decision"], found["reason"], found["status"]) == ("kernel", reason, status)
    assert found["endpoint"] is None


def test_a_404_lists_what_was_tried(node: FakeNode) -> None:
    found = ask(node, "http://api/none")
    assert [item["match"] for item in found["considered"]] == ["/* end-user=jason", "/slow*", "/v*"]
    assert not any(item["taken"] for item in found["considered"])


def test_the_client_itself_is_home_s(node: FakeNode) -> None:
    found = ask(node, "http://api/v", who="shop/api-1")
    assert (found["decision"], found["reason"], found["status"]) == ("home", "hairpin", 0)


def test_what_is_not_http_or_not_ours(node: FakeNode) -> None:
    for host in ("10.96.0.11", "db", "db.shop", "DB.shop.svc.cluster.local"):
        found = ask(node, f"http://{host}:5432/")
        assert found["decision"] == "tcp"
        assert {endpoint["address"] for endpoint in found["endpoints"]} == {"10.244.0.1", "10.244.0.2"}
    assert ask(node, "http://db:5433/")["decision"] == "untouched"
    assert ask(node, "http://192.0.2.1/")["decision"] == "untouched"


def test_questions_without_an_answer(node: FakeNode, tmp_path: Path) -> None:
    for url in ("https://api/", "http://[::1", "http://api:99999/", "http:///x"):
        with pytest.raises(agent.ExplainError):
            ask(node, url)
    with pytest.raises(agent.ExplainError, match="shop/api-1, shop/web"):
        ask(node, "http://api/", who="shop/nobody")
    with pytest.raises(NotRunningError):
        agent.request(tmp_path / "nothing", "shop/web", "GET", "http://api/", kernel=node.kernel)


def test_arguments() -> None:
    assert records.parse_headers(["a:b", "C:  d e ", "x:"]) == (("a", "b"), ("C", "d e"), ("x", ""))
    for wrong in ("novalue", ":x", " a:b", "a:b\r\nc: d"):
        with pytest.raises(CliError) as error:
            records.parse_headers([wrong])
        assert error.value.exit_code == USAGE
    records.check_request("GET", "http://a/b?c=d")
    for method, url in (("G T", "x"), ("", "x"), ("GET", ""), ("GET", "http://a/b c"), ("GET", "a\n")):
        with pytest.raises(CliError):
            records.check_request(method, url)
