"""Identities, and who may claim to be which node."""

from __future__ import annotations

import pytest

from controlplane.identity.caller import (
    Identity,
    IdentityError,
    Rights,
    authenticated,
    of_certificate,
    plaintext,
    spiffe,
)
from controlplane.identity.gate import Gate, Presented, Refused

WEB = Identity("cluster.local", "default", "web")
RIGHTS = Rights(("istio-system/*",), ("istio-system/ztunnel", "istio-system/underpass-agent"))


def test_a_spiffe_id_is_read_back() -> None:
    assert spiffe("spiffe://cluster.local/ns/default/sa/web") == WEB
    assert str(WEB) == "spiffe://cluster.local/ns/default/sa/web"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "https://cluster.local/ns/default/sa/web",
        "spiffe://cluster.local/ns/default/sa/web/",
        "spiffe://cluster.local/ns/default/sa/",
        "spiffe://cluster.local/ns//sa/web",
        "spiffe:///ns/default/sa/web",
        "spiffe://cluster.local/ns/Default/sa/web",
        "spiffe://cluster.local/ns/default/sa/web%2F..",
        "spiffe://user@cluster.local/ns/default/sa/web",
        "spiffe://cluster.local/ns/default/sa/we\nb",
    ],
)
def test_what_is_no_spiffe_id_is_refused(uri: str) -> None:
    with pytest.raises(IdentityError):
        spiffe(uri)


def test_a_certificate_needs_exactly_one_id_of_our_domain() -> None:
    one = ("URI", str(WEB))
    assert of_certificate([("DNS", "web"), one], "cluster.local") == WEB
    for names in ([], [("DNS", "web")], [one, one]):
        with pytest.raises(IdentityError, match="exactly one"):
            of_certificate(names, "cluster.local")
    with pytest.raises(IdentityError, match="trust domain"):
        of_certificate([one], "example.org")


@pytest.mark.parametrize(
    ("kind", "namespace", "account", "allowed"),
    [
        ("sidecar", "default", "web", True),
        ("sidecar", "default", "", True),
        ("router", "default", "web", True),
        ("sidecar", "default", "db", False),
        ("sidecar", "other", "web", False),
        ("sidecar", "other", "", False),
        ("ztunnel", "default", "web", False),
    ],
)
def test_a_workload_may_only_be_itself(kind: str, namespace: str, account: str, allowed: bool) -> None:
    caller = authenticated("1.2.3.4:5", WEB, RIGHTS)
    assert (caller.refusal(kind, namespace, account, "") == "") == allowed
    assert not caller.operator


def test_node_proxies_speak_for_their_node_only_and_operators_for_all() -> None:
    agent = Identity("cluster.local", "istio-system", "underpass-agent")
    rights = RIGHTS
    anywhere = authenticated("p", agent, rights)
    assert not anywhere.operator, "everybody in the root namespace, but not what runs on every node"
    assert authenticated("p", agent, Rights(("istio-system/underpass-agent",), RIGHTS.node_proxies)).operator
    assert anywhere.refusal("sidecar", "default", "web", "n1") == ""
    bound = authenticated("p", agent, rights, node="n1")
    assert bound.refusal("sidecar", "default", "web", "n1") == ""
    assert "node n1" in bound.refusal("sidecar", "default", "web", "n2")
    assert bound.refusal("ztunnel", "istio-system", "underpass-agent", "")
    admin = authenticated("p", Identity("cluster.local", "istio-system", "admin"), RIGHTS)
    assert admin.operator
    assert admin.refusal("ztunnel", "any", "any", "") == ""


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("ipv4:127.0.0.1:5", True),
        ("ipv4:127.9.9.9:5", True),
        ("ipv6:%5B::1%5D:5", True),
        ("ipv6:[::1]:5", True),
        ("ipv6:%5B::ffff:127.0.0.1%5D:5", True),
        ("ipv4:10.0.0.1:5", False),
        ("ipv6:%5Bfe80::1%25eth0%5D:5", False),
        ("ipv6:%5B::ffff:10.0.0.1%5D:5", False),
        ("ipv4:127.0.0.1.example.com:5", False),
        ("unknown", False),
    ],
)
def test_plaintext_is_an_operator_on_this_machine_only(peer: str, local: bool) -> None:
    caller = plaintext(peer)
    assert caller.operator == local
    assert caller.limited != local
    assert caller.refusal("ztunnel", "any", "any", "") == "", "the port itself is the guard"


def test_the_gate_tells_tls_from_plaintext_and_lets_nobody_use_the_inner_socket() -> None:
    gate = Gate(RIGHTS, clock=lambda: 100.0)
    with pytest.raises(Refused, match="TLS port's own"):
        gate.admit("unix-abstract:somebody", ())
    with pytest.raises(Refused, match="TLS port's own"):
        gate.admit("unix:", ())
    gate.arrived["unix-abstract:a"] = Presented("1.2.3.4:5", WEB, expires=200.0)
    caller = gate.admit("unix-abstract:a", ())
    assert (caller.identity, caller.expires, caller.peer) == (WEB, 200.0, "1.2.3.4:5")
    gate.arrived["unix-abstract:a"] = Presented("1.2.3.4:5", WEB, expires=100.0)
    with pytest.raises(Refused, match="expired"):
        gate.admit("unix-abstract:a", ())
    gate.arrived["unix-abstract:a"] = Presented("1.2.3.4:5", problem="two ids")
    with pytest.raises(Refused, match="two ids") as caught:
        gate.admit("unix-abstract:a", (("authorization", "Bearer x"),))
    assert caught.value.status == "UNAUTHENTICATED", "a bad certificate is not made good by a token"
    gate.arrived["unix-abstract:a"] = Presented("1.2.3.4:5")
    with pytest.raises(Refused, match="certificate is needed"):
        gate.admit("unix-abstract:a", (("authorization", "Bearer x"),))
