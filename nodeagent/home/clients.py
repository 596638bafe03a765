"""Home connections: accepted by the thousand, mostly never heard of again (the kernel lends their clients wires).

A connection costs one object and one epoll entry until bytes arrive; then it gets a `Relay` and, per request, a leg: a
connection of our own to the chosen endpoint, out of the workload's namespace. Legs are kept for a short while.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nodeagent.abi.codec import offset_of
from nodeagent.abi.numbers import CF_UNSYNCED
from nodeagent.abi.records import address_text
from nodeagent.bpf.abc import Map
from nodeagent.bpf.errors import BpfError
from nodeagent.core.decide import Decider, Decision
from nodeagent.core.libcore import Core, HeadReader, ResponseReader
from nodeagent.home.budgets import Budgets
from nodeagent.home.choice import Chooser
from nodeagent.home.commands import (
    Arm,
    Close,
    Command,
    Copy,
    Count,
    Disarm,
    Forward,
    Open,
    Release,
    Send,
    Sync,
)
from nodeagent.home.control import Control, packed, tuple_key
from nodeagent.home.ends import Client, Leg, bound
from nodeagent.home.listening import listening
from nodeagent.home.loop import ERROR, IN, OUT, Loop
from nodeagent.home.mirrors import Mirrors
from nodeagent.home.pipes import HIGH, WORTH, Outlet
from nodeagent.home.pods import Pods, start_connect
from nodeagent.home.relay import Relay
from nodeagent.home.requests import elsewhere, exchanges
from nodeagent.home.upstreams import RESET, Pair
from nodeagent.rules.refusal import refusal

if TYPE_CHECKING:
    from nodeagent.home.stats import Stats

log = logging.getLogger("underpass.home")

_CHUNK = 1 << 16
_ACCEPTS = 64  # at one wake-up, so that others get their turn
_CONNECT_TIMEOUT = 3.0
_HEAD_TIMEOUT = 60.0
_LINGER = 2.0
_LEGS_KEPT, _LEG_IDLE = 8, 3.0  # below the shortest keep-alive of common servers (Node.js: 5 s)
_GRACE, _GRACE_ROOM = 1.0, 16384
_FLAGS, _WORKLOAD, _TABLE, _COOKIE = (offset_of("up_conn", name) for name in ("flags", "workload", "table", "cookie"))


class Clients:
    """All home connections, and the legs behind them."""

    def __init__(
        self,
        loop: Loop,
        maps: Mapping[str, Map],
        control: Control,
        pods: Pods,
        core: Core,
        decider: Decider,
        stats: Stats,
    ) -> None:
        self._loop, self._conns, self._control, self._pods = loop, maps["conns"], control, pods
        self._core, self._decider, self._stats = core, decider, stats
        self._reader = HeadReader(core)
        self._chooser = Chooser(decider)
        self._budgets = Budgets()
        self.mirrors = Mirrors(loop, pods, core, decider)
        self._listeners: list[socket.socket] = []
        self._standby: set[bytes] = set()  # ports that are ours only while no Envoy has them
        self._by_key: dict[bytes, Client] = {}
        self._waiting: dict[Client, None] = {}  # those with a deadline
        self._legs: dict[Pair, list[Leg]] = {}
        self._closed: deque[tuple[float, bytes, int]] = deque()
        self._ended: dict[bytes, int] = {}  # cookies of clients that ended while home knew nothing of them
        self.accepted = self.requests = self.syncs = 0

    # ---- listening ----

    def listen(self, address: str, port: int, mss: int, standby: bool = False) -> int:
        """Listens at a home address, as `listening` says; returns the port. OSError."""
        listener = listening(address, port, mss, standby)
        own, port = packed(address), listener.getsockname()[1]
        if standby:
            self._standby.add(port.to_bytes(2, "big"))
        self._listeners.append(listener)
        self._loop.add(listener.fileno(), IN, lambda _: self._accept(listener, own, port))
        return int(port)

    def stop_listening(self) -> None:
        """Takes no more connections."""
        for listener in self._listeners:
            self._loop.remove(listener.fileno())
            listener.close()
        self._listeners.clear()

    def _accept(self, listener: socket.socket, own: bytes, port: int) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                return
            except OSError as cause:
                if cause.errno in (errno.EMFILE, errno.ENFILE):
                    log.error("no descriptors left for home connections: %s", cause)
                return
            bound(sock)
            client = Client(sock, tuple_key(packed(peer[0]), peer[1], own, port))
            self.accepted += 1
            if client.key in self._ended and self._has_ended(client):
                continue
            self._by_key[client.key] = client
            # mypy infers no type for a lambda with a default, which binds the loop variable
            self._loop.add(sock.fileno(), IN, lambda mask, c=client: self._on_client(c, mask))  # type: ignore[misc]

    def _has_ended(self, client: Client) -> bool:
        """Its end was told before it was accepted: closed at once, for its client may want the same port again soon."""
        if self._ended.pop(client.key) != self._cookie(client.key):
            return False  # a successor's
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.sock.close()
        return True

    def _cookie(self, key: bytes) -> int:
        entry = self._conns.lookup(key)
        return 0 if entry is None else int.from_bytes(entry[_COOKIE : _COOKIE + 8], "little")

    # ---- clients ----

    def _on_client(self, client: Client, mask: int) -> None:
        if client.lingering:
            self._linger(client, mask)
            return
        try:
            if mask & OUT and client.out is not None:
                client.out.flush()
            if mask & IN:
                self._read_client(client)
            elif mask & ERROR:
                self._client_gone(client)
                return
        except OSError:
            self._client_gone(client)
            return
        self._settle(client)

    def _read_client(self, client: Client) -> None:
        relay, leg = client.relay, client.leg
        if relay is not None and leg is not None and relay.left >= WORTH and relay.splices and not leg.out.pending:
            try:
                moved = leg.out.splice_from(client.sock.fileno(), relay.left)
            except BlockingIOError:
                return
            except OSError:
                if client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise
                self._run(client, relay.endpoint_eof())
                return
            if moved:
                self._run(client, relay.client_passed(moved))
            else:
                self._run(client, relay.client_eof())
            return
        try:
            data = client.sock.recv(_CHUNK, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if relay is None:
            if not data:
                self._forget_client(client)
                return
            relay = self._begin(client)
            if relay is None:
                return
        self._run(client, relay.client_received(data) if data else relay.client_eof())

    def _begin(self, client: Client) -> Relay | None:
        """The first bytes: whose are they, and by which route table? None: refused."""
        client.sock.setblocking(False)
        client.out = Outlet(client.sock)
        entry = self._conns.lookup(client.key)
        if entry is None:
            # a stranger, or a client for which the table of connections had no room: nobody knows its rules
            client.out.send(refusal(503, "unknown-connection", close=True))
            self._stats.count(0, True)
            self._start_lingering(client)
            return None
        client.workload = int.from_bytes(entry[_WORKLOAD : _WORKLOAD + 4], "little")
        client.table = int.from_bytes(entry[_TABLE : _TABLE + 4], "little")
        framing = client.framing = ResponseReader(self._core)
        client.relay = Relay(
            self._reader.parse,
            lambda: self._decider.decide(self._reader, client.table),
            framing,
            self._core.reason_name,
            exchanges(
                self._reader, framing, self._chooser, address_text(client.key[:16]), self._budgets.of(client.workload)
            ),
            elsewhere(self._decider),
            client.key[34:36] in self._standby,
        )
        return client.relay

    def _client_gone(self, client: Client) -> None:
        if client.relay is not None:
            self._run(client, client.relay.client_gone())
        self._forget_client(client)

    def _forget_client(self, client: Client) -> None:
        """Closes the socket and drops all that refers to it; twice is harmless."""
        if client.sock.fileno() < 0:
            return
        self._loop.remove(client.sock.fileno())
        client.sock.close()
        self._disarm(client)
        if client.out is not None:
            client.out.close()
        if self._by_key.get(client.key) is client:
            del self._by_key[client.key]
        self._waiting.pop(client, None)
        if client.leg is not None:
            self._drop_leg(client.leg)
            client.leg = None

    def _start_lingering(self, client: Client) -> None:
        """All is said: close, but not with bytes unread, for the reset would overtake the answer."""
        client.lingering = True
        client.deadline = 0.0  # not that of a head: the end would wait for it
        self._linger(client, 0)

    def _linger(self, client: Client, mask: int) -> None:
        assert client.out is not None
        try:
            if mask & ERROR:
                self._forget_client(client)
                return
            if client.out.pending or not client.deadline:
                client.out.flush()
                self._wait(client, _LINGER if not client.out.pending else _HEAD_TIMEOUT)
                if not client.out.pending:
                    client.sock.shutdown(socket.SHUT_WR)
            while mask & IN:
                data = client.sock.recv(_CHUNK, socket.MSG_DONTWAIT)
                if not data:
                    self._forget_client(client)
                    return
                if len(data) < _CHUNK:
                    break
        except BlockingIOError:
            pass
        except OSError:
            self._forget_client(client)
            return
        self._watch_client(client, IN | (OUT if client.out.pending else 0))

    def _wait(self, client: Client, seconds: float) -> None:
        client.deadline = self._loop.now + seconds
        self._waiting[client] = None

    def _settle(self, client: Client) -> None:
        """After each event: watches whom to read, who has bytes to take, and who is slow with its head."""
        relay = client.relay
        if relay is None or client.out is None or client.lingering or client.sock.fileno() < 0:
            return
        leg = client.leg
        mask = OUT if client.out.pending else 0
        if relay.wants_client and (leg is None or leg.out.pending < HIGH) and client.out.pending < HIGH:
            mask |= IN
        self._watch_client(client, mask)
        if leg is not None and leg.connected:
            wanted = OUT if leg.out.pending else 0
            if relay.wants_endpoint and client.out.pending < HIGH:
                wanted |= IN
            self._watch_leg(leg, wanted)
        if relay.wants_client and not relay.between_requests and leg is None:
            if not client.deadline:
                self._wait(client, _HEAD_TIMEOUT)
        elif client.deadline:
            client.deadline = 0.0
            self._waiting.pop(client, None)

    def _watch_client(self, client: Client, mask: int) -> None:
        if mask != client.mask:
            client.mask = mask
            self._loop.change(client.sock.fileno(), mask)

    def _watch_leg(self, leg: Leg, mask: int) -> None:
        if mask != leg.mask:
            leg.mask = mask
            self._loop.change(leg.sock.fileno(), mask)

    # ---- carrying out ----

    def _run(self, client: Client, commands: list[Command]) -> None:
        """Carries commands out in order; those that new happenings yield come behind them."""
        queue = deque(commands)
        while queue:
            command = queue.popleft()
            if isinstance(command, Send):
                assert client.out is not None
                client.out.send(command.data)
            elif isinstance(command, Forward):
                queue.extend(self._forward(client, command.data))
            elif isinstance(command, Sync):
                self._sync(client, command)
            elif isinstance(command, Count):
                self.requests += 1
                self._stats.count(command.route, command.refused)
            elif isinstance(command, Open):
                assert isinstance(command.decision, Decision)
                queue.extend(self._open(client, command.decision, command.fresh))
            elif isinstance(command, Release):
                self._release(client, command)
            elif isinstance(command, Close):
                self._close(client, command.abort)
            elif isinstance(command, Arm):
                self._arm(client, command)
            elif isinstance(command, Disarm):
                self._disarm(client)
            elif isinstance(command, Copy):
                self.mirrors.send(client.workload, command.cluster, command.request, command.head_only)

    def _arm(self, client: Client, command: Arm) -> None:
        name = command.name
        client.clocks = client.clocks or {}
        if name in client.clocks:
            client.clocks[name].cancel()
        client.clocks[name] = self._loop.call_later(command.seconds, lambda: self._on_clock(client, name))

    @staticmethod
    def _disarm(client: Client) -> None:
        for timer in (client.clocks or {}).values():
            timer.cancel()
        client.clocks = None

    def _on_clock(self, client: Client, name: str) -> None:
        if client.relay is None or client.sock.fileno() < 0:
            return
        try:
            self._run(client, client.relay.timer(name))
        except OSError:
            self._client_gone(client)
        self._settle(client)

    def _forward(self, client: Client, data: bytes) -> list[Command]:
        if client.leg is None or client.relay is None:
            return []
        try:
            client.leg.out.send(data)
        except OSError:
            return client.relay.endpoint_eof()
        return []

    def _sync(self, client: Client, command: Sync) -> None:
        entry = self._conns.lookup(client.key)
        if entry is not None and entry[_FLAGS] & CF_UNSYNCED:
            self._control.sync(client.key, command.received, command.sent)
            self.syncs += 1

    def _close(self, client: Client, abort: bool) -> None:
        if abort:
            try:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            except OSError:
                pass  # it is closed anyway
            self._forget_client(client)
        elif client.sock.fileno() >= 0:
            self._start_lingering(client)

    # ---- legs ----

    def _open(self, client: Client, decision: Decision, fresh: bool) -> list[Command]:
        relay = client.relay
        assert relay is not None
        pair = (client.workload, decision.endpoint)
        kept = self._legs.get(pair)
        if kept and not fresh:
            leg = kept.pop()
            leg.client = client
            if leg.timer is not None:
                leg.timer.cancel()
            client.leg = leg
            return relay.endpoint_opened(reused=True)
        pod, address = self._pods.by_id.get(client.workload), decision.address
        if pod is None or address is None:
            return relay.endpoint_failed("unknown-workload")
        try:
            (sock,) = self._pods.sockets(pod, address, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            bound(sock)
        except (OSError, BpfError) as cause:
            log.warning("no connection of %s to endpoint %d: %s", pod.key, decision.endpoint, cause)
            return relay.endpoint_failed("connect-failed")  # our own doing: nothing is said of the endpoint
        try:
            start_connect(sock, address)
        except OSError:
            sock.close()
            self._control.health(decision.endpoint, 0)
            return relay.endpoint_failed("connect-failed")
        leg = client.leg = Leg(sock, pair, client)
        leg.timer = self._loop.call_later(_CONNECT_TIMEOUT, lambda: self._leg_failed(leg, "connect-timeout"))
        self._loop.add(sock.fileno(), OUT, lambda mask: self._on_leg(leg, mask))
        return []

    def _on_leg(self, leg: Leg, mask: int) -> None:
        client = leg.client
        if client is None or client.relay is None:
            self._drop_leg(leg)  # a kept one has ended, or speaks unasked
            return
        if not leg.connected:
            self._leg_connected(leg, client, client.relay)
        else:
            self._leg_event(leg, client, client.relay, mask)
        self._settle(client)

    def _leg_connected(self, leg: Leg, client: Client, relay: Relay) -> None:
        if leg.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._leg_failed(leg, "connect-failed")
            return
        if leg.timer is not None:
            leg.timer.cancel()
        leg.connected = True
        self._run(client, relay.endpoint_opened())

    def _leg_failed(self, leg: Leg, name: str) -> None:
        client = leg.client
        if client is None or client.leg is not leg or client.relay is None:
            return
        self._drop_leg(leg)
        client.leg = None
        self._control.health(leg.pair[1], 0)
        self._run(client, client.relay.endpoint_failed(name))
        self._settle(client)

    def _leg_event(self, leg: Leg, client: Client, relay: Relay, mask: int) -> None:
        assert client.out is not None
        try:
            if mask & OUT:
                leg.out.flush()
            if not mask & (IN | ERROR):
                return
            if relay.body_ahead >= WORTH and not client.out.pending:
                moved = self._splice_response(leg, client, relay)
                if moved:
                    self._run(client, relay.endpoint_passed(moved))
                    return
                data = b""
            else:
                data = leg.sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            self._run(client, relay.endpoint_received(data) if data else relay.endpoint_eof())
        except OSError:
            self._client_gone(client)

    def _splice_response(self, leg: Leg, client: Client, relay: Relay) -> int:
        assert client.out is not None
        try:
            return client.out.splice_from(leg.sock.fileno(), relay.body_ahead)
        except BlockingIOError:
            raise
        except OSError:
            if client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._client_gone(client)
                raise BlockingIOError from None  # nothing more to do for this event
            return 0

    def _release(self, client: Client, command: Release) -> None:
        leg, client.leg = client.leg, None
        if leg is None:
            return
        self._judge(client, leg, command.blame)
        kept = self._legs.setdefault(leg.pair, [])
        if not command.reusable or leg.out.pending or len(kept) >= _LEGS_KEPT:
            self._drop_leg(leg)
            return
        leg.client, leg.served = None, True
        leg.timer = self._loop.call_later(_LEG_IDLE, lambda: self._drop_leg(leg))
        kept.append(leg)
        self._watch_leg(leg, IN)

    def _judge(self, client: Client, leg: Leg, blame: bool) -> None:
        """Tells the kernel how the endpoint answered, for outlier detection."""
        status = client.framing.status if client.framing is not None and leg.connected else 0
        if status < 200:
            if leg.served or not blame:
                return  # it closed what it had kept for long enough, or might have answered
            status = 0
        self._control.health(leg.pair[1], status)

    def _drop_leg(self, leg: Leg) -> None:
        if leg.sock.fileno() < 0:
            return
        if leg.timer is not None:
            leg.timer.cancel()
        self._loop.remove(leg.sock.fileno())
        leg.sock.close()
        leg.out.close()
        kept = self._legs.get(leg.pair)
        if kept is not None:
            if leg in kept:
                kept.remove(leg)
            if not kept:
                del self._legs[leg.pair]

    # ---- what the kernel and the clock say ----

    def on_closed(self, key: bytes, cookie: int) -> None:
        """A client's socket has ended. Its entry stays for stray packets until the grace period is over.

        Home's end may not have heard of it: a client that gives up while away speaks to its endpoint only.
        """
        self._closed.append((self._loop.now + _GRACE, key, cookie))
        if key in self._by_key:
            self.end_orphan(key, cookie)
        else:
            self._ended[key] = cookie

    def end_orphan(self, key: bytes, cookie: int) -> None:
        """Closes home's end of a client that has gone, if there is one and it is not a successor's."""
        client = self._by_key.get(key)
        if client is None or client.lingering:
            return
        if self._cookie(key) in (0, cookie):
            # nobody would acknowledge a FIN
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._client_gone(client)

    def forget_closed(self) -> None:
        """Removes entries whose grace period is over; sooner when there are so many that the table might fill."""
        closed, now, budget = self._closed, self._loop.now, 4000
        while closed and budget and (closed[0][0] <= now or len(closed) > _GRACE_ROOM):
            _, key, cookie = closed.popleft()
            if self._ended.get(key) == cookie:
                del self._ended[key]
            if key in self._by_key:
                self.end_orphan(key, cookie)
            self._control.forget(key, cookie)
            budget -= 1

    def expire(self) -> None:
        """Ends what waited too long: heads half sent, answers never fetched."""
        for client in [client for client in self._waiting if client.deadline <= self._loop.now]:
            self._waiting.pop(client, None)
            client.deadline = 0.0
            if client.lingering or client.relay is None:
                self._forget_client(client)
                continue
            try:
                self._run(client, client.relay.head_timeout())
            except OSError:
                self._client_gone(client)
            self._settle(client)

    @property
    def busy(self) -> int:
        """Connections with a request under way here."""
        return sum(1 for c in self._by_key.values() if c.relay is not None and not c.relay.between_requests)

    def counts(self) -> dict[str, int]:
        """For the status file."""
        return {
            "clients": len(self._by_key),
            "accepted": self.accepted,
            "requests": self.requests,
            "syncs": self.syncs,
            "legs": sum(len(kept) for kept in self._legs.values()),
            "closing": len(self._closed),
            "mirrored": self.mirrors.sent,
            "mirrors_dropped": self.mirrors.dropped,
        }

    def close(self) -> None:
        """Closes everything."""
        self.stop_listening()
        self.mirrors.close()
        for client in list(self._by_key.values()):
            self._forget_client(client)
        for legs in list(self._legs.values()):
            for leg in list(legs):
                self._drop_leg(leg)
