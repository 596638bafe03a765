"""A small configuration of our own: one service with two versions on loopback addresses, with rules to edit."""

from __future__ import annotations

from pathlib import Path

POD_V1, POD_V2 = "127.0.0.2", "127.0.0.3"


def service(port: int, target: int, *, name: str = "greeter", protocol: str = "http") -> str:
    """A Service with a pod of each version behind it."""
    pods = "".join(
        f"""---
apiVersion: v1
kind: Pod
metadata:
  name: {name}-{version}
  namespace: default
  labels: {{app: {name}, version: {version}}}
spec:
  serviceAccountName: {name}
  containers: [{{name: app, image: test, ports: [{{containerPort: {target}}}]}}]
status:
  phase: Running
  podIP: {address}
  podIPs: [{{ip: {address}}}]
  conditions: [{{type: Ready, status: "True"}}]
"""
        for version, address in (("v1", POD_V1), ("v2", POD_V2))
    )
    return f"""apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec:
  clusterIP: 10.96.7.7
  selector: {{app: {name}}}
  ports: [{{name: {protocol}, port: {port}, targetPort: {target}}}]
{pods}---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: default}}
spec:
  host: {name}
  subsets:
  - {{name: v1, labels: {{version: v1}}}}
  - {{name: v2, labels: {{version: v2}}}}
"""


def rules(weight_v1: int, *, name: str = "greeter", header: str = "end-user") -> str:
    """A VirtualService: jason gets v2, everybody else is split."""
    return f"""apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{name}]
  http:
  - match:
    - headers: {{{header}: {{exact: jason}}}}
    route:
    - destination: {{host: {name}, subset: v2}}
  - route:
    - destination: {{host: {name}, subset: v1}}
      weight: {weight_v1}
    - destination: {{host: {name}, subset: v2}}
      weight: {100 - weight_v1}
"""


def write(path: Path, content: str) -> None:
    """Replace a file in one step, as careful editors do."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(content)
    temporary.replace(path)
