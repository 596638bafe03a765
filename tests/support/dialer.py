"""Sockets of an enrolled workload in the hands of a test: connected in its namespace and cgroup, passed as descriptors.

`python dialer.py PATH` is the side that runs in the workload. What a socket belongs to is settled when it is made and
connected; after that it does not matter which process reads and writes it, so a test can say byte by byte what happens.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.little_node import LittleNode, Pod


class Dialer:
    """Connects as one pod."""

    def __init__(self, node: LittleNode, pod: Pod) -> None:
        path = node.root / f"dialer-{pod.name}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(10)
            node.spawn(pod, [sys.executable, str(Path(__file__)), str(path)], enrolled=True)
            self._child, _ = listener.accept()
        self._child.settimeout(10)

    def dial(self, host: str, port: int, *options: tuple[int, int, int], syn_data: bytes = b"") -> socket.socket:
        """A connected socket with a timeout of ten seconds. options: (level, name, value); OSError if refused."""
        order = {"host": host, "port": port, "options": options, "syn_data": syn_data.decode("latin-1")}
        self._child.send(json.dumps(order).encode())
        said, descriptors, _, _ = socket.recv_fds(self._child, 4096, 1)
        if not descriptors:
            raise OSError(said.decode())
        sock = socket.socket(fileno=descriptors[0])
        sock.settimeout(10)
        return sock

    def close(self) -> None:
        """Ends the child."""
        self._child.close()


def main() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.connect(sys.argv[1])
        while data := channel.recv(4096):
            order: dict[str, Any] = json.loads(data)
            family = socket.AF_INET6 if ":" in order["host"] else socket.AF_INET
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                try:
                    for level, name, value in order["options"]:
                        sock.setsockopt(level, name, value)
                    target = (order["host"], order["port"])
                    if order["syn_data"]:
                        sock.sendto(order["syn_data"].encode("latin-1"), socket.MSG_FASTOPEN, target)
                    else:
                        sock.connect(target)
                except OSError as error:
                    channel.send(str(error).encode())
                else:
                    socket.send_fds(channel, [b"ok"], [sock.fileno()])


if __name__ == "__main__":
    main()
