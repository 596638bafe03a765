"""A stock Envoy as a sidecar, in front of an application in a network of its own, with captured connections."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support import shop
from tests.support.controlplane import ControlPlaneProcess, wait_for
from tests.support.envoy_process import EnvoyProcess
from tests.support.jose import RsaIssuer
from tests.support.tiers import repository

pytestmark = [pytest.mark.needs("envoy", "root", "netns", "nft"), pytest.mark.timeout(120)]

#: One /30 for each process, out of 10.251.0.0/16.
NET = os.getpid() % 16384 * 4
HOST, POD = (f"10.251.{(NET + last) // 256}.{(NET + last) % 256}" for last in (1, 2))
PORT = 8080
APP = f"""
import time
from tests.support.backends import Backend
with Backend("0.0.0.0", {PORT}, "app"):
    time.sleep(3600)
"""

CONFIG = f"""
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec: {{clusterIP: 10.96.7.7, selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: {PORT}}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web-1, namespace: default, labels: {{app: web}}}}
spec: {{serviceAccountName: web, containers: [{{name: app, image: test}}]}}
status: {{phase: Running, podIP: {POD}, conditions: [{{type: Ready, status: "True"}}]}}
"""

POLICIES = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: default}
spec:
  selector: {matchLabels: {app: web}}
  jwtRules:
  - {issuer: a, jwks: '%s', outputClaimToHeaders: [{header: x-user, claim: sub}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: alice, namespace: default}
spec:
  selector: {matchLabels: {app: web}}
  rules:
  - to: [{operation: {paths: [/open]}}]
  - from: [{source: {requestPrincipals: [a/alice]}}]
    when: [{key: "request.auth.claims[groups]", values: [admins]}]
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: mark, namespace: default}
spec:
  workloadSelector: {labels: {app: web}}
  configPatches:
  - applyTo: HTTP_ROUTE
    match: {context: SIDECAR_INBOUND, routeConfiguration: {portNumber: 8080}}
    patch:
      operation: MERGE
      value: {response_headers_to_add: [{header: {key: x-patched, value: "yes"}}]}
"""


@pytest.fixture(name="pod")
def _pod() -> Iterator[list[str]]:
    """A network with one address; the command that runs something in it."""
    name = f"upside{os.getpid()}"
    inside = ["ip", "netns", "exec", name]

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)

    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "address", "add", f"{HOST}/30", "dev", name)
        run("ip", "link", "set", name, "up")
        run(*inside, "ip", "address", "add", f"{POD}/30", "dev", "eth0")
        for device in ("eth0", "lo"):
            run(*inside, "ip", "link", "set", device, "up")
        run(*inside, "nft", "add table ip nat")
        run(*inside, "nft", "add chain ip nat in { type nat hook prerouting priority -100; }")
        run(*inside, "nft", f'add rule ip nat in iifname "eth0" tcp dport {PORT} redirect to :15006')
        yield inside
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)


def call(path: str, token: str = "", **headers: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, the response's headers, and what reached the application."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if token:
        sent["authorization"] = f"Bearer {token}"
    connection = http.client.HTTPConnection(POD, PORT, timeout=10)
    try:
        connection.request("GET", path, headers=sent)
        reply = connection.getresponse()
        body = reply.read()
        got = {name.lower(): value for name, value in reply.headers.items()}
        return reply.status, got, json.loads(body) if reply.status == 200 else {}
    except OSError:
        return 0, {}, {}
    finally:
        connection.close()


def test_what_a_workload_receives(tmp_path: Path, pod: list[str]) -> None:
    config = tmp_path / "config"
    config.mkdir()
    shop.write(config / "web.yaml", CONFIG)
    rsa = RsaIssuer("a")
    node = f"sidecar~{POD}~web-1.default~default.svc.cluster.local"
    metadata = {"NAMESPACE": "default", "LABELS": {"app": "web"}, "INSTANCE_IPS": POD}
    with ExitStack() as stack:
        app = subprocess.Popen([*pod, sys.executable, "-c", APP], cwd=repository())
        stack.callback(app.wait)
        stack.callback(app.kill)
        plane = stack.enter_context(ControlPlaneProcess(config, tmp_path, listen=f"{HOST}:0"))
        envoy = stack.enter_context(
            EnvoyProcess(tmp_path, plane.xds, node, metadata, "DELTA_GRPC", prefix=pod, admin=POD)
        )
        wait_for("envoy is live", envoy.ready)
        wait_for("the application is reached", lambda: call("/")[0] == 200)
        assert call("/")[1]["server"] == "istio-envoy"

        shop.write(config / "policies.yaml", POLICIES % rsa.jwks)
        wait_for("policies are in force", lambda: call("/")[0] == 403)
        assert call("/open")[0] == 200
        assert call("/open", RsaIssuer("a").token())[0] == 401
        assert call("/", rsa.token(groups=["users"]))[0] == 403
        assert call("/", rsa.token(sub="bob", groups=["admins"]))[0] == 403
        status, headers, seen = call("/", rsa.token(groups=["users", "admins"]), x_user="root")
        assert status == 200
        assert headers["x-patched"] == "yes"
        assert {name.lower(): value for name, value in seen["headers"].items()}["x-user"] == "alice"
        assert envoy.rejected() == {}
        assert plane.json("/debug/push_status")["refusals"] == []
