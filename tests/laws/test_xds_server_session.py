"""The server's session against a model client: they converge, under reordering of steps, loss of streams and refusals.

A run is a script of steps over two pipes. After it, everything in flight is delivered and the client must hold exactly
what the server's last view says; on the way, a client that refuses nothing never holds a route to a cluster that it
does not have, although every view of the script may move routes between clusters that come and go.
"""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.snapshot import Resource, Snapshot
from controlplane.snapshot.urls import CLUSTER, ENDPOINT, LISTENER, ROUTE
from controlplane.xds.delta import DeltaSession
from controlplane.xds.session import Limits, Session
from controlplane.xds.sotw import SotwSession
from tests.support.xds import FakeView, cluster, endpoints, listener, routes, snapshot
from tests.support.xds_client import ModelClient

NAMES = "abcd"


@st.composite
def views(draw: st.DrawFn) -> Snapshot:
    """A consistent snapshot over few names: routes point only to clusters that are in it."""
    present = draw(st.sets(st.sampled_from(NAMES), min_size=1))
    made: list[Resource] = []
    for name in sorted(present):
        made.append(cluster(name, draw(st.integers(1, 2))))
        made.append(endpoints(name, draw(st.integers(1, 2))))
    tables = set()
    for name in draw(st.sets(st.sampled_from(["l1", "l2"]))):
        table = draw(st.sampled_from(["r1", "r2"]))
        tables.add(table)
        made.append(listener(name, table))
    for table in sorted(tables):
        made.append(routes(table, *sorted(draw(st.sets(st.sampled_from(sorted(present)))))))
    return snapshot(*made)


STEPS = st.one_of(
    st.tuples(st.just("view"), views()),
    st.tuples(st.just("view"), views()),
    st.tuples(st.just("flow"), st.integers(1, 12)),
    st.sampled_from([("write",), ("hear",), ("read",)]),
    st.sampled_from([("refuse",), ("reconnect",), ("release",)]),
)


class World:
    def __init__(self, view: Snapshot, *, delta: bool) -> None:
        self.view = FakeView(view)
        self.delta = delta
        self.client = ModelClient(delta=delta)
        self.wire: deque[bytes] = deque()
        self.session: Session
        self.streams = 0
        self.refused = False
        self.hurried = False
        self.blind = False
        self.reconnect()

    def reconnect(self) -> None:
        self.streams += 1
        # A state-of-the-world client does not say what it has, so a new stream may drop a cluster before its routes.
        self.blind = not self.delta
        kind = DeltaSession if self.delta else SotwSession
        # A small limit, so that splitting is part of the law.
        self.session = kind(f"s{self.streams}", limits=Limits(response_bytes=150))
        self.session.set_view(self.view)
        self.wire.clear()
        self.client.connect()

    def step(self, step: tuple[object, ...]) -> bool:
        """Do one step; False when there was nothing to do."""
        match step[0]:
            case "view":
                assert isinstance(step[1], Snapshot)
                self.view = FakeView(step[1])
                self.session.set_view(self.view)
            case "write":
                response = self.session.poll()
                if response is None:
                    return False
                self.wire.append(response.data)
            case "hear" | "refuse":
                refuse = step[0] == "refuse"
                if refuse and not self.wire:
                    self.step(("write",))
                if not self.wire:
                    return False
                self.refused = self.refused or refuse
                self.client.hear(self.wire.popleft(), refuse=refuse)
                dangling = self.client.dangling()
                self.blind = self.blind and bool(dangling)
                if not self.refused and not self.hurried and not self.blind:
                    assert dangling == []
            case "read":
                if not self.client.outbox:
                    return False
                self.session.receive(self.client.outbox.popleft())
            case "flow":
                assert isinstance(step[1], int)
                for _ in range(step[1]):
                    self.step(("read",))
                    self.step(("write",))
                    self.step(("hear",))
            case "reconnect":
                self.reconnect()
            case "release":
                self.hurried = True
                self.session.release()
        return True

    def drain(self) -> None:
        for _ in range(2000):
            if not any([self.step(("read",)), self.step(("write",)), self.step(("hear",))]):
                assert not self.session.blocked, "everything is answered, so nothing may wait"
                return
        pytest.fail("the conversation never ends")

    def assert_equal(self) -> None:
        for url in (CLUSTER, LISTENER):
            assert self.client.has[url] == dict(self.view.snapshot[url])
        for url in (ENDPOINT, ROUTE):
            wanted = self.client.wanted(url)
            assert self.client.has[url] == {n: r for n, r in self.view.snapshot[url].items() if n in wanted}


def salted(view: Snapshot) -> Snapshot:
    """*view* with one small change in each type."""
    made = {(r.type_url, r.name): r for state in view.types.values() for r in state.values()}
    some = min(view[CLUSTER])
    for extra in (cluster(some, 90), endpoints(some, 90), listener("l1", "r1", 90), routes("r1", some, some)):
        made[extra.type_url, extra.name] = extra
    return snapshot(*made.values())


@pytest.mark.parametrize("delta", [True, False], ids=["delta", "sotw"])
@settings(max_examples=300, deadline=None)
@given(first=views(), script=st.lists(STEPS, max_size=60), last=views())
def test_they_converge(delta: bool, first: Snapshot, script: list[tuple[object, ...]], last: Snapshot) -> None:
    world = World(first, delta=delta)
    for step in script:
        world.step(step)
    world.drain()
    if not world.refused:
        world.assert_equal()
    # After refusals the client is owed everything with the next change of each type, however small.
    world.step(("view", salted(world.view.snapshot)))
    world.drain()
    world.assert_equal()
    world.refused = False
    world.step(("view", last))
    world.drain()
    world.assert_equal()


@pytest.mark.parametrize("delta", [True, False], ids=["delta", "sotw"])
@settings(max_examples=60, deadline=None)
@given(view=views())
def test_silence_when_nothing_changes(delta: bool, view: Snapshot) -> None:
    world = World(view, delta=delta)
    world.drain()
    heard = world.client.heard
    world.step(("view", view))
    world.drain()
    assert world.client.heard == heard
