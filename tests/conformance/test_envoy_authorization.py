"""Authorization in a stock Envoy: policies of every action, and an external authorizer that is really asked."""

from __future__ import annotations

import http.client
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import pytest

from tests.support import shop
from tests.support.backends import Backend, free_port, free_port_on
from tests.support.controlplane import ControlPlaneProcess, wait_for
from tests.support.envoy_process import EnvoyProcess

pytestmark = [pytest.mark.needs("envoy"), pytest.mark.timeout(120)]

NODE = "router~127.0.0.1~edge-1.default~default.svc.cluster.local"
METADATA = {"NAMESPACE": "default", "LABELS": {"app": "edge"}, "INSTANCE_IPS": "127.0.0.1"}
AUTHORIZER = "127.0.0.4"


class Authorizer:
    """Says yes to whoever brings `x-token: good`, and remembers whom it was asked about."""

    def __init__(self, port: int) -> None:
        asked = self.asked = list[str]()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                asked.append(self.path)
                good = self.headers.get("x-token") == "good"
                self.send_response(200 if good else 401)
                self.send_header("x-judge", "tests")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server((AUTHORIZER, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _gateway(port: int) -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge, namespace: default}}
spec:
  selector: {{app: edge}}
  servers: [{{port: {{number: {port}, name: http, protocol: HTTP}}, hosts: ["*"]}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: edge, namespace: default}}
spec:
  hosts: ["*"]
  gateways: [edge]
  http: [{{route: [{{destination: {{host: greeter}}}}]}}]
"""


def _authorizer(port: int) -> str:
    return f"""
apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data:
  mesh: |
    extensionProviders:
    - name: judge
      envoyExtAuthzHttp:
        service: judge.default.svc.cluster.local
        port: {port}
        timeout: 5s
        pathPrefix: /ask
        includeRequestHeadersInCheck: [x-token]
        headersToDownstreamOnDeny: [x-judge]
---
apiVersion: v1
kind: Service
metadata: {{name: judge, namespace: default}}
spec: {{clusterIP: 10.96.7.8, selector: {{app: judge}}, ports: [{{name: http, port: {port}}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: judge-1, namespace: default, labels: {{app: judge}}}}
spec: {{containers: [{{name: app, image: test}}]}}
status: {{phase: Running, podIP: {AUTHORIZER}, conditions: [{{type: Ready, status: "True"}}]}}
"""


def _policy(name: str, rest: str) -> str:
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: default}}
spec: {{selector: {{matchLabels: {{app: edge}}}}, {rest}}}
---"""


def test_policies_are_enforced_and_the_authorizer_is_asked(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.mkdir()
    target, port, judge = free_port_on(shop.POD_V1, shop.POD_V2), free_port("0.0.0.0"), free_port(AUTHORIZER)
    shop.write(config / "service.yaml", shop.service(80, target))
    shop.write(config / "gateway.yaml", _gateway(port))
    shop.write(config / "authorizer.yaml", _authorizer(judge))

    def call(path: str, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            reply = connection.getresponse()
            reply.read()
            return reply.status, reply.headers.get("x-judge", "")
        finally:
            connection.close()

    with ExitStack() as stack:
        stack.enter_context(Backend(shop.POD_V1, target, "v1"))
        stack.enter_context(Backend(shop.POD_V2, target, "v2"))
        asked = stack.enter_context(Authorizer(judge)).asked
        plane = stack.enter_context(ControlPlaneProcess(config, tmp_path))
        envoy = stack.enter_context(EnvoyProcess(tmp_path, plane.xds, NODE, METADATA, "DELTA_GRPC"))
        wait_for("envoy is live", envoy.ready)

        def answers() -> int:
            try:
                return call("/")[0]
            except OSError:
                return 0  # the listener is on its way

        wait_for("the gateway routes", lambda: answers() == 200)

        custom = _policy(
            "ask", "action: CUSTOM, provider: {name: judge}, rules: [{to: [{operation: {paths: [/in*]}}]}]"
        )
        deny = _policy("deny", "action: DENY, rules: [{to: [{operation: {paths: [/in/never]}}]}]")
        allow = _policy("allow", "rules: [{to: [{operation: {paths: [/in*, /open]}}]}]")
        shop.write(config / "policies.yaml", custom + deny + allow)
        wait_for("policies are in force", lambda: call("/")[0] == 403)
        assert asked == []
        assert call("/open") == (200, "")
        assert asked == [], "what no CUSTOM policy matches is not asked about"
        assert call("/in/a", x_token="good") == (200, "")
        assert call("/in/a", x_token="bad") == (401, "tests")
        assert call("/in/a") == (401, "tests")
        assert asked == ["/ask/in/a"] * 3
        assert call("/in/never", x_token="good")[0] == 403, "the authorizer's yes is not the last word"

        shop.write(config / "policies.yaml", custom.replace("judge", "nobody") + allow)
        wait_for("there is nobody to ask", lambda: call("/open")[0] == 403)
        (entry,) = [item for item in plane.json("/api/v1/config/status") if item["name"] == "ask"]
        assert "unknown-provider" in str(entry["notes"])
        assert envoy.rejected() == {}
        assert plane.json("/debug/push_status")["refusals"] == []
