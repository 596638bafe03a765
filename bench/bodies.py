"""Large bodies: the client that gets, puts or lets wait, and the sink that it puts to.

wrk reads eight kilobytes at a time, which would measure wrk. Run as a program inside a workload's namespace:
`python bodies.py sink PORT`, or `python bodies.py {get,put,slow} HOST:PORT PATH --connections N ...`, which prints one
line of JSON: `{"bytes", "requests", "seconds", "latencies_us", "errors"}`. It imports nothing of ours: it is a file of
its own.
"""

import argparse
import json
import os
import selectors
import socket
import sys
import time
from collections.abc import Callable

CHUNK = 1 << 20


class Sink:
    """Reads request bodies by Content-Length and answers each with an empty 200."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.head = b""
        self.left = 0

    def readable(self, buffer: memoryview) -> bool:
        """Take what there is; False when the peer has closed."""
        count = self.connection.recv_into(buffer)
        if count == 0:
            return False
        data = bytes(buffer[:count]) if not self.left or count > self.left else None
        if data is None:
            self.left -= count
        else:
            self.head += data[self.left :]
            self.left = 0
            if b"\r\n\r\n" in self.head:
                head, _, body = self.head.partition(b"\r\n\r\n")
                length = next((h for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:")), b":0")
                self.left, self.head = int(length.split(b":")[1]) - len(body), b""
            elif len(self.head) > 1 << 16:
                return False
        if self.left == 0 and not self.head:
            self.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        return True


def sink(port: int) -> None:
    """Serve forever."""
    selector = selectors.DefaultSelector()
    listener = socket.create_server(("", port), backlog=1024)
    selector.register(listener, selectors.EVENT_READ)
    buffer = memoryview(bytearray(CHUNK))
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                selector.register(connection, selectors.EVENT_READ, Sink(connection))
                continue
            try:
                alive = key.data.readable(buffer)
            except OSError:
                alive = False
            if not alive:
                selector.unregister(key.fileobj)
                key.data.connection.close()


class Transfer:
    """One keep-alive connection that sends one request after another and checks each response's length."""

    def __init__(self, options: argparse.Namespace, more: Callable[[int], bool]) -> None:
        self.options = options
        self.more = more
        self.connection = socket.create_connection(options.target, timeout=10)
        self.connection.setblocking(False)
        self.latencies: list[float] = []
        self.moved = 0
        self.begin()

    def begin(self) -> None:
        """Start the next request."""
        put = self.options.mode == "put"
        length = f"Content-Length: {self.options.size}\r\n" if put else ""
        verb = "POST" if put else "GET"
        self.out = f"{verb} {self.options.path} HTTP/1.1\r\nHost: {self.options.host}\r\n{length}\r\n".encode()
        self.body = self.options.size if put else 0
        self.head = b""
        self.left = -1  # of the response's body; -1 while its head is not complete
        self.started = time.perf_counter()

    @property
    def interest(self) -> int:
        """What to wait for."""
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self.out or self.body else 0)

    def write(self, chunk: memoryview) -> None:
        """Send as much as the socket takes."""
        if self.out:
            self.out = self.out[self.connection.send(self.out) :]
        elif self.body:
            sent = self.connection.send(chunk[: min(self.body, CHUNK)])
            self.body -= sent
            self.moved += sent

    def read(self, buffer: memoryview) -> bool:
        """Take what there is; False when there is nothing more to do on this connection. Raises OSError."""
        count = self.connection.recv_into(buffer)
        if count == 0:
            raise OSError("the peer closed inside a response")
        if self.left < 0:
            self.head += bytes(buffer[:count])
            if b"\r\n\r\n" not in self.head:
                return True
            head, _, rest = self.head.partition(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                raise OSError(head.split(b"\r\n", 1)[0].decode(errors="replace"))
            length = next(h for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:"))
            self.left = int(length.split(b":")[1])
            count = len(rest)
        self.left -= count
        if self.options.mode != "put":
            self.moved += count
        if self.left < 0:
            raise OSError("the response is longer than it said")
        if self.left == 0:
            self.latencies.append(time.perf_counter() - self.started)
            if not self.more(len(self.latencies)):
                return False
            self.begin()
        return True


def load(options: argparse.Namespace) -> dict[str, object]:
    """Move bodies for the given time (or, slow, one each), and say how it went."""
    start = time.perf_counter()
    slow = options.mode == "slow"
    transfers = [
        Transfer(
            options, lambda done: not slow and (done < options.least or time.perf_counter() < start + options.seconds)
        )
        for _ in range(options.connections)
    ]
    selector = selectors.DefaultSelector()
    for transfer in transfers:
        selector.register(transfer.connection, transfer.interest, transfer)
    buffer, zeros = memoryview(bytearray(CHUNK)), memoryview(bytes(CHUNK))
    errors: list[str] = []
    stall = slow
    window: tuple[float, int] | None = None  # what was moved while every connection was busy, and how long that took
    while selector.get_map():
        ready = selector.select(timeout=options.patience)
        if not ready:
            errors.append(f"nothing moved for {options.patience} s")
            break
        for key, events in ready:
            transfer = key.data
            try:
                if events & selectors.EVENT_WRITE:
                    transfer.write(zeros)
                alive = not events & selectors.EVENT_READ or transfer.read(buffer)
            except OSError as error:
                errors.append(str(error))
                alive = False
            if not alive:
                selector.unregister(transfer.connection)
            elif transfer.interest != key.events:
                selector.modify(transfer.connection, transfer.interest, transfer)
        if window is None and not slow and time.perf_counter() >= start + options.seconds:
            window = time.perf_counter() - start, sum(transfer.moved for transfer in transfers)
        if stall and all(transfer.moved > 0 for transfer in transfers):
            stall = False  # every response has begun: now nobody reads, and the servers go on sending
            time.sleep(options.seconds)
    elapsed = time.perf_counter() - start - (options.seconds if slow else 0)
    moved = sum(transfer.moved for transfer in transfers)
    return {
        "bytes": moved,
        "window_seconds": window[0] if window else elapsed,
        "window_bytes": window[1] if window else moved,
        "requests": sum(len(transfer.latencies) for transfer in transfers),
        "seconds": elapsed,
        "latencies_us": sorted(round(1e6 * value, 1) for transfer in transfers for value in transfer.latencies),
        "errors": errors,
    }


def main(arguments: list[str]) -> None:
    """Entry point; see the module."""
    parser = argparse.ArgumentParser(prog="bodies")
    modes = parser.add_subparsers(dest="mode", required=True)
    modes.add_parser("sink").add_argument("port", type=int, nargs="?", default=int(os.environ.get("PORT", "9003")))
    for mode in ("get", "put", "slow"):
        sub = modes.add_parser(mode)
        sub.add_argument("target")
        sub.add_argument("path")
        sub.add_argument("--host", default="web")
        sub.add_argument("--connections", type=int, default=1)
        sub.add_argument("--seconds", type=float, default=3.0)
        sub.add_argument("--size", type=int, default=64 << 20, help="bytes of a body that is put")
        sub.add_argument("--least", type=int, default=1, help="requests of each connection, however long they take")
        sub.add_argument("--patience", type=float, default=30.0)
    options = parser.parse_args(arguments)
    if options.mode == "sink":
        sink(options.port)
    address, _, port = options.target.rpartition(":")
    options.target = (address.strip("[]"), int(port))
    print(json.dumps(load(options)))


if __name__ == "__main__":
    main(sys.argv[1:])
