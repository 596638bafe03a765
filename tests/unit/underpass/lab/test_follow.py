"""Whether the mesh is ready and follows, judged from the documents of its programs."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from underpass.lab.follow import has_read, unsynchronised, waiting_for
from underpass.lab.generate import revision_yaml


def agent(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "apply": {"error": ""},
        "home": ["10.244.1.1:15001"],
        "workloads": [{"key": "a/x", "state": "enrolled", "reason": ""}],
        "views": [{"key": "a/default", "ready": True, "missing": [], "trouble": ""}],
    }
    return document | changes


HOME = {"workloads": ["a/x"]}


def test_ready() -> None:
    assert waiting_for(agent(), HOME, {"a/x"}) == ""
    assert waiting_for(agent(), HOME, set()) == ""


@pytest.mark.parametrize(
    ("document", "home", "why"),
    [
        (None, HOME, "does not answer"),
        (agent(apply={"error": "map full"}), HOME, "map full"),
        (agent(home=[]), HOME, "no home"),
        (agent(workloads=[]), HOME, "a/x is not known"),
        (agent(workloads=[{"key": "a/x", "state": "waiting", "reason": "no netns"}]), HOME, "a/x is waiting: no netns"),
        (agent(views=[{"key": "v", "ready": False, "missing": ["RDS 80"], "trouble": ""}]), HOME, "v waits for RDS 80"),
        (agent(), None, "home does not serve a/x"),
        (agent(), {"workloads": []}, "home does not serve a/x"),
    ],
)
def test_what_is_missing_is_named(document: dict[str, Any] | None, home: dict[str, Any] | None, why: str) -> None:
    assert why in waiting_for(document, home, {"a/x"})


def test_the_marker_tells_which_change_was_read() -> None:
    marker = yaml.safe_load(revision_yaml(7))
    verdict = {"kind": marker["kind"], **{key: marker["metadata"][key] for key in ("name", "namespace")}}
    assert has_read([verdict], 7)
    assert not has_read([verdict], 8)
    assert not has_read([], 7)


def test_who_is_behind_and_who_refuses() -> None:
    def status(kind: str, state: str, error: str = "") -> dict[str, str]:
        return {"type": kind, "state": state, "error": error}

    page = {
        "clients": [
            {"connectionId": "a-1", "status": [status("CDS", "SYNCED"), status("SDS", "NOT_SENT")]},
            {"connectionId": "b-2", "status": [status("RDS", "STALE"), status("LDS", "ERROR", "no such cluster")]},
        ]
    }
    assert unsynchronised(page) == (["b-2 RDS is STALE"], ["b-2 LDS: no such cluster"])
    assert unsynchronised(None) == ([], [])
