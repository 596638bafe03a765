"""Resources out of files: what the agent would have got over xDS, as proto JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nodeagent.cache import store
from nodeagent.cache.store import Decoder, Resources, ViewCache
from underpass.api import envoy

TYPES = {
    "listeners": (store.LISTENER, "Listener"),
    "routes": (store.ROUTES, "RouteConfiguration"),
    "clusters": (store.CLUSTER, "Cluster"),
    "endpoints": (store.ASSIGNMENT, "ClusterLoadAssignment"),
}


@dataclass(frozen=True)
class Body:
    """A resource as the session hands it over."""

    name: str
    body: bytes | None


@dataclass(frozen=True)
class Load:
    """A workload as the compiler sees it."""

    key: str
    ips: tuple[str, ...]


def body(kind: str, data: Mapping[str, Any]) -> bytes:
    """Bytes of a resource from proto JSON; `kind` is a key of TYPES."""
    plain = {key: value for key, value in data.items() if key != "@type"}
    return envoy.from_dict(TYPES[kind][1], plain).SerializeToString()


def cached(parts: Mapping[str, Iterable[Mapping[str, Any]]], decoder: Decoder | None = None) -> ViewCache:
    """A cache that holds the given resources; none of them may be refused."""
    cache = ViewCache(Decoder() if decoder is None else decoder)
    for kind, (url, _) in TYPES.items():
        name = "cluster_name" if kind == "endpoints" else "name"
        bodies = tuple(Body(data[name], body(kind, data)) for data in parts.get(kind, ()))
        _, refused = cache.apply(url, bodies, ())
        assert not refused, refused
    return cache


def from_yaml(path: Path) -> dict[str, Resources]:
    """Views of a golden input: one mapping of kinds, or several under `views`."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {key: cached(parts).resources() for key, parts in data.get("views", {"view": data}).items()}


def from_istiod(directory: Path) -> Resources:
    """What a genuine istiod served: `CASE/NODE/{lds,rds,cds,eds}.json`."""
    files = {"listeners": "lds", "routes": "rds", "clusters": "cds", "endpoints": "eds"}
    parts = {}
    for kind, name in files.items():
        data = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
        parts[kind] = list(data["resources"].values())
    return cached(parts).resources()
