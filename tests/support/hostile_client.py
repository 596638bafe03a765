"""Clients that behave badly, run inside a workload: `python hostile_client.py MODE HOST PORT ROUNDS SEED`.

mutate: heads with bytes changed, removed and inserted; nothing may be left unanswered and open.
pipeline: several requests in one go, cut anywhere, ended by a half-close or a reset; each answer that comes must be the
right one, in order. Prints one line for each round that went wrong, then "rounds N".
"""

from __future__ import annotations

import json
import random
import socket
import struct
import sys
import time

GOOD = [
    b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: b\r\nContent-Length: 5\r\n\r\nhello",
]


def mutated(chance: random.Random) -> bytes:
    data = bytearray(chance.choice(GOOD) * chance.randint(1, 3))
    for _ in range(chance.randint(1, 6)):
        at, kind = chance.randrange(len(data)), chance.random()
        if kind < 0.4:
            data[at] = chance.randrange(256)
        elif kind < 0.6:
            del data[at : at + chance.randint(1, 9)]
            data = data or bytearray(b"G")
        elif kind < 0.8:
            data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 40)))
        else:
            data[at:at] = b"\r\n"
    return bytes(data)


def send_cut(sock: socket.socket, data: bytes, chance: random.Random) -> None:
    at = 0
    while at < len(data):
        step = chance.choice([1, 7, 40, 200, 5000])
        sock.sendall(data[at : at + step])
        at += step
        if chance.random() < 0.1:
            time.sleep(0.001)


def mutate(sock: socket.socket, chance: random.Random) -> str:
    sock.settimeout(3)
    try:
        send_cut(sock, mutated(chance), chance)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return "silent"
    return ""


def pipeline(sock: socket.socket, chance: random.Random) -> str:
    sock.settimeout(5)
    wanted, data = [], b""
    for n in range(chance.randint(1, 5)):
        host, body = (
            chance.choice("ab"),
            bytes(chance.choice(b"xyz") for _ in range(chance.choice([0, 0, 1, 50, 4000]))),
        )
        method = b"POST" if body else b"GET"
        length = b"Content-Length: %d\r\n" % len(body) if body else b""
        data += b"%s /%d HTTP/1.1\r\nHost: %s\r\n%s\r\n%s" % (method, n, host.encode(), length, body)
        wanted.append((host, f"/{n}", len(body)))
    ending = chance.choice(["close", "half", "reset", "reset-late"])
    try:
        send_cut(sock, data, chance)
        if ending == "half":
            sock.shutdown(socket.SHUT_WR)
        elif ending == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return ""
        stream = sock.makefile("rb")
        for host, path, size in wanted:
            line = stream.readline()
            if not line.startswith(b"HTTP/1.1 200"):
                return f"{line!r} for {host}{path} ({ending})"
            headers = {}
            while (text := stream.readline()) not in (b"\r\n", b""):
                name, _, value = text.partition(b":")
                headers[name.lower()] = value.strip()
            answer = json.loads(stream.read(int(headers[b"content-length"])))
            if (answer["workload"], answer["path"], answer["body_bytes"]) != (host, path, size):
                return f"{answer} for {host}{path} with {size} bytes ({ending})"
            if ending == "reset-late" and chance.random() < 0.5:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return ""
    except (OSError, ValueError) as error:
        return f"{error!r} ({ending}, {wanted})"
    return ""


def main() -> None:
    mode, host, port, rounds, seed = sys.argv[1:]
    play = {"mutate": mutate, "pipeline": pipeline}[mode]
    for n in range(int(rounds)):
        chance = random.Random(int(seed) * 100_000 + n)
        with socket.create_connection((host, int(port)), 5) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            local = sock.getsockname()
            wrong = play(sock, chance)
        if wrong:
            print(n, local, wrong, flush=True)
    print("rounds", rounds)


if __name__ == "__main__":
    main()
