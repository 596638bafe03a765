"""istioctl's own requests, as it writes them, and what it reads out of the answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from controlplane.snapshot.urls import CLUSTER, ENDPOINT, LISTENER, ROUTE
from tests.support import shop
from tests.support.ads import AdsStream
from tests.support.controlplane import ControlPlaneProcess, wait_for
from underpass.api import envoy

pytestmark = pytest.mark.timeout(60)

PROXY = "sidecar~10.0.0.1~app-1.default~default.svc.cluster.local"


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlaneProcess]:
    config = tmp_path / "config"
    config.mkdir()
    shop.write(config / "all.yaml", shop.service(80, 8080) + "---\n" + shop.rules(50))
    with ControlPlaneProcess(config, tmp_path) as running:
        yield running


@pytest.fixture
def proxy(plane: ControlPlaneProcess) -> Iterator[AdsStream]:
    """A sidecar that has everything and accepts it, but for its routes, which it refuses."""
    with AdsStream(plane.xds, delta=True) as stream:
        request = envoy.DeltaDiscoveryRequest(type_url=CLUSTER)
        request.node.id = PROXY
        request.node.metadata.update(
            {"NAMESPACE": "default", "CLUSTER_ID": "Kubernetes", "ISTIO_VERSION": "1.30.3", "PROXY_CONFIG": {}}
        )
        stream.send(request)
        stream.send(envoy.DeltaDiscoveryRequest(type_url=LISTENER))
        stream.send(envoy.DeltaDiscoveryRequest(type_url=ROUTE, resource_names_subscribe=["80"]))
        for _ in range(3):
            response = stream.recv()
            stream.ack(response, error="80: bad route" if response.type_url == ROUTE else "")
        wait_for("all answered", lambda: _states(plane).get("RouteConfiguration") == "ERROR")
        yield stream


def _states(plane: ControlPlaneProcess) -> dict[str, str]:
    clients = plane.json("/debug/connections")["clients"]
    return {s["type"]: s["state"] for c in clients for s in c["status"]}


def istioctl(type_url: str, *names: str, ip: str = "192.168.7.9", nonce: str = "2026-08-27 10:11:12.123456789") -> Any:
    """The one request that istioctl sends, down to the nonce on a first request and the impossible version."""
    request = envoy.DiscoveryRequest(type_url=type_url, resource_names=list(names))
    request.response_nonce = f"{nonce} +0000 UTC m=+0.123456789"
    request.node.id = f"sidecar~{ip}~test-1.default~default.svc.cluster.local"
    request.node.metadata.update(
        {
            "GENERATOR": "event",
            "SERVICE_ACCOUNT": "default",
            "NAMESPACE": "default",
            "ISTIO_VERSION": "65536.65536.65536",
        }
    )
    return request


def ask(plane: ControlPlaneProcess, request: Any) -> Any:
    with AdsStream(plane.xds) as stream:
        stream.send(request)
        return stream.recv()


@pytest.mark.parametrize("ip", ["192.168.7.9", ""])
def test_proxy_status(plane: ControlPlaneProcess, proxy: AdsStream, ip: str) -> None:
    """``istioctl ps``; on a host without a network the address in its node id is empty."""
    response = ask(plane, istioctl("istio.io/debug/syncz", ip=ip))
    assert response.type_url == "istio.io/debug/syncz"
    identifier = json.loads(response.control_plane.identifier)
    assert identifier["Component"] == "istiod"
    assert identifier["ID"]
    assert set(identifier["Info"]) >= {"version", "revision", "golang_version", "status", "tag"}
    [packed] = response.resources
    assert packed.type_url == "type.googleapis.com/envoy.service.status.v3.ClientConfig"
    config = envoy.unpack_any(packed)
    assert config.node.id == "app-1.default"
    assert dict(config.node.metadata.items()) == {
        "CLUSTER_ID": "Kubernetes",
        "NAMESPACE": "default",
        "ISTIO_VERSION": "1.30.3",
    }
    states = {
        entry.type_url: envoy.enum_name("envoy.service.status.v3.ConfigStatus", entry.config_status)
        for entry in config.generic_xds_configs
    }
    assert states == {CLUSTER: "SYNCED", LISTENER: "SYNCED", ROUTE: "ERROR"}
    [failed] = [entry for entry in config.generic_xds_configs if entry.type_url == ROUTE]
    assert failed.error_state.details == "80: bad route"
    assert all(entry.last_updated.seconds > 0 for entry in config.generic_xds_configs)


def test_config_dump_of_one_proxy(plane: ControlPlaneProcess, proxy: AdsStream) -> None:
    """``istioctl ps POD.NS`` compares this with the proxy's own dump."""
    response = ask(plane, istioctl("istio.io/debug/config_dump", "app-1.default"))
    kinds = [packed.type_url.rpartition(".")[2] for packed in response.resources]
    assert set(kinds) >= {"ClustersConfigDump", "ListenersConfigDump", "RoutesConfigDump", "EndpointsConfigDump"}
    clusters = envoy.unpack_any(response.resources[kinds.index("ClustersConfigDump")])
    names = {envoy.unpack_any(entry.cluster).name for entry in clusters.dynamic_active_clusters}
    assert "outbound|80|v1|greeter.default.svc.cluster.local" in names


def test_config_dump_of_nobody_says_so(plane: ControlPlaneProcess) -> None:
    response = ask(plane, istioctl("istio.io/debug/config_dump", "nobody.default"))
    assert b"nobody.default" in response.resources[0].value


@pytest.mark.parametrize(
    "path",
    ["list", "syncz", "config_dump?proxyID=app-1.default", "edsz?proxyID=app-1.default", "push_status", "configz"],
)
def test_internal_debug(plane: ControlPlaneProcess, proxy: AdsStream, path: str) -> None:
    """``istioctl x internal-debug PATH``: one Any whose value is the page's JSON."""
    response = ask(plane, istioctl("istio.io/debug", path))
    [packed] = response.resources
    assert packed.type_url == "istio.io/debug"
    page = json.loads(packed.value)
    assert page == plane.json(f"/debug/{path}") or path == "syncz"
    assert page


def test_unknown_debug_path_names_the_known_ones(plane: ControlPlaneProcess) -> None:
    response = ask(plane, istioctl("istio.io/debug", "no-such-page"))
    assert b"no-such-page" in response.resources[0].value
    assert b"/debug/list" in response.resources[0].value


def test_version_over_http_with_its_double_slash(plane: ControlPlaneProcess, proxy: AdsStream) -> None:
    """``istioctl version`` asks ``//version`` and ``/debug/syncz``."""
    assert plane.json("//version")["version"]
    [entry] = plane.json("/debug/syncz")
    assert entry["proxy"] == "app-1.default"
    assert entry["istio_version"] == "1.30.3"
    assert entry["cluster_sent"] == entry["cluster_acked"] != ""


def test_the_refusal_is_shown_against_the_object_that_caused_it(plane: ControlPlaneProcess, proxy: AdsStream) -> None:
    [entry] = [e for e in plane.json("/api/v1/config/status") if e["kind"] == "VirtualService"]
    assert [(r["node"], r["type"], r["reason"]) for r in entry["refusedBy"]] == [
        (PROXY, "RouteConfiguration", "80: bad route")
    ]
    untouched = [e for e in plane.json("/api/v1/config/status") if e["kind"] == "Pod"]
    assert untouched
    assert all(e["refusedBy"] == [] for e in untouched)


def test_client_status_discovery(plane: ControlPlaneProcess, proxy: AdsStream) -> None:
    """CSDS, as grpcdebug and others ask it."""
    with grpc.insecure_channel(plane.xds) as channel:
        fetch: Any = channel.unary_unary("/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus")
        everything = envoy.ClientStatusResponse.FromString(fetch(b"", timeout=10))
        request = envoy.ClientStatusRequest(exclude_resource_contents=True)
        request.node_matchers.add().node_id.exact = "somebody-else"
        assert len(envoy.ClientStatusResponse.FromString(fetch(request.SerializeToString(), timeout=10)).config) == 0
    [config] = everything.config
    assert config.node.id == PROXY
    by_name = {entry.name: entry for entry in config.generic_xds_configs}
    table = by_name["80"]
    assert table.client_status == envoy.enum_value("envoy.admin.v3.ClientResourceStatus", "NACKED")
    assert envoy.unpack_any(table.xds_config).name == "80"
    assert not any(entry.type_url == ENDPOINT for entry in config.generic_xds_configs), "it never asked for endpoints"


def test_health(plane: ControlPlaneProcess) -> None:
    with grpc.insecure_channel(plane.xds) as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=10) == b"\x08\x01"
        name = b"envoy.service.discovery.v3.AggregatedDiscoveryService"
        assert check(b"\x0a" + bytes([len(name)]) + name, timeout=10) == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as caught:
            check(b"\x0a\x04nope", timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watching: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
        watch = watching(b"", timeout=10)
        assert next(watch) == b"\x08\x01"
        watch.cancel()
