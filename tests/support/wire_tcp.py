"""A small TCP for the simulator: sequence space, windows, timestamps, retransmission. Established from the start.

Enough of RFC 9293 and RFC 7323 that a wrongly translated number shows: acknowledgements of what was never sent, other
bytes at a place that was read before, and timestamps that go back are `Violation`s or stall the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

MASK = 0xFFFFFFFF


class Violation(AssertionError):
    """Something that no correct translation can bring about."""


def ahead(a: int, b: int) -> int:
    """a - b in sequence space: positive when a is behind b."""
    return ((a - b + (1 << 31)) & MASK) - (1 << 31)


@dataclass(frozen=True, slots=True)
class Segment:
    """A packet. window: as it stands in the header, scaled."""

    seq: int
    ack: int
    tsv: int
    tse: int
    window: int
    payload: bytes = b""


class Fate(Enum):
    """What became of a packet that TCP gave out."""

    SENT = 1
    SHOT = 2  # refused: the segment counts as unsent
    STOLEN = 3  # swallowed: the segment counts as sent


@dataclass(frozen=True, slots=True)
class Shape:
    """How an end of a connection behaves. scale: the shift that it announced; delay: whether acknowledgements wait."""

    room: int = 1000
    mss: int = 100
    scale: int = 0
    tsoff: int = 0
    delay: bool = False


class Tcp:
    """One end. `out` holds what is not acknowledged, `read` all that came in order."""

    def __init__(
        self, name: str, shape: Shape, iss: int, irs: int, peer: Shape, clock: Callable[[], int], peer_stamp: int
    ) -> None:
        self.name, self.shape, self.peer_scale, self.clock = name, shape, peer.scale, clock
        self.mss = min(shape.mss, peer.room // 2)  # half of the window at most, as Linux does it
        self.una = self.nxt = iss
        self.irs = self.rcv = irs
        self.out, self.read, self.early = bytearray(), bytearray(), dict[int, bytes]()
        self.taken = 0  # of `read`, by the application
        self.stamp = peer_stamp
        self.wnd, self.wl1, self.wl2 = peer.room >> peer.scale << peer.scale, irs, iss
        self.edge = irs + (shape.room >> shape.scale << shape.scale)
        self.owed = False
        self.refused = self.stale = 0
        # The numbers of a client stand for bytes of several wires, an owner's for those of its wire's clients: what
        # comes again from before is not the same.
        self.mixed = False
        self.send: Callable[[Segment], Fate] = lambda _: Fate.SENT

    # ---- sending ----

    def write(self, data: bytes) -> None:
        """The application's send."""
        self.out += data
        self.push()

    def segment(self, seq: int, payload: bytes | bytearray = b"") -> Segment:
        """A packet of now."""
        free = self.shape.room - (len(self.read) - self.taken)
        edge = (self.rcv + (max(free, 0) >> self.shape.scale << self.shape.scale)) & MASK
        if ahead(edge, self.edge) > 0:
            self.edge = edge
        window = min(max(ahead(self.edge, self.rcv), 0) >> self.shape.scale, 65535)
        tsv = (self.clock() + self.shape.tsoff) & MASK
        return Segment(seq & MASK, self.rcv, tsv, self.stamp, window, bytes(payload))

    def push(self) -> None:
        """Sends what the window allows."""
        while True:
            begin = ahead(self.nxt, self.una)
            size = min(len(self.out) - begin, self.mss, self.wnd - begin)
            if size <= 0 or self.send(self.segment(self.nxt, self.out[begin : begin + size])) is Fate.SHOT:
                return
            self.nxt = (self.nxt + size) & MASK
            self.owed = False

    def acknowledge(self) -> None:
        """A pure acknowledgement."""
        self.owed = False
        self.send(self.segment(self.nxt))

    def probe(self) -> None:
        """A keep-alive or window probe: a byte that was acknowledged long ago, without the byte."""
        self.send(self.segment(self.una - 1))

    def timer(self) -> None:
        """Time has passed: what is owed is sent, what is not acknowledged is sent again."""
        if self.owed:
            self.acknowledge()
        flight = ahead(self.nxt, self.una)
        if flight > 0:
            self.send(self.segment(self.una, self.out[: min(self.mss, flight)]))
        elif self.out and self.wnd <= 0:
            self.probe()
        else:
            self.push()

    # ---- receiving ----

    def drain(self) -> None:
        """The application takes all that there is; the peer hears of it if it had to wait."""
        closed = ahead(self.edge, self.rcv) < self.shape.room // 2
        taken, self.taken = self.taken, len(self.read)
        if closed and self.taken > taken:
            self.acknowledge()

    def receive(self, p: Segment) -> None:
        """A packet arrives."""
        size = len(p.payload)
        if ahead(p.ack, self.nxt) > 0:
            raise Violation(f"{self.name}: {p} acknowledges {ahead(p.ack, self.nxt)} bytes that were never sent")
        if ahead(p.tsv, self.stamp) < 0 or ahead(p.seq + max(size, 1), self.rcv) <= 0 or ahead(p.seq, self.edge) > 0:
            self.check_old(p)
            if size or p.seq != self.rcv:
                self.acknowledge()
            if ahead(p.tsv, self.stamp) < 0:
                self.stale += 1
                return
        if ahead(p.seq, self.rcv) <= 0:
            self.stamp = p.tsv
        self.acknowledged(p)
        if size:
            self.take(p)

    def acknowledged(self, p: Segment) -> None:
        """The acknowledgement and the window of a packet."""
        new = ahead(p.ack, self.una)
        if new > 0:
            del self.out[:new]
            self.una = p.ack
        if new >= 0 and (ahead(p.seq, self.wl1) > 0 or (p.seq == self.wl1 and ahead(p.ack, self.wl2) >= 0)):
            self.wnd, self.wl1, self.wl2 = p.window << self.peer_scale, p.seq, p.ack
        self.push()

    def check_old(self, p: Segment) -> None:
        """Bytes that were read before must be the same."""
        if self.mixed:
            return
        at = ahead(p.seq, self.irs)
        if at < 0:
            if p.payload:
                raise Violation(f"{self.name}: {p} begins {-at} bytes in front of the connection")
            return
        known = bytes(self.read[at : at + len(p.payload)])
        if known != p.payload[: len(known)]:
            raise Violation(f"{self.name}: {p} has other bytes than {known!r}, which were read there")

    def take(self, p: Segment) -> None:
        """The payload of a packet."""
        self.check_old(p)
        room = ahead(self.edge, p.seq)
        if room < len(p.payload):
            self.refused += 1
        payload = p.payload[: max(room, 0)]
        if ahead(p.seq + len(payload), self.rcv) > 0:
            at = ahead(p.seq, self.irs)
            longest = self.early.get(at, b"")
            self.early[at] = payload if len(payload) > len(longest) else longest
        moved = False
        for at in sorted(self.early):
            data = self.early[at]
            if at > len(self.read):
                break
            del self.early[at]
            known = bytes(self.read[at : at + len(data)])
            if known != data[: len(known)]:
                raise Violation(f"{self.name}: bytes at {at} differ: {known!r}, {data!r}")
            if len(data) > len(known):
                self.read += data[len(known) :]
                moved = True
        self.rcv = (self.irs + len(self.read)) & MASK
        if moved and self.shape.delay and not self.owed and not self.early:
            self.owed = True
        else:
            self.acknowledge()
