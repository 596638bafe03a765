"""A policy for something that is not there protects nobody, and says so."""

from tests.support.mesh import read

GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: default}
spec: {gatewayClassName: istio, listeners: [{name: web, port: 80, protocol: HTTP}]}
---"""
POLICY = """
apiVersion: security.istio.io/v1
kind: %s
metadata: {name: here, namespace: %s}
spec:
  targetRefs:
  - {group: gateway.networking.k8s.io, kind: Gateway, name: %s}
"""


def test_unknown_targets() -> None:
    for kind in ("AuthorizationPolicy", "RequestAuthentication"):
        for space, name, wanted in (("default", "edge", []), ("default", "other", [7]), ("elsewhere", "edge", [7])):
            done = read(GATEWAY, POLICY % (kind, space, name))
            (verdict,) = [item for item in done.verdicts if item.kind == kind]
            found = [note.line for note in verdict.notes if note.code == "unknown-target"]
            assert found == wanted, (kind, space, name)


def test_targets_of_waypoints() -> None:
    way = GATEWAY.replace("gatewayClassName: istio,", "gatewayClassName: istio-waypoint,")
    service = """
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: default, labels: {%s}}
spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}]}
---"""
    policy = POLICY.replace("{group: gateway.networking.k8s.io, kind: Gateway, name: %s}", "%s")
    text = way + service % ("bound", "istio.io/use-waypoint: edge") + service % ("free", "")
    gateway_class = "{group: gateway.networking.k8s.io, kind: GatewayClass, name: %s}"
    for space, target, code in (
        ("default", "{kind: Service, name: bound}", "waypoint-only"),
        ("default", "{kind: Service, name: free}", "no-waypoint"),
        ("default", "{kind: Service, name: lost}", "unknown-target"),
        ("default", "{group: gateway.networking.k8s.io, kind: Gateway, name: edge}", "waypoint-only"),
        ("default", gateway_class % "istio-waypoint", "unknown-target"),
        ("istio-system", gateway_class % "istio-waypoint", None),
        ("istio-system", gateway_class % "istio", "unknown-target"),
    ):
        done = read(text, policy % ("AuthorizationPolicy", space, target))
        (verdict,) = [item for item in done.verdicts if item.kind == "AuthorizationPolicy"]
        assert [note.code for note in verdict.notes] == ([code] if code else []), target
