"""Both cores over one compiled table: libcore.so, and the same code inside the kernel.

What a node keeps in pinned maps is here plain memory, made of the very entries that the agent would write; the look-ups
between the core's steps are the product's own (`nodeagent.core.decide`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from nodeagent.abi.numbers import REASON_LABELS, NameKind, Reason
from nodeagent.abi.records import Action, NameKey, Vhost, VhostKey
from nodeagent.bpf.abc import Kernel, Map
from nodeagent.bpf.errors import BpfError
from nodeagent.bpf.kernel import LinuxKernel
from nodeagent.core.decide import MAPS, Decider, Decision
from nodeagent.core.in_kernel import KernelHeadReader
from nodeagent.core.libcore import Core, HeadReader
from nodeagent.intent.model import Intent, RouteInfo, Table
from nodeagent.rules.refusal import status_of
from underpass.equivalence.athome import AtHome
from underpass.equivalence.outcome import Kind, Outcome
from underpass.equivalence.subjects import Subject

#: Reasons with which a request ends in an answer of the table itself, not for want of an executor.
_ANSWERS: Final = frozenset({Reason.NO_VHOST, Reason.NO_ROUTE, Reason.NO_CLUSTER})
_TABLES: Final = {
    "tables": Table.TABLES,
    "vhosts": Table.VHOSTS,
    "clusters": Table.CLUSTERS,
    "endpoints": Table.ENDPOINTS,
    "home_rules": Table.RULES,
}


class _Memory:
    """As much of a `Map` as a decision reads."""

    def __init__(self, entries: Mapping[bytes, bytes], inner: Mapping[bytes, int]) -> None:
        self._entries, self._inner = entries, inner

    def lookup(self, key: bytes, *, lock: bool = False) -> bytes | None:
        """See `Map.lookup`."""
        return self._entries.get(key)

    def inner_id(self, key: bytes) -> int | None:
        """See `Map.inner_id`."""
        return self._inner.get(key)

    def close(self) -> None:
        """See `Closable.close`."""


class _Programs:
    """As much of a `Kernel` as a decision asks: route programs by the id of their map."""

    def __init__(self, intent: Intent) -> None:
        self._intent = intent

    def map_by_id(self, number: int) -> Map:
        """See `Kernel.map_by_id`."""
        return cast("Map", _Memory({bytes(4): self._intent.programs[number].value()}, {}))


@dataclass(frozen=True, slots=True)
class _Shape:
    """What an action says, by name."""

    kind: int
    may: frozenset[str]


class Executor:
    """A compiled table and a reader of heads. random: 32 random bits for the choice between destinations."""

    def __init__(self, core: Core, subject: Subject, random: Callable[[], int]) -> None:
        intent = subject.intent
        entries: dict[str, _Memory] = {name: _Memory(intent.entries[table], {}) for name, table in _TABLES.items()}
        numbers = {number.to_bytes(4, "little"): number for number in intent.programs}
        entries |= {"programs": _Memory({}, numbers), "endpoint_stats": _Memory({}, {})}
        assert set(MAPS) == set(entries), "the maps that a decision reads"
        self._decider = Decider(core, cast("Kernel", _Programs(intent)), cast("Mapping[str, Map]", entries), random)
        self._intent, self._number = intent, subject.number
        self._clusters: dict[int, str] = {}
        for key, text in intent.entries[Table.NAMES].items():
            name = NameKey.unpack(key)
            if name.kind == NameKind.CLUSTER:
                self._clusters[name.id] = text.rstrip(b"\0").decode().partition(" # ")[0]
        self._home = AtHome(core, lambda number: self._clusters.get(number, ""))
        self._shapes: dict[tuple[int, int, bytes], _Shape] = {}

    def decide(self, reader: HeadReader, data: bytes) -> Outcome:
        """What becomes of the request at the beginning of `data`."""
        head = reader.parse(data)
        if head.reason:
            return Outcome(Kind.PUNT, reason=REASON_LABELS[head.reason])
        decision = self._decider.decide(reader, self._number)
        info = self._intent.routes.get(decision.route)
        route, domain = info.key if info is not None else "", decision.domain.decode("latin-1")
        if decision.punt:  # home carries it out
            may, reason = self._shape(decision).may, REASON_LABELS[decision.punt]
            home = self._home.outcome(reader, data, head, decision)
            return Outcome(Kind.PUNT, reason=reason, route=route, domain=domain, may=may, home=home)
        if decision.cluster or decision.reason == Reason.NO_CLUSTER:
            # Which endpoint of the cluster is of no interest: for the comparison each has one that answers.
            may = self._shape(decision).may
            if decision.cluster:
                name = self._clusters[decision.cluster]
                return Outcome(Kind.FORWARD, name, head=data[: head.size], may=may, route=route, domain=domain)
            reason, status = REASON_LABELS[Reason.NO_CLUSTER], status_of(Reason.NO_CLUSTER)
            return Outcome(Kind.REPLY, status=status, reason=reason, may=may, route=route, domain=domain)
        label = REASON_LABELS.get(decision.reason, str(decision.reason))
        if decision.reason in _ANSWERS:
            return Outcome(Kind.REPLY, status=status_of(decision.reason), reason=label, route=route, domain=domain)
        return Outcome(Kind.PUNT, reason=label, route=route, domain=domain)

    def _shape(self, decision: Decision) -> _Shape:
        key = (decision.program, decision.route, decision.domain)
        found = self._shapes.get(key)
        if found is None:
            action = self._action(decision)
            names = {self._clusters.get(weight.cluster, "") for weight in action.to[: max(action.n, 1)]}
            found = self._shapes[key] = _Shape(action.kind, frozenset(names))
        return found

    def _action(self, decision: Decision) -> Action:
        if decision.program:
            actions = self._intent.programs[decision.program].actions
            return next(action for action in actions if action.route == decision.route)
        value = self._intent.entries[Table.VHOSTS][VhostKey(self._number, decision.domain).pack()]
        return Vhost.unpack(value).direct

    def info(self, key: str) -> RouteInfo | None:
        """A route by its key."""
        return next((info for info in self._intent.routes.values() if info.key == key), None)


def kernel_reader(core: Core) -> tuple[KernelHeadReader | None, str]:
    """The reader inside the kernel, or None and why there is none: no root, no BPF, no objects."""
    try:
        return KernelHeadReader(core, LinuxKernel()), ""
    except (BpfError, OSError) as error:
        return None, str(error)


def same(first: Any, second: Any) -> bool:
    """Whether two outcomes of cores are one: same route, same set of clusters, same reason."""
    return bool(
        (first.kind, first.status, first.reason, first.route, first.domain, first.may, first.head)
        == (second.kind, second.status, second.reason, second.route, second.domain, second.may, second.head)
        or ("" in first.may and first.may == second.may and first.route == second.route)
    )
