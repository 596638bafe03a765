"""A stock Envoy as a waypoint: HBONE in mutual TLS, rules and policies of what is bound to it, tunnels to endpoints."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import shop
from tests.support.backends import Backend, free_port, free_port_on
from tests.support.certificates import Authority
from tests.support.controlplane import ControlPlaneProcess, wait_for
from tests.support.envoy_process import EnvoyProcess
from tests.support.jose import RsaIssuer
from tests.support.secrets import SecretServer

pytestmark = [pytest.mark.needs("envoy"), pytest.mark.timeout(180)]

NODE = "waypoint~127.0.0.1~way-1.default~default.svc.cluster.local"
LABELS = {"gateway.networking.k8s.io/gateway-name": "way"}
METADATA = {"NAMESPACE": "default", "LABELS": LABELS, "INSTANCE_IPS": "127.0.0.1"}
TUNNELLED, ALONE = "127.0.0.6", "127.0.0.7"
TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
NETWORK = "type.googleapis.com/envoy.extensions.filters.network"

WAYPOINT = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: way, namespace: default, labels: {istio.io/waypoint-for: all}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {istio.io/use-waypoint: way}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: greeter, namespace: default}
spec:
  hosts: [greeter]
  http:
  - match: [{uri: {prefix: /v2}}]
    route: [{destination: {host: greeter, subset: v2}}]
  - route: [{destination: {host: greeter, subset: v1}}]
---
apiVersion: v1
kind: Service
metadata: {name: inside, namespace: default}
spec:
  clusterIP: 10.96.7.9
  selector: {app: inside}
  ports: [{name: http, port: 80, targetPort: %(target)d}, {name: tcp, port: 90, targetPort: %(target)d}]
---
apiVersion: v1
kind: Pod
metadata:
  name: inside-1
  namespace: default
  labels: {app: inside}
  annotations: {ambient.istio.io/redirection: enabled}
spec: {serviceAccountName: inside, containers: [{name: app, image: test}]}
status: {phase: Running, podIP: 127.0.0.6, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata:
  name: alone
  namespace: default
  labels: {networking.istio.io/tunnel: http}
spec: {serviceAccountName: alone, containers: [{name: app, image: test}]}
status: {phase: Running, podIP: 127.0.0.7, conditions: [{type: Ready, status: "True"}]}
"""

POLICIES = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: service, namespace: default}
spec:
  targetRefs: [{group: "", kind: Service, name: greeter}]
  action: DENY
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/bob]}}]
    to: [{operation: {paths: [/private]}}]
  - from: [{source: {notNamespaces: [default, other]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: gateway, namespace: default}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: way}]
  action: DENY
  rules: [{to: [{operation: {paths: [/secret]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-for-waypoints, namespace: default}
spec: {action: DENY, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: default}
spec:
  targetRefs: [{group: "", kind: Service, name: greeter}]
  jwtRules: [{issuer: a, jwks: '%(jwks)s'}]
"""


def _socket(kind: str, context: dict[str, Any]) -> dict[str, Any]:
    return {"name": "envoy.transport_sockets.tls", "typed_config": {"@type": f"{TLS}.{kind}TlsContext", **context}}


def _tls(pair: tuple[Path, Path], ca: Path, alpn: str = "h2") -> dict[str, Any]:
    certificate, key = pair
    return {
        "common_tls_context": {
            "alpn_protocols": [alpn],
            "tls_certificates": [
                {"certificate_chain": {"filename": str(certificate)}, "private_key": {"filename": str(key)}}
            ],
            "validation_context": {"trusted_ca": {"filename": str(ca)}},
        }
    }


def _cluster(name: str, host: str, port: int, *, socket: dict[str, Any] | None = None, http2: bool = False) -> Any:
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    out: dict[str, Any] = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}]}
            ],
        },
    }
    if http2:
        typed = {"@type": f"type.googleapis.com/{options}", "explicit_http_config": {"http2_protocol_options": {}}}
        out["typed_extension_protocol_options"] = {options: typed}
    if socket:
        out["transport_socket"] = socket
    return out


def _door(port: int, target: str, cluster: str) -> dict[str, Any]:
    """A port of this machine whose connections are tunnelled to *target*, as a ztunnel does with a pod's."""
    proxy = {
        "@type": f"{NETWORK}.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "door",
        "cluster": cluster,
        "tunneling_config": {"hostname": target},
    }
    return {
        "name": f"door-{port}",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}],
    }


def _tunnel_end(address: str, context: dict[str, Any]) -> dict[str, Any]:
    """What a ztunnel is for its pods: takes tunnels, and connects to the pod behind them."""
    route = {
        "match": {"connect_matcher": {}},
        "route": {"cluster": address, "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]},
    }
    manager = {
        "@type": f"{NETWORK}.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "tunnel_end",
        "http2_protocol_options": {"allow_connect": True},
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    return {
        "name": f"end-{address}",
        "address": {"socket_address": {"address": address, "port_value": 15008}},
        "filter_chains": [
            {
                "transport_socket": _socket("Downstream", {**context, "require_client_certificate": True}),
                "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
            }
        ],
    }


@dataclass
class World:
    """A waypoint with doors to it: by whom and to where."""

    envoy: EnvoyProcess
    plane: ControlPlaneProcess
    tunnel: EnvoyProcess | None
    doors: dict[tuple[str, str], int]
    config: Path
    target: int
    rsa: RsaIssuer = field(default_factory=lambda: RsaIssuer("a"))

    def call(self, who: str, target: str, path: str, **headers: str) -> tuple[int, str]:
        """Status and who answered; 0 when the connection was closed."""
        connection = http.client.HTTPConnection("127.0.0.1", self.doors[who, target], timeout=10)
        try:
            connection.request("GET", path, headers=headers)
            reply = connection.getresponse()
            body = reply.read()
            return reply.status, json.loads(body)["name"] if reply.status == 200 else ""
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()


VIP, INSIDE, INSIDE_TCP, NOBODY = "10.96.7.7:80", "10.96.7.9:80", "10.96.7.9:90", "10.96.9.9:80"


def _world(stack: ExitStack, scratch: Path, *, secure: bool) -> World:
    config = scratch / "config"
    config.mkdir()
    target = free_port_on(shop.POD_V1, shop.POD_V2, TUNNELLED, ALONE)
    shop.write(config / "service.yaml", shop.service(80, target))
    shop.write(config / "waypoint.yaml", WAYPOINT % {"target": target})
    authority = Authority(scratch)

    def identity(name: str, space: str = "default") -> dict[str, Any]:
        return _tls(authority.workload(f"spiffe://cluster.local/ns/{space}/sa/{name}"), authority.ca)

    for address, name in ((shop.POD_V1, "v1"), (shop.POD_V2, "v2"), (TUNNELLED, "inside"), (ALONE, "alone")):
        stack.enter_context(Backend(address, target, name))
    plane = stack.enter_context(ControlPlaneProcess(config, scratch))
    metadata: dict[str, Any] = dict(METADATA)
    extra: list[dict[str, Any]] = []
    tunnel = None
    if secure:
        metadata["ISTIO_VERSION"] = "1.28.0"
        secrets = SecretServer(*authority.workload("spiffe://cluster.local/ns/default/sa/way"), authority.ca)
        extra.append(stack.enter_context(secrets).cluster)
        static = {
            "listeners": [_tunnel_end(TUNNELLED, identity("inside")), _tunnel_end(ALONE, identity("alone"))],
            "clusters": [_cluster(address, address, target) for address in (TUNNELLED, ALONE)],
        }
        tunnel = stack.enter_context(
            EnvoyProcess(scratch, "127.0.0.1:1", "end", {}, "DELTA_GRPC", name="end", static=static)
        )
    envoy = stack.enter_context(EnvoyProcess(scratch, plane.xds, NODE, metadata, "DELTA_GRPC", clusters=extra))
    wait_for("the waypoint is live", envoy.ready)
    who = {"alice": identity("alice"), "bob": identity("bob"), "mallory": identity("alice", "elsewhere")}
    sockets = {name: _socket("Upstream", context) if secure else None for name, context in who.items()}
    sockets["nobody"] = None
    targets = (VIP, INSIDE, INSIDE_TCP, NOBODY, f"{shop.POD_V1}:{target}", f"{TUNNELLED}:{target}", f"{ALONE}:{target}")
    doors = {(name, where): free_port() for name in sockets for where in targets}
    static = {
        "listeners": [_door(port, where, name) for (name, where), port in doors.items()],
        "clusters": [_cluster(name, "127.0.0.1", 15008, socket=socket, http2=True) for name, socket in sockets.items()],
    }
    stack.enter_context(EnvoyProcess(scratch, "127.0.0.1:1", "doors", {}, "DELTA_GRPC", name="doors", static=static))
    world = World(envoy, plane, tunnel, doors, config, target)
    wait_for("requests go through", lambda: world.call("alice", VIP, "/")[0] == 200)
    return world


def test_without_certificates(tmp_path: Path) -> None:
    """First in this module: the port is a fixed one, and the others keep their waypoint on it."""
    strict = (
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: default}\n"
    )
    with ExitStack() as stack:
        world = _world(stack, tmp_path, secure=False)
        assert world.call("nobody", VIP, "/v2") == (200, "v2")
        shop.write(world.config / "policies.yaml", POLICIES % {"jwks": world.rsa.jwks})
        wait_for("nobody is of these namespaces", lambda: world.call("alice", VIP, "/")[0] == 403)
        assert world.call("alice", INSIDE, "/") == (200, "inside")
        shop.write(world.config / "strict.yaml", f"{strict}spec: {{mtls: {{mode: STRICT}}}}\n")
        wait_for("nobody gets in", lambda: world.call("alice", INSIDE, "/") == (0, ""))
        assert world.envoy.rejected() == {}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        made = _world(stack, tmp_path_factory.mktemp("waypoint"), secure=True)
        yield made
        assert made.envoy.rejected() == {}
        assert made.plane.json("/debug/push_status")["refusals"] == []


def test_rules_and_identities(world: World) -> None:
    assert world.call("alice", VIP, "/") == (200, "v1")
    assert world.call("alice", VIP, "/v2/x") == (200, "v2")
    assert world.call("nobody", VIP, "/") == (0, ""), "no certificate, no tunnel"
    assert world.call("alice", NOBODY, "/") == (0, ""), "an address that nothing bound here has"
    shop.write(world.config / "policies.yaml", POLICIES % {"jwks": world.rsa.jwks})
    wait_for("policies are in force", lambda: world.call("alice", VIP, "/secret")[0] == 403)
    assert world.call("alice", VIP, "/private") == (200, "v1")
    assert world.call("bob", VIP, "/private") == (403, "")
    assert world.call("bob", VIP, "/") == (200, "v1")
    assert world.call("mallory", VIP, "/") == (403, ""), "of another namespace"
    assert world.call("mallory", INSIDE, "/")[0] == 200, "that policy is for the other service"
    assert world.call("alice", VIP, "/", authorization=f"Bearer {world.rsa.token(aud=None)}") == (200, "v1")
    assert world.call("alice", VIP, "/", authorization=f"Bearer {RsaIssuer('a').token()}") == (401, "")
    forged = 'URI="spiffe://cluster.local/ns/default/sa/alice"'
    assert world.call("bob", VIP, "/private", **{"x-forwarded-client-cert": forged}) == (403, "")


def _without_policies(world: World) -> None:
    (world.config / "policies.yaml").unlink(missing_ok=True)
    wait_for("policies are gone", lambda: world.call("alice", VIP, "/secret")[0] == 200)


def test_endpoints_in_tunnels(world: World) -> None:
    assert world.tunnel is not None
    _without_policies(world)
    before = sum(world.tunnel.stats("tunnel_end.downstream_rq_total").values())
    assert world.call("alice", INSIDE, "/") == (200, "inside")
    assert world.call("alice", INSIDE_TCP, "/") == (200, "inside")
    assert sum(world.tunnel.stats("tunnel_end.downstream_rq_total").values()) > before


def test_workloads_own_addresses(world: World) -> None:
    assert world.tunnel is not None
    _without_policies(world)
    direct, inside = f"{shop.POD_V1}:{world.target}", f"{TUNNELLED}:{world.target}"
    before = sum(world.tunnel.stats("tunnel_end.downstream_rq_total").values())
    assert world.call("alice", direct, "/v2/x") == (200, "v1"), "no service's rule counts there"
    for _ in range(3):  # connections are kept, and never given to a request for another workload
        assert world.call("alice", inside, "/") == (200, "inside")
        assert world.call("alice", f"{ALONE}:{world.target}", "/") == (200, "alone")
    assert sum(world.tunnel.stats("tunnel_end.downstream_rq_total").values()) == before + 2
    shop.write(world.config / "policies.yaml", POLICIES % {"jwks": world.rsa.jwks})
    wait_for("policies are in force", lambda: world.call("alice", direct, "/secret")[0] == 403)
    assert world.call("alice", inside, "/secret")[0] == 403
    assert world.call("mallory", direct, "/")[0] == 200, "a service's policy is not for its workloads' addresses"
