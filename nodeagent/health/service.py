"""The detector over the pinned map `endpoint_runs`: reads how endpoints answered, begins rows anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nodeagent.abi.records import EndpointRun
from nodeagent.bpf.abc import Map
from nodeagent.cache.resources import Outlier
from nodeagent.health.outlier import Detector, Event, Run, Watch, duration

_ANEW = EndpointRun().pack()


class Ejections:
    """Who is out. Nothing here keeps time: every call brings it, in seconds of one clock."""

    def __init__(self, runs: Map) -> None:
        self._runs = runs
        self._detector = Detector()
        self._ids: dict[str, int] = {}
        self._seen: Mapping[Watch, frozenset[str]] = {}

    @property
    def out(self) -> dict[Watch, frozenset[str]]:
        """Keys of the endpoints that are out, by cluster."""
        return self._detector.ejected

    def watch(self, wanted: Mapping[Watch, frozenset[str]], ids: Mapping[str, int], now: float) -> None:
        """Looks at these clusters' endpoints from now on. ids: of endpoints, by key. Raises BpfError."""
        fresh = self._detector.watch(wanted, now) if wanted != self._seen else frozenset()
        self._seen = dict(wanted)
        self._ids = {key: ids[key] for key in self._detector.endpoints if key in ids}
        self._begin(fresh)

    def look(self, now: float) -> list[Event]:
        """What the endpoints' answers since the last look lead to. Raises BpfError."""
        runs = {}
        for key, number in self._ids.items():
            value = self._runs.lookup(number.to_bytes(4, "little"))
            if value is not None and any(value):
                run = EndpointRun.unpack(value)
                runs[key] = Run(run.errors_peak, run.gateway_peak)
        events, anew = self._detector.look(runs, now)
        self._begin(anew)
        return events

    def _begin(self, endpoints: Iterable[str]) -> None:
        for key in endpoints:
            if key in self._ids:
                self._runs.update(self._ids[key].to_bytes(4, "little"), _ANEW)

    @property
    def kept(self) -> int:
        """How often an endpoint stayed because enough were out."""
        return self._detector.kept

    def status(self, now: float) -> list[dict[str, Any]]:
        """Every endpoint that was ever out, for the status document."""
        rows = []
        for watch, endpoint, host in self._detector.hosts():
            out = host.since is not None
            left = host.since + duration(watch.policy, host) - now if host.since is not None else 0.0
            rows.append(
                {
                    "cluster": watch.cluster,
                    "endpoint": endpoint,
                    "out": out,
                    "left_s": round(max(0.0, left), 1),
                    "ejections": host.total,
                    "policy": policy_text(watch.policy),
                }
            )
        return rows


def policy_text(policy: Outlier) -> str:
    """A policy in words."""
    words = [f"{policy.errors} x 5xx"] if policy.errors else []
    words += [f"{policy.gateway} x gateway"] if policy.gateway else []
    return f"{' or '.join(words) or 'never'}: {policy.base:g} s, at most {policy.percent} %"
