"""A stock Envoy 1.40 as client of the whole control plane: everything accepted, every request where the rules say."""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import shop
from tests.support.backends import Backend, free_port, free_port_on
from tests.support.controlplane import ControlPlaneProcess, wait_for
from tests.support.envoy_process import EnvoyProcess, Variant

pytestmark = [pytest.mark.needs("envoy"), pytest.mark.timeout(120)]

NODE = "sidecar~127.0.0.1~client-1.default~default.svc.cluster.local"
#: Without interception an Envoy binds the services' own ports, so no privilege is needed.
METADATA = {
    "NAMESPACE": "default",
    "INTERCEPTION_MODE": "NONE",
    "LABELS": {"app": "client"},
    "INSTANCE_IPS": "127.0.0.1",
}


@dataclass
class World:
    config: Path
    plane: ControlPlaneProcess
    envoy: EnvoyProcess
    port: int

    def call(self, path: str = "/", host: str = "greeter", **headers: str) -> tuple[int, str]:
        """Status and the name of the server that answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path, headers={"Host": host, **headers})
            reply = connection.getresponse()
            body = reply.read()
            return reply.status, json.loads(body)["name"] if reply.status == 200 else body.decode()
        finally:
            connection.close()

    def calls(self, seconds: float) -> list[tuple[int, str]]:
        """As many calls as fit into *seconds*: long enough for an edit to arrive in their midst."""
        end = time.monotonic() + seconds
        found = []
        while time.monotonic() < end:
            found.append(self.call())
        return found

    def spread(self, count: int) -> Counter[str]:
        return Counter(name for status, name in (self.call() for _ in range(count)) if status == 200)


@pytest.fixture(params=["GRPC", "DELTA_GRPC"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    variant: Variant = request.param
    config = tmp_path / "config"
    config.mkdir()
    target = free_port_on(shop.POD_V1, shop.POD_V2)
    port = free_port("0.0.0.0")
    shop.write(config / "service.yaml", shop.service(port, target))
    shop.write(config / "rules.yaml", shop.rules(50))
    with ExitStack() as stack:
        stack.enter_context(Backend(shop.POD_V1, target, "v1"))
        stack.enter_context(Backend(shop.POD_V2, target, "v2"))
        plane = stack.enter_context(ControlPlaneProcess(config, tmp_path))
        envoy = stack.enter_context(EnvoyProcess(tmp_path, plane.xds, NODE, METADATA, variant))
        wait_for("envoy is live", envoy.ready)
        yield World(config, plane, envoy, port)
        assert envoy.rejected() == {}
        assert plane.json("/debug/push_status")["refusals"] == []


def test_requests_go_where_the_rules_say(world: World) -> None:
    assert world.call(**{"end-user": "jason"}) == (200, "v2")
    spread = world.spread(200)
    assert sum(spread.values()) == 200
    assert 60 <= spread["v1"] <= 140
    assert world.call(host="nobody.example")[0] in (404, 502, 503)


def test_an_edit_takes_effect_at_once(world: World) -> None:
    assert sum(world.spread(5).values()) == 5
    for weight, expected in ((100, {"v1"}), (0, {"v2"}), (100, {"v1"})):
        shop.write(world.config / "rules.yaml", shop.rules(weight))
        began = time.monotonic()
        wait_for(f"only {expected}", lambda want=expected: set(world.spread(12)) == want, every=0)
        assert time.monotonic() - began < 1.0, "an edit took longer than a person would accept"
        assert set(world.spread(20)) == expected


def test_a_broken_edit_leaves_the_last_good_rules_in_force(world: World) -> None:
    shop.write(world.config / "rules.yaml", shop.rules(100))
    wait_for("only v1", lambda: set(world.spread(10)) == {"v1"})
    shop.write(world.config / "rules.yaml", "kind: VirtualService\n  broken: [\n")
    entry = wait_for(
        "the verdict says so",
        lambda: [e for e in world.plane.json("/api/v1/config/status") if e["state"] == "rejected"],
    )[0]
    assert entry["file"] == "rules.yaml"
    assert entry["line"] >= 1
    assert entry["reason"]
    assert set(world.spread(10)) == {"v1"}
    shop.write(world.config / "rules.yaml", shop.rules(0))
    wait_for("the next good edit", lambda: set(world.spread(10)) == {"v2"})


def test_endpoints_come_and_go_without_a_failed_request(world: World) -> None:
    (world.config / "rules.yaml").unlink()
    wait_for("no rules", lambda: not any(e["kind"] == "VirtualService" for e in world.plane.json("/debug/configz")))
    wait_for("without rules, both", lambda: set(world.spread(20)) == {"v1", "v2"})
    text = (world.config / "service.yaml").read_text()
    without = "---\n".join(d for d in text.split("---\n") if f"podIP: {shop.POD_V2}" not in d)
    assert without != text
    results = []
    for _ in range(3):
        shop.write(world.config / "service.yaml", without)
        results += world.calls(0.4)
        shop.write(world.config / "service.yaml", text)
        results += world.calls(0.4)
    assert [answer for answer in results if answer[0] != 200] == []


def test_moving_a_route_to_a_new_service_loses_nothing(world: World) -> None:
    """The old cluster goes and a new one comes in one edit; make before break."""
    target = int(world.config.joinpath("service.yaml").read_text().split("targetPort: ")[1].split("}")[0])
    other = shop.service(free_port("0.0.0.0"), target, name="other").replace("10.96.7.7", "10.96.7.8")
    shop.write(world.config / "rules.yaml", shop.rules(100))
    wait_for("only v1", lambda: set(world.spread(10)) == {"v1"})
    moved = shop.rules(100).replace("host: greeter, subset: v1", "host: other, subset: v2")
    results = []
    for _ in range(4):
        shop.write(world.config / "rules.yaml", other + "---\n" + moved)
        results += world.calls(0.4)
        shop.write(world.config / "rules.yaml", shop.rules(100))
        results += world.calls(0.4)
    assert [answer for answer in results if answer[0] != 200] == []
    assert {name for _, name in results} == {"v1", "v2"}


def test_the_control_plane_may_restart(world: World) -> None:
    world.plane.restart()
    assert world.call()[0] == 200, "no control plane, no difference for traffic"
    wait_for("connected again", lambda: world.envoy.stats("control_plane.connected_state").popitem()[1] == 1)
    shop.write(world.config / "rules.yaml", shop.rules(0))
    wait_for("the edit arrives", lambda: set(world.spread(10)) == {"v2"})


def test_it_is_listed_with_every_type_in_sync(world: World) -> None:
    def synced() -> Any:
        clients = world.plane.json("/debug/connections")["clients"]
        return [c for c in clients if len(c["status"]) == 4 and all(s["state"] == "SYNCED" for s in c["status"])]

    [client] = wait_for("synced", synced)
    assert client["connectionId"].startswith("client-1.default-")
    dump = world.plane.json("/debug/config_dump?proxyID=client-1.default")
    ours = {
        entry["cluster"]["name"]
        for part in dump["configs"]
        if part["@type"].endswith("ClustersConfigDump")
        for entry in part["dynamic_active_clusters"]
    }
    theirs = {
        entry["cluster"]["name"]
        for part in world.envoy.config()
        if part["@type"].endswith("ClustersConfigDump")
        for entry in part["dynamic_active_clusters"]
    }
    assert ours == theirs
    assert "outbound|" in " ".join(ours)
