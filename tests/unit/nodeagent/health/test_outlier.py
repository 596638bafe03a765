"""Who is out, and when: Envoy's rules one by one, and laws over any schedule of failures."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.abi.records import EndpointRun
from nodeagent.bpf.abc import MapSpec, MapType
from nodeagent.bpf.fake import FakeKernel
from nodeagent.cache.resources import Outlier
from nodeagent.health.outlier import Detector, Run, Watch, What
from nodeagent.health.service import Ejections

POLICY = Outlier(errors=3, gateway=2, interval=1.0, base=2.0, longest=5.0, percent=50)
FOUR = ("a:1", "b:1", "c:1", "d:1")


def _watched(policy: Outlier = POLICY, endpoints: tuple[str, ...] = FOUR) -> tuple[Detector, Watch]:
    detector, watch = Detector(), Watch("c", policy)
    detector.watch({watch: endpoints}, 0.0)
    return detector, watch


def _told(detector: Detector, now: float, **runs: Run) -> list[tuple[str, str]]:
    events, _ = detector.look({f"{name}:1": run for name, run in runs.items()}, now)
    return [(event.what.value, event.endpoint) for event in events]


def test_enough_errors_in_a_row_take_an_endpoint_out_at_once_and_time_brings_it_back() -> None:
    detector, watch = _watched()
    assert _told(detector, 0.1, a=Run(2, 1)) == []
    assert _told(detector, 0.2, a=Run(3, 0)) == [("ejected", "a:1")]
    assert detector.ejected == {watch: frozenset({"a:1"})}
    assert _told(detector, 1.1) == [], "2 s are not over"
    assert _told(detector, 2.1) == []
    assert _told(detector, 3.0) == [("returned", "a:1")], "considered once in an interval"
    assert detector.ejected == {}


def test_gateway_errors_have_a_threshold_of_their_own() -> None:
    detector, _ = _watched()
    events, anew = detector.look({"b:1": Run(2, 2)}, 0.1)
    assert [(e.what, e.why, e.seconds) for e in events] == [(What.EJECTED, "gateway", 2.0)]
    assert anew == {"b:1"}
    detector, _ = _watched(Outlier(errors=0, gateway=0))
    assert _told(detector, 0.1, a=Run(99, 99)) == [], "0: never"


def test_each_time_it_is_out_for_longer_and_behaving_makes_up_for_it() -> None:
    detector, _ = _watched()
    found = []
    now = 0.0
    for _ in range(4):
        found += [event.seconds for event in detector.look({"a:1": Run(3, 0)}, now)[0] if event.what is What.EJECTED]
        back = False
        while not back:
            now += 1.0
            back = ("returned", "a:1") in _told(detector, now)
    assert found == [2.0, 4.0, 5.0, 5.0], "base, twice, and no longer than the longest"
    for _ in range(10):
        now += 1.0
        assert _told(detector, now) == []
    assert detector.look({"a:1": Run(3, 0)}, now)[0][0].seconds == 2.0


def test_no_more_than_a_share_of_the_endpoints_is_out() -> None:
    detector, watch = _watched()
    every = {f"{name}:1": Run(9, 9) for name in "abcd"}
    events, anew = detector.look(every, 0.1)
    assert [(e.what.value, e.endpoint) for e in events] == [
        ("ejected", "a:1"), ("ejected", "b:1"), ("kept", "c:1"), ("kept", "d:1"),
    ]  # fmt: skip
    assert anew == set(every), "whoever stays begins anew, too"
    assert detector.kept == 2
    # 10 % of three are nobody, unless one may always be
    three = FOUR[:3]
    assert _told(_watched(Outlier(errors=3), three)[0], 0.1, a=Run(3, 0)) == [("kept", "a:1")]
    one, _ = _watched(Outlier(errors=3, one=True), three)
    assert _told(one, 0.1, a=Run(3, 0), b=Run(3, 0)) == [("ejected", "a:1"), ("kept", "b:1")]
    assert watch in detector.ejected


def test_what_failed_while_it_was_out_is_not_held_against_it() -> None:
    detector, _ = _watched()
    _told(detector, 0.0, a=Run(3, 0))
    assert _told(detector, 0.5, a=Run(30, 0)) == []
    events, anew = detector.look({"a:1": Run(30, 0)}, 2.0)
    assert [event.what for event in events] == [What.RETURNED]
    assert anew == {"a:1"}


def test_an_endpoint_that_went_is_forgotten_and_a_new_one_begins_anew() -> None:
    detector, watch = _watched()
    _told(detector, 0.0, a=Run(3, 0), b=Run(3, 0))
    assert detector.watch({watch: ("b:1", "e:1")}, 1.0) == {"e:1"}
    assert detector.ejected == {watch: frozenset({"b:1"})}
    assert detector.watch({}, 2.0) == frozenset()
    assert detector.ejected == {}


_LOOKS = st.lists(
    st.tuples(
        st.floats(0.01, 3.0), st.dictionaries(st.sampled_from(FOUR), st.tuples(st.integers(0, 6), st.integers(0, 6)))
    ),
    max_size=40,
)
_POLICIES = st.builds(
    Outlier,
    errors=st.integers(0, 4),
    gateway=st.integers(0, 4),
    interval=st.floats(0.1, 5.0),
    base=st.floats(0.1, 10.0),
    longest=st.floats(10.0, 20.0),
    percent=st.integers(0, 100),
    one=st.booleans(),
)


@settings(max_examples=200)
@given(_POLICIES, _LOOKS)
def test_laws(policy: Outlier, looks: list[tuple[float, dict[str, tuple[int, int]]]]) -> None:
    detector, watch = _watched(policy)
    now, since = 0.0, {}
    for step, rows in looks:
        now += step
        events, _ = detector.look({key: Run(*row) for key, row in rows.items()}, now)
        after = detector.ejected.get(watch, frozenset())
        assert 100 * len(after) <= policy.percent * len(FOUR) or (policy.one and len(after) <= 1)
        for event in events:
            if event.what is What.EJECTED:
                assert event.endpoint in rows, "nobody is out who did not fail"
                errors, gateway = rows[event.endpoint]
                assert (policy.errors and errors >= policy.errors) or (policy.gateway and gateway >= policy.gateway)
                assert policy.base <= event.seconds <= policy.longest
                since[event.endpoint] = (now, event.seconds)
            elif event.what is What.RETURNED:
                start, seconds = since.pop(event.endpoint)
                assert now - start >= seconds - 1e-9
        assert after == set(since), "events tell all"
    # without failures everybody is back at last
    for _ in range(3):
        now += policy.longest + 2 * policy.interval
        detector.look({}, now)
    assert detector.ejected == {}


def test_over_the_map() -> None:
    """Peaks are read by id, rows are begun anew once something follows from them, and at first."""
    runs = FakeKernel().create_map(MapSpec("endpoint_runs", MapType.ARRAY, 4, EndpointRun.size(), 8))
    runs.update((3).to_bytes(4, "little"), EndpointRun(7, 7, 7, 7).pack())
    ejections, watch = Ejections(runs), Watch("c", POLICY)
    wanted = {watch: frozenset({"a:1", "b:1", "gone:1"})}
    ejections.watch(wanted, {"a:1": 3, "b:1": 4}, 0.0)
    assert ejections.look(0.1) == [], "what was counted before is nobody's"
    runs.update((3).to_bytes(4, "little"), EndpointRun(0, 0, 2, 0).pack())
    assert ejections.look(0.2) == []
    runs.update((3).to_bytes(4, "little"), EndpointRun(0, 0, 3, 0).pack())
    assert [event.what for event in ejections.look(0.3)] == [What.EJECTED]
    assert runs.lookup((3).to_bytes(4, "little")) == EndpointRun().pack()
    assert ejections.out == {watch: frozenset({"a:1"})}
    ejections.watch(wanted, {"a:1": 3, "b:1": 4}, 0.4)
    (row,) = ejections.status(1.3)
    assert (row["endpoint"], row["out"], row["left_s"], row["ejections"]) == ("a:1", True, 1.0, 1)
