"""Which endpoint of its cluster a request with a rule takes: the core's balancer, or its hash."""

from __future__ import annotations

from nodeagent.abi.numbers import Reason
from nodeagent.abi.records import address_text
from nodeagent.core.decide import Decider, Decision
from nodeagent.home.hashing import Maglev, Ring
from nodeagent.rules.model import Hashed

_RINGS_KEPT = 256
_Members = tuple[tuple[int, str, int], ...]


class Chooser:
    """Chooses over pinned maps. Rings are made when endpoints changed, and kept."""

    def __init__(self, decider: Decider) -> None:
        self._decider = decider
        self._rings: dict[Hashed, tuple[_Members, Ring | Maglev]] = {}

    def choose(self, cluster: int, tried: frozenset[int], avoid: int, hashed: Hashed | None, value: int) -> Decision:
        """An endpoint of a cluster, not one of those `tried` if `avoid` more choices can help. value: the hash."""
        if hashed is None:
            return self._decider.choose(cluster, tried, avoid)
        members = self._members(cluster)
        if not members:
            return Decision(Reason.NO_ENDPOINT, cluster=cluster)
        ring = self._ring(hashed, members)
        for attempt in range(avoid + 1):
            endpoint = ring.find(value, attempt)
            if endpoint not in tried:
                break
        address = self._decider.address(endpoint)
        reason = Reason.OK if address is not None else Reason.ENDPOINT_GONE
        return Decision(reason, cluster=cluster, endpoint=endpoint, address=address)

    def _members(self, cluster: int) -> _Members:
        found = []
        for endpoint, weight in self._decider.weights(cluster):
            address = self._decider.address(endpoint)
            if address is not None:
                host = address_text(address.addr)
                text = f"[{host}]:{address.port}" if address.family == 6 else f"{host}:{address.port}"
                found.append((endpoint, text, weight))
        return tuple(sorted(found, key=lambda item: item[1]))

    def _ring(self, hashed: Hashed, members: _Members) -> Ring | Maglev:
        known = self._rings.get(hashed)
        if known is not None and known[0] == members:
            return known[1]
        if len(self._rings) >= _RINGS_KEPT:
            self._rings.clear()
        ring: Ring | Maglev
        ring = Maglev(members, hashed.table) if hashed.table else Ring(members, hashed.smallest, hashed.largest)
        self._rings[hashed] = (members, ring)
        return ring
