"""An interface's slot among the kernel's counters."""

import pytest

from nodeagent.abi import numbers as n
from nodeagent.abi.records import InterfaceStat
from nodeagent.bpf.abc import Map, MapType
from nodeagent.bpf.fake import FakeKernel
from nodeagent.node import interfaces
from tests.support.node_maps import node_maps


@pytest.fixture(name="stats")
def made() -> Map:
    kernel = FakeKernel()
    found = node_maps(kernel)["interface_stats"]
    assert found.info.type is MapType.PERCPU_ARRAY
    return found


def owner(stats: Map, slot: int) -> InterfaceStat:
    return InterfaceStat.unpack((stats.lookup_percpu(slot.to_bytes(4, "little")) or [])[0])


def test_an_interface_keeps_its_slot(stats: Map, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "exists", lambda _: True)
    assert interfaces.slot_of(stats, 7) == 7
    stats.update((7).to_bytes(4, "little"), InterfaceStat(1, 2, 3, 4, 7).pack())
    assert interfaces.slot_of(stats, 7) == 7
    assert owner(stats, 7) == InterfaceStat(1, 2, 3, 4, 7)


def test_a_taken_slot_is_passed_over_and_a_gone_interface_gives_it_up(
    stats: Map, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = {7}
    monkeypatch.setattr(interfaces, "exists", lambda number: number in alive)
    assert interfaces.slot_of(stats, 7) == 7
    assert interfaces.slot_of(stats, 7 + n.INTERFACES) == 8
    alive.clear()
    assert interfaces.slot_of(stats, 7 + 2 * n.INTERFACES) == 7
    assert owner(stats, 7).ifindex == 7 + 2 * n.INTERFACES


def test_the_end_of_the_array_goes_on_at_its_start_and_too_many_are_not_counted(
    stats: Map, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interfaces, "exists", lambda _: True)
    last = n.INTERFACES - 1
    found = [interfaces.slot_of(stats, last + k * n.INTERFACES) for k in range(n.INTERFACE_PROBES + 1)]
    assert found == [last, *range(n.INTERFACE_PROBES - 1), None]


def test_who_has_an_address() -> None:
    assert interfaces.holder_of("127.0.0.1") == "lo"
    with pytest.raises(OSError, match="Cannot assign"):
        interfaces.holder_of("192.0.2.77")
