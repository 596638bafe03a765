"""History, diff, rollback and lineage over the API of a running control plane."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.snapshot.urls import ROUTE
from tests.support import shop
from tests.support.ads import AdsStream
from tests.support.controlplane import ControlPlaneProcess, wait_for
from underpass.api import envoy

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlaneProcess]:
    config = tmp_path / "config"
    config.mkdir()
    shop.write(config / "service.yaml", shop.service(80, 8080))
    shop.write(config / "rules.yaml", shop.rules(10))
    with ControlPlaneProcess(config, tmp_path) as running:
        yield running


def post(plane: ControlPlaneProcess, path: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(f"http://{plane.http}{path}", data=b"", headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return int(reply.status), reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def revisions(plane: ControlPlaneProcess) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = plane.json("/api/v1/config/history")["revisions"]
    return found


def weights(response: Any) -> list[int]:
    [resource] = response.resources
    table = envoy.unpack_any(resource.resource)
    return [
        c.weight.value for host in table.virtual_hosts for r in host.routes for c in r.route.weighted_clusters.clusters
    ]


def test_history_diff_and_rollback(plane: ControlPlaneProcess) -> None:
    with AdsStream(plane.xds, delta=True) as stream:
        request = envoy.DeltaDiscoveryRequest(type_url=ROUTE, resource_names_subscribe=["80"])
        request.node.id = "sidecar~10.0.0.1~app-1.default~default.svc.cluster.local"
        stream.send(request)
        first = stream.recv()
        assert weights(first) == [10, 90]
        stream.ack(first)
        shop.write(plane.config / "rules.yaml", shop.rules(70))
        second = stream.recv()
        assert weights(second) == [70, 30]
        stream.ack(second)

        new, old = wait_for("two revisions", lambda: len(revisions(plane)) == 2 and revisions(plane))
        assert [(c["change"], c["kind"], c["name"]) for c in new["changes"]] == [
            ("changed", "VirtualService", "greeter")
        ]
        [change] = plane.json(f"/api/v1/config/diff?from={old['id']}")["changes"]
        assert change["before"]["spec"]["http"][1]["route"][0]["weight"] == 10
        assert change["after"]["spec"]["http"][1]["route"][0]["weight"] == 70

        assert plane.get(f"/api/v1/config/rollback?to={old['id']}")[0] == 405
        assert post(plane, f"/api/v1/config/rollback?to={old['id']}")[0] == 403, "no web page can do this"
        status, body = post(plane, f"/api/v1/config/rollback?to={old['id']}", **{"X-Underpass": "1"})
        assert status == 200, body
        assert json.loads(body)["inForce"] == old["id"]
        third = stream.recv()
        assert weights(third) == [10, 90]
        assert third.resources[0].version == first.resources[0].version, "the same content has the same version"
        stream.ack(third)
        history = plane.json("/api/v1/config/history")
        assert history["rolledBackTo"] == old["id"]
        assert history["revisions"][0]["id"] == old["id"]

        shop.write(plane.config / "rules.yaml", shop.rules(40))
        assert weights(stream.recv()) == [40, 60], "the directory is the source of truth"
        assert plane.json("/api/v1/config/history")["rolledBackTo"] == ""


def test_unknown_revisions_are_named(plane: ControlPlaneProcess) -> None:
    assert plane.get("/api/v1/config/diff?from=nope") == (404, "no revision 'nope'; the last 1 are kept\n")
    assert post(plane, "/api/v1/config/rollback?to=nope", **{"X-Underpass": "1"})[0] == 404


def test_lineage_tells_which_nodes_run_what_came_from_an_object(plane: ControlPlaneProcess) -> None:
    node = "sidecar~10.0.0.1~app-1.default~default.svc.cluster.local"
    with AdsStream(plane.xds, delta=True) as stream:
        request = envoy.DeltaDiscoveryRequest(type_url=ROUTE, resource_names_subscribe=["80"])
        request.node.id = node
        stream.send(request)
        stream.ack(stream.recv())
        path = "/api/v1/config/lineage?kind=VirtualService&namespace=default&name=greeter"
        [entry] = wait_for("acknowledged", lambda: [e for e in plane.json(path) if e["state"] == "SYNCED"])
        assert (entry["node"], entry["type"], entry["resource"]) == (node, "RouteConfiguration", "80")
        assert plane.json(path.replace("name=greeter", "name=other")) == []
    assert plane.get("/api/v1/config/lineage")[0] == 404
