"""The data path on Debian's kernels, under emulation: a taste of it in `make test`, all of tests/bpf in `make soak`."""

from __future__ import annotations

import json
import re

import pytest

from nodeagent.node.programs import SLOTS
from tests.support import guest
from tests.support.guest_smoke import REQUESTS


def image(series: str) -> guest.Image:
    """The kernel to be booted; the test's needs have found that there is one."""
    found = guest.newest(series, guest.images())
    assert found is not None
    return found


@pytest.mark.needs("kernel-6.1")
@pytest.mark.timeout(400)
def test_smoke_on_6_1() -> None:
    """The oldest kernel that is supported: no tcx, no bpf_cast_to_kern_ctx, the same requests and checksums."""
    found = guest.run(image("6.1"), guest.script("tests.support.guest_smoke"), timeout=360, memory="1500M")
    assert found.status == 0, found.told()
    told = json.loads(found.output.strip().splitlines()[-1])
    print(f"{found.seconds:.0f} s, of them {told['seconds']}")
    assert (told["attachment"], told["kernel_context"]) == ("clsact", "no")
    assert told["attached"] == len(SLOTS)
    assert told["by_kernel"] == REQUESTS + 1


@pytest.mark.slow
@pytest.mark.timeout(5 * 3600)
@pytest.mark.parametrize(
    "series", [pytest.param(one, marks=pytest.mark.needs(f"kernel-{one}")) for one in guest.DEBIANS]
)
def test_the_data_path_suite(series: str) -> None:
    """All of tests/bpf; what a test may not do there is said by that test."""
    script = guest.pytest_script("-q", "-m", "not slow", "--tb=short", "tests/bpf")
    found = guest.run(image(series), script, timeout=5 * 3600 - 60)
    print(found.output[-20000:])
    assert found.status == 0, found.told()
    assert re.search(r"\b\d{2,} passed", found.output), found.told()
