"""Policies for a workload that nothing on its node enforces are said, one by one, from YAML to the status document."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeagent.admin.status import rejection_status
from nodeagent.cache.resources import Chain, Http, Listener, Tcp, WeightedCluster
from nodeagent.cache.store import Resources
from nodeagent.intent.inbound import unenforced
from nodeagent.intent.model import NOT_CAPTURED, NOT_ENFORCED, Rejection
from tests.support import fake_node

PODS = (("shop", "api-1", ("10.244.0.1",)),)
DENY = """---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-delete, namespace: shop}
spec: {action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}
"""
ALLOW = """---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {}
"""
STRICT = """---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: MODE}}
"""


def told(tmp_path: Path, yaml: str) -> list[Rejection]:
    node = fake_node.build(tmp_path, fake_node.SHOP + yaml, PODS)
    return [item for item in node.intent.rejections if item.kind == NOT_ENFORCED]


def test_nothing_is_said_where_nothing_is_asked(tmp_path: Path) -> None:
    assert told(tmp_path, STRICT.replace("MODE", "PERMISSIVE")) == []


@pytest.mark.parametrize(("yaml", "name"), [(DENY, "shop/no-delete"), (ALLOW, "shop/nobody")])
def test_an_authorization_policy(tmp_path: Path, yaml: str, name: str) -> None:
    [item] = told(tmp_path, yaml)
    assert item.name == "shop/api-1"
    assert item.reason == f"AuthorizationPolicy {name} at port 8080, all others"
    assert item.effect.startswith("NOT ENFORCED")
    assert rejection_status(item)["kind"] == "policy-not-enforced"


def test_a_dry_run_asks_for_nothing(tmp_path: Path) -> None:
    dry = DENY.replace("namespace: shop}", 'namespace: shop, annotations: {istio.io/dry-run: "true"}}')
    assert told(tmp_path, dry) == []


def test_another_namespaces_policy_is_not_ours(tmp_path: Path) -> None:
    assert told(tmp_path, DENY.replace("namespace: shop", "namespace: other")) == []


def test_strict_mtls(tmp_path: Path) -> None:
    [item] = told(tmp_path, STRICT.replace("MODE", "STRICT"))
    assert (item.name, item.reason) == ("shop/api-1", "PeerAuthentication requires mTLS at port 8080, all others")


def inbound(*chains: Chain, default: Chain | None = None) -> Resources:
    listener = Listener("virtualInbound", "inbound", (("0.0.0.0", 15006),), chains, default, capture=True)
    return Resources(listeners={"virtualInbound": listener})


def test_chains_that_ask_for_tls_and_have_a_plain_twin_are_permissive() -> None:
    tls = Chain("t", http=Http(), conditions=("tls",), unsupported=("downstream-tls",), port=80)
    assert [item.reason for item in unenforced(inbound(tls))] == ["PeerAuthentication requires mTLS at port 80"]
    assert unenforced(inbound(tls, Chain("p", http=Http(), port=80))) == ()


def test_the_loop_breaker_is_no_policy_and_other_filters_are_named() -> None:
    hole = Chain("b", tcp=Tcp((WeightedCluster("BlackHoleCluster"),)), port=15006)
    jwt = Chain("j", http=Http(unsupported=("filter envoy.filters.http.jwt_authn",)))
    assert unenforced(inbound(hole)) == ()
    [item] = unenforced(inbound(hole, default=jwt))
    assert item.reason == "filter envoy.filters.http.jwt_authn at every port"


HEADLESS = """---
apiVersion: v1
kind: Service
metadata: {name: nodes, namespace: shop}
spec: {clusterIP: None, selector: {app: api}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: nodes, namespace: shop}
spec: {hosts: [nodes], http: [{route: [{destination: {host: nodes}}]}]}
"""


def test_rules_of_a_headless_http_service_are_said_to_reach_nobody(tmp_path: Path) -> None:
    node = fake_node.build(tmp_path, fake_node.SHOP + HEADLESS, PODS)
    [item] = [item for item in node.intent.rejections if item.kind == NOT_CAPTURED]
    assert item.name == "nodes.shop.svc.cluster.local:80"
    assert item.source is not None
    assert (item.source.kind, item.source.name) == ("VirtualService", "nodes")
    assert item.effect == "connections to it are left alone"
