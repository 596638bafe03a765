"""The process around the supervisor, with a script in Envoy's place: no root, no network."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nodeagent.cache.resources import Listener, RouteConfiguration
from nodeagent.cache.store import Resources
from nodeagent.errors import SettingsError
from nodeagent.node.registry import Workload
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
from nodeagent.waypoint.scopes import Scope, choose
from nodeagent.waypoint.service import Home, Recipe, WaypointService, prepare
from nodeagent.waypoint.supervisor import Bounds
from nodeagent.xds.views import View, views

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


def recipe(tmp: Path) -> Recipe:
    (tmp / "envoy.yaml").write_text("{}")
    return Recipe(script(tmp / "envoy", ENVOY), tmp, ("cp", 15010), "n7", None, tmp / "envoy.yaml", "shop")


HOME = Home((("10.0.0.1", 15001), ("fd00::1", 15001)), True, 1360)


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
    command = service.recipe.launch(HOME, None).command()
    assert command[:3] == [str(binary), "--config-path", str(config)]
    part = json.loads(command[command.index("--config-yaml") + 1])
    assert part["node"]["id"] == "sidecar~127.0.0.1~waypoint-n7.shop~shop.svc.cluster.local"
    (cluster,) = part["static_resources"]["clusters"]
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert endpoint["endpoint"]["address"]["socket_address"] == {"address": "::1", "port_value": 15010}


def view(name: str, **labels: str) -> View:
    workload = Workload(
        name=name, owner=name, namespace="shop", service_account="default", labels=labels, ips=("10.1.0.9", "fd00::9"),
        netns=Path("/run/netns/x"), cgroup=Path("/c"), interface="eth0", host_interface="v", node="n7",
        ports=(), cluster="Kubernetes", trust_domain="cluster.local",
    )  # fmt: skip
    (found,) = views([workload], {}).values()
    return found


def test_without_a_file_it_is_a_workloads_envoy_at_the_home_addresses(tmp_path: Path) -> None:
    binary = script(tmp_path / "envoy", ENVOY)
    words = ["--waypoint", "auto", "--envoy", str(binary), "--node", "n7"]
    service = prepare(parse_arguments(words), tmp_path, tmp_path / "cgroup")
    command = service.recipe.launch(HOME, view("web", app="web")).command()
    assert command[:3] == ["/bin/sh", "-c", 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"']
    assert command[4:6] == [str(tmp_path / "cgroup"), str(binary)]
    assert "--config-path" not in command
    made = json.loads(command[command.index("--config-yaml") + 1])
    assert made["node"]["id"] == "sidecar~10.1.0.9~waypoint-n7.shop~shop.svc.cluster.local"
    told = made["node"]["metadata"]
    assert (told["LABELS"], told["INTERCEPTION_MODE"], told["INSTANCE_IPS"]) == (
        {"app": "web"}, "HOME", "10.1.0.9,fd00::9",
    )  # fmt: skip
    assert made["dynamic_resources"]["lds_config"] == made["dynamic_resources"]["cds_config"]
    listeners = made["static_resources"]["listeners"]
    assert [listener["address"]["socket_address"] for listener in listeners] == [
        {"address": "10.0.0.1", "port_value": 15001}, {"address": "fd00::1", "port_value": 15001},
    ]  # fmt: skip
    assert all(listener["use_original_dst"] for listener in listeners)
    assert listeners[0]["socket_options"][0]["int_value"] == 1360


def test_nothing_is_started_before_home_stands_by(tmp_path: Path) -> None:
    async def life() -> None:
        ready = asyncio.Event()
        service = WaypointService(recipe(tmp_path))
        task = asyncio.create_task(service.run(lambda: ready.set() if service.ready else None))
        await asyncio.sleep(0)
        assert service.status()["reason"] == "waits for underpass-home"
        assert service.home_seen(replace(HOME, stands_by=False))
        assert not service.home_seen(replace(HOME, stands_by=False))
        assert "--standby" in service.status()["reason"]
        assert not service.ready
        service.home_seen(HOME)
        await asyncio.wait_for(ready.wait(), 20)
        assert service.status()["state"] == "ready"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert service.status()["state"] == "stopped"

    asyncio.run(life())


def test_without_a_file_it_waits_for_a_workload_and_goes_with_its_view(tmp_path: Path) -> None:
    """Another home address or another view is another Envoy; another pod of the same view is not."""
    one, two = sorted((view("one", app="one"), view("two", app="two")), key=lambda view: view.key)

    async def life() -> list[int]:
        states: list[str] = []
        news = asyncio.Event()

        def changed() -> None:
            states.append(str(service.status()["state"]))
            news.set()

        async def until_ready(other_than: int) -> int:
            async with asyncio.timeout(20):
                while not service.ready or service.status()["pid"] == other_than:
                    news.clear()
                    await news.wait()
            return int(service.status()["pid"])

        service = WaypointService(replace(recipe(tmp_path), config=None))
        task = asyncio.create_task(service.run(changed))
        assert service.home_seen(HOME)
        assert service.status()["reason"] == "waits for a workload"
        service.views_seen({one.key: (one, Resources()), two.key: (two, Resources())})
        pids = [await until_ready(0)]
        assert (service.status()["view"], service.status()["apart"]) == (one.key, [])
        service.views_seen({one.key: (replace(one, name="other", ips=("10.1.0.10",)), Resources())})
        await asyncio.sleep(0.05)
        assert service.status()["pid"] == pids[0]
        service.views_seen({two.key: (two, Resources())})
        pids.append(await until_ready(pids[0]))
        service.home_seen(replace(HOME, peers=(("10.0.0.2", 15001),)))
        pids.append(await until_ready(pids[1]))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert service.status()["state"] == "stopped"
        return pids

    assert len(set(asyncio.run(life()))) == 3


def test_a_sidecars_listeners_are_refused_for_good(tmp_path: Path) -> None:
    """Another control plane sends them: the process ends, and is not started again."""
    listening = ENVOY.replace(
        'else "LIVE', 'else "home_x::1.2.3.4:1\\nvirtualInbound::0.0.0.0:15006\\n" if "/listeners" in line else "LIVE'
    )
    one = view("one", app="one")

    async def life() -> dict[str, Any]:
        refused = asyncio.Event()
        service = WaypointService(
            replace(recipe(tmp_path), config=None, binary=script(tmp_path / "sidecar", listening))
        )

        def changed() -> None:
            assert not service.ready
            if service.status()["state"] == "refused":
                refused.set()

        task = asyncio.create_task(service.run(changed))
        service.home_seen(HOME)
        service.views_seen({one.key: (one, Resources())})
        await asyncio.wait_for(refused.wait(), 20)
        found = service.status()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return found

    found = asyncio.run(life())
    assert found["reason"].startswith("listeners virtualInbound: ")
    assert found["reason"].endswith("give --envoy-config")
    assert found["pid"] == 0
    assert (tmp_path / "asked").read_text().splitlines()[:2] == ["GET /ready HTTP/1.1", "GET /listeners HTTP/1.1"]


def test_until_it_is_known_whose_eyes_it_has_everybody_is_apart(tmp_path: Path) -> None:
    """But only where home can be told apart from it, and not where the listeners are the user's."""
    one, two = view("one", app="one"), view("two", app="two")
    keys = {one.key, two.key}
    odd = Resources(routes={"81": RouteConfiguration("81", ())})
    own = replace(HOME, own=(("10.0.0.1", 15002),))
    theirs = WaypointService(recipe(tmp_path))
    theirs.home_seen(own)
    assert theirs.apart(keys) == frozenset()
    service = WaypointService(replace(recipe(tmp_path), config=None))
    assert service.apart(keys) == frozenset()
    service.home_seen(HOME)
    assert service.apart(keys) == frozenset()
    service.home_seen(own)
    assert service.apart(keys) == keys
    service.views_seen({one.key: (one, Resources()), two.key: (two, odd)})
    assert service.apart(keys) == keys - {str(service.status()["view"])}
    assert service.apart([str(service.status()["view"])]) == frozenset()


def test_whose_eyes() -> None:
    """Those that most agree with, or the one that is there already; what a workload has as a server does not count."""
    routes = {"80": RouteConfiguration("80", ())}
    same = Resources(routes=routes, listeners={"virtualInbound": Listener("virtualInbound", "inbound", ())})
    odd = Resources(routes={"80": RouteConfiguration("80", ()), "81": RouteConfiguration("81", ())})
    found = choose({"a": odd, "b": same, "c": Resources(routes=dict(routes))})
    assert found == Scope("b", frozenset({"a"}))
    assert choose({"a": odd, "b": same, "c": same}, "a") == Scope("a", frozenset({"b", "c"}))
    assert choose({"a": odd, "b": same}, "gone") == Scope("a", frozenset({"b"}))
    assert choose({}, "a") is None
