"""When a view is ready, and when a change is held back until what it refers to is there."""

from __future__ import annotations

from typing import Any, cast

from nodeagent.cache.store import Decoder
from nodeagent.xds.client import ViewStream
from nodeagent.xds.live import PATIENCE_S, WARMING_S, LiveView
from nodeagent.xds.session import CDS, EDS, LDS, RDS, Resource, Update
from nodeagent.xds.views import View
from tests.support.resources import body

VIEW = View("k", "id", "ns", "sa", (), "a", ("10.0.0.1",), "n", "c", "a")
KINDS = {CDS: "clusters", EDS: "endpoints", LDS: "listeners", RDS: "routes"}


class Wants:
    """The part of a stream that a view talks to."""

    def __init__(self) -> None:
        self.names: dict[str, frozenset[str]] = {}
        self.trouble = ""

    def want(self, url: str, names: frozenset[str]) -> None:
        self.names[url] = names


class World:
    """A view with a clock and a stream of ours."""

    def __init__(self) -> None:
        self.now = 100.0
        self.live = LiveView.of(VIEW, Decoder(), lambda: self.now)
        self.wants = Wants()
        self.live.stream = cast("ViewStream", self.wants)

    def take(self, url: str, *resources: dict[str, Any], removed: tuple[str, ...] = ()) -> None:
        name = "cluster_name" if url == EDS else "name"
        changed = tuple(Resource(r[name], "1", url, body(KINDS[url], r)) for r in resources)
        self.live.take(Update(1, url, "n", changed, removed))


def cluster(name: str) -> dict[str, Any]:
    return {"name": name, "type": "EDS"}


def ends(name: str) -> dict[str, Any]:
    return {"cluster_name": name}


def ready() -> World:
    world = World()
    world.take(CDS, cluster("a"))
    world.take(LDS)
    world.take(EDS, ends("a"))
    return world


def test_a_view_is_ready_when_all_that_it_asked_for_was_answered() -> None:
    world = World()
    world.take(CDS, cluster("a"))
    assert world.wants.names[EDS] == {"a"}
    world.take(LDS)
    assert not world.live.ready
    assert world.live.missing() == ["a"]
    world.take(EDS, ends("a"))
    assert world.live.ready


def test_an_answer_that_there_is_nothing_is_an_answer() -> None:
    world = World()
    world.take(CDS, cluster("a"))
    world.take(LDS)
    world.take(EDS, removed=("a",))
    assert world.live.ready


def test_a_view_does_not_wait_for_ever() -> None:
    world = World()
    world.take(CDS, cluster("a"))
    world.take(LDS)
    world.now += PATIENCE_S - 1
    assert not world.live.look()
    world.now += 1
    assert world.live.look() == ["a"]
    assert world.live.ready
    assert not world.live.look()


def test_a_new_cluster_is_held_back_until_its_endpoints_are_there() -> None:
    world = ready()
    before = world.live.snapshot()
    world.take(CDS, cluster("b"))
    assert world.live.warming()
    assert world.live.snapshot() is before
    world.take(EDS, ends("b"))
    assert not world.live.warming()
    assert set(world.live.snapshot().clusters) == {"a", "b"}
    assert [received.update.type_url for received in world.live.waiting][-2:] == [CDS, EDS]


def test_warming_ends_by_itself_and_does_not_begin_again_for_the_same() -> None:
    world = ready()
    world.live.snapshot()
    world.take(CDS, cluster("b"))
    world.now += WARMING_S
    assert world.live.look()
    assert set(world.live.snapshot().clusters) == {"a", "b"}
    world.take(CDS, cluster("a"))
    assert not world.live.warming()


def test_a_name_that_is_wanted_again_has_to_be_answered_again() -> None:
    world = ready()
    world.live.snapshot()
    world.take(CDS, removed=("a",))
    assert not world.live.warming()
    world.take(CDS, cluster("a"))
    assert world.live.warming()
    assert world.live.missing() == ["a"]


def test_while_nobody_can_answer_the_old_stays_in_force() -> None:
    world = ready()
    before = world.live.snapshot()
    world.take(CDS, cluster("b"))
    world.wants.trouble = "UNAVAILABLE"
    world.now += 100
    assert not world.live.look()
    assert world.live.snapshot() is before
    world.wants.trouble = ""
    assert world.live.look()
