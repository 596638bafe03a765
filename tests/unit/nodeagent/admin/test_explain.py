"""Explanations over maps in memory, decided by the core."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.abi.numbers import WF_APART
from nodeagent.abi.records import Config, Workload
from nodeagent.admin import explain
from nodeagent.admin.explain import ExplainError
from nodeagent.bpf.fake import FakeKernel
from nodeagent.errors import NotRunningError
from tests.unit.nodeagent.telemetry.test_read import Node

pytestmark = pytest.mark.needs("core")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def ask(node: Node, method: str, url: str, *headers: tuple[str, str], who: str = "a") -> explain.Explanation:
    return explain.request(node.bpffs, who, method, url, headers, kernel=node.kernel, draw=lambda: 0)


def test_a_request_of_the_kernel(node: Node) -> None:
    found = ask(node, "GET", "http://shop/health")
    assert (found.outcome, found.domain, found.service, found.view) == ("kernel", "shop", "10.96.0.1:80", "view")
    assert found.route is not None
    assert found.route.route == "exact"
    assert [(c.address, c.port) for c in found.candidates] == [("10.244.0.2", 8080), ("10.244.0.1", 8080)]
    assert found.table == "80"


def test_weights_have_the_candidates_of_all_their_clusters(node: Node) -> None:
    found = ask(node, "GET", "http://10.96.0.1/", ("Host", "shop"), ("x-trial", "1"))
    assert found.clusters == (("a", 90), ("b", 10))
    assert found.drawn == "a"
    assert {c.address for c in found.candidates} == {"10.244.0.1", "10.244.0.2", "fd00:244::1"}


@pytest.mark.parametrize(
    ("method", "url", "headers", "outcome", "reason"),
    [
        ("GET", "http://shop/w/x", (), "home", "route-regex"),
        ("GET", "http://shop/a/../b", (), "home", "path-not-normal"),
        ("BREW", "http://shop/", (), "home", "bad-method"),
        ("GET", "http://10.96.0.1/", (("Host", "dangling"),), "kernel", "no-cluster"),
        ("GET", "http://10.96.0.1/", (("Host", "empty"),), "kernel", "no-route"),
        ("GET", "http://10.96.0.1/", (("Host", "empty"), ("Connection", "close")), "home", "no-route"),
        ("GET", "http://shop:81/", (), "untouched", "no service of this view"),
        ("GET", "http://unknown/", (), "untouched", "no service of this view"),
    ],
)
def test_what_goes_to_no_endpoint(
    node: Node, method: str, url: str, headers: tuple[tuple[str, str], ...], outcome: str, reason: str
) -> None:
    found = ask(node, method, url, *headers)
    assert (found.outcome, found.reason) == (outcome, reason)


def test_the_home_peer_is_envoy_but_not_for_a_workload_apart_from_it(node: Node) -> None:
    node.maps["config"].update(bytes(4), Config(home_kind=1).pack())
    assert ask(node, "GET", "http://shop/w/x").home == "envoy"
    number = next(iter(node.intent.enrolled.values())).to_bytes(4, "little")
    record = Workload.unpack(node.maps["workloads"].lookup(number) or b"")
    node.maps["workloads"].update(number, replace(record, flags=WF_APART).pack())
    assert ask(node, "GET", "http://shop/w/x").home == "underpass-home"


def test_questions_without_an_answer(node: Node, tmp_path: Path) -> None:
    with pytest.raises(ExplainError, match="known: shop/a"):
        ask(node, "GET", "http://shop/", who="nobody")
    with pytest.raises(ExplainError, match="no http URL"):
        ask(node, "GET", "https://shop/")
    with pytest.raises(ExplainError, match="no usable port"):
        ask(node, "GET", "http://shop:99999999/")
    with pytest.raises(NotRunningError):
        explain.request(tmp_path / "none", "a", "GET", "http://shop/", kernel=FakeKernel())
