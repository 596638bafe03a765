"""Refusals of clients, attributed to resources and to the objects behind them."""

from __future__ import annotations

import pytest

from controlplane.admin.status import attribute, blamed, lineage, owners
from controlplane.snapshot import encode
from controlplane.snapshot.urls import CLUSTER, ENDPOINT, LISTENER, ROUTE
from controlplane.xds.events import Nacked
from tests.support.xds import cluster, endpoints, snapshot
from underpass.api import envoy


def nack(message: str, *names: str, type_url: str = CLUSTER) -> Nacked:
    return Nacked(type_url, "n", message, 13, names)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Error adding/updating cluster(s) outbound|80|v1|a.ns: hash min > max", ("outbound|80|v1|a.ns",)),
        ("outbound|80||a.ns: no; outbound|80|v1|a.ns: neither", ("outbound|80||a.ns", "outbound|80|v1|a.ns")),
        ("xDS response validation errors: [resource index 0: outbound|80||a.ns: bad]", ("outbound|80||a.ns",)),
        ("Protobuf message has unknown fields", ("outbound|80||a.ns", "outbound|80|v1|a.ns")),
    ],
)
def test_a_refusal_blames_whom_it_names(message: str, expected: tuple[str, ...]) -> None:
    assert blamed(nack(message, "outbound|80||a.ns", "outbound|80|v1|a.ns")) == expected


def test_a_name_inside_another_word_is_not_a_mention() -> None:
    assert blamed(nack("bad abcd", "a", "abc")) == ("a", "abc"), "neither stands alone, so both are in doubt"
    assert blamed(nack("80: bad; 8080: fine", "80", "808")) == ("80",)


def _metadata(message: object, **values: object) -> None:
    message.metadata.filter_metadata["istio"].update(values)  # type: ignore[attr-defined]


def test_objects_are_read_from_the_metadata_of_each_type() -> None:
    table = envoy.RouteConfiguration(name="80")
    for rule in (0, 1):
        route = table.virtual_hosts.add(name=f"h{rule}").routes.add()
        route.metadata.filter_metadata["underpass"].update(
            {"kind": "VirtualService", "namespace": "ns", "name": "shop", "rule": rule}
        )
        path = "/apis/networking.istio.io/v1/namespaces/ns/virtual-service/shop"
        route.metadata.filter_metadata["istio"].update({"config": path})
    resource = encode(ROUTE, "80", table)
    assert owners(resource) == (("VirtualService", "ns", "shop"),)
    assert lineage(("VirtualService", "ns", "shop"), [resource, cluster("a")]) == [resource]

    made = envoy.Cluster(name="c")
    path = "/apis/networking.istio.io/v1/namespaces/ns/destination-rule/dr"
    _metadata(made, config=path, services=[{"name": "a", "namespace": "ns", "host": "a.ns"}])
    assert owners(encode(CLUSTER, "c", made)) == (("DestinationRule", "ns", "dr"), ("Service", "ns", "a"))

    listener = envoy.Listener(name="l")
    _metadata(listener.filter_chains.add(), config=path)
    assert owners(encode(LISTENER, "l", listener)) == (("DestinationRule", "ns", "dr"),)
    assert owners(endpoints("c")) == ()


def test_refused_endpoints_are_shown_against_what_made_their_cluster() -> None:
    made = envoy.Cluster(name="c")
    _metadata(made, services=[{"name": "a", "namespace": "ns", "host": "a.ns"}])
    state = snapshot(encode(CLUSTER, "c", made), endpoints("c", 1))
    refusal = attribute(nack("c: no", "c", type_url=ENDPOINT), state, "node", 5.0)
    assert refusal.owners == (("Service", "ns", "a"),)
    assert refusal.resources == ("c",)
    assert attribute(nack("gone: no", "gone", type_url=ENDPOINT), state, "node", 5.0).owners == ()
