"""What home says to the data path, and the names of connections: `struct up_control` and `struct up_tuple`."""

from __future__ import annotations

import socket
import struct

from nodeagent.abi.codec import offset_of
from nodeagent.abi.layout import STRUCTS
from nodeagent.abi.numbers import ControlOp, ControlResult
from nodeagent.bpf.abc import Program

_MAPPED = bytes(10) + b"\xff\xff"
_SIZE = STRUCTS["up_control"][0]
_OP, _TUPLE, _RECEIVED, _SENT, _COOKIE = (
    offset_of("up_control", name) for name in ("op", "tuple", "received", "sent", "cookie")
)
TUPLE_SIZE = STRUCTS["up_tuple"][0]
_NOBODY = bytes(TUPLE_SIZE)


def packed(address: str) -> bytes:
    """16 bytes of an address as sockets give it (a scope id is cut off): an IPv4 one is mapped."""
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    return _MAPPED + socket.inet_aton(address)


def tuple_key(local: bytes, local_port: int, remote: bytes, remote_port: int) -> bytes:
    """Key of `conns`: both ends as the pod sees them, local is the pod's. Addresses are 16 bytes."""
    return local + remote + local_port.to_bytes(2, "big") + remote_port.to_bytes(2, "big")


class Control:
    """Runs `up_control`."""

    def __init__(self, program: Program) -> None:
        self._run = program.runner(_SIZE)
        self._packet = bytearray(_SIZE)

    def _call(self, op: int, key: bytes, received: int = 0, sent: int = 0, cookie: int = 0) -> int:
        struct.pack_into("=H", self._packet, _OP, op)
        self._packet[_TUPLE : _TUPLE + TUPLE_SIZE] = key
        struct.pack_into("=II", self._packet, _RECEIVED, received & 0xFFFFFFFF, sent & 0xFFFFFFFF)
        struct.pack_into("=Q", self._packet, _COOKIE, cookie)
        return self._run(bytes(self._packet))

    def reclaim(self, key: bytes) -> bool:
        """Takes an upstream back from its client, if that is idle."""
        return self._call(ControlOp.RECLAIM, key) == ControlResult.OK

    def kill(self, key: bytes) -> int:
        """An upstream is not to be lent again. OK: it is home's alone; BUSY: a client still has it; GONE: unknown."""
        return self._call(ControlOp.KILL, key)

    def sync(self, key: bytes, received: int, sent: int) -> int:
        """Tells the kernel where a client's next head is due."""
        return self._call(ControlOp.SYNC, key, received, sent)

    def health(self, endpoint: int, status: int) -> None:
        """An endpoint has answered a request of home's with that status; 0: not at all."""
        self._call(ControlOp.HEALTH, _NOBODY, endpoint, status)

    def forget(self, key: bytes, cookie: int) -> bool:
        """Removes a closed client's or a dead upstream's entry."""
        return self._call(ControlOp.FORGET, key, cookie=cookie) == ControlResult.OK


assert _SENT == _RECEIVED + 4, "one pack_into writes both"
