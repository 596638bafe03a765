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
