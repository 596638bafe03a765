"""Laws of the plan: it leads to the intent, is empty when there is nothing to do, and every prefix of it is safe."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.abi import numbers as n
from nodeagent.abi.numbers import ActionKind, NameKind, ServiceKind
from nodeagent.abi.records import (
    Action,
    Cluster,
    Endpoint,
    HomeRule,
    NameKey,
    NameText,
    Service,
    ServiceKey,
    Vhost,
    VhostKey,
)
from nodeagent.abi.records import Table as TableRecord
from nodeagent.cache.resources import (
    Assignment,
    Balance,
    Chain,
    ClusterKind,
    Forward,
    Http,
    Listener,
    Locality,
    PathKind,
    PathMatch,
    Route,
    RouteConfiguration,
    RouteMatch,
    StringKind,
    Tcp,
    ValueMatch,
    VirtualHost,
    WeightedCluster,
)
from nodeagent.cache.resources import Cluster as ClusterValue
from nodeagent.cache.resources import Endpoint as EndpointValue
from nodeagent.cache.store import Resources
from nodeagent.intent.compile import Compiler
from nodeagent.intent.ids import Known
from nodeagent.intent.model import Program, Table
from nodeagent.plan import Observed, Op, Step, apply, drift, plan
from nodeagent.rules.model import NO_RULE, Mirror, Rule
from nodeagent.rules.text import decode


@dataclass(frozen=True)
class Load:
    """A workload of a generated node."""

    key: str
    ips: tuple[str, ...]


_NAMES = ("a", "b", "c")


@st.composite
def _resources(draw: st.DrawFn) -> Resources:
    """What one view may see: three services at most, with subsets, header routes and weights."""
    clusters, assignments, hosts = {}, {}, []
    for name in draw(st.lists(st.sampled_from(_NAMES), unique=True, max_size=3)):
        for subset in ("", "v1"):
            full = f"outbound|80|{subset}|{name}"
            if draw(st.booleans()):
                clusters[full] = ClusterValue(full, ClusterKind.EDS, Balance.ROUND_ROBIN, eds_name=full)
                ends = draw(st.lists(st.integers(1, 6), unique=True, max_size=3))
                found = tuple(EndpointValue(f"10.0.0.{e}", 80, draw(st.integers(1, 2))) for e in ends)
                assignments[full] = Assignment(full, (Locality("", "", "", 0, 0, found),))
        routes = []
        for index in range(draw(st.integers(0, 3))):
            header = (ValueMatch("x-u", StringKind.EXACT, str(index)),) if draw(st.booleans()) else ()
            targets = draw(st.lists(st.sampled_from(("", "v1")), unique=True, min_size=1))
            weights = tuple(WeightedCluster(f"outbound|80|{t}|{name}", draw(st.integers(1, 9))) for t in targets)
            action = Forward(weights, timeout=draw(st.sampled_from((0.0, 0.0, 3.0))))
            mirrored = draw(st.sampled_from(("", "", *_NAMES)))
            rule = Rule(mirrors=(Mirror(f"outbound|80||{mirrored}"),)) if mirrored else NO_RULE
            match = RouteMatch(PathMatch(PathKind.PREFIX, "/"), header)
            routes.append(Route(f"r{index}", match, action, rule=rule))
        hosts.append(VirtualHost(name, (name, f"10.1.0.{_NAMES.index(name) + 1}"), tuple(routes)))
    listeners = {"0.0.0.0_80": Listener("0.0.0.0_80", "outbound", (("0.0.0.0", 80),), (Chain("", Http(rds="80")),))}
    if draw(st.booleans()):
        chain = Chain("", tcp=Tcp((WeightedCluster(f"outbound|80||{draw(st.sampled_from(_NAMES))}"),)))
        listeners["tcp"] = Listener("tcp", "outbound", (("10.1.0.1", 90),), (chain,))
    return Resources(listeners, {"80": RouteConfiguration("80", tuple(hosts), True)}, clusters, assignments)


@st.composite
def _nodes(draw: st.DrawFn) -> tuple[dict[str, Resources], list[tuple[Load, str]]]:
    views = draw(st.dictionaries(st.sampled_from(("v1", "v2")), _resources(), max_size=2))
    loads = [(Load(f"default/{view}", (f"10.9.0.{i + 1}",)), view) for i, view in enumerate(sorted(views))]
    return views, [load for load in loads if draw(st.booleans())]


@dataclass
class _State:
    """The maps read as the kernel reads them. Reading raises on anything dangling."""

    #: service key, or (table, domain) -> what a connection or request gets there, by ids
    outcomes: dict[object, object]
    #: view id -> cluster ids that its requests can reach -> their endpoints' addresses
    reached: dict[int, dict[int, object]]
    contents: dict[int, object]


def _read(state: Observed, programs: dict[int, Program]) -> _State:
    ends = {int.from_bytes(k, "little"): Endpoint.unpack(v) for k, v in state.entries[Table.ENDPOINTS].items()}
    clusters = {int.from_bytes(k, "little"): Cluster.unpack(v) for k, v in state.entries[Table.CLUSTERS].items()}
    tables = {int.from_bytes(k, "little"): TableRecord.unpack(v) for k, v in state.entries[Table.TABLES].items()}
    named = {NameKey.unpack(k).id for k in state.entries[Table.NAMES] if NameKey.unpack(k).kind == NameKind.ROUTE}

    def content(number: int) -> object:
        assert clusters[number].live
        for slot in clusters[number].slot:
            assert ends[slot].live, f"cluster {number} has endpoint {slot}, which is not live"
        return sorted((ends[slot].addr, ends[slot].port) for slot in clusters[number].slot)

    contents = {number: content(number) for number in clusters}

    def action(a: Action, into: dict[int, object]) -> object:
        if a.kind != ActionKind.CLUSTERS and not a.rule:
            return a.kind, a.reason
        if a.rule:
            text = HomeRule.unpack(state.entries[Table.RULES][a.rule.to_bytes(8, "little")])
            for mirror in decode(text.text[: text.len]).mirrors:
                if mirror.number:
                    into[mirror.number] = contents[mirror.number]
        assert a.route in named, "a route in use is not named"
        for weight in a.to:
            if weight.cluster:
                into[weight.cluster] = contents[weight.cluster]
        return a

    vhosts: dict[int, list[tuple[bytes, Vhost]]] = {}
    for key, value in state.entries[Table.VHOSTS].items():
        where = VhostKey.unpack(key)
        vhosts.setdefault(where.table, []).append((where.host, Vhost.unpack(value)))
    outcomes: dict[object, object] = {}
    reached: dict[int, dict[int, object]] = {}
    for key, value in state.entries[Table.SERVICES].items():
        service, into = Service.unpack(value), reached.setdefault(ServiceKey.unpack(key).view, {})
        if service.kind != ServiceKind.HTTP:
            outcomes[key] = (service.kind, action(service.tcp, into))
            continue
        outcomes[key] = service.table
        if service.table not in tables or not tables[service.table].flags & n.TABLE_LIVE:
            continue  # its requests go to the home peer: never wrong
        for host, vhost in vhosts.get(service.table, []):
            if vhost.program:
                program = programs[vhost.program]
                assert state.programs.get(vhost.program) == program.digest, "a virtual host's program is missing"
                outcomes[service.table, host] = (program.image, tuple(action(a, into) for a in program.actions))
            else:
                outcomes[service.table, host] = action(vhost.direct, into)
    return _State(outcomes, reached, contents)


def _walk(state: Observed, steps: list[Step], programs: dict[int, Program]) -> None:
    """Apply steps one by one; after each, whoever is served is served as before or as after."""
    before = _read(state, programs)
    final = Observed({t: dict(e) for t, e in state.entries.items()}, dict(state.programs))
    for step in steps:
        if step.op is Op.PUBLISH and step.program is not None:
            assert int.from_bytes(step.key, "little") not in state.programs, "a program in use is overwritten"
            programs[int.from_bytes(step.key, "little")] = step.program
    apply(final, steps)
    after = _read(final, programs)
    for step in steps:
        apply(state, [step])
        now = _read(state, programs)
        for key, outcome in now.outcomes.items():
            options = [s.outcomes[key] for s in (before, after) if key in s.outcomes]
            assert outcome in options, (step, key, outcome, options)
        for view, clusters in now.reached.items():
            for number, content in clusters.items():
                options = [s.reached[view][number] for s in (before, after) if number in s.reached.get(view, {})]
                if number not in after.reached.get(view, {}):
                    # what is about to go may already see the cluster's new endpoints
                    options += [s.contents[number] for s in (after,) if number in s.contents]
                assert content in options, (step, view, number, content, options)


@settings(max_examples=150, deadline=None)
@given(nodes=st.lists(_nodes(), min_size=1, max_size=4))
def test_every_prefix_is_safe_and_the_whole_leads_to_the_intent(
    nodes: list[tuple[dict[str, Resources], list[tuple[Load, str]]]],
) -> None:
    compiler, state, known = Compiler(), Observed(), Known()
    programs: dict[int, Program] = {}
    for views, loads in nodes:
        intent = compiler.compile(views, loads, known)
        _walk(state, plan(state, intent), programs)
        assert plan(state, intent) == []
        # the same node, recovered from the maps alone, is left alone
        recovered = Compiler().compile(views, loads, state.known())
        assert plan(state, recovered) == []
        known = intent.known


@settings(max_examples=60, deadline=None)
@given(first=_nodes(), second=_nodes())
def test_without_pruning_nothing_goes(
    first: tuple[dict[str, Resources], list[tuple[Load, str]]],
    second: tuple[dict[str, Resources], list[tuple[Load, str]]],
) -> None:
    state, compiler = Observed(), Compiler()
    intent = compiler.compile(*first)
    apply(state, plan(state, intent))
    steps = plan(state, compiler.compile(*second, intent.known), prune=False)
    assert not [step for step in steps if step.op in (Op.CLEAR, Op.WITHDRAW)]
    assert not [s for s in steps if s.table is Table.ENDPOINTS and not Endpoint.unpack(s.value).live]


def test_drift_is_counted() -> None:
    model, real = Observed(), Observed()
    key, value = NameKey(NameKind.VIEW, 1).pack(), NameText(b"v").pack()
    apply(model, [Step(Op.PUT, Table.NAMES, key, value)])
    assert drift(model, real) == 1
    apply(real, [Step(Op.PUT, Table.NAMES, key, value)])
    assert drift(model, real) == 0
