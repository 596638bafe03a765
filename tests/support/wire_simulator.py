"""Clients, home and endpoints around the data path, and a network between them that goes wrong as a tape says.

The data path is `wire_datapath`, every end a `wire_tcp.Tcp`. The tape is a list of numbers: which packet comes next, is
lost or comes twice, which timer fires early, which wire is taken back. When it is over nothing more goes wrong, and
everything has to end well.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from nodeagent.abi.numbers import State
from tests.support import core_memory as m
from tests.support.wire_datapath import Datapath, Entry, Wire
from tests.support.wire_tcp import MASK, Fate, Segment, Shape, Tcp, Violation

# ---- applications ----


@dataclass(frozen=True, slots=True)
class Request:
    """host: number of its endpoint; cuts: where its bytes are cut into writes; behind: sent with the one before."""

    number: int
    host: int
    body: int = 0
    cuts: tuple[int, ...] = ()
    behind: bool = False

    @property
    def method(self) -> str:
        return "HEAD" if self.number % 7 == 6 else "POST" if self.body else "GET"

    def wire(self) -> bytes:
        length = f"Content-Length: {self.body}\r\n" if self.body else ""
        head = f"{self.method} /{self.number} HTTP/1.1\r\nHost: e{self.host}\r\n{length}\r\n"
        return head.encode() + pattern(self.number, self.body)


def pattern(number: int, size: int) -> bytes:
    """A body in which every misplaced byte shows."""
    return (b"%d:" % number * (size + 1))[:size]


def answer(number: int) -> bytes:
    """The response to request `number`, whoever gives it: every kind of framing, by turns."""
    body = pattern(number + 1000, number * 37 % 331)
    kind = number % 5
    if number % 7 == 6:
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    if kind == 1:
        pieces = [body[at : at + 90] for at in range(0, len(body), 90)]
        chunks = b"".join(b"%x;n\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nT: t\r\n\r\n"
    if kind == 2:
        return b"HTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    if kind == 3:
        return b"HTTP/1.1 204 No Content\r\nX: %d\r\n\r\n" % number
    return b"HTTP/1.1 500 Oops\r\nContent-Length: %d\r\nX: y\r\n\r\n" % len(body) + body


_HEAD = re.compile(
    rb"(GET|POST|HEAD) /(\d+) HTTP/1\.1\r\nHost: e(\d+)\r\n(?:Content-Length: (\d+)\r\n)?\r\n", re.DOTALL
)


@dataclass(slots=True)
class Server:
    """Serves what it reads from a connection; `served` is (request, its host).

    early: answers some requests when it has read no more than their head, as servers do that refuse a body.
    """

    tcp: Tcp
    served: list[tuple[int, int]] = field(default_factory=list)
    finished: Callable[[int, int], None] = lambda received, sent: None
    early: bool = False
    sent: int = 0
    at: int = 0  # of what was read
    body: tuple[int, int] = (0, 0)  # number and length of one that was answered early

    def work(self) -> bool:
        """One request, if a whole one is there."""
        tcp = self.tcp
        tcp.drain()
        data = bytes(tcp.read[self.at :])
        if self.body[1]:
            return self.read_body(data, 0, *self.body)
        found = _HEAD.match(data)
        if not found:
            if b"\r\n\r\n" in data or (len(data) >= 4 and data[:4] not in (b"GET ", b"POST", b"HEAD")):
                raise Violation(f"{tcp.name}: {data[:60]!r} where a request is due")
            return False
        number, host, body = int(found[2]), int(found[3]), int(found[4] or 0)
        if self.early and body and number % 3 == 0:
            self.at += found.end()
            self.body = number, body
        elif not self.read_body(data, found.end(), number, body):
            return False
        self.served.append((number, host))
        reply = answer(number)
        self.sent += len(reply)
        if self.at == len(tcp.read):
            self.finished(self.at, self.sent)
        tcp.write(reply)
        return True

    def read_body(self, data: bytes, start: int, number: int, size: int) -> bool:
        """A body that begins at `start` of what is not read yet; False while it is not whole."""
        if len(data) < start + size:
            return False
        if data[start : start + size] != pattern(number, size):
            raise Violation(f"{self.tcp.name}: the body of request {number} is wrong")
        self.at += start + size
        self.body = 0, 0
        return True


@dataclass(slots=True)
class Client:
    """Asks one request after the other, or several at once."""

    tcp: Tcp
    requests: list[Request]
    asked: int = 0
    answered: int = 0
    at: int = 0  # of what was read
    unsent: list[bytes] = field(default_factory=list)

    def work(self) -> bool:
        """The next write, or the next read."""
        if self.unsent:
            self.tcp.write(self.unsent.pop(0))
            return True
        if self.answered < self.asked:
            due = answer(self.requests[self.answered].number)
            self.tcp.drain()
            data = bytes(self.tcp.read[self.at :])
            if data[: len(due)] != due[: len(data)]:
                raise Violation(f"{self.tcp.name}: {data!r} instead of {due!r}")
            if len(data) >= len(due):
                self.at += len(due)
                self.answered += 1
                return True
            return False
        if len(self.tcp.read) > self.at:
            raise Violation(f"{self.tcp.name}: {bytes(self.tcp.read[self.at :])!r} that nobody asked for")
        if self.asked == len(self.requests):
            return False
        request = self.requests[self.asked]
        data, self.asked = request.wire(), self.asked + 1
        cuts = set(request.cuts)
        while self.asked < len(self.requests) and self.requests[self.asked].behind:
            if self.asked % 2:
                cuts.add(len(data))  # in a send of its own
            data += self.requests[self.asked].wire()
            self.asked += 1
        edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(data)), len(data)]
        self.unsent = [data[a:b] for a, b in itertools.pairwise(edges)]
        return self.work()

    @property
    def done(self) -> bool:
        return self.answered == len(self.requests)


class Tape:
    """Numbers that decide; when it is over, it says 0, which is always the harmless choice."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = iter(numbers)
        self.over = self.used = False

    def pick(self, n: int) -> int:
        """0 .. n - 1."""
        found = next(self._numbers, None)
        if found is None:
            self.over = True
            return 0
        self.used = True
        return found % n


# ---- the world ----

PLAIN = Shape()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be played. wires: upstreams of each endpoint, shapes by turns; seed: of all first numbers."""

    requests: tuple[tuple[Request, ...], ...]
    endpoints: int = 2
    wires: int = 1
    client: Shape = PLAIN
    home: Shape = PLAIN
    servers: tuple[Shape, ...] = (PLAIN,)
    owner: Shape = PLAIN
    seed: int = 0


class World:
    """Plays a plan by a tape."""

    def __init__(self, plan: Plan, tape: Iterable[int]) -> None:
        self.plan, self.tape = plan, Tape(tape)
        self.now = 1000
        self.flight: list[tuple[Wire, bool, Segment]] = []  # bool: leaves the pod
        self.backlog: list[tuple[Tcp, Segment]] = []  # through ingress, but the application has the socket's lock
        self.path = Datapath(self.route)
        self.chance = random.Random(plan.seed)
        self.clients: list[Client] = []
        self.homes: list[Server] = []
        self.servers: list[Server] = []
        self.owners: list[Tcp] = []
        for i, requests in enumerate(plan.requests):
            client, home = self.connect(f"client {i}", f"home {i}", plan.client, plan.home)
            client.send = partial(self.client_sends, i)
            home.send = partial(self.comes, ("H", i))
            client.mixed = True
            self.path.clients.append(Entry(self.entry(client, home, State.AT_HOME)))
            self.clients.append(Client(client, list(requests)))
            self.homes.append(Server(home, finished=partial(self.path.sync, i)))
        for k in range(plan.endpoints * plan.wires):
            endpoint = k % plan.endpoints
            shape = plan.servers[k % len(plan.servers)]
            owner, server = self.connect(f"owner {k}", f"endpoint {endpoint} wire {k}", plan.owner, shape)
            owner.send = partial(self.owner_sends, k)
            server.send = partial(self.comes, ("U", k))
            owner.mixed = True
            self.path.upstreams.append(Entry(self.entry(owner, server, State.FREE), endpoint))
            self.path.stock.setdefault(endpoint, []).append(k)
            self.owners.append(owner)
            self.servers.append(Server(server, early=bool(k % 2)))

    def route(self, host: bytes) -> int:
        """e0, e1 ... are endpoints; whatever else is home's."""
        number = int(host[1:])
        return number if number < self.plan.endpoints else -1

    def connect(self, near: str, far: str, near_shape: Shape, far_shape: Shape) -> tuple[Tcp, Tcp]:
        """Both ends of an established connection: sequence numbers like to begin where they wrap."""
        first = [self.chance.choice([self.chance.getrandbits(32), MASK - self.chance.randrange(700)]) for _ in "ab"]
        one = Tcp(near, near_shape, first[0], first[1], far_shape, self.clock, self.now + far_shape.tsoff)
        two = Tcp(far, far_shape, first[1], first[0], near_shape, self.clock, self.now + near_shape.tsoff)
        return one, two

    def entry(self, near: Tcp, far: Tcp, state: State) -> m.Conn:
        """What sockops records when a connection is established."""
        return m.Conn(
            state=state, S=near.nxt, oS=near.nxt, R=near.rcv, oR=near.rcv, T=near.stamp, tsoff=near.shape.tsoff & MASK,
            rws=near.shape.scale, sws=far.shape.scale, wnd=near.wnd, next=near.nxt, sent=near.nxt,
            mss=min(near.shape.mss, near.wnd // 2),  # as Linux bounds it: half of the largest window seen
        )  # fmt: skip

    def clock(self) -> int:
        return self.now

    # ---- packets ----

    def client_sends(self, i: int, p: Segment) -> Fate:
        fate, out = self.path.client_egress(i, p, self.clients[i].tcp.una)
        self.flight += [(wire, True, q) for wire, q in out]
        return fate

    def owner_sends(self, k: int, p: Segment) -> Fate:
        self.flight += [(wire, True, q) for wire, q in self.path.owner_egress(k, p)]
        return Fate.SENT

    def comes(self, wire: Wire, p: Segment) -> Fate:
        self.flight.append((wire, False, p))
        return Fate.SENT

    def deliver(self, wire: Wire, leaves: bool, p: Segment) -> None:
        """A packet arrives at whom it is for."""
        if leaves:
            (self.homes if wire[0] == "H" else self.servers)[wire[1]].tcp.receive(p)
            return
        found = self.path.ingress(wire, p)
        if found is None:
            return
        who, index, q = found
        if who == "turn":
            self.flight.append((wire, True, q))
            return
        self.backlog.append((self.owners[index] if who == "U" else self.clients[index].tcp, q))
        if self.tape.pick(6) != 1:
            self.unlock()

    def unlock(self) -> None:
        """Sockets get what has come meanwhile."""
        while self.backlog:
            end, p = self.backlog.pop(0)
            end.receive(p)

    # ---- time ----

    def ends(self) -> list[Tcp]:
        """Every TCP."""
        return [
            *(client.tcp for client in self.clients), *(server.tcp for server in (*self.homes, *self.servers)),
            *self.owners,
        ]  # fmt: skip

    def work(self) -> bool:
        """One step of some application; False when none has anything to do."""
        apps: list[Client | Server] = [*self.clients, *self.servers, *self.homes]
        first = self.tape.pick(len(apps))
        return any(app.work() for app in (*apps[first:], *apps[:first]))

    def step(self) -> bool:
        """Something happens; False when nothing is left to happen but timers."""
        self.now += 1
        what, some = self.tape.pick(16), self.tape.pick(8)
        if what >= 8 and self.flight and what < 11:
            wire, leaves, p = self.flight[some % len(self.flight)]
            if what != 10:
                del self.flight[some % len(self.flight)]
            if what != 9:
                self.deliver(wire, leaves, p)
            return True
        if what in (11, 12):
            every = self.ends()
            (every[some % len(every)].timer if what == 11 else every[some % len(every)].probe)()
            return True
        if what == 13:
            return self.path.reclaim(some % len(self.path.upstreams)) or True
        if what == 14:
            self.now += 200 * some
            return True
        if what == 15 and self.work():
            return True
        self.unlock()
        if self.flight:
            self.deliver(*self.flight.pop(0))
            return True
        return self.work()

    def quiet(self) -> bool:
        """Whether everybody has all, and knows it."""
        return not self.flight and not self.backlog and all(end.una == end.nxt and not end.out for end in self.ends())

    def play(self, limit: int = 20_000) -> None:
        """To the end. Violation when something wrong is seen, or no end is reached."""
        for _ in range(limit):
            if self.step():
                continue
            if self.tape.over and all(client.done for client in self.clients) and self.quiet():
                self.check()
                return
            self.now += 200
            for end in self.ends():
                end.timer()
        raise Violation(f"no end: {[(c.answered, len(c.requests)) for c in self.clients]}, {self.path.counts}")

    # ---- what must hold at the end ----

    def check(self) -> None:
        """Every request was served once, by whom it was for; and every sleeping end is still understood."""
        served = [(number, host) for server in self.homes for number, host in server.served]
        for k, server in enumerate(self.servers):
            endpoint = self.path.upstreams[k].endpoint
            for number, host in server.served:
                if host != endpoint:
                    raise Violation(f"request {number} for e{host} went to e{endpoint}")
                served.append((number, host))
            if server.at != len(server.tcp.read):
                raise Violation(f"{server.tcp.name} has {bytes(server.tcp.read[server.at :])!r} behind its requests")
        if sorted(served) != sorted((r.number, r.host) for client in self.clients for r in client.requests):
            raise Violation(f"served {sorted(served)}")
        if not self.tape.used and any(end.stale for end in self.ends()):
            raise Violation("timestamps went back although nothing was late")
        for end in self.ends():
            stood = (end.una, end.rcv, len(end.read))
            end.probe()
            while self.flight:
                self.deliver(*self.flight.pop(0))
            if stood != (end.una, end.rcv, len(end.read)):
                raise Violation(f"{end.name}: {stood} before its probe, {(end.una, end.rcv, len(end.read))} after it")
