"""Golden pairs: ``NAME.in.yaml`` over a common base, ``NAME.out.yaml`` what it changes in the client's resources.

Run with ``UNDERPASS_UPDATE_GOLDEN=1`` to rewrite the outputs, and review the difference as prose.
"""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.model import Node, parse_node
from controlplane.translate import Resources
from tests.support.mesh import envoy_validates, plain, read, resources, router, waypoint

DIRECTORY = Path(__file__).resolve().parents[3] / "golden" / "translate"
BASE = (DIRECTORY / "base.yaml").read_text(encoding="utf-8")
CASES = sorted(path.name.removesuffix(".in.yaml") for path in DIRECTORY.glob("*.in.yaml"))


def client(text: str) -> Node:
    """The client that a case's first line describes: an upstream Envoy, unless it says ``certificates=yes``."""
    words = re.match(r"# client: (.*)", text)
    assert words is not None, "the first line of a case says which client it is for"
    kind, *settings = words.group(1).split()
    options = dict(item.split("=", 1) for item in settings)
    if kind == "router":
        return router()
    if kind.startswith("router-of="):
        return router({"gateway.networking.k8s.io/gateway-name": kind.partition("=")[2]})
    if kind.startswith("waypoint-of="):
        agent = "" if options.get("certificates") == "yes" else "envoy"
        labels = dict(pair.split(":") for pair in options.get("labels", "").split(",") if pair)
        return waypoint(kind.partition("=")[2], labels, agent=agent)
    namespace = options.get("namespace", "default")
    metadata: dict[str, Any] = {"NAMESPACE": namespace}
    metadata["LABELS"] = dict(pair.split(":") for pair in options.get("labels", "").split(",") if pair)
    if "generator" in options:
        metadata["GENERATOR"] = options["generator"]
    ips = options.get("ip", "10.244.9.9")
    metadata["INSTANCE_IPS"] = ips
    place = [*options.get("locality", "").split("/"), "", "", ""][:3]
    return parse_node(
        f"sidecar~{ips.split(',')[0]}~client-0.{namespace}~{namespace}.svc.cluster.local",
        metadata,
        locality=(place[0], place[1], place[2]),
        user_agent="" if options.get("certificates") == "yes" else "envoy",
    )


def translated(name: str) -> tuple[Resources, Resources, tuple[Any, ...]]:
    """Resources with the base alone and with the case, and the case's notes."""
    text = (DIRECTORY / f"{name}.in.yaml").read_text(encoding="utf-8")
    node = client(text)
    before = resources(read(base=BASE).mesh, node)
    # The case comes first, so that an object which it defines again replaces the base's.
    done = read(a=text, base=BASE)
    rejected = [verdict for verdict in done.verdicts if verdict.state == "rejected"]
    assert not rejected, rejected
    return before, resources(done.mesh, node), done.verdicts


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What the case adds and changes, and the names of what it removes; of a route table only the changed hosts."""
    out: dict[str, Any] = {}
    for kind, table in after.items():
        old = before[kind]
        changed: dict[str, Any] = {}
        for name, item in table.items():
            if item == old.get(name):
                continue
            if kind == "rds" and name in old:
                hosts = {host["name"]: host for host in old[name]["virtual_hosts"]}
                mine = item["virtual_hosts"]
                gone = sorted(hosts.keys() - {host["name"] for host in mine})
                changed[name] = {"virtual_hosts": [host for host in mine if hosts.get(host["name"]) != host]}
                if gone:
                    changed[name]["removed_hosts"] = gone
            else:
                changed[name] = item
        gone = sorted(old.keys() - table.keys())
        if changed or gone:
            out[kind] = {"changed": changed, "removed": gone}
    return out


@pytest.mark.parametrize("name", CASES)
def test_pair(name: str) -> None:
    before, after, verdicts = translated(name)
    made = {
        "resources": difference(plain(before), plain(after)),
        "notes": [
            f"{verdict.kind} {verdict.name}: {note.code}: {note.message}"
            for verdict in verdicts
            if verdict.file == "a.yaml"
            for note in verdict.notes
        ]
        + [
            f"{v.kind} {v.name}: {v.state}: {v.reason}"
            for v in verdicts
            if v.state == "shadowed" and v.file == "a.yaml"
        ],
    }
    path = DIRECTORY / f"{name}.out.yaml"
    if os.environ.get("UNDERPASS_UPDATE_GOLDEN") == "1":
        path.write_text(yaml.safe_dump(made, sort_keys=True, width=120), encoding="utf-8")
    assert made == yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.needs("envoy")
@pytest.mark.parametrize("name", [name for name in CASES if name != "grpc-client"])
def test_envoy_accepts(name: str) -> None:
    _, after, _ = translated(name)
    assert envoy_validates(after) == ""


@pytest.mark.needs("envoy")
def test_envoy_can_refuse() -> None:
    """The check above is one: a resource that is wrong is refused."""
    _, after, _ = translated("weights")
    broken = {kind: dict(table) for kind, table in after.items()}
    for kind, table in broken.items():
        if kind.endswith("Cluster"):
            name = "outbound|80||shop.default.svc.cluster.local"
            copy = type(table[name])()
            copy.CopyFrom(table[name])
            copy.lb_policy = "CLUSTER_PROVIDED"
            table[name] = copy
    assert "cluster" in envoy_validates(broken).lower()
