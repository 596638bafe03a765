"""apply(a, diff(a, b)) == b, and what content addressing promises."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controlplane.snapshot import Builder, Resource, Snapshot, TypeState, apply, check, diff
from controlplane.snapshot.resource import delta_pieces, from_bytes, sotw_pieces
from controlplane.snapshot.urls import CLUSTER
from tests.support.xds import cluster, endpoints, listener, routes, snapshot
from underpass.api import envoy

resources = st.builds(
    lambda name, body: from_bytes(CLUSTER, name, body), st.text("abcdef", min_size=1, max_size=2), st.binary(max_size=2)
)
flat = st.lists(resources, max_size=12).map(TypeState)
states = st.one_of(flat, st.builds(TypeState, st.lists(resources, max_size=5), flat))


@given(states, states)
def test_applying_the_difference_gives_the_other(a: TypeState, b: TypeState) -> None:
    change = diff(a, b)
    assert apply(a, change) == b
    assert dict(apply(a, change)) == dict(b)
    assert not {resource.name for resource in change.changed} & set(change.removed)
    assert bool(change) == (a != b)


@given(flat, st.lists(resources, max_size=4), st.lists(resources, max_size=4))
def test_layers_are_a_matter_of_cost_only(base: TypeState, one: list[Resource], two: list[Resource]) -> None:
    a, b = TypeState(one, base), TypeState(two, base)
    assert a == TypeState([*base.values(), *one])
    assert len(a) == len(dict(a))
    assert {r.name for r in a.values()} == set(a)
    assert diff(a, b) == diff(TypeState(a.values()), TypeState(b.values()))
    assert sorted(envoy.DiscoveryResponse.FromString(a.in_sotw).resources, key=str) == sorted(
        envoy.DiscoveryResponse.FromString(TypeState(a.values()).in_sotw).resources, key=str
    )


@given(states, states, states)
def test_a_builder_compares_as_anybody(a: TypeState, b: TypeState, c: TypeState) -> None:
    builder = Builder()
    for old, new in ((a, b), (b, c), (a, b), (c, a)):
        assert builder.diff(old, new) == diff(old, new)


@given(st.lists(resources, max_size=12, unique_by=lambda r: r.name), st.randoms())
def test_order_of_input_does_not_matter(listed: list[Resource], random: object) -> None:
    shuffled = list(listed)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    a, b = TypeState(listed), TypeState(shuffled)
    assert a == b
    assert a.version == b.version
    assert a.in_sotw == b.in_sotw


@given(states, states)
def test_versions_are_equal_exactly_when_contents_are(a: TypeState, b: TypeState) -> None:
    assert (a.version == b.version) == (dict(a) == dict(b))


def test_version_is_the_same_in_every_process() -> None:
    # A literal on purpose: replicas and restarts must agree, so a change of the hash is a change of the protocol.
    assert from_bytes(CLUSTER, "a", b"abc").version == "d8bb14d833d59559"
    assert from_bytes(CLUSTER, "a", b"abc").version == from_bytes(CLUSTER, "b", b"abc").version


def test_frames_are_the_envelopes_that_protobuf_would_write() -> None:
    resource = cluster("a")
    sotw = envoy.DiscoveryResponse.FromString(b"".join(sotw_pieces([resource])))
    assert envoy.unpack_any(sotw.resources[0]) == envoy.Cluster.FromString(resource.body)
    delta = envoy.DeltaDiscoveryResponse.FromString(b"".join(delta_pieces([resource])))
    assert (delta.resources[0].name, delta.resources[0].version) == ("a", resource.version)
    assert envoy.unpack_any(delta.resources[0].resource) == envoy.Cluster.FromString(resource.body)


def test_builder_gives_equal_content_the_same_objects() -> None:
    builder = Builder()
    first = builder.snapshot({CLUSTER: {"a": envoy.Cluster(name="a")}})
    second = builder.snapshot({CLUSTER: {"a": envoy.Cluster(name="a")}})
    assert first[CLUSTER] is second[CLUSTER]
    for _ in range(5):
        builder.begin_round()
    third = builder.snapshot({CLUSTER: {"a": envoy.Cluster(name="a")}})
    assert third == first
    assert not builder.diff(first[CLUSTER], third[CLUSTER])


def test_builder_reuses_what_is_still_used_and_forgets_the_rest() -> None:
    builder = Builder()
    kept, dropped = envoy.Cluster(name="kept"), envoy.Cluster(name="dropped")
    shared = {"kept": kept}
    before = builder.state(CLUSTER, shared)
    builder.state(CLUSTER, {"dropped": dropped})
    for _ in range(6):
        builder.begin_round()
        assert builder.state(CLUSTER, shared) is before
    assert builder.size == 1


def test_check_names_subscriptions_that_nothing_would_answer() -> None:
    good = snapshot(cluster("a"), endpoints("a"), listener("l", "80"), routes("80", "a", "no-such-cluster"))
    assert check(good) == [], "a route to an unknown cluster is normal input"
    bad = snapshot(cluster("a"), listener("l", "80"))
    assert [str(problem) for problem in check(bad)] == [
        "Cluster a refers to ClusterLoadAssignment a, which is not served",
        "Listener l refers to RouteConfiguration 80, which is not served",
    ]


def test_snapshots_are_equal_by_content() -> None:
    a, b = snapshot(cluster("a"), endpoints("a", 1)), snapshot(endpoints("a", 1), cluster("a"))
    assert a.version == b.version
    assert a.version != snapshot(cluster("a"), endpoints("a", 2)).version
    assert Snapshot({})[CLUSTER] == TypeState()


def test_check_of_a_change_looks_at_what_changed() -> None:
    old = snapshot(cluster("a"), endpoints("a"))
    new = snapshot(cluster("a"), endpoints("a"), cluster("b"), listener("l", "80"))
    changes = {url: diff(old[url], new[url]) for url in new.types}
    assert [str(problem) for problem in check(new, changes)] == [str(problem) for problem in check(new)]
    assert len(check(new, changes)) == 2
    assert check(new, {url: diff(new[url], new[url]) for url in new.types}) == [], "looked at before"
