"""What a lab looks like now, as one JSON-able mapping, and the control plane's verdicts."""

from __future__ import annotations

from typing import Any

from underpass.lab import programs
from underpass.lab.errors import LabError
from underpass.lab.state import State


def describe(state: State) -> dict[str, Any]:
    """The lab with the health of each process. `healthy` is whether all that should run does."""
    by_role = {process.role: process for process in state.processes}
    workloads = []
    for item in state.workloads:
        key = f"{item.namespace}/{item.name}"
        mine = [process for role, process in by_role.items() if role.startswith(f"{key} ")]
        workloads.append(
            {
                "name": item.owner,
                "workload": item.owner,
                "pod": item.name,
                "kind": item.kind,
                "namespace": item.namespace,
                "service_account": item.entry["service_account"],
                "labels": item.entry["labels"],
                "node": item.entry["node"],
                "ips": item.entry["ips"],
                "ports": item.entry["ports"],
                "netns": item.entry["netns"],
                "cgroup": item.entry["cgroup"],
                "running": all(process.alive for process in mine),
                "pids": [process.pid for process in mine if process.alive],
            }
        )
    programs_running = [
        {"role": process.role, "pid": process.pid, "running": process.alive, "log": process.log}
        for process in state.processes
        if "/" not in process.role
    ]
    healthy = all(item["running"] for item in [*workloads, *programs_running])
    return {
        "apiVersion": "underpass.io/v1",
        "kind": "LabStatus",
        "name": state.options.name,
        "status": state.status,
        "healthy": healthy,
        "created": state.created,
        "mesh": state.options.mesh,
        "xds": state.xds,
        "http": state.http,
        "config": str(state.paths.config),
        "logs": str(state.paths.logs),
        "nodes": [{"name": node, "run_dir": str(state.paths.node(node))} for node in state.nodes],
        "files": state.files,
        "programs": programs_running,
        "workloads": workloads,
    }


def verdicts(state: State) -> list[dict[str, Any]]:
    """The control plane's word on every object. Raises LabError when it does not answer."""
    status, answer = programs.get_json(state.http, "/api/v1/config/status")
    if status != 200:
        raise LabError(
            "the control plane does not answer", f"http://{state.http}/api/v1/config/status", "underpass lab status", 3
        )
    items = answer.get("objects", answer.get("items", [])) if isinstance(answer, dict) else answer
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
