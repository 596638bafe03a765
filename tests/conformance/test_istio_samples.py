"""Istio's own sample YAML, unedited, to stock Envoys of both variants as sidecar and as gateway: nothing is refused."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.controlplane import ControlPlaneProcess, wait_for
from tests.support.envoy_process import EnvoyProcess
from tests.support.tiers import shared

pytestmark = [pytest.mark.needs("envoy", "shared"), pytest.mark.timeout(240)]

SIDECAR = "sidecar~10.244.0.15~productpage-v1-0.default~default.svc.cluster.local"
GATEWAY = "router~10.244.0.16~istio-ingressgateway-0.istio-system~istio-system.svc.cluster.local"


def _clients(plane: ControlPlaneProcess) -> list[dict[str, Any]]:
    clients: list[dict[str, Any]] = plane.json("/debug/connections")["clients"]
    return clients


def _settled(plane: ControlPlaneProcess, count: int) -> bool:
    """Every client has answered everything that it was sent."""
    clients = _clients(plane)
    return len(clients) == count and all(
        status["state"] in ("SYNCED", "ERROR") for client in clients for status in client["status"]
    )


def _changes(plane: ControlPlaneProcess) -> int:
    """Changes that went through all clients' views."""
    return plane.log.count("configuration in force")


def _listeners(envoy: EnvoyProcess) -> int:
    return envoy.stats("listener_manager.total_listeners_active")["listener_manager.total_listeners_active"]


def test_every_networking_sample_is_accepted(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.mkdir()
    shutil.copy(shared() / "istiod" / "pods.yaml", config)
    samples = sorted((shared() / "istio" / "bookinfo" / "networking").glob("*.yaml"))
    assert len(samples) > 15
    with ExitStack() as stack:
        plane = stack.enter_context(ControlPlaneProcess(config, tmp_path))
        envoys = []
        for variant in ("GRPC", "DELTA_GRPC"):
            for node, labels, space in (
                (SIDECAR, {"app": "productpage", "version": "v1"}, "default"),
                (GATEWAY, {"istio": "ingressgateway", "app": "istio-ingressgateway"}, "istio-system"),
            ):
                metadata = {"NAMESPACE": space, "LABELS": labels}
                name = f"{variant}-{node.split('~')[0]}"
                envoys.append(stack.enter_context(EnvoyProcess(tmp_path, plane.xds, node, metadata, variant, name)))
        wait_for("all connected and in sync", lambda: _settled(plane, 4), 30)
        refused = {}
        for sample in samples:
            before = _changes(plane)
            shutil.copy(sample, config)
            wait_for(f"{sample.name} is in force", lambda was=before: _changes(plane) > was)
            wait_for(f"{sample.name} is answered", lambda: _settled(plane, 4), 40)
            found = plane.json("/debug/push_status")["refusals"]
            if found:
                refused[sample.name] = found
            if sample.name == "bookinfo-gateway.yaml":
                assert [_listeners(envoy) > 0 for envoy in envoys] == [True] * 4, "the gateways listen"
            (config / sample.name).unlink()
        assert refused == {}
        for envoy in envoys:
            assert envoy.rejected() == {}
            assert envoy.stats("cluster_manager.cluster_added").popitem()[1] > 3
    rejected = [e for e in plane.log.splitlines() if "object rejected" in e]
    assert rejected == []
