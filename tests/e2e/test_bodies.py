"""Bytes under strain: a lossy link, readers and servers that stop, and what that costs the kernel."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Self

import pytest

from tests.support.tiers import repository
from underpass.lab import counters
from underpass.lab.teardown import leftovers

NAME = f"y{os.getpid()}"
SHOP = repository() / "samples" / "shop"
FILES = [str(SHOP / "shop.yaml"), str(SHOP / "destination-rules.yaml")]
REQUESTS = 10_000
STALLED_MIB = 1024
CLIENT = "tests.support.stall_client"


def lab(verb: str, *arguments: str, timeout: float = 120) -> str:
    argv = [sys.executable, "-m", "underpass.lab", verb, "--name", NAME, *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, cwd=repository(), check=False)
    assert done.returncode == 0, f"{argv}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def inside(workload: str, module: str, *arguments: str, timeout: float = 240) -> dict[str, object]:
    """Runs one of our clients in a workload; the JSON that it prints."""
    command = ["env", f"PYTHONPATH={repository()}", sys.executable, "-m", module, *arguments]
    out = lab("exec", workload, "--", *command, timeout=timeout)
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    subprocess.run(
        [sys.executable, "-m", "underpass.lab", "down", "--name", NAME],
        capture_output=True,
        cwd=repository(),
        check=False,
    )
    assert leftovers(NAME) == []


def up(*options: str) -> None:
    lab("up", *options, *FILES)


def place(**nodes: str) -> Sequence[str]:
    return [f"--place={name.replace('_', '-')}={node}" for name, node in nodes.items()]


@pytest.mark.timeout(300)
def test_every_byte_over_a_lossy_link() -> None:
    """1 % lost, 0.5 % doubled, 2 % late: 10,000 requests with bodies up to 1 MiB both ways, endpoints changing."""
    up("--nodes=2", "--loss=1", "--dup=0.5", "--late=2", *place(web="node-1", catalog_v1="node-2", catalog_v2="node-2"))
    before = counters.read([f"{NAME}-node-1"])
    report = inside("web", "tests.support.body_client", "catalog", "80", str(REQUESTS), "16", "7")
    seen, who = report["seen"], report["who"]
    assert isinstance(seen, dict) and isinstance(who, dict)
    assert {name: n for name, n in seen.items() if name.startswith("failed")} == {}, report
    assert seen["ok"] == REQUESTS
    assert seen["connections"] == 16  # none was lost on the way
    assert min(who["catalog-v1"], who["catalog-v2"]) > REQUESTS / 8
    now = counters.read([f"{NAME}-node-1"]).since(before)
    assert now.kernel > 0.95 * REQUESTS, now


class Memory:
    """What TCP sockets of the lab hold, in bytes: the median of the samples with more than 1 MiB.

    Who stops does so for the longer part of the time that bytes are on their way, so the median is what a stall costs.
    """

    def __init__(self) -> None:
        self._samples: list[int] = []
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._sample)

    def __enter__(self) -> Self:
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._sampler.join()

    def _sample(self) -> None:
        spaces = [line.split()[0] for line in _run("ip", "netns", "list").splitlines() if f".{NAME}" in line]
        while not self._over.wait(0.3):
            found = sum(
                int(number)
                for space in spaces
                for held in re.findall(
                    r"skmem:\(r(\d+),rb\d+,t(\d+),tb\d+,f(\d+),w(\d+)",
                    _run("nsenter", f"--net=/run/netns/{space}", "ss", "-tmnH"),
                )
                for number in held
            )
            self._samples.append(found)

    @property
    def held(self) -> float:
        """Bytes."""
        return statistics.median([sample for sample in self._samples if sample > 1 << 20] or [0])


def _run(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("mode", "mib"), [("read", STALLED_MIB), ("send", 64)])
def test_who_stops_costs_what_it_costs_without_a_mesh(mode: str, mib: int) -> None:
    """A reader that stops in 1 GiB, a server that stops reading: over a wire of the kernel's, and through home."""
    up()
    with Memory() as without:
        direct = inside("web", CLIENT, mode, _address("catalog-v1"), "8080", str(mib), "5")
    assert direct["right"]
    assert without.held > 1 << 20
    for first_requests in (0, 20):
        before = counters.read([f"{NAME}-node-1"])
        with Memory() as ours:
            mesh = inside("web", CLIENT, mode, "catalog", "80", str(mib), str(first_requests))
        assert mesh["right"], (mesh, direct)
        seen = counters.read([f"{NAME}-node-1"]).since(before)
        if first_requests:
            assert seen.kernel >= first_requests, seen
        assert ours.held <= without.held + (16 << 20), (ours.held, without.held, seen)
        if mode == "send":  # a sender that polls must sleep, not spin
            polls = mesh["polls"]
            assert isinstance(polls, int) and polls < 10_000


def _address(workload: str) -> str:
    found = json.loads(lab("status", "-o", "json"))
    for item in found["workloads"]:
        if str(item["name"]).startswith(workload):
            return str(item["ips"][0])
    raise AssertionError(f"no {workload} in {found}")
