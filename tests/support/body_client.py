"""Many random requests with bodies in both directions over a few keep-alive connections, every byte checked.

Runs inside a workload: `body_client.py HOST PORT REQUESTS CONNECTIONS SEED [LARGEST]`. The server is the sample server,
whose answers say what it received and end in a known pattern. Prints one JSON object.
"""

from __future__ import annotations

import collections
import hashlib
import json
import random
import socket
import sys
import threading
import time

from underpass.lab.answer import pattern

METHODS = ("GET", "GET", "POST", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS")
SIZES = (0, 1, 10, 100, 1500, 9000, 65_000, 200_000, 1_048_576)
OPENING = b', "padding": "'
SMALLEST_JSON = 2000
PATIENCE = 60.0


class Refused(Exception):
    """The answer is not what was asked for."""


class Connection:
    """One keep-alive connection."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb", 1 << 16)

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next final response."""
        while True:
            line = self.file.readline()
            if not line.startswith(b"HTTP/1.1 "):
                raise Refused(f"status line {line!r}")
            fields = {}
            while (raw := self.file.readline()) not in (b"\r\n", b""):
                name, _, value = raw.decode("latin-1").partition(":")
                fields[name.strip().lower()] = value.strip()
            status = int(line.split()[1])
            if status >= 200:
                return status, fields

    def body(self, fields: dict[str, str]) -> bytes:
        """A body by length or in chunks."""
        if "chunked" not in fields.get("transfer-encoding", ""):
            data: bytes = self.file.read(int(fields.get("content-length", "0")))
            return data
        out = b""
        while size := int(self.file.readline().split(b";")[0], 16):
            out += self.file.read(size)
            self.file.readline()
        self.file.readline()
        return out

    def ask(self, rng: random.Random, host: str, largest: int) -> tuple[str, int]:
        """One random request; who answered, and the bytes moved. Raises Refused or OSError."""
        method = rng.choice(METHODS)
        up = b"" if method in ("GET", "HEAD", "OPTIONS") else rng.randbytes(_size(rng, largest))
        down = _size(rng, largest)
        if up and down < SMALLEST_JSON:
            down = SMALLEST_JSON
        chunked = rng.random() < 0.15
        target = f"/{rng.randrange(100)}?call=&bytes={down}" + ("&chunked=1" if chunked else "")
        length = f"Content-Length: {len(up)}\r\n" if up else ""
        head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{length}\r\n"
        if len(up) > 3000 and rng.random() < 0.5:
            self.socket.sendall(head.encode())
            self.socket.sendall(up)
        else:
            self.socket.sendall(head.encode() + up)
        status, fields = self.head()
        if status != 200:
            raise Refused(f"status {status} {fields.get('x-underpass-reason', '')}")
        if method == "HEAD":
            return "", 0
        body = self.body(fields)
        return _check(body, down, up), len(up) + len(body)


def _size(rng: random.Random, largest: int) -> int:
    return min(largest, int(rng.choice(SIZES) * rng.random()))


def _check(body: bytes, size: int, up: bytes) -> str:
    if len(body) != size:
        raise Refused(f"{len(body)} bytes in place of {size}")
    at = body.find(OPENING)
    if at < 0:
        if body != pattern(0, size):
            raise Refused("wrong body")
        return ""
    padding = body[at + len(OPENING) : -2]
    if padding != pattern(0, len(padding)):
        raise Refused("wrong padding")
    said = json.loads(body)
    if said["body_sha256"] != hashlib.sha256(up).hexdigest() or said["body_bytes"] != len(up):
        raise Refused("the server read another body")
    return str(said["workload"])


def main() -> None:
    """Runs the requests and prints what came of them."""
    host, port, total, connections, seed = sys.argv[1], *(int(a) for a in sys.argv[2:6])
    largest = int(sys.argv[6]) if len(sys.argv) > 6 else 1 << 20
    seen: collections.Counter[str] = collections.Counter()
    who: collections.Counter[str] = collections.Counter()
    lock, left, worst = threading.Lock(), [total], [0.0]

    def work(number: int) -> None:
        rng, connection = random.Random(seed * 1000 + number), None
        while True:
            with lock:
                if not left[0]:
                    return
                left[0] -= 1
            begin = time.monotonic()
            try:
                if connection is None:
                    connection = Connection(host, port)
                    seen["connections"] += 1
                answered, moved = connection.ask(rng, host, largest)
                with lock:
                    seen["ok"] += 1
                    seen["bytes"] += moved
                    who[answered] += 1
            except (OSError, Refused, ValueError) as error:
                with lock:
                    seen[f"failed: {error!r}"[:120]] += 1
                connection = None
            worst[0] = max(worst[0], time.monotonic() - begin)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(connections)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - begin
    print(json.dumps({"seen": seen, "who": who, "worst": round(worst[0], 3), "seconds": round(took, 1)}))


if __name__ == "__main__":
    main()
