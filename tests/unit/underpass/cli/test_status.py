"""The status document: each state of a view, each problem by name, each exit code."""

from __future__ import annotations

from typing import Any

import pytest

from underpass.cli.errors import FAILED, OK, PARTIAL, UNREACHABLE, CliError
from underpass.cli.records import status as records
from underpass.cli.records import verdicts
from underpass.cli.records.maps import Pressure
from underpass.cli.records.status import ControlPlane, NodeFacts

NODE_ID = "sidecar~10.0.0.9~web-0.shop~shop.svc.cluster.local"


def view(**changes: Any) -> dict[str, Any]:
    row = {
        "key": "shop/web/1", "node_id": NODE_ID, "connected": True, "trouble": "", "ready": True, "missing": [],
        "types": {"CDS": {"refused": {}}},
    }  # fmt: skip
    return row | changes


def facts(**changes: Any) -> NodeFacts:
    agent = {
        "pid": 1, "xds": {"target": "x:1", "connected": True}, "views": [view()],
        "workloads": [{"key": "shop/web-0", "state": "enrolled", "reason": ""}], "rejections": [],
        "apply": {"count": 1, "compile_ms": 1.0, "execute_ms": 2.0, "error": ""}, "registry_errors": [],
    }  # fmt: skip
    values: dict[str, Any] = {
        "name": "node-1", "agent": agent, "answers": True, "home": {"pid": 2, "listen": ["10.0.0.1:1"]},
        "home_runs": True, "registered": ["shop/web-0"], "programs": ["up_egress"], "links": {"shop/web-0": 9},
        "slots": 9, "counters": {"kernel": 5}, "pressure": [Pressure("conns", 1, 10)], "pinned": True,
    }  # fmt: skip
    agent_changes = changes.pop("agent_changes", {})
    values["agent"] = {**agent, **agent_changes}
    return NodeFacts(**{**values, **changes})


PLANE = ControlPlane("127.0.0.1:1", ready=True, version="1", objects=({"state": "accepted"},))


def judge(*nodes: NodeFacts, plane: ControlPlane = PLANE) -> dict[str, Any]:
    found = records.document(plane, nodes)
    assert list(records.lines(found))
    return found


def test_all_is_well() -> None:
    found = judge(facts())
    assert found["problems"] == []
    assert found["healthy"]
    assert records.exit_code(found) == OK
    text = dict(records.lines(found))
    assert text["  views"] == "1 SYNCED"
    assert text["  counters"] == "kernel 5"
    assert text["  pressure"] == "conns 10.0 %"


def test_what_the_data_path_goes_by() -> None:
    assert "  kernel" not in dict(records.lines(judge(facts())))  # an agent that does not tell
    kernel = {
        "release": "6.1.0", "attachment": "clsact", "workload_object": "tc_workload_old.bpf.o",
        "second_ways": {"tcx": "filters", "kernel-context": "helper calls"},
    }  # fmt: skip
    found = judge(facts(agent_changes={"kernel": kernel}))
    assert found["healthy"]  # a second way is a way
    text = dict(records.lines(found))["  kernel"]
    assert text.startswith(
        "6.1.0, programs at interfaces by clsact, tc_workload_old.bpf.o; without kernel-context, tcx"
    )


@pytest.mark.parametrize(
    ("changes", "state", "reason"),
    [
        ({"connected": False, "trouble": "refused"}, "STALE", "refused"),
        ({"ready": False, "missing": ["80"]}, "SYNCING", "waits for 80"),
        ({"types": {"RDS": {"refused": {"80": "a bad route"}}}}, "NACK", "RDS 80: a bad route"),
    ],
)
def test_states_of_a_view(changes: dict[str, Any], state: str, reason: str) -> None:
    found = judge(facts(agent_changes={"views": [view(**changes)]}))
    (row,) = found["nodes"][0]["views"]
    assert (row["state"], row["reason"]) == (state, reason)
    assert found["problems"] == [f"node-1: view shop/web/1 is {state}: {reason}"]
    assert records.exit_code(found) == FAILED


def test_the_control_plane_knows_what_is_not_acknowledged() -> None:
    behind = {"connectionId": "web-0.shop-6", "status": [{"type": "Cluster", "state": "STALE", "error": ""}]}
    other = {"connectionId": "web-1.shop-7", "status": [{"type": "Cluster", "state": "STALE", "error": ""}]}
    assert records.view(view(), [behind])["state"] == "STALE"
    assert records.view(view(), [other])["state"] == "SYNCED"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"home_runs": False}, "underpass-home is not running"),
        ({"registered": ["shop/web-0", "shop/new-0"]}, "workload shop/new-0 is unknown: the agent has not seen it"),
        ({"links": {"shop/web-0": 8}}, "workload shop/web-0 has 8 of 9 programs attached"),
        ({"pressure": [Pressure("conns", 95, 100)]}, "the map conns is 95 % full (95 of 100)"),
        ({"agent_changes": {"registry_errors": ["bad.json: no"]}}, "bad.json: no"),
        ({"agent_changes": {"apply": {"error": "map full"}}}, "the last change was not applied: map full"),
        ({"trouble": "nothing is pinned"}, "nothing is pinned"),
    ],
)
def test_each_problem_is_told(changes: dict[str, Any], problem: str) -> None:
    found = judge(facts(**changes))
    assert any(problem in text for text in found["problems"]), found["problems"]
    assert records.exit_code(found) == FAILED


def test_attachments_are_not_counted_where_they_are_no_links() -> None:
    assert judge(facts(links={"shop/web-0": 5}, slots=0))["healthy"]


def test_exit_codes_of_what_cannot_be_reached() -> None:
    gone = ControlPlane("127.0.0.1:1", error="Connection refused")
    dead = facts(answers=False)
    assert records.exit_code(judge(plane=gone)) == UNREACHABLE
    assert records.exit_code(judge(dead, plane=gone)) == UNREACHABLE
    assert records.exit_code(judge(facts(), plane=gone)) == PARTIAL
    assert records.exit_code(judge(dead)) == PARTIAL
    assert records.exit_code(judge(facts(), dead)) == PARTIAL
    assert records.exit_code(judge()) == PARTIAL
    assert "does not answer: Connection refused" in judge(facts(), plane=gone)["problems"][0]


def test_rejections_are_told_once_with_their_views() -> None:
    item = {"kind": "route", "name": "api /*", "reason": "timeout", "effect": "goes home", "source": None}
    found = records.rejections([{**item, "view": "a"}, {**item, "view": "b"}, {**item, "reason": "other", "view": "a"}])
    assert [entry["views"] for entry in found] == [["a", "b"], ["a"]]
    usual = {**item, "name": "allow_any /*", "view": "a"}
    shown = dict(records.lines(judge(facts(agent_changes={"rejections": [usual]}))))
    assert "  not kernel" not in shown


VERDICTS: list[dict[str, Any]] = [
    {"kind": "Service", "namespace": "shop", "name": "a", "file": "a.yaml", "line": 1, "state": "accepted"},
    {"kind": "VirtualService", "namespace": "shop", "name": "b", "file": "a.yaml", "line": 9, "state": "rejected",
     "reason": "bad regex", "lastGood": True, "notes": [{"line": 12, "code": "x", "message": "odd"}]},
    {"kind": "VirtualService", "namespace": "x", "name": "c", "file": "b.yaml", "line": 2, "state": "accepted",
     "refusedBy": [{"node": "n", "type": "RDS", "resources": ["80"], "reason": "no", "at": 0}]},
    {"kind": "", "namespace": "", "name": "", "file": "c.yaml", "line": 3, "state": "rejected", "reason": "no YAML"},
]  # fmt: skip


def test_verdicts() -> None:
    assert verdicts.counts(VERDICTS) == {"accepted": 2, "shadowed": 0, "rejected": 2}
    assert [verdicts.faulty(item) for item in VERDICTS] == [False, True, True, True]
    assert verdicts.cells(VERDICTS[1]) == (
        "rejected", "VirtualService shop/b", "a.yaml:9",
        "bad regex; the last good version stays in force\nline 12: odd",
    )  # fmt: skip
    assert verdicts.cells(VERDICTS[2])[0] == "NACK"
    assert verdicts.identity(VERDICTS[3]) == "document"
    assert [i["name"] for i in verdicts.select(VERDICTS, ["virtualservice"], None, bad=False)] == ["b", "c"]
    assert [i["name"] for i in verdicts.select(VERDICTS, [], "shop", bad=True)] == ["b"]
    with pytest.raises(CliError):
        verdicts.items({"error": "x"})
    found = judge(facts(), plane=ControlPlane("a:1", ready=True, objects=VERDICTS))
    assert "a.yaml:9: VirtualService shop/b rejected: bad regex" in found["problems"][0]
    assert len(found["problems"]) == 3


def test_a_policy_that_nothing_enforces_is_a_problem_and_never_just_a_remark() -> None:
    item = {
        "view": "a", "kind": "policy-not-enforced", "name": "shop/web-0", "source": None,
        "reason": "AuthorizationPolicy shop/deny at every port", "effect": "NOT ENFORCED: every request reaches it",
    }  # fmt: skip
    found = judge(facts(agent_changes={"rejections": [item]}))
    text = "workload shop/web-0: AuthorizationPolicy shop/deny at every port: NOT ENFORCED: every request reaches it"
    assert found["problems"] == [f"node-1: {text}"]
    assert records.exit_code(found) == FAILED
    assert "  not kernel" not in dict(records.lines(found))


@pytest.mark.parametrize(
    ("told", "line", "problem"),
    [
        ({"state": "off"}, None, None),
        ({"state": "ready", "pid": 7, "restarts": 1}, "Envoy ready (pid 7), restarted 1 times", None),
        (
            {"state": "ready", "pid": 7, "restarts": 0, "view": "a/web/1a", "apart": ["a/x/2b", "a/y/3c"]},
            "Envoy ready (pid 7), restarted 0 times, sees with a/web/1a; keep to underpass-home: a/x/2b, a/y/3c",
            None,
        ),
        (
            {"state": "waiting", "reason": "killed by SIGKILL", "pid": 0, "restarts": 2},
            "Envoy WAITING: killed by SIGKILL, restarted 2 times",
            "node-1: the waypoint is waiting: killed by SIGKILL",
        ),
        ({"state": "starting", "pid": 8}, "Envoy STARTING (pid 8), restarted 0 times",
         "node-1: the waypoint is starting: Envoy is on its way"),
    ],
)  # fmt: skip
def test_the_waypoint(told: dict[str, Any], line: str | None, problem: str | None) -> None:
    found = judge(facts(agent_changes={"waypoint": told}))
    assert dict(records.lines(found)).get("  waypoint") == line
    assert found["problems"] == ([problem] if problem else [])
    assert found["nodes"][0]["waypoint"] == told
