"""Laws of model and translation: bytes do not depend on input order; memory never changes a result; nothing dangles."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.model import Mesh, Node
from controlplane.model.build import build
from controlplane.translate import Resources, prepare, translate
from controlplane.translate.names import CLUSTER, ENDPOINT, LISTENER, ROUTE
from tests.support.mesh import read, router, sidecar, waypoint
from underpass.api import envoy

DIRECTORY = Path(__file__).resolve().parents[1] / "golden" / "translate"
BASE = (DIRECTORY / "base.yaml").read_text(encoding="utf-8")
CASES = sorted(path.name.removesuffix(".in.yaml") for path in DIRECTORY.glob("*.in.yaml"))
TEXTS = {name: (DIRECTORY / f"{name}.in.yaml").read_text(encoding="utf-8") for name in CASES}
NODES = [
    sidecar("10.244.0.21", labels={"app": "stock"}),
    sidecar("10.244.9.9", "other", labels={"app": "web"}),
    sidecar(generator="grpc"),
    router(),
    waypoint("way"),
]


def mesh(cases: list[str]) -> Mesh:
    return read(**{f"case{index}": TEXTS[name] for index, name in enumerate(cases)}, base=BASE).mesh


def data(resources: Resources) -> dict[str, dict[str, bytes]]:
    return {
        kind: {name: item.SerializeToString(deterministic=True) for name, item in table.items()}
        for kind, table in resources.items()
    }


SOME = st.lists(st.sampled_from(CASES), min_size=1, max_size=4, unique=True)


@settings(max_examples=60, deadline=None)
@given(SOME, st.sampled_from(NODES), st.randoms(use_true_random=False))
def test_input_order_does_not_matter(cases: list[str], node: Node, random: Any) -> None:
    objects = list(read(**{f"case{i}": TEXTS[name] for i, name in enumerate(cases)}, base=BASE).state.objects().items())
    first = build(dict(objects))
    random.shuffle(objects)
    second = build(dict(objects))
    assert first.notes == second.notes
    assert first.shadowed == second.shadowed
    assert data(translate(prepare(first.mesh), node)) == data(translate(prepare(second.mesh), node))


@settings(max_examples=40, deadline=None)
@given(st.lists(SOME, min_size=2, max_size=5), st.sampled_from(NODES))
def test_memory_does_not_change_results(history: list[list[str]], node: Node) -> None:
    prepared = None
    for cases in history:
        built = mesh(cases)
        prepared = prepare(built, prepared)
        assert data(translate(prepared, node)) == data(translate(prepare(built), node))


@settings(max_examples=40, deadline=None)
@given(SOME, st.sampled_from(NODES))
def test_unchanged_resources_are_the_same_objects(cases: list[str], node: Node) -> None:
    first = prepare(mesh(cases))
    before = translate(first, node)
    after = translate(prepare(mesh(cases), first), node)
    for kind, table in before.items():
        assert list(table) == sorted(table)
        for name, item in table.items():
            assert after[kind][name] is item


@settings(max_examples=60, deadline=None)
@given(SOME, st.sampled_from(NODES))
def test_references_hold(cases: list[str], node: Node) -> None:
    """Every EDS cluster has an assignment, every route configuration that a listener names exists, names are inner."""
    found = translate(prepare(mesh(cases)), node)
    for name, cluster in found[CLUSTER].items():
        assert cluster.name == name
        if cluster.HasField("eds_cluster_config"):
            assert cluster.eds_cluster_config.service_name in found[ENDPOINT]
    for name, assignment in found[ENDPOINT].items():
        assert assignment.cluster_name == name
    for name, route in found[ROUTE].items():
        assert route.name == name
        domains = [domain for host in route.virtual_hosts for domain in host.domains]
        assert len(domains) == len(set(domains))
    for name, listener in found[LISTENER].items():
        assert listener.name == name
        for wanted in _routes(listener):
            assert wanted in found[ROUTE]


def _routes(listener: Any) -> list[str]:
    out = []
    chains = [*listener.filter_chains, listener.default_filter_chain]
    packed = [item.typed_config for chain in chains for item in chain.filters] + [listener.api_listener.api_listener]
    for item in packed:
        if item.type_url.endswith("HttpConnectionManager"):
            manager = envoy.HttpConnectionManager.FromString(item.value)
            if manager.HasField("rds"):
                out.append(str(manager.rds.route_config_name))
    return out


@pytest.mark.parametrize("name", ["inbound-policy", "peer-plain", "gateway-policy", "policy-levels", "sidecar-egress"])
@pytest.mark.parametrize("node", NODES)
def test_a_change_of_policy_is_never_remembered_away(name: str, node: Node) -> None:
    """Each way: a policy that comes, and one that goes."""
    plain, ruled = mesh([]), mesh([name])
    for before, after in ((plain, ruled), (ruled, plain)):
        first = prepare(before)
        translate(first, node)
        assert data(translate(prepare(after, first), node)) == data(translate(prepare(after), node))
