"""An explanation of a request as JSON and as lines for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nodeagent.admin.explain import Candidate, Considered, Explanation
from underpass.cli.errors import USAGE, CliError
from underpass.cli.output import API_VERSION
from underpass.cli.records.routes import cluster_text, short_host, source_json, source_text

#: Routes of a virtual host that are shown to people.
_SHOWN: Final = 12


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked: a request of a workload of a node."""

    node: str
    namespace: str
    workload: str
    owner: str
    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()


def parse_headers(given: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """`name:value` (white space around the value does not count). Raises CliError."""
    found = []
    for item in given:
        name, colon, value = item.partition(":")
        if not colon or not name or name != name.strip():
            raise CliError(f"-H {item!r}", "it is not NAME:VALUE", "for example -H 'end-user: jason'", USAGE)
        if any(character in item for character in "\r\n\0"):
            raise CliError(f"-H {item!r}", "a header is one line", "give -H once for each header", USAGE)
        found.append((name, value.strip()))
    return tuple(found)


def check_request(method: str, url: str) -> None:
    """Refuse what cannot be the first line of a request at all; everything else the core judges. Raises CliError."""
    for what, value in (("METHOD", method), ("URL", url)):
        if not value or any(character.isspace() or character == "\0" for character in value):
            raise CliError(
                f"{what} {value!r}",
                "it is empty or has white space in it",
                "underpass explain request --from web GET http://api/path",
                USAGE,
            )


def document(question: Question, found: Explanation) -> dict[str, Any]:
    """The JSON document."""
    route = found.route
    total = sum(weight for _, weight in found.clusters)
    return {
        "apiVersion": API_VERSION,
        "kind": "Explanation",
        "node": question.node,
        "workload": {"namespace": question.namespace, "name": question.workload, "owner": question.owner},
        "view": found.view,
        "request": {
            "method": question.method,
            "url": question.url,
            "headers": [list(header) for header in question.headers],
        },
        "decision": found.outcome,
        "reason": found.reason,
        "status": found.status,
        "home": found.home,
        "service": found.service,
        "table": found.table,
        "domain": found.domain,
        "host": route.host if route is not None else "",
        "route": route.route if route is not None else "",
        "match": route.match if route is not None else "",
        "where": route.where if route is not None else "",
        "features": list(route.features) if route is not None else [],
        "cluster": found.drawn or (found.clusters[0][0] if len(found.clusters) == 1 else ""),
        "clusters": [
            {"name": name, "weight": weight, "share": round(weight / total, 4) if total else 0.0}
            for name, weight in found.clusters
        ],
        "endpoint": _endpoint(found.endpoint, found.endpoint) if found.endpoint is not None else None,
        "endpoints": [_endpoint(candidate, found.endpoint) for candidate in found.candidates],
        "wires_in_stock": found.endpoint.free if found.endpoint is not None else None,
        "source": source_json(route.source if route is not None else None),
        "considered": [_considered(item) for item in found.considered],
    }


def _endpoint(candidate: Candidate, chosen: Candidate | None) -> dict[str, Any]:
    return {
        "address": candidate.address,
        "port": candidate.port,
        "workload": candidate.workload,
        "cluster": candidate.cluster,
        "live": candidate.live,
        "free_wires": candidate.free,
        "obstacle": candidate.obstacle,
        "drawn": candidate == chosen,
    }


def _considered(item: Considered) -> dict[str, Any]:
    return {
        "match": item.route.match,
        "route": item.route.route,
        "cluster": item.route.cluster,
        "where": item.route.where,
        "reason": item.route.reason,
        "taken": item.taken,
        "source": source_json(item.route.source),
    }


def verdict(found: Explanation) -> str:
    """The outcome in one sentence."""
    if found.outcome == "kernel" and found.status:
        return f"the kernel answers it itself: {found.status}, {found.reason}"
    if found.outcome == "kernel":
        assert found.endpoint is not None, "a request that the kernel decides has an endpoint"
        return f"the kernel sends it to {_address(found.endpoint)}"
    if found.outcome == "tcp":
        return "the connection itself goes to one of the endpoints: this port is not HTTP"
    if found.outcome == "refused":
        return f"the connection is refused: {found.reason}"
    if found.outcome == "untouched":
        return f"not routed by the mesh: {found.service} is no service that this workload sees"
    if found.home == "envoy":
        return f"the kernel leaves it to the Envoy that is its home peer: {found.reason}"
    if found.status:
        return f"{found.status} from underpass-home: {found.reason}"
    return f"the kernel leaves it to underpass-home, which serves it: {found.reason}"


def lines(question: Question, found: Explanation) -> Iterator[tuple[str, str]]:
    """Label and text, in the order of the decision."""
    yield "request", f"{question.method} {question.url}" + "".join(f"  {n}: {v}" for n, v in question.headers)
    yield "from", f"{question.namespace}/{question.workload} on {question.node} (view {found.view})"
    yield "outcome", verdict(found)
    if found.outcome == "untouched":
        return
    if found.table:
        yield "service", f"{found.service} (route table {found.table})"
    else:
        yield "service", found.service
    if found.domain:
        yield "domain", found.domain
    route = found.route
    if route is not None:
        named = f"  name {route.route}" if route.route not in ("", "default", "tcp") else ""
        yield "route", f"{_host(route.host)} {route.match}{named}"
        yield "because of", source_text(route.source)
        if route.features and found.outcome != "kernel":
            yield "not kernel's", "; ".join(route.features)
    yield from _destinations(found)


def _destinations(found: Explanation) -> Iterator[tuple[str, str]]:
    total = sum(weight for _, weight in found.clusters)
    for name, weight in found.clusters:
        share = f"  {100 * weight / total:.4g} %" if len(found.clusters) > 1 and total else ""
        mark = "  <- drawn" if name == found.drawn and len(found.clusters) > 1 else ""
        yield "destination", f"{cluster_text(name)}{share}{mark}"
        mine = [candidate for candidate in found.candidates if candidate.cluster == name]
        if not mine and found.outcome in ("kernel", "home", "tcp"):
            yield "", "  no endpoint"
        for candidate in mine:
            state = "live" if candidate.live else "gone"
            wires = "" if found.outcome == "tcp" else f", {candidate.free} free wires"
            obstacle = f", not for the kernel: {candidate.obstacle}" if candidate.obstacle else ""
            drawn = "  <- drawn" if candidate == found.endpoint else ""
            yield "", f"  {_address(candidate)} {candidate.workload or '-'} ({state}{wires}{obstacle}){drawn}"
    if found.outcome == "kernel" and found.endpoint is not None:
        if found.endpoint.free:
            yield "wire", f"in stock ({found.endpoint.free})"
        else:
            yield (
                "wire",
                "none in stock unless the client holds one: then home forwards it and opens more (no-upstream)",
            )


def considered_rows(items: Sequence[Considered]) -> list[tuple[str, str, str, str, str]]:
    """Rows for the routes of the virtual host: mark, match, destination, where, source."""
    rows = []
    for item in items[:_SHOWN]:
        where = item.route.where + (f" ({item.route.reason})" if item.route.reason else "")
        rows.append(
            (
                "*" if item.taken else "",
                item.route.match or "-",
                cluster_text(item.route.cluster),
                where or "-",
                source_text(item.route.source),
            )
        )
    if len(items) > _SHOWN:
        rows.append(("", f"... and {len(items) - _SHOWN} more", "", "", ""))
    return rows


def _address(candidate: Candidate) -> str:
    host = f"[{candidate.address}]" if ":" in candidate.address else candidate.address
    return f"{host}:{candidate.port}"


def _host(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return f"{short_host(name)}:{port}" if colon else host
