"""A little node for the traps of lending wires: endpoints that do what a test says, and clients byte by byte."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nodeagent.abi.numbers import Counter, Reason
from nodeagent.home.control import Control, packed, tuple_key
from nodeagent.node.netns import inside
from nodeagent.node.programs import CONTROL
from tests.support.dialer import Dialer
from tests.support.keepalive_client import read_response
from tests.support.little_node import SERVICE_PORT, VIP4, LittleNode, Pod


@dataclass
class Asked:
    """A request as the endpoint got it. port: the wire, by the client's end; number: of its requests on this wire."""

    sock: socket.socket
    port: int
    number: int
    method: str
    path: str
    body: bytes

    def send(self, *parts: bytes, pause: float = 0.0) -> None:
        """Sends each part at once, in a packet of its own if it fits one."""
        for i, part in enumerate(parts):
            if i and pause:
                time.sleep(pause)
            self.sock.sendall(part)

    def answer(self, body: bytes, status: str = "200 OK") -> None:
        """A response with a length, and the body unless the request was HEAD."""
        self.send(head_of(len(body), status) + (b"" if self.method == "HEAD" else body))


Script = Callable[["Scripted", Asked], None]


def head_of(length: int, status: str = "200 OK") -> bytes:
    """A response head."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n".encode()


def content(size: int, seed: int = 7) -> bytes:
    """Bytes in which every misplaced one shows."""
    return random.Random(seed).randbytes(size)


def told(name: str, asked: Asked) -> bytes:
    """What an endpoint answers unless told otherwise: who it is and what it got."""
    return f"{name} {asked.path} {len(asked.body)} {hashlib.sha256(asked.body).hexdigest()}".encode()


def expected(name: str, path: str, body: bytes = b"") -> str:
    """The same, from the client's side."""
    return f"{name} {path} {len(body)} {hashlib.sha256(body).hexdigest()}"


class Scripted:
    """A server in a pod, a thread per connection. A script may close the socket; it answers a request otherwise."""

    def __init__(self, name: str, pod: Pod, port: int, script: Script | None = None, *, family: int = 4) -> None:
        self.name, self.port = name, port
        self.script = script
        self.served: list[tuple[int, str]] = []
        self.ends: list[tuple[str, int, float]] = []
        self.live: dict[int, socket.socket] = {}
        with inside(Path("/run/netns") / pod.ns):
            self._listener = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((pod.ip4 if family == 4 else pod.ip6, port))
        self._listener.listen(512)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, peer = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            self.live[peer[1]] = sock
            threading.Thread(target=self._serve, args=(sock, peer[1]), daemon=True).start()

    def _serve(self, sock: socket.socket, port: int) -> None:
        end, number = "eof", 0
        try:
            with sock.makefile("rb") as stream:
                while line := stream.readline():
                    method, path, _ = line.decode("latin-1").split(" ", 2)
                    length = 0
                    while (text := stream.readline()) not in (b"\r\n", b""):
                        name, _, value = text.partition(b":")
                        if name.lower() == b"content-length":
                            length = int(value)
                    asked = Asked(sock, port, number, method, path, stream.read(length))
                    self.served.append((port, path))
                    number += 1
                    if self.script is None:
                        asked.answer(told(self.name, asked))
                    else:
                        self.script(self, asked)
        except ConnectionResetError:
            end = "reset"
        except OSError as error:
            end = f"error {error}"
        except ValueError as error:
            end = f"not HTTP: {error}"
        self.ends.append((end, port, time.monotonic()))
        self.live.pop(port, None)
        sock.close()

    def reset(self, port: int) -> None:
        """Resets one connection."""
        sock = self.live[port]
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.shutdown(socket.SHUT_RD)  # wakes the connection's thread, which closes it

    def finish(self, port: int) -> None:
        """Closes one connection, as for idleness."""
        self.live[port].shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends the server and all its connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self.live.values()):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Talk:
    """One client connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = sock.makefile("rb")

    def send(self, data: bytes) -> None:
        """One send."""
        self.sock.sendall(data)

    def read(self, method: str = "GET") -> str:
        """The body of the next response; the status in front of it unless that is 200."""
        answer: dict[str, Any] = read_response(self.stream, method)
        if "error" in answer:
            return str(answer["error"])
        body = str(answer["body"])
        return body if answer["status"] == 200 else f"{answer['status']} {body}".strip()

    def ask(self, host: str, path: str = "/", body: bytes = b"", method: str = "") -> str:
        """A request and its response."""
        self.send(request(host, path, body, method))
        return self.read(method or "GET")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes it as an application would."""
        self.stream.close()
        self.sock.close()

    def abort(self) -> None:
        """Resets it."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()


def request(host: str, path: str = "/", body: bytes = b"", method: str = "") -> bytes:
    """A request's bytes: POST if there is a body."""
    method = method or ("POST" if body else "GET")
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{length}\r\n".encode() + body


@dataclass
class Counts:
    """Counters since a moment."""

    node: LittleNode
    first: dict[Counter, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.first = {c: self.node.counter(c) for c in Counter if c != Counter.LAST}

    def __getitem__(self, counter: Counter) -> int:
        return self.node.counter(counter) - self.first[counter]

    def __str__(self) -> str:
        return ", ".join(f"{c.name} {self[c]}" for c in self.first if self[c])


class Traps:
    """A node with one client and endpoints that tests add. Use as a context manager."""

    def __init__(self, root: Path, home_arguments: tuple[str, ...] = ()) -> None:
        self.node = LittleNode(root, home_arguments)
        self.dialers: dict[str, Dialer] = {}
        self.servers: list[Scripted] = []
        self._number = 0
        self._workloads = 0

    def __enter__(self) -> Self:
        self.node.__enter__()
        try:
            self.node.service()
            self.client = self.workload("client", 11)
            self.a, self.b = self.node.pod("a", 12), self.node.pod("b", 13)
            self.node.start_home()
            self.node.route("nowhere", 1000, reason=Reason.ROUTE_REWRITE)
            self.control = Control(self.node.loaded.programs[CONTROL])
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes all."""
        for server in self.servers:
            server.close()
        for dialer in self.dialers.values():
            dialer.close()
        self.node.close()

    def workload(self, name: str, host: int) -> Pod:
        """Another enrolled pod."""
        pod = self.node.pod(name, host)
        self._workloads += 1
        self.node.enroll(pod, self._workloads)
        self.dialers[name] = Dialer(self.node, pod)
        return pod

    def serve(self, name: str, pod: Pod, script: Script | None = None, *, family: int = 4) -> Scripted:
        """A new endpoint, alone in a cluster of its own, for the host of that name."""
        self._number += 1
        number = self._number
        server = Scripted(name, pod, 9000 + number, script, family=family)
        self.servers.append(server)
        self.node.cluster(number, self.node.endpoint(number, pod, family=family, port=server.port))
        self.node.route(name, number, (1, number))
        self.node.bump()
        return server

    def talk(self, pod: Pod | None = None, host: str = VIP4, *options: tuple[int, int, int]) -> Talk:
        """A client connection."""
        return Talk(self.dialers[(pod or self.client).name].dial(host, SERVICE_PORT, *options))

    def warm(self, *servers: Scripted, pod: Pod | None = None, host: str = VIP4, path: str = "/") -> None:
        """Until requests to each are decided in the kernel, and its stock is full again."""
        for server in servers:
            with self.talk(pod, host) as talk:
                for _ in range(100):
                    counts = Counts(self.node)
                    answer = talk.ask(server.name, path)
                    if counts[Counter.KERNEL]:
                        break
                    time.sleep(0.03)
                else:
                    raise AssertionError(f"{server.name}: {answer!r}, {self.node.punts()}, {counts}")
        time.sleep(0.1)

    def counts(self) -> Counts:
        """All counters from here."""
        return Counts(self.node)

    def wire(self, server: Scripted, pod: Pod | None = None, port: int = 0, *, server_pod: Pod) -> bytes:
        """Key of the wire that last served a request there (IPv4)."""
        local = packed((pod or self.client).ip4)
        return tuple_key(local, port or server.served[-1][0], packed(server_pod.ip4), server.port)

    def tcp(self, pod: Pod, *names: str) -> int:
        """Sum of the namespace's TCP counters of those names (`nstat`)."""
        command = ["ip", "netns", "exec", pod.ns, "nstat", "-asz", *names]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return sum(int(line.split()[1]) for line in output.splitlines() if line.split()[0] in names)


def sysctl(pod: Pod, name: str, value: str) -> None:
    """Sets one of the namespace's."""
    with inside(Path("/run/netns") / pod.ns):
        subprocess.run(["sysctl", "-qw", f"{name}={value}"], check=True, capture_output=True)


def digest(text: str) -> str:
    """Of a body as `Talk.read` gives it."""
    return hashlib.sha256(text.encode("latin-1")).hexdigest()


def eventually(condition: Callable[[], bool], seconds: float = 8.0) -> bool:
    """Whether it comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.03)
    return condition()
