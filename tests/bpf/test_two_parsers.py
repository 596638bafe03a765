"""Two parsers behind one proxy: whatever a client sends, every server reads what the client meant, or nothing.

The corpus is tests/support/smuggling.py, the oracle tests/support/framing.py; servers are h11, Node's llhttp (as it is,
and with its lenient flags) and nginx; all attacks share one workload's wires with bystanders, whose answers must be
their own.
"""

from __future__ import annotations

import itertools
import random
import socket
import time
from collections import Counter as Counted
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from nodeagent.abi.numbers import Counter
from tests.support.framing import End
from tests.support.parsers import Parsers
from tests.support.smuggler import Attack, Smuggler
from tests.support.smuggling import attacks, mutated, request
from tests.support.traps import Asked, Scripted, Traps, expected, told

pytestmark = [pytest.mark.needs("root", "bpf", "core", "netns", "cgroup2", "nginx"), pytest.mark.timeout(120)]


@dataclass
class Ground:
    """The node and its servers."""

    traps: Traps
    parsers: Parsers
    one: Smuggler  # for all tests: what a server still writes down of one is judged in the next

    def smuggler(self, seed: int) -> Smuggler:
        self.one.chance = random.Random(seed)
        return self.one

    def play(self, smuggler: Smuggler, made: list[tuple[Attack, bytes]]) -> Counted[End]:
        """Makes the attacks and judges all that was seen; how their bytes ended."""
        counts, honest, cases = self.traps.counts(), smuggler.honest, len(smuggler.cases)
        smuggler.run(made)
        smuggler.judge(self.parsers.events())
        assert smuggler.honest - honest == 2 * len(made)
        assert counts[Counter.KERNEL] > len(made), str(counts)  # bystanders are on wires, as a rule
        return Counted(case.meant.end for case in smuggler.cases[cases:])

    def made(self, smuggler: Smuggler, name: str, server: str, cuts: int = 0, length: int = 0) -> tuple[Attack, bytes]:
        """An attack of the corpus, cut at that many places, or only so much of it."""
        mark, chance = smuggler.mark(), smuggler.chance
        data = attacks(server.encode(), mark)[name]
        data = data[:length] if length else data
        places = tuple(chance.randrange(1, len(data)) for _ in range(cuts))
        ending = chance.choice(("close", "half", "reset"))
        return Attack(name, server, data, places, ending, chance.random() < 0.4), mark


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with Traps(tmp_path_factory.mktemp("parsers")) as traps:
        parsers = Parsers(traps.node, traps.a, tmp_path_factory.mktemp("servers"))
        for name in parsers.ports:
            for _ in range(60):
                counts = traps.counts()
                with traps.talk() as talk:
                    talk.ask(name)
                if counts[Counter.KERNEL]:
                    break
                time.sleep(0.03)
        yield Ground(traps, parsers, Smuggler(traps.dialers["client"], parsers))


def test_the_corpus(ground: Ground) -> None:
    """Each attack whole to each server, and cut anywhere to one; behind an honest request, or first of all."""
    smuggler, made = ground.smuggler(1), []
    servers = list(ground.parsers.ports)
    for number, name in enumerate(attacks(b"a", b"/a")):
        made += [ground.made(smuggler, name, server) for server in servers]
        made.append(ground.made(smuggler, name, servers[number % len(servers)], cuts=3))
    ends = ground.play(smuggler, made)
    assert ends[End.DOUBT] > 400
    assert ends[End.CLEAN] > 50


def test_a_cut_at_every_byte(ground: Ground) -> None:
    """The same bytes mean the same, wherever a packet ends."""
    smuggler, made = ground.smuggler(2), []
    servers = itertools.cycle(ground.parsers.ports)
    for name in ("honest, a body that looks like a request", "honest, chunks that look like a request", "CL.TE"):
        for cut in range(1, len(attacks(b"h11", b"/" + b"m" * 8)[name])):
            attack, mark = ground.made(smuggler, name, next(servers))
            made.append((replace(attack, cuts=(cut,)), mark))
    ground.play(smuggler, made)


def test_an_end_at_every_byte(ground: Ground) -> None:
    """Half a request, and the client goes: what the next client on that wire sends is not taken for the rest."""
    smuggler, made = ground.smuggler(3), []
    servers = itertools.cycle(ground.parsers.ports)
    for name in ("CL.0", "early answer", "early answer, chunks"):
        for length in range(1, len(attacks(b"h11", b"/" + b"m" * 8)[name])):
            made.append(ground.made(smuggler, name, next(servers), length=length))
    ends = ground.play(smuggler, made)
    assert ends[End.SHORT] > 300


def test_a_refused_head_in_pieces_ends_the_connection(ground: Ground) -> None:
    """Home had begun to wait for the rest of the head; its FIN came with the end of that wait, a minute later."""
    with ground.traps.talk() as talk:
        talk.send(b"GET / HTTP/1.1\r\nHost: h1")
        time.sleep(0.05)
        talk.send(b"1\r\nHost: other\r\n\r\n")
        talk.sock.settimeout(5)
        assert talk.read().startswith("501 ")
        assert talk.stream.read() == b""


def test_nothing_is_served_behind_a_last_request(ground: Ground) -> None:
    """A request said `Connection: close`; one behind it found the wire spent, and was served on another."""

    def script(server: Scripted, asked: Asked) -> None:
        if asked.path != "/last":
            asked.answer(told(server.name, asked))
            return
        asked.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
        time.sleep(0.3)
        asked.sock.shutdown(socket.SHUT_RDWR)

    traps = ground.traps
    polite = traps.serve("polite", traps.a, script)
    other = traps.serve("other", traps.b)
    traps.warm(polite, other)
    with traps.talk() as talk:
        assert talk.ask("other") == expected("other", "/")
        counts = traps.counts()
        talk.send(request(b"polite", b"/last", b"Connection: close"))
        assert talk.read() == "ok"
        talk.send(request(b"other", b"/behind"))
        talk.sock.settimeout(5)
        assert talk.stream.read() == b""
        assert counts[Counter.KERNEL] == 1, str(counts)
    assert not any(path == "/behind" for _, path in other.served)


@pytest.mark.needs("node")
def test_llhttp_is_one_of_the_parsers(ground: Ground) -> None:
    """Without Node the tests above go on with two servers; this one says so, by its skip."""
    assert list(ground.parsers.ports) == ["h11", "llhttp", "lenient", "nginx"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(20))
def test_random_attacks(ground: Ground, seed: int) -> None:
    """Parts of the corpus behind each other, changed at random, cut at random; the tape is the seed."""
    smuggler, made = ground.smuggler(1000 + seed), []
    servers, chance = list(ground.parsers.ports), smuggler.chance
    for _ in range(2000):
        mark, server = smuggler.mark(), chance.choice(servers)
        data = mutated(chance, server.encode(), mark)
        cuts = tuple(chance.randrange(len(data)) for _ in range(chance.choice((0, 0, 1, 4))))
        ending = chance.choice(("close", "half", "reset"))
        made.append((Attack(f"seed {seed}", server, data, cuts, ending, chance.random() < 0.4), mark))
    ground.play(smuggler, made)
