"""What the Envoy of a node is served that takes what the kernel's programs leave (INTERCEPTION_MODE HOME)."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.model.node import Node, parse_node
from controlplane.translate import names, prepare, translate
from tests.support.mesh import read

MESH = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.7, selector: {app: web}, ports: [{name: http, port: 80}, {name: tcp, port: 3306}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {serviceAccountName: default, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 10.0.0.9, podIPs: [{ip: 10.0.0.9}], conditions: [{type: Ready, status: "True"}]}
"""


def node(mode: str) -> Node:
    metadata = {"LABELS": {"app": "web"}, "INSTANCE_IPS": "10.0.0.9,fd00::9", "INTERCEPTION_MODE": mode}
    return parse_node("sidecar~10.0.0.9~w.shop~shop.svc.cluster.local", metadata, user_agent="envoy")


@pytest.fixture(name="served")
def _served() -> dict[str, dict[str, dict[str, Any]]]:
    prepared = prepare(read(MESH).mesh)
    return {mode: translate(prepared, node(mode)) for mode in ("HOME", "REDIRECT")}  # type: ignore[misc]  # untyped JSON


def test_the_outbound_side_of_a_sidecar_and_nothing_that_listens(served: dict[str, dict[str, Any]]) -> None:
    home, sidecar = served["HOME"], served["REDIRECT"]
    assert set(sidecar[names.LISTENER]) - set(home[names.LISTENER]) == {"virtualInbound", "virtualOutbound"}
    assert set(home[names.LISTENER]) == {"0.0.0.0_80", "10.96.0.7_3306"}
    for name, listener in home[names.LISTENER].items():
        assert listener == sidecar[names.LISTENER][name]
        assert listener.HasField("bind_to_port")
        assert not listener.bind_to_port.value


def test_the_same_routes_and_destinations(served: dict[str, dict[str, Any]]) -> None:
    home, sidecar = served["HOME"], served["REDIRECT"]
    assert home[names.ROUTE] == sidecar[names.ROUTE]
    assert home[names.ENDPOINT] == sidecar[names.ENDPOINT]
    gone = set(sidecar[names.CLUSTER]) - set(home[names.CLUSTER])
    assert gone
    assert all(name.startswith("inbound|") or name == "InboundPassthroughCluster" for name in gone)
    assert {name: sidecar[names.CLUSTER][name] for name in home[names.CLUSTER]} == home[names.CLUSTER]
