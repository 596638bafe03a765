"""AuthorizationPolicy to RBAC: Istio's own translation pairs, and what they do not hold."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.model.objects import Config
from controlplane.translate.authorization import Trust, filters
from tests.support.mesh import read
from tests.support.tiers import shared
from underpass.api import envoy

CASES = [
    ("http/allow-empty-rule", "", ()),
    ("http/allow-full-rule", "", ()),
    ("http/allow-nil-rule", "", ()),
    ("http/allow-path", "", ()),
    ("http/audit-full-rule", "", ()),
    ("http/deny-and-allow", "12", ()),
    ("http/dry-run-mix", "", ()),
    ("http/simple-policy-td-aliases", "", ("td1", "cluster.local")),
    ("http/single-policy", "", ()),
    ("tcp/allow-both-http-tcp", "", ()),
    ("tcp/deny-both-http-tcp", "", ()),
]


def policies(text: str) -> list[Config]:
    done = read(text)
    assert not [verdict for verdict in done.verdicts if verdict.state != "accepted"]
    return list(done.mesh.authorization_policies)


def expected(path: Path) -> Any:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    kind = "Filter" if "network" in data["name"] else "HttpFilter"
    return envoy.to_dict(envoy.from_dict(kind, data))


@pytest.mark.needs("shared")
@pytest.mark.parametrize(("case", "parts", "domains"), CASES)
def test_pair(case: str, parts: str, domains: tuple[str, ...]) -> None:
    directory = shared() / "istio" / "authz"
    text = (directory / f"{case}-in.yaml").read_text(encoding="utf-8")
    trust = Trust(domains[0], domains[1:]) if domains else Trust()
    made = [envoy.to_dict(item) for item in filters(policies(text), trust, tcp=case.startswith("tcp"))]
    wanted = [expected(directory / f"{case}-out{part}.yaml") for part in parts or [""]]
    assert made == wanted


POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: p, namespace: ns}}
spec: {spec}
"""


def rules(spec: str, *, tcp: bool = False) -> Any:
    (made,) = filters(policies(POLICY.format(spec=spec)), Trust(), tcp=tcp)
    return envoy.to_dict(made)["typedConfig"]["rules"]


def test_custom_without_provider_denies_everything() -> None:
    made = rules("{action: CUSTOM, provider: {name: ext}, rules: [{}]}")
    assert made["action"] == "DENY"
    assert list(made["policies"]) == ["default-deny-all-due-to-bad-CUSTOM-action"]


def test_allow_rule_with_http_attribute_does_not_allow_on_tcp() -> None:
    spec = "{rules: [{to: [{operation: {methods: [GET]}}]}]}"
    assert "policies" not in rules(spec, tcp=True)  # an ALLOW filter without policies allows nothing
    assert rules(spec)["policies"]


def test_service_account_of_the_policys_namespace() -> None:
    made = rules("{rules: [{from: [{source: {serviceAccounts: [web]}}]}]}")
    text = str(made)
    assert "spiffe://.+/ns/ns/(.+/|)sa/web(/.+)?" in text
