"""The process: flags, addresses, signals, what a person sees when something is wrong, and hostile clients."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from controlplane.snapshot.urls import CLUSTER, ENDPOINT, LISTENER
from tests.support import shop
from tests.support.ads import AdsStream
from tests.support.controlplane import ControlPlaneProcess, wait_for
from tests.support.tiers import repository
from underpass.api import envoy

pytestmark = pytest.mark.timeout(90)

NODE = "sidecar~10.0.0.{}~app-{}.default~default.svc.cluster.local"


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlaneProcess]:
    config = tmp_path / "config"
    config.mkdir()
    shop.write(config / "service.yaml", shop.service(80, 8080))
    shop.write(config / "rules.yaml", shop.rules(50))
    with ControlPlaneProcess(config, tmp_path) as running:
        yield running


def introduce(type_url: str, number: int = 1, *, delta: bool = True) -> Any:
    kind = envoy.DeltaDiscoveryRequest if delta else envoy.DiscoveryRequest
    request = kind(type_url=type_url)
    request.node.id = NODE.format(number, number)
    return request


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "controlplane.app", *flags],
        cwd=repository(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


# --- starting and stopping --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (("--config", "/no/such/dir"), 2, "/no/such/dir"),
        (("--config", ".", "--listen", "15010"), 2, "--listen 15010: expected HOST:PORT"),
        (("--config", ".", "--http", "::1:80"), 2, "brackets"),
        (("--config", ".", "--listen", "127.0.0.1:70000"), 2, "0 to 65535"),
        (("--config", ".", "--max-streams", "0"), 2, "--max-streams 0"),
        (("--no-such-flag",), 2, "--config"),
    ],
)
def test_bad_flags_are_explained_without_a_traceback(flags: tuple[str, ...], status: int, said: str) -> None:
    done = run(*flags)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flag", ["--listen", "--http"])
def test_an_address_in_use_is_named(tmp_path: Path, flag: str) -> None:
    other = "--http" if flag == "--listen" else "--listen"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("--config", str(tmp_path), flag, address, other, "127.0.0.1:0")
    assert done.returncode == 3, done.stderr
    assert f"{flag} {address}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly_with_clients_connected(plane: ControlPlaneProcess, number: signal.Signals) -> None:
    with AdsStream(plane.xds, delta=True) as stream:
        stream.send(introduce(CLUSTER))
        stream.recv()
        assert plane.stop(number=number) == 0
        with pytest.raises(grpc.RpcError) as caught:
            stream.recv()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "Traceback" not in plane.log
    assert "stopped" in plane.log


def test_json_log_lines_are_json(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "bad.yaml").write_text("kind: [\n")
    with ControlPlaneProcess(tmp_path / "config", tmp_path, "--log-format", "json") as plane:
        lines = [json.loads(line) for line in plane.log.splitlines()]
    assert {"serving", "object rejected"} <= {line["event"] for line in lines}


def test_ready_means_that_the_configuration_is_in_force(plane: ControlPlaneProcess) -> None:
    assert plane.get("/ready") == (200, "ready\n")
    status, _ = plane.get("/no-such-page")
    assert status == 404
    names = {line.split("{")[0].split(" ")[0] for line in plane.get("/metrics")[1].splitlines() if line[:1] != "#"}
    assert {"pilot_info", "pilot_xds", "pilot_services", "pilot_virt_services"} <= names


# --- configuration ----------------------------------------------------------------------------------------------------


def test_a_broken_file_is_said_once_with_file_line_and_reason(plane: ControlPlaneProcess) -> None:
    shop.write(plane.config / "bad.yaml", "a: 1\nb: [\n")
    wait_for("rejected", lambda: "object rejected" in plane.log)
    shop.write(plane.config / "rules.yaml", shop.rules(10))
    wait_for("another change", lambda: plane.log.count("configuration in force") >= 3)
    said = [line for line in plane.log.splitlines() if "object rejected" in line]
    assert len(said) == 1
    assert "bad.yaml:" in said[0]
    [entry] = [e for e in plane.json("/api/v1/config/status") if e["state"] == "rejected"]
    assert entry["file"] == "bad.yaml"
    assert entry["reason"]


def test_an_edit_reaches_a_client_well_under_100_ms(plane: ControlPlaneProcess) -> None:
    with AdsStream(plane.xds, delta=True) as stream:
        request = envoy.DeltaDiscoveryRequest(
            type_url=ENDPOINT, resource_names_subscribe=["outbound|80|v1|greeter.default.svc.cluster.local"]
        )
        request.node.id = NODE.format(1, 1)
        stream.send(request)
        stream.ack(stream.recv())
        text = (plane.config / "service.yaml").read_text()
        took = []
        for number in range(10):
            changed = text.replace(f"podIP: {shop.POD_V1}", f"podIP: 10.9.9.{number}").replace(
                f"ip: {shop.POD_V1}", f"ip: 10.9.9.{number}"
            )
            began = time.monotonic()
            shop.write(plane.config / "service.yaml", changed)
            response = stream.recv()
            took.append(time.monotonic() - began)
            stream.ack(response)
            assert f"10.9.9.{number}".encode() in response.resources[0].resource.value
    took.sort()
    assert took[len(took) // 2] < 0.1, took


def test_a_change_touches_only_the_clients_it_concerns(plane: ControlPlaneProcess) -> None:
    with AdsStream(plane.xds, delta=True) as one, AdsStream(plane.xds, delta=True) as other:
        for stream, subset, number in ((one, "v1", 1), (other, "v2", 2)):
            name = f"outbound|80|{subset}|greeter.default.svc.cluster.local"
            request = envoy.DeltaDiscoveryRequest(type_url=ENDPOINT, resource_names_subscribe=[name])
            request.node.id = NODE.format(number, number)
            stream.send(request)
            stream.ack(stream.recv())
        wait_for("both answers are counted", lambda: _sent(plane) == 2)
        text = (plane.config / "service.yaml").read_text()
        shop.write(plane.config / "service.yaml", text.replace(shop.POD_V1, "10.9.9.9"))
        response = one.recv()
        one.ack(response)
        assert [r.name for r in response.resources] == ["outbound|80|v1|greeter.default.svc.cluster.local"]
        wait_for("it is counted", lambda: _sent(plane) >= 3)
        time.sleep(0.1)
        assert _sent(plane) == 3


def _sent(plane: ControlPlaneProcess) -> float:
    lines = plane.get("/metrics")[1].splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("pilot_xds_pushes_total"))


def test_the_directory_may_vanish_and_come_back(plane: ControlPlaneProcess, tmp_path: Path) -> None:
    os.rename(plane.config, tmp_path / "elsewhere")
    time.sleep(0.2)
    with AdsStream(plane.xds, delta=True) as stream:
        stream.send(introduce(CLUSTER))
        assert len(stream.recv().resources) > 3, "the last good configuration is served"
        os.rename(tmp_path / "elsewhere", plane.config)
        shop.write(plane.config / "service.yaml", shop.service(81, 8080))
        response = stream.recv()
        assert any("|81|" in resource.name for resource in response.resources)


# --- clients ----------------------------------------------------------------------------------------------------------


def test_same_versions_after_a_restart(plane: ControlPlaneProcess) -> None:
    with AdsStream(plane.xds, delta=True) as stream:
        stream.send(introduce(CLUSTER))
        versions = {resource.name: resource.version for resource in stream.recv().resources}
    assert versions
    plane.restart()
    with AdsStream(plane.xds, delta=True) as stream:
        request = introduce(CLUSTER)
        request.initial_resource_versions.update({**versions, "gone": "1"})
        stream.send(request)
        first = stream.recv()
        assert list(first.resources) == []
        stream.ack(first)
        second = stream.recv()
        assert (list(second.resources), list(second.removed_resources)) == ([], ["gone"])


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ("", "node"),
        ("what", "four"),
        ("spaceship~1.2.3.4~a.b~c", "spaceship"),
        ("sidecar~not-an-ip~a.default~default.svc.cluster.local", "IP address"),
    ],
)
def test_an_unusable_node_is_refused_with_the_reason(plane: ControlPlaneProcess, node: str, said: str) -> None:
    with AdsStream(plane.xds) as stream:
        request = envoy.DiscoveryRequest(type_url=CLUSTER)
        if node:
            request.node.id = node
        stream.send(request)
        with pytest.raises(grpc.RpcError) as caught:
            stream.recv()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert said in (caught.value.details() or "")
    assert plane.get("/ready")[0] == 200


def test_garbage_ends_only_its_own_stream(plane: ControlPlaneProcess) -> None:
    with AdsStream(plane.xds, delta=True) as good:
        good.send(introduce(CLUSTER))
        good.ack(good.recv())
        for garbage in (b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", os.urandom(500)):
            with AdsStream(plane.xds, delta=True) as bad:
                bad.send(garbage)
                with pytest.raises(grpc.RpcError) as caught:
                    bad.recv()
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        shop.write(plane.config / "service.yaml", shop.service(82, 8080))
        assert good.recv().resources
    assert "Traceback" not in plane.log


def test_single_type_services(plane: ControlPlaneProcess) -> None:
    for method, type_url, delta in (
        ("/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters", CLUSTER, False),
        ("/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters", CLUSTER, True),
        ("/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners", LISTENER, False),
    ):
        with AdsStream(plane.xds, delta=delta, method=method) as stream:
            stream.send(introduce("", delta=delta))
            response = stream.recv()
            assert response.type_url == type_url
            assert len(response.resources) > 0


def test_a_client_that_never_reads_holds_nobody_up(plane: ControlPlaneProcess) -> None:
    """It opens streams, asks for everything and stops reading at the TCP level; others are served meanwhile."""
    stuck = [_stuck_client(plane.xds) for _ in range(5)]
    try:
        with AdsStream(plane.xds, delta=True) as good:
            good.send(introduce(CLUSTER, 9))
            good.ack(good.recv())
            before = plane.rss
            for number in range(20):
                shop.write(plane.config / "service.yaml", shop.service(100 + number, 8080))
                response = good.recv()
                good.ack(response)
            assert plane.rss - before < 30 << 20
    finally:
        for channel in stuck:
            channel.close()
    assert "Traceback" not in plane.log


def _stuck_client(address: str) -> grpc.Channel:
    """A stream whose answers are never read: gRPC stops the server's writes by flow control."""
    channel = grpc.insecure_channel(address, options=[("grpc.http2.lookahead_bytes", 1)])
    first = introduce(CLUSTER, 50)

    def requests() -> Iterator[bytes]:
        yield first.SerializeToString()
        for _ in range(2000):
            yield envoy.DeltaDiscoveryRequest(type_url=CLUSTER, resource_names_subscribe=["*"]).SerializeToString()
        threading.Event().wait(30)

    method = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
    call: Any = channel.stream_stream(method)
    call(requests())
    return channel


def test_too_many_names_are_refused_and_memory_stays(plane: ControlPlaneProcess) -> None:
    with AdsStream(plane.xds, delta=True) as stream:
        request = introduce(ENDPOINT)
        request.resource_names_subscribe.extend(f"name-{i}" for i in range(250_000))
        stream.send(request)
        with pytest.raises(grpc.RpcError) as caught:
            stream.recv()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert plane.get("/ready")[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"PUT / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_the_admin_port_answers_bad_requests_with_an_error(plane: ControlPlaneProcess, data: bytes) -> None:
    host, _, port = plane.http.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while chunk := client.recv(4096):
                answer += chunk
    assert answer.startswith((b"HTTP/1.1 4", b""))
    if answer:
        assert b" 4" in answer.split(b"\r\n")[0]
    assert plane.get("/ready")[0] == 200
    assert "Traceback" not in plane.log
