"""Runs the tiers one after the other, cheapest first, and says in one line each how they went: `make test`.

A later tier runs although an earlier one failed, so that one run tells everything; the exit status is 1 if any failed.
Arguments go to every pytest (for instance `make test ARGS='-k session -x'`).
"""

import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.support.tiers import repository

# name, directories; a tier is left out while none of its directories holds a test.
TIERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("pure", ("unit", "golden", "laws", "conformance", "fuzz")),
    ("bpf", ("bpf",)),
    ("integration", ("integration", "e2e")),
)
NOTHING_COLLECTED = 5


def counts(junit: Path) -> Counter[str]:
    """How many tests passed, failed and were skipped, by pytest's own report; nothing when it wrote none."""
    found: Counter[str] = Counter()
    if not junit.exists():
        return found
    for suite in ET.parse(junit).getroot().iter("testsuite"):
        number = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
        failed = number["failures"] + number["errors"]
        found.update(passed=number["tests"] - failed - number["skipped"], failed=failed, skipped=number["skipped"])
    return found


def main(arguments: list[str]) -> int:
    """Run every tier; returns 1 if one failed or if no test ran at all."""
    root = repository()
    rows: list[tuple[str, str, Counter[str], float]] = []
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for name, directories in TIERS:
            paths = [str(root / "tests" / d) for d in directories if any((root / "tests" / d).rglob("test_*.py"))]
            if not paths:
                continue
            print(f"== {name}: {', '.join(directories)}", flush=True)
            start = time.monotonic()
            junit = Path(scratch) / f"{name}.xml"
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-m",
                "not slow",
                f"--junitxml={junit}",
                *arguments,
                *paths,
            ]
            status = subprocess.run(command, cwd=root, check=False).returncode
            outcome = {0: "passed", NOTHING_COLLECTED: "none selected"}.get(status, f"FAILED ({status})")
            rows.append((name, outcome, counts(junit), time.monotonic() - start))
            failed |= status not in (0, NOTHING_COLLECTED)
    print()
    total: Counter[str] = Counter()
    for name, outcome, found, seconds in rows:
        print(
            f"{name:12} {outcome:14} {found['passed']:5} passed {found['failed']:4} failed"
            f" {found['skipped']:4} skipped {seconds:7.1f} s"
        )
        total += found
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    if not total["passed"]:
        print("no test ran at all")
    return 1 if failed or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
