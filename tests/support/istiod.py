"""What a genuine istiod served (folder `istiod` of the shared samples), and our mesh and clients for the same YAML."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from controlplane.model import Mesh, Node, parse_node
from tests.support.mesh import KINDS, read
from tests.support.tiers import shared
from underpass.api import envoy

#: Case -> files of Istio's bookinfo/networking that were read beside pods.yaml.
CASES = {
    "bookinfo": (),
    "all-v1": ("destination-rule-all", "virtual-service-all-v1"),
    "gateway": ("bookinfo-gateway",),
    "mtls-dr": ("destination-rule-all-mtls",),
    "ratings-abort": ("destination-rule-all", "virtual-service-ratings-test-abort"),
    "ratings-delay": ("destination-rule-all", "virtual-service-ratings-test-delay"),
    "reviews-80-20": ("destination-rule-all", "virtual-service-reviews-80-20"),
    "reviews-jason": ("destination-rule-all", "virtual-service-reviews-jason-v2-v3"),
}

#: Every pair of case and client.
PAIRS = tuple(
    (case, client)
    for case in CASES
    for client in {"bookinfo": ("server", "sidecar"), "gateway": ("router",)}.get(case, ("sidecar",))
)

#: The node that istiod was told of beside pods.yaml.
NODE = """
apiVersion: v1
kind: Node
metadata:
  name: node-1
  labels: {topology.kubernetes.io/region: region1, topology.kubernetes.io/zone: zone1}
"""


@dataclass(frozen=True, slots=True)
class Golden:
    """What istiod served to one client: its node id, and messages by type URL and name."""

    node: str
    resources: dict[str, dict[str, Any]]


def directory(case: str, client: str) -> Path:
    """Where a pair's files are."""
    return shared() / "istiod" / case / client


def texts(case: str) -> list[str]:
    """The YAML of a case."""
    root = shared()
    networking = root / "istio" / "bookinfo" / "networking"
    pods = (root / "istiod" / "pods.yaml").read_text(encoding="utf-8")
    return [pods, NODE, *((networking / f"{name}.yaml").read_text(encoding="utf-8") for name in CASES[case])]


@cache
def mesh(case: str) -> Mesh:
    """Our mesh for a case; every object must be accepted."""
    done = read(*texts(case))
    assert all(verdict.state == "accepted" for verdict in done.verdicts), done.verdicts
    return done.mesh


@cache
def golden(case: str, client: str) -> Golden:
    """What istiod served; a field that our schema lacks is an error."""
    nodes = set()
    resources: dict[str, dict[str, Any]] = {}
    for short, url in KINDS.items():
        data = json.loads((directory(case, client) / f"{short}.json").read_text(encoding="utf-8"))
        assert data["type_url"] == url
        nodes.add(data["node"])
        resources[url] = {
            name: envoy.from_dict(body["@type"].rpartition("/")[2], {k: v for k, v in body.items() if k != "@type"})
            for name, body in data["resources"].items()
        }
    (node,) = nodes
    return Golden(node, resources)


def metadata(node_id: str, mesh: Mesh, *, labelled: bool) -> dict[str, Any]:
    """Metadata of a client: a gateway's labels, those of the pod whose address a sidecar has, or none."""
    kind, ip, _, domain = node_id.split("~")
    labels = {"istio": "ingressgateway"} if kind == "router" else {}
    if labelled and kind == "sidecar":
        labels = dict(mesh.workloads[ip].labels)
        assert labels["app"] in node_id
    return {"NAMESPACE": domain.split(".")[0], "LABELS": labels}


def node(node_id: str, mesh: Mesh, *, labelled: bool) -> Node:
    """The client as our translation knows it."""
    return parse_node(node_id, metadata(node_id, mesh, labelled=labelled))
