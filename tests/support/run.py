"""Runs the tiers one after the other, cheapest first, and says in one line each how they went: `make test`.

A later tier runs although an earlier one failed, so that one run tells everything; the exit status is 1 if any failed.
Arguments go to every pytest (for instance `make test ARGS='-k session -x'`).
"""

import subprocess
import sys
import time

from tests.support.tiers import repository

# name, directories; a tier is left out while none of its directories holds a test.
TIERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("pure", ("unit", "golden", "laws", "conformance")),
    ("bpf", ("bpf",)),
    ("integration", ("integration", "e2e")),
)
NOTHING_COLLECTED = 5


def main(arguments: list[str]) -> int:
    """Run every tier; returns 1 if one failed or if no test ran at all."""
    root = repository()
    rows: list[tuple[str, str, float]] = []
    failed = ran = False
    for name, directories in TIERS:
        paths = [str(root / "tests" / d) for d in directories if any((root / "tests" / d).rglob("test_*.py"))]
        if not paths:
            continue
        print(f"== {name}: {', '.join(directories)}", flush=True)
        start = time.monotonic()
        status = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *arguments, *paths], cwd=root, check=False
        ).returncode
        outcome = {0: "passed", NOTHING_COLLECTED: "no test selected"}.get(status, f"FAILED (pytest exit {status})")
        rows.append((name, outcome, time.monotonic() - start))
        failed |= status not in (0, NOTHING_COLLECTED)
        ran |= status != NOTHING_COLLECTED
    print()
    for name, outcome, seconds in rows:
        print(f"{name:12} {outcome:24} {seconds:6.1f} s")
    if not ran:
        print("no test ran at all")
    return 1 if failed or not ran else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
