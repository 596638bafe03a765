"""The structures of abi.h as memory that libcore.so works on, and functions of libcore.h that the product never calls.

For tests and the simulator only. Field names are those of the C structures; numbers wrap as they do in C.
"""

from __future__ import annotations

import ctypes as c
from functools import cache
from typing import Any, Final

from nodeagent.abi.layout import STRUCTS
from nodeagent.abi.numbers import RSP_HEAD_MAX, ResponseState
from nodeagent.core.libcore import Core

MASK: Final = 0xFFFFFFFF
CLOSES, DONE = 8, 16  # UP_RSPF_CLOSE, UP_RSPF_DONE
_KINDS: Final[dict[str, Any]] = {
    "u8": c.c_uint8, "u16": c.c_uint16, "u32": c.c_uint32, "u64": c.c_uint64, "be16": c.c_uint16,
}  # fmt: skip


class Memory:
    """One structure. Scalar fields are attributes; a nested structure (`rsp`) is a `Memory` over the same bytes."""

    STRUCT = ""
    memory: Any
    at: int
    address: int
    size: int
    views: dict[str, Any]

    def __init__(self, *place: Any, **values: int) -> None:
        """place: the structure's name, memory and offset in it; none: new memory, all zero."""
        struct, memory, at = place or (self.STRUCT, None, 0)
        own = object.__setattr__
        own(self, "memory", memory if memory is not None else c.create_string_buffer(STRUCTS[struct][0]))
        own(self, "at", at)
        own(self, "address", c.addressof(self.memory) + at)
        views: dict[str, Any] = {}
        for name, offset, kind, count in STRUCTS[struct][1]:
            if kind in _KINDS and not count:
                views[name] = _KINDS[kind].from_buffer(self.memory, at + offset)
            elif kind in STRUCTS and not count:
                own(self, name, Memory(kind, self.memory, at + offset))
        own(self, "views", views)
        own(self, "size", STRUCTS[struct][0])
        for name, value in values.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> int:
        try:
            return int(object.__getattribute__(self, "views")[name].value)
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: int) -> None:
        self.views[name].value = value

    def raw(self) -> bytes:
        """The structure's bytes."""
        return c.string_at(self.address, self.size)


class Response(Memory):
    """`struct up_response`."""

    STRUCT = "up_response"


class Conn(Memory):
    """`struct up_conn`."""

    STRUCT = "up_conn"
    rsp: Any


class Shift(c.Structure):
    """`struct up_shift` of core/wire.h: what is added to a packet's numbers, and how its window is rescaled."""

    _fields_ = [
        ("seq", c.c_uint32), ("ack", c.c_uint32), ("tsv", c.c_uint32), ("tse", c.c_uint32),
        ("start", c.c_uint8), ("to", c.c_uint8),
    ]  # fmt: skip


OUTWARD, INWARD, OWNER_OUT, OWNER_IN, HOME_OUT, HOME_IN = range(6)
"""Which shift `up_core_shift` gives."""

_p, _u = c.c_void_p, c.c_uint32
_MORE: Final = {
    "up_core_counter_name": (c.c_char_p, (_u,)),
    "up_core_lend": (None, (_p, _p, _u, _u, _u, _u)),
    "up_core_freeze": (None, (_p, _u, _u, _u)),
    "up_core_leave_home": (None, (_p, _u, _u, _u)),
    "up_core_come_home": (None, (_p, _u, _u, _u)),
    "up_core_idle": (c.c_int, (_p,)),
    "up_core_spent": (c.c_int, (_p,)),
    "up_core_shift": (None, (_p, _p, c.c_int, c.POINTER(Shift))),
}


@cache
def library() -> Any:
    """libcore.so with every prototype set."""
    lib = Core().lib
    for name, (result, arguments) in _MORE.items():
        function = getattr(lib, name)
        function.restype = result
        function.argtypes = list(arguments)
    return lib


@cache
def core() -> Core:
    """The product's own wrapper, one for all tests."""
    return Core()


def lend(u: Memory, client: Memory, seq: int, ack: int, te: int, lease: int) -> None:
    """`up_lend`."""
    library().up_core_lend(u.address, client.address, seq & MASK, ack & MASK, te & MASK, lease & MASK)


def freeze(u: Memory, seq: int, ack: int, te: int) -> None:
    """`up_freeze`."""
    library().up_core_freeze(u.address, seq & MASK, ack & MASK, te & MASK)


def leave_home(client: Memory, seq: int, ack: int, te: int) -> None:
    """`up_leave_home`."""
    library().up_core_leave_home(client.address, seq & MASK, ack & MASK, te & MASK)


def come_home(client: Memory, seq: int, ack: int, te: int) -> None:
    """`up_come_home`."""
    library().up_core_come_home(client.address, seq & MASK, ack & MASK, te & MASK)


def idle(u: Memory) -> bool:
    """`up_idle`."""
    return bool(library().up_core_idle(u.address))


def spent(u: Memory) -> bool:
    """`up_spent`."""
    return bool(library().up_core_spent(u.address))


def shift(which: int, client: Memory | None = None, u: Memory | None = None) -> Shift:
    """One of the six shifts; `client` and `u` as that one needs them."""
    out = Shift()
    library().up_core_shift(client.address if client else None, u.address if u else None, which, c.byref(out))
    return out


def begin(r: Memory, at: int, head: bool = False) -> None:
    """`up_response_begin`."""
    library().up_core_response_begin(r.address, at & MASK, head)


def feed(r: Memory, data: bytes) -> int:
    """`up_response_feed` over the bytes at r.next; how many were taken."""
    return int(library().up_core_response_feed(r.address, data, len(data)))


def over(r: Memory, ack: int) -> bool:
    """`up_response_over`."""
    return bool(library().up_core_response_over(r.address, ack & MASK))


def passed(r: Memory, seen: int) -> None:
    """`up_response_pass`."""
    library().up_core_response_pass(r.address, seen & MASK)


def wants(r: Memory) -> bool:
    """`up_response_wants`: whether bytes at r.next must be read."""
    state = r.state
    return state in (ResponseState.HEAD, ResponseState.SPLIT) or (state == ResponseState.CHUNKS and not r.flags & DONE)


def follow(r: Memory, seen: int, payload: bytes, piece: int = RSP_HEAD_MAX) -> bool:
    """A packet passes whose first byte has the number `seen`, read as kernel/follow.h does it.

    Returns False when the packet lies ahead of bytes that are still to be read: it must not pass. piece: how many bytes
    are read at once.
    """
    while wants(r):
        at = (r.next - seen) & MASK
        if at >= 1 << 31:
            return False
        if at >= len(payload) or feed(r, payload[at : at + piece]) <= 0:
            break
    passed(r, seen + len(payload))
    return True
