"""The process around the supervisor, with a script in Envoy's place: no root, no network."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nodeagent.errors import SettingsError
from nodeagent.settings import parse_arguments
from nodeagent.waypoint.bootstrap import XDS_CLUSTER, overlay
from nodeagent.waypoint.process import (
    Launch,
    Waypoint,
    admin_socket,
    birth,
    connected,
    end_predecessor,
    find_envoy,
    remember,
)
from nodeagent.waypoint.service import WaypointService, prepare
from nodeagent.waypoint.supervisor import Bounds

#: Answers at the admin socket as Envoy does, and writes down what it was asked.
ENVOY = f"""#!{sys.executable}
import json, os, socket, sys
part = json.loads(sys.argv[sys.argv.index("--config-yaml") + 1])
path = part["admin"]["address"]["pipe"]["path"]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
while True:
    sock, _ = listener.accept()
    line = sock.recv(4096).decode().split("\\r\\n")[0]
    with open(os.path.dirname(path) + "/asked", "a") as log:
        log.write(line + "\\n")
    body = "http.admin.downstream_cx_active: 1\\nhttp.home.downstream_cx_active: 0\\n" if "stats" in line else "LIVE\\n"
    sock.sendall(f"HTTP/1.1 200 OK\\r\\nContent-Length: {{len(body)}}\\r\\n\\r\\n{{body}}".encode())
    sock.close()
"""


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def launch(tmp: Path, binary: Path) -> Launch:
    part = overlay(xds=("cp", 15010), node_id="n", metadata={}, admin=str(admin_socket(tmp)))
    return Launch(binary, tmp, tmp / "envoy.yaml", part)


class Watched:
    """A waypoint, and the states that it told."""

    def __init__(self, made: Launch, bounds: Bounds) -> None:
        self.states: list[str] = []
        self._news = asyncio.Event()
        self.waypoint = Waypoint(made, self._changed, bounds)

    def _changed(self) -> None:
        self.states.append(str(self.waypoint.status()["state"]))
        self._news.set()

    async def until(self, *states: str) -> None:
        async with asyncio.timeout(20):
            while self.states[: len(states)] != list(states):
                await self._news.wait()
                self._news.clear()


def test_started_killed_started_again_drained(tmp_path: Path) -> None:
    async def life() -> Watched:
        watched = Watched(launch(tmp_path, script(tmp_path / "envoy", ENVOY)), Bounds())
        task = asyncio.create_task(watched.waypoint.run())
        await watched.until("starting", "ready")
        assert watched.waypoint.ready
        pid = watched.waypoint.status()["pid"]
        assert json.loads((tmp_path / "waypoint.json").read_text()) == {"pid": pid, "birth": birth(pid)}
        os.kill(pid, 9)
        await watched.until("starting", "ready", "waiting", "starting", "ready")
        assert watched.waypoint.status()["restarts"] == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return watched

    watched = asyncio.run(life())
    assert watched.states[5:] == ["draining", "stopping", "stopped"]
    asked = (tmp_path / "asked").read_text().splitlines()
    drain = asked.index("POST /healthcheck/fail HTTP/1.1")
    assert asked[drain + 1] == "POST /drain_listeners HTTP/1.1"
    assert asked[drain + 2].startswith("GET /stats?")
    assert not (tmp_path / "waypoint.json").exists()
    assert (tmp_path / "waypoint.log.1").exists()


@pytest.mark.parametrize("text", ["#!/bin/sh\necho wrong >&2\nexit 3\n", None])
def test_one_that_cannot_run_is_tried_again_and_says_why(tmp_path: Path, text: str | None) -> None:
    async def life() -> dict[str, Any]:
        binary = tmp_path / "envoy" if text is None else script(tmp_path / "envoy", text)
        watched = Watched(launch(tmp_path, binary), Bounds(first_delay=0.01, most_starts=2))
        task = asyncio.create_task(watched.waypoint.run())
        await watched.until(*(["waiting"] if text is None else ["starting", "waiting"] * 2))
        found = watched.waypoint.status()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return found

    found = asyncio.run(life())
    assert found["restarts"] == (0 if text is None else 1)
    assert ("not started: " if text is None else "ended with status 3") in found["reason"]
    assert text is None or (tmp_path / "waypoint.log").read_text() == "wrong\n"


def test_only_the_very_process_that_was_left_behind_is_ended(tmp_path: Path) -> None:
    note = tmp_path / "waypoint.json"
    with subprocess.Popen(["sleep", "60"]) as child:
        note.write_text(json.dumps({"pid": child.pid, "birth": birth(child.pid) - 1}))  # the number was given out again
        end_predecessor(note)
        assert child.poll() is None
        remember(note, child.pid)
        end_predecessor(note)
        assert child.wait(5) == -15
    for text in ("", "[]", '{"pid": "x", "birth": 1}', '{"pid": 4194304, "birth": 1}'):
        note.write_text(text)
        end_predecessor(note)
        assert not note.exists()


def test_clients_are_counted_without_our_own_question() -> None:
    lines = "http.admin.downstream_cx_active: 1\nhttp.home.downstream_cx_active: 2\ntcp.x.downstream_cx_active: 3\n"
    assert connected(lines + "listener.10.0.0.1_15001.downstream_cx_active: 5\n") == 5
    assert connected("") == 0


def test_what_the_agent_adds_to_a_bootstrap() -> None:
    part = overlay(xds=("cp", 15010), node_id="n", metadata={"NAMESPACE": "x"}, admin="/run/a.sock")
    assert part["admin"]["address"]["pipe"] == {"path": "/run/a.sock", "mode": 0o600}
    assert part["node"]["metadata"] == {"NAMESPACE": "x"}
    (cluster,) = part["static_resources"]["clusters"]
    services = part["dynamic_resources"]["ads_config"]["grpc_services"]
    assert services == [{"envoy_grpc": {"cluster_name": cluster["name"]}}]
    assert cluster["name"] == XDS_CLUSTER
    json.dumps(part)


def test_mistakes_say_what_next(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="name an Envoy's executable"):
        find_envoy(tmp_path / "none")
    with pytest.raises(SettingsError, match="choose a shorter one"):
        admin_socket(tmp_path / ("x" * 100))
    settings = parse_arguments(["--waypoint", "auto", "--envoy-config", str(tmp_path / "none.yaml")])
    with pytest.raises(SettingsError, match=r"none.yaml: no such file"):
        prepare(settings, tmp_path)


def test_the_settings_make_the_launch(tmp_path: Path) -> None:
    config = tmp_path / "envoy.yaml"
    config.write_text("{}")
    binary = script(tmp_path / "envoy", ENVOY)
    words = ["--waypoint", "auto", "--envoy-config", str(config), "--envoy", str(binary), "--xds", "[::1]:15010"]
    service = prepare(parse_arguments([*words, "--node", "n7", "--envoy-namespace", "shop"]), tmp_path)
    command = service.launch.command()
    assert command[:3] == [str(binary), "--config-path", str(config)]
    part = json.loads(command[command.index("--config-yaml") + 1])
    assert part["node"]["id"] == "sidecar~127.0.0.1~waypoint-n7.shop~shop.svc.cluster.local"
    (cluster,) = part["static_resources"]["clusters"]
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert endpoint["endpoint"]["address"]["socket_address"] == {"address": "::1", "port_value": 15010}


def test_nothing_is_started_before_home_stands_by(tmp_path: Path) -> None:
    async def life() -> None:
        ready = asyncio.Event()
        service = WaypointService(launch(tmp_path, script(tmp_path / "envoy", ENVOY)))
        task = asyncio.create_task(service.run(lambda: ready.set() if service.ready else None))
        await asyncio.sleep(0)
        assert service.status()["reason"] == "waits for underpass-home"
        assert service.home_seen(False)
        assert not service.home_seen(False)
        assert "--standby" in service.status()["reason"]
        assert not service.ready
        service.home_seen(True)
        await asyncio.wait_for(ready.wait(), 20)
        assert service.status()["state"] == "ready"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert service.status()["state"] == "stopped"

    asyncio.run(life())
