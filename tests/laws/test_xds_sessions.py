"""The control plane's session and the agent's session, played against each other in memory.

Whatever is lost, refused or reconnected on the way: once everything in flight is delivered, the agent's cache holds
exactly what the server's last view says, apart from what the agent refuses.
"""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.snapshot import Snapshot
from controlplane.snapshot.urls import CLUSTER, ENDPOINT, LISTENER, ROUTE
from controlplane.xds.delta import DeltaSession
from controlplane.xds.session import Limits
from nodeagent.cache.store import Decoder, ViewCache
from nodeagent.xds.client import decode_response, encode_request
from nodeagent.xds.session import CDS, EDS, LDS, RDS, Request, Session, Update
from nodeagent.xds.views import View
from tests.laws.test_xds_server_session import views
from tests.support.xds import FakeView
from underpass.api import envoy

NODE = View("k", "sidecar~10.0.0.1~a.b~b.svc.cluster.local", "b", "sa", (), "a", ("10.0.0.1",), "n", "c", "a")

STEPS = st.one_of(
    st.tuples(st.just("view"), views()),
    st.tuples(st.just("flow"), st.integers(1, 12)),
    st.sampled_from([("write",), ("hear",), ("read",), ("apply",), ("refuse",), ("reconnect",), ("release",)]),
)


class World:
    """Two sessions and the pipes between them; `applied` lags behind `heard`, as in the agent."""

    def __init__(self, view: Snapshot) -> None:
        self.view = FakeView(view)
        self.client, self.cache = Session(), ViewCache(Decoder())
        self.down: deque[bytes] = deque()
        self.up: deque[Request] = deque()
        self.waiting: deque[tuple[Update, dict[str, str]]] = deque()
        self.streams = 0
        self.first = True
        self.server: DeltaSession
        self.reconnect()

    def reconnect(self) -> None:
        self.client.close()
        self.down.clear()
        self.up.clear()
        self.streams += 1
        self.server = DeltaSession(f"s{self.streams}", limits=Limits(response_bytes=150))
        self.server.set_view(self.view)
        self.first = True
        self.up.extend(self.client.open())

    def step(self, step: tuple[object, ...]) -> bool:
        """Do one step; False when there was nothing to do."""
        if step[0] == "view":
            assert isinstance(step[1], Snapshot)
            self.view = FakeView(step[1])
            self.server.set_view(self.view)
        elif step[0] == "write":
            response = self.server.poll()
            if response is None:
                return False
            self.down.append(response.data)
        elif step[0] == "hear":
            if not self.down:
                return False
            self.hear(self.down.popleft())
        elif step[0] in ("apply", "refuse"):
            if not self.waiting:
                return False
            update, refused = self.waiting.popleft()
            if step[0] == "refuse":
                refused = {resource.name: "not today" for resource in update.changed}
            self.up.extend(self.client.applied(update, refused))
        elif step[0] == "read":
            if not self.up:
                return False
            self.server.receive(encode_request(self.up.popleft(), NODE if self.first else None).SerializeToString())
            self.first = False
        elif step[0] == "flow":
            assert isinstance(step[1], int)
            for _ in range(step[1]):
                for name in ("read", "write", "hear", "apply"):
                    self.step((name,))
        elif step[0] == "reconnect":
            self.reconnect()
        elif step[0] == "release":
            self.server.release()
        return True

    def hear(self, data: bytes) -> None:
        update, answers = self.client.receive(decode_response(envoy.DeltaDiscoveryResponse.FromString(data)))
        self.up.extend(answers)
        if update is None:
            return
        _, refused = self.cache.apply(update.type_url, update.changed, update.removed)
        self.waiting.append((update, refused))
        for referring, named in ((LDS, RDS), (CDS, EDS)):
            if update.type_url == referring:
                resources = self.cache.resources()
                names = resources.rds_names() if named == RDS else resources.eds_names()
                self.up.extend(self.client.want(named, names))
                self.cache.retain(named, names)

    def drain(self) -> None:
        for _ in range(3000):
            done = [self.step((name,)) for name in ("read", "write", "hear", "apply")]
            if not any(done):
                return
        pytest.fail("the conversation never ends")

    def assert_equal(self) -> None:
        held = self.cache.resources()
        snapshot = self.view.snapshot
        assert set(held.listeners) == set(snapshot[LISTENER])
        assert set(held.clusters) == set(snapshot[CLUSTER])
        assert set(held.routes) == set(snapshot[ROUTE]) & held.rds_names()
        assert set(held.assignments) == set(snapshot[ENDPOINT]) & held.eds_names()
        for url in (LDS, CDS, RDS, EDS):
            for name, version in self.client.versions(url).items():
                assert snapshot[url][name].version == version


@settings(max_examples=150, deadline=None)
@given(first=views(), steps=st.lists(STEPS, max_size=30))
def test_the_two_sessions_converge(first: Snapshot, steps: list[tuple[object, ...]]) -> None:
    world = World(first)
    for step in steps:
        world.step(step)
    # What was refused stays refused on this stream; a new stream brings it again.
    world.reconnect()
    world.drain()
    world.assert_equal()


@settings(max_examples=100, deadline=None)
@given(first=views(), second=views(), steps=st.lists(st.sampled_from([("write",), ("hear",), ("read",), ("apply",)])))
def test_they_converge_on_one_stream(first: Snapshot, second: Snapshot, steps: list[tuple[object, ...]]) -> None:
    world = World(first)
    for step in steps:
        world.step(step)
    world.step(("view", second))
    world.drain()
    world.assert_equal()
    sent = len(world.up)
    world.server.set_view(world.view)
    world.drain()
    assert sent == len(world.up) == 0, "an unchanged view is silence"
