"""A judgement as JSON and as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from underpass.cli.output import API_VERSION
from underpass.cli.records.analysis import ERROR, WARNING, Judged, Placement, Problem, Report, Rule
from underpass.cli.records.routes import cluster_text, short_host


def document(report: Report, *, strict: bool = False) -> dict[str, Any]:
    """The JSON document."""
    return {
        "apiVersion": API_VERSION,
        "kind": "Analysis",
        "ok": not report.failed(strict=strict),
        "files": list(report.files),
        "summary": {
            "objects": len(report.objects),
            "views": report.views,
            "errors": report.count(ERROR),
            "warnings": report.count(WARNING),
            "rules": report.rules(),
        },
        "assumed_hosts": list(report.assumed),
        "problems": [_problem(problem) for problem in report.problems],
        "objects": [_object(item) for item in report.objects],
    }


def _problem(problem: Problem) -> dict[str, Any]:
    return {
        "severity": problem.severity,
        "code": problem.code,
        "file": problem.file,
        "line": problem.line,
        "kind": problem.kind,
        "namespace": problem.namespace,
        "name": problem.name,
        "message": problem.message,
    }


def _object(item: Judged) -> dict[str, Any]:
    return {
        "kind": item.kind,
        "namespace": item.namespace,
        "name": item.name,
        "file": item.file,
        "line": item.line,
        "state": item.state,
        "rules": [_rule(rule) for rule in item.rules],
    }


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "path": rule.path,
        "rule": rule.index,
        "name": rule.name,
        "line": rule.line,
        "where": rule.where,
        "why": rule.why,
        "routes": [
            {
                "host": placement.host,
                "match": placement.match,
                "clusters": [{"name": name, "weight": weight} for name, weight in placement.clusters],
                "where": placement.where,
                "reason": placement.reason,
                "features": list(placement.features),
            }
            for placement in rule.placements
        ],
    }


def rule_lines(item: Judged) -> Iterator[tuple[str, str, str]]:
    """Of each rule: what it is, where it runs, and the rest."""
    for rule in item.rules:
        name = f" ({rule.name})" if rule.name else ""
        rest = "; ".join(dict.fromkeys(_route_text(placement) for placement in rule.placements[:3]))
        more = len(rule.placements) - 3
        if more > 0:
            rest += f"; and {more} more"
        if rule.why:
            rest = f"{rest}  [{rule.why}]" if rest else rule.why
        yield f"{item.file}:{rule.line}  {rule.path}{name}", rule.where, rest


def _route_text(placement: Placement) -> str:
    total = sum(weight for _, weight in placement.clusters)
    to = ", ".join(
        cluster_text(name) + (f" {100 * weight / total:.4g} %" if len(placement.clusters) > 1 and total else "")
        for name, weight in placement.clusters
    )
    host, _, port = placement.host.rpartition(":")
    return f"{short_host(host)}:{port} {placement.match}" + (f" -> {to}" if to else "")


def title(item: Judged) -> str:
    """An object's heading."""
    if not item.kind:
        return f"{item.file}:{item.line}: a document that cannot be read"
    name = f"{item.namespace}/{item.name}" if item.namespace else item.name
    return f"{item.kind} {name}" + ("" if item.state == "accepted" else f"  {item.state.upper()}")


def problem_text(problem: Problem) -> str:
    """`file.yaml:12: VirtualService shop/web: what (code)`."""
    place = f"{problem.file}:{problem.line}: " if problem.file else ""
    name = f"{problem.namespace}/{problem.name}" if problem.namespace else problem.name
    who = f"{problem.kind} {name}: " if problem.file and problem.kind else ""
    return f"{place}{who}{problem.message} ({problem.code})"


def summary(report: Report) -> str:
    """The last line."""
    rules = ", ".join(f"{count} {place}" for place, count in report.rules().items()) or "none"
    return (
        f"{len(report.objects)} objects, {report.views} views; rules: {rules}; "
        f"{report.count(ERROR)} errors, {report.count(WARNING)} warnings"
    )
