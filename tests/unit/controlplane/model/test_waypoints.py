"""What is bound to which waypoint, and what is said about what is not."""

import pytest

from tests.support.mesh import read


def gateway(name: str, space: str, labels: str = "", routes: str = "", klass: str = "istio-waypoint") -> str:
    return f"""
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}, namespace: {space}, labels: {{{labels}}}}}
spec:
  gatewayClassName: {klass}
  listeners: [{{name: mesh, port: 15008, protocol: HBONE{routes}}}]
---"""


def namespace(name: str, labels: str) -> str:
    return f"\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n---"


def service(name: str, space: str, labels: str = "") -> str:
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {space}, labels: {{{labels}}}}}
spec: {{clusterIP: 10.0.0.1, ports: [{{name: http, port: 80}}]}}
---"""


POD = """
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: a}
spec: {containers: [{name: c}]}
status: {phase: Running, podIP: 10.1.0.1}
---"""
IN_A = "istio.io/use-waypoint: way, istio.io/use-waypoint-namespace: a"


def bound(text: str) -> dict[str, tuple[list[str], int]]:
    mesh = read(text).mesh
    return {
        f"{item.namespace}/{item.name}": ([host.split(".svc")[0] for _, host in item.services], len(item.workloads))
        for item in mesh.waypoints
    }


def test_the_nearest_label_counts() -> None:
    text = gateway("way", "a") + gateway("other", "a") + namespace("a", "istio.io/use-waypoint: way") + POD
    text += service("x", "a") + service("y", "a", "istio.io/use-waypoint: other")
    text += service("z", "a", "istio.io/use-waypoint: none") + service("w", "b", "istio.io/use-waypoint: way")
    assert bound(text) == {"a/other": (["y.a"], 0), "a/way": (["x.a"], 0)}


@pytest.mark.parametrize(
    ("kind", "services", "workloads"),
    [("service", 1, 0), ("workload", 0, 1), ("all", 1, 1), ("none", 0, 0), ("?", 1, 0)],
)
def test_what_it_is_for(kind: str, services: int, workloads: int) -> None:
    text = gateway("way", "a", f'istio.io/waypoint-for: "{kind}"') + namespace("a", "istio.io/use-waypoint: way")
    (found,) = bound(text + service("x", "a") + POD).values()
    assert (len(found[0]), found[1]) == (services, workloads)


@pytest.mark.parametrize(
    ("routes", "taken"),
    [
        ("", False),
        (", allowedRoutes: {namespaces: {from: All}}", True),
        (", allowedRoutes: {namespaces: {from: Same}}", False),
        (", allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: b}}}}", True),
        (", allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: c}}}}", False),
    ],
)
def test_other_namespaces(routes: str, taken: bool) -> None:
    text = gateway("way", "a", routes=routes) + namespace("b", f"team: b, {IN_A}") + service("x", "b")
    assert bound(text)["a/way"][0] == (["x.b"] if taken else [])
    notes = {note.code for verdict in read(text).verdicts for note in verdict.notes}
    assert ("unknown-waypoint" in notes) is not taken


def test_a_gateway_of_another_class_is_none() -> None:
    text = gateway("way", "a", klass="istio") + service("x", "a", "istio.io/use-waypoint: way")
    assert bound(text) == {}
    assert [(v.kind, note.code) for v in read(text).verdicts for note in v.notes if v.kind == "Service"] == [
        ("Service", "unknown-waypoint")
    ]


def test_labels_that_mean_nothing_are_said() -> None:
    text = gateway("way", "a", 'istio.io/waypoint-for: "?"').replace("HBONE", "TCP")
    assert {note.code for v in read(text).verdicts for note in v.notes} == {"bad-label", "no-hbone"}
