"""From what the probes found to whether, and how, the data path runs."""

from __future__ import annotations

import errno
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.bpf.errors import BpfError, PermissionDeniedError, UnsupportedFeatureError
from nodeagent.node import probes
from nodeagent.node.features import BY_KEY, FEATURES, Answer, MissingFeaturesError, Need, Report, State, judge

REQUIRED = [feature.key for feature in FEATURES if feature.need is Need.REQUIRED]
OTHER = [feature.key for feature in FEATURES if feature.need is not Need.REQUIRED]


def all_but(keys: Iterable[str], state: State = State.NO, detail: str = "") -> Report:
    lacking = set(keys)
    return judge({key: Answer(state, detail) if key in lacking else Answer(State.YES) for key in BY_KEY})


def test_everything_there() -> None:
    report = all_but([])
    assert report.can_run
    assert (report.attachment, report.workload_object) == ("tcx", "tc_workload.bpf.o")
    report.require()
    assert all(not row.remedy for row in report.rows)


@pytest.mark.parametrize("key", REQUIRED)
@pytest.mark.parametrize("state", [State.NO, State.UNKNOWN])
def test_nothing_required_may_lack_or_be_unknown(key: str, state: State) -> None:
    report = all_but([key], state, "the kernel's words")
    assert not report.can_run
    assert [row.feature.key for row in report.missing] == [key]
    with pytest.raises(MissingFeaturesError, match="the kernel's words") as raised:
        report.require()
    assert raised.value.missing == (key,)
    assert key in str(raised.value)
    report.require(but=(key,))


@given(st.sets(st.sampled_from(OTHER)), st.sampled_from([State.NO, State.UNKNOWN]))
def test_nothing_else_keeps_it_from_running(keys: set[str], state: State) -> None:
    assert all_but(keys, state).can_run


def test_before_6_2_and_before_6_6() -> None:
    report = all_but(["tcx", "kernel-context"], detail="Invalid argument")
    assert (report.attachment, report.workload_object) == ("clsact", "tc_workload_old.bpf.o")
    assert [row.feature.key for row in report.second_ways] == ["tcx", "kernel-context"]
    summary = report.summary("6.1.0")
    assert summary["release"] == "6.1.0"
    assert "clsact" in summary["second_ways"]["tcx"]


def test_no_programs_at_interfaces_at_all() -> None:
    report = all_but(["tc", "tcx"])
    assert (report.can_run, report.attachment) == (False, "none")
    assert all_but(["programs"]).workload_object == "none"


def test_one_reason_stands_above_what_follows_from_it() -> None:
    """Without permission nearly nothing can be tried; nobody is told to change the kernel for that."""
    answers = {key: Answer(State.UNKNOWN, "not permitted") for key in BY_KEY}
    answers["permissions"] = Answer(State.NO, "bpf: Operation not permitted")
    with pytest.raises(MissingFeaturesError) as raised:
        judge(answers).require()
    text = str(raised.value)
    assert "run as root" in text
    assert "kernel of at least" not in text
    assert "could not be tried: btf" in text


def test_what_was_not_asked_is_unknown_and_not_taken_for_granted() -> None:
    report = judge({})
    assert not report.can_run
    assert {row.answer.state for row in report.rows} == {State.UNKNOWN}
    with pytest.raises(KeyError, match="no feature 'tcy'"):
        judge({"tcy": Answer(State.YES)})


def test_document_has_every_feature_under_its_key() -> None:
    found = all_but(["tcx", "bpffs"]).document()
    assert list(found["features"]) == [feature.key for feature in FEATURES]
    assert found["missing"] == ["bpffs"]
    assert found["features"]["bpffs"]["next"].startswith("mount -t bpf")
    assert found["features"]["tcx"]["state"] == "no"
    assert all(set(one) == {"title", "need", "state", "detail", "means", "next"} for one in found["features"].values())


def test_an_agent_adds_the_programs_that_it_loaded() -> None:
    before = all_but(["programs"], State.UNKNOWN)
    assert not before.can_run
    assert probes.loaded(before, 12).can_run


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (UnsupportedFeatureError("tcx", "no such thing", ""), State.NO),
        (BpfError("load", "the verifier says no"), State.NO),
        (PermissionDeniedError("load", "EPERM"), State.UNKNOWN),
        (PermissionError(errno.EPERM, "not you"), State.UNKNOWN),
        (OSError(errno.EBUSY, "later"), State.NO),
    ],
)
def test_a_refusal_is_an_answer_and_a_prohibition_is_none(error: Exception, state: State) -> None:
    def probe() -> Answer:
        raise error

    assert probes._ask(probe).state is state


MET = {"refused": errno.ECONNREFUSED, "connected": 0, "peer": "127.0.0.78", "arrived": 100}
#            connect, getpeername, established, offset, egress, sum, socket, ingress
SEEN = [1, 1, 1, 12345, 9, 4, 9, 9]


def test_a_trial_in_which_all_went_well() -> None:
    found = probes._concluded(MET, SEEN, {})
    assert all(answer.state is State.YES for answer in found.values()), found


@pytest.mark.parametrize(
    ("met", "slots", "keys"),
    [
        ({"refused": 0}, {}, {"set-retval"}),
        ({"refused": errno.EPERM}, {}, {"set-retval"}),
        ({"peer": "127.0.0.1"}, {}, {"getpeername"}),
        ({"connected": errno.ECONNREFUSED, "arrived": 0, "peer": ""}, {0: 0}, {"connect-hook", "getpeername"}),
        ({}, {2: 0}, {"socket-storage"}),
        ({}, {3: 0}, {"tcp-sock"}),
        ({}, {6: 0}, {"tcp-sock"}),
        ({}, {5: 1}, {"checksum-state"}),
        ({}, {5: 0}, {"checksum-state"}),
        ({}, {7: 0}, {"tc"}),
    ],
)
def test_what_a_trial_missed(met: dict[str, object], slots: dict[int, int], keys: set[str]) -> None:
    seen = [slots.get(number, value) for number, value in enumerate(SEEN)]
    found = probes._concluded(MET | met, seen, {})
    assert {key for key, answer in found.items() if answer.state is not State.YES} == keys
    assert all(found[key].detail for key in keys)


def test_a_program_that_the_kernel_refused_is_the_reason() -> None:
    found = probes._concluded(MET | {"peer": "127.0.0.1"}, SEEN, {"ft_getpeername4": "unknown attach type"})
    assert found["getpeername"] == Answer(State.NO, "unknown attach type")
