"""Whatever comes, a session answers, waits or ends with a named error, and what it holds stays bounded."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.snapshot.urls import ADDRESS, CLUSTER, ENDPOINT, LISTENER, ROUTE
from controlplane.xds.channel import MAX_OUTSTANDING
from controlplane.xds.delta import DeltaSession
from controlplane.xds.events import ProtocolError, Query
from controlplane.xds.session import Limits, Session
from controlplane.xds.sotw import SotwSession
from tests.support.xds import NODE, FakeView, cluster, endpoints, listener, routes, snapshot
from underpass.api import envoy

LIMITS = Limits(response_bytes=400, names=50, name_bytes=30, types=6, queries=4)
KINDS: list[type[Session]] = [DeltaSession, SotwSession]
VIEWS = [
    FakeView(snapshot(cluster("a"), endpoints("a", 1), listener("l", "80"), routes("80", "a"))),
    FakeView(snapshot(cluster("a", 2), cluster("b"), endpoints("a"), endpoints("b", 3), routes("80", "b"))),
    FakeView(snapshot()),
]

_NAMES = st.lists(st.one_of(st.sampled_from(["a", "b", "80", "l", "*", ""]), st.text(max_size=40)), max_size=8)
_TYPES = st.one_of(
    st.sampled_from([CLUSTER, ENDPOINT, LISTENER, ROUTE, ADDRESS, "", "type.googleapis.com/x", "query"]),
    st.text(max_size=20),
)


@st.composite
def requests(draw: st.DrawFn, delta: bool) -> Any:
    names, other = draw(_NAMES), draw(_NAMES)
    if delta:
        made: Any = envoy.DeltaDiscoveryRequest(resource_names_subscribe=names, resource_names_unsubscribe=other)
        made.initial_resource_versions.update(draw(st.dictionaries(st.sampled_from("abl"), st.text(max_size=5))))
    else:
        made = envoy.DiscoveryRequest(resource_names=names, version_info=draw(st.text(max_size=5)))
    made.type_url = draw(_TYPES)
    made.response_nonce = draw(st.one_of(st.just(""), st.text(max_size=8), st.integers(0, 40).map(lambda n: f"s-{n}")))
    if draw(st.booleans()):
        made.error_detail.message = draw(st.text(max_size=8))
    return made.SerializeToString()


def named(error: ProtocolError) -> None:
    """An end that tells the client why."""
    assert error.status in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
    assert str(error)


def held(session: Session) -> int:
    """What a session remembers of its client, in entries."""
    total = len(session._replies) + len(session._endpoints_due) + len(session._fresh_clusters)
    for channel in session._order:
        tables: list[Sized] = [channel.names, channel.pending, channel.outside, channel.held, channel.uncertain]
        tables += [channel.groups, channel.implied, channel.outstanding]
        total += sum(map(len, tables))
    return total


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_scripts_of_nonsense(kind: type[Session], data: st.DataObject) -> None:
    delta = kind is DeltaSession
    session = kind("s", limits=LIMITS, is_query=lambda url: url == "query")
    start: Any = (envoy.DeltaDiscoveryRequest if delta else envoy.DiscoveryRequest)(type_url=CLUSTER)
    start.node.id = NODE
    session.receive(start.SerializeToString())
    session.set_view(VIEWS[0])
    nonces: set[str] = set()
    for _ in range(data.draw(st.integers(1, 40))):
        step = data.draw(st.integers(0, 9))
        try:
            if step < 6:
                for event in session.receive(data.draw(requests(delta))):
                    if isinstance(event, Query):
                        session.answer(event, [("query", b"")])
            elif step == 6:
                session.receive(data.draw(st.binary(max_size=60)))
            elif step == 7:
                session.set_view(data.draw(st.sampled_from(VIEWS)))
            elif step == 8:
                session.release()
        except ProtocolError as error:
            named(error)
            return
        for _ in range(data.draw(st.integers(0, 30))):
            response = session.poll()
            if response is None:
                break
            assert response.nonce not in nonces, "a nonce is never used twice"
            nonces.add(response.nonce)
        assert held(session) < 6 * (LIMITS.names * 6 + MAX_OUTSTANDING) + LIMITS.queries + 100
        session.status()


@pytest.mark.parametrize("kind", KINDS)
@given(st.binary(max_size=300))
def test_bytes(kind: type[Session], data: bytes) -> None:
    session = kind("s", limits=LIMITS)
    try:
        session.receive(data)
    except ProtocolError as error:
        named(error)


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_never_answers_is_not_remembered_for_ever(kind: type[Session]) -> None:
    session = kind("s")
    start: Any = (envoy.DeltaDiscoveryRequest if kind is DeltaSession else envoy.DiscoveryRequest)(type_url=CLUSTER)
    start.node.id = NODE
    session.receive(start.SerializeToString())
    for number in range(500):
        session.set_view(FakeView(snapshot(cluster("a", number + 1))))
        while session.poll() is not None:
            pass
    assert len(session._channels[CLUSTER].outstanding) <= MAX_OUTSTANDING


def test_a_giant_node_is_refused() -> None:
    request = envoy.DeltaDiscoveryRequest(type_url=CLUSTER)
    request.node.id = NODE
    request.node.metadata.update({"x": "y" * 2000})
    session = DeltaSession("s", limits=Limits(node_bytes=1000))
    with pytest.raises(ProtocolError, match="a node of 2") as caught:
        session.receive(request.SerializeToString())
    assert caught.value.status == "RESOURCE_EXHAUSTED"
