"""Counters of the xDS server, under istiod's names, so that its dashboards work unchanged."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from controlplane.snapshot.urls import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, short
from controlplane.xds.events import Response

#: istiod's label for a type, where it has one.
_LETTERS: Final = {CLUSTER: "cds", ENDPOINT: "eds", LISTENER: "lds", ROUTE: "rds", SECRET: "sds"}
_SIZES: Final = (1, 10_000, 1_000_000, 4_000_000, 10_000_000, 40_000_000)
_CONVERGENCE: Final = (0.01, 0.05, 0.1, 0.5, 1, 3, 5, 10, 20, 30)
#: Types that clients name are theirs to choose; the label is bounded by counting the rest together.
_OTHER: Final = "other"
_KNOWN_PREFIXES: Final = ("type.googleapis.com/envoy.", "type.googleapis.com/istio.", "istio.io/debug")


def type_label(type_url: str) -> str:
    """``cds``, ``eds`` ... for the usual types, the message name for other known ones, ``other`` for the rest."""
    letters = _LETTERS.get(type_url)
    if letters is not None:
        return letters
    return short(type_url) if type_url.startswith(_KNOWN_PREFIXES) and len(type_url) < 120 else _OTHER


class XdsMetrics:
    """One process's xDS figures, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.connections = Gauge(
            "pilot_xds", "Number of endpoints connected to this pilot using XDS.", registry=registry
        )
        self._pushes = Counter(
            "pilot_xds_pushes", "Pilot build and send errors and pushes.", ["type"], registry=registry
        )
        self._size = Histogram(
            "pilot_xds_config_size_bytes",
            "Distribution of configuration sizes pushed to clients",
            ["type"],
            buckets=_SIZES,
            registry=registry,
        )
        self.send_time = Histogram(
            "pilot_xds_send_time",
            "Total time in seconds Pilot takes to send generated configuration.",
            buckets=_CONVERGENCE,
            registry=registry,
        )
        self.convergence = Histogram(
            "pilot_proxy_convergence_time",
            "Delay in seconds between config change and a proxy receiving all required configuration.",
            buckets=_CONVERGENCE,
            registry=registry,
        )
        self._rejects = Counter(
            "pilot_total_xds_rejects",
            "Total number of XDS responses from pilot rejected by proxy.",
            ["type"],
            registry=registry,
        )
        self._reject_by_type = {
            url: Gauge(f"pilot_xds_{letters}_reject", f"Pilot rejected {letters.upper()}.", ["node"], registry=registry)
            for url, letters in _LETTERS.items()
            if letters != "sds"
        }
        self._stale = Counter(
            "pilot_xds_expired_nonce",
            "Total number of XDS requests with an expired nonce.",
            ["type"],
            registry=registry,
        )
        self.refused_streams = Counter(
            "pilot_xds_refused_streams", "Streams ended by this server, by reason.", ["reason"], registry=registry
        )
        self._children: dict[str, tuple[Counter, Histogram]] = {}

    def sent(self, response: Response) -> None:
        """A response was written."""
        label = type_label(response.type_url)
        children = self._children.get(label)
        if children is None:
            children = self._children[label] = (self._pushes.labels(label), self._size.labels(label))
        children[0].inc()
        children[1].observe(len(response.data))

    def rejected(self, type_url: str, node: str) -> None:
        """A client refused a response."""
        self._rejects.labels(type_label(type_url)).inc()
        gauge = self._reject_by_type.get(type_url)
        if gauge is not None:
            gauge.labels(node).set(1)

    def recovered(self, type_url: str, node: str) -> None:
        """A client accepts again, or left."""
        gauge = self._reject_by_type.get(type_url)
        if gauge is not None:
            try:
                gauge.remove(node)
            except KeyError:
                pass  # it never refused

    def stale(self, type_url: str) -> None:
        """A request answered an older response."""
        self._stale.labels(type_label(type_url)).inc()
