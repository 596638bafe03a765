"""The kernel's own counters of a lab's nodes, read from the pinned maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nodeagent.abi.numbers import COUNTER_LABELS, REASON_LABELS
from nodeagent.abi.numbers import Counter as KernelCounter
from nodeagent.abi.records import PuntKey
from nodeagent.bpf.errors import BpfError
from nodeagent.bpf.kernel import LinuxKernel
from underpass.lab.errors import LabError
from underpass.lab.host import BPFFS

if TYPE_CHECKING:
    from nodeagent.bpf.abc import Map


@dataclass(frozen=True, slots=True)
class Counters:
    """Requests of all workloads of some nodes: decided in the kernel, left to home, and why they were left."""

    kernel: int = 0
    home: int = 0
    punts: dict[str, int] = field(default_factory=dict)
    all: dict[str, int] = field(default_factory=dict)

    def since(self, before: Counters) -> Counters:
        """What came on top of `before`."""
        punts = {reason: count - before.punts.get(reason, 0) for reason, count in self.punts.items()}
        everything = {name: value - before.all.get(name, 0) for name, value in self.all.items()}
        return Counters(
            self.kernel - before.kernel,
            self.home - before.home,
            {reason: count for reason, count in punts.items() if count},
            {name: value for name, value in everything.items() if value},
        )


def read(nodes: Iterable[str]) -> Counters:
    """The counters of the nodes, summed. Raises LabError when a node has no maps."""
    kernel = LinuxKernel()
    totals: Counter[str] = Counter()
    punts: Counter[str] = Counter()
    for node in nodes:
        directory = BPFFS / "underpass" / node / "maps"
        try:
            counters, punt_stats = (kernel.pinned_map(directory / name) for name in ("counters", "punt_stats"))
            try:
                for number, label in COUNTER_LABELS.items():
                    totals[label] += _sum(counters, number.to_bytes(4, "little"))
                for key in list(punt_stats.keys()):
                    reason = PuntKey.unpack(key).reason
                    punts[REASON_LABELS.get(reason, str(reason))] += _sum(punt_stats, key)
            finally:
                counters.close()
                punt_stats.close()
        except BpfError as error:
            raise LabError(f"cannot read the counters of {node}", str(error), "is its agent running?", 3) from error
    return Counters(
        totals[COUNTER_LABELS[KernelCounter.KERNEL]],
        totals[COUNTER_LABELS[KernelCounter.HOME]],
        dict(punts),
        dict(totals),
    )


def _sum(source: Map, key: bytes) -> int:
    return sum(int.from_bytes(value[:8], "little") for value in source.lookup_percpu(key) or ())
