"""Interfaces: which one has an address, and where its packets are counted (`interface_stats`, kernel/include/abi.h)."""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

from nodeagent.abi import numbers as n
from nodeagent.abi.records import InterfaceStat
from nodeagent.bpf.abc import Map

__all__ = ["exists", "holder_of", "slot_of"]

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, interface
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
_DONE, _NEW_ADDRESS, _GET_ADDRESS = 3, 20, 22
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


def exists(ifindex: int) -> bool:
    """Whether this namespace has an interface of that number."""
    try:
        socket.if_indextoname(ifindex)
    except OSError:
        return False
    return True


def holder_of(address: str) -> str:
    """The name of the interface that has this IP address. OSError: EADDRNOTAVAIL when none has."""
    wanted = ip_address(address).packed
    for found, ifindex in _addresses():
        if found == wanted:
            return socket.if_indextoname(ifindex)
    raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


def _addresses() -> Iterator[tuple[bytes, int]]:
    """Each address of this namespace and its interface's number, as rtnetlink tells them."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link:
        link.sendto(
            _HEADER.pack(_HEADER.size + _ADDRESS.size, _GET_ADDRESS, _DUMP, 1, 0) + bytes(_ADDRESS.size), (0, 0)
        )
        while True:
            data, at = link.recv(1 << 16), 0
            while at + _HEADER.size <= len(data):
                length, kind, *_ = _HEADER.unpack_from(data, at)
                if kind == _DONE or length < _HEADER.size:
                    return
                if kind == _NEW_ADDRESS:
                    yield _address(data[at + _HEADER.size : at + length])
                at += (length + 3) & ~3


def _address(message: bytes) -> tuple[bytes, int]:
    """One RTM_NEWADDR. On a point-to-point link IFA_ADDRESS is the other end's, IFA_LOCAL ours."""
    *_, ifindex = _ADDRESS.unpack_from(message)
    found: dict[int, bytes] = {}
    at = _ADDRESS.size
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = message[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, b"")), ifindex


def slot_of(stats: Map, ifindex: int) -> int | None:
    """The slot that counts interface `ifindex`: the one it has, else a free one, or that of one which is gone, zeroed.

    None when all the slots that the kernel looks at belong to other interfaces: this one goes uncounted.
    """
    free: int | None = None
    for probe in range(n.INTERFACE_PROBES):
        number = (ifindex + probe) % n.INTERFACES
        values = stats.lookup_percpu(number.to_bytes(4, "little"))
        owner = InterfaceStat.unpack(values[0]).ifindex if values else 0
        if owner == ifindex:
            return number
        if free is None and (not owner or not exists(owner)):
            free = number
    if free is not None:
        stats.update(free.to_bytes(4, "little"), InterfaceStat(ifindex=ifindex).pack())
    return free
