"""The maps' counters in Prometheus' text format: read at scrape, nothing kept, labels bounded by the configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from nodeagent.bpf.abc import Map
from nodeagent.telemetry.flows import families, flows_of
from nodeagent.telemetry.read import counters_of, endpoints_of, punts_of, routes_of


class MapCollector:
    """Reads the maps once per scrape."""

    def __init__(
        self,
        maps: Mapping[str, Map],
        applied: int,
        drift: int,
        ejections: Iterable[Mapping[str, Any]] = (),
        kept: int = 0,
    ) -> None:
        self._maps, self._applied, self._drift = maps, applied, drift
        self._ejections, self._kept = ejections, kept

    def collect(self) -> Iterator[Metric]:
        """The metric families, in Prometheus' naming."""
        routes = routes_of(self._maps)
        requests = CounterMetricFamily(
            "underpass_requests",
            "Requests by route and by who decided them",
            labels=("host", "route", "cluster", "decided_by"),
        )
        sums: dict[tuple[str, str, str, str], int] = {}
        for route in routes:
            for by, count in (("kernel", route.kernel), ("home", route.home), ("waypoint", route.waypoint)):
                # Two rules may differ by their match alone: they are one row here.
                labels = (route.host, route.route, route.cluster, by)
                sums[labels] = sums.get(labels, 0) + count
        for labels, count in sums.items():
            requests.add_metric(labels, count)
        yield requests
        hosts = {route.id: route.host for route in routes}
        punts = CounterMetricFamily(
            "underpass_punts", "Requests left to the home peer, by reason", labels=("host", "reason")
        )
        reasons: dict[tuple[str, str], int] = {}
        for number, table in punts_of(self._maps).items():
            for reason, count in table.items():
                reasons[hosts.get(number, ""), reason] = reasons.get((hosts.get(number, ""), reason), 0) + count
        for labels_, count in reasons.items():
            punts.add_metric(labels_, count)
        yield punts
        events = CounterMetricFamily("underpass_datapath_events", "Events of the data path", labels=("event",))
        for label, count in counters_of(self._maps).items():
            events.add_metric((label,), count)
        yield events
        active = GaugeMetricFamily("underpass_endpoint_active", "Requests under way", labels=("endpoint", "workload"))
        served = CounterMetricFamily("underpass_endpoint_requests", "Requests", labels=("endpoint", "workload"))
        errors = CounterMetricFamily("underpass_endpoint_errors", "Statuses >= 500", labels=("endpoint", "workload"))
        for endpoint in endpoints_of(self._maps):
            if endpoint.live:
                name = (f"{endpoint.address}:{endpoint.port}", endpoint.workload.partition(";")[0])
                active.add_metric(name, endpoint.active)
                served.add_metric(name, endpoint.requests)
                errors.add_metric(name, endpoint.errors)
        yield from (active, served, errors)
        yield from families(flows_of(self._maps))
        yield from self._outliers()
        yield CounterMetricFamily("underpass_agent_applies", "Plans executed", value=self._applied)
        yield CounterMetricFamily("underpass_agent_drift", "Map entries found changed by others", value=self._drift)

    def _outliers(self) -> Iterator[Metric]:
        labels = ("cluster", "endpoint")
        out = GaugeMetricFamily("underpass_endpoint_ejected", "1: taken out for what it answered", labels=labels)
        total = CounterMetricFamily("underpass_endpoint_ejections", "Times that it was taken out", labels=labels)
        for row in self._ejections:
            name = (str(row["cluster"]), str(row["endpoint"]))
            out.add_metric(name, int(row["out"]))
            total.add_metric(name, int(row["ejections"]))
        yield from (out, total)
        text = "Times that a failing endpoint stayed because enough were out"
        yield CounterMetricFamily("underpass_ejections_overflow", text, value=self._kept)


def render(
    maps: Mapping[str, Map], applied: int, drift: int, ejections: Iterable[Mapping[str, Any]] = (), kept: int = 0
) -> bytes:
    """The page for one scrape. ejections: as in the status document; kept: failing endpoints that had to stay."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MapCollector(maps, applied, drift, ejections, kept))
    return generate_latest(registry)
