"""The fuzzers build, their seeds pass, and a few seconds from there find nothing.

The same inputs each time: new ones are what `make fuzz` looks for.
"""

from pathlib import Path

import pytest

from tests.fuzz.run import FUZZERS, build, fuzz

RUNS = 60_000

pytestmark = pytest.mark.needs("fuzzer")


@pytest.mark.parametrize("name", FUZZERS)
def test_a_short_run_finds_nothing(name: str, tmp_path: Path) -> None:
    finding = fuzz(build(name, tmp_path), name, tmp_path, runs=RUNS)
    assert finding is None, finding
