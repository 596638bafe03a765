"""gRPC's own xDS client (grpcio, ``xds:///``) reaching a service by the same rules as Envoy does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import shop
from tests.support.backends import free_port, free_port_on
from tests.support.controlplane import ControlPlaneProcess, wait_for
from tests.support.grpc_greeter import GreeterServer, bootstrap
from tests.support.tiers import repository

pytestmark = pytest.mark.timeout(120)

NODE = "sidecar~127.0.0.1~grpc-client.default~default.svc.cluster.local"


@dataclass
class World:
    config: Path
    plane: ControlPlaneProcess
    port: int

    def call(self, target: str, count: int, *metadata: str) -> list[str]:
        environment = {
            **os.environ,
            "GRPC_XDS_BOOTSTRAP_CONFIG": bootstrap(self.plane.xds, NODE),
            "GRPC_VERBOSITY": "NONE",
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.grpc_greeter", target, str(count), *metadata],
            cwd=repository(),
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout.splitlines()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    config = tmp_path / "config"
    config.mkdir()
    target = free_port_on(shop.POD_V1, shop.POD_V2)
    port = free_port()
    shop.write(config / "service.yaml", shop.service(port, target, protocol="grpc"))
    shop.write(config / "rules.yaml", shop.rules(50))
    with ExitStack() as stack:
        stack.enter_context(GreeterServer(shop.POD_V1, target, "v1"))
        stack.enter_context(GreeterServer(shop.POD_V2, target, "v2"))
        yield World(config, stack.enter_context(ControlPlaneProcess(config, tmp_path)), port)


@pytest.mark.parametrize("host", ["greeter.default.svc.cluster.local", "greeter"])
def test_calls_go_where_the_rules_say(world: World, host: str) -> None:
    target = f"xds:///{host}:{world.port}"
    spread = Counter(world.call(target, 200))
    assert set(spread) == {"v1", "v2"}, spread
    assert 60 <= spread["v1"] <= 140
    assert Counter(world.call(target, 20, "end-user=jason")) == {"v2": 20}
    assert world.plane.json("/debug/push_status")["refusals"] == []


def test_an_edit_reaches_an_open_channel(world: World) -> None:
    environment = {
        **os.environ,
        "GRPC_XDS_BOOTSTRAP_CONFIG": bootstrap(world.plane.xds, NODE),
        "GRPC_VERBOSITY": "NONE",
    }
    command = [sys.executable, "-m", "tests.support.grpc_greeter", f"xds:///greeter:{world.port}", "100000"]
    shop.write(world.config / "rules.yaml", shop.rules(100))
    with subprocess.Popen(command, cwd=repository(), env=environment, stdout=subprocess.PIPE, text=True) as client:
        try:
            assert client.stdout is not None
            assert client.stdout.readline().strip() in ("v1", "v2")
            shop.write(world.config / "rules.yaml", shop.rules(0))
            run = seen = 0
            for line in client.stdout:
                assert line.strip() in ("v1", "v2"), line
                run = run + 1 if line.strip() == "v2" else 0
                seen += 1
                if run >= 200:
                    break
            assert seen < 20_000
        finally:
            client.kill()
            client.wait(5)


def test_an_unknown_target_fails_with_a_status(world: World) -> None:
    [answer] = world.call(f"xds:///nobody.example:{world.port}", 1)
    assert answer.startswith(("UNAVAILABLE", "DEADLINE_EXCEEDED")), answer


def test_the_service_disappears_and_comes_back(world: World) -> None:
    target = f"xds:///greeter:{world.port}"
    assert set(world.call(target, 10)) <= {"v1", "v2"}
    text = (world.config / "service.yaml").read_text()
    shop.write(world.config / "service.yaml", "")
    wait_for("gone", lambda: world.plane.json("/debug/registryz") == [])
    [answer] = world.call(target, 1)
    assert answer.startswith(("UNAVAILABLE", "DEADLINE_EXCEEDED")), answer
    shop.write(world.config / "service.yaml", text)
    wait_for("back", lambda: world.plane.json("/debug/registryz") != [])
    assert set(world.call(target, 10)) <= {"v1", "v2"}
