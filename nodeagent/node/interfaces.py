"""Where an interface's packets are counted: its slot in `interface_stats` (kernel/include/abi.h)."""

import socket

from nodeagent.abi import numbers as n
from nodeagent.abi.records import InterfaceStat
from nodeagent.bpf.abc import Map

__all__ = ["exists", "slot_of"]


def exists(ifindex: int) -> bool:
    """Whether this namespace has an interface of that number."""
    try:
        socket.if_indextoname(ifindex)
    except OSError:
        return False
    return True


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
