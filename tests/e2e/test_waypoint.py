"""An agent with a waypoint: Envoy's routes come from the control plane, its lives are the agent's to look after."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent.abi.records import Config
from nodeagent.bpf.kernel import LinuxKernel
from tests.e2e.test_agent import ROOT, Node, node, until

__all__ = ["node"]  # the fixture

pytestmark = [pytest.mark.needs("root", "bpf", "core", "netns", "cgroup2", "envoy"), pytest.mark.timeout(120)]

HOME, PORT = "10.244.7.254", 15082
#: Answered by rule alone, so that no endpoint is needed.
TEAPOT = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: store, namespace: shop}
spec: {hosts: [store], http: [{directResponse: {status: 418, body: {string: short}}}]}
"""
_HTTP = "type.googleapis.com/envoy.extensions.filters"


def bootstrap() -> dict[str, Any]:
    """A listener at the home address, whose routes are those that the control plane has for port 80."""
    ads = {"ads": {}, "resource_api_version": "V3"}
    manager = {
        "@type": f"{_HTTP}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "home",
        "rds": {"route_config_name": "80", "config_source": ads},
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{_HTTP}.http.router.v3.Router"}}],
    }
    listener = {
        "name": "home",
        "address": {"socket_address": {"address": HOME, "port_value": PORT}},
        "socket_options": [{"level": 6, "name": 2, "int_value": 1360, "state": "STATE_PREBIND"}],
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return {"static_resources": {"listeners": [listener]}}


def ask(node: Node) -> tuple[int, str]:
    """The status that the workload gets for a path that is not for the kernel to judge, and who answered."""
    order = node.tmp / "order.json"
    text = "GET /a%20b HTTP/1.1\r\nHost: store\r\n\r\n"
    order.write_text(json.dumps({"host": "10.96.7.1", "port": 80, "requests": [{"send": text}]}))
    script = f'echo $$ > {node.cgroup}/cgroup.procs; exec nsenter --net=/run/netns/{node.name} "$@"'
    client = str(ROOT / "tests/support/keepalive_client.py")
    command = ["sh", "-c", script, "sh", sys.executable, client, str(order)]
    (answer,) = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=30).stdout)
    reason = answer.get("headers", {}).get("x-underpass-reason")
    return answer.get("status", 0), reason or answer.get("headers", {}).get("server", str(answer.get("error")))


def lives(pid: int) -> bool:
    """Whether it is a process still; an orphan may wait for whoever adopted it to hear of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def home_kind(node: Node) -> int:
    config = LinuxKernel().pinned_map(node.bpffs / "maps" / "config")
    try:
        return Config.unpack(config.lookup(bytes(4)) or b"").home_kind
    finally:
        config.close()


def test_the_life_of_a_waypoint(node: Node) -> None:
    subprocess.run(["ip", "addr", "add", f"{HOME}/24", "dev", f"ua{os.getpid()}"[:15]], check=True)
    node.write("route.yaml", TEAPOT)
    node.control_plane()
    config = node.tmp / "envoy.yaml"
    config.write_text(yaml.safe_dump(bootstrap()))
    common = ["--node", node.name, "--run-dir", str(node.run)]
    arguments = [*common, "--xds", node.xds, "--waypoint", "auto", "--envoy-config", str(config)]
    arguments += ["--envoy-namespace", "shop"]
    agent = node.start("nodeagent.app", *arguments)

    def state() -> str:
        return str(node.status().get("waypoint", {}).get("state"))

    def pid() -> int:
        return int(node.status()["waypoint"]["pid"])

    # without a home that stands by nothing is started
    listen = ["--listen", f"{HOME}:{PORT}"]
    home = node.start("nodeagent.home.app", *common, *listen)
    until(lambda: "--standby" in node.status().get("waypoint", {}).get("reason", ""), "it says what it waits for")
    assert state() == "waiting"
    until(node.enrolled, "the workload is enrolled")
    assert ask(node) == (501, "path-not-normal")
    assert node.stop(home) == 0
    node.start("nodeagent.home.app", *common, *listen, "--standby")

    until(lambda: state() == "ready", "Envoy is ready")
    assert home_kind(node) == 1
    assert ask(node) == (418, "envoy")

    # killed, it is started again
    first = pid()
    os.kill(first, signal.SIGKILL)
    until(lambda: state() == "ready" and pid() != first, "Envoy is back", 2)
    assert ask(node) == (418, "envoy")
    assert node.status()["waypoint"]["restarts"] == 1

    # an agent that is killed leaves it serving; the next one replaces it
    second = pid()
    node.stop(agent, signal.SIGKILL)
    assert ask(node) == (418, "envoy")
    agent = node.start("nodeagent.app", *arguments)
    until(lambda: state() == "ready" and pid() != second, "Envoy is the new agent's")
    assert not lives(second)
    assert ask(node) == (418, "envoy")

    # with the agent's end comes its own, and home answers
    third = pid()
    assert node.stop(agent) == 0
    assert not lives(third)
    assert home_kind(node) == 0
    assert ask(node) == (501, "path-not-normal")

    # one that was left behind is not wanted by an agent that is told nothing of waypoints
    agent = node.start("nodeagent.app", *arguments)
    until(lambda: state() == "ready" and pid() != third, "Envoy is back")
    fourth = pid()
    node.stop(agent, signal.SIGKILL)
    node.start("nodeagent.app", *common, "--xds", node.xds)
    until(lambda: not lives(fourth), "it is ended")
    until(lambda: state() == "off" and home_kind(node) == 0, "home is the home peer")
    assert ask(node) == (501, "path-not-normal")
