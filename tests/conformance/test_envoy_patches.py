"""What is for Envoys alone, in a stock one: EnvoyFilters (a broken one is said and does no harm) and access logs."""

from __future__ import annotations

import http.client
import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import shop
from tests.support.backends import Backend, free_port, free_port_on
from tests.support.controlplane import ControlPlaneProcess, wait_for
from tests.support.envoy_process import EnvoyProcess

pytestmark = [pytest.mark.needs("envoy"), pytest.mark.timeout(120)]

NODE = "router~127.0.0.1~edge-1.default~default.svc.cluster.local"
METADATA = {"NAMESPACE": "default", "LABELS": {"app": "edge"}, "INSTANCE_IPS": "127.0.0.1"}

GATEWAY = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: default}
spec:
  selector: {app: edge}
  servers: [{port: {number: %d, name: http, protocol: HTTP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edge, namespace: default}
spec:
  hosts: ["*"]
  gateways: [edge]
  http: [{route: [{destination: {host: greeter, subset: v1}}]}]
"""

LUA = """
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: %(name)s, namespace: default}
spec:
  workloadSelector: {labels: {app: %(app)s}}
  configPatches:
  - applyTo: HTTP_FILTER
    match:
      context: %(context)s
      listener:
        filterChain:
          filter: {name: envoy.filters.network.http_connection_manager, subFilter: {name: envoy.filters.http.router}}
    patch:
      operation: INSERT_BEFORE
      value:
        name: tests.lua
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
          default_source_code:
            inline_string: |
              function envoy_on_response(handle) handle:headers():add("x-%(name)s", "yes") end
  - applyTo: HTTP_ROUTE
    match: {context: %(context)s}
    patch:
      operation: INSERT_FIRST
      value: {name: teapot, match: {path: /%(name)s}, direct_response: {status: 418}}
---
"""

BROKEN = """
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: broken, namespace: default}
spec:
  configPatches:
  - applyTo: CLUSTER
    patch: {operation: REMOVE}
  - applyTo: CLUSTER
    patch:
      operation: MERGE
      value: {no_such_field: 1}
"""


def test_patches_come_and_go(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.mkdir()
    target, port = free_port_on(shop.POD_V1, shop.POD_V2), free_port("0.0.0.0")
    shop.write(config / "service.yaml", shop.service(80, target))
    shop.write(config / "gateway.yaml", GATEWAY % port)

    def call(path: str) -> tuple[int, set[str]]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            reply.read()
            return reply.status, {name.lower() for name in reply.headers}
        except OSError:
            return 0, set()
        finally:
            connection.close()

    with ExitStack() as stack:
        stack.enter_context(Backend(shop.POD_V1, target, "v1"))
        plane = stack.enter_context(ControlPlaneProcess(config, tmp_path))
        envoy = stack.enter_context(EnvoyProcess(tmp_path, plane.xds, NODE, METADATA, "DELTA_GRPC"))
        wait_for("envoy is live", envoy.ready)
        wait_for("the gateway routes", lambda: call("/")[0] == 200)

        wanted = LUA % {"name": "mine", "app": "edge", "context": "GATEWAY"}
        others = LUA % {"name": "other", "app": "web", "context": "GATEWAY"}
        sidecars = LUA % {"name": "sidecars", "app": "edge", "context": "SIDECAR_OUTBOUND"}
        shop.write(config / "filters.yaml", wanted + others + sidecars + BROKEN)
        wait_for("the patch is in force", lambda: "x-mine" in call("/")[1])
        assert call("/")[0] == 200
        assert not {"x-other", "x-sidecars"} & call("/")[1]
        assert (call("/mine")[0], call("/other")[0]) == (418, 200)
        (entry,) = [item for item in plane.json("/api/v1/config/status") if item["name"] == "broken"]
        (note,) = [item for item in entry["notes"] if item["code"] == "bad-patch"]
        assert "no_such_field" in note["message"]
        lines = (wanted + others + sidecars + BROKEN).splitlines()
        assert "no_such_field" in lines[note["line"] - 1]

        (config / "filters.yaml").unlink()
        wait_for("the patch is gone", lambda: "x-mine" not in call("/")[1])
        assert call("/mine")[0] == 200
        assert envoy.rejected() == {}
        assert plane.json("/debug/push_status")["refusals"] == []


LOGS = """
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - name: json
      envoyFileAccessLog:
        path: %s
        logFormat: {labels: {path: "%%REQ(:PATH)%%", status: "%%RESPONSE_CODE%%"}}
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: edge, namespace: default}
spec:
  selector: {matchLabels: {app: edge}}
  accessLogging:
  - providers: [{name: json}]
    filter: {expression: "response.code >= 400 && request.path.startsWith('/logged')"}
"""


def test_access_logs(tmp_path: Path) -> None:
    config, log = tmp_path / "config", tmp_path / "requests.json"
    config.mkdir()
    port = free_port("0.0.0.0")
    answers = "{match: [{uri: {exact: /logged/ok}}], directResponse: {status: 200}}, {directResponse: {status: 404}}"
    gateway = f"{GATEWAY.partition('http: [')[0]}http: [{answers}]\n"
    shop.write(config / "gateway.yaml", gateway % port)
    shop.write(config / "logs.yaml", LOGS % log)

    def call(path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    with ExitStack() as stack:
        plane = stack.enter_context(ControlPlaneProcess(config, tmp_path))
        envoy = stack.enter_context(EnvoyProcess(tmp_path, plane.xds, NODE, METADATA, "DELTA_GRPC"))
        wait_for("envoy is live", envoy.ready)
        wait_for("the gateway answers", lambda: call("/ready") == 404)
        assert (call("/logged/ok"), call("/other"), call("/logged/bad")) == (200, 404, 404)
        # Envoy writes its files out every second, or so.
        wait_for("something is logged", lambda: log.exists() and log.read_text() != "", 15)
        assert [json.loads(line) for line in log.read_text().splitlines()] == [{"path": "/logged/bad", "status": 404}]
        assert envoy.rejected() == {}
