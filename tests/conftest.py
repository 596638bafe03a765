"""Tiers: what a test needs is probed, what is skipped is said, and CI may not skip what it should run."""

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from tests.support.tiers import SKIP_PREFIX, TIER_NEEDS, Unavailable, require

TESTS = Path(__file__).parent
# An emulated machine (tests/support/guest.py) is that many times slower than what timeouts are written for.
PATIENCE = int(os.environ.get("UNDERPASS_TEST_PATIENCE", "1"))

# No deadlines: two shared cores. CI repeats itself, so that what it says of a change is about the change; everybody
# else, and `make soak`, look in new places each time. Explaining a failure may take minutes longer than finding it.
_PHASES = [phase for phase in Phase if phase is not Phase.explain]
settings.register_profile("default", deadline=None, phases=_PHASES, print_blob=True)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "default")


def strict() -> bool:
    """Whether a skip of a tier is a failure: CI as root has everything that the tests need."""
    return os.environ.get("CI") == "true" and os.geteuid() == 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the needs and the markers of its directory."""
    for item in items:
        tier = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        needs = TIER_NEEDS.get(tier)
        if needs:
            item.add_marker(pytest.mark.needs(*needs))
            item.add_marker(pytest.mark.root)
            item.add_marker(tier)
        if PATIENCE > 1:
            told = item.get_closest_marker("timeout")
            seconds = told.args[0] if told is not None and told.args else item.config.getini("timeout")
            item.add_marker(pytest.mark.timeout(float(seconds) * PATIENCE), append=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Probe what the test says it needs, before any fixture runs."""
    wanted = [name for mark in item.iter_markers("needs") for name in mark.args]
    if item.get_closest_marker("root") and "root" not in wanted:
        wanted.insert(0, "root")
    if item.get_closest_marker("bpf") and "bpf" not in wanted:
        wanted.append("bpf")
    try:
        require(*wanted)
    except Unavailable as missing:
        if missing.required and strict():
            pytest.fail(f"CI has to run this, but it cannot: {missing}", pytrace=False)
        pytest.skip(str(missing))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was skipped and why, one line a reason."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.getreports("skipped"):
        longrepr = getattr(report, "longrepr", None)
        reasons[longrepr[2].removeprefix("Skipped: ") if isinstance(longrepr, tuple) else str(longrepr)] += 1
    if reasons:
        terminalreporter.section("not run on this machine")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:5}  {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    """In CI a skip that no probe gave is a failure: nobody would ever notice that the test does not run."""
    report = yield
    if report.skipped and strict() and not hasattr(report, "wasxfail") and SKIP_PREFIX not in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} was skipped in CI without a probe of tests/support/tiers.py: {report.longrepr}"
        )
    return report
