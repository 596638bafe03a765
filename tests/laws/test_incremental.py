"""Whatever changed, and in whatever order: what the control plane makes step by step is what it would make at once.

Random edits of a small world in which much depends on much else. After each of them the mesh, the remarks and the
serialised resources of clients of every kind are compared with those of a control plane that knows no earlier step.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.model.build import Built, build
from controlplane.model.node import Node, parse_node
from controlplane.snapshot import Builder, Snapshot, apply
from controlplane.sources import snapshot as sources
from controlplane.sources.documents import parse
from controlplane.sources.ingest import State, ingest, step, with_review
from controlplane.translate import Prepared, parts, prepare

SPACES = ("a", "b", "istio-system")
HOSTS = ("s0", "s1", "s2", "s3", "s0.a.svc.cluster.local", "s1.b.svc.cluster.local", "ext.example", "*.example", "no")
Choice = random.Random


def _meta(kind: str, version: str, name: str, space: str, more: str = "") -> str:
    place = f", namespace: {space}" if space else ""
    return f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}{place}{more}}}\n"


def _service(r: Choice) -> str:
    labels = r.choice(
        ["", ", labels: {istio.io/use-waypoint: way}", ', annotations: {networking.istio.io/exportTo: "."}']
    )
    address = r.choice(["10.96.0.1", "10.96.0.2", "None"])
    protocol = r.choice(["http", "grpc", "tcp", "tls", "web"])
    selector = r.choice(["", "\n  selector: {app: x}", "\n  selector: {app: y}"])
    head = _meta("Service", "v1", f"s{r.randrange(4)}", r.choice(SPACES[:2]), labels)
    ports = f"[{{name: {protocol}, port: {r.choice([80, 81])}, targetPort: 8080}}]"
    return f"{head}spec:\n  clusterIP: {address}{selector}\n  ports: {ports}"


def _slice(r: Choice) -> str:
    service = f"s{r.randrange(4)}"
    head = _meta(
        "EndpointSlice",
        "discovery.k8s.io/v1",
        f"{service}-{r.randrange(2)}",
        r.choice(SPACES[:2]),
        f", labels: {{kubernetes.io/service-name: {service}}}",
    )
    name = r.choice(["http", "grpc", "tcp", "tls", "web"])
    ends = "".join(
        f"\n- {{addresses: [10.1.0.{r.randrange(1, 6)}], conditions: {{ready: true}}"
        + r.choice(["", f", targetRef: {{kind: Pod, name: p{r.randrange(3)}}}", ", nodeName: n"])
        + "}"
        for _ in range(r.randrange(3))
    )
    return f"{head}addressType: IPv4\nports: [{{name: {name}, port: 8080}}]\nendpoints: {ends or '[]'}"


def _pod(r: Choice) -> str:
    number = r.randrange(3)
    labels = r.choice(["app: x", "app: y", "app: x, version: v1", "app: y, istio.io/use-waypoint: way"])
    head = _meta("Pod", "v1", f"p{number}", r.choice(SPACES[:2]), f", labels: {{{labels}}}")
    ready = r.choice(["True", "True", "False"])
    return (
        f"{head}spec: {{nodeName: n, serviceAccountName: sa{r.randrange(2)}, containers: [{{name: c}}]}}\n"
        f"status: {{phase: Running, podIP: 10.1.0.{number + 1}, podIPs: [{{ip: 10.1.0.{number + 1}}}], "
        f"conditions: [{{type: Ready, status: '{ready}'}}]}}"
    )


def _node(r: Choice) -> str:
    zone = f"z{r.randrange(2)}"
    return _meta(
        "Node", "v1", "n", "", f", labels: {{topology.kubernetes.io/region: r, topology.kubernetes.io/zone: {zone}}}"
    )


def _namespace(r: Choice) -> str:
    label = r.choice(["", ", labels: {istio.io/use-waypoint: way}"])
    return _meta("Namespace", "v1", r.choice(SPACES[:2]), "", label)


def _service_entry(r: Choice) -> str:
    host = r.choice(["ext.example", "other.example", "s0.a.svc.cluster.local"])
    head = _meta("ServiceEntry", "networking.istio.io/v1", f"e{r.randrange(2)}", r.choice(SPACES[:2]))
    kind = r.choice(
        [
            "resolution: STATIC\n  endpoints: [{address: 10.9.0.1}, {address: 10.1.0.1, labels: {version: v1}}]",
            "resolution: DNS",
            "resolution: STATIC\n  workloadSelector: {labels: {app: x}}",
        ]
    )
    return f"{head}spec:\n  hosts: [{host}]\n  {kind}\n  ports: [{{number: 80, name: http, protocol: HTTP}}]"


def _workload_entry(r: Choice) -> str:
    head = _meta("WorkloadEntry", "networking.istio.io/v1", "w", r.choice(SPACES[:2]))
    return (
        f"{head}spec: {{address: 10.2.0.{r.randrange(1, 3)}, labels: {{app: {r.choice('xy')}}}, serviceAccount: wsa}}"
    )


def _virtual_service(r: Choice) -> str:
    blank = "\n" * r.randrange(2)  # a rule's line counts, too
    head = _meta("VirtualService", "networking.istio.io/v1", f"v{r.randrange(3)}", r.choice(SPACES))
    if r.random() < 0.2:
        return f"{head}spec:\n{blank}  http: [{{route: [{{destination: {{host: {r.choice(HOSTS)}}}}}]}}]"
    target = f"{{destination: {{host: {r.choice(HOSTS[:7])}, subset: {r.choice(['v1', 'v2', ''])!r}}}}}"
    rule = r.choice(
        [
            f"timeout: {r.randrange(1, 4)}s, route: [{target}]",
            f"match: [{{sourceLabels: {{app: {r.choice('xy')}}}}}], route: [{target}]",
            "delegate: {name: v0}",
        ]
    )
    gateways = r.choice(["", "", "\n  gateways: [mesh, gw]", "\n  gateways: [gw]"])
    export = r.choice(["", "", '\n  exportTo: ["."]'])
    return f"{head}spec:\n  hosts: [{r.choice(HOSTS)}]{gateways}{export}\n  http:\n{blank}  - {{{rule}}}"


def _destination_rule(r: Choice) -> str:
    head = _meta("DestinationRule", "networking.istio.io/v1", f"d{r.randrange(3)}", r.choice(SPACES))
    host = r.choice([*HOSTS[:7], "*.cluster.local"])
    more = r.choice(
        [
            "subsets: [{name: v1, labels: {version: v1}}]",
            "trafficPolicy: {outlierDetection: {consecutive5xxErrors: 3}}",
            f"trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {r.randrange(1, 3)}}}}}}}",
            f"workloadSelector: {{matchLabels: {{app: {r.choice('xy')}}}}}",
            'exportTo: ["."]',
        ]
    )
    return f"{head}spec:\n  host: '{host}'\n  {more}"


def _gateway(r: Choice) -> str:
    head = _meta("Gateway", "networking.istio.io/v1", "gw", r.choice(SPACES[:2]))
    hosts = r.choice(["['*']", "[ext.example]"])
    port = "{number: 80, name: http, protocol: HTTP}"
    return f"{head}spec:\n  selector: {{app: x}}\n  servers: [{{port: {port}, hosts: {hosts}}}]"


def _sidecar(r: Choice) -> str:
    head = _meta("Sidecar", "networking.istio.io/v1", "sc", r.choice(SPACES))
    mode = r.choice(["", "\n  outboundTrafficPolicy: {mode: REGISTRY_ONLY}"])
    return f"{head}spec:\n  egress: [{{hosts: ['{r.choice(['./*', 'b/*', '*/s0.a.svc.cluster.local'])}']}}]{mode}"


def _policy(r: Choice) -> str:
    if r.random() < 0.5:
        mode = r.choice(["STRICT", "PERMISSIVE", "DISABLE"])
        head = _meta("PeerAuthentication", "security.istio.io/v1", "pa", r.choice(SPACES))
        return f"{head}spec: {{mtls: {{mode: {mode}}}}}"
    head = _meta("AuthorizationPolicy", "security.istio.io/v1", f"ap{r.randrange(2)}", r.choice(SPACES))
    more = r.choice(["", ", selector: {matchLabels: {app: x}}", ", targetRefs: [{kind: Service, group: '', name: s0}]"])
    rules = "[{to: [{operation: {methods: [GET]}}]}]"
    return f"{head}spec: {{action: {r.choice(['ALLOW', 'DENY'])}, rules: {rules}{more}}}"


def _gateway_api(r: Choice) -> str:
    if r.random() < 0.5:
        head = _meta("Gateway", "gateway.networking.k8s.io/v1", "way", r.choice(SPACES[:2]))
        allowed = r.choice(["", ", allowedRoutes: {namespaces: {from: All}}"])
        return (
            f"{head}spec:\n  gatewayClassName: istio-waypoint\n"
            f"  listeners: [{{name: mesh, port: 15008, protocol: HBONE{allowed}}}]"
        )
    head = _meta("HTTPRoute", "gateway.networking.k8s.io/v1", f"h{r.randrange(2)}", r.choice(SPACES[:2]))
    return (
        f"{head}spec:\n  parentRefs: [{{group: '', kind: Service, name: s{r.randrange(4)}}}]\n"
        f"  rules: [{{backendRefs: [{{name: s{r.randrange(4)}, port: 80}}]}}]"
    )


def _for_envoys(r: Choice) -> str:
    if r.random() < 0.5:
        head = _meta("Telemetry", "telemetry.istio.io/v1", "t", r.choice(SPACES))
        return f"{head}spec: {{accessLogging: [{{providers: [{{name: {r.choice(['envoy', 'nobody'])}}}]}}]}}"
    head = _meta("EnvoyFilter", "networking.istio.io/v1alpha3", "ef", r.choice(SPACES))
    return (
        f"{head}spec:\n  configPatches:\n  - applyTo: CLUSTER\n    match: {{context: SIDECAR_OUTBOUND}}\n"
        f"    patch: {{operation: MERGE, value: {{connect_timeout: {r.randrange(1, 4)}s}}}}"
    )


def _broken(r: Choice) -> str:
    bad_rule = _meta("VirtualService", "networking.istio.io/v1", f"v{r.randrange(3)}", r.choice(SPACES))
    bad_service = _meta("Service", "v1", f"s{r.randrange(4)}", r.choice(SPACES[:2]))
    return r.choice(
        ["kind: [", f"{bad_rule}spec: {{hosts: [s0], http: [{{timeout: soon}}]}}", f"{bad_service}spec: {{ports: 3}}"]
    )


#: What a document may be; those that change most come most.
KINDS: tuple[Callable[[Choice], str], ...] = (
    *(_service, _slice, _slice, _slice, _pod, _virtual_service, _virtual_service, _destination_rule),
    *(
        _node,
        _namespace,
        _service_entry,
        _workload_entry,
        _gateway,
        _sidecar,
        _policy,
        _gateway_api,
        _for_envoys,
        _broken,
    ),
)


def _edit(r: Choice, files: dict[str, sources.File], clock: int) -> None:
    """Change one or two files: new content, one document more or another one, or gone."""
    for _ in range(r.choice([1, 1, 1, 2])):
        name = f"f{r.randrange(14)}.yaml"
        if name in files and r.random() < 0.12:
            del files[name]
            continue
        text = "\n---\n".join(r.choice(KINDS)(r) for _ in range(r.choice([1, 1, 2, 3])))
        stamp = (clock - r.choice([0, 0, 5]), len(text), clock)
        files[name] = sources.File(name, (stamp[0] * 10**9, *stamp[1:]), parse(name, text))


def _nodes() -> Iterator[Node]:
    def node(kind: str, ip: str, space: str, **metadata: Any) -> Node:
        return parse_node(
            f"{kind}~{ip}~c.{space}~{space}.svc.cluster.local",
            {"NAMESPACE": space, "CLUSTER_ID": "Kubernetes", **metadata},
            user_agent="envoy",
        )

    yield node("sidecar", "10.1.0.1", "a", LABELS={"app": "x"}, SERVICE_ACCOUNT="sa0")
    yield node("sidecar", "10.1.0.2", "b", LABELS={"app": "y"})
    yield node("sidecar", "10.1.0.9", "a", GENERATOR="grpc")
    yield node("router", "10.1.0.3", "a", LABELS={"app": "x"})
    yield node("waypoint", "10.1.0.8", "a", LABELS={"gateway.networking.k8s.io/gateway-name": "way"})
    yield node("ztunnel", "10.1.0.7", "istio-system")


NODES = tuple(_nodes())


def _bytes(snapshot: Snapshot) -> dict[str, list[tuple[str, str, bytes]]]:
    return {url: sorted((r.name, r.version, r.body) for r in state.values()) for url, state in snapshot.types.items()}


def _plain_mesh(built: Built) -> dict[str, Any]:
    return {item.name: getattr(built.mesh, item.name) for item in dataclasses.fields(built.mesh)}


def _from_scratch(state: State, snapshot: sources.Snapshot) -> State:
    """A step that looks at every file: none of the documents is the object that the state knows."""
    again = {name: dataclasses.replace(file, documents=(*file.documents,)) for name, file in snapshot.files.items()}
    for file in again.values():
        assert not file.documents or file.documents is not snapshot.files[file.name].documents
    return step(state, sources.Snapshot(again))[0]


class _World:
    """A control plane that goes step by step, and what it remembers."""

    def __init__(self) -> None:
        self.state = State()
        self.prepared: Prepared | None = None
        self.builder = Builder()
        self.snapshots: dict[str, Snapshot] = {}

    def step(self, files: dict[str, sources.File]) -> None:
        snapshot = sources.Snapshot(dict(sorted(files.items())))
        before = self.state
        taken = ingest(before, snapshot)
        self.state = taken.state

        whole = _from_scratch(before, snapshot)
        assert taken.state.good == whole.good
        assert dict(taken.state.owners) == dict(whole.owners)
        assert dict(taken.state.definers) == dict(whole.definers)
        assert {name: file.verdicts for name, file in taken.state.files.items()} == {
            name: file.verdicts for name, file in whole.files.items()
        }

        fresh = build(taken.state.objects())
        assert _plain_mesh(fresh) == {f.name: getattr(taken.mesh, f.name) for f in dataclasses.fields(taken.mesh)}
        assert taken.verdicts == with_review(step(before, snapshot)[1], fresh)

        self.prepared = prepare(taken.mesh, self.prepared)
        self.builder.begin_round()
        anew = prepare(fresh.mesh)
        for node in NODES:
            made = self.builder.snapshot(*parts(self.prepared, node))
            assert _bytes(made) == _bytes(Builder().snapshot(*parts(anew, node))), node.id
            old = self.snapshots.get(node.id)
            if old is not None:
                for url in made.types:
                    assert apply(old[url], self.builder.diff(old[url], made[url])) == made[url]
            self.snapshots[node.id] = made


def _run(seed: int, steps: int) -> None:
    r = random.Random(seed)
    world, files = _World(), dict[str, sources.File]()
    for clock in range(1, 25):
        _edit(r, files, 1000 + clock)
    for clock in range(25, 25 + steps):
        world.step(files)
        _edit(r, files, 1000 + clock)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_step_by_step_is_all_at_once(seed: int) -> None:
    _run(seed, 12)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32))
def test_step_by_step_is_all_at_once_for_long(seed: int) -> None:
    _run(seed, 40)
