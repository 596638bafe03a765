"""A node in memory: YAML through both programs' rooms into the maps of a `FakeKernel`, pinned below a directory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from controlplane.analyze import analyze
from controlplane.model.node import Node as Client
from controlplane.translate import translate
from nodeagent.abi import numbers as n
from nodeagent.abi.layout import STRUCTS
from nodeagent.bpf.abc import Map, MapSpec, MapType
from nodeagent.bpf.fake import FakeKernel
from nodeagent.cache.resources import Value
from nodeagent.cache.store import Decoder, resources_from
from nodeagent.intent.compile import Compiler
from nodeagent.intent.model import Intent
from nodeagent.plan import Observed, plan
from nodeagent.reconcile import Reconciler
from nodeagent.xds.views import view_key
from tests.support.resources import Load

#: name -> type, key and value (bytes, or a structure), entries. Limits are small, because arrays are walked.
_SHAPES: dict[str, tuple[MapType, int | str, int | str, int]] = {
    "config": (MapType.ARRAY, 4, "up_config", 1),
    "workloads": (MapType.ARRAY, 4, "up_workload", 64),
    "tables": (MapType.ARRAY, 4, "up_table", 64),
    "clusters": (MapType.ARRAY, 4, "up_cluster", 64),
    "endpoints": (MapType.ARRAY, 4, "up_endpoint", 64),
    "endpoint_stats": (MapType.ARRAY, 4, "up_endpoint_stat", 64),
    "endpoint_runs": (MapType.ARRAY, 4, "up_endpoint_run", 64),
    "services": (MapType.HASH, "up_service_key", "up_service", 256),
    "vhosts": (MapType.HASH, "up_vhost_key", "up_vhost", 1024),
    "names": (MapType.HASH, "up_name_key", "up_name_text", 1024),
    "conns": (MapType.HASH, "up_tuple", "up_conn", 64),
    "stocks": (MapType.HASH, "up_stock_key", "up_stock", 64),
    "programs": (MapType.ARRAY_OF_MAPS, 4, 4, 32),
    "counters": (MapType.PERCPU_ARRAY, 4, 8, n.Counter.LAST),
    "route_stats": (MapType.PERCPU_ARRAY, 4, "up_route_stat", 64),
    "punt_stats": (MapType.PERCPU_HASH, "up_punt_key", 8, 64),
    "home_stats": (MapType.HASH, 4, "up_home_stat", 64),
    "reply_stats": (MapType.PERCPU_HASH, "up_punt_key", 8, 64),
    "flow_stats": (MapType.PERCPU_HASH, "up_flow_key", "up_flow_stat", 64),
    "replies": (MapType.HASH, 8, "up_reply", n.REPLIES),
    "home_rules": (MapType.HASH, 8, "up_home_rule", 64),
    "interface_stats": (MapType.PERCPU_ARRAY, 4, "up_interface_stat", n.INTERFACES),
}


@dataclass(slots=True)
class FakeNode:
    """The node; `bpffs` is what `explain.request` and its like take."""

    kernel: FakeKernel
    maps: dict[str, Map]
    bpffs: Path
    intent: Intent

    def number(self, kind: n.NameKind, start: str) -> int:
        """The id of the name that begins so."""
        found = [number for name, number in self.intent.known.of(kind).items() if name.startswith(start)]
        assert len(found) == 1, (start, self.intent.known.of(kind))
        return found[0]


def build(root: Path, yaml: str, workloads: Iterable[tuple[str, str, tuple[str, ...]]]) -> FakeNode:
    """The node that `yaml` makes. workloads: (namespace, pod's name, addresses); each has a view of its own."""
    kernel, bpffs = FakeKernel(cpus=2), root / "bpffs"
    (bpffs / "maps").mkdir(parents=True)
    maps: dict[str, Map] = {}
    for name, (kind, key, value, entries) in _SHAPES.items():
        made = kernel.create_map(MapSpec(name, kind, _size(key), _size(value), entries))
        made.pin(bpffs / "maps" / name)
        maps[name] = made
    done = analyze({"mesh.yaml": yaml})
    assert all(verdict.state == "accepted" for verdict in done.verdicts), done.verdicts
    views, loads, decoder = {}, [], Decoder()
    for namespace, pod, ips in workloads:
        suffix = f"{namespace}.svc.cluster.local"
        client = Client(f"sidecar~{ips[0]}~{pod}.{namespace}~{suffix}", "sidecar", ips, pod, namespace, suffix)
        values: dict[str, dict[str, Value]] = {}
        for url, messages in translate(done.prepared, client).items():
            for resource, message in messages.items():
                _, decoded = decoder.decode(url, message.SerializeToString(deterministic=True))
                values.setdefault(url, {})[resource] = decoded
        view = view_key(namespace, pod, {})
        views[view] = resources_from(values)
        loads.append((Load(f"{namespace}/{pod}", ips), view))
    intent = Compiler().compile(views, loads)
    reconciler = Reconciler(kernel, maps)
    reconciler.execute(plan(Observed(), intent))
    reconciler.configure([("10.0.0.1", 15001)])
    return FakeNode(kernel, maps, bpffs, intent)


def _size(shape: int | str) -> int:
    return STRUCTS[shape][0] if isinstance(shape, str) else shape


SHOP = """apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {clusterIP: 10.96.0.10, selector: {app: api}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.96.0.11, selector: {app: api}, ports: [{name: tcp, port: 5432, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec: {clusterIP: 10.96.0.12, selector: {app: nobody}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api-1, namespace: shop, labels: {app: api, version: v1}}
spec: {containers: [{name: c}]}
status: {phase: Running, podIP: 10.244.0.1, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api-2, namespace: shop, labels: {app: api, version: v2}}
spec: {containers: [{name: c}]}
status: {phase: Running, podIP: 10.244.0.2, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api, namespace: shop}
spec:
  host: api
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api, namespace: shop}
spec:
  hosts: [api]
  http:
  - name: jason
    match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: api, subset: v2}}]
  - name: slow
    match: [{uri: {prefix: /slow}}]
    timeout: 1s
    route: [{destination: {host: api, subset: v1}}]
  - name: split
    match: [{uri: {prefix: /v}}]
    route:
    - {destination: {host: api, subset: v1}, weight: 75}
    - {destination: {host: api, subset: v2}, weight: 25}
"""
"""One service with rules, one that is not HTTP, one without endpoints."""
