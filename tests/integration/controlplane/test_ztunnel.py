"""A ztunnel's own requests to a running control plane: wildcard and on demand, as it writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.snapshot.urls import ADDRESS, AUTHORIZATION, WORKLOAD
from tests.support import shop
from tests.support.ads import AdsStream
from tests.support.controlplane import ControlPlaneProcess
from underpass.api import envoy, istio

pytestmark = pytest.mark.timeout(60)

POLICY = """---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-a, namespace: default}
spec: {selector: {matchLabels: {app: greeter}}, rules: [{from: [{source: {namespaces: [a]}}]}]}
"""


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlaneProcess]:
    config = tmp_path / "config"
    config.mkdir()
    shop.write(config / "all.yaml", shop.service(80, 8080) + POLICY)
    with ControlPlaneProcess(config, tmp_path) as running:
        yield running


def request(type_url: str, names: list[str] | None = None, *, unsubscribe: list[str] | None = None) -> Any:
    """ztunnel gives its node with the first request of every type, not only of the stream."""
    made = envoy.DeltaDiscoveryRequest(
        type_url=type_url, resource_names_subscribe=names or [], resource_names_unsubscribe=unsubscribe or []
    )
    made.node.id = "ztunnel~10.0.0.9~ztunnel-x.istio-system~istio-system.svc.cluster.local"
    made.node.metadata.update(
        {"NAME": "ztunnel-x", "NAMESPACE": "istio-system", "INSTANCE_IPS": "10.0.0.9", "NODE_NAME": "n1"}
    )
    return made


def unpack(resource: Any) -> Any:
    return istio.message(resource.resource.type_url.rpartition("/")[2]).FromString(resource.resource.value)


def test_wildcard_then_a_change_then_a_reconnect(plane: ControlPlaneProcess) -> None:
    with AdsStream(plane.xds, delta=True) as stream:
        stream.send(request(ADDRESS))
        stream.send(request(AUTHORIZATION))
        answers = {answer.type_url: answer for answer in (stream.recv(), stream.recv())}
        for answer in answers.values():
            stream.ack(answer)
        known = {resource.name: resource for resource in answers[ADDRESS].resources}
        assert sorted(known) == [
            "Kubernetes//Pod/default/greeter-v1",
            "Kubernetes//Pod/default/greeter-v2",
            "default/greeter.default.svc.cluster.local",
        ]
        pod = unpack(known["Kubernetes//Pod/default/greeter-v1"]).workload
        assert list(pod.authorization_policies) == ["default/only-a"]
        assert list(known["default/greeter.default.svc.cluster.local"].aliases) == ["/10.96.7.7"]
        names = [resource.name for resource in answers[AUTHORIZATION].resources]
        assert names == ["default/only-a", "istio-system/istio_converted_static_strict"]

        text = (plane.config / "all.yaml").read_text()
        shop.write(plane.config / "all.yaml", text.replace("127.0.0.3", "127.0.0.4"))
        changed = stream.recv()
        assert [resource.name for resource in changed.resources] == ["Kubernetes//Pod/default/greeter-v2"]
        stream.ack(changed)
    with AdsStream(plane.xds, delta=True) as stream:
        again = request(ADDRESS)
        again.initial_resource_versions.update({name: resource.version for name, resource in known.items()})
        again.initial_resource_versions["Kubernetes//Pod/default/gone"] = "1"
        stream.send(again)
        first = stream.recv()
        assert [resource.name for resource in first.resources] == ["Kubernetes//Pod/default/greeter-v2"]
        stream.ack(first)
        assert list(stream.recv().removed_resources) == ["Kubernetes//Pod/default/gone"]


def test_on_demand(plane: ControlPlaneProcess) -> None:
    with AdsStream(plane.xds, delta=True) as stream:
        stream.send(request(ADDRESS, ["*"], unsubscribe=["*"]))
        first = stream.recv()
        assert not first.resources, "ztunnel is ready once it has heard something"
        stream.ack(first)
        stream.send(envoy.DeltaDiscoveryRequest(type_url=ADDRESS, resource_names_subscribe=["/10.96.7.7"]))
        answer = stream.recv()
        assert sorted(resource.name for resource in answer.resources) == [
            "Kubernetes//Pod/default/greeter-v1",
            "Kubernetes//Pod/default/greeter-v2",
            "default/greeter.default.svc.cluster.local",
        ]
        stream.ack(answer)
        stream.send(
            envoy.DeltaDiscoveryRequest(type_url=ADDRESS, resource_names_subscribe=["/192.0.2.1", "net/1.1.1.1"])
        )
        unknown = stream.recv()
        assert sorted(unknown.removed_resources) == ["/192.0.2.1", "net/1.1.1.1"]
        stream.ack(unknown)
        text = (plane.config / "all.yaml").read_text()
        shop.write(plane.config / "all.yaml", text.replace("127.0.0.3", "192.0.2.1"))
        moved = stream.recv()
        assert [resource.name for resource in moved.resources] == ["Kubernetes//Pod/default/greeter-v2"]
        assert list(moved.resources[0].aliases) == ["/192.0.2.1"]


def test_what_it_is_not_served_is_answered_empty(plane: ControlPlaneProcess) -> None:
    with AdsStream(plane.xds, delta=True) as stream:
        stream.send(request(WORKLOAD))
        assert len(stream.recv().resources) == 2
        stream.send(request(envoy.type_url("Cluster")))
        assert not stream.recv().resources
