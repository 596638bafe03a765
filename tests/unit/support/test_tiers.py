"""The rules of skipping: a probe gives the reason, and CI as root may skip nothing that it has to run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import tiers
from tests.support.run import counts
from tests.support.tiers import Unavailable, repository, require


def run(directory: Path, body: str, *, ci: bool, where: str = "unit") -> str:
    """Run a test file under a copy of our conftest; the output of pytest."""
    (directory / where).mkdir(parents=True, exist_ok=True)
    shutil.copy(repository() / "tests" / "conftest.py", directory / "conftest.py")
    (directory / where / "test_it.py").write_text("import pytest\n" + body)
    shutil.copy(repository() / "pyproject.toml", directory / "pyproject.toml")
    environment = {**os.environ, "CI": "true" if ci else "false", "PYTHONPATH": str(repository())}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(directory)],
        env=environment,
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def fails_in_ci() -> bool:
    return os.geteuid() == 0


LATER = "def test_it():\n    pytest.skip('later')\n"
NO_SAMPLES = "@pytest.mark.needs('shared')\ndef test_it():\n    raise AssertionError('must not run')\n"


def test_a_skip_without_a_probe_is_a_failure_in_ci(tmp_path: Path) -> None:
    said = run(tmp_path, LATER, ci=True)
    assert ("1 failed" if fails_in_ci() else "1 skipped") in said


def test_at_home_it_is_a_skip_with_its_reason(tmp_path: Path) -> None:
    said = run(tmp_path, LATER, ci=False)
    assert "1 skipped" in said
    assert "not run on this machine" in said
    assert "1  later" in said


def test_what_nobody_has_to_have_may_be_skipped_in_ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERPASS_SHARED", str(tmp_path / "nowhere"))
    said = run(tmp_path, NO_SAMPLES, ci=True)
    assert "1 skipped" in said
    assert "no Istio samples under" in said


def test_an_unknown_probe_is_an_error_of_the_test() -> None:
    with pytest.raises(KeyError, match="has no probe 'teapot'"):
        require("teapot")


def test_a_missing_capability_says_what_why_and_what_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe() -> None:
        raise Unavailable("teapot", "the kettle is cold", "boil water")

    monkeypatch.setitem(tiers.PROBES, "cold-teapot", probe)
    with pytest.raises(Unavailable, match=r"unavailable: teapot: the kettle is cold; boil water"):
        require("cold-teapot")


def test_the_runner_adds_up_pytests_own_report(tmp_path: Path) -> None:
    report = tmp_path / "junit.xml"
    report.write_text('<testsuites><testsuite tests="7" failures="1" errors="2" skipped="1"/></testsuites>')
    assert counts(report) == {"passed": 3, "failed": 3, "skipped": 1}
    assert counts(tmp_path / "none.xml") == {}
