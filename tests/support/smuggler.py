"""Sends attacks through a little node, and judges what servers and clients saw of them.

A desync is any of these: a server saw a request that its client did not mean, or not as it was meant, or out of order;
a server met bytes that it could not read; a client got an answer that is not its request's, or that nobody asked for.
"""

from __future__ import annotations

import itertools
import random
import re
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.support.dialer import Dialer
from tests.support.framing import End, Meaning, Request, meaning
from tests.support.little_node import SERVICE_PORT, VIP4
from tests.support.parser_server import content, seen
from tests.support.parsers import Event, Parsers
from tests.support.smuggling import request

_PATIENCE = 4.0
_QUIET = 0.01  # behind the last answer: is there one that nobody asked for?
_RESET = struct.pack("ii", 1, 0)
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n")


@dataclass(frozen=True, slots=True)
class Attack:
    """One connection's bytes.

    cuts: where they are cut into sends; ending: what the client does when nothing more comes.
    """

    name: str
    server: str
    data: bytes
    cuts: tuple[int, ...] = ()
    ending: str = "close"
    fresh: bool = False  # nothing was asked on the connection before

    def __str__(self) -> str:
        how = f"cut at {self.cuts}, {self.ending}, fresh={self.fresh}"
        return f"{self.name!r} to {self.server}, {how}: {self.data[:900]!r}"


@dataclass(frozen=True, slots=True)
class Answer:
    """A final response as its client read it. whole: not cut short."""

    status: int
    seen: str
    reason: str
    closes: bool
    body: bytes
    whole: bool


class Desync(AssertionError):
    """What must not be."""


def answers(data: bytes, methods: Iterable[str]) -> tuple[list[Answer], bytes]:
    """Reads the responses to requests of these methods (GET behind them); also what is left."""
    found: list[Answer] = []
    wanted = iter(methods)
    while True:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return found, data
        status = _STATUS.match(data)
        if status is None:
            raise Desync(f"{data[:200]!r} where a response is due")
        parted = [line.partition(b":") for line in data[status.end() : end + 2].split(b"\r\n")]
        lines = {name.strip().lower(): value.strip() for name, _, value in parted}
        rest = data[end + 4 :]
        code = int(status[1])
        if code < 200:
            data = rest
            continue
        method = next(wanted, "GET")
        body, whole = b"", True
        if method == "HEAD" or code in (204, 304):
            pass
        elif lines.get(b"transfer-encoding") == b"chunked":
            while True:
                size, _, more = rest.partition(b"\r\n")
                if not _ or len(more) < int(size, 16) + 2:
                    return found, data
                body, rest = body + more[: int(size, 16)], more[int(size, 16) + 2 :]
                if int(size, 16) == 0:
                    break
        else:
            length = int(lines[b"content-length"])
            body, rest = rest[:length], rest[length:]
            whole = len(body) == length
        if not whole:
            return found, data
        reason = lines.get(b"x-underpass-reason", b"").decode()
        closes = lines.get(b"connection", b"").lower() == b"close"
        found.append(Answer(code, lines.get(b"x-seen", b"").decode("latin-1"), reason, closes, body, whole))
        data = rest


class Connection:
    """One client connection, and all that came over it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.data, self.ended = sock, b"", False
        self.sent = b""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes, cuts: tuple[int, ...] = ()) -> None:
        """Sends in pieces; a peer that has closed meanwhile is no surprise."""
        self.sent += data
        edges = [0, *(cut for cut in sorted(set(cuts)) if 0 < cut < len(data)), len(data)]
        try:
            for n, (a, b) in enumerate(itertools.pairwise(edges)):
                if n:
                    time.sleep(0.0005)
                self.sock.sendall(data[a:b])
        except OSError:
            pass

    def read(self, number: int, patience: float = _PATIENCE) -> list[Answer]:
        """Until that many answers are there, or the end, or patience is over."""
        methods = [r.method for r in meaning(self.sent).requests]
        end = time.monotonic() + patience
        while True:
            found, _ = answers(self.data, methods)
            if self.ended or len(found) >= number or time.monotonic() > end:
                return found
            self._more(max(0.001, end - time.monotonic()))

    def _more(self, seconds: float) -> None:
        self.sock.settimeout(seconds)
        try:
            data = self.sock.recv(1 << 16)
        except TimeoutError:
            return
        except OSError:
            data = b""
        self.ended = self.ended or not data
        self.data += data

    def close(self, ending: str = "close") -> None:
        """Ends it: close, reset, or half: the sending half first."""
        try:
            if ending == "half":
                self.sock.shutdown(socket.SHUT_WR)
                while not self.ended:
                    before = len(self.data)
                    self._more(1.0)
                    if len(self.data) == before and not self.ended:
                        break
            elif ending == "reset":
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except OSError:
            pass
        self.sock.close()


@dataclass(slots=True)
class Case:
    """An attack that was made, and what it must come to."""

    attack: Attack
    mark: str
    sent: bytes
    meant: Meaning
    answers: list[Answer] = field(default_factory=list)


class Smuggler:
    """Makes attacks from one workload, several at a time; beside each a bystander goes on with honest requests."""

    def __init__(self, dialer: Dialer, parsers: Parsers) -> None:
        self.dialer, self.parsers = dialer, parsers
        self.chance = random.Random()
        self.cases: list[Case] = []
        self.honest = 0
        self._dialling = threading.Lock()
        self._bystanders: dict[int, Connection] = {}
        self._marks: set[str] = set()
        self._tried = 0

    def mark(self) -> bytes:
        """What all targets of one attack begin with: of letters, so that no changed digit makes another's of it."""
        while True:
            text = "/" + "".join(self.chance.choice("abcdefghijklmnop") for _ in range(8))
            if text not in self._marks:
                self._marks.add(text)
                return text.encode()

    def dial(self) -> Connection:
        """A new connection to the service."""
        with self._dialling:
            return Connection(self.dialer.dial(VIP4, SERVICE_PORT))

    def run(self, attacks: Iterable[tuple[Attack, bytes]], workers: int = 4) -> None:
        """All attacks, with their marks; the first desync that a client sees is raised."""
        with ThreadPoolExecutor(workers) as pool:
            waiting = [pool.submit(self._one, attack, mark) for attack, mark in attacks]
            try:
                for done in waiting:
                    done.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        for connection in self._bystanders.values():
            connection.close()
        self._bystanders.clear()

    def _one(self, attack: Attack, mark: bytes) -> None:
        try:
            self._attack(attack, mark)
            names = list(self.parsers.ports)
            for server in (attack.server, names[len(attack.data) % len(names)]):
                self._honest(server)
        except Desync as wrong:
            raise Desync(f"{wrong}; after {attack}") from wrong

    # ---- one attack ----

    def _attack(self, attack: Attack, mark: bytes) -> None:
        connection, host = self.dial(), attack.server.encode()
        before = 0
        if not attack.fresh:
            connection.send(request(host, mark + b"/warm"))
            before = len(connection.read(1))
            if before != 1:
                raise Desync(f"no answer to the first request, but {connection.data!r}")
        connection.send(attack.data, attack.cuts)
        meant = meaning(connection.sent)
        whole = [r for r in meant.requests if r.whole]
        doubt = meant.end is End.DOUBT
        case = Case(attack, mark.decode(), connection.sent, meant)
        self.cases.append(case)
        ended = self._follow(connection, case, len(whole) + doubt)
        if meant.end is End.SHORT and not ended:
            connection.read(len(whole) + 1, 0.005)
        elif meant.end is End.CLEAN and not ended:
            # the connection must still be in step
            connection.send(request(host, mark + b"/after"))
            case.sent, case.meant = connection.sent, meaning(connection.sent)
            ended = self._follow(connection, case, len(whole) + 1)
        if not ended:
            connection.read(1 << 20, _QUIET)
        connection.close(attack.ending)
        case.answers = self._judged(connection, case)

    def _follow(self, connection: Connection, case: Case, number: int) -> bool:
        """Reads that many answers; whether the connection ends before or with them."""
        found = connection.read(number)
        refused = any(answer.closes for answer in found)
        if refused:
            connection.read(1 << 20, 1.0)
            if not connection.ended:
                raise Desync("an answer said that the connection ends, and it does not")
        elif len(found) < number and not connection.ended:
            raise Desync(f"{len(found)} of {number} answers, then nothing: {connection.data!r}")
        return refused or connection.ended

    def _judged(self, connection: Connection, case: Case) -> list[Answer]:
        """Each answer is that of the request in its place; none is left over."""
        found, rest = answers(connection.data, [r.method for r in case.meant.requests])
        requests = case.meant.requests
        for number, answer in enumerate(found):
            asked = requests[number] if number < len(requests) else None
            self._judge_answer(answer, asked, number, case)
        if rest and not connection.ended and case.attack.ending != "reset":
            raise Desync(f"{rest!r} behind the last answer")
        return found

    def _judge_answer(self, answer: Answer, asked: Request | None, number: int, case: Case) -> None:
        if answer.status != 200:
            served_refusal = asked is not None and asked.host not in self.parsers.ports  # nobody: understood
            if asked is not None and (asked.method, answer.status) == ("TRACE", 405):
                return  # nginx
            if case.meant.end is End.SHORT and answer.status == 400 and number >= len(case.meant.requests) - 1:
                return  # what a server says to the end of half a body, even if it has answered before
            if not answer.reason:
                raise Desync(f"answer {number} is a server's own {answer.status}: it got what it cannot read")
            if asked is not None and not served_refusal and not answer.closes:
                raise Desync(f"answer {number} refuses {asked} ({answer.reason}), and the connection goes on")
            return
        if asked is None:
            raise Desync(f"answer {number} ({answer}) was not asked for")
        said = seen(asked.method, asked.target, len(asked.body))
        if answer.seen != said:
            raise Desync(f"answer {number} is for {answer.seen!r}, not for {said!r}")
        if answer.body and answer.body not in (content(said), b"early\n"):
            raise Desync(f"answer {number} to {said!r} has the body {answer.body!r}")

    # ---- bystanders ----

    def _honest(self, server: str) -> None:
        """An honest request of somebody else, over whatever wire it gets."""
        me = threading.get_ident()
        self._tried += 1
        target = f"/honest-{me}-{self._tried}"
        for fresh in (False, True):
            connection = self._bystanders.get(me)
            if connection is None or fresh:
                connection = self._bystanders[me] = self.dial()
            connection.send(request(server.encode(), target.encode()))
            found = connection.read(len(meaning(connection.sent).requests))
            if found and found[-1].seen == f"GET {target} 0" and found[-1].body == content(found[-1].seen):
                self.honest += 1
                connection.sent = connection.data = b""
                return
            raise Desync(f"a bystander asked {server} for {target} and got {connection.data!r}")

    # ---- what the servers saw ----

    def judge(self, events: list[Event]) -> None:
        """Holds what the servers wrote down against what was meant."""
        by_mark = {case.mark: case for case in self.cases}
        odd = {r.target: case for case in self.cases for r in case.meant.requests if r.target[:9] != case.mark}
        served: dict[str, list[Event]] = defaultdict(list)
        for event in events:
            if event.what == "bad":
                near = [e.target for e in events if (e.server, e.wire) == (event.server, event.wire)][-3:]
                raise Desync(f"{event.server} got bytes that it cannot read: {event.error}; on that wire {near}")
            if event.target.startswith("/honest-") or event.target == "/":
                if event.body or event.method not in ("GET", "HEAD") or (event.what == "whole" and event.trailers):
                    raise Desync(f"an honest request was changed: {event}")
                continue
            case = by_mark.get(event.target[:9]) or odd.get(event.target)
            if case is None:
                raise Desync(f"{event.server} saw {event}, which nobody has sent")
            served[case.mark].append(event)
        for mark, found in served.items():
            self._judge_served(by_mark[mark], found)

    def _judge_served(self, case: Case, events: list[Event]) -> None:
        heads = [event for event in events if event.what == "head"]
        whole = [event for event in events if event.what == "whole"]
        # what is answered early may be read to its end when its client has long asked for the next, on another wire
        late = [event for event in whole if "/early" in event.target]
        whole = [event for event in whole if "/early" not in event.target]
        for event in late:
            self._prefix(case, [event], [r for r in case.meant.requests if r.whole], bodies=True)
        self._prefix(case, heads, list(case.meant.requests), bodies=False)
        self._prefix(case, whole, [r for r in case.meant.requests if r.whole], bodies=True)

    def _prefix(self, case: Case, events: list[Event], requests: list[Request], *, bodies: bool) -> None:
        """In each server's order these are some of the requests, in theirs; nothing else, nothing changed."""
        by_server: dict[str, list[Event]] = defaultdict(list)
        for event in events:
            by_server[event.server].append(event)
        for server, found in by_server.items():
            mine = [r for r in requests if r.host == server]
            if len(found) > len(mine):
                raise Desync(f"{server} saw {found[len(mine) :]} beyond what was meant by {case.attack}")
            at = 0
            for event in found:
                while at < len(mine) and not _same(event, mine[at], bodies):
                    at += 1
                if at == len(mine):
                    raise Desync(f"{server} saw {event}, which is not what was meant by {case.attack}: {mine}")
                at += 1


def _same(event: Event, asked: Request, bodies: bool) -> bool:
    if (event.method, event.target) != (asked.method, asked.target) or (bodies and event.body != asked.body):
        return False
    if event.trailers:
        return False
    if event.server == "nginx":
        return dict(event.lines)["host"] == asked.host
    # h11 writes codings in lower case
    return [(n, v.strip().replace("Chunked", "chunked")) for n, v in event.lines] == [
        (n, v.replace("Chunked", "chunked")) for n, v in asked.lines
    ]
