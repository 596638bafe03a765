"""Schedules that the simulator (tests/laws/test_wire_simulator.py) found, on the real data path."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from nodeagent.abi.numbers import Counter
from tests.support.traps import Asked, Scripted, Traps, eventually, expected, request, told

pytestmark = [pytest.mark.needs("root", "bpf", "core", "netns", "cgroup2"), pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traps]:
    with Traps(tmp_path_factory.mktemp("simulated")) as made:
        yield made


def test_what_was_held_back_does_not_go_home_when_the_wire_is_taken_back(traps: Traps) -> None:
    """A packet was cut in front of a pipelined head, another was held back behind it; then the wire was reclaimed.

    The first packet that is sent now begins behind bytes that TCP takes for sent. At home they lay in wait for the
    bytes of some later request, in whose middle they would have turned up.
    """

    def script(server: Scripted, asked: Asked) -> None:
        time.sleep(0.05)
        asked.answer(told(server.name, asked))

    slow, quick = traps.serve("slow", traps.a, script), traps.serve("quick", traps.b)
    traps.warm(slow, quick)
    with traps.talk() as talk:
        assert talk.ask("slow") == expected("slow", "/")
        counts, body = traps.counts(), b"y" * 400
        first = request("slow", "/first", body)
        cut = len(first) - 100
        talk.send(first[:cut])
        talk.send(first[cut:] + request("quick", "/second"))
        talk.send(request("nowhere", "/third-has-a-long-path" + "x" * 100))
        assert talk.read() == expected("slow", "/first", body)
        assert counts[Counter.CUT] == 1, str(counts)
        assert counts[Counter.HELD] >= 1, str(counts)
        # when the client has acknowledged the response, and before it sends again what was cut off, after 200 ms
        wire = traps.wire(slow, server_pod=traps.a)
        assert eventually(lambda: traps.control.reclaim(wire), 0.15), str(counts)
        assert counts[Counter.KERNEL] == 1, str(counts)
        talk.send(request("quick", "/fourth"))
        assert talk.read() == expected("quick", "/second")
        assert talk.read().startswith("503 ")
        assert talk.read() == expected("quick", "/fourth")
        # and the connection is as good as new
        for n in range(4):
            for server in (slow, quick):
                assert talk.ask(server.name, f"/{n}") == expected(server.name, f"/{n}"), str(counts)
        assert talk.ask("nowhere").startswith("503 ")
