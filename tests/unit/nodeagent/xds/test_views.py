"""Which workloads share a view, and who speaks for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nodeagent.xds.views import key_of, views


@dataclass(frozen=True)
class Pod:
    """A workload as the registry gives it."""

    name: str
    namespace: str = "shop"
    service_account: str = "sa"
    labels: dict[str, str] = field(default_factory=lambda: {"app": "a"})
    ips: tuple[str, ...] = ("10.0.0.1",)
    node: str = "node-1"
    owner: str = "a"
    cluster: str = "Kubernetes"


def test_equal_namespace_labels_and_account_is_one_view() -> None:
    pods = [Pod("b", ips=("10.0.0.2",)), Pod("a"), Pod("c", labels={"app": "c"}), Pod("d", service_account="x")]
    found = views(pods, {})
    assert len(found) == 3
    view = found[key_of(pods[0])]
    assert view.id == "sidecar~10.0.0.1~a.shop~shop.svc.cluster.local"
    assert view.metadata()["LABELS"] == {"app": "a"}
    assert view.metadata()["INSTANCE_IPS"] == "10.0.0.1"
    assert "ISTIO_VERSION" not in view.metadata()


def test_the_representative_stays_while_it_lives_unchanged() -> None:
    first = views([Pod("m")], {})
    (key,) = first
    grown = views([Pod("a"), Pod("m")], first)
    assert grown[key].name == "m"
    assert views([Pod("a")], grown)[key].name == "a"
    moved = views([replace(Pod("m"), ips=("10.9.9.9",))], first)
    assert moved[key].ips == ("10.9.9.9",)


def test_labels_are_told_apart_from_their_neighbours() -> None:
    one, two = Pod("a", labels={"a": "b", "c": "d"}), Pod("b", labels={"c": "d", "a": "b"})
    assert key_of(one) == key_of(two)
    assert key_of(one) != key_of(Pod("a", labels={"a": "bc", "": "d"}))


def test_a_workload_without_address_has_no_view() -> None:
    assert views([Pod("a", ips=())], {}) == {}
