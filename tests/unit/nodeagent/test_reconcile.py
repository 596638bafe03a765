"""Plans on maps: what is executed is what is observed, and failures leave a readable state."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeagent.abi import numbers as n
from nodeagent.abi.records import Config, HomeStat, PuntKey, RouteStat
from nodeagent.bpf.abc import Map
from nodeagent.bpf.fake import FakeKernel
from nodeagent.cache.store import Resources
from nodeagent.errors import ApplyError, LayoutError
from nodeagent.intent.compile import Compiler
from nodeagent.intent.model import Intent, Table
from nodeagent.plan import Observed, announces, apply, drift, plan
from nodeagent.reconcile import MAPS, Reconciler
from tests.support.node_maps import node_maps
from tests.support.resources import Load, from_yaml

GOLDEN = Path(__file__).parents[2] / "golden" / "intent"


@pytest.fixture
def resources() -> Resources:
    return from_yaml(GOLDEN / "routing.in.yaml")["view"]


@pytest.fixture
def maps() -> dict[str, Map]:
    return node_maps(FakeKernel())


def compiled(resources: Resources, observed: Observed) -> Intent:
    return Compiler().compile({"view": resources}, [(Load("default/a", ("10.9.0.1",)), "view")], observed.known())


def test_every_map_is_named() -> None:
    assert set(node_maps(FakeKernel())) - {"stocks"} == set(MAPS)


def test_what_is_executed_is_what_is_observed(resources: Resources) -> None:
    kernel = FakeKernel()
    maps = node_maps(kernel)
    reconciler = Reconciler(kernel, maps)
    model = reconciler.observe()
    assert model == Observed()
    intent = compiled(resources, model)
    steps = plan(model, intent)
    reconciler.execute(steps)
    apply(model, steps)
    assert announces(steps)
    real = reconciler.observe()
    assert drift(model, real) == 0
    assert real.programs == {number: program.digest for number, program in intent.programs.items()}
    # another agent, another compiler: nothing to do
    assert plan(real, compiled(resources, real)) == []


def test_the_published_program_is_the_compiled_one(resources: Resources) -> None:
    kernel = FakeKernel()
    maps = node_maps(kernel)
    intent = compiled(resources, Observed())
    Reconciler(kernel, maps).execute(plan(Observed(), intent))
    ((number, program),) = intent.programs.items()
    inner = maps["programs"].inner_id(number.to_bytes(4, "little"))
    assert inner is not None
    assert kernel.map_by_id(inner).lookup(bytes(4)) == program.value()


def test_an_empty_intent_removes_everything_but_the_memory_of_ids(resources: Resources) -> None:
    kernel = FakeKernel()
    maps = node_maps(kernel)
    reconciler = Reconciler(kernel, maps)
    first = compiled(resources, Observed())
    reconciler.execute(plan(Observed(), first))
    held = reconciler.observe()
    gone = Compiler().compile({}, [], held.known())
    reconciler.execute(plan(held, gone))
    after = reconciler.observe()
    assert not after.programs
    for table in (Table.SERVICES, Table.VHOSTS, Table.TABLES, Table.CLUSTERS, Table.WORKLOADS):
        assert after.entries[table] == {}, table
    assert all(not value[19] for value in after.entries[Table.ENDPOINTS].values()), "endpoints stay known, not live"
    again = compiled(resources, after)
    assert again.known.of(n.NameKind.ENDPOINT) == first.known.of(n.NameKind.ENDPOINT)
    assert again.known.of(n.NameKind.TABLE) == first.known.of(n.NameKind.TABLE)


def test_a_new_owner_of_a_route_id_starts_at_zero(resources: Resources) -> None:
    kernel = FakeKernel()
    maps = node_maps(kernel)
    reconciler = Reconciler(kernel, maps)
    for route in (1, 999):
        key = route.to_bytes(4, "little")
        maps["route_stats"].update(key, RouteStat(5, 5).pack())
        maps["home_stats"].update(key, HomeStat(7, 1).pack())
        maps["punt_stats"].update(PuntKey(route, 3).pack(), (9).to_bytes(8, "little"))
    reconciler.execute(plan(Observed(), compiled(resources, Observed())))
    one, other = (1).to_bytes(4, "little"), (999).to_bytes(4, "little")
    assert maps["route_stats"].lookup_percpu(one) == [RouteStat().pack()] * kernel.cpus
    assert maps["home_stats"].lookup(one) is None
    assert maps["punt_stats"].lookup_percpu(PuntKey(1, 3).pack()) is None
    assert maps["route_stats"].lookup_percpu(other) == [RouteStat(5, 5).pack()] * kernel.cpus
    assert maps["home_stats"].lookup(other) == HomeStat(7, 1).pack()


def test_a_full_map_is_an_error_that_names_it_and_leaves_what_can_be_resumed(resources: Resources) -> None:
    kernel = FakeKernel()
    maps = node_maps(kernel, vhosts=3)
    reconciler = Reconciler(kernel, maps)
    intent = compiled(resources, Observed())
    with pytest.raises(ApplyError, match="the map vhosts is full"):
        reconciler.execute(plan(Observed(), intent))
    held = reconciler.observe()
    assert held.entries[Table.SERVICES] == {}, "nothing refers to what is not there"
    assert held.entries[Table.TABLES] == {}
    assert len(held.entries[Table.VHOSTS]) <= 3


def test_drift_is_repaired(resources: Resources) -> None:
    kernel = FakeKernel()
    maps = node_maps(kernel)
    reconciler = Reconciler(kernel, maps)
    intent = compiled(resources, Observed())
    reconciler.execute(plan(Observed(), intent))
    model = reconciler.observe()
    key = next(iter(model.entries[Table.VHOSTS]))
    maps["vhosts"].delete(key)
    maps["tables"].update((7).to_bytes(4, "little"), (1).to_bytes(4, "little"))
    real = reconciler.observe()
    assert drift(model, real) == 2
    reconciler.execute(plan(real, intent))
    assert drift(model, reconciler.observe()) == 0


def test_a_turned_round_robin_is_no_difference(resources: Resources) -> None:
    kernel = FakeKernel()
    maps = node_maps(kernel)
    reconciler = Reconciler(kernel, maps)
    intent = compiled(resources, Observed())
    reconciler.execute(plan(Observed(), intent))
    key = next(iter(intent.entries[Table.CLUSTERS]))
    value = bytearray(intent.entries[Table.CLUSTERS][key])
    value[12:16] = (17).to_bytes(4, "little")
    maps["clusters"].update(key, bytes(value))
    assert plan(reconciler.observe(), intent) == []


def test_configuration_keeps_what_home_wrote(maps: dict[str, Map]) -> None:
    reconciler = Reconciler(FakeKernel(), maps)
    maps["config"].update(bytes(4), Config(home_generation=4).pack())
    assert reconciler.configure([("10.0.0.1", 15001), ("fd00::1", 15001)])
    assert not reconciler.configure([("10.0.0.1", 15001), ("fd00::1", 15001)])
    assert reconciler.announce() == 1
    value = maps["config"].lookup(bytes(4))
    assert value is not None
    config = Config.unpack(value)
    assert (config.version, config.home_generation, config.generation) == (n.ABI_VERSION, 4, 1)
    assert (config.home4.port, config.home4.family, config.home6.family) == (15001, 4, 6)


def test_maps_of_another_release_are_not_touched(maps: dict[str, Map]) -> None:
    maps["config"].update(bytes(4), Config(version=n.ABI_VERSION + 1).pack())
    with pytest.raises(LayoutError, match="--cleanup"):
        Reconciler(FakeKernel(), maps).configure([])
