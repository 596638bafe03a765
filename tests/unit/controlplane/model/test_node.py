"""What a client says about itself."""

import pytest

from controlplane.model import NodeError, parse_node

ID = "sidecar~10.1.2.3~web-0.shop~shop.svc.cluster.local"


def test_istio_identity() -> None:
    node = parse_node(ID, {"LABELS": {"app": "web", "odd": 1}, "SERVICE_ACCOUNT": "web", "CLUSTER_ID": "c"})
    assert (node.type, node.ips, node.name, node.namespace, node.domain) == (
        "sidecar",
        ("10.1.2.3",),
        "web-0",
        "shop",
        "shop.svc.cluster.local",
    )
    assert (node.labels, node.service_account, node.cluster_id) == ((("app", "web"),), "web", "c")


def test_instance_ips_go_before_the_id() -> None:
    node = parse_node(ID, {"INSTANCE_IPS": "10.9.9.9, fd00::1,nonsense,10.9.9.9"})
    assert node.ips == ("10.9.9.9", "fd00::1")


def test_namespace_of_metadata_goes_before_the_domain() -> None:
    assert parse_node(ID, {"NAMESPACE": "x"}).namespace == "x"


@pytest.mark.parametrize(
    ("node_id", "what"),
    [
        ("", "parts"),
        ("sidecar~10.1.2.3~a.b", "parts"),
        ("lorry~10.1.2.3~a.b~b.svc.cluster.local", "type"),
        ("sidecar~~a.b~b.svc.cluster.local", "IP address"),
        ("sidecar~host~a.b~b.svc.cluster.local", "IP address"),
    ],
)
def test_refused(node_id: str, what: str) -> None:
    with pytest.raises(NodeError, match=what):
        parse_node(node_id, {})


def test_istioctl_may_have_no_address() -> None:
    assert parse_node("sidecar~~test-1.default~default.svc.cluster.local", {"GENERATOR": "event"}).ips == ()


def test_an_upstream_envoy_has_no_source_of_certificates() -> None:
    assert parse_node(ID, {}, user_agent="envoy").mesh_certificates is False
    assert parse_node(ID, {"ISTIO_VERSION": "1.30"}, user_agent="envoy").mesh_certificates is True
    assert parse_node(ID, {}, user_agent="").mesh_certificates is True


def test_view_ignores_the_name() -> None:
    other = ID.replace("web-0", "web-1")
    assert parse_node(ID, {}).view == parse_node(other, {}).view
    assert parse_node(ID, {}).view != parse_node(ID.replace("10.1.2.3", "10.1.2.4"), {}).view
