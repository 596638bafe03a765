"""Clients that give up, run inside a workload: `python leaving_client.py IP PORT SEED COUNT HOST...`.

Each sends a request, or a part of one, to one of the hosts and leaves at a random moment: by a reset, by closing, or by
closing one way and reading on. Prints how many went each way.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import sys
import time

_RESET = struct.pack("ii", 1, 0)
_PATHS = ("/", "/slow", "/half", "/reset", "/fail-1", "/refuse", "/old/x")


def request(chance: random.Random, host: str) -> bytes:
    head = f"{{}} {chance.choice(_PATHS)} HTTP/1.1\r\nHost: {host}\r\n"
    kind = chance.randrange(3)
    if kind == 0:
        return (head.format("GET") + "\r\n").encode()
    size = chance.choice((1, 1000, 70_000, 300_000))
    if kind == 1:
        return (head.format("POST") + f"Content-Length: {size}\r\n\r\n").encode() + b"x" * size
    chunk = f"{size:x}\r\n".encode() + b"x" * size + b"\r\n"
    return (head.format("POST") + "Transfer-Encoding: chunked\r\n\r\n").encode() + chunk * 3 + b"0\r\n\r\n"


def main() -> None:
    address, port, seed, count, *hosts = sys.argv[1:]
    chance = random.Random(int(seed))
    ends = {"reset": 0, "close": 0, "half": 0}
    for _ in range(int(count)):
        sock = socket.create_connection((address, int(port)), 10)
        sock.settimeout(0.3)
        data = request(chance, chance.choice(hosts))
        if chance.random() < 0.4:
            data = data[: chance.randrange(1, len(data))]
        end = chance.choice(list(ends))
        ends[end] += 1
        try:
            for at in range(0, len(data), 50_000):
                sock.sendall(data[at : at + 50_000])
            if end == "half":
                sock.shutdown(socket.SHUT_WR)
            if chance.random() < 0.7:
                time.sleep(chance.random() * 0.03)
            if end != "reset" and chance.random() < 0.5:
                sock.recv(65536)
        except OSError:
            pass
        if end == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.close()
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
