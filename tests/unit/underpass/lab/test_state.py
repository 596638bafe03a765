"""What a lab remembers, and the locks by which commands wait for each other."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from underpass.lab import state
from underpass.lab.errors import LabError
from underpass.lab.model import Allocation, LinkOptions, Options
from underpass.lab.processes import Started
from underpass.lab.state import Paths, State, WorkloadState, load, locked, require


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "RUN", tmp_path / "run")
    monkeypatch.setattr(state, "LOCK", tmp_path / "lock" / "l")


def example(name: str) -> State:
    return State(
        options=Options(name, 2, True, False, LinkOptions(0.01), {"a": "node-1"}),
        octet=245,
        status="up",
        created="now",
        nodes=["node-1"],
        files=[{"name": "a.yaml", "path": "/a.yaml"}],
        lab_file={"path": "/l", "text": "images: {}"},
        allocation=Allocation({"default/a-0": (1, 3)}, {"default/a": ("10.96.0.10", "fd00:96::a")}),
        workloads=[WorkloadState("Pod", {"name": "a-0", "owner": "a", "namespace": "default"}, {"K": "v"}, "/h")],
        processes=[Started("agent node-1", 12, 34, "/log")],
        revision=5,
        xds="127.0.0.1:1",
        http="127.0.0.1:2",
    )


@pytest.mark.parametrize("name", ["default", "other"])
def test_what_is_saved_is_loaded(name: str) -> None:
    before = example(name)
    before.save()
    assert load(name) == before
    assert require(name) == before
    assert state.all_names() == [name]
    assert not list(Paths(name).state.parent.glob(".*"))


def test_no_lab_is_up() -> None:
    assert load("default") is None
    with pytest.raises(LabError, match="no lab is up") as caught:
        require("x")
    assert "--name x" in caught.value.next_step


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 99}', '{"version": 1}'])
def test_a_file_that_is_not_ours_is_an_error_with_a_way_out(text: str) -> None:
    example("default").save()
    Paths("default").state.write_text(text)
    with pytest.raises(LabError) as caught:
        load("default")
    assert "lab down" in caught.value.next_step


def test_commands_wait_for_the_same_lab_only() -> None:
    entered = {name: threading.Event() for name in ("a", "b", "")}

    def enter(name: str) -> None:
        with locked(name):
            entered[name].set()

    threads = [threading.Thread(target=enter, args=(name,), daemon=True) for name in entered]
    with locked("a"), locked():
        for thread in threads:
            thread.start()
        assert entered["b"].wait(5)
        assert not entered["a"].wait(0.2)
        assert not entered[""].is_set()
    for thread in threads:
        thread.join(5)
    assert all(event.is_set() for event in entered.values())
