"""Where a request goes: the core's decision over the node's maps, step by step as the packet program takes it.

The steps (virtual host, route, weighted choice, load balancing) are each one call of the core; what is here is only
the look-ups between them, which in the kernel are map helpers. Home's slow path and `underpass explain` both use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nodeagent.abi.codec import offset_of
from nodeagent.abi.layout import STRUCTS
from nodeagent.abi.numbers import ActionKind, Reason
from nodeagent.abi.records import Endpoint, HomeRule
from nodeagent.bpf.abc import Kernel, Map
from nodeagent.bpf.errors import BpfError
from nodeagent.core.libcore import Core, HeadReader, RouteProgram
from nodeagent.errors import RuleError
from nodeagent.rules.model import Retry, Rule
from nodeagent.rules.text import decode

MAPS = ("tables", "vhosts", "programs", "clusters", "endpoints", "endpoint_stats", "home_rules")
"""The maps that a decision reads."""

_LIVE, _WILD, _ANY, _IGNORE_PORT = 1, 2, 4, 8  # UP_TABLE_*
_DIRECT, _ACTION_SIZE = offset_of("up_vhost", "direct"), STRUCTS["up_action"][0]
_ROUTE, _KIND, _REASON, _RULE = (offset_of("up_action", name) for name in ("route", "kind", "reason", "rule"))
_RULES_KEPT = 1024
_TURN, _N, _SLOT = (offset_of("up_cluster", name) for name in ("turn", "n", "slot"))
_ACTIVE = offset_of("up_endpoint_stat", "active")


@dataclass(frozen=True, slots=True)
class Decision:
    """Outcome for one request.

    reason: 0, or why it cannot be forwarded; domain: the virtual host's key; program, route_index: 0 and -1 for a
    virtual host with one plain route; route, cluster, endpoint: ids, 0 as far as it did not get; address: the
    endpoint's, if `endpoint` is set; punt: the `up_reason` for which the kernel leaves the request to home though home
    can serve it; rule: what home has to do then, before and after it chooses an endpoint of `cluster`; retry: of a
    plain route, when to try another endpoint.
    """

    reason: int
    domain: bytes = b""
    program: int = 0
    route_index: int = -1
    route: int = 0
    cluster: int = 0
    endpoint: int = 0
    address: Endpoint | None = None
    punt: int = 0
    rule: Rule | None = None
    retry: Retry | None = None


class Decider:
    """Decides over pinned maps. random: 32 random bits at each call.

    Round robin counts for itself here: the kernel's own counter is written under a lock that user space cannot hold
    across a choice.
    """

    def __init__(self, core: Core, kernel: Kernel, maps: Mapping[str, Map], random: Callable[[], int]) -> None:
        self.core, self._kernel, self._maps, self._random = core, kernel, maps, random
        self._programs: dict[int, tuple[int, RouteProgram]] = {}  # by program id: id of the inner map, content
        self._turns: dict[int, int] = {}
        self._rules: dict[int, Rule] = {}  # by their names, which tell their content

    def decide(self, head: HeadReader, table: int) -> Decision:
        """The decision for the head that was parsed last, of a client whose service has that route table."""
        # A rule goes when no route names it any more: who has read such a route a moment ago reads it again.
        first = self._decide(head, table)
        return self._decide(head, table) if first.reason == Reason.CAPACITY else first

    def _decide(self, head: HeadReader, table: int) -> Decision:
        flags = self._table_flags(table)
        if not flags & _LIVE:
            return Decision(Reason.NO_TABLE)
        if head.has_port and not flags & _IGNORE_PORT:
            return Decision(Reason.BAD_HOST)
        domain, vhost = self._virtual_host(head, table, flags)
        if vhost is None:
            return Decision(Reason.NO_VHOST)
        program, index, action = int.from_bytes(vhost[:4], "little"), -1, vhost[_DIRECT : _DIRECT + _ACTION_SIZE]
        if program:
            loaded = self._program(program)
            if loaded is None:
                return Decision(Reason.CAPACITY, domain, program)
            index = head.match(loaded)
            if index < 0:
                return Decision(-index, domain, program)
            action = loaded.action(index)
        route = int.from_bytes(action[_ROUTE : _ROUTE + 4], "little")
        kind = action[_KIND]
        named = int.from_bytes(action[_RULE : _RULE + 8], "little")
        if kind == ActionKind.PUNT and named:
            rule = self._rule(named)
            if rule is None:
                return Decision(Reason.CAPACITY, domain, program, index, route)
            cluster = self.core.action_cluster(action, self._random())
            return Decision(0, domain, program, index, route, cluster, punt=action[_REASON], rule=rule)
        if kind != ActionKind.CLUSTERS:
            reason = action[_REASON] if kind == ActionKind.PUNT else Reason.NO_ROUTE
            return Decision(reason or Reason.ROUTE_OTHER, domain, program, index, route)
        cluster = self.core.action_cluster(action, self._random())
        if not cluster:
            return Decision(Reason.NO_CLUSTER, domain, program, index, route)
        reason, endpoint, address = self.endpoint(cluster)
        rule = self._rule(named) if named else None
        retry = None if rule is None else rule.retry
        return Decision(reason, domain, program, index, route, cluster, endpoint, address, retry=retry)

    def weights(self, cluster: int) -> tuple[tuple[int, int], ...]:
        """(endpoint id, weight) of the cluster, in the order of their first slot."""
        found: dict[int, int] = {}
        for slot in self._slots(cluster):
            found[slot] = found.get(slot, 0) + 1
        return tuple(found.items())

    def address(self, endpoint: int) -> Endpoint | None:
        """The address of an endpoint that is live."""
        data = self._maps["endpoints"].lookup(endpoint.to_bytes(4, "little"))
        address = Endpoint.unpack(data) if data else None
        return address if address is not None and address.live else None

    def choose(self, cluster: int, tried: frozenset[int], avoid: int) -> Decision:
        """An endpoint of a cluster; the choice is repeated `avoid` times at most while it falls on a `tried` one."""
        while True:
            reason, endpoint, address = self.endpoint(cluster)
            if reason or endpoint not in tried or not avoid:
                return Decision(reason, cluster=cluster, endpoint=endpoint, address=address)
            avoid -= 1

    def _rule(self, name: int) -> Rule | None:
        """The rule of that name; None: it is not there, or of another build."""
        known = self._rules.get(name)
        if known is None:
            value = self._maps["home_rules"].lookup(name.to_bytes(8, "little"))
            if value is None:
                return None
            record = HomeRule.unpack(value)
            try:
                known = decode(record.text[: record.len])
            except RuleError:
                return None
            if len(self._rules) >= _RULES_KEPT:
                self._rules.clear()
            self._rules[name] = known
        return known

    def _table_flags(self, table: int) -> int:
        value = self._maps["tables"].lookup(table.to_bytes(4, "little"))
        return int.from_bytes(value, "little") if value else 0

    def _virtual_host(self, head: HeadReader, table: int, flags: int) -> tuple[bytes, bytes | None]:
        """Domain and value of the virtual host; (b"", None): none."""
        number = table.to_bytes(4, "little")
        for position, domain in enumerate(head.domains()):
            name = domain.rstrip(b"\0")
            if position and not flags & (_ANY if name == b"*" else _WILD):
                continue
            vhost = self._maps["vhosts"].lookup(number + domain)
            if vhost is not None:
                return name, vhost
        return b"", None

    def _program(self, program: int) -> RouteProgram | None:
        """The program's current generation; read again only when another map was swapped in."""
        inner = self._maps["programs"].inner_id(program.to_bytes(4, "little"))
        if inner is None:
            self._programs.pop(program, None)
            return None
        known = self._programs.get(program)
        if known is not None and known[0] == inner:
            return known[1]
        try:
            generation = self._kernel.map_by_id(inner)
        except BpfError:  # swapped out between the two calls; the next request reads anew
            return known[1] if known else None
        data = generation.lookup(bytes(4))
        generation.close()
        assert data is not None, "an array's first value exists"
        loaded = RouteProgram(data)
        self._programs[program] = (inner, loaded)
        return loaded

    def endpoint(self, cluster: int) -> tuple[int, int, Endpoint | None]:
        """(`up_reason`, endpoint id, its address) by the cluster's load balancer."""
        value = self._maps["clusters"].lookup(cluster.to_bytes(4, "little"), lock=True)
        if value is None:
            return Reason.NO_CLUSTER, 0, None
        copy = bytearray(value)
        copy[_TURN : _TURN + 4] = self._turns.get(cluster, 0).to_bytes(4, "little")
        reason, first, second = self.core.balance(copy, self._random())
        self._turns[cluster] = int.from_bytes(copy[_TURN : _TURN + 4], "little")
        if reason:
            return reason, 0, None
        if second and second != first and self._active(second) < self._active(first):
            first = second
        address = self.address(first)
        if address is None:
            return Reason.ENDPOINT_GONE, first, None
        return Reason.OK, first, address

    def _active(self, endpoint: int) -> int:
        value = self._maps["endpoint_stats"].lookup(endpoint.to_bytes(4, "little"))
        return int.from_bytes(value[_ACTIVE : _ACTIVE + 4], "little") if value else 0

    def members(self, cluster: int) -> list[int]:
        """Ids of the cluster's endpoints, each once, in the order of their first slot."""
        return list(dict.fromkeys(self._slots(cluster)))

    def _slots(self, cluster: int) -> list[int]:
        value = self._maps["clusters"].lookup(cluster.to_bytes(4, "little"), lock=True)
        if value is None:
            return []
        n = min(int.from_bytes(value[_N : _N + 4], "little"), (len(value) - _SLOT) // 4)
        return [int.from_bytes(value[at : at + 4], "little") for at in range(_SLOT, _SLOT + 4 * n, 4)]
