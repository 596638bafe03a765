"""AuthorizationPolicy to RBAC: what Istio's own pairs (`tests/conformance/test_istiod_authz.py`) do not hold."""

from typing import Any

import pytest

from controlplane.model.objects import Config
from controlplane.translate.authorization import Trust, filters
from tests.support.mesh import read
from underpass.api import envoy


def policies(text: str) -> list[Config]:
    done = read(text)
    assert not [verdict for verdict in done.verdicts if verdict.state != "accepted"]
    return list(done.mesh.authorization_policies)


POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: p, namespace: ns}}
spec: {spec}
"""


def rules(spec: str, *, tcp: bool = False) -> Any:
    (made,) = filters(policies(POLICY.format(spec=spec)), Trust(), tcp=tcp)
    return envoy.to_dict(made)["typedConfig"]["rules"]


PROVIDERS = """
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - {name: web, envoyExtAuthzHttp: {service: web.ns.svc.cluster.local, port: 80}}
    - {name: rpc, envoyExtAuthzGrpc: {service: web.ns.svc.cluster.local, port: 80, failOpen: true}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: ns}
spec: {clusterIP: 10.96.0.9, ports: [{name: http, port: 80}]}
---
"""
ASK = "{{action: CUSTOM, provider: {{name: {}}}, rules: [{{to: [{{operation: {{paths: [/a]}}}}]}}]}}"


def asked(*names: str, tcp: bool) -> list[Any]:
    """The filters of one policy for each provider named."""
    texts = [POLICY.format(spec=ASK.format(name)).replace("name: p,", f"name: p-{name},") for name in names]
    done = read(PROVIDERS + "---".join(texts))
    made = filters(done.mesh.authorization_policies, Trust(), done.mesh.providers, tcp=tcp)
    return [envoy.to_dict(item) for item in made]


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("names", [("unknown",), ("web", "rpc")])
def test_a_provider_that_cannot_be_asked_lets_nothing_in(names: tuple[str, ...], tcp: bool) -> None:
    (made,) = asked(*names, tcp=tcp)
    assert made["typedConfig"]["rules"]["action"] == "DENY"
    assert list(made["typedConfig"]["rules"]["policies"]) == ["default-deny-all-due-to-bad-CUSTOM-action"]


def test_a_grpc_provider_is_asked_about_connections_too() -> None:
    shadow, ask = asked("rpc", tcp=True)
    assert "rules" not in shadow["typedConfig"]
    assert list(shadow["typedConfig"]["shadowRules"]["policies"]) == [
        "istio-ext-authz-rpc-ns[ns]-policy[p-rpc]-rule[0]"
    ]
    assert ask["name"] == "envoy.filters.network.ext_authz"
    assert ask["typedConfig"]["failureModeAllow"] is True
    assert ask["typedConfig"]["filterEnabledMetadata"]["filter"] == shadow["name"]
    assert ask["typedConfig"]["grpcService"]["timeout"] == "600s"


def test_an_http_provider_cannot_be_asked_about_connections_so_they_are_refused() -> None:
    (made,) = asked("web", tcp=True)
    assert made["typedConfig"]["rules"]["action"] == "DENY"
    (rule,) = made["typedConfig"]["rules"]["policies"].values()
    assert rule["permissions"] == [{"andRules": {"rules": [{"any": True}]}}], "the path cannot be seen, so all of them"
    http = asked("web", tcp=False)
    assert [item["name"] for item in http] == ["envoy.filters.http.rbac", "envoy.filters.http.ext_authz"]
    assert "rules" not in http[0]["typedConfig"]


def test_a_custom_policy_without_rules_asks_about_nothing() -> None:
    text = PROVIDERS + POLICY.format(spec="{action: CUSTOM, provider: {name: rpc}}")
    done = read(text)
    shadow, _ = filters(done.mesh.authorization_policies, Trust(), done.mesh.providers, tcp=False)
    (rule,) = envoy.to_dict(shadow)["typedConfig"]["shadowRules"]["policies"].values()
    assert rule == {"permissions": [{"notRule": {"any": True}}], "principals": [{"notId": {"any": True}}]}


def test_allow_rule_with_http_attribute_does_not_allow_on_tcp() -> None:
    spec = "{rules: [{to: [{operation: {methods: [GET]}}]}]}"
    assert "policies" not in rules(spec, tcp=True)  # an ALLOW filter without policies allows nothing
    assert rules(spec)["policies"]


def test_service_account_of_the_policys_namespace() -> None:
    made = rules("{rules: [{from: [{source: {serviceAccounts: [web]}}]}]}")
    text = str(made)
    assert "spiffe://.+/ns/ns/(.+/|)sa/web(/.+)?" in text
