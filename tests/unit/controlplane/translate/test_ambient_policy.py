"""Policies for ztunnel: Istio's own translation pairs, and what they do not hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format

from controlplane.model.mesh import Mesh
from controlplane.translate.ambient_policy import STATIC_STRICT, Authorization, policies, referred
from tests.support.mesh import read
from tests.support.tiers import shared
from underpass.api import istio

AMBIENT = ["allow-full", "deny-groups", "peer-authn-permissive-port-mtls-strict", "peer-authn-strict"]


def mesh_of(text: str) -> Mesh:
    done = read(text)
    assert not [verdict for verdict in done.verdicts if verdict.state != "accepted"]
    return done.mesh


def made(text: str) -> list[Any]:
    """The policies of a mesh, without the one that is always there."""
    found = policies(mesh_of(text))
    assert found.pop(f"istio-system/{STATIC_STRICT}").groups
    return list(found.values())


def compare(directory: Path, case: str) -> None:
    """Our translation of one of Istio's pairs is Istio's, as a message."""
    text = (directory / f"{case}-in.yaml").read_text(encoding="utf-8")
    wanted = yaml.safe_load((directory / f"{case}.yaml").read_text(encoding="utf-8"))
    found = made(text)
    if wanted is None:
        assert found == []
        return
    expected: Any = json_format.ParseDict(wanted, Authorization(), descriptor_pool=istio.pool)
    [ours] = found
    if not expected.namespace:  # the pairs leave it out, a directory of YAML means "default"
        ours.namespace = ""
    assert ours == expected


@pytest.mark.needs("shared")
@pytest.mark.parametrize("case", AMBIENT)
def test_pair(case: str) -> None:
    compare(shared() / "istio" / "ambient", case)


def test_every_pair_is_compared() -> None:
    directory = shared() / "istio" / "ambient"
    if directory.exists():
        assert sorted(path.name.removesuffix("-in.yaml") for path in directory.glob("*-in.yaml")) == sorted(AMBIENT)


POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: p, namespace: {namespace}{more}}}
spec: {spec}
"""


def one(spec: str, namespace: str = "ns", more: str = "") -> Any:
    [policy] = made(POLICY.format(spec=spec, namespace=namespace, more=more))
    return json_format.MessageToDict(policy, descriptor_pool=istio.pool)


def test_scope_tells_whom_it_judges() -> None:
    assert one("{}")["scope"] == "NAMESPACE"
    assert "scope" not in one("{}", "istio-system"), "GLOBAL is the zero value"
    assert one("{selector: {matchLabels: {app: a}}}")["scope"] == "WORKLOAD_SELECTOR"
    assert one("{selector: {}}")["scope"] == "NAMESPACE", "selecting by nothing is not selecting nothing"


def test_nothing_is_allowed_by_no_rule_and_everything_by_an_empty_one() -> None:
    assert "groups" not in one("{}")
    assert one("{rules: [{}]}")["groups"] == [{}]


def test_custom_refuses_because_nobody_can_be_asked() -> None:
    found = one("{action: CUSTOM, provider: {name: ext}, rules: [{to: [{operation: {paths: [/admin]}}]}]}")
    assert found["action"] == "DENY"
    assert found["groups"] == [{"rules": [{"matches": [{}]}]}]
    rule = "[{from: [{source: {namespaces: [a]}}]}]"
    assert one("{action: CUSTOM, provider: {name: ext}, rules: " + rule + "}") == {
        **one("{action: DENY, rules: " + rule + "}")
    }


@pytest.mark.parametrize(
    ("spec", "more"),
    [
        ("{action: AUDIT, rules: [{}]}", ""),
        ("{action: DENY, rules: [{}]}", ", annotations: {istio.io/dry-run: 'true'}"),
    ],
)
def test_what_only_logs_is_not_sent(spec: str, more: str) -> None:
    text = POLICY.format(spec="{selector: {matchLabels: {app: a}}, " + spec[1:], namespace="ns", more=more)
    assert made(text) == []
    assert referred(mesh_of(text), "ns", (("app", "a"),)) == [], "nor referred to: ztunnel would wait for it"


def test_a_policy_with_a_target_is_not_ztunnels() -> None:
    mesh = mesh_of(POLICY.format(spec="{action: DENY, rules: [{}]}", namespace="ns", more=""))
    [policy] = mesh.authorization_policies
    spec = type(policy.spec)()
    spec.CopyFrom(policy.spec)
    spec.target_refs.add(kind="Gateway", name="waypoint")
    targeted = replace(mesh, authorization_policies=(replace(policy, spec=spec),))
    assert list(policies(targeted)) == [f"istio-system/{STATIC_STRICT}"]


@pytest.mark.parametrize("attribute", ["trustDomains: [td]", "remoteIpBlocks: [1.2.3.4]", "requestPrincipals: ['*']"])
def test_what_ztunnel_can_not_know_never_allows_and_always_denies(attribute: str) -> None:
    rule = "rules: [{from: [{source: {namespaces: [a], " + attribute + "}}]}]"
    assert "groups" not in one("{" + rule + "}")
    assert one("{action: DENY, " + rule + "}")["groups"] == [
        {"rules": [{"matches": [{"namespaces": [{"exact": "a"}]}]}]}
    ]


def test_the_meshs_trust_domain_stands_for_cluster_local() -> None:
    text = POLICY.format(
        spec="{rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/b]}}]}]}", namespace="ns", more=""
    )
    mesh = mesh_of(text)
    policy = policies(replace(mesh, trust_domain="example.org"))["ns/p"]
    [match] = policy.groups[0].rules[0].matches
    assert match.principals[0].exact == "example.org/ns/a/sa/b"


def test_a_service_account_of_a_condition_is_judged() -> None:
    found = one("{rules: [{when: [{key: source.serviceAccount, values: [a/b, c]}]}]}")
    [match] = found["groups"][0]["rules"][0]["matches"]
    assert match == {
        "serviceAccounts": [{"namespace": "a", "serviceAccount": "b"}, {"namespace": "ns", "serviceAccount": "c"}]
    }


PEER = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: {name}, namespace: {namespace}}}
spec: {spec}
---
"""


def refers(*policies_: tuple[str, str, str], labels: str = "a") -> list[str]:
    text = "".join(PEER.format(name=name, namespace=space, spec=spec) for name, space, spec in policies_)
    return referred(mesh_of(text), "ns", (("app", labels),))


STATIC = f"istio-system/{STATIC_STRICT}"
SELECT = "selector: {matchLabels: {app: a}}"


def test_strict_workloads_refer_to_the_static_policy_or_to_their_own_exceptions() -> None:
    mesh_strict = ("default", "istio-system", "{mtls: {mode: STRICT}}")
    ns_permissive = ("default", "ns", "{mtls: {mode: PERMISSIVE}}")
    ns_unset = ("default", "ns", "{mtls: {mode: UNSET}}")
    ports = "portLevelMtls: {9090: {mode: PERMISSIVE}}"
    assert refers(mesh_strict) == [STATIC]
    assert refers(mesh_strict, ns_permissive) == []
    assert refers(mesh_strict, ns_unset) == [STATIC]
    own = ("own", "ns", "{" + SELECT + ", " + ports + "}")
    assert refers(mesh_strict, own) == ["ns/converted_peer_authentication_own"]
    assert refers(mesh_strict, ns_unset, own) == ["ns/converted_peer_authentication_own"]
    assert refers(mesh_strict, ns_permissive, own) == []
    assert refers(mesh_strict, own, labels="b") == [STATIC]
    strict_port = ("own", "ns", "{" + SELECT + ", mtls: {mode: PERMISSIVE}, portLevelMtls: {9090: {mode: STRICT}}}")
    assert refers(mesh_strict, strict_port) == ["ns/converted_peer_authentication_own"]
    all_strict = ("own", "ns", "{" + SELECT + ", mtls: {mode: STRICT}, portLevelMtls: {9090: {mode: STRICT}}}")
    assert refers(all_strict) == [STATIC]


def test_unset_levels_in_between_do_not_open_a_strict_mesh() -> None:
    """Istio's conversion stops at a namespace that says nothing and leaves the workload without any policy."""
    text = "".join(
        PEER.format(name=name, namespace=space, spec=spec)
        for name, space, spec in (
            ("default", "istio-system", "{mtls: {mode: STRICT}}"),
            ("default", "ns", "{mtls: {mode: UNSET}}"),
            ("own", "ns", "{" + SELECT + ", portLevelMtls: {9090: {mode: PERMISSIVE}}}"),
        )
    )
    [policy] = made(text)
    [group] = policy.groups
    assert [list(rule.matches[0].not_destination_ports) for rule in group.rules] == [[9090], []]
    assert group.rules[1].matches[0].not_principals[0].HasField("presence")
