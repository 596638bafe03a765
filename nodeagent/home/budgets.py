"""How many requests and retries are under way, by workload and cluster: what circuit breakers go by (sans-IO)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from nodeagent.rules.model import Limit

_Where = tuple[int, int]


@dataclass(slots=True)
class Budgets:
    """The counts of all workloads, by (workload id, cluster id). As beside an Envoy, each workload has its own."""

    requests: Counter[_Where] = field(default_factory=Counter)
    retries: Counter[_Where] = field(default_factory=Counter)

    def of(self, workload: int) -> Budget:
        """What one workload's exchanges count in."""
        return Budget(self, workload)


@dataclass(frozen=True, slots=True)
class Budget:
    """One workload's counts. What was taken must be given back."""

    all: Budgets
    workload: int

    def take_request(self, limit: Limit) -> bool:
        """Whether one more request may go to the cluster now; it then does."""
        return _take(self.all.requests, (self.workload, limit.number), limit.requests)

    def take_retry(self, limit: Limit) -> bool:
        """Whether one more retry may be under way; it then is."""
        return _take(self.all.retries, (self.workload, limit.number), limit.retries)

    def give_request(self, limit: Limit) -> None:
        """A request is over."""
        _give(self.all.requests, (self.workload, limit.number))

    def give_retry(self, limit: Limit) -> None:
        """A retry's outcome is known."""
        _give(self.all.retries, (self.workload, limit.number))


def _take(counts: Counter[_Where], where: _Where, most: int) -> bool:
    if 0 <= most <= counts[where]:
        return False
    counts[where] += 1
    return True


def _give(counts: Counter[_Where], where: _Where) -> None:
    counts[where] -= 1
    if not counts[where]:
        del counts[where]
