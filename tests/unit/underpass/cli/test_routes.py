"""Rows of `underpass routes`, from counters in maps to JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nodeagent.abi.numbers import NameKind, Reason
from nodeagent.abi.records import HomeStat, PuntKey, RouteStat
from nodeagent.telemetry.read import punts_of, routes_of
from tests.support.fake_node import SHOP, FakeNode, build
from underpass.cli.records import routes as records


def shop(tmp_path: Path) -> FakeNode:
    return build(tmp_path, SHOP, [("shop", "web", ("10.244.0.9",))])


def rows(node: FakeNode, *, refused: int = 0, envoy: bool = False) -> list[records.RouteRow]:
    punts = punts_of(node.maps)
    return records.rows(routes_of(node.maps), punts.get(0, {}), refused, envoy=envoy)


def count(node: FakeNode, route: str, kernel: tuple[int, int], home: int, punts: dict[Reason, int]) -> None:
    """Counters as the two CPUs and home would leave them."""
    number = next(i for i, info in node.intent.routes.items() if info.route == route)
    key = number.to_bytes(4, "little")
    node.maps["route_stats"].update_percpu(key, [RouteStat(kernel=one).pack() for one in kernel])
    node.maps["home_stats"].update(key, HomeStat(home, 0).pack())
    for reason, many in punts.items():
        slots = [many.to_bytes(8, "little"), bytes(8)]
        node.maps["punt_stats"].update_percpu(PuntKey(number, reason).pack(), slots)


def by_route(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["route"]: row for row in document["routes"]}


def test_json_is_what_the_issue_says(tmp_path: Path) -> None:
    node = shop(tmp_path)
    count(node, "split", (30, 12), 3, {Reason.NO_UPSTREAM: 3})
    found = by_route(records.document(records.merge([rows(node)])))
    assert found["split"] == {
        "host": "api.shop.svc.cluster.local:80",
        "route": "split",
        "cluster": "outbound|80|v1|api.shop.svc.cluster.local=75, outbound|80|v2|api.shop.svc.cluster.local=25",
        "kernel": 42,
        "home": 3,
        "waypoint": 0,
        "punts": {"no-upstream": 3},
        "source": {
            "kind": "VirtualService",
            "name": "api",
            "namespace": "shop",
            "rule": 2,
            "file": "mesh.yaml",
            "line": SHOP[: SHOP.index("- name: split")].count("\n") + 1,
        },
    }
    assert found["jason"]["kernel"] == 0
    assert found["jason"]["punts"] == {}
    assert records.UNROUTED not in found


def test_requests_without_a_route_have_a_row(tmp_path: Path) -> None:
    node = shop(tmp_path)
    slots = [(4).to_bytes(8, "little"), (5).to_bytes(8, "little")]
    node.maps["punt_stats"].update_percpu(PuntKey(0, Reason.UPGRADE).pack(), slots)
    row = by_route(records.document(rows(node, refused=2)))[records.UNROUTED]
    assert (row["kernel"], row["home"], row["waypoint"], row["punts"]) == (0, 2, 0, {"upgrade": 9})
    assert row["source"] == {"kind": "", "name": "", "namespace": "", "rule": -1, "file": "", "line": 0}
    assert by_route(records.document(rows(node, envoy=True)))[records.UNROUTED]["waypoint"] == 9
    # what home refused was not Envoy's
    assert by_route(records.document(rows(node, refused=2, envoy=True)))[records.UNROUTED]["waypoint"] == 7


def test_punts_are_the_waypoints_where_the_home_peer_is_an_envoy(tmp_path: Path) -> None:
    from nodeagent.reconcile import Reconciler

    node = shop(tmp_path)
    count(node, "slow", (0, 0), 0, {Reason.ROUTE_TIMEOUT: 7})
    assert by_route(records.document(rows(node)))["slow"]["waypoint"] == 0
    Reconciler(node.kernel, node.maps).configure([("10.0.0.1", 15001)], home_kind=1)
    assert by_route(records.document(rows(node)))["slow"]["waypoint"] == 7


def test_nodes_are_added_up_and_versions_of_a_route_are_not(tmp_path: Path) -> None:
    node = shop(tmp_path)
    count(node, "split", (1, 2), 1, {Reason.NO_UPSTREAM: 1})
    one = rows(node)
    twice = records.merge([one, one])
    assert len(twice) == len(one)
    split = next(row for row in twice if row.route == "split")
    assert (split.kernel, split.home, split.punts) == (6, 2, {"no-upstream": 2})
    assert len(records.merge([[*one, *one]])) == 2 * len(one)
    assert node.number(NameKind.VIEW, "shop/web") == 1


def test_words_for_people() -> None:
    assert records.cluster_text("outbound|80|v1|api.shop.svc.cluster.local") == "api.shop:80 v1"
    assert records.cluster_text("a=1, outbound|80||b.example.com=99") == "a (1), b.example.com:80 (99)"
    assert records.cluster_text("") == "-"
    assert records.cluster_text("odd=name") == "odd=name"
    row = records.RouteRow("", records.UNROUTED, "", "", records._NOBODY, punts={"split-head": 3}, home=1, refused=1)
    assert records.cells(row)[0] == "(before a route was known)"
    assert records.cells(row)[4:7] == ("1 (1 refused)", "0", "split-head 3")
