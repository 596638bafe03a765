"""The data path of kernel/tc_workload.bpf.c, played step by step over the core's own arithmetic (libcore.so).

`Datapath` decides, switches, translates, freezes and reclaims in the order of the C programs, without packets of bytes
and without maps; every number comes from `up_lend`, `up_freeze`, `up_leave_home`, `up_come_home`, the six shifts, the
head parser and the response framing. `wire_simulator` puts the rest of the world around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from nodeagent.abi.numbers import CF_UNSYNCED, Method, ResponseState, State
from nodeagent.core.libcore import HeadReader
from tests.support import core_memory as m
from tests.support.wire_tcp import MASK, Fate, Segment, ahead

Wire = tuple[str, int]  # ("H", client) or ("U", upstream): what the network sees


@dataclass(slots=True)
class Entry:
    """An entry of `conns`. peer: client: the upstream it uses; upstream: the client that has it."""

    conn: m.Conn
    endpoint: int = -1
    peer: int = -1


def moved(x: m.Shift, p: Segment) -> Segment:
    """up_packet_move()"""
    window = p.window
    if x.start != x.to:
        window = min(window << x.start >> x.to, 65535)
    return Segment(
        (p.seq + x.seq) & MASK,
        (p.ack + x.ack) & MASK,
        (p.tsv + x.tsv) & MASK,
        (p.tse + x.tse) & MASK,
        window,
        p.payload,
    )


class Datapath:
    """One workload's connections. `route` gives the endpoint of a host, -1: not for the kernel."""

    def __init__(self, route: Callable[[bytes], int]) -> None:
        self.route = route
        self.reader = HeadReader(m.core())
        self.clients: list[Entry] = []
        self.upstreams: list[Entry] = []
        self.stock: dict[int, list[int]] = {}
        self.lease = 0
        self.counts: dict[str, int] = {}

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    # ---- egress ----

    def client_egress(self, i: int, p: Segment, una: int) -> tuple[Fate, list[tuple[Wire, Segment]]]:
        """up_client_egress(): una is the socket's."""
        entry = self.clients[i]
        c, pay = entry.conn, len(p.payload)
        if c.flags & CF_UNSYNCED and pay and c.synced and p.seq == c.sync and ahead(c.sent, c.sync) <= 0:
            c.synced = 0
            c.flags &= ~CF_UNSYNCED
            c.next = p.seq
        due = bool(pay) and p.seq == c.next and not c.flags & CF_UNSYNCED
        idle, k = True, -1
        if c.state == State.AWAY:
            k = entry.peer
            u = self.upstreams[k].conn
            if u.lease == c.lease and u.state in (State.LENT, State.DYING):
                if ahead(p.ack, u.cack) > 0:
                    u.cack = p.ack
                u.cte = p.tse or u.cte
                settled = due and una == p.seq
                idle = m.spent(u) if settled else m.idle(u)
                if settled and idle:
                    if u.rsp.state == ResponseState.LOST:
                        u.rsp.flags |= m.CLOSES
                    u.rsp.state = ResponseState.HEAD
                    u.rsp.flags &= m.CLOSES
            else:
                k = -1
                m.come_home(c, c.next, p.ack, p.tse)
                c.rsp.state, c.rsp.flags, c.sent = ResponseState.IDLE, 0, c.next
                self.count("wire gone")
        else:
            idle = m.over(c.rsp, p.ack)
        if not c.flags & CF_UNSYNCED and ahead(p.seq, c.next) > 0:
            if pay:
                self.count("held")
                return Fate.SHOT, []
            p = replace(p, seq=c.next)
        if pay and not c.flags & CF_UNSYNCED and ahead(p.seq, c.next) < 0 < ahead(p.seq + pay, c.next):
            if c.state == State.AWAY:
                p = replace(p, payload=p.payload[: ahead(c.next, p.seq)])
                self.count("cut")
            else:
                c.flags |= CF_UNSYNCED
                c.synced = 0
                self.count("pipelined")
        if due:
            fate, k = self.decide(i, k, p, una, idle)
            if fate is not Fate.SENT:
                return fate, []
        return self.away_egress(c, k, p) if c.state == State.AWAY else self.home_egress(i, c, p)

    def away_egress(self, c: m.Conn, k: int, p: Segment) -> tuple[Fate, list[tuple[Wire, Segment]]]:
        u = self.upstreams[k].conn
        assert u.lease == c.lease
        if p.payload:
            if ahead(p.seq, c.since) < 0:
                return Fate.STOLEN, []
            if ahead(p.seq + len(p.payload), u.edge) > 0:
                self.count("window held")
                return Fate.SHOT, []
        return Fate.SENT, [(("U", k), moved(m.shift(m.OUTWARD, c, u), p))]

    def home_egress(self, i: int, c: m.Conn, p: Segment) -> tuple[Fate, list[tuple[Wire, Segment]]]:
        end = (p.seq + len(p.payload)) & MASK
        if p.payload and ahead(end, c.sent) > 0:
            c.sent = end
        return Fate.SENT, [(("H", i), moved(m.shift(m.HOME_OUT, c), p))]

    def owner_egress(self, k: int, p: Segment) -> list[tuple[Wire, Segment]]:
        """up_owner_egress()"""
        u = self.upstreams[k].conn
        if u.state in (State.LENT, State.DYING):
            self.count("owner silenced")
            return []
        return [(("U", k), moved(m.shift(m.OWNER_OUT, u=u), p))]

    # ---- decide.h ----

    def decide(self, i: int, k: int, p: Segment, una: int, idle: bool) -> tuple[Fate, int]:
        """up_decide(): the client's wire afterwards."""
        entry = self.clients[i]
        c, pay = entry.conn, len(p.payload)
        away = c.state == State.AWAY
        if una != p.seq:
            idle = False
        if not idle:
            if away:
                self.count("held")
                return Fate.SHOT, k
            c.flags |= CF_UNSYNCED
            c.synced = 0
            self.count("pipelined")
            return Fate.SENT, -1
        head = self.reader.parse(p.payload)
        framed = head.reason == 0 and pay <= head.size + head.body
        endpoint = self.route(self.reader.host()) if framed else -1
        taken = -1
        if endpoint >= 0:
            if away and c.endpoint == endpoint and self.stay(c, k, p, head.size + head.body, head.method):
                taken = k
            else:
                taken = self.go_away(i, k, p, endpoint, head.size + head.body, head.method)
        if framed:
            c.next = p.seq + head.size + head.body
        if taken >= 0:
            self.count("kernel")
            return Fate.SENT, taken
        if away:
            self.let_go(i, k, p, idle=True)
            m.come_home(c, p.seq, p.ack, p.tse)
            c.rsp.state, c.rsp.flags, c.sent, c.synced = ResponseState.IDLE, 0, p.seq, 0
        if framed:
            m.begin(c.rsp, p.ack, head.method == Method.HEAD)
        else:
            c.flags |= CF_UNSYNCED
            c.synced = 0
        self.count("home")
        return Fate.SENT, -1

    def begin(self, u: m.Conn, p: Segment, size: int, method: int) -> None:
        m.begin(u.rsp, p.ack, method == Method.HEAD)
        u.next = p.seq + size

    def stay(self, c: m.Conn, k: int, p: Segment, size: int, method: int) -> bool:
        u = self.upstreams[k].conn
        if u.state != State.LENT or u.lease != c.lease or u.rsp.flags & m.CLOSES:
            return False
        self.begin(u, p, size, method)
        self.count("same wire")
        return True

    def go_away(self, i: int, k: int, p: Segment, endpoint: int, size: int, method: int) -> int:
        entry, free = self.clients[i], self.stock.get(endpoint, [])
        c = entry.conn
        while free and self.upstreams[free[-1]].conn.state != State.FREE:
            free.pop()
        if not free:
            return -1
        u = self.upstreams[free[-1]].conn
        if u.mss < c.mss:  # segments of the client's could exceed all that the endpoint's window ever holds
            self.count("segment size")
            return -1
        fresh = free.pop()
        self.lease += 1
        m.lend(u, c, p.seq, p.ack, p.tse, self.lease)
        self.begin(u, p, size, method)
        self.upstreams[fresh].peer = i
        if c.state == State.AWAY:
            self.let_go(i, k, p, idle=True)
        else:
            m.leave_home(c, p.seq, p.ack, p.tse)
        c.dseq, c.dack, c.tsin, c.tsout = u.dseq, u.dack, u.tsin, u.tsout
        c.lease, c.endpoint, c.since, c.state = self.lease, endpoint, p.seq, State.AWAY
        entry.peer = fresh
        self.count("switch")
        return fresh

    def let_go(self, i: int, k: int, p: Segment, idle: bool) -> None:
        c, u = self.clients[i].conn, self.upstreams[k].conn
        if k < 0 or u.lease != c.lease or u.state not in (State.LENT, State.DYING):
            return
        usable = idle and u.state == State.LENT and not u.rsp.flags & m.CLOSES
        m.freeze(u, u.next if idle else p.seq, p.ack, p.tse)
        u.state = State.FREE if usable else State.DEAD
        if usable:
            self.stock[self.upstreams[k].endpoint].append(k)

    # ---- control.bpf.c ----

    def reclaim(self, k: int) -> bool:
        """UP_CTL_RECLAIM"""
        u = self.upstreams[k].conn
        if u.state != State.LENT or not m.idle(u) or u.rsp.flags & m.CLOSES:
            return False
        m.freeze(u, u.next, u.cack, u.cte)
        u.state = State.FREE
        self.stock[self.upstreams[k].endpoint].append(k)
        self.count("reclaimed")
        return True

    def sync(self, i: int, received: int, sent: int) -> None:
        """UP_CTL_SYNC, of a client that is not in step."""
        c = self.clients[i].conn
        if not c.flags & CF_UNSYNCED or c.state != State.AT_HOME:
            return
        c.sync = (c.oS + received - c.dseq) & MASK
        c.rsp.state, c.rsp.flags, c.rsp.left = ResponseState.LENGTH, m.DONE, 0
        c.rsp.end = c.rsp.next = (c.oR + sent - c.dack) & MASK
        c.synced = 1
        self.count("sync")

    # ---- ingress ----

    def ingress(self, wire: Wire, p: Segment) -> tuple[str, int, Segment] | None:
        """Who gets a packet: ("C", client), ("U", owner), ("turn", client) with the answer; None: dropped."""
        return self.upstream_ingress(wire[1], p) if wire[0] == "U" else self.home_ingress(wire[1], p)

    def upstream_ingress(self, k: int, p: Segment) -> tuple[str, int, Segment] | None:
        entry = self.upstreams[k]
        u = entry.conn
        lent = u.state in (State.LENT, State.DYING)
        seen = (p.seq - u.dack) & MASK
        u.wnd = p.window << u.sws
        if not lent:
            return "U", k, moved(m.shift(m.OWNER_IN, u=u), p)
        ack = (p.ack - u.dseq) & MASK
        if ahead(ack, u.eack) > 0:
            u.eack = ack
        if ahead(ack + u.wnd, u.edge) > 0:
            u.edge = ack + u.wnd
        x = m.shift(m.INWARD, u=u)
        if p.payload and not m.follow(u.rsp, seen, p.payload):
            self.count("gap")
            return None
        return "C", entry.peer, moved(x, p)

    def home_ingress(self, i: int, p: Segment) -> tuple[str, int, Segment] | None:
        c = self.clients[i].conn
        if c.state == State.AWAY:
            if ahead(p.seq, c.R) < 0:
                self.count("turned")
                return "turn", i, Segment(c.S, c.R, p.tse, p.tsv, 512)
            self.count("away dropped")
            return None
        x = m.shift(m.HOME_IN, c)
        if p.payload and not m.follow(c.rsp, (p.seq - c.dack) & MASK, p.payload):
            self.count("gap")
            return None
        return "C", i, moved(x, p)
