"""ztunnel on demand: who asks for a service is told the workloads behind it, as they come and go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.snapshot.resource import Resource, from_bytes
from controlplane.snapshot.urls import ADDRESS
from tests.support.xds import Conversation, FakeView, Said, cluster, snapshot


def service(name: str, vip: str = "", content: bytes = b"") -> Resource:
    return from_bytes(ADDRESS, f"ns/{name}", b"\x12\x00" + content, aliases=(f"/{vip}",) if vip else ())


def workload(name: str, *services: str, content: bytes = b"") -> Resource:
    groups = tuple(f"ns/{item}" for item in services)
    said = "".join(services).encode()  # a workload's content tells its services
    return from_bytes(ADDRESS, f"pod/{name}", b"\x0a\x00" + said + content, aliases=(f"/ip-{name}",), groups=groups)


def view(*resources: Resource) -> FakeView:
    return FakeView(snapshot(*resources))


def on_demand(start: FakeView) -> Conversation:
    c = Conversation(start, delta=True)
    c.ask(ADDRESS, ["*"], unsubscribe=["*"])
    c.ack(heard(c.hear(), [], []))
    return c


def heard(said: Said | None, names: list[str], removed: list[str]) -> Any:
    assert said is not None
    assert said.brief == (ADDRESS, names, removed)
    return said


def test_what_was_asked_for_by_address_is_told_by_name_when_it_moves_or_goes() -> None:
    c = on_demand(view(*MESH))
    c.ask(ADDRESS, ["/ip-3", "/10.0.0.1"])
    c.ack(heard(c.hear(), ["ns/a", "pod/1", "pod/2", "pod/3"], []))
    moved = from_bytes(ADDRESS, "ns/a", b"\x12\x00", aliases=("/10.0.0.2",))
    c.change(view(moved, *MESH[1:4]))
    c.ack(heard(c.hear(), ["ns/a"], []))
    c.ack(heard(c.hear(), [], ["/ip-3", "pod/3"]))
    c.change(view(moved, *MESH[1:4], service("heir", "10.0.0.1"), workload("9", "heir")))
    heard(c.hear(), ["ns/heir", "pod/9"], [])


MESH = (service("a", "10.0.0.1"), service("b"), workload("1", "a"), workload("2", "a", "b"), workload("3", "b"))


def test_a_service_brings_its_workloads_by_name_and_by_address() -> None:
    for asked in ("ns/a", "/10.0.0.1"):
        c = on_demand(view(*MESH))
        c.ask(ADDRESS, [asked])
        heard(c.hear(), ["ns/a", "pod/1", "pod/2"], [])
        assert c.hear() is None


def test_a_workload_brings_nothing() -> None:
    c = on_demand(view(*MESH))
    c.ask(ADDRESS, ["/ip-2"])
    heard(c.hear(), ["pod/2"], [])
    c.change(view(*MESH, workload("4", "a", "b")))
    assert c.hear() is None


def test_members_that_come_change_and_go_are_told() -> None:
    c = on_demand(view(*MESH))
    c.ask(ADDRESS, ["/10.0.0.1"])
    c.ack(heard(c.hear(), ["ns/a", "pod/1", "pod/2"], []))
    c.change(view(*MESH, workload("4", "a"), workload("5", "b")))
    c.ack(heard(c.hear(), ["pod/4"], []))
    c.change(view(*MESH[:3], MESH[4], workload("2", "b", content=b"\x10\x01"), workload("4", "a")))
    c.ack(heard(c.hear(), ["pod/2"], []))  # it left the service; the client must hear that it did
    c.change(view(*MESH[:2], MESH[4]))
    c.ack(heard(c.hear(), [], ["pod/1", "pod/2", "pod/4"]))
    c.change(view(*MESH[:3], MESH[4]))
    heard(c.hear(), ["pod/1"], [])


def test_a_service_that_appears_after_it_was_asked_for_brings_its_workloads() -> None:
    c = on_demand(view())
    c.ask(ADDRESS, ["/10.0.0.1"])
    c.ack(heard(c.hear(), [], ["/10.0.0.1"]))
    c.change(view(workload("1", "a")))
    assert c.hear() is None
    c.change(view(workload("1", "a"), service("a", "10.0.0.1")))
    heard(c.hear(), ["ns/a", "pod/1"], [])
    assert c.hear() is None


def test_unsubscribing_the_service_ends_its_workloads_but_not_those_asked_for() -> None:
    c = on_demand(view(*MESH))
    c.ask(ADDRESS, ["ns/a", "pod/1"])
    c.ack(heard(c.hear(), ["ns/a", "pod/1", "pod/2"], []))
    c.ask(ADDRESS, unsubscribe=["ns/a"])
    changed = [workload("1", "a", content=b"\x10\x01"), workload("2", "a", "b", content=b"\x10\x01")]
    c.change(view(*MESH[:2], *changed))
    heard(c.hear(), ["pod/1"], [])


def test_a_reconnect_on_demand_keeps_what_the_client_has() -> None:
    c = Conversation(view(*MESH), delta=True)
    has = {"ns/a": MESH[0].version, "pod/1": MESH[2].version, "pod/2": "old", "pod/9": "gone"}
    c.ask(ADDRESS, ["*"], unsubscribe=["*"], has=has)
    c.ack(heard(c.hear(), ["pod/2"], []))
    c.ack(heard(c.hear(), [], ["pod/9"]))
    assert c.hear() is None
    c.change(view(*MESH, workload("4", "a")))
    heard(c.hear(), ["pod/4"], [])


def test_other_types_have_no_groups() -> None:
    member = replace(cluster("b"), groups=("a",))
    c = Conversation(view(cluster("a"), member), delta=True)
    c.ask("C", ["a"])
    said = c.hear()
    assert said is not None
    assert said.names == ["a"]


_PODS = st.dictionaries(
    st.sampled_from("123456"), st.tuples(st.sets(st.sampled_from("abc")), st.integers(0, 1)), max_size=6
)
_MESHES = st.tuples(st.sets(st.sampled_from("abc")), _PODS)


def made(state: tuple[set[str], dict[str, tuple[set[str], int]]]) -> list[Resource]:
    services, pods = state
    listed = [service(name, f"vip-{name}") for name in services]
    listed += [workload(n, *sorted(member), content=bytes([0x10, flag])) for n, (member, flag) in pods.items()]
    return listed


@settings(max_examples=200, deadline=None)
@given(st.lists(_MESHES, min_size=1, max_size=6), st.sets(st.sampled_from("abc")), st.booleans())
def test_whatever_changes_a_client_that_asks_for_services_knows_them_and_their_workloads(
    meshes: list[tuple[set[str], dict[str, tuple[set[str], int]]]], asked: set[str], by_address: bool
) -> None:
    c = on_demand(view(*made(meshes[0])))
    names = [f"/vip-{name}" if by_address else f"ns/{name}" for name in sorted(asked)]
    if names:
        c.ask(ADDRESS, names)
    has: dict[str, str] = {}
    for state in meshes:
        c.change(view(*made(state)))
        while (said := c.hear()) is not None:
            has.update(said.resources)
            for name in said.removed:
                has.pop(name, None)
            c.ask(ADDRESS, nonce=said.nonce)
        now = {resource.name: resource for resource in made(state)}
        followed = {f"ns/{name}" for name in asked & (state[0] if by_address else set("abc"))}
        wanted = followed & now.keys()
        wanted |= {name for name, resource in now.items() if followed & set(resource.groups)}
        assert wanted <= has.keys()
        assert all(now[name].version == version for name, version in has.items()), "nothing stale, nothing vanished"
