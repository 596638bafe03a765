"""From objects to services and endpoints, and what the mesh says about its rules."""

import pytest

from controlplane.model.hosts import matches, overlap, specificity
from controlplane.model.mesh import Locality, Mesh, fqdn, visible
from controlplane.model.protocols import protocol
from tests.support.mesh import read


def service(mesh: Mesh, name: str) -> list[tuple[str, int, tuple[str, ...]]]:
    found = next(item for item in mesh.services if item.name == name)
    return [
        (endpoint.address, endpoint.port, endpoint.also)
        for port in found.ports
        for endpoint in mesh.endpoints_of(found, port.number)
    ]


@pytest.mark.parametrize(
    ("port", "name", "app", "transport", "wanted"),
    [
        (80, "http", "", "TCP", "HTTP"),
        (80, "http-web", "", "TCP", "HTTP"),
        (80, "http2-x", "", "TCP", "HTTP2"),
        (80, "grpc", "", "TCP", "GRPC"),
        (80, "grpc-web", "", "TCP", "GRPC-WEB"),
        (80, "grpc-webby", "", "TCP", "GRPC-WEB"),
        (80, "HTTPS", "", "TCP", "HTTPS"),
        (80, "tcp", "http", "TCP", "HTTP"),
        (80, "web", "kubernetes.io/h2c", "TCP", "HTTP2"),
        (80, "httpd", "", "TCP", "AUTO"),
        (80, "", "", "TCP", "AUTO"),
        (3306, "", "", "TCP", "TCP"),
        (53, "dns", "", "UDP", "UDP"),
    ],
)
def test_protocol(port: int, name: str, app: str, transport: str, wanted: str) -> None:
    assert protocol(port, name, app, transport) == wanted


SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: s, namespace: n}
spec:
  clusterIP: 10.96.0.1
  selector: {app: s}
  ports: [{name: http, port: 80, targetPort: web}]
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: n, labels: {app: s}}
spec: {containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]}
status: {podIP: 10.0.0.9, podIPs: [{ip: 10.0.0.9}, {ip: "fd00::9"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: p10, namespace: n, labels: {app: s}}
spec: {containers: [{name: c, ports: [{name: web, containerPort: 8081}]}]}
status: {podIP: 10.0.0.10}
---
apiVersion: v1
kind: Pod
metadata: {name: not-ready, namespace: n, labels: {app: s}}
spec: {containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]}
status: {podIP: 10.0.0.11, phase: Running, conditions: [{type: Ready, status: "False"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: elsewhere, namespace: m, labels: {app: s}}
spec: {containers: [{name: c}]}
status: {podIP: 10.0.0.12}
"""

SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s-1, namespace: n, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
ports: [{name: http, port: 7000}]
endpoints: [{addresses: [10.0.0.50]}]
"""


def test_pods_stand_in_for_endpoint_slices() -> None:
    assert service(read(SERVICE).mesh, "s") == [("10.0.0.9", 8080, ("fd00::9",)), ("10.0.0.10", 8081, ())]


def test_two_pods_that_claim_one_address_both_keep_it() -> None:
    twin = SERVICE.replace("podIP: 10.0.0.10", "podIP: 10.0.0.9").replace("containerPort: 8081", "containerPort: 8080")
    assert service(read(twin).mesh, "s") == [("10.0.0.9", 8080, ("fd00::9",)), ("10.0.0.9", 8080, ())]


def test_endpoint_slices_replace_pods() -> None:
    assert service(read(SERVICE, SLICE).mesh, "s") == [("10.0.0.50", 7000, ())]


def test_workload_entry_of_a_service() -> None:
    entry = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: w, namespace: n}\n"
    entry += "spec: {address: 192.0.2.1, labels: {app: s}, ports: {http: 9000}}\n"
    mesh = read(SERVICE, SLICE, entry).mesh
    assert ("192.0.2.1", 9000, ()) in service(mesh, "s")
    assert mesh.workloads["192.0.2.1"].kind == "WorkloadEntry"
    assert [(t.hostname, t.port, t.target) for t in mesh.targets["192.0.2.1"]] == [("s.n.svc.cluster.local", 80, 9000)]


def test_targets_of_a_workload() -> None:
    mesh = read(SERVICE).mesh
    assert {ip: [t.target for t in found] for ip, found in mesh.targets.items()} == {
        "10.0.0.9": [8080],
        "fd00::9": [8080],
        "10.0.0.10": [8081],
    }


def test_notes_about_the_mesh() -> None:
    text = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: n}
spec:
  hosts: [s]
  http:
  - route: [{destination: {host: s, subset: none}}]
    mirror: {host: s, port: {number: 81}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: d, namespace: n}
spec: {host: nowhere}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: lonely, namespace: n}
spec: {http: [{route: [{destination: {host: s}}]}]}
"""
    done = read(SERVICE, text)
    notes = {
        verdict.name: [(note.code, note.line) for note in verdict.notes] for verdict in done.verdicts if verdict.notes
    }
    assert notes == {
        "v": [("unknown-subset", 8), ("unknown-port", 9)],
        "d": [("unknown-host", 14)],
        "lonely": [("no-hosts", 16)],
    }


def test_hosts() -> None:
    assert matches("*.a.b", "x.a.b")
    assert not matches("*.a.b", "a.b")
    assert matches("*", "x")
    assert matches("*.b", "*.a.b")
    assert not matches("*.a.b", "*.b")
    assert overlap("*.b", "*.a.b")
    assert sorted(["*", "*.b", "a.b", "*.a.b"], key=specificity) == ["a.b", "*.a.b", "*.b", "*"]
    assert fqdn("a", "n") == "a.n.svc.cluster.local"
    assert fqdn("a.b", "n") == "a.b"
    assert fqdn("*", "n") == "*"


def test_visibility_and_locality() -> None:
    assert visible((), "a", "b")
    assert visible(("*",), "a", "b")
    assert not visible((".",), "a", "b")
    assert visible((".", "b"), "a", "b")
    assert not visible(("~",), "a", "a")
    assert Locality.parse("r/z/s/x") == Locality("r", "z", "s")
    assert Locality.parse("r.z") == Locality("r", "z")
    assert str(Locality("r", "z")) == "r/z"
