"""The fuzzers build, their seeds pass, and a few seconds from there find nothing. `make fuzz` goes on for longer."""

from pathlib import Path

import pytest

from tests.fuzz.run import FUZZERS, build, fuzz

pytestmark = pytest.mark.needs("fuzzer")


@pytest.mark.parametrize("name", FUZZERS)
def test_a_short_run_finds_nothing(name: str, tmp_path: Path) -> None:
    finding = fuzz(build(name, tmp_path), name, tmp_path, seconds=3)
    assert finding is None, finding
