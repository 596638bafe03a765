"""Requests that the kernel routed, by source workload, host, destination workload and status: Istio's standard metrics.

The names and labels are those of https://istio.io/latest/docs/reference/config/metrics/, so that dashboards made for
them show kernel traffic too. The buckets are the kernel's: 64 microseconds and twice as much each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric

from nodeagent.abi import numbers as n
from nodeagent.abi.numbers import NameKind
from nodeagent.abi.records import FlowKey, FlowStat
from nodeagent.bpf.abc import Map
from nodeagent.telemetry.read import names_of, routes_of

LABELS = (
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "destination_service",
    "destination_workload",
    "destination_workload_namespace",
    "response_code",
    "response_flags",
    "request_protocol",
)
#: Upper bounds of the latency slots but the last, in milliseconds.
BOUNDS_MS = tuple(n.LATENCY_FIRST_US * 2**slot / 1000 for slot in range(n.LATENCY_SLOTS - 1))
#: Envoy's flag for a response that the upstream or the client cut short; the status is unknown then.
_CUT = "DC"


@dataclass(frozen=True, slots=True)
class Flow:
    """Requests of one (source, route, destination, status): counts, bytes of heads and bodies, latencies.

    source, destination: NAMESPACE/NAME, empty when no longer known. status: 0 for a response that never became whole.
    slots: requests by latency, see BOUNDS_MS.
    """

    source: str
    host: str
    route: int
    destination: str
    status: int
    requests: int
    asked: int
    answered: int
    us: int
    slots: tuple[int, ...]


def added(rows: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Latency slots of several CPUs, summed; records leave trailing zeros out."""
    whole = [0] * n.LATENCY_SLOTS
    for row in rows:
        for slot, count in enumerate(row):
            whole[slot] += count
    return tuple(whole)


def flows_of(maps: Mapping[str, Map]) -> list[Flow]:
    """Every flow that was counted, in the order of its key."""
    workloads, endpoints = names_of(maps, NameKind.WORKLOAD), names_of(maps, NameKind.ENDPOINT)
    hosts = {route.id: route.host for route in routes_of(maps)}
    stats, found = maps["flow_stats"], []
    for key in sorted(stats.keys()):
        flow = FlowKey.unpack(key)
        rows = [FlowStat.unpack(value) for value in stats.lookup_percpu(key) or []]
        found.append(
            Flow(
                source=workloads.get(flow.workload, "").partition(" ")[0],
                host=hosts.get(flow.route, ""),
                route=flow.route,
                destination=endpoints.get(flow.endpoint, "").partition(" ")[2].partition(";")[0],
                status=flow.status,
                requests=sum(row.requests for row in rows),
                asked=sum(row.asked for row in rows),
                answered=sum(row.answered for row in rows),
                us=sum(row.us for row in rows),
                slots=added(row.slot for row in rows),
            )
        )
    return found


def families(flows: list[Flow]) -> Iterator[Metric]:
    """Istio's four HTTP metrics. Flows with the same labels, of two routes or two pods' ports, are one row."""
    rows: dict[tuple[str, ...], list[Flow]] = {}
    for flow in flows:
        rows.setdefault(_labels(flow), []).append(flow)
    requests = CounterMetricFamily("istio_requests", "Requests", labels=LABELS)
    durations = HistogramMetricFamily(
        "istio_request_duration_milliseconds", "From a request's first segment to its response's last", labels=LABELS
    )
    asked = HistogramMetricFamily("istio_request_bytes", "Bytes of requests, heads and bodies", labels=LABELS)
    answered = HistogramMetricFamily("istio_response_bytes", "Bytes of responses, heads and bodies", labels=LABELS)
    for labels, group in rows.items():
        count = sum(flow.requests for flow in group)
        requests.add_metric(labels, count)
        durations.add_metric(labels, _buckets(group, count), sum(flow.us for flow in group) / 1000)
        asked.add_metric(labels, [("+Inf", count)], sum(flow.asked for flow in group))
        answered.add_metric(labels, [("+Inf", count)], sum(flow.answered for flow in group))
    yield from (requests, durations, asked, answered)


def _labels(flow: Flow) -> tuple[str, ...]:
    source_namespace, _, source = flow.source.rpartition("/")
    namespace, _, destination = flow.destination.rpartition("/")
    host = flow.host.rpartition(":")[0] if flow.host.rpartition(":")[2].isdigit() else flow.host
    code, flags = (str(flow.status), "-") if flow.status else ("0", _CUT)
    return (
        "source",
        source or "unknown",
        source_namespace or "unknown",
        host or "unknown",
        destination or "unknown",
        namespace or "unknown",
        code,
        flags,
        "http",
    )


def _buckets(group: list[Flow], count: int) -> list[tuple[str, float]]:
    below, out = 0, []
    for slot, bound in enumerate(BOUNDS_MS):
        below += sum(flow.slots[slot] for flow in group)
        out.append((f"{bound:g}", float(below)))
    return [*out, ("+Inf", float(count))]
