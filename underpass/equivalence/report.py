"""What was found, for programs: one document, and the numbers behind it (pure). `report_text` is for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from underpass.equivalence.outcome import Judged, Outcome, Result, Sort
from underpass.equivalence.run import Results

API_VERSION: Final = "underpass.io/v1"
#: Differences that are told one by one; the rest is counted.
SHOWN: Final = 200
#: What a route has that sends requests where their connection was going: it is there for hosts that nobody defines.
_THROUGH: Final = ("original-destination",)


@dataclass(frozen=True, slots=True)
class RouteRow:
    """The PLAIN requests that one route took. `reasons`: punts by reason; `where`: what the compiler says of it."""

    table: str
    host: str
    match: str
    where: str
    features: tuple[str, ...]
    source: str
    requests: int
    punted: int
    reasons: tuple[tuple[str, int], ...]

    @property
    def own(self) -> bool:
        """Whether it is a route to a service or of a rule, not what lets unknown hosts through as they are."""
        return bool(self.host) and self.features != _THROUGH

    @property
    def ratio(self) -> float:
        """Share of the requests that was punted."""
        return self.punted / self.requests if self.requests else 0.0


def rows(results: Results) -> list[RouteRow]:
    """One row for each route that took a plain request, and one for each table's requests that no route took."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for item in results.judged:
        if item.request.sort is Sort.PLAIN:
            reasons = found.setdefault((item.table, item.native.route), Counter())
            reasons[item.why if item.result is Result.PUNTED else ""] += 1
    return [_row(results, table, key, reasons) for (table, key), reasons in found.items()]


def _row(results: Results, table: str, key: str, counted: Counter[str]) -> RouteRow:
    info = results.routes.get((table, key))
    punts = tuple((reason, count) for reason, count in counted.most_common() if reason)
    punted = sum(count for _, count in punts)
    if info is None:
        return RouteRow(table, "", "(no route)", "", (), "", counted.total(), punted, punts)
    source = info.source
    at = f"{source.file}:{source.line}" if source is not None and source.file else ""
    name = f"{source.kind} {source.namespace}/{source.name}[{source.rule}]" if source is not None else ""
    where = " ".join(part for part in (name, at) if part)
    return RouteRow(
        table, info.host, info.match, info.where.value, info.features, where, counted.total(), punted, punts
    )


def counts(results: Results) -> dict[str, dict[str, int]]:
    """Requests by sort and verdict."""
    found = Counter((item.request.sort, item.result) for item in results.judged)
    return {sort.value: {result.value: found[sort, result] for result in Result} for sort in Sort}


def reasons(results: Results, sort: Sort) -> dict[str, int]:
    """Punts of one sort by reason, the commonest first."""
    found = Counter(item.why for item in results.judged if item.request.sort is sort and item.result is Result.PUNTED)
    return dict(found.most_common())


def differences(results: Results) -> Iterator[Judged]:
    """Every request that differs."""
    return (item for item in results.judged if item.result is Result.DIFFERENT)


def document(results: Results) -> dict[str, Any]:
    """The whole report as plain data; the same seed and resources give the same document."""
    table_rows = rows(results)
    own = [row for row in table_rows if row.own]
    total = sum(row.requests for row in own)
    return {
        "apiVersion": API_VERSION,
        "kind": "EquivalenceReport",
        "seed": results.seed,
        "executors": results.executors,
        "notAsked": results.absent,
        "leftOut": list(results.left_out),
        "views": results.views,
        "tables": results.tables,
        "requests": counts(results),
        "different": results.different,
        "puntRatio": sum(row.punted for row in own) / total if total else 0.0,
        "punts": {sort.value: reasons(results, sort) for sort in Sort},
        "routes": [
            {
                "table": row.table,
                "host": row.host,
                "match": row.match,
                "where": row.where,
                "features": list(row.features),
                "source": row.source,
                "requests": row.requests,
                "punted": row.punted,
                "puntRatio": row.ratio,
                "reasons": dict(row.reasons),
            }
            for row in table_rows
        ],
        "differences": [_difference(item) for _, item in zip(range(SHOWN), differences(results), strict=False)],
        "splits": [{"table": table, "aim": aim, "why": why} for table, aim, why in results.splits],
        "refused": [{"resource": name, "why": why} for name, why in results.refused],
    }


def _difference(item: Judged) -> dict[str, Any]:
    return {
        "table": item.table,
        "aim": item.request.aim,
        "sort": item.request.sort.value,
        "why": item.why,
        "request": item.request.data.decode("latin-1"),
        "libcore": _outcome(item.native),
        "kernel": _outcome(item.kernel),
        "envoy": _outcome(item.envoy),
    }


def _outcome(outcome: Outcome | None) -> dict[str, Any] | None:
    if outcome is None:
        return None
    found: dict[str, Any] = {"does": outcome.kind.value}
    for name in ("cluster", "status", "reason", "route", "domain"):
        if getattr(outcome, name):
            found[name] = getattr(outcome, name)
    if len(outcome.may) > 1:
        found["may"] = sorted(outcome.may)
    if outcome.head:
        found["head"] = outcome.head.decode("latin-1")
    return found
