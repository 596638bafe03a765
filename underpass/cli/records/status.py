"""`underpass status`: what was found out about the control plane and each node, judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nodeagent.intent.model import NOT_ENFORCED
from underpass.cli.errors import FAILED, OK, PARTIAL, UNREACHABLE
from underpass.cli.output import API_VERSION
from underpass.cli.records import verdicts
from underpass.cli.records.maps import Pressure

#: A map that is fuller than this is a problem.
FULL: Final = 0.9
#: What every node's table of Istio's default answer: it is not news that the kernel leaves unknown hosts alone.
_USUAL: Final = ("allow_any", "block_all")


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """What the control plane answered. `error` is why it did not."""

    address: str
    error: str = ""
    ready: bool = False
    version: str = ""
    objects: Sequence[Mapping[str, Any]] = ()
    clients: Sequence[Mapping[str, Any]] = ()

    @property
    def reachable(self) -> bool:
        """Whether it answered at all."""
        return not self.error


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What was found of a node.

    agent: its status document, `answers`: whether it came from the agent itself (else from its last file); home: its
    file, `home_runs`: whether a process is behind it; registered: keys of the workloads; links: attachments by
    workload; slots: how many a workload has when all is well, 0 when they are not links.
    """

    name: str
    lab: str = ""
    agent: Mapping[str, Any] | None = None
    answers: bool = False
    home: Mapping[str, Any] | None = None
    home_runs: bool = False
    registered: Sequence[str] = ()
    programs: Sequence[str] = ()
    links: Mapping[str, int] = field(default_factory=dict)
    slots: int = 0
    counters: Mapping[str, int] = field(default_factory=dict)
    pressure: Sequence[Pressure] = ()
    pinned: bool = False
    trouble: str = ""


def proxy_name(node_id: str) -> str:
    """`web-0.shop` of `sidecar~10.0.0.1~web-0.shop~shop.svc.cluster.local`."""
    parts = node_id.split("~")
    return parts[2] if len(parts) == 4 else node_id


def view(row: Mapping[str, Any], clients: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One view: SYNCED, SYNCING (the first answers are due), STALE or NACK, with the reason."""
    state, reason = "SYNCED", ""
    refused = [
        f"{kind} {name}: {why}"
        for kind, told in row.get("types", {}).items()
        for name, why in told.get("refused", {}).items()
    ]
    behind = [
        f"{item['type']} {item['state']}"
        for client in clients
        if str(client.get("connectionId", "")).rpartition("-")[0] == proxy_name(str(row.get("node_id", "")))
        for item in client.get("status", ())
        if item.get("state") not in ("SYNCED", "NOT_SENT", "NOT SENT") and not item.get("error")
    ]
    if refused:
        state, reason = "NACK", "; ".join(refused)
    elif not row.get("connected"):
        state, reason = "STALE", str(row.get("trouble") or "not connected")
    elif not row.get("ready"):
        state, reason = "SYNCING", f"waits for {', '.join(map(str, row.get('missing', ()))) or 'the first answers'}"
    elif behind:
        state, reason = "STALE", f"sent, not acknowledged: {', '.join(behind)}"
    return {
        "key": row.get("key", ""),
        "node_id": row.get("node_id", ""),
        "namespace": row.get("namespace", ""),
        "service_account": row.get("service_account", ""),
        "labels": row.get("labels", {}),
        "state": state,
        "reason": reason,
        "types": row.get("types", {}),
    }


def node(facts: NodeFacts, clients: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One node of the document."""
    agent, home, known = facts.agent or {}, facts.home or {}, list(clients)
    workloads = {str(item["key"]): dict(item) for item in agent.get("workloads", ())}
    for key in facts.registered:
        workloads.setdefault(key, {"key": key, "state": "unknown", "reason": "the agent has not seen it"})
    for key, item in workloads.items():
        item["attachments"] = facts.links.get(key, 0)
    xds = agent.get("xds", {})
    return {
        "name": facts.name,
        "lab": facts.lab,
        "trouble": facts.trouble,
        "agent": {
            "running": facts.answers,
            "pid": agent.get("pid", 0) if facts.answers else 0,
            "xds": {"target": xds.get("target", ""), "connected": bool(facts.answers and xds.get("connected"))},
            "apply": agent.get("apply", {}),
            "registry_errors": list(agent.get("registry_errors", ())),
        },
        "home": {
            "running": facts.home_runs,
            "pid": home.get("pid", 0) if facts.home_runs else 0,
            "listen": list(home.get("listen", ())),
            "requests": home.get("requests", 0),
            "refused": home.get("refused", 0),
            "upstreams": home.get("upstreams", {}),
        },
        "kernel": dict(agent.get("kernel", {})),
        "waypoint": dict(agent.get("waypoint", {"state": "off"})) if facts.answers else {"state": "unknown"},
        "views": [view(row, known) for row in agent.get("views", ())],
        "workloads": [workloads[key] for key in sorted(workloads)],
        "programs": {"pinned": list(facts.programs), "attachments": sum(facts.links.values())},
        "counters": dict(facts.counters),
        "pressure": [
            {"map": item.map, "used": item.used, "limit": item.limit, "share": round(item.share, 4)}
            for item in facts.pressure
        ],
        "rejections": rejections(agent.get("rejections", ())),
        "ejections": [dict(item) for item in agent.get("ejections", ())],
    }


def rejections(found: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What agents do not carry into the kernel, each once with the views that it concerns."""
    merged: dict[tuple[str, ...], dict[str, Any]] = {}
    for item in found:
        key = tuple(str(item.get(part, "")) for part in ("kind", "name", "reason", "effect", "source"))
        entry = merged.setdefault(key, {**item, "views": []})
        entry.pop("view", None)
        if item.get("view"):
            entry["views"].append(item["view"])
    return list(merged.values())


def problems(plane: ControlPlane, nodes: Iterable[Mapping[str, Any]], facts: Iterable[NodeFacts]) -> list[str]:
    """What is not as it should be, a sentence each."""
    found = []
    if not plane.reachable:
        found.append(f"the control plane at {plane.address} does not answer: {plane.error}")
    elif not plane.ready:
        found.append("the control plane is not ready")
    for item in plane.objects:
        if verdicts.faulty(item):
            state = item["state"] if item["state"] != "accepted" else "accepted, but"
            why = "; ".join(verdicts.remarks(item))
            found.append(f"{verdicts.place(item)}: {verdicts.identity(item)} {state}: {why}")
    slots = {item.name: item.slots for item in facts}
    for one in nodes:
        found += [f"{one['name']}: {text}" for text in _node_problems(one, slots.get(str(one["name"]), 0))]
    return found


def _node_problems(one: Mapping[str, Any], slots: int) -> Iterator[str]:
    if one["trouble"]:
        yield str(one["trouble"])
    if not one["agent"]["running"]:
        yield "the agent is not running; what is pinned goes on as it is"
    if not one["home"]["running"]:
        yield "underpass-home is not running: no upstreams are opened, and nobody serves what the kernel leaves"
    waypoint = one["waypoint"]
    if waypoint["state"] not in ("off", "unknown", "ready"):
        yield f"the waypoint is {waypoint['state']}: {waypoint.get('reason') or 'Envoy is on its way'}"
    if one["agent"]["apply"].get("error"):
        yield f"the last change was not applied: {one['agent']['apply']['error']}"
    for text in one["agent"]["registry_errors"]:
        yield str(text)
    for item in one["rejections"]:
        if item["kind"] == NOT_ENFORCED:
            yield f"workload {item['name']}: {item['reason']}: {item['effect']}"
    for item in one["views"]:
        if item["state"] != "SYNCED":
            yield f"view {item['key']} is {item['state']}: {item['reason']}"
    for item in one["workloads"]:
        if item["state"] != "enrolled":
            yield f"workload {item['key']} is {item['state']}: {item['reason'] or 'its view is not complete'}"
        elif slots and item["attachments"] < slots:
            yield f"workload {item['key']} has {item['attachments']} of {slots} programs attached"
    for item in one["pressure"]:
        if item["share"] >= FULL:
            yield f"the map {item['map']} is {100 * item['share']:.0f} % full ({item['used']} of {item['limit']})"


def document(plane: ControlPlane, facts: Sequence[NodeFacts]) -> dict[str, Any]:
    """The JSON document."""
    nodes = [node(item, plane.clients) for item in facts]
    found = problems(plane, nodes, facts)
    return {
        "apiVersion": API_VERSION,
        "kind": "Status",
        "healthy": not found,
        "problems": found,
        "control_plane": {
            "address": plane.address,
            "reachable": plane.reachable,
            "ready": plane.ready,
            "version": plane.version,
            "error": plane.error,
            "clients": len(plane.clients),
            "objects": verdicts.counts(plane.objects),
            "rejected": [dict(item) for item in plane.objects if verdicts.faulty(item)],
        },
        "nodes": nodes,
    }


def exit_code(status: Mapping[str, Any]) -> int:
    """0 all well, 1 something is not, 3 nothing can be reached, 4 only some of it can."""
    alive = [one["agent"]["running"] for one in status["nodes"]]
    reachable = [status["control_plane"]["reachable"], *alive]
    if not any(reachable):
        return UNREACHABLE
    if not all(reachable) or not status["nodes"]:
        return PARTIAL
    return OK if status["healthy"] else FAILED


def lines(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and text for people; a label without text is a heading."""
    plane = status["control_plane"]
    if plane["reachable"]:
        objects = ", ".join(f"{count} {state}" for state, count in plane["objects"].items() if count) or "none"
        ready = "ready" if plane["ready"] else "NOT READY"
        text = (
            f"{plane['address']}  {ready}, version {plane['version']}, {plane['clients']} clients, objects: {objects}"
        )
        yield "control plane", text
    else:
        yield "control plane", f"{plane['address']}  UNREACHABLE: {plane['error']}"
    for one in status["nodes"]:
        yield f"node {one['name']}" + (f" (lab {one['lab']})" if one["lab"] else ""), ""
        yield from _node_lines(one)
    if not status["nodes"]:
        yield "no node", "no agent has set up a node on this machine"


def _node_lines(one: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    agent, home = one["agent"], one["home"]
    if agent["running"]:
        xds = agent["xds"]
        connected = "connected" if xds["connected"] else "NOT CONNECTED" if one["views"] else "no views yet"
        apply = agent["apply"]
        last = ""
        if apply.get("count"):
            took = apply["compile_ms"] + apply["execute_ms"]
            last = f", {apply['count']} changes applied, the last in {took:.0f} ms"
        yield "  agent", f"running (pid {agent['pid']}), xDS {xds['target']} {connected}{last}"
    else:
        yield "  agent", "NOT RUNNING"
    if home["running"]:
        upstreams = home["upstreams"].get("upstreams", 0)
        served = f"{home['requests']} requests served, {home['refused']} of them refused"
        yield "  home", f"running (pid {home['pid']}) at {', '.join(home['listen'])}, {upstreams} upstreams, {served}"
    else:
        yield "  home", "NOT RUNNING"
    if one["kernel"]:
        yield "  kernel", _kernel(one["kernel"])
    if one["waypoint"]["state"] not in ("off", "unknown"):
        yield "  waypoint", _waypoint(one["waypoint"])
    yield "  views", _tally(item["state"] for item in one["views"])
    yield "  workloads", _tally(item["state"] for item in one["workloads"])
    yield "  programs", f"{len(one['programs']['pinned'])} pinned, {one['programs']['attachments']} attachments"
    counted = ", ".join(f"{name} {count}" for name, count in one["counters"].items() if count)
    yield "  counters", counted or "all zero"
    fullest = ", ".join(f"{item['map']} {100 * item['share']:.1f} %" for item in one["pressure"][:4])
    yield "  pressure", fullest or "-"
    for item in one["ejections"]:
        if item["out"]:
            times = f"for the {item['ejections']}. time, " if item["ejections"] > 1 else ""
            yield (
                "  ejected",
                f"{item['endpoint']} of {item['cluster']}, {times}{item['left_s']} s left ({item['policy']})",
            )
    for item in one["rejections"]:
        if item["kind"] == NOT_ENFORCED:
            continue  # a problem, told below
        if item.get("source") is None and str(item["name"]).split(" ")[0] in _USUAL:
            continue
        source = item.get("source")
        place = f" ({source['file']}:{source['line']})" if source else ""
        yield "  not kernel", f"{item['kind']} {item['name']}{place}: {item['reason']}; {item['effect']}"


def _kernel(told: Mapping[str, Any]) -> str:
    """What the data path goes by here."""
    ways = told.get("second_ways", {})
    lacks = f"; without {', '.join(sorted(ways))} (underpass features)" if ways else ""
    return f"{told['release']}, programs at interfaces by {told['attachment']}, {told['workload_object']}{lacks}"


def _waypoint(told: Mapping[str, Any]) -> str:
    """Its state, loudly when it is not ready."""
    state = "ready" if told["state"] == "ready" else str(told["state"]).upper()
    pid = f" (pid {told['pid']})" if told.get("pid") else ""
    reason = f": {told['reason']}" if told.get("reason") else ""
    view = f", sees with {told['view']}" if told.get("view") else ""
    apart = f"; keep to underpass-home: {', '.join(told['apart'])}" if told.get("apart") else ""
    return f"Envoy {state}{pid}{reason}, restarted {told.get('restarts', 0)} times{view}{apart}"


def _tally(states: Iterable[str]) -> str:
    counted = Counter(states)
    return ", ".join(f"{count} {state}" for state, count in sorted(counted.items())) or "none"
