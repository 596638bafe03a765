"""The lab with the whole mesh: control plane, agents and homes on one node and on two."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiers import repository
from underpass.lab.host import BPFFS, cgroup_mount
from underpass.lab.processes import start_time
from underpass.lab.state import RUN
from underpass.lab.teardown import leftovers

NAME = f"m{os.getpid()}"
SHOP = repository() / "samples" / "shop"
FILES = [str(SHOP / "shop.yaml"), str(SHOP / "destination-rules.yaml")]


def lab(verb: str, *arguments: str, code: int = 0, stdin: str | None = None) -> str:
    argv = [sys.executable, "-m", "underpass.lab", verb, "--name", NAME, *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=90, cwd=repository(), check=False, input=stdin)
    assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + (done.stderr if code else "")


def get(workload: str, *curl: str) -> dict[str, Any]:
    answer = json.loads(lab("exec", workload, "--", "curl", "-gsS", "-m", "20", *curl))
    assert isinstance(answer, dict)
    return answer


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    assert leftovers(NAME) == []
    yield
    subprocess.run(
        [sys.executable, "-m", "underpass.lab", "down", "--name", NAME],
        capture_output=True,
        cwd=repository(),
        check=False,
    )
    assert leftovers(NAME) == []


def test_everything_goes_with_the_lab() -> None:
    lab("up", *FILES)
    found = json.loads(lab("status", "-o", "json"))
    pids = [program["pid"] for program in found["programs"]] + [pid for w in found["workloads"] for pid in w["pids"]]
    assert len(pids) == 3 + 7
    node = f"{NAME}-node-1"
    assert (BPFFS / "underpass" / node / "maps" / "conns").exists()
    assert (cgroup_mount() / "underpass" / node / "shop.web-0").is_dir()
    assert get("web", "http://catalog/?call=")["headers"][0] == ["Host", "catalog"]
    lab("down")
    assert not (BPFFS / "underpass" / node).exists()
    assert not (cgroup_mount() / "underpass" / node).exists()
    assert not (RUN / node).exists()
    assert [pid for pid in pids if start_time(pid) is not None] == []


def test_apply_tells_verdicts_and_keeps_what_is_good() -> None:
    lab("up", *FILES)
    out = lab("apply", "-f", str(SHOP / "catalog-all-v2.yaml"))
    assert "catalog-all-v2.yaml:2: VirtualService shop/catalog accepted" in out
    assert {get("web", "http://catalog/?call=")["version"] for _ in range(6)} == {"v2"}
    bad = (SHOP / "catalog-all-v2.yaml").read_text().replace("subset: v2", "subset: v1\n      weight: many")
    out = lab("apply", "-f", "-", stdin=bad, code=1)
    assert "VirtualService shop/catalog rejected" in out
    assert {get("web", "http://catalog/?call=")["version"] for _ in range(6)} == {"v2"}
    lab("apply", "-f", "-", stdin=bad.replace("weight: many", "weight: 100"))
    assert {get("web", "http://catalog/?call=")["version"] for _ in range(6)} == {"v1"}


def test_a_workload_that_is_added_is_served_at_once(tmp_path: Path) -> None:
    lab("up", *FILES)
    more = tmp_path / "more.yaml"
    more.write_text((SHOP / "shop.yaml").read_text().replace("ratings", "comments").replace("web", "front"))
    lab("apply", "-f", str(more))
    assert get("front", "http://comments/")["workload"] == "comments"
    assert get("web", "http://comments/")["workload"] == "comments"
    assert get("comments", "http://catalog/?call=")["workload"].startswith("catalog-")


@pytest.mark.parametrize("options", [["--dual-stack"], ["--loss", "1", "--dup", "0.5", "--late", "2"]])
def test_two_nodes(options: list[str]) -> None:
    place = [f"--place={name}=node-2" for name in ("catalog-v1", "price")]
    place += [f"--place={name}=node-1" for name in ("web", "catalog-v2", "cart")]
    lab("up", "--nodes", "2", *options, *place, *FILES)
    answer = get("web", "http://127.0.0.1:8080/")
    calls = {call["url"]: call for call in answer["calls"]}
    assert calls["http://cart/"]["answer"]["calls"][0]["answer"]["node"] == f"{NAME}-node-2"
    rng = random.Random(7)
    nodes = set()
    for _ in range(12):
        size, body = rng.randrange(200_000), os.urandom(rng.randrange(100_000)).hex()
        command = [
            "exec",
            "web",
            "--",
            "curl",
            "-gsS",
            "-m",
            "20",
            "--data-binary",
            "@-",
            f"http://catalog/?call=&bytes={size}",
        ]
        raw = lab(*command, stdin=body)
        assert len(raw) == size
        if size > 2000:
            found = json.loads(raw)
            nodes.add(found["node"])
            assert found["body_bytes"] == len(body)
    assert len(nodes) == 2
    if "--dual-stack" in options:
        assert get("web", "-6", "http://catalog/?call=")["workload"].startswith("catalog-")
        assert get("web", "-4", "http://catalog/?call=")["workload"].startswith("catalog-")


def test_a_port_that_nobody_serves_fails_at_once() -> None:
    lab("up", *FILES)
    lab("exec", "web", "--", "curl", "-sS", "-m", "3", "http://catalog:81/", code=7)


@pytest.mark.slow
def test_the_demo() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "underpass.lab", "demo"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=repository(),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything as it should be" in done.stdout
    assert "\x1b" not in done.stdout
    assert leftovers("demo") == []
