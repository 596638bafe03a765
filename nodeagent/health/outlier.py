"""Outlier detection as a state machine: how endpoints answered goes in, with the time; who is out comes out (sans-IO).

Envoy's rules (docs: "Outlier detection"), each host of each cluster by itself. What is counted is the node's: requests
of all its workloads together, by whatever cluster they went to an endpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from nodeagent.cache.resources import Outlier


class Watch(NamedTuple):
    """A cluster whose endpoints are judged, and how; where views disagree about that, each has its own."""

    cluster: str
    policy: Outlier


@dataclass(frozen=True, slots=True)
class Run:
    """The longest rows of failures since an endpoint was begun anew: 5xx or no answer; 502, 503, 504 or no answer."""

    errors: int = 0
    gateway: int = 0


class What(StrEnum):
    """What became of an endpoint."""

    EJECTED = "ejected"
    RETURNED = "returned"
    #: it failed often enough, but so many are out already that it stays
    KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Event:
    """One happening. why: `5xx` or `gateway`, empty for a return; seconds: how long it is out at least."""

    what: What
    watch: Watch
    endpoint: str
    why: str = ""
    seconds: float = 0.0


@dataclass(slots=True)
class Host:
    """An endpoint in one cluster.

    since: when it was taken out, None while it is in; times: by which the first ejection's time is multiplied; total:
    ejections so far.
    """

    since: float | None = None
    times: int = 0
    total: int = 0


@dataclass(slots=True)
class _Cluster:
    swept: float
    hosts: dict[str, Host] = field(default_factory=dict)

    @property
    def out(self) -> int:
        return sum(host.since is not None for host in self.hosts.values())


class Detector:
    """All clusters with a policy. Times are seconds of any clock that only goes forward."""

    def __init__(self) -> None:
        self._clusters: dict[Watch, _Cluster] = {}
        self.kept = 0

    def watch(self, wanted: Mapping[Watch, Iterable[str]], now: float) -> frozenset[str]:
        """From now on these clusters with these endpoints, by `address:port`; the rest is forgotten.

        Returns the endpoints that are new somewhere: whatever was counted of them is nobody's, and begins anew.
        """
        known = self.endpoints
        fresh: set[str] = set()
        clusters: dict[Watch, _Cluster] = {}
        for watch, endpoints in wanted.items():
            cluster = clusters[watch] = self._clusters.get(watch) or _Cluster(now)
            hosts = {endpoint: cluster.hosts.get(endpoint) for endpoint in endpoints}
            fresh |= {endpoint for endpoint, host in hosts.items() if host is None}
            cluster.hosts = {endpoint: host or Host() for endpoint, host in hosts.items()}
        self._clusters = clusters
        return frozenset(fresh - known)

    @property
    def endpoints(self) -> frozenset[str]:
        """All that are judged."""
        return frozenset(endpoint for cluster in self._clusters.values() for endpoint in cluster.hosts)

    @property
    def ejected(self) -> dict[Watch, frozenset[str]]:
        """Who is out, of the clusters that have such."""
        found = {
            watch: frozenset(endpoint for endpoint, host in cluster.hosts.items() if host.since is not None)
            for watch, cluster in self._clusters.items()
        }
        return {watch: out for watch, out in found.items() if out}

    def hosts(self) -> list[tuple[Watch, str, Host]]:
        """Every endpoint that was ever out."""
        return [
            (watch, endpoint, host)
            for watch, cluster in sorted(self._clusters.items(), key=lambda item: item[0].cluster)
            for endpoint, host in sorted(cluster.hosts.items())
            if host.total
        ]

    def look(self, runs: Mapping[str, Run], now: float) -> tuple[list[Event], frozenset[str]]:
        """How the endpoints answered, by now. Returns what follows, and whose rows begin anew.

        Errors take effect at once; a return is considered once per interval, as in Envoy.
        """
        events: list[Event] = []
        anew: set[str] = set()
        for watch, cluster in self._clusters.items():
            policy = watch.policy
            if now - cluster.swept >= policy.interval:
                passed = (now - cluster.swept) // policy.interval if policy.interval > 0 else 1.0
                cluster.swept += passed * policy.interval
                for endpoint, host in cluster.hosts.items():
                    if self._sweep(policy, host, now):
                        # what failed while it was out, on requests under way, is not held against it
                        anew.add(endpoint)
                        events.append(Event(What.RETURNED, watch, endpoint))
            for endpoint, host in cluster.hosts.items():
                run = runs.get(endpoint)
                if run is None or host.since is not None or endpoint in anew:
                    continue
                why = _why(policy, run)
                if why:
                    events.append(self._eject(watch, cluster, endpoint, why, now))
        anew |= {event.endpoint for event in events if event.what is not What.RETURNED}
        return events, frozenset(anew)

    @staticmethod
    def _sweep(policy: Outlier, host: Host, now: float) -> bool:
        """The interval is over. Whether the endpoint returns; one that is in is forgiven an ejection."""
        if host.since is None:
            host.times = max(0, host.times - 1)
            return False
        if now - host.since < duration(policy, host):
            return False
        host.since = None
        return True

    def _eject(self, watch: Watch, cluster: _Cluster, endpoint: str, why: str, now: float) -> Event:
        policy, out = watch.policy, cluster.out
        if 100 * (out + 1) > policy.percent * len(cluster.hosts) and not (policy.one and not out):
            self.kept += 1
            return Event(What.KEPT, watch, endpoint, why)
        host = cluster.hosts[endpoint]
        host.since = now
        host.total += 1
        if policy.base * host.times < policy.longest + policy.base:
            host.times += 1
        return Event(What.EJECTED, watch, endpoint, why, duration(policy, host))


def duration(policy: Outlier, host: Host) -> float:
    """Seconds for which a host that is out stays out."""
    return min(policy.base * host.times, policy.longest)


def _why(policy: Outlier, run: Run) -> str:
    if policy.errors and run.errors >= policy.errors:
        return "5xx"
    return "gateway" if policy.gateway and run.gateway >= policy.gateway else ""
