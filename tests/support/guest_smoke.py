"""A taste of the data path in as little time as may be: `python -m tests.support.guest_smoke` on an emulated machine.

Without pytest, whose start alone takes such a machine ten seconds. What holds is asserted, and each step is timed.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nodeagent.abi.numbers import Counter
from nodeagent.bpf.kernel import LinuxKernel
from nodeagent.node import probes, programs
from tests.support.little_node import Pod
from tests.support.traps import Traps, content, digest, expected, told

TOOK: dict[str, float] = {}
BODY = content(100_000, 5)
REQUESTS = 6


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Keeps how long the block took."""
    begin = time.monotonic()
    yield
    TOOK[what] = round(time.monotonic() - begin, 1)


def checksums_in_software(pod: Pod) -> None:
    """From here on the pod sends finished checksums only, and a wrong one is dropped where it arrives."""
    command = ["ip", "netns", "exec", pod.ns, "ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off"]
    subprocess.run(command, check=True, capture_output=True)


def attached(traps: Traps) -> int:
    """Programs that are attached for the client, by links or filters."""
    attacher = traps.node.attacher
    interfaces = sum(slot.place != "cgroup" for slot in programs.SLOTS)
    links = len(list(traps.node.paths.links_of("default/client").iterdir()))
    assert attacher.tcx is not None
    return links + (0 if attacher.tcx else interfaces)


def routed(traps: Traps) -> dict[str, Any]:
    """Requests of one connection to two servers in turn, each by wire, with bodies both ways; what was counted."""
    servers = [traps.serve(name, pod, answer) for name, pod in (("one", traps.a), ("two", traps.b))]
    for pod in (traps.client, traps.a, traps.b):
        checksums_in_software(pod)
    pods = (traps.client, traps.a, traps.b)
    traps.warm(*servers)
    wrong = sum(traps.tcp(pod, "TcpInCsumErrors") for pod in pods)
    counts = traps.counts()
    with traps.talk() as talk:
        for number in range(REQUESTS):
            name = ("one", "two")[number % 2]
            assert talk.ask(name, f"/{number}", b"x" * 3000) == expected(name, f"/{number}", b"x" * 3000)
        assert digest(talk.ask("one", "/down")) == digest(BODY.decode("latin-1"))
    by_kernel, switches = counts[Counter.KERNEL], counts[Counter.SWITCHES]
    assert by_kernel == REQUESTS + 1, str(counts)
    assert switches >= REQUESTS, str(counts)
    now = sum(traps.tcp(pod, "TcpInCsumErrors") for pod in pods)
    assert now == wrong, f"{now - wrong} wrong checksums"
    return {"by_kernel": by_kernel, "switches": switches}


def answer(server: Any, asked: Any) -> None:
    """`/down`: a body; else what arrived."""
    asked.answer(BODY if asked.path == "/down" else told(server.name, asked))


def main() -> None:
    """Says what held as one line of JSON; an AssertionError what did not."""
    with timed("features"):
        report = probes.survey(LinuxKernel(), load=False)
        report.require(but=("programs",))
    with tempfile.TemporaryDirectory() as directory:
        with timed("set-up"):
            traps = Traps(Path(directory))
            traps.__enter__()
        try:
            found = attached(traps)
            assert found == len(programs.SLOTS), found
            with timed("requests"):
                counted = routed(traps)
        finally:
            traps.close()
    told_all = {
        "attachment": report.attachment, "kernel_context": report.state_of("kernel-context"), "attached": found,
        **counted, "seconds": TOOK,
    }  # fmt: skip
    print(json.dumps(told_all), flush=True)


if __name__ == "__main__":
    main()
