"""Figures about the configuration, under istiod's names."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from controlplane.admin.objects import Store
from controlplane.model.mesh import Mesh
from controlplane.model.verdict import Verdict
from controlplane.store.replica import Status

_BUCKETS: Final = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 3, 5, 10, 20, 30)


class ConfigMetrics:
    """Counts of what is in force, and how long changes take."""

    def __init__(self, registry: CollectorRegistry, version: str) -> None:
        Gauge("pilot_info", "Pilot version and build information.", ["version"], registry=registry).labels(version).set(
            1
        )
        self._services = Gauge("pilot_services", "Total services known to pilot.", registry=registry)
        self._virtual_services = Gauge(
            "pilot_virt_services", "Total virtual services known to pilot.", registry=registry
        )
        self._duplicates = Gauge(
            "pilot_vservice_dup_domain", "Virtual services with duplicate domains.", registry=registry
        )
        self._objects = Gauge(
            "pilot_config_objects",
            "Objects in the configuration by kind and verdict.",
            ["kind", "state"],
            registry=registry,
        )
        self._push = Histogram(
            "pilot_pushcontext_init_seconds",
            "Total time in seconds Pilot takes to take a change of configuration into force.",
            buckets=_BUCKETS,
            registry=registry,
        )
        self._updates = Counter(
            "pilot_inbound_updates", "Total number of updates received by pilot.", ["type"], registry=registry
        )

    def pushed(self, seconds: float, mesh: Mesh, verdicts: Sequence[Verdict]) -> None:
        """A change is in force."""
        self._push.observe(seconds)
        self._updates.labels("config").inc()
        self._services.set(len(mesh.services))
        self._virtual_services.set(len(mesh.virtual_services))
        self._duplicates.set(sum(verdict.code == "duplicate-host" for verdict in verdicts))
        self._objects.clear()
        for (kind, state), count in Tally((v.kind or "unreadable", v.state) for v in verdicts).items():
            self._objects.labels(kind, state).set(count)


class StoreMetrics:
    """The connection to the store, read when somebody asks. No series of them exists without a store."""

    def __init__(self, registry: CollectorRegistry, store: Store) -> None:
        gauges: tuple[tuple[str, str, Callable[[Status], float]], ...] = (
            ("underpass_store_available", "Whether the store answers (1) or is lost (0).", lambda s: s.available),
            ("underpass_store_revision", "The store's revision that this replica has.", lambda s: s.revision),
            ("underpass_store_leader", "Whether this replica leads (1).", lambda s: s.leads),
            ("underpass_store_relists", "Times that revisions missed were compacted.", lambda s: s.relists),
        )
        for name, about, read in gauges:
            Gauge(name, about, registry=registry).set_function(partial(self._value, store, read))

    @staticmethod
    def _value(store: Store, read: Callable[[Status], float]) -> float:
        return float(read(store.status))
