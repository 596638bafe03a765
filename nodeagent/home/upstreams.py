"""The stock of upstreams: opened in the workloads' namespaces, counted by `stock`, lent by the kernel, closed here.

An upstream's life: tagged (so that sockops records it), connected, recorded and stocked by the kernel, lent and given
back any number of times without home noticing, until its endpoint or workload goes, its endpoint closes it, a client
leaves it in the middle of a response, or it is one too many. Then: KILL (never lent again), a reset, FORGET.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Mapping
from itertools import islice

from nodeagent.abi.codec import offset_of
from nodeagent.abi.numbers import CONNS, ControlResult, Kind
from nodeagent.abi.records import Endpoint, Socket, StockKey
from nodeagent.bpf.abc import Map
from nodeagent.bpf.errors import BpfError
from nodeagent.home.control import Control, packed, tuple_key
from nodeagent.home.loop import ERROR, HANGUP, IN, OUT, Loop
from nodeagent.home.pods import Pods, start_connect
from nodeagent.home.stock import Limits, Orders, Stock

log = logging.getLogger("underpass.home")

RESET = struct.pack("ii", 1, 0)  # struct linger: close() sends RST
_SO_COOKIE = 57
_AT_ONCE = 32
_REFUSALS, _RECLAIM_EVERY = 64, 0.02
_NODE = CONNS // 2
"""Most upstreams of the node; the other half of the kernel's table is for clients."""
_FREE, _MISSES, _PORTS = (offset_of("up_stock", name) for name in ("n", "misses", "port"))
_REQUESTS = offset_of("up_endpoint_stat", "requests")
Pair = tuple[int, int]


class Upstream:
    """One connection. key: its tuple once established."""

    __slots__ = ("cookie", "dying", "key", "pair", "sock")

    def __init__(self, sock: socket.socket, pair: Pair) -> None:
        self.sock, self.pair = sock, pair
        self.key = b""
        self.cookie = 0
        self.dying = False


class Upstreams:
    """All upstreams of the node. generation: this process's `home_generation`."""

    def __init__(
        self, loop: Loop, maps: Mapping[str, Map], control: Control, pods: Pods, generation: int, limits: Limits
    ) -> None:
        self._loop, self._maps, self._control, self._pods = loop, maps, control, pods
        self._generation, self._limits = generation, limits
        self._stocks: dict[Pair, Stock] = {}
        self._addresses: dict[int, Endpoint] = {}  # of the endpoints that have a stock
        self._requests: dict[int, int] = {}
        self._members: dict[Pair, dict[bytes, Upstream]] = {}
        self._dirty: set[Pair] = set()
        self._queue: deque[Pair] = deque()
        self._tags: dict[Pair, bytes] = {}
        self._early: dict[bytes, int] = {}
        self._reclaim_at: dict[Pair, float] = {}
        self.by_key: dict[bytes, Upstream] = {}
        self.draining = self._pumping = False
        self.opened = self.failed = self.killed = self.reclaimed = 0

    # ---- demand ----

    def want(self, workload: int, endpoint: int) -> None:
        """The kernel found this stock empty."""
        if self._stock((workload, endpoint)) is not None:
            self._dirty.add((workload, endpoint))

    def refill(self) -> None:
        """Looks after the stocks that something happened to; after each batch of events.

        Not only where the kernel asked: it asks when a stock is empty, when a request has already gone the slow way.
        """
        dirty, self._dirty = self._dirty, set()
        for pair in dirty:
            stock = self._stocks.get(pair)
            if stock is not None:
                free, misses = self._kernel_stock(pair)
                self._carry_out(pair, stock, stock.observe(free, misses, True, self._loop.now))

    def warm(self, workload: int, endpoints: list[int]) -> None:
        """These endpoints may be asked for next; unless there are so many upstreams that only demand counts."""
        for endpoint in endpoints if len(self.by_key) < _NODE // 2 else ():
            stock = self._stock((workload, endpoint))
            if stock is not None and not stock.target:
                stock.want(self._loop.now)
                self._dirty.add((workload, endpoint))

    def tick(self) -> None:
        """Once a second: refills, shrinks, closes what is too much."""
        if self._early and not self._opening():
            early, self._early = self._early, {}
            for key, cookie in early.items():
                self._control.forget(key, cookie)
        used = self._used_endpoints()
        for pair, stock in list(self._stocks.items()):
            free, misses = self._kernel_stock(pair)
            orders = stock.observe(free, misses, pair[1] in used, self._loop.now)
            self._carry_out(pair, stock, orders or stock.tick(free, self._loop.now))
            if not stock.total and not stock.target:
                self._drop_stock(pair)

    def _opening(self) -> bool:
        return any(stock.opening for stock in self._stocks.values())

    def _used_endpoints(self) -> set[int]:
        used: set[int] = set()
        for endpoint in {endpoint for _, endpoint in self._stocks}:
            value = self._maps["endpoint_stats"].lookup(endpoint.to_bytes(4, "little"))
            count = int.from_bytes(value[_REQUESTS : _REQUESTS + 4], "little") if value else 0
            if self._requests.get(endpoint, 0) != count:
                used.add(endpoint)
                self._requests[endpoint] = count
        return used

    def _stock(self, pair: Pair) -> Stock | None:
        stock = self._stocks.get(pair)
        if stock is None and not self.draining and pair[0] in self._pods.by_id:
            address = self._address(pair[1])
            if address is not None:
                self._addresses[pair[1]] = address
                stock = self._stocks[pair] = Stock(self._limits)
                self._members.setdefault(pair, {})
        return stock

    def _address(self, endpoint: int) -> Endpoint | None:
        value = self._maps["endpoints"].lookup(endpoint.to_bytes(4, "little"))
        address = Endpoint.unpack(value) if value else None
        return address if address is not None and address.live else None

    def _kernel_stock(self, pair: Pair) -> tuple[int, int]:
        """(free, misses) as the kernel counts them."""
        value = self._maps["stocks"].lookup(StockKey(*pair).pack())
        if value is None:
            return 0, 0
        return (
            int.from_bytes(value[_FREE : _FREE + 2], "little"),
            int.from_bytes(value[_MISSES : _MISSES + 2], "little"),
        )

    def _carry_out(self, pair: Pair, stock: Stock, orders: Orders) -> None:
        if orders.reclaim:
            self._reclaim(pair, orders.reclaim)
        wanted = min(orders.open, _NODE - len(self.by_key) - len(self._queue))
        if wanted > 0 and not self.draining:
            stock.opened(wanted)
            self._queue.extend([pair] * wanted)
            self._pump()
        if orders.close:
            self._close_coldest(pair, orders.close)

    def _reclaim(self, pair: Pair, count: int) -> None:
        """Takes wires back from idle clients, those asked longest ago first; what is free or in use refuses.

        There may be a thousand to ask, and all of them may refuse: after some refusals the rest is for later.
        """
        members = self._members.get(pair)
        if not members or self._loop.now < self._reclaim_at.get(pair, 0.0):
            return
        refusals = 0
        for key in list(islice(members, count + _REFUSALS)):
            members[key] = members.pop(key)  # to the end of the line
            if self._control.reclaim(key):
                self.reclaimed += 1
                count -= 1
                if not count:
                    return
            else:
                refusals += 1
                if refusals == _REFUSALS:
                    break
        self._reclaim_at[pair] = self._loop.now + _RECLAIM_EVERY

    def _close_coldest(self, pair: Pair, count: int) -> None:
        """The kernel lends the last of its list first, so the first ones are the coldest."""
        value = self._maps["stocks"].lookup(StockKey(*pair).pack())
        if value is None:
            return
        free = int.from_bytes(value[_FREE : _FREE + 2], "little")
        ports = {value[_PORTS + 2 * i : _PORTS + 2 * i + 2] for i in range(min(free, count))}
        for key, upstream in list(self._members.get(pair, {}).items()):
            if key[32:34] in ports:
                self.kill(upstream)

    # ---- opening ----

    def _pump(self) -> None:
        """Opens a few of those that are to be opened, and the rest when others had their turn.

        A connect() within the node does the whole handshake before it returns: a burst would keep clients waiting.
        """
        if self._pumping:
            return
        budget = _AT_ONCE
        while budget and self._queue:
            pair, count = self._queue.popleft(), 1
            while count < budget and self._queue and self._queue[0] == pair:
                self._queue.popleft()
                count += 1
            self._open(pair, count)
            budget -= count
        if self._queue:
            self._pumping = True
            self._loop.call_soon(self._pump_on)

    def _pump_on(self) -> None:
        self._pumping = False
        self._pump()

    def _tag(self, pair: Pair, family: int) -> bytes:
        tag = self._tags.get(pair)
        if tag is None:
            tag = self._tags[pair] = Socket(
                kind=Kind.UPSTREAM, workload=pair[0], endpoint=pair[1], family=family, home=self._generation
            ).pack()
        return tag

    def _open(self, pair: Pair, count: int) -> None:
        pod, address = self._pods.by_id.get(pair[0]), self._addresses.get(pair[1])
        if pod is None or address is None or self.draining:
            self._not_opened(pair, "it has gone", count)
            return
        try:
            made = self._pods.sockets(pod, address, count)
        except (OSError, BpfError) as cause:
            self._not_opened(pair, str(cause), count)
            return
        tag = self._tag(pair, address.family)
        for sock in made:
            fd = sock.fileno()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            try:
                self._maps["sockets"].update(fd.to_bytes(4, "little"), tag)
                start_connect(sock, address)
            except (OSError, BpfError) as cause:
                sock.close()
                self._not_opened(pair, str(cause))
                continue
            upstream = Upstream(sock, pair)
            # mypy infers no type for a lambda with a default, which binds the loop variable
            self._loop.add(fd, OUT, lambda mask, u=upstream: self._on_event(u, mask))  # type: ignore[misc]

    def _not_opened(self, pair: Pair, why: str, count: int = 1) -> None:
        self.failed += count
        stock = self._stocks.get(pair)
        if stock is not None:
            if not stock.failures:
                log.info("no upstream of workload %d to endpoint %d: %s", pair[0], pair[1], why)
            for _ in range(count):
                stock.failed(self._loop.now)

    def _on_event(self, upstream: Upstream, mask: int) -> None:
        if upstream.key:
            # anything at all is the end: a frozen wire is silent, and a lent one is not ours
            stock = self._stocks.get(upstream.pair)
            if stock is not None:
                stock.lapsed(self._loop.now)
            self.kill(upstream)
        else:
            self._connected(upstream, mask)

    def _connected(self, upstream: Upstream, mask: int) -> None:
        sock, pair = upstream.sock, upstream.pair
        stock, members = self._stocks.get(pair), self._members.get(pair)
        local, port = sock.getsockname()[:2]
        address = self._addresses.get(pair[1])
        cookie = struct.unpack("Q", sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))[0]
        key = tuple_key(packed(local), port, address.addr, address.port) if address is not None else b""
        if mask & ERROR or stock is None or members is None or not key or self._early.pop(key, None) == cookie:
            # refused; or established, perhaps even lent, and at its end or unwanted before we got here
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._loop.remove(sock.fileno())
            if key:
                self._control.kill(key)
            sock.close()
            if key:
                self._control.forget(key, cookie)
            if mask & ERROR:
                self._not_opened(pair, os.strerror(number) if number else "closed at once")
            elif stock is not None:
                stock.established()
                stock.closed()
                self._dirty.add(pair)
            return
        upstream.key, upstream.cookie = key, cookie
        stock.established()
        self.opened += 1
        self.by_key[upstream.key] = members[upstream.key] = upstream
        self._loop.change(sock.fileno(), IN | HANGUP | ERROR)

    # ---- the end ----

    def dead(self, key: bytes, cookie: int) -> None:
        """The kernel says that this upstream must be reset and forgotten; it may be a predecessor's."""
        upstream = self.by_key.get(key)
        if upstream is not None and upstream.cookie == cookie:
            self.kill(upstream)
        elif self._opening():
            self._early[key] = cookie  # it may be one of whose connection we have not been told yet
        else:
            self._control.forget(key, cookie)

    def kill(self, upstream: Upstream) -> None:
        """It is never lent again, and closed as soon as no client has it."""
        if self._control.kill(upstream.key) == ControlResult.BUSY:
            if not upstream.dying:  # its descriptor would be readable for ever; UP_EVENT_DEAD comes back here
                upstream.dying = True
                self._loop.remove(upstream.sock.fileno())
            return
        if not upstream.dying:
            self._loop.remove(upstream.sock.fileno())
        upstream.sock.close()
        self._control.forget(upstream.key, upstream.cookie)
        self.killed += 1
        self.by_key.pop(upstream.key, None)
        stock, members = self._stocks.get(upstream.pair), self._members.get(upstream.pair)
        if members is not None:
            members.pop(upstream.key, None)
            if not members and stock is None:
                del self._members[upstream.pair]
        if stock is not None:
            stock.closed()
            self._dirty.add(upstream.pair)

    def _end_pair(self, pair: Pair) -> None:
        for upstream in list(self._members.get(pair, {}).values()):
            self.kill(upstream)
        stock = self._stocks.get(pair)
        if stock is not None:
            stock.forget()
            stock.used_at = self._loop.now - stock.limits.idle

    def pod_gone(self, workload: int) -> None:
        """A workload went: so do its upstreams."""
        for pair in [pair for pair in self._stocks if pair[0] == workload]:
            self._end_pair(pair)
            self._drop_stock(pair)

    def _drop_stock(self, pair: Pair) -> None:
        """Nothing is kept for this pair any more; what clients still have goes on being known until it ends."""
        del self._stocks[pair]
        self._tags.pop(pair, None)
        self._reclaim_at.pop(pair, None)
        if not self._members.get(pair):
            self._members.pop(pair, None)

    def recheck(self) -> None:
        """The configuration changed: upstreams of endpoints that went, or have another address now, go."""
        for endpoint in {endpoint for _, endpoint in self._stocks}:
            address = self._address(endpoint)
            if address == self._addresses.get(endpoint):
                continue
            for pair in [pair for pair in self._stocks if pair[1] == endpoint]:
                self._end_pair(pair)
                self._tags.pop(pair, None)
                if address is None:
                    self._drop_stock(pair)
            if address is not None:
                self._addresses[endpoint] = address
            else:
                self._addresses.pop(endpoint, None)

    def drain(self) -> None:
        """Opens no more, and closes all that no client has."""
        self.draining = True
        for upstream in list(self.by_key.values()):
            self.kill(upstream)

    def counts(self) -> dict[str, int]:
        """For the status file."""
        return {
            "stocks": len(self._stocks),
            "upstreams": len(self.by_key),
            "opening": sum(stock.opening for stock in self._stocks.values()),
            "opened": self.opened,
            "failed": self.failed,
            "closed": self.killed,
            "reclaimed": self.reclaimed,
        }
