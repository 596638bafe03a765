"""The listening sockets at home addresses."""

from __future__ import annotations

import socket

from nodeagent.node.interfaces import holder_of

_BACKLOG = 4096
_FREEBIND = 15  # IP_FREEBIND, also for IPv6 sockets


def listening(address: str, port: int, mss: int, standby: bool) -> socket.socket:
    """A socket that listens at a home address. mss: largest segment asked of clients, 0: the interface's. OSError.

    standby: beneath whoever listens at that very address. This one is then bound to all addresses of its interface,
    which the kernel asks only when nobody has the address itself: an Envoy that comes takes the new connections, and
    from the moment that it is gone, however it went, they are home's, without anybody having to notice.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # the bridge may get its address, or IPv6 be done with checking it for duplicates, after us
        listener.setsockopt(socket.IPPROTO_IP, _FREEBIND, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if mss:
            # the kernel's segments go on to endpoints as they are, so none may be larger than any endpoint takes
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)
        if standby:
            # both have to ask for it, and be of one user: no other user's process can so take the address
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, holder_of(address).encode() + b"\0")
            address = "::" if family == socket.AF_INET6 else "0.0.0.0"
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
