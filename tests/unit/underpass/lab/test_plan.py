"""From YAML to the plan of a lab."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.tiers import shared
from underpass.lab.errors import LabError, ManifestError
from underpass.lab.generate import endpoints_yaml, hosts_text, registry_entry
from underpass.lab.images import Image, Images, bare_name, expand, parse_lab_file
from underpass.lab.model import Options, Plan, SourceFile, Workload
from underpass.lab.plan import find_workload, make_plan

BOOKINFO = shared() / "istio/bookinfo/platform/bookinfo.yaml"
SHOP = Path(__file__).parents[4] / "samples" / "shop"


def source(text: str, name: str = "a.yaml") -> SourceFile:
    return SourceFile(name, f"/x/{name}", text)


def deployment(name: str, **extra: Any) -> str:
    labels = extra.pop("labels", {"app": name})
    container: dict[str, Any] = {"name": "c", "image": extra.pop("image", f"img/{name}:1")}
    if ports := extra.pop("ports", None):
        container["ports"] = ports
    if env := extra.pop("env", None):
        container["env"] = env
    spec = {"containers": [container], **extra.pop("pod", {})}
    template = {"metadata": {"labels": labels, **extra.pop("template_metadata", {})}, "spec": spec}
    metadata = {"name": name, "namespace": extra.pop("namespace", "default")}
    kind = extra.pop("kind", "Deployment")
    data = {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": metadata,
        "spec": {"selector": {"matchLabels": labels}, "template": template, **extra},
    }
    return "---\n" + yaml.safe_dump(data, sort_keys=False)


def service(name: str, ports: list[dict[str, Any]] | None = None, **spec: Any) -> str:
    namespace = spec.pop("namespace", "default")
    body = {"selector": spec.pop("selector", {"app": name}), "ports": ports or [{"port": 80, "name": "http"}], **spec}
    data = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": body}
    return "---\n" + yaml.safe_dump(data, sort_keys=False)


def plan(*texts: str, images: Images | None = None, before: Plan | None = None, **options: Any) -> Plan:
    files = [source("".join(texts))]
    allocation = before.allocation() if before else None
    return make_plan(files, images or Images(), Options(**options), 244, allocation)


def by_name(found: Plan) -> dict[str, Workload]:
    return {workload.name: workload for workload in found.workloads}


@pytest.mark.needs("shared")
def test_istios_bookinfo_unedited() -> None:
    found = make_plan([SourceFile("b.yaml", str(BOOKINFO), BOOKINFO.read_text())], Images(), Options(), 244)
    assert not found.notes
    assert [w.owner for w in found.workloads] == [
        "details-v1",
        "ratings-v1",
        "reviews-v1",
        "reviews-v2",
        "reviews-v3",
        "productpage-v1",
    ]
    reviews = by_name(found)["reviews-v2-0"]
    assert reviews.ports == (9080,)
    assert reviews.service_account == "bookinfo-reviews"
    assert reviews.processes[0].env["LOG_DIR"] == "/tmp/logs"
    assert json.loads(reviews.processes[0].env["UNDERPASS_LABELS"]) == {"app": "reviews", "version": "v2"}
    assert [s.vips for s in found.services] == [("10.96.0.10",), ("10.96.0.11",), ("10.96.0.12",), ("10.96.0.13",)]
    line = BOOKINFO.read_text().splitlines()[reviews.line - 1]
    assert line == "apiVersion: apps/v1"


def test_the_shop_has_services_that_call_each_other() -> None:
    found = make_plan([source((SHOP / "shop.yaml").read_text())], Images(), Options(), 244)
    assert not found.notes
    assert len({s.name for s in found.services}) >= 4
    assert {w.labels["version"] for w in found.workloads if w.labels["app"] == "catalog"} == {"v1", "v2"}
    hosts = {s.name for s in found.services}
    for workload in found.workloads:
        for url in workload.processes[0].env.get("CALLS", "").split(","):
            assert not url or url.removeprefix("http://").strip("/") in hosts


def test_replicas_share_nodes_in_turn_and_get_their_own_addresses() -> None:
    found = plan(deployment("a", replicas=3), deployment("b"), nodes=2)
    assert [(w.name, w.node, w.ips) for w in found.workloads] == [
        ("a-0", 1, ("10.244.1.10",)),
        ("a-1", 2, ("10.244.2.10",)),
        ("a-2", 1, ("10.244.1.11",)),
        ("b-0", 2, ("10.244.2.11",)),
    ]
    assert [node.name for node in found.nodes] == ["node-1", "node-2"]
    assert found.netns(found.workloads[1]) == "underpass.node-2.default.a-1"


def test_labs_with_a_name_share_no_node() -> None:
    assert plan(deployment("a"), name="x").nodes[0].name == "x-node-1"


def test_what_runs_stays_where_it_is() -> None:
    first = plan(deployment("a", replicas=2), service("a"), nodes=2)
    second = plan(deployment("z"), service("z"), deployment("a", replicas=2), service("a"), nodes=2, before=first)
    old, new = by_name(first), by_name(second)
    assert (new["a-0"].ips, new["a-1"].ips) == (old["a-0"].ips, old["a-1"].ips)
    assert new["z-0"].ips[0] not in {ip for w in first.workloads for ip in w.ips}
    vips = {s.name: s.vips for s in second.services}
    assert vips["a"] == first.services[0].vips
    assert vips["z"] != vips["a"]


def test_ports_are_the_containers_else_the_services_targets() -> None:
    named = [{"name": "web", "containerPort": 8080}, {"containerPort": 9090}]
    found = plan(
        deployment("a", ports=named),
        service("a", [{"port": 80, "targetPort": "web"}, {"port": 81, "name": "x", "targetPort": 9999}]),
        deployment("b"),
        service("b", [{"port": 80, "name": "p", "targetPort": 8000}, {"port": 90, "name": "q"}]),
        deployment("c"),
    )
    pods = by_name(found)
    assert pods["a-0"].ports == (8080, 9090, 9999)
    assert pods["b-0"].ports == (90, 8000)
    assert pods["c-0"].ports == ()


def test_a_named_port_that_no_container_has_is_said() -> None:
    found = plan(deployment("a"), service("a", [{"port": 80, "targetPort": "web"}]))
    assert any("'web'" in note and "Service a" in note for note in found.notes)


def test_udp_is_not_played_and_said() -> None:
    found = plan(deployment("a", ports=[{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 53}]))
    assert by_name(found)["a-0"].processes[0].ports == (53,)
    assert any("53/UDP" in note for note in found.notes)


def test_workload_entries_own_their_address_and_listen_for_their_service_entry() -> None:
    text = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm-1, namespace: prod}
spec: {address: 172.20.1.5, labels: {app: vm, version: v3}, serviceAccount: vm, ports: {http: 8081}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm-2, namespace: prod}
spec: {address: db.example.com}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: vm, namespace: prod}
spec:
  hosts: [vm.example.com]
  addresses: [10.97.0.5]
  ports: [{name: http, number: 80, protocol: HTTP}, {name: tcp, number: 7000, targetPort: 7001, protocol: TCP}]
  workloadSelector: {labels: {app: vm}}
"""
    found = plan(text)
    (vm,) = found.workloads
    assert (vm.kind, vm.owner, vm.namespace, vm.ips) == ("WorkloadEntry", "vm-1", "prod", ("172.20.1.5",))
    assert vm.service_account == "vm"
    assert vm.ports == (7001, 8081)
    assert any("vm-2" in note and "db.example.com" in note for note in found.notes)
    assert "10.97.0.5 vm.example.com" in hosts_text(found, vm)
    assert "Pod" not in endpoints_yaml(found)


def test_pods_keep_the_address_that_their_status_names() -> None:
    text = """
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: p}}
spec: {containers: [{name: c, image: i, ports: [{containerPort: 80}]}]}
status: {podIP: 10.244.1.77}
"""
    assert by_name(plan(text))["p"].ips == ("10.244.1.77",)
    with pytest.raises(ManifestError, match=r"10\.244\.1\.77 is already"):
        plan(text, text.replace("name: p,", "name: q,").replace("\napiVersion", "---\napiVersion", 1))


def test_environment_with_field_references_and_expansion() -> None:
    env = [
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
        {"name": "URL", "value": "http://$(IP):80/$(POD)/$(NONE)/$$(IP)"},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
    ]
    found = plan(deployment("a", env=env))
    got = found.workloads[0].processes[0].env
    assert (got["POD"], got["IP"], got["APP"]) == ("a-0", "10.244.1.10", "a")
    assert got["URL"] == "http://10.244.1.10:80/a-0/$(NONE)/$(IP)"
    assert "KEY" not in got
    assert any("KEY" in note for note in found.notes)


def test_services_get_addresses_unless_they_want_none() -> None:
    found = plan(
        service("given", clusterIP="10.96.0.10"),
        service("fresh"),
        service("headless", clusterIP="None"),
        service("outside", type="ExternalName", externalName="fresh.default.svc.cluster.local"),
        deployment("headless", replicas=2),
    )
    vips = {s.name: s.vips for s in found.services}
    assert vips == {"given": ("10.96.0.10",), "fresh": ("10.96.0.11",), "headless": (), "outside": ()}
    text = hosts_text(found, found.workloads[0])
    assert "10.96.0.11 fresh fresh.default fresh.default.svc fresh.default.svc.cluster.local" in text
    assert "10.96.0.11 outside outside.default" in text
    assert "10.244.1.10 headless " in text
    assert "10.244.1.11 headless-1.headless " in text


def test_names_of_other_namespaces_are_qualified() -> None:
    found = plan(deployment("a"), service("b", namespace="other"))
    assert "10.96.0.10 b.other b.other.svc b.other.svc.cluster.local" in hosts_text(found, found.workloads[0])


def test_without_a_mesh_names_lead_to_endpoints() -> None:
    found = plan(deployment("a"), service("a"), mesh=False)
    assert "10.244.1.10 a a.default" in hosts_text(found, found.workloads[0])


def test_dual_stack() -> None:
    found = plan(deployment("a"), service("a"), service("four", ipFamilyPolicy="SingleStack"), dual_stack=True)
    assert found.workloads[0].ips == ("10.244.1.10", "fd00:244:1::a")
    assert [s.vips for s in found.services] == [("10.96.0.10", "fd00:96::a"), ("10.96.0.11",)]
    slices = [d for d in yaml.safe_load_all(endpoints_yaml(found)) if d["kind"] == "EndpointSlice"]
    families = [s["addressType"] for s in slices if s["metadata"]["labels"]["kubernetes.io/service-name"] == "a"]
    assert families == ["IPv4", "IPv6"]
    with pytest.raises(ManifestError, match="--dual-stack"):
        plan(service("six", ipFamilies=["IPv6"]))


def test_endpoints_are_what_a_cluster_would_show() -> None:
    found = plan(
        deployment("a", ports=[{"name": "web", "containerPort": 8080}], labels={"app": "a", "v": "1"}),
        service("a", [{"port": 80, "name": "http", "targetPort": "web"}]),
    )
    pod, endpoint_slice = list(yaml.safe_load_all(endpoints_yaml(found)))
    assert pod["status"]["podIP"] == "10.244.1.10"
    assert pod["metadata"]["labels"] == {"app": "a", "v": "1"}
    assert pod["metadata"]["ownerReferences"][0]["name"] == "a"
    assert endpoint_slice["metadata"]["labels"] == {"kubernetes.io/service-name": "a"}
    assert endpoint_slice["ports"] == [{"name": "http", "port": 8080, "protocol": "TCP"}]
    (endpoint,) = endpoint_slice["endpoints"]
    assert endpoint["addresses"] == ["10.244.1.10"]
    assert endpoint["targetRef"] == {"kind": "Pod", "name": "a-0", "namespace": "default"}


def test_placement() -> None:
    where = {"a": "node-2"}
    found = plan(
        deployment("a"), deployment("b", pod={"nodeName": "node-2"}), deployment("c"), nodes=2, placement=where
    )
    assert [(w.owner, w.node) for w in found.workloads] == [("a", 2), ("b", 2), ("c", 1)]
    lost = plan(deployment("a", pod={"nodeSelector": {"kubernetes.io/hostname": "gke-1"}}))
    assert any("gke-1" in note for note in lost.notes)
    with pytest.raises(LabError, match="node-3"):
        plan(deployment("a"), placement={"a": "node-3"})
    with pytest.raises(LabError, match="no workload"):
        plan(deployment("a"), placement={"b": "node-1"})


def test_daemon_sets_run_on_every_node() -> None:
    found = plan(deployment("d", kind="DaemonSet"), nodes=3)
    assert [(w.name, w.node) for w in found.workloads] == [("d-0", 1), ("d-1", 2), ("d-2", 3)]


def test_lists_are_opened() -> None:
    items = [yaml.safe_load(deployment("a")[4:]), yaml.safe_load(service("a")[4:])]
    found = plan(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": items}))
    assert [w.name for w in found.workloads] == ["a-0"]
    assert found.services[0].selects(found.workloads[0])


def test_a_service_without_endpoints_is_said() -> None:
    assert any("selects no workload" in note for note in plan(service("lonely")).notes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (deployment("a", replicas=-1), "replicas"),
        (deployment("a", replicas="many"), "replicas"),
        (deployment("a", ports=[{"containerPort": 70000}]), "70000"),
        (deployment("a", ports={"a": 1}), "must be a list"),
        (deployment("a", pod={"containers": []}), "no containers"),
        (service("a", [{"port": "http"}]), "spec.ports"),
        (service("a", clusterIP="nowhere"), "nowhere"),
        (deployment("a", env=[{"name": "A=B", "value": "1"}]), "A=B"),
        (deployment("a", replicas=2) + deployment("a-0", kind="StatefulSet").replace("a-0", "a", 1), None),
    ],
)
def test_bad_objects_are_named_by_file_and_line(text: str, reason: str | None) -> None:
    if reason is None:
        with pytest.raises(ManifestError, match="has the name of"):
            plan(text)
        return
    with pytest.raises(ManifestError, match=reason) as caught:
        plan("# first\n\n" + text)
    assert caught.value.line == 4
    assert "/x/a.yaml:4" in caught.value.why


def test_documents_that_are_no_objects_do_not_stop_a_lab() -> None:
    found = plan("just: words\n---\n[1, 2]\n---\nkind: Deployment\n---\n{broken\n", deployment("a"))
    assert [w.name for w in found.workloads] == ["a-0"]


def test_finding_workloads_by_name() -> None:
    found = plan(deployment("a", replicas=2), deployment("a", namespace="other"), deployment("b"))
    assert find_workload(found.workloads, "b").name == "b-0"
    assert find_workload(found.workloads, "default/a").key == "default/a-0"
    assert find_workload(found.workloads, "default/a-1").key == "default/a-1"
    assert find_workload(found.workloads, "other/a").key == "other/a-0"
    with pytest.raises(LabError, match="ambiguous"):
        find_workload(found.workloads, "a")
    with pytest.raises(LabError, match="no workload"):
        find_workload(found.workloads, "c")


def test_registry_entries_follow_the_contract() -> None:
    found = plan(deployment("a", ports=[{"containerPort": 80}], pod={"serviceAccountName": "s"}))
    entry = registry_entry(found, found.workloads[0], "/run/netns", "/cg/x")
    assert entry == {
        "name": "a-0",
        "owner": "a",
        "namespace": "default",
        "service_account": "s",
        "labels": {"app": "a"},
        "ips": ["10.244.1.10"],
        "netns": "/run/netns/underpass.node-1.default.a-0",
        "cgroup": "/cg/x",
        "interface": "eth0",
        "host_interface": "veth-0",
        "node": "node-1",
        "ports": [80],
        "cluster": "Kubernetes",
        "trust_domain": "cluster.local",
    }


def test_lab_files() -> None:
    images = parse_lab_file(
        "lab.yaml",
        """
images:
  redis: [redis-server, --port, $(UNDERPASS_PORTS)]
  reg.io:5000/team/*: {command: "run --name $(HOSTNAME)", env: {MODE: lab, N: 1}}
  busybox: {}
""",
    )
    assert images.find("redis:7") == Image(("redis-server", "--port", "$(UNDERPASS_PORTS)"), {})
    assert images.find("reg.io:5000/team/x@sha256:1") == Image(
        ("run", "--name", "$(HOSTNAME)"), {"MODE": "lab", "N": "1"}
    )
    assert images.find("busybox") == Image()
    assert images.find("other") is None
    found = plan(deployment("a", image="reg.io:5000/team/a:1", ports=[{"containerPort": 5}]), images=images)
    process = found.workloads[0].processes[0]
    assert process.command == ("run", "--name", "a-0")
    assert process.env["MODE"] == "lab"
    played = plan(deployment("a", image="redis", ports=[{"containerPort": 5}]), service("a"), images=images)
    assert played.workloads[0].processes[0].command == ("redis-server", "--port", "5")


@pytest.mark.parametrize(
    "text",
    [
        "images: [1]",
        "image: {}",
        "images: {a: {cmd: x}}",
        "images: {a: 5}",
        "images: {a: 'x \"'}",
        "{",
        "a: 1\n---\nb: 1",
    ],
)
def test_lab_files_that_are_not(text: str) -> None:
    with pytest.raises(ManifestError):
        parse_lab_file("lab.yaml", text)


def test_image_names() -> None:
    assert bare_name("reg.io:5000/a/b:1@sha256:00") == "reg.io:5000/a/b"
    assert expand("$(A)-$(B)-$$(A)", {"A": "1"}) == "1-$(B)-$(A)"


def test_the_plan_is_a_function_of_its_input() -> None:
    text = (SHOP / "shop.yaml").read_text()
    one, two = (make_plan([source(text)], Images(), Options(nodes=2), 244) for _ in range(2))
    assert one == two
    again = make_plan([source(text)], Images(), Options(nodes=2), 244, one.allocation())
    assert dataclasses.replace(again, notes=()) == dataclasses.replace(one, notes=())
