"""The process that the probes' hooks are tried on: it lives in a cgroup and a namespace of its own, and connects.

Run as a script by `nodeagent.node.probes`, without site packages. It says "ready", waits for a line, and prints what
the connects came to as one line of JSON.
"""

from __future__ import annotations

import json
import socket
import sys

REFUSED = "127.0.0.77"
REWRITTEN = "127.0.0.78"
PAYLOAD = b"x" * 100
_WAIT_S = 10.0


def main() -> None:
    """See above."""
    print("ready", flush=True)
    sys.stdin.readline()
    found: dict[str, object] = {"refused": 0, "connected": 0, "peer": "", "arrived": 0}
    # A datagram socket: TCP to a port that nobody listens at would be refused without any hook.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        try:
            datagrams.connect((REFUSED, 9))
        except OSError as error:
            found["refused"] = error.errno
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        client.settimeout(_WAIT_S)
        listener.settimeout(_WAIT_S)
        try:
            client.connect((REWRITTEN, listener.getsockname()[1]))
            found["peer"] = client.getpeername()[0]
            client.sendall(PAYLOAD)
            served, _ = listener.accept()
            with served:
                served.settimeout(_WAIT_S)
                found["arrived"] = len(served.recv(len(PAYLOAD), socket.MSG_WAITALL))
        except OSError as error:
            found["connected"] = error.errno or -1
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
