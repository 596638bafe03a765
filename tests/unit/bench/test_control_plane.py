"""The control plane's bench: what it asks, what it reads, its rows; and the whole once, small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench import control_plane
from bench.control_plane import Measured, first_requests, lines, node, rule, service
from bench.xds_load import request, versions
from controlplane.snapshot.urls import CLUSTER, ENDPOINT
from tests.support.mesh import read
from underpass.api import envoy


def test_requests_are_what_protobuf_would_write() -> None:
    made: Any = envoy.DeltaDiscoveryRequest.FromString(
        request(ENDPOINT, ["a", "b"], node=node(3), has={"a": "1", "long": "x" * 300})
    )
    assert made.type_url == ENDPOINT
    assert list(made.resource_names_subscribe) == ["a", "b"]
    assert dict(made.initial_resource_versions) == {"a": "1", "long": "x" * 300}
    assert made.node.id == "sidecar~10.200.0.4~client-3.bench~bench.svc.cluster.local"


def test_clients_have_addresses_of_their_own() -> None:
    ids = {node(number) for number in range(20_000)}
    assert len(ids) == 20_000
    [first, *others] = list(first_requests(2)(7))
    assert node(7) in first
    assert all(node(7) not in other for other in others)


def test_versions_are_those_of_the_last_word() -> None:
    first: Any = envoy.DeltaDiscoveryResponse(type_url=CLUSTER)
    first.resources.add(name="a", version="1")
    first.resources.add(name="b", version="1")
    then: Any = envoy.DeltaDiscoveryResponse(type_url=CLUSTER, removed_resources=["b"])
    then.resources.add(name="a", version="2")
    assert versions(item.SerializeToString() for item in (first, then)) == {CLUSTER: {"a": "2"}}


@pytest.mark.parametrize("number", [0, 255, 256, 9_999])
def test_the_configuration_is_accepted_and_an_edit_moves_one_endpoint(number: int) -> None:
    before, after = (read(service(number, 10, moved), rule(1)) for moved in (0, 1))
    assert all(verdict.state == "accepted" for verdict in before.verdicts)
    [documents] = [list(yaml.safe_load_all(service(number, 10)))]
    assert len(documents[1]["endpoints"]) == 10
    [key] = before.mesh.endpoints
    old, new = ({item.address for item in done.mesh.endpoints[key]} for done in (before, after))
    assert len(old) == len(new) == 10
    assert len(old - new) == 1


def test_rows_have_percentiles_spread_and_goals() -> None:
    measured = Measured(1000, 10, 1000, "endpoint", values=[float(n) for n in range(1, 101)], cpu_ms=[5.0, 7.0, 6.0])
    row = measured.row()
    assert (row["scenario"], row["path"], row["connections"]) == ("control-plane", "1000x10", 1000)
    assert (row["p50"], row["p99"], row["spread"], row["rounds"]) == (50.5, 100.0, [1.0, 100.0], 100)
    assert row["server_cpu_ms"] == 6.0
    head, line = lines([row])
    assert "goal" in head
    assert " 500 " in line


@pytest.mark.timeout(60)
def test_the_whole_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(control_plane, "_QUIET", 0.3)
    output = tmp_path / "results" / "cp.json"
    assert control_plane.bench([(3, 2, 4)], 2, output) == 0
    document = json.loads(output.read_text())
    assert document["failures"] == []
    measures = {row["measure"]: row for row in document["rows"]}
    assert {"start", "connect", "endpoint", "route", "reconnect", "peak memory of all"} <= set(measures)
    assert measures["endpoint"]["rounds"] == 2
    assert all(row["p50"] > 0 for row in measures.values())
    assert "3x2" in capsys.readouterr().out
