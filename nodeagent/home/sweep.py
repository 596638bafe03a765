"""Finds in `conns` what events did not tell: a predecessor's upstreams, and entries whose event found the ring full.

Walks the table in small steps between other work; a pass over a full table takes some seconds and disturbs nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice

from nodeagent.abi.codec import offset_of
from nodeagent.abi.numbers import CF_CLOSED, Kind, State
from nodeagent.bpf.abc import Map
from nodeagent.home.control import Control
from nodeagent.home.upstreams import Upstreams

_KIND, _STATE, _FLAGS, _HOME, _COOKIE, _CLOSED = (
    offset_of("up_conn", name) for name in ("kind", "state", "flags", "home", "cookie", "closed_ns")
)
_OLD_NS = 5_000_000_000
_STEP = 512


class Sweep:
    """One walker over the table.

    client_ended: told of each client that ended long ago; clock: nanoseconds of the kernel's bpf_ktime_get_ns().
    """

    def __init__(
        self,
        conns: Map,
        control: Control,
        upstreams: Upstreams,
        generation: int,
        client_ended: Callable[[bytes, int], None],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._conns, self._control, self._upstreams = conns, control, upstreams
        self._generation, self._client_ended, self._clock = generation, client_ended, clock
        self._walk: Iterator[tuple[bytes, bytes]] | None = None
        self.found = 0

    def begin(self) -> None:
        """Starts a pass, unless one is under way."""
        if self._walk is None:
            self._walk = self._conns.items()

    def step(self) -> bool:
        """Looks at some entries; False when no pass is under way (any more)."""
        if self._walk is None:
            return False
        count = 0
        for key, value in islice(self._walk, _STEP):
            count += 1
            self._look(key, value)
        if count < _STEP:
            self._walk = None
        return self._walk is not None

    def _look(self, key: bytes, value: bytes) -> None:
        cookie = int.from_bytes(value[_COOKIE : _COOKIE + 8], "little")
        if value[_KIND] == Kind.CLIENT:
            closed = int.from_bytes(value[_CLOSED : _CLOSED + 8], "little")
            if value[_FLAGS] & CF_CLOSED and self._clock() - closed > _OLD_NS:
                self._client_ended(key, cookie)
                self.found += self._control.forget(key, cookie)
            return
        dead = value[_STATE] == State.DEAD
        own = self._upstreams.by_key.get(key)
        if own is not None and own.cookie == cookie:
            if dead:
                self.found += 1
                self._upstreams.kill(own)
            return
        if int.from_bytes(value[_HOME : _HOME + 4], "little") == self._generation:
            if dead:
                self.found += self._control.forget(key, cookie)
            return  # else it is just being opened
        # a predecessor's: its socket is gone; a client that still has it may keep it to the end of its request
        self.found += 1
        self._control.kill(key)
        self._control.forget(key, cookie)
