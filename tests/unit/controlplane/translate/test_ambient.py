"""Workloads and services for ztunnel: names, fields, and what is nobody's pod."""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format

from controlplane.model.node import parse_node
from controlplane.snapshot import encode
from controlplane.translate import Resources, prepare, translate
from controlplane.translate.names import ADDRESS, AUTHORIZATION, WORKLOAD
from tests.support.mesh import read
from underpass.api import istio

MESH = """
apiVersion: v1
kind: Namespace
metadata: {name: ns}
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: ns}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, "fd00::1"]
  selector: {app: web}
  internalTrafficPolicy: Local
  ports: [{name: http, port: 80, targetPort: named}, {name: tcp-x, port: 90, targetPort: 9090}]
---
apiVersion: v1
kind: Pod
metadata:
  name: web-0
  namespace: ns
  labels: {app: web, version: v2}
  annotations: {ambient.istio.io/redirection: enabled}
spec:
  nodeName: n1
  serviceAccountName: sa
  containers: [{name: a, image: i, ports: [{name: named, containerPort: 8080}]}]
status:
  phase: Running
  podIP: 10.244.0.1
  podIPs: [{ip: 10.244.0.1}, {ip: "fd00::a"}]
  conditions: [{type: Ready, status: "True"}]
---
apiVersion: v1
kind: Pod
metadata: {name: slow-0, namespace: ns, labels: {app: slow}}
spec: {containers: [{name: a, image: i}]}
status: {phase: Running, podIP: 10.244.0.2, conditions: [{type: Ready, status: "False"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host-0, namespace: ns}
spec: {hostNetwork: true, containers: [{name: a, image: i}]}
status: {phase: Running, podIP: 192.168.0.1, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: ns}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: ns}
spec: {type: ExternalName, externalName: example.com, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: manual, namespace: ns}
spec: {clusterIP: 10.96.0.9, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: manual-1, namespace: ns, labels: {kubernetes.io/service-name: manual}}
addressType: IPv4
ports: [{name: http, port: 8000}]
endpoints: [{addresses: [172.16.0.1], conditions: {ready: true}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: ns, labels: {app: web}}
spec: {address: 172.16.0.5, serviceAccount: vm-sa, weight: 7, locality: r/z/s, network: other, ports: {http: 8181}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ext, namespace: ns}
spec:
  hosts: [api.example.com]
  addresses: [240.0.0.7, 240.1.0.0/16]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 443, name: tls, protocol: TLS}]
  endpoints: [{address: 203.0.113.9}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: dns, namespace: ns}
spec:
  hosts: [dns.example.com]
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: none, namespace: ns}
spec:
  hosts: [none.example.com]
  addresses: [240.0.0.8]
  resolution: NONE
  ports: [{number: 80, name: http, protocol: HTTP}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: sel, namespace: ns}
spec: {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {namespaces: [a]}}]}]}
"""

ZTUNNEL = parse_node("ztunnel~10.0.0.9~ztunnel-x.istio-system~istio-system.svc.cluster.local", {"NODE_NAME": "n1"})


def served() -> Resources:
    done = read(MESH)
    assert not [verdict for verdict in done.verdicts if verdict.state != "accepted"]
    return translate(prepare(done.mesh), ZTUNNEL)


def plain(message: Any) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=istio.pool)


def test_names_and_aliases() -> None:
    found = served()
    assert sorted(found) == sorted([ADDRESS, WORKLOAD, AUTHORIZATION])
    workloads = [
        "Kubernetes//Pod/ns/host-0",
        "Kubernetes//Pod/ns/slow-0",
        "Kubernetes//Pod/ns/web-0",
        "Kubernetes/discovery.k8s.io/EndpointSlice/ns/manual/172.16.0.1",
        "Kubernetes/networking.istio.io/ServiceEntry/ns/dns/dns.example.com",
        "Kubernetes/networking.istio.io/ServiceEntry/ns/ext/203.0.113.9",
        "Kubernetes/networking.istio.io/WorkloadEntry/ns/vm",
    ]
    assert list(found[WORKLOAD]) == workloads
    services = [f"ns/{name}.ns.svc.cluster.local" for name in ("headless", "manual", "web")]
    services += [f"ns/{name}.example.com" for name in ("api", "dns", "none")]
    assert sorted(found[ADDRESS]) == sorted([*workloads, *services])
    assert list(found[AUTHORIZATION]) == ["istio-system/istio_converted_static_strict", "ns/sel"]

    aliases = {name: encode(ADDRESS, name, item).aliases for name, item in found[ADDRESS].items()}
    assert aliases["Kubernetes//Pod/ns/web-0"] == ("/10.244.0.1", "/fd00::a")
    assert aliases["Kubernetes/networking.istio.io/WorkloadEntry/ns/vm"] == ("other/172.16.0.5",)
    assert aliases["Kubernetes//Pod/ns/host-0"] == (), "the node's address tells no pod"
    assert aliases["ns/web.ns.svc.cluster.local"] == ("/10.96.0.1", "/fd00::1")
    assert aliases["ns/api.example.com"] == ("/240.0.0.7", "/240.1.0.0/16")
    assert encode(WORKLOAD, "w", found[WORKLOAD]["Kubernetes//Pod/ns/web-0"]).aliases == ("/10.244.0.1", "/fd00::a")


def test_a_pod() -> None:
    found = served()
    pod = plain(found[WORKLOAD]["Kubernetes//Pod/ns/web-0"])
    assert plain(found[ADDRESS]["Kubernetes//Pod/ns/web-0"]) == {"workload": pod}
    assert pod.pop("addresses") == ["CvQAAQ==", "/QAAAAAAAAAAAAAAAAAACg=="]
    services = pod.pop("services")
    assert services == {
        "ns/headless.ns.svc.cluster.local": {"ports": [{"service_port": 80, "target_port": 8080}]},
        "ns/web.ns.svc.cluster.local": {
            "ports": [{"service_port": 80, "target_port": 8080}, {"service_port": 90, "target_port": 9090}]
        },
    }
    assert pod == {
        "uid": "Kubernetes//Pod/ns/web-0",
        "name": "web-0",
        "namespace": "ns",
        "tunnel_protocol": "HBONE",
        "service_account": "sa",
        "node": "n1",
        "canonical_name": "web",
        "canonical_revision": "v2",
        "workload_type": "POD",
        "workload_name": "web-0",
        "authorization_policies": ["ns/sel"],
        "cluster_id": "Kubernetes",
        "locality": {"region": "r", "zone": "z"},
    }


def test_what_is_not_an_ordinary_pod() -> None:
    found = served()[WORKLOAD]
    assert plain(found["Kubernetes//Pod/ns/slow-0"])["status"] == "UNHEALTHY"
    assert plain(found["Kubernetes//Pod/ns/host-0"])["network_mode"] == "HOST_NETWORK"
    vm = plain(found["Kubernetes/networking.istio.io/WorkloadEntry/ns/vm"])
    assert (vm["network"], vm["capacity"], vm["service_account"]) == ("other", 7, "vm-sa")
    assert vm["locality"] == {"region": "r", "zone": "z", "subzone": "s"}
    assert vm["services"]["ns/web.ns.svc.cluster.local"]["ports"][0] == {"service_port": 80, "target_port": 8181}
    assert vm["authorization_policies"] == ["ns/sel"]
    external = plain(found["Kubernetes/networking.istio.io/ServiceEntry/ns/ext/203.0.113.9"])
    assert external["services"] == {"ns/api.example.com": {"ports": [{"service_port": 443, "target_port": 443}]}}
    assert "tunnel_protocol" not in external
    named = plain(found["Kubernetes/networking.istio.io/ServiceEntry/ns/dns/dns.example.com"])
    assert named["hostname"] == "dns.example.com"
    assert "addresses" not in named
    manual = plain(found["Kubernetes/discovery.k8s.io/EndpointSlice/ns/manual/172.16.0.1"])
    assert manual["services"] == {
        "ns/manual.ns.svc.cluster.local": {"ports": [{"service_port": 80, "target_port": 8000}]}
    }


def test_services() -> None:
    found = {name: plain(item)["service"] for name, item in served()[ADDRESS].items() if item.HasField("service")}
    web = found["ns/web.ns.svc.cluster.local"]
    assert web["load_balancing"] == {"routing_preference": ["NODE"], "mode": "STRICT"}
    assert (web["ip_families"], web["canonical"]) == ("DUAL", True)
    assert web["ports"] == [
        {"service_port": 80, "app_protocol": "HTTP11"},
        {"service_port": 90, "target_port": 9090, "app_protocol": "TCP"},
    ]
    headless = found["ns/headless.ns.svc.cluster.local"]
    assert "addresses" not in headless
    assert headless["load_balancing"] == {"health_policy": "ALLOW_ALL"}
    assert found["ns/none.example.com"]["load_balancing"] == {"mode": "PASSTHROUGH"}
    entry = found["ns/api.example.com"]
    assert [item.get("length") for item in entry["addresses"]] == [None, 16]
    assert "canonical" not in entry
    assert found["ns/dns.example.com"]["ports"] == [{"service_port": 80, "target_port": 8080, "app_protocol": "HTTP11"}]


def test_what_did_not_change_is_the_same_object_in_the_next_generation() -> None:
    first = prepare(read(MESH).mesh)
    before = translate(first, ZTUNNEL)
    after = translate(prepare(read(MESH.replace("10.244.0.2", "10.244.0.3")).mesh, first), ZTUNNEL)
    changed = [name for name, item in after[ADDRESS].items() if item is not before[ADDRESS].get(name)]
    assert changed == ["Kubernetes//Pod/ns/slow-0"]


def test_waypoints_are_told() -> None:
    text = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: way, namespace: default, labels: {istio.io/waypoint-for: all}}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: default, labels: {istio.io/use-waypoint: way}}
spec: {clusterIP: 10.96.0.10, selector: {app: shop}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: shop-0, namespace: default, labels: {app: shop, istio.io/use-waypoint: way}}
spec: {containers: [{name: shop}]}
status: {phase: Running, podIP: 10.244.0.11}
"""
    served = translate(
        prepare(read(text).mesh), parse_node("ztunnel~10.0.0.1~z.istio-system~istio-system.svc.cluster.local", {})
    )
    table = served[ADDRESS]
    for made in (
        table["default/shop.default.svc.cluster.local"].service,
        table["Kubernetes//Pod/default/shop-0"].workload,
    ):
        where = made.waypoint.hostname
        assert (where.namespace, where.hostname, made.waypoint.hbone_mtls_port) == (
            "default",
            "way.default.svc.cluster.local",
            15008,
        )
