"""Istio's own Bookinfo, unedited, under the mesh: the kernel routes by each of its VirtualServices as Istio would."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import pytest

from tests.support.tiers import shared
from underpass.lab import counters, follow, lab
from underpass.lab.cli_files import read_file
from underpass.lab.demo import ProbeClient
from underpass.lab.model import Options

NAME = f"b{os.getpid()}"
BOOKINFO = shared() / "istio" / "bookinfo"
REQUESTS = 1000

EVERYBODY: dict[str, str] = {}
JASON = {"end-user": "jason"}

RULES = [
    ("virtual-service-all-v1.yaml", EVERYBODY, {"reviews-v1": 1.0}),
    ("virtual-service-reviews-50-v3.yaml", EVERYBODY, {"reviews-v1": 0.5, "reviews-v3": 0.5}),
    ("virtual-service-reviews-80-20.yaml", EVERYBODY, {"reviews-v1": 0.8, "reviews-v2": 0.2}),
    ("virtual-service-reviews-test-v2.yaml", JASON, {"reviews-v2": 1.0}),
    ("virtual-service-reviews-test-v2.yaml", EVERYBODY, {"reviews-v1": 1.0}),
    ("virtual-service-reviews-jason-v2-v3.yaml", JASON, {"reviews-v2": 1.0}),
    ("virtual-service-reviews-jason-v2-v3.yaml", EVERYBODY, {"reviews-v3": 1.0}),
]

pytestmark = pytest.mark.needs("shared")


@pytest.fixture(name="nodes", scope="module")
def _nodes() -> Iterator[list[str]]:
    files = [
        read_file(str(BOOKINFO / name)) for name in ("platform/bookinfo.yaml", "networking/destination-rule-all.yaml")
    ]
    _, state = lab.up(files, None, Options(NAME), lambda _line: None)
    yield state.nodes
    lab.down(NAME)


@pytest.mark.parametrize(("file", "headers", "shares"), RULES)
def test_istios_rules_unedited(nodes: list[str], file: str, headers: dict[str, str], shares: dict[str, float]) -> None:
    path = str(BOOKINFO / "networking" / file)
    applied = lab.apply(NAME, [read_file(path)], lambda _line: None)
    assert not follow.report_verdicts(applied.state, [path], lambda _line: None)
    assert follow.wait_applied(applied.state) == []
    client = ProbeClient(NAME, "productpage-v1", "reviews", 9080)
    try:
        # A fair draw leaves three sigma once in 370 times, twice in a row never: a split that is off is off again.
        fair = _round(nodes, client, headers, shares) or _round(nodes, client, headers, shares)
    finally:
        client.close()
    assert fair, shares


def _round(nodes: list[str], client: ProbeClient, headers: dict[str, str], shares: dict[str, float]) -> bool:
    """Asks REQUESTS times over one connection; whether the split lies within three sigma."""
    before = counters.read(nodes)
    report = client.run(run=REQUESTS, target="/reviews/0", headers=headers)
    seen = counters.read(nodes).since(before)
    assert report["errors"] == 0, report["why"]
    assert report["connections"] == 1
    assert set(report["workloads"]) == set(shares)
    assert seen.kernel + seen.home == REQUESTS
    assert seen.kernel > 0.95 * REQUESTS, seen.punts
    return all(
        abs(report["workloads"][workload] - REQUESTS * share) <= 3 * math.sqrt(REQUESTS * share * (1 - share))
        for workload, share in shares.items()
    )
