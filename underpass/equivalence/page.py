"""The report as one HTML page that needs nothing else (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Final

_STYLE: Final = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem }
body { color: #1d2733 } table { border-collapse: collapse; margin: .5rem 0 1.5rem }
th { text-align: left; border-bottom: 2px solid #ccd }
td, th { padding: .2rem .8rem .2rem 0; vertical-align: top } td { border-bottom: 1px solid #eef }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
code, pre { font: 12px/1.4 ui-monospace, monospace }
pre { background: #f5f7fa; padding: .5rem; margin: 0; white-space: pre-wrap; word-break: break-all }
.good { color: #0a6e31 } .bad { color: #b3261e; font-weight: 600 } .some { color: #8a5a00 }
"""


def page(report: dict[str, Any]) -> str:
    """The page for a document of `report.document`."""
    return "\n".join(_parts(report)) + "\n"


def _parts(report: dict[str, Any]) -> Iterable[str]:
    yield "<!doctype html><html lang=en><meta charset=utf-8><title>Equivalence of kernel and Envoy</title>"
    yield f"<style>{_STYLE}</style><h1>Kernel and Envoy on the same resources</h1>"
    different = report["different"]
    verdict = "0 DIFFERENT" if not different else f"{different} DIFFERENT"
    yield f"<p class={'bad' if different else 'good'}>{verdict}</p>"
    asked = ", ".join(f"{name} ({version})" for name, version in report["executors"].items())
    yield f"<p>{report['tables']} route tables of {report['views']} views, seed {report['seed']}."
    yield f"<br>Asked: {escape(asked)}."
    for name, why in report["notAsked"].items():
        yield f"<br>Not asked: {escape(name)}, {escape(why)}."
    if report["leftOut"]:
        yield f"<br>Filters that only Istio's own Envoy has were left out: {escape(', '.join(report['leftOut']))}."
    yield f"<br>Punted of plain requests to services and rules: {report['puntRatio']:.2%}.</p><h2>Requests</h2>"
    results = ("equal", "punted", "DIFFERENT")
    yield _table(
        ("", *results), ((sort, *(numbers[r] for r in results)) for sort, numbers in report["requests"].items())
    )
    yield "<h2>Routes</h2><p>Plain requests by the route that took them.</p>"
    columns = ("table", "host", "match", "where", "requests", "punted", "why", "rule")
    yield _table(columns, map(_route, report["routes"]))
    yield "<h2>Punts</h2>"
    for sort, reasons in report["punts"].items():
        if reasons:
            yield f"<h3>{escape(sort)}</h3>" + _table(("reason", "requests"), reasons.items())
    if report["differences"] or report["splits"]:
        yield "<h2 class=bad>Differences</h2>"
    for split in report["splits"]:
        yield f"<p><b>{escape(split['table'])}</b> {escape(split['aim'])}: {escape(split['why'])}</p>"
    for item in report["differences"]:
        yield f"<h3>{escape(item['why'])}</h3><p>{escape(item['table'])}: {escape(item['aim'])}</p>"
        yield f"<pre>{escape(item['request'])}</pre>"
    if report["refused"]:
        yield "<h2>Not tried</h2>" + _table(
            ("resource", "why"), ((item["resource"], item["why"]) for item in report["refused"])
        )
    yield "</html>"


def _route(row: dict[str, Any]) -> Sequence[Any]:
    why = ", ".join(f"{reason} ({count})" for reason, count in row["reasons"].items())
    features = f"; {', '.join(row['features'])}" if row["features"] else ""
    share = f"{row['punted']} ({row['puntRatio']:.0%})" if row["punted"] else 0
    return (
        row["table"], row["host"], row["match"], row["where"], row["requests"], share, why + features, row["source"]
    )  # fmt: skip


def _table(columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    cells = ["<table><tr>", *(f"<th>{escape(column)}" for column in columns)]
    for line in lines:
        cells.append("<tr>")
        cells += [f"<td{' class=n' if isinstance(cell, int) else ''}>{escape(str(cell))}" for cell in line]
    return "".join(cells) + "</table>"
