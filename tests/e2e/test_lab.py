"""The lab against this machine: namespaces, cgroups and processes come, do what they should, and go. No mesh yet."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiers import cgroup2_mount, repository, shared
from underpass.lab.addresses import host_interface_name
from underpass.lab.host import BPFFS, NETNS_DIR
from underpass.lab.processes import start_time
from underpass.lab.state import RUN, Paths

NAME = f"t{os.getpid()}"
SHOP = repository() / "samples" / "shop"

TWO = """
apiVersion: v1
kind: Service
metadata: {name: one}
spec: {selector: {app: one}, ports: [{port: 8080, name: http}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: one}
spec:
  replicas: 1
  selector: {matchLabels: {app: one}}
  template:
    metadata: {labels: {app: one, version: v1}}
    spec: {containers: [{name: c, image: img/one}]}
---
apiVersion: v1
kind: Pod
metadata: {name: two, namespace: other, labels: {app: two}}
spec: {serviceAccountName: deputy, containers: [{name: c, image: img/two, ports: [{containerPort: 9000}]}]}
"""


def command(*arguments: str) -> list[str]:
    verb, *rest = arguments
    return [sys.executable, "-m", "underpass.lab", verb, "--name", NAME, *rest]


def lab(*arguments: str, stdin: str | None = None, code: int = 0) -> str:
    done = subprocess.run(
        command(*arguments), input=stdin, capture_output=True, text=True, timeout=60, cwd=repository(), check=False
    )
    assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout if code == 0 else done.stderr


def traces() -> dict[str, list[str]]:
    """What of a lab of ours is on this machine. Only names with our prefix: other tests run at the same time."""
    cgroups = (cgroup2_mount() or Path("/")) / "underpass"
    mine = f"{NAME}-node-"
    listing = {
        "netns": [p.name for p in NETNS_DIR.glob(f"underpass.{NAME}*")],
        "links": [p.name for p in Path("/sys/class/net").iterdir() if p.name == host_interface_name(NAME)],
        "cgroups": [p.name for p in cgroups.glob("*") if p.name.startswith((mine, f"lab-{NAME}"))],
        "pins": [p.name for p in (BPFFS / "underpass").glob(f"{mine}*")],
        "run": [p.name for p in RUN.glob("*") if p.name.startswith(mine) or p.name == f"lab-{NAME}.json"],
        "directory": [p.name for p in (RUN / "labs").glob(NAME)],
        "processes": [],
    }
    for pid in (p.name for p in Path("/proc").iterdir() if p.name.isdigit()):
        try:
            membership = Path(f"/proc/{pid}/cgroup").read_text()
        except OSError:
            continue
        # one that ended and waits for init to take note of it has no more start time here
        if (mine in membership or f"lab-{NAME}" in membership) and start_time(int(pid)) is not None:
            listing["processes"].append(pid)
    return {key: value for key, value in listing.items() if value}


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    before = traces()
    assert before == {}
    others = machine()
    yield
    subprocess.run(command("down"), capture_output=True, timeout=60, cwd=repository(), check=False)
    assert traces() == {}
    assert machine() >= others - {"10.96.0.0"}


def machine() -> set[str]:
    """Interfaces and routes that are nobody's test's: they must outlive every lab."""
    out = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    return {line.split(": ")[1] for line in out.splitlines() if line.split(": ")[1].startswith(("lo", "eth"))}


@pytest.fixture(name="two")
def _two(tmp_path: Path) -> Path:
    path = tmp_path / "two.yaml"
    path.write_text(TWO)
    return path


def get(workload: str, url: str, *extra: str) -> dict[str, Any]:
    answer = json.loads(lab("exec", workload, "--", "curl", "-gsS", "-m", "10", *extra, url))
    assert isinstance(answer, dict)
    return answer


def status() -> dict[str, Any]:
    found = json.loads(lab("status", "-o", "json"))
    assert isinstance(found, dict)
    return found


@pytest.mark.needs("shared")
def test_bookinfo_unedited() -> None:
    lab("up", "--no-mesh", str(shared() / "istio/bookinfo/platform/bookinfo.yaml"))
    answer = get("productpage-v1", "http://ratings:9080/x?bytes=2000")
    assert answer["workload"] == "ratings-v1"
    assert answer["service_account"] == "bookinfo-ratings"
    assert answer["version"] == "v1"
    found = status()
    assert found["healthy"]
    assert {w["workload"] for w in found["workloads"]} == {
        "details-v1",
        "ratings-v1",
        "reviews-v1",
        "reviews-v2",
        "reviews-v3",
        "productpage-v1",
    }


def test_a_command_runs_as_if_inside_the_workload(two: Path) -> None:
    lab("up", "--no-mesh", str(two))
    one = status()["workloads"][0]
    assert lab("exec", "one", "--", "cat", "/proc/self/cgroup").strip().endswith(f"/{NAME}-node-1/default.one-0")
    addresses = lab("exec", "default/one", "--", "ip", "-4", "-o", "address", "show", "dev", "eth0")
    assert one["ips"][0] in addresses
    assert lab("exec", "one", "--", "sh", "-c", 'echo "$UNDERPASS_WORKLOAD $UNDERPASS_PORTS"') == "one 8080\n"
    assert lab("exec", "two", "--", "sh", "-c", 'echo "$1 $2"', "sh", "--name", "-x").strip() == "--name -x"
    assert lab("exec", "two", "--", "cat", stdin="over there") == "over there"
    lab("exec", "two", "--", "sh", "-c", "exit 7", code=7)
    lab("exec", "two", "--", "no-such-program", code=127)
    assert "there is no" not in lab("exec", "one", "--", "ls", "/sys/fs/bpf")
    assert get("two", "http://one.default:8080/")["workload"] == "one"
    assert get("one", "http://[::1]:8080/")["workload"] == "one"
    assert get("other/two", "http://127.0.0.1:9000/")["service_account"] == "deputy"
    assert "no workload is called 'three'" in lab("exec", "three", "--", "true", code=2)
    assert Path("/etc/hosts").read_text().count("one.default") == 0


def test_the_machine_reaches_every_workload(two: Path) -> None:
    lab("up", "--no-mesh", "--nodes", "2", "--dual-stack", str(two))
    for workload in status()["workloads"]:
        for ip in workload["ips"]:
            host = f"[{ip}]" if ":" in ip else ip
            url = f"http://{host}:{workload['ports'][0]}/"
            done = subprocess.run(["curl", "-gsS", "-m", "5", url], capture_output=True, text=True, check=True)
            assert json.loads(done.stdout)["workload"] == workload["workload"]


def test_a_bad_link_loses_doubles_and_reorders_and_tcp_gets_through(two: Path) -> None:
    link = ("--loss", "2", "--dup", "2", "--late", "5")
    lab("up", "--no-mesh", "--nodes", "2", *link, "--place", "one=node-1", "--place", "two=node-2", str(two))
    one, two_ = status()["workloads"]
    assert (one["node"], two_["node"]) == (f"{NAME}-node-1", f"{NAME}-node-2")
    body = os.urandom(3_000_000)
    raw = subprocess.run(
        command(
            "exec", "one", "--", "curl", "-sS", "-m", "30", "--data-binary", "@-", f"http://{two_['ips'][0]}:9000/"
        ),
        input=body,
        capture_output=True,
        timeout=60,
        cwd=repository(),
        check=True,
    ).stdout
    assert json.loads(raw)["body_sha256"] == hashlib.sha256(body).hexdigest()
    (forwarder,) = [p for p in status()["programs"] if p["role"].startswith("link")]
    os.kill(forwarder["pid"], signal.SIGUSR1)
    deadline = time.monotonic() + 5
    while "frames" not in (text := Path(forwarder["log"]).read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    words = text.splitlines()[-1].split()
    counters = {name: int(value) for name, value in zip(words[::2], words[1::2], strict=True)}
    assert counters["lost"] > 10
    assert counters["doubled"] > 10
    assert counters["late"] > 20
    assert counters["refused"] == 0


def test_a_lab_that_is_up_is_not_brought_up_again(two: Path) -> None:
    lab("up", "--no-mesh", str(two))
    pids = [w["pids"] for w in status()["workloads"]]
    error = lab("up", "--no-mesh", str(two), code=1)
    assert "a lab is up already" in error
    assert f"underpass lab down --name {NAME}" in error
    assert [w["pids"] for w in status()["workloads"]] == pids


def test_down_without_a_lab_says_so() -> None:
    assert "no lab is up" in lab("down", code=3)
    assert "no lab is up" in lab("status", code=3)
    assert "no lab is up" in lab("exec", "one", "--", "true", code=3)


def test_down_ends_what_exec_started_and_ignores_signals(two: Path) -> None:
    lab("up", "--no-mesh", str(two))
    stubborn = ["sh", "-c", "trap '' TERM INT HUP; sleep 1000 & exec sleep 1000"]
    with subprocess.Popen(command("exec", "one", "--", *stubborn), cwd=repository()) as child:
        time.sleep(1)
        lab("down")
        assert child.wait(5) == -signal.SIGKILL
    assert traces() == {}


def test_a_failure_half_way_leaves_nothing(two: Path, tmp_path: Path) -> None:
    images = tmp_path / "lab.yaml"
    images.write_text("images: {img/two: [sh, -c, 'echo broken on purpose; exit 3']}")
    error = lab("up", "--no-mesh", "--lab-file", str(images), str(two), code=1)
    assert "other/two c ended" in error
    assert "broken on purpose" in error
    assert traces() == {}
    images.write_text("images: {img/two: /no/such/program}")
    assert "/no/such/program" in lab("up", "--no-mesh", "--lab-file", str(images), str(two), code=1)
    assert traces() == {}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_half_way_leaves_nothing(two: Path, tmp_path: Path, number: int, code: int) -> None:
    images = tmp_path / "lab.yaml"
    images.write_text("images: {img/two: [sleep, '1000']}")  # never listens: `up` waits for its port
    argv = command("up", "--no-mesh", "--lab-file", str(images), str(two))
    with subprocess.Popen(argv, cwd=repository(), stderr=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + 20
        while not traces().get("processes"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)
        child.send_signal(number)
        assert child.wait(20) == code
        assert child.stderr is not None
        assert "everything was taken down again" in child.stderr.read()
    assert traces() == {}


def test_what_a_crash_left_is_found_by_its_names(two: Path) -> None:
    lab("up", "--no-mesh", "--nodes", "2", str(two))
    Paths(NAME).state.unlink()
    assert "was not taken down" in lab("up", "--no-mesh", str(two), code=1)
    lab("down")
    assert traces() == {}


def test_a_workload_that_ended_is_told(two: Path) -> None:
    lab("up", "--no-mesh", str(two))
    os.kill(status()["workloads"][0]["pids"][0], signal.SIGKILL)
    time.sleep(0.2)
    done = subprocess.run(
        command("status", "-o", "json"), capture_output=True, text=True, cwd=repository(), check=False
    )
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert [w["running"] for w in found["workloads"]] == [False, True]


def test_applying_adds_scales_and_moves_nothing_that_runs(two: Path, tmp_path: Path) -> None:
    lab("up", "--no-mesh", str(two))
    before = {w["pod"]: (w["ips"], w["pids"]) for w in status()["workloads"]}
    more = tmp_path / "more.yaml"
    more.write_text(TWO.replace("one", "three").partition("---\napiVersion: v1\nkind: Pod")[0])
    lab("apply", "-f", str(more))
    after = {w["pod"]: (w["ips"], w["pids"]) for w in status()["workloads"]}
    assert {pod: after[pod] for pod in before} == before
    assert get("two", "http://three.default:8080/")["workload"] == "three"
    assert "three.default" in lab("exec", "one", "--", "cat", "/etc/hosts")
    server = before["one-0"][1][0]
    seen = subprocess.run(["nsenter", "-t", str(server), "-m", "cat", "/etc/hosts"], capture_output=True, check=True)
    assert b"three.default" in seen.stdout  # the running process sees it, too
    lab("apply", "-f", "-", stdin=more.read_text().replace("replicas: 1", "replicas: 2"))
    assert {w["pod"] for w in status()["workloads"]} == {"one-0", "two", "three-0", "three-1"}
    lab("apply", "-f", "-", stdin=more.read_text().replace("replicas: 1", "replicas: 0"))
    assert {w["pod"]: (w["ips"], w["pids"]) for w in status()["workloads"]} == before
    assert len(list(NETNS_DIR.glob(f"underpass.{NAME}*"))) == 3
    assert not list(Paths(NAME).registry(f"{NAME}-node-1").glob("*three*"))


def test_bad_input_is_refused_before_anything_is_made(two: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("\n" + TWO.replace("replicas: 1", "replicas: lots"))
    error = lab("up", "--no-mesh", str(bad), code=2)
    assert f"{bad}:8: " in error
    assert "replicas" in error
    assert "cannot read" in lab("up", "--no-mesh", str(tmp_path / "none.yaml"), code=2)
    assert "there is no link" in lab("up", "--no-mesh", "--loss", "1", str(two), code=2)
    assert "percentage" in lab("up", "--no-mesh", "--nodes", "2", "--loss", "200", str(two), code=2)
    assert traces() == {}


def test_the_shop_comes_up_from_its_directory() -> None:
    lab("up", "--no-mesh", str(SHOP))
    answer = get("web", "http://127.0.0.1:8080/?call=")
    assert (answer["workload"], answer["namespace"], answer["version"]) == ("web", "shop", "v1")
