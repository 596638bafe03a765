"""Golden pairs: resources in, one line per map entry out.

Run with `UNDERPASS_UPDATE_GOLDEN=1` to rewrite the outputs, and review the difference as prose.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nodeagent.intent.compile import Compiler
from nodeagent.intent.dump import lines
from tests.support import tiers
from tests.support.resources import Load, from_istiod, from_yaml

ROOT = Path(__file__).parents[3] / "golden" / "intent"
CASES = sorted(path.name.removesuffix(".in.yaml") for path in ROOT.glob("*.in.yaml"))
ISTIOD = (
    "all-v1/sidecar", "bookinfo/server", "bookinfo/sidecar", "gateway/router", "mtls-dr/sidecar",
    "ratings-abort/sidecar", "ratings-delay/sidecar", "reviews-80-20/sidecar", "reviews-jason/sidecar",
)  # fmt: skip


def _compare(path: Path, found: list[str]) -> None:
    text = "".join(line + "\n" for line in found)
    if os.environ.get("UNDERPASS_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    views = from_yaml(ROOT / f"{case}.in.yaml")
    loads = [(Load(f"default/{key}", (f"10.9.0.{i}",)), key) for i, key in enumerate(sorted(views), 1)]
    _compare(ROOT / f"{case}.out.txt", lines(Compiler().compile(views, loads)))


@pytest.mark.needs("shared")
@pytest.mark.parametrize("case", ISTIOD)
def test_what_a_genuine_istiod_serves(case: str) -> None:
    resources = from_istiod(tiers.shared() / "istiod" / case)
    intent = Compiler().compile({"view": resources}, [(Load("default/a", ("10.244.0.15",)), "view")])
    _compare(ROOT / f"istiod-{case.replace('/', '-')}.out.txt", lines(intent))
