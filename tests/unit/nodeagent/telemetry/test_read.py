"""Counters out of pinned maps, by an agent's names; and the same for Prometheus."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeagent import telemetry
from nodeagent.abi.numbers import Counter, NameKind, Reason
from nodeagent.abi.records import (
    Config,
    EndpointStat,
    FlowKey,
    FlowStat,
    HomeStat,
    InterfaceStat,
    NameKey,
    PuntKey,
    RouteStat,
)
from nodeagent.bpf.abc import Map
from nodeagent.bpf.fake import FakeKernel
from nodeagent.errors import NotRunningError
from nodeagent.intent.compile import Compiler
from nodeagent.intent.model import Intent, Table
from nodeagent.plan import Observed, Op, Step, plan
from nodeagent.reconcile import Reconciler
from nodeagent.telemetry.prometheus import render
from nodeagent.telemetry.read import names_of, route_of
from tests.support.node_maps import node_maps
from tests.support.resources import Load, from_yaml

GOLDEN = Path(__file__).parents[3] / "golden" / "intent"


class Node:
    """Maps in memory, pinned below a directory, filled by a compilation."""

    def __init__(self, directory: Path) -> None:
        self.kernel, self.bpffs = FakeKernel(), directory
        self.maps: dict[str, Map] = node_maps(self.kernel)
        (directory / "maps").mkdir()
        for name, target in self.maps.items():
            target.pin(directory / "maps" / name)
        resources = from_yaml(GOLDEN / "routing.in.yaml")["view"]
        self.intent: Intent = Compiler().compile({"view": resources}, [(Load("shop/a", ("10.9.0.1",)), "view")])
        Reconciler(self.kernel, self.maps).execute(plan(Observed(), self.intent))

    def route(self, name: str) -> int:
        return next(number for number, info in self.intent.routes.items() if info.route == name)

    def count(self, route: int, kernel: int, punted: int, home: int, refused: int) -> None:
        key = route.to_bytes(4, "little")
        self.maps["route_stats"].update(key, RouteStat(kernel, punted).pack())
        self.maps["home_stats"].update(key, HomeStat(home, refused).pack())


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_routes(node: Node) -> None:
    weights, regex = node.route("weights"), node.route("boundary")
    node.count(weights, 5, 1, 1, 0)
    node.count(regex, 0, 2, 2, 2)
    node.maps["punt_stats"].update(PuntKey(weights, Reason.NO_UPSTREAM).pack(), (3).to_bytes(8, "little"))
    node.maps["punt_stats"].update(PuntKey(0, Reason.SPLIT_HEAD).pack(), (4).to_bytes(8, "little"))
    found = {route.route: route for route in telemetry.read_routes(node.bpffs, node.kernel)}
    cpus = node.kernel.cpus
    row = found["weights"]
    assert (row.kernel, row.home, row.waypoint, row.where) == (5 * cpus, 1, 0, "kernel")
    assert row.cluster == "a=90, b=10"
    assert row.punts == {"no-upstream": 3 * cpus}
    assert found["boundary"].where == "waypoint"
    assert (found["boundary"].reason, found["boundary"].features) == ("route-regex", ("path-regex",))
    assert found["exact"].cluster == "a"
    assert telemetry.read_unrouted(node.bpffs, node.kernel) == {"split-head": 4 * cpus}


def test_where_an_envoy_is_the_home_peer_punts_are_the_waypoints(node: Node) -> None:
    node.maps["config"].update(bytes(4), Config(home_kind=1).pack())
    regex = node.route("boundary")
    node.maps["punt_stats"].update(PuntKey(regex, Reason.ROUTE_REGEX).pack(), (2).to_bytes(8, "little"))
    found = {route.route: route for route in telemetry.read_routes(node.bpffs, node.kernel)}
    assert found["boundary"].waypoint == 2 * node.kernel.cpus
    # some of them were underpass-home's: of workloads that keep to it, or while Envoy was away
    node.maps["home_stats"].update(regex.to_bytes(4, "little"), HomeStat(1, 0).pack())
    found = {route.route: route for route in telemetry.read_routes(node.bpffs, node.kernel)}
    assert (found["boundary"].home, found["boundary"].waypoint) == (1, 2 * node.kernel.cpus - 1)


def test_counters_endpoints_interfaces(node: Node) -> None:
    node.maps["counters"].update(int(Counter.KERNEL).to_bytes(4, "little"), (6).to_bytes(8, "little"))
    assert telemetry.read_counters(node.bpffs, node.kernel)["kernel"] == 6 * node.kernel.cpus
    number = node.intent.known.of(NameKind.ENDPOINT)["10.244.0.1:8080"]
    node.maps["endpoint_stats"].update(number.to_bytes(4, "little"), EndpointStat(1, 7, 2).pack())
    rows = {row.address: row for row in telemetry.read_endpoints(node.bpffs, node.kernel)}
    assert set(rows) == {"10.244.0.1", "10.244.0.2", "fd00:244::1"}
    row = rows["10.244.0.1"]
    assert (row.port, row.active, row.requests, row.errors, row.live) == (8080, 1, 7, 2, True)
    node.maps["interface_stats"].update((9).to_bytes(4, "little"), InterfaceStat(1, 2, 3, 4, 9).pack())
    (interface,) = telemetry.read_interfaces(node.bpffs, node.kernel)
    assert (interface.ifindex, interface.from_pod_bytes) == (9, 4 * node.kernel.cpus)


def test_a_node_without_an_agent_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError, match="start underpass-agent"):
        telemetry.read_routes(tmp_path, FakeKernel())


def test_a_foreign_name_is_still_a_row() -> None:
    assert route_of(3, "plain text").host == "plain text"
    assert route_of(3, "[1]").id == 3


def test_prometheus(node: Node) -> None:
    node.count(node.route("weights"), 5, 0, 1, 0)
    node.maps["punt_stats"].update(PuntKey(0, Reason.SPLIT_HEAD).pack(), (4).to_bytes(8, "little"))
    text = render(node.maps, 3, 1).decode()
    cpus = node.kernel.cpus
    labels = 'cluster="a=90, b=10",decided_by="kernel",host="shop:80",route="weights"'
    assert f"underpass_requests_total{{{labels}}} {5.0 * cpus}" in text
    assert f'underpass_punts_total{{host="",reason="split-head"}} {4.0 * cpus}' in text
    assert "underpass_agent_applies_total 3.0" in text
    assert "underpass_agent_drift_total 1.0" in text


def test_requests_of_the_kernel_have_istios_names(node: Node) -> None:
    route = node.route("weights")
    endpoint = min(names_of(node.maps, NameKind.ENDPOINT))
    workload = min(names_of(node.maps, NameKind.WORKLOAD))
    flows = node.maps["flow_stats"]
    flows.update(FlowKey(workload, route, endpoint, 200).pack(), FlowStat(3, 300, 900, 6000, (1, 0, 2)).pack())
    flows.update(FlowKey(workload, route, endpoint, 0).pack(), FlowStat(1, 100, 5, 70, (0, 1)).pack())
    cpus, text = node.kernel.cpus, render(node.maps, 0, 0).decode()
    rows = [line for line in text.splitlines() if line.startswith("istio_requests_total{")]
    assert len(rows) == 2
    ok = next(line for line in rows if 'response_code="200"' in line)
    for label in (
        'source_workload="a"', 'source_workload_namespace="shop"', 'destination_service="shop"', 'reporter="source"',
    ):  # fmt: skip
        assert label in ok
    assert ok.endswith(f" {3.0 * cpus}")
    assert any('response_code="0"' in line and 'response_flags="DC"' in line for line in rows)
    buckets = [
        (line.split('le="')[1].split('"')[0], float(line.rsplit(" ", 1)[1]))
        for line in text.splitlines()
        if line.startswith("istio_request_duration_milliseconds_bucket") and 'response_code="200"' in line
    ]
    assert buckets[:4] == [("0.064", cpus), ("0.128", cpus), ("0.256", 3 * cpus), ("0.512", 3 * cpus)]
    assert buckets[-1] == ("+Inf", 3 * cpus)
    assert f" {900.0 * cpus}" in next(
        line for line in text.splitlines() if line.startswith("istio_response_bytes_sum") and '"200"' in line
    )


def test_flows_end_with_their_owner(node: Node) -> None:
    route = node.route("weights")
    endpoint = min(names_of(node.maps, NameKind.ENDPOINT))
    keys = [FlowKey(1, route, endpoint, 200), FlowKey(1, route + 1, endpoint + 1, 200)]
    for key in keys:
        node.maps["flow_stats"].update(key.pack(), FlowStat(1).pack())
    name = NameKey(NameKind.ENDPOINT, endpoint).pack()
    before = node.maps["names"].lookup(name)
    assert before is not None
    same, other = (
        text.encode().ljust(len(before), b"\0")
        for text in (before.rstrip(b"\0").decode().partition(" ")[0] + " another;label", "10.9.9.9:1 stranger")
    )
    reconciler = Reconciler(node.kernel, node.maps)
    reconciler.execute([Step(Op.PUT, Table.NAMES, name, same)])
    assert len(list(node.maps["flow_stats"].keys())) == 2
    reconciler.execute([Step(Op.PUT, Table.NAMES, name, other)])
    assert list(node.maps["flow_stats"].keys()) == [keys[1].pack()]
    reconciler.execute([Step(Op.RESET, Table.NAMES, keys[1].route.to_bytes(4, "little"))])
    assert not list(node.maps["flow_stats"].keys())
