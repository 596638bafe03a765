"""Who does what only one replica may do: a key with a lease, and a clock that ends a claim before it. Sans-IO.

The key belongs to the replica whose transaction found it absent; it goes with its lease, when the replica stops or is
not heard of for :data:`TTL` seconds. A replica believes that it leads only until ``TTL - MARGIN`` after it *asked* for
the lease or for its renewal: etcd counts from later, so by the time another can have the key the first has let go,
however long an answer took. Times are seconds of the replica's own monotonic clock; etcd's is never compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

TTL: Final = 9.0
#: A claim ends so long before its lease can: clocks of two machines do not run equally fast.
MARGIN: Final = 1.0


@dataclass(slots=True)
class Election:
    """One replica's part. ``lease`` is 0 without one; ``leader`` is what the key said last."""

    name: str
    lease: int = 0
    leader: str = ""
    _held: bool = False
    _until: float = 0.0
    _asked: float = 0.0

    def leads(self, now: float) -> bool:
        """Whether this replica may do what only one may."""
        return self._held and now < self._until

    def granted(self, lease: int, asked: float, ttl: float) -> None:
        """A lease was granted; ``asked`` is when the request left, ``ttl`` what etcd gave."""
        self.lease, self._held = lease, False
        self._renew(asked, ttl)

    def kept(self, asked: float, ttl: float) -> None:
        """The lease was renewed; a ``ttl`` of 0 says that there is none any more."""
        if ttl <= 0:
            self.dropped()
        else:
            self._renew(asked, ttl)

    def campaigned(self, leader: str, lease: int) -> None:
        """The key's owner after a transaction that took it if it was free: its value and its lease."""
        self.leader = leader
        self._held = bool(lease) and lease == self.lease

    def dropped(self) -> None:
        """The lease is gone; a new one has to be asked for."""
        self.lease, self._held, self._until = 0, False, 0.0

    def expired(self, now: float) -> bool:
        """Whether the lease has to be taken for lost by now, so that a new one is worth asking for."""
        return not self.lease or now >= self._until

    def _renew(self, asked: float, ttl: float) -> None:
        if asked >= self._asked:  # an answer that was overtaken says nothing new
            self._asked = asked
            self._until = asked + ttl - MARGIN
