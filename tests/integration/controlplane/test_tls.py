"""The port with TLS: who may ask, by certificate or token, for what; and what a hostile peer can do to it."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from controlplane.snapshot.urls import ADDRESS, CLUSTER
from tests.support import shop
from tests.support.ads import AdsStream
from tests.support.certificates import Authority, Issuer
from tests.support.controlplane import ControlPlaneProcess, wait_for
from tests.support.tiers import repository
from underpass.api import envoy

pytestmark = pytest.mark.timeout(60)

WEB = "spiffe://cluster.local/ns/default/sa/web"
ISSUER = Issuer()


class Mesh:
    """A control plane with TLS, its authority, and the files that it was given."""

    def __init__(self, scratch: Path, *flags: str) -> None:
        self.scratch = scratch
        (scratch / "config").mkdir()
        shop.write(scratch / "config" / "all.yaml", shop.service(80, 8080))
        self.authority = Authority(scratch)
        self.certificate, self.key = self.authority.server()
        self.keys = scratch / "jwks.json"
        self.keys.write_bytes(ISSUER.jwks)
        given = ["--tls-certificate", self.certificate, "--tls-key", self.key, "--tls-client-ca", self.authority.ca]
        given += ["--jwt-keys", self.keys, "--tls-listen", "127.0.0.1:0"]
        self.plane = ControlPlaneProcess(scratch / "config", scratch, *map(str, given), *flags)

    @property
    def address(self) -> str:
        return self.plane.tls.replace("127.0.0.1", "localhost")

    def credentials(self, *uris: str, authority: Authority | None = None, seconds: float = 3600) -> Any:
        """Channel credentials with a client certificate for *uris*, or without one."""
        root = self.authority.ca.read_bytes()
        if not uris:
            return grpc.ssl_channel_credentials(root)
        certificate, key = (authority or self.authority).workload(*uris, seconds=seconds)
        return grpc.ssl_channel_credentials(root, key.read_bytes(), certificate.read_bytes())

    def stream(self, *uris: str, token: str = "", **options: Any) -> AdsStream:
        return AdsStream(self.address, delta=True, credentials=self.credentials(*uris, **options), token=token)

    def refused(self, *uris: str, token: str = "", request: Any = None, **options: Any) -> tuple[Any, str]:
        """Status and reason of a stream that must not be served."""
        with self.stream(*uris, token=token, **options) as stream:
            stream.send(ask() if request is None else request)
            with pytest.raises(grpc.RpcError) as caught:
                stream.recv()
        error: Any = caught.value
        return error.code(), error.details() or ""


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    made = Mesh(tmp_path)
    with made.plane:
        yield made
    assert "Traceback" not in made.plane.log


def ask(
    type_url: str = CLUSTER, *, namespace: str = "default", account: str = "web", kind: str = "sidecar", **metadata: str
) -> Any:
    request = envoy.DeltaDiscoveryRequest(type_url=type_url)
    request.node.id = f"{kind}~10.0.0.1~app-1.{namespace}~{namespace}.svc.cluster.local"
    request.node.metadata.update({"NAMESPACE": namespace, "SERVICE_ACCOUNT": account, **metadata})
    return request


def served(stream: AdsStream, request: Any = None) -> Any:
    stream.send(ask() if request is None else request)
    answer = stream.recv()
    stream.ack(answer)
    return answer


def test_a_certificate_or_a_token_is_needed_and_either_is_enough(mesh: Mesh) -> None:
    with mesh.stream(WEB) as by_certificate, mesh.stream(token=ISSUER.token()) as by_token:
        assert served(by_certificate).resources
        assert served(by_token).resources
        shop.write(mesh.plane.config / "all.yaml", shop.service(81, 8080))
        assert by_certificate.recv().resources
        assert by_token.recv().resources
        peers = {client["address"].rpartition(":")[0] for client in mesh.plane.json("/debug/connections")["clients"]}
        assert peers == {"127.0.0.1"}, "the real address, not the inner socket's"
    assert mesh.refused() == (grpc.StatusCode.UNAUTHENTICATED, "a client certificate or a bearer token is needed")
    status, reason = mesh.refused(token=ISSUER.token(seconds=-100))
    assert (status, reason) == (grpc.StatusCode.UNAUTHENTICATED, "the token has expired")
    status, reason = mesh.refused(WEB, WEB.replace("web", "db"), token=ISSUER.token())
    assert status is grpc.StatusCode.UNAUTHENTICATED, "a bad certificate is not made good by a token"
    assert "exactly one SPIFFE id" in reason
    status, reason = mesh.refused(WEB.replace("cluster.local", "example.org"))
    assert (status, "trust domain" in reason) == (grpc.StatusCode.UNAUTHENTICATED, True)


def test_a_certificate_of_a_stranger_does_not_get_past_the_handshake(mesh: Mesh) -> None:
    stranger = Authority(mesh.scratch, "stranger")
    status, _ = mesh.refused(WEB, authority=stranger, token=ISSUER.token())
    assert status is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    "request_",
    [ask(namespace="other"), ask(account="db"), ask(ADDRESS, kind="ztunnel")],
    ids=["namespace", "account", "ztunnel"],
)
def test_a_workload_may_only_claim_to_be_itself(mesh: Mesh, request_: Any) -> None:
    for proof in ({"uris": (WEB,)}, {"uris": (), "token": ISSUER.token()}):
        uris: Any = proof.pop("uris")
        status, reason = mesh.refused(*uris, request=request_, **proof)
        assert status is grpc.StatusCode.PERMISSION_DENIED
        assert WEB in reason


def test_node_proxies_speak_for_their_node(mesh: Mesh) -> None:
    def bound(account: str, node: str) -> str:
        return ISSUER.token(f"istio-system:{account}", node=node)

    flags = {"token": bound("underpass-agent", "n1")}
    with mesh.stream(**flags) as stream:
        assert served(stream, ask(NODE_NAME="n1")).resources
    status, reason = mesh.refused(**flags, request=ask(NODE_NAME="n2"))
    assert (status, "node n1" in reason) == (grpc.StatusCode.PERMISSION_DENIED, True)
    zt = ask(ADDRESS, kind="ztunnel", namespace="istio-system", account="ztunnel", NODE_NAME="n1")
    with mesh.stream(token=bound("ztunnel", "n1")) as stream:
        assert len(served(stream, zt).resources) == 3


def test_debug_is_for_operators(mesh: Mesh) -> None:
    query = envoy.DiscoveryRequest(type_url="istio.io/debug/syncz")
    query.node.id = "sidecar~~test-1.default~default.svc.cluster.local"
    query.node.metadata.update({"GENERATOR": "event", "NAMESPACE": "default", "SERVICE_ACCOUNT": "web"})
    csds = "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus"
    health = "/grpc.health.v1.Health/Check"
    for token, may in ((ISSUER.token(), False), (ISSUER.token("istio-system:default"), True)):
        with AdsStream(mesh.address, credentials=mesh.credentials(), token=token) as stream:
            stream.send(query)
            if may:
                assert stream.recv().type_url == "istio.io/debug/syncz"
            else:
                with pytest.raises(grpc.RpcError) as caught:
                    stream.recv()
                assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        with grpc.secure_channel(mesh.address, mesh.credentials()) as channel:
            header = [("authorization", f"Bearer {token}")]
            unary: Any = channel.unary_unary(csds)
            if may:
                unary(b"", metadata=header, timeout=10)
            else:
                with pytest.raises(grpc.RpcError) as caught:
                    unary(b"", metadata=header, timeout=10)
                assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            check: Any = channel.unary_unary(health)
            assert check(b"", timeout=10) == b"\x08\x01", "health is for all"


def test_a_stream_ends_with_its_credential(mesh: Mesh) -> None:
    with mesh.stream(token=ISSUER.token(exp=int(time.time()) + 2)) as stream:
        assert served(stream).resources
        with pytest.raises(grpc.RpcError) as caught:
            stream.recv()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "expired" in (caught.value.details() or "")


def test_new_files_count_from_the_next_connection_on(mesh: Mesh) -> None:
    other = Issuer("k2")
    assert mesh.refused(token=other.token())[0] is grpc.StatusCode.UNAUTHENTICATED
    mesh.keys.write_bytes(b"broken")
    time.sleep(1.1)
    with mesh.stream(token=ISSUER.token()) as stream:
        assert served(stream).resources, "the last good keys stay"
    mesh.keys.write_bytes(other.jwks)
    time.sleep(1.1)
    with mesh.stream(token=other.token()) as stream:
        assert served(stream).resources
    assert mesh.refused(token=ISSUER.token())[0] is grpc.StatusCode.UNAUTHENTICATED

    (mesh.scratch / "rotated").mkdir()
    rotated = Authority(mesh.scratch / "rotated")
    certificate, key = rotated.server()
    with mesh.stream(token=other.token()) as old:
        assert served(old).resources
        shutil.copy(rotated.ca, mesh.authority.ca)
        shutil.copy(key, mesh.key)
        shutil.copy(certificate, mesh.certificate)
        time.sleep(1.1)
        with mesh.stream(token=other.token()) as new:
            assert served(new).resources
        assert mesh.refused(WEB)[0] is grpc.StatusCode.UNAVAILABLE, "authorities that were taken away are gone"
        shop.write(mesh.plane.config / "all.yaml", shop.service(82, 8080))
        assert old.recv().resources, "connections that are open stay"


def test_streams_of_one_identity_are_limited_and_others_are_served(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, "--max-streams-per-client", "3")
    with mesh.plane:
        open_ = [mesh.stream(WEB) for _ in range(3)]
        try:
            for stream in open_:
                assert served(stream).resources
            status, reason = mesh.refused(WEB)
            assert (status, "3 streams" in reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
            with mesh.stream(WEB.replace("web", "db")) as other:
                assert served(other, ask(account="db")).resources
            open_.pop().__exit__()
            wait_for("a place is free", lambda: len(mesh.plane.json("/debug/connections")["clients"]) == 2)
            with mesh.stream(WEB) as again:
                assert served(again).resources
        finally:
            for stream in open_:
                stream.__exit__()


def test_half_open_slow_and_garbage_handshakes_hold_nobody_up(mesh: Mesh) -> None:
    host, _, port = mesh.plane.tls.rpartition(":")
    before = mesh.plane.rss
    sockets = []
    for number in range(200):
        sock = socket.create_connection((host, int(port)))
        if number % 3 == 0:
            sock.sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a ClientHello
        elif number % 3 == 1:
            sock.sendall(os.urandom(300))
        sockets.append(sock)
    try:
        began = time.monotonic()
        with mesh.stream(WEB) as stream:
            assert served(stream).resources
        assert time.monotonic() - began < 5
    finally:
        for sock in sockets:
            sock.close()
    wait_for("it forgot them", lambda: _open_sockets(mesh) < 40)
    assert mesh.plane.rss - before < 60 << 20


def _open_sockets(mesh: Mesh) -> int:
    process = mesh.plane._process
    assert process is not None
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def test_a_tls_client_that_never_reads_costs_a_bounded_amount(mesh: Mesh) -> None:
    """It speaks TLS and HTTP/2, asks for everything again and again, and reads nothing at all."""
    host, _, port = mesh.plane.tls.rpartition(":")
    context = ssl.create_default_context(cafile=str(mesh.authority.ca))
    certificate, key = mesh.authority.workload(WEB)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    before = mesh.plane.rss
    stuck = []
    for _ in range(10):
        raw = socket.create_connection((host, int(port)))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wrapped = context.wrap_socket(raw, server_hostname="localhost")
        assert wrapped.selected_alpn_protocol() == "h2"
        wrapped.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        wrapped.settimeout(0.2)
        ping = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + bytes(8)
        try:
            for _ in range(200):  # each wants an answer
                wrapped.sendall(ping * 100)
        except OSError:
            pass  # the server had enough of it, or does not read on: both are fine
        stuck.append(wrapped)
    try:
        with mesh.stream(WEB) as stream:
            assert served(stream).resources
            shop.write(mesh.plane.config / "all.yaml", shop.service(83, 8080))
            assert stream.recv().resources
        assert mesh.plane.rss - before < 60 << 20
    finally:
        for sock in stuck:
            sock.close()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tls-certificate", "x"], "both --tls-certificate and --tls-key"),
        (["--jwt-keys", "x"], "both --tls-certificate and --tls-key"),
        (["--tls-certificate", "{cert}", "--tls-key", "{key}"], "nobody could ask"),
        (["--tls-certificate", "{cert}", "--tls-key", "/nonexistent", "--jwt-keys", "{jwks}"], "No such file"),
        (["--tls-certificate", "{cert}", "--tls-key", "{cert}", "--jwt-keys", "{jwks}"], "--tls-certificate"),
        (["--tls-certificate", "{cert}", "--tls-key", "{key}", "--jwt-keys", "{cert}x"], "--jwt-keys"),
        (["--tls-certificate", "{cert}", "--tls-key", "{key}", "--jwt-keys", "{key}"], "not PEM of a public key"),
        (["--operator", "admin"], "NAMESPACE/ACCOUNT"),
        (["--max-streams-per-client", "0"], "at least 1"),
    ],
)
def test_wrong_settings_are_said(tmp_path: Path, flags: list[str], said: str) -> None:
    (tmp_path / "config").mkdir()
    authority = Authority(tmp_path)
    certificate, key = authority.server()
    (tmp_path / "jwks").write_bytes(ISSUER.jwks)
    filled = [flag.format(cert=certificate, key=key, jwks=tmp_path / "jwks") for flag in flags]
    given = ["--config", str(tmp_path / "config"), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", *filled]
    command = [sys.executable, "-m", "controlplane.app", *given]
    done = subprocess.run(command, cwd=repository(), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_pages_of_operators_need_a_token_from_beyond_this_machine(tmp_path: Path) -> None:
    """Another address of this machine stands for another machine: it is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            # Without a network there is no second address to ask from: then the rule cannot be broken either.
            pytest.skip("this machine has no address but loopback")
        address = probe.getsockname()[0]
    mesh = Mesh(tmp_path, "--http", f"{address}:0")
    with mesh.plane:
        for path, status in (("/ready", 200), ("/metrics", 200), ("/api/v1/config/status", 200), ("/debug/syncz", 401)):
            assert mesh.plane.get(path)[0] == status, path
        host, _, port = mesh.plane.http.rpartition(":")
        for token, status in ((ISSUER.token(), 403), (ISSUER.token("istio-system:admin"), 200)):
            connection = http.client.HTTPConnection(host, int(port), timeout=10)
            connection.request("GET", "/api/v1/config/history", headers={"Authorization": f"Bearer {token}"})
            assert connection.getresponse().status == status
            connection.close()
