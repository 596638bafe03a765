"""The command line against a running lab: what it says is what traffic did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent.node.programs import SLOTS
from tests.support.tiers import repository
from underpass.lab.state import load
from underpass.lab.teardown import leftovers

NAME = f"c{os.getpid()}"
NODE = f"{NAME}-node-1"
SHOP = repository() / "samples" / "shop"
FILES = [str(SHOP / name) for name in ("shop.yaml", "destination-rules.yaml", "catalog-testers-v2.yaml")]
COUNTED = 40


def run(*arguments: str, code: int = 0, user: int | None = None) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "underpass.cli.app", *arguments],
        capture_output=True, text=True, timeout=90, cwd=repository(), check=False, user=user,
        env={**os.environ, "UNDERPASS_LAB": NAME},
    )  # fmt: skip
    assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def ask(*arguments: str, code: int = 0) -> dict[str, Any]:
    found = json.loads(run(*arguments, "-o", "json", code=code)[0])
    assert isinstance(found, dict)
    return found


def in_web(script: str) -> str:
    return run("lab", "exec", "web", "--", "sh", "-c", script)[0]


@pytest.fixture(scope="module", autouse=True)
def _lab() -> Iterator[None]:
    assert leftovers(NAME) == []
    run("lab", "up", *FILES)
    yield
    run("lab", "down")
    assert leftovers(NAME) == []


def routes() -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["host"].partition(".")[0], row["route"]): row for row in ask("routes")["routes"]}


def test_routes_count_what_was_sent() -> None:
    before = routes()["catalog", "split"]
    curl = "curl -s -o /dev/null -m 5 'http://catalog/?call='"
    in_web(f"for i in $(seq {COUNTED}); do {curl}; done")
    in_web("sleep 1.5")  # home writes its counters once a second
    after = routes()["catalog", "split"]
    assert sum(after[who] - before[who] for who in ("kernel", "home", "waypoint")) == COUNTED
    assert after["kernel"] - before["kernel"] > COUNTED / 2
    assert after["source"] | {"line": 0} == {
        "kind": "VirtualService", "namespace": "shop", "name": "catalog", "rule": 1, "file": "catalog-testers-v2.yaml",
        "line": 0,
    }  # fmt: skip
    lines = (SHOP / "catalog-testers-v2.yaml").read_text().splitlines()
    assert lines[after["source"]["line"] - 1].strip() == "- name: split"
    assert set(after) == {"host", "route", "cluster", "kernel", "home", "waypoint", "punts", "source"}
    in_web("curl -s -o /dev/null -m 5 -H 'Upgrade: x' http://catalog/")
    assert routes()["", "unrouted"]["punts"]["upgrade"] >= 1
    table = run("routes")[0]
    assert "VirtualService/shop/catalog#1 catalog-testers-v2.yaml:" in table
    assert "\x1b" not in table


def test_explanations_are_what_happens() -> None:
    for header, expected in (("end-user: tester", {"catalog-v2"}), ("x: y", {"catalog-v1", "catalog-v2"})):
        found = ask("explain", "request", "--from", "shop/web", "GET", "http://catalog/?call=", "-H", header)
        assert found["decision"] == "kernel"
        assert {endpoint["workload"] for endpoint in found["endpoints"]} == expected
        answers = in_web(f"for i in 1 2 3; do curl -s -m 5 -H '{header}' 'http://catalog/?call='; echo; done")
        assert {json.loads(line)["workload"] for line in answers.splitlines() if line} <= expected
    drawn = Counter(
        ask("explain", "request", "--from", "web", "GET", "http://catalog/")["endpoint"]["workload"] for _ in range(8)
    )
    assert set(drawn) <= {"catalog-v1", "catalog-v2"}
    refused = ask("explain", "request", "--from", "web", "GET", "http://catalog/a%2e/..")
    status = in_web("curl -s --path-as-is -o /dev/null -m 5 -w '%{http_code}' http://catalog/a%2e/..")
    assert refused["status"] == int(status)
    assert "because of   VirtualService/shop/catalog#0" in run(
        "explain", "request", "--from", "web", "GET", "http://catalog/", "-H", "end-user: tester"
    )[0]  # fmt: skip


def test_status_of_a_healthy_mesh() -> None:
    found = ask("status")
    assert found["healthy"]
    assert found["problems"] == []
    (node,) = found["nodes"]
    assert node["name"] == NODE
    assert {view["state"] for view in node["views"]} == {"SYNCED"}
    assert len(node["workloads"]) == 7
    assert {(item["state"], item["attachments"]) for item in node["workloads"]} == {("enrolled", len(SLOTS))}
    assert node["counters"]["heads"] == node["counters"]["kernel"] + node["counters"]["home"]
    assert found["control_plane"]["objects"]["rejected"] == 0
    assert "all is well" in run("status")[0]


def test_a_rejected_object_is_a_problem_until_it_is_mended(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text((SHOP / "catalog-all-v2.yaml").read_text().replace("name: catalog", "name: bad", 1).replace(
        "subset: v2", "subset: v2\n      weight: many"
    ))  # fmt: skip
    run("lab", "apply", "-f", str(bad), code=1)
    found = ask("status", code=1)
    assert any("VirtualService shop/bad rejected" in text for text in found["problems"])
    out = run("config", "status", "--problems", code=1)[0]
    assert "rejected" in out
    assert "bad.yaml:" in out
    items = ask("config", "status", "-k", "VirtualService", code=1)["items"]
    assert {item["name"]: item["state"] for item in items} == {"catalog": "accepted", "bad": "rejected"}
    assert run("analyze", str(bad), code=1)[0].count("error ") == 1
    bad.write_text("# nothing\n")
    run("lab", "apply", "-f", str(bad))
    assert ask("status")["healthy"]


def test_bpf_objects() -> None:
    programs = {item["name"]: item for item in ask("bpf", "prog", "list")["items"]}
    assert {slot.program for slot in SLOTS} <= set(programs)
    assert programs["up_egress"]["links"] == 7
    links = ask("bpf", "link")["items"]
    assert len(links) == 7 * len(SLOTS) + 1
    assert all(link["attached"] for link in links)
    stats = subprocess.Popen(
        [sys.executable, "-m", "underpass.cli.app", "bpf", "prog", "stats", "-s", "3", "-o", "json"],
        stdout=subprocess.PIPE, text=True, cwd=repository(), env={**os.environ, "UNDERPASS_LAB": NAME},
    )  # fmt: skip
    in_web("for i in $(seq 20); do curl -s -o /dev/null 'http://catalog/?call='; sleep 0.1; done")
    out, _ = stats.communicate(timeout=30)
    egress = next(item for item in json.loads(out)["items"] if item["name"] == "up_egress")
    assert egress["runs"] >= 20
    assert egress["mean_ns"] > 0
    pressure = {item["map"]: item for item in ask("bpf", "map", "pressure")["items"]}
    assert pressure["workloads"]["used"] == 7
    dump = run("bpf", "map", "dump", "clusters")[0]
    assert "cluster=outbound|80|v2|catalog.shop.svc.cluster.local" in dump
    kinds = {entry["kind"] for entry in ask("bpf", "map", "dump", "conns")["entries"]}
    assert "upstream" in kinds
    every = [item["name"] for item in ask("bpf", "map", "list")["items"]]
    for name in every:
        if name not in ("sockets", "accepted", "events"):
            run("bpf", "map", "dump", name, "--limit", "3")
    run("bpf", "map", "dump", "events", code=2)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("explain", "request", "--from", "wep", "GET", "http://catalog/"), 2, "did you mean web?"),
        (("explain", "request", "--from", "web", "GET", "https://catalog/"), 2, "only plaintext HTTP/1.1"),
        (("explain", "request", "--from", "web", "GET", "http://catalog/", "-H", "x"), 2, "it is not NAME:VALUE"),
        (("routes", "--node", "nowhere"), 3, f"the nodes are {NODE}"),
        (("routes", "--lab", "nowhere"), 3, "no lab 'nowhere' is up"),
        (("status", "--control-plane", "127.0.0.1"), 2, "it is not HOST:PORT"),
        (("config", "status", "--control-plane", "127.0.0.1:1"), 3, "Connection refused"),
        (("bpf", "map", "dump", "nonsense"), 2, "maps that can be dumped: cgroup_workload"),
        (("analyze", "/nowhere.yaml"), 2, "cannot read /nowhere.yaml"),
        (("lab", "status", "--name", "nowhere"), 3, "no lab is up"),
    ],
)
def test_mistakes_are_told(arguments: tuple[str, ...], code: int, said: str) -> None:
    assert said in run(*arguments, code=code)[1]


def test_a_part_that_cannot_be_reached_is_partial() -> None:
    found = ask("status", "--control-plane", "127.0.0.1:1", code=4)
    assert not found["control_plane"]["reachable"]
    assert found["nodes"][0]["agent"]["running"]
    state = load(NAME)
    assert state is not None
    assert ask("version", "--control-plane", state.http)["control_plane"]["version"]


DENY = """apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: shop}
spec: {selector: {matchLabels: {app: ratings}}, action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}
"""


def test_a_policy_that_nobody_enforces_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "deny.yaml").write_text(DENY)
    run("lab", "apply", "-f", str(tmp_path / "deny.yaml"))
    told = [text for text in ask("status", code=1)["problems"] if "NOT ENFORCED" in text]
    assert len(told) == 1
    assert "workload shop/ratings-0: AuthorizationPolicy shop/deny at" in told[0]
    assert "not-enforced" in json.dumps(ask("config", "status", "--kind", "AuthorizationPolicy"))
