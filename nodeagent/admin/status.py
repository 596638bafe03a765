"""The status document: what `/run/underpass/NODE/status.json` and the socket say."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nodeagent.cache.resources import Source
from nodeagent.intent.model import Rejection
from nodeagent.xds.live import LiveView


@dataclass(slots=True)
class WorkloadState:
    """How a workload stands: `enrolled`, `waiting` (for its view or its namespace) or `failed`, with the reason."""

    key: str
    view: str
    state: str
    reason: str = ""
    id: int = 0
    ips: tuple[str, ...] = ()


@dataclass(slots=True)
class ApplyState:
    """The last time that something was applied. `at` is Unix time, durations are milliseconds."""

    count: int = 0
    at: float = 0.0
    compile_ms: float = 0.0
    execute_ms: float = 0.0
    steps: int = 0
    generation: int = 0
    error: str = ""
    drift: int = 0


def view_status(live: LiveView) -> dict[str, Any]:
    """One view of the document."""
    stream = live.stream
    types = {}
    if stream is not None:
        for status in stream.session.status():
            types[_short(status.type_url)] = {
                "subscribed": "*" if status.subscribed is None else status.subscribed,
                "resources": status.resources,
                "responses": status.responses,
                "version": status.version,
                "refused": dict(sorted(status.refused.items())),
            }
    return {
        "key": live.view.key,
        "node_id": live.view.id,
        "namespace": live.view.namespace,
        "service_account": live.view.service_account,
        "labels": dict(live.view.labels),
        "connected": stream is not None and not stream.trouble,
        "trouble": stream.trouble if stream is not None else "not started",
        "ready": live.ready,
        "missing": [] if live.ready else live.missing()[:20],
        "types": types,
    }


def _short(type_url: str) -> str:
    names = {"Listener": "LDS", "RouteConfiguration": "RDS", "Cluster": "CDS", "ClusterLoadAssignment": "EDS"}
    return names.get(type_url.rpartition(".")[2], type_url)


def rejection_status(rejection: Rejection) -> dict[str, Any]:
    """One rejection of the document."""
    return {
        "view": rejection.view,
        "kind": rejection.kind,
        "name": rejection.name,
        "reason": rejection.reason,
        "effect": rejection.effect,
        "source": source_status(rejection.source),
    }


def source_status(source: Source | None) -> dict[str, Any] | None:
    """A source as JSON."""
    return asdict(source) if source is not None else None


def document(
    *,
    node: str,
    xds: str,
    started: float,
    views: Iterable[LiveView],
    workloads: Iterable[WorkloadState],
    rejections: Iterable[Rejection],
    ejections: Iterable[Mapping[str, Any]],
    counts: Mapping[str, int],
    applied: ApplyState,
    errors: Iterable[str],
    home: Iterable[tuple[str, int]],
    waypoint: Mapping[str, Any],
    kernel: Mapping[str, object],
) -> dict[str, Any]:
    """The whole document."""
    rows = [view_status(live) for live in views]
    return {
        "node": node,
        "pid": os.getpid(),
        "started": started,
        "xds": {"target": xds, "connected": all(row["connected"] for row in rows) if rows else None},
        "home": [f"[{a}]:{p}" if ":" in a else f"{a}:{p}" for a, p in home],
        "waypoint": dict(waypoint),
        "kernel": dict(kernel),
        "views": rows,
        "workloads": [asdict(state) for state in workloads],
        "rejections": [rejection_status(rejection) for rejection in rejections],
        "ejections": [dict(row) for row in ejections],
        "counts": dict(counts),
        "apply": asdict(applied),
        "registry_errors": list(errors),
    }


def write(path: Path, data: Mapping[str, Any]) -> None:
    """Replace the file in one step for whoever reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
