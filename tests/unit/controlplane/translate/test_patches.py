"""EnvoyFilters: merging, positions in lists, who is meant, and what is said of a patch that no Envoy could read."""

from typing import Any

import pytest

from controlplane.analyze import analyze
from controlplane.model import Node, parse_node
from controlplane.sources.convert import Accepted, Rejected, convert
from controlplane.sources.documents import parse
from controlplane.translate import prepare, translate
from controlplane.translate.names import CLUSTER, LISTENER
from controlplane.translate.patch_listeners import port_of
from controlplane.translate.patch_merge import merge
from controlplane.translate.patch_parts import Patch, edit
from tests.support.mesh import read, resources, waypoint
from underpass.api import envoy

HEAD = "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: f, namespace: default}\nspec:\n"
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}
---
"""
NAME = "outbound|80||web.default.svc.cluster.local"
MERGE = "  configPatches: [{applyTo: CLUSTER, patch: {operation: MERGE, value: {connect_timeout: 3s}}}]\n"


def cluster(**fields: Any) -> Any:
    return envoy.from_dict("Cluster", fields)


def test_merge() -> None:
    mine = cluster(name="a", connect_timeout="5.000000003s", health_checks=[{"timeout": "1s"}], metadata={})
    merge(mine, cluster(connect_timeout="1s", health_checks=[{"timeout": "2s"}], upstream_connection_options={}))
    assert mine == cluster(
        name="a",
        connect_timeout="1s",
        health_checks=[{"timeout": "1s"}, {"timeout": "2s"}],
        upstream_connection_options={},
        metadata={},
    )
    merge(mine, cluster(health_checks=[{"timeout": "3s"}]), replace_lists=True)
    assert [item.timeout.seconds for item in mine.health_checks] == [3]


def test_merge_inside_what_is_packed() -> None:
    def options(**fields: Any) -> Any:
        return envoy.pack_any(envoy.HttpProtocolOptions(**fields))

    key = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    mine, other = cluster(name="a"), cluster()
    mine.typed_extension_protocol_options[key].CopyFrom(
        options(common_http_protocol_options={"idle_timeout": {"seconds": 1}})
    )
    other.typed_extension_protocol_options[key].CopyFrom(
        options(explicit_http_config={"http2_protocol_options": {"max_concurrent_streams": {"value": 7}}})
    )
    merge(mine, other)
    made: Any = envoy.unpack_any(mine.typed_extension_protocol_options[key])
    assert made.common_http_protocol_options.idle_timeout.seconds == 1
    assert made.explicit_http_config.http2_protocol_options.max_concurrent_streams.value == 7
    other.typed_extension_protocol_options[key].CopyFrom(envoy.pack_any(envoy.Router()))
    merge(mine, other)
    assert mine.typed_extension_protocol_options[key].type_url.endswith("Router"), "of another type: replaced"


@pytest.mark.parametrize(
    ("operation", "named", "terminal", "wanted"),
    [
        ("INSERT_FIRST", False, True, "x a b r"),
        ("INSERT_BEFORE", True, True, "a x b r"),
        ("INSERT_AFTER", True, True, "a b x r"),
        ("INSERT_BEFORE", False, True, "x a b r"),
        ("INSERT_AFTER", False, True, "a b x r"),
        ("INSERT_AFTER", False, False, "a b r x"),
        ("ADD", False, True, "a b x r"),
        ("ADD", False, False, "a b r x"),
        ("REMOVE", True, True, "a r"),
        ("REPLACE", True, True, "a x r"),
    ],
)
def test_positions(operation: str, named: bool, terminal: bool, wanted: str) -> None:
    manager: Any = envoy.HttpConnectionManager(http_filters=[{"name": name} for name in "abr"])
    patch = Patch("HTTP_FILTER", operation, "ANY", None, envoy.HttpFilter(name="x"))
    edit(manager.http_filters, patch, lambda item: item.name == "b", named=named, terminal=terminal)
    assert " ".join(item.name for item in manager.http_filters) == wanted


def test_an_insertion_beside_what_is_not_there_is_none() -> None:
    manager: Any = envoy.HttpConnectionManager(http_filters=[{"name": "a"}])
    for operation in ("INSERT_BEFORE", "INSERT_AFTER"):
        patch = Patch("HTTP_FILTER", operation, "ANY", None, envoy.HttpFilter(name="x"))
        edit(manager.http_filters, patch, lambda item: item.name == "z", named=True, terminal=True)
    assert len(manager.http_filters) == 1


@pytest.mark.parametrize(
    ("name", "port"),
    [("80", 80), ("http.81", 81), ("https.443.a.b.c", 443), ("a.b.c:82", 82), ("inbound|83||", 83), ("x", 0)],
)
def test_ports_of_route_configurations(name: str, port: int) -> None:
    assert port_of(name) == port


def node(agent: str = "", **metadata: Any) -> Node:
    fields = {"NAMESPACE": "default", **metadata}
    return parse_node("sidecar~10.0.0.9~a.default~default.svc.cluster.local", fields, user_agent=agent)


def timeout(text: str, client: Node) -> int:
    made: Any = resources(read(text).mesh, client)[CLUSTER][NAME]
    return int(made.connect_timeout.seconds)


def test_who_is_meant() -> None:
    text = SERVICE + HEAD + MERGE
    assert timeout(text, node()) == 3
    assert timeout(text, node("underpass-agent")) == 10, "the kernel's agents get the rules without it"
    assert timeout(text.replace("namespace: default}\nspec:\n  c", "namespace: other}\nspec:\n  c"), node()) == 10
    assert timeout(text.replace("namespace: default}\nspec:\n  c", "namespace: istio-system}\nspec:\n  c"), node()) == 3
    chosen = text.replace("spec:\n  c", "spec:\n  workloadSelector: {labels: {app: a}}\n  c")
    assert timeout(chosen, node()) == 10
    assert timeout(chosen, node(LABELS={"app": "a"})) == 3
    versions = text.replace("CLUSTER, ", r"CLUSTER, match: {proxy: {proxyVersion: '^1\.2.*'}}, ")
    assert timeout(versions, node()) == 10
    assert timeout(versions, node(ISTIO_VERSION="1.28.0")) == 3
    assert timeout(versions, node(ISTIO_VERSION="2.28.0")) == 10
    inbound = text.replace("CLUSTER, ", "CLUSTER, match: {context: SIDECAR_INBOUND}, ")
    assert timeout(inbound, node()) == 10


def test_targets() -> None:
    gateway = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: way, namespace: default}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
"""
    bound = SERVICE.replace("name: web,", "name: web, labels: {istio.io/use-waypoint: way},")
    target = "  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: %s}]\n"
    vip = "inbound-vip|80|http|web.default.svc.cluster.local"
    for name, wanted in (("way", 3), ("other", 10)):
        mesh = read(gateway + bound + HEAD + target % name + MERGE).mesh
        served: Any = resources(mesh, waypoint("way"))[CLUSTER]
        assert served[vip].connect_timeout.seconds == wanted
        sidecars: Any = resources(mesh, node())[CLUSTER]
        assert sidecars[NAME].connect_timeout.seconds == 10


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("{targetRefs: [{kind: Service, name: a}]}", "unsupported-target"),
        (
            "{workloadSelector: {}, targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: a}]}",
            "conflicting-settings",
        ),
    ],
)
def test_targets_that_are_refused(spec: str, code: str) -> None:
    (document,) = parse("f.yaml", f"{HEAD}  {spec}\n")
    made = convert(document)
    assert isinstance(made, Rejected)
    assert made.code == code


def test_order() -> None:
    def one(name: str, space: str, priority: int, seconds: int) -> str:
        head = HEAD.replace("name: f, namespace: default", f"name: {name}, namespace: {space}")
        return f"{head}  priority: {priority}\n" + MERGE.replace("3s", f"{seconds}s") + "---\n"

    low, high = one("a", "default", -1, 4), one("b", "istio-system", 5, 5)
    root, mine = one("c", "istio-system", 0, 6), one("d", "default", 0, 7)
    for parts, wanted in (((low, high), 5), ((high, low), 5), ((root, mine), 7), ((mine, root), 7), ((low, root), 6)):
        assert timeout(SERVICE + "".join(parts), node()) == wanted


def test_memory_keeps_objects_that_did_not_change() -> None:
    text = SERVICE + HEAD + MERGE
    first = prepare(read(text).mesh)
    before = translate(first, node())
    after = translate(prepare(read(text).mesh, first), node())
    for url in (CLUSTER, LISTENER):
        assert all(after[url][name] is item for name, item in before[url].items())


def test_a_patch_that_no_envoy_could_read() -> None:
    bad = HEAD + MERGE.replace("connect_timeout: 3s", "connect_timeout: [1]").replace(
        "[{applyTo", "[{applyTo: CLUSTER, patch: {operation: REMOVE}}, {applyTo"
    )
    for text in (
        bad,
        bad.replace("connect_timeout: [1]", '"@type": x'),
        bad.replace("connect_timeout: [1]", "nope: 1"),
    ):
        assert timeout(SERVICE + text, node()) == 10, "none of the object's patches is applied"
        (verdict,) = [item for item in analyze({"a.yaml": SERVICE + text}).verdicts if item.kind == "EnvoyFilter"]
        (note,) = [note for note in verdict.notes if note.code == "bad-patch"]
        assert note.line == 11
        assert "configPatches[1].patch.value" in note.message


@pytest.mark.parametrize(
    ("patch", "code"),
    [
        ("{patch: {operation: MERGE, value: {a: 1}}}", "bad-patch"),
        ("{applyTo: CLUSTER}", "bad-patch"),
        ("{applyTo: CLUSTER, patch: {operation: INSERT_FIRST, value: {a: 1}}}", "bad-patch"),
        ("{applyTo: ROUTE_CONFIGURATION, patch: {operation: ADD, value: {a: 1}}}", "bad-patch"),
        ("{applyTo: CLUSTER, patch: {operation: MERGE}}", "bad-patch"),
        ("{applyTo: CLUSTER, match: {listener: {}}, patch: {operation: REMOVE}}", "bad-match"),
        ("{applyTo: CLUSTER, match: {proxy: {proxyVersion: '('}}, patch: {operation: REMOVE}}", "bad-regex"),
        ("{applyTo: CLUSTER, match: {proxy: {metadata: {a: b}}}, patch: {operation: REMOVE}}", "unsupported-match"),
        ("{applyTo: LISTENER, match: {listener: {portName: a}}, patch: {operation: REMOVE}}", "unsupported-match"),
        ("{applyTo: HTTP_ROUTE, match: {waypoint: {portNumber: 1}}, patch: {operation: REMOVE}}", "unsupported-match"),
        ("{applyTo: NOTHING}", "invalid-field"),
    ],
)
def test_refused(patch: str, code: str) -> None:
    good = "{applyTo: CLUSTER, patch: {operation: REMOVE}}"
    (document,) = parse("f.yaml", f"{HEAD}  configPatches:\n  - {good}\n  - {patch}\n")
    made = convert(document)
    assert isinstance(made, Rejected)
    assert made.code == code
    assert made.source.line in ((5, 7) if code == "invalid-field" else (7,))


def test_what_has_no_effect() -> None:
    patches = "[{applyTo: BOOTSTRAP, patch: {operation: MERGE, value: {a: 1}}}]"
    (document,) = parse("f.yaml", f"{HEAD}  configPatches: {patches}\n")
    made = convert(document)
    assert isinstance(made, Accepted)
    assert [note.code for note in made.notes] == ["envoys-only", "not-honoured"]
