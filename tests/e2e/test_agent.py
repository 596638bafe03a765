"""The agent's process on a real kernel, fed by the real control plane: synchronise, edit, restart, clean up."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nodeagent import telemetry
from nodeagent.abi.numbers import ActionKind
from nodeagent.abi.records import Vhost, VhostKey
from nodeagent.admin import explain
from nodeagent.bpf import features
from nodeagent.bpf.kernel import LinuxKernel
from nodeagent.reconcile import MAPS, Reconciler

ROOT = Path(__file__).parents[2]
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: store, namespace: shop}
spec: {clusterIP: 10.96.7.1, selector: {app: store}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.96.7.2, selector: {app: db}, ports: [{name: tcp, port: 5432}]}
"""
PODS = "".join(
    f"""---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{app: {app}, version: {version}}}}}
spec: {{serviceAccountName: default, nodeName: n, containers: [{{name: c, image: i}}]}}
status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: "True"}}]}}
"""
    for name, app, version, ip in (
        ("store-1", "store", "v1", "10.244.7.1"),
        ("store-2", "store", "v2", "10.244.7.2"),
        ("db-1", "db", "v1", "10.244.7.3"),
        ("client-1", "client", "v1", "10.244.7.9"),
    )
)
RULE = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: store, namespace: shop}
spec: {host: store, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
"""


def virtual_service(weight: int) -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: store, namespace: shop}}
spec:
  hosts: [store]
  http:
  - route:
    - {{destination: {{host: store, subset: v1}}, weight: {100 - weight}}}
    - {{destination: {{host: store, subset: v2}}, weight: {weight}}}
"""


HEADER_RULE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: store, namespace: shop}
spec:
  hosts: [store]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: store, subset: v2}}]
  - route: [{destination: {host: store, subset: v1}}]
"""


def until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.02)


@dataclass
class Node:
    """A control plane, a node's directories, one workload's namespace and cgroup, and agents to start and stop."""

    tmp: Path
    name: str = field(default_factory=lambda: f"upat{os.getpid()}")
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    xds: str = ""

    @property
    def config(self) -> Path:
        return self.tmp / "config"

    @property
    def run(self) -> Path:
        return self.tmp / "run"

    @property
    def bpffs(self) -> Path:
        return features.bpffs() / "underpass" / self.name

    @property
    def cgroup(self) -> Path:
        return features.cgroup2() / "underpass" / self.name / "shop.client"

    def status(self) -> Any:
        try:
            return json.loads((self.run / "status.json").read_text())
        except (OSError, ValueError):
            return {}

    def write(self, name: str, text: str) -> None:
        beside = self.config / f".{name}"
        beside.write_text(text)
        beside.replace(self.config / name)

    def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.tmp / f"{module}.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        self.processes.append(process)
        return process

    def control_plane(self) -> subprocess.Popen[bytes]:
        addresses = self.tmp / "addresses.json"
        addresses.unlink(missing_ok=True)
        listen = self.xds or "127.0.0.1:0"
        process = self.start(
            "controlplane.app", "--config", str(self.config), "--listen", listen, "--http", "127.0.0.1:0",
            "--addresses-file", str(addresses),
        )  # fmt: skip
        until(addresses.exists, "the control plane serves")
        found = json.loads(addresses.read_text())
        first = found["xds"]
        self.xds = first if isinstance(first, str) else first[0]
        return process

    def agent(self, *more: str) -> subprocess.Popen[bytes]:
        return self.start(
            "nodeagent.app", "--node", self.name, "--xds", self.xds, "--run-dir", str(self.run),
            "--home", "10.244.7.254:15001", *more,
        )  # fmt: skip

    def stop(self, process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
        process.send_signal(number)
        return process.wait(15)

    def cleanup(self) -> int:
        command = [sys.executable, "-m", "nodeagent.app", "--node", self.name, "--run-dir", str(self.run), "--cleanup"]
        return subprocess.run(command, cwd=ROOT, check=False).returncode

    def observed(self) -> Any:
        kernel = LinuxKernel()
        maps = {name: kernel.pinned_map(self.bpffs / "maps" / name) for name in MAPS}
        found = Reconciler(kernel, maps).observe()
        for target in maps.values():
            target.close()
        return found

    def log(self, module: str) -> str:
        return (self.tmp / f"{module}.log").read_text()

    def enrolled(self) -> bool:
        return any(w["state"] == "enrolled" for w in self.status().get("workloads", []))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    node.config.mkdir()
    (node.run / "workloads").mkdir(parents=True)
    node.write("base.yaml", SERVICE + PODS)
    node.write("rule.yaml", RULE)
    node.write("route.yaml", virtual_service(10))
    host = f"ua{os.getpid()}"[:15]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    ip("netns", "add", node.name)
    try:
        ip("link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", node.name)
        ip("-n", node.name, "addr", "add", "10.244.7.9/24", "dev", "eth0")
        ip("-n", node.name, "link", "set", "eth0", "up")
        ip("link", "set", host, "up")
        node.cgroup.mkdir(parents=True)
        entry = {
            "name": "client-1", "owner": "client", "namespace": "shop", "service_account": "default",
            "labels": {"app": "client", "version": "v1"}, "ips": ["10.244.7.9"], "netns": f"/run/netns/{node.name}",
            "cgroup": str(node.cgroup), "interface": "eth0", "host_interface": host, "node": node.name, "ports": [],
            "cluster": "Kubernetes", "trust_domain": "cluster.local",
        }  # fmt: skip
        (node.run / "workloads" / "shop.client-1.json").write_text(json.dumps(entry))
        yield node
    finally:
        for process in node.processes:
            if process.poll() is None:
                node.stop(process, signal.SIGKILL)
        node.cleanup()
        subprocess.run(["ip", "netns", "delete", node.name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", host], check=False, capture_output=True)
        for path in (node.cgroup, node.cgroup.parent / "home", node.cgroup.parent):
            if path.is_dir():
                path.rmdir()
        with contextlib.suppress(OSError):
            node.cgroup.parent.parent.rmdir()
        shutil.rmtree(node.run, ignore_errors=True)


def _decides(node: Node, user: str) -> str:
    found = explain.request(node.bpffs, "shop/client-1", "GET", "http://store/x", [("end-user", user)])
    assert found.outcome == "kernel", found
    return found.candidates[0].address


def test_the_life_of_an_agent(node: Node) -> None:
    node.control_plane()
    agent = node.agent()
    until(node.enrolled, "the workload is enrolled")
    status = node.status()
    assert status["xds"]["connected"]
    assert status["views"][0]["types"]["CDS"]["refused"] == {}
    assert status["apply"]["error"] == ""

    # what the maps hold is what the rules say
    found = explain.request(node.bpffs, "client-1", "GET", "http://10.96.7.1/", [("Host", "store")])
    assert found.outcome == "kernel"
    assert {c.address for c in found.candidates} == {"10.244.7.1", "10.244.7.2"}
    assert [weight for _, weight in found.clusters] == [90, 10]
    assert found.route is not None
    assert found.route.source is not None
    assert (found.route.source.kind, found.route.source.name, found.route.source.file) == (
        "VirtualService", "store", "route.yaml",
    )  # fmt: skip
    assert explain.request(node.bpffs, "client-1", "GET", "tcp://10.96.7.2:5432/").outcome == "tcp"
    assert explain.request(node.bpffs, "client-1", "GET", "http://10.1.1.1/").outcome == "untouched"
    routes = {(r.host, r.source.name if r.source else "") for r in telemetry.read_routes(node.bpffs)}
    assert ("store.shop.svc.cluster.local:80", "store") in routes

    # an edit is in the kernel soon
    _edits_are_quick(node)
    node.write("route.yaml", HEADER_RULE)
    until(lambda: _decides(node, "jason") == "10.244.7.2", "jason gets v2")
    assert _decides(node, "anna") == "10.244.7.1"

    # a killed agent leaves everything; the next one changes nothing
    before = node.observed()
    node.stop(agent, signal.SIGKILL)
    assert node.observed() == before
    (node.run / "status.json").unlink()
    agent = node.agent()
    until(lambda: node.status().get("views", [{}])[0].get("ready") if node.status().get("views") else False, "ready")
    until(node.enrolled, "the workload is enrolled again")
    time.sleep(0.3)
    assert node.status()["apply"]["count"] == 0, node.log("nodeagent.app")
    assert node.observed() == before

    # a second agent of the node is refused
    second = node.agent()
    assert second.wait(15) == 2
    assert "another agent of this node is running" in node.log("nodeagent.app")

    # somebody else's change is found and undone
    kernel = LinuxKernel()
    vhosts = kernel.pinned_map(node.bpffs / "maps" / "vhosts")
    key = next(iter(vhosts.keys()))
    value = vhosts.lookup(key)
    vhosts.delete(key)
    node.write("route.yaml", HEADER_RULE + "\n")

    # SIGTERM is an orderly end; pins stay
    assert node.stop(agent) == 0
    assert (node.bpffs / "maps" / "vhosts").exists()
    agent = node.agent()
    until(lambda: vhosts.lookup(key) == value, "the missing entry is written again")
    vhosts.close()

    # the workload goes: everything of it does
    (node.run / "workloads" / "shop.client-1.json").unlink()
    until(lambda: not node.observed().entries["services"], "its services are removed")
    assert node.observed().entries["workloads"] == {}
    assert node.observed().programs == {}
    node.stop(agent)
    assert node.cleanup() == 0
    assert not node.bpffs.exists()
    assert "Traceback" not in node.log("nodeagent.app")


def _edits_are_quick(node: Node) -> None:
    kernel = LinuxKernel()
    vhosts, tables = (kernel.pinned_map(node.bpffs / "maps" / name) for name in ("vhosts", "tables"))
    table = next(int.from_bytes(k, "little") for k, v in tables.items() if v.count(0) != len(v))
    numbers = [int.from_bytes(k, "little") for k, v in tables.items() if v.count(0) != len(v)]
    key = next(k for k in (VhostKey(t, b"store").pack() for t in numbers) if vhosts.lookup(k) is not None)
    assert table in numbers
    took = []
    for weight in (20, 30, 40, 50, 60):
        node.write("route.yaml", virtual_service(weight))
        begun = time.perf_counter()

        def there(wanted: int = 100 - weight) -> bool:
            value = vhosts.lookup(key)
            assert value is not None
            action = Vhost.unpack(value).direct
            assert action.kind == ActionKind.CLUSTERS
            return action.to[0].upto == wanted

        while not there():
            assert time.perf_counter() - begun < 5
            time.sleep(0.001)
        took.append(time.perf_counter() - begun)
        time.sleep(0.3)
    assert statistics.median(took) < 0.1, took


def test_without_a_control_plane_what_was_stays_in_force(node: Node) -> None:
    control = node.control_plane()
    agent = node.agent()
    until(node.enrolled, "the workload is enrolled")
    before = node.observed()
    node.stop(control)
    node.stop(agent)
    agent = node.agent()
    until(node.enrolled, "the workload is enrolled from what the maps know")
    time.sleep(1.0)
    assert node.observed() == before
    assert not node.status()["xds"]["connected"]
    node.write("route.yaml", virtual_service(77))
    node.control_plane()
    until(lambda: node.status()["xds"]["connected"], "the agent finds the control plane again")
    until(lambda: node.observed() != before, "the edit that was made meanwhile comes")
    assert "Traceback" not in node.log("nodeagent.app")


def test_a_namespace_that_comes_late_is_waited_for(node: Node) -> None:
    node.control_plane()
    entry = json.loads((node.run / "workloads" / "shop.client-1.json").read_text())
    entry["interface"] = "late0"
    (node.run / "workloads" / "shop.client-1.json").write_text(json.dumps(entry))
    node.agent()
    until(lambda: any("late0" in w["reason"] for w in node.status().get("workloads", [])), "the reason is told")
    subprocess.run(["ip", "-n", node.name, "link", "set", "eth0", "down"], check=True)
    subprocess.run(["ip", "-n", node.name, "link", "set", "eth0", "name", "late0"], check=True)
    until(node.enrolled, "the workload is enrolled once its interface is there")
