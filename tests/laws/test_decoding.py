"""Whatever bytes come, each resource is either a value or a named refusal; and whatever values come compile."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.cache import store
from nodeagent.cache.resources import Value
from nodeagent.cache.store import Decoder, resources_from
from nodeagent.errors import ResourceError
from nodeagent.intent.compile import Compiler
from nodeagent.intent.dump import lines
from tests.support.resources import TYPES, Load, body

GOLDEN = Path(__file__).parents[1] / "golden" / "intent"
URLS = (store.LISTENER, store.ROUTES, store.CLUSTER, store.ASSIGNMENT)


def _seeds() -> list[tuple[str, bytes]]:
    found = []
    for path in sorted(GOLDEN.glob("*.in.yaml")):
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        for kind, (url, _) in TYPES.items():
            found += [(url, body(kind, resource)) for resource in data.get(kind, ())]
    return found


SEEDS = _seeds()


def _decode(url: str, data: bytes) -> Value | None:
    try:
        return Decoder().decode(url, data)[1]
    except ResourceError:
        return None


@settings(max_examples=500, deadline=None)
@given(url=st.sampled_from(URLS), data=st.binary(max_size=200))
def test_any_bytes(url: str, data: bytes) -> None:
    _decode(url, data)


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, len(SEEDS) - 1), salt=st.integers(0, 1 << 32), changes=st.integers(1, 6))
def test_damaged_resources_are_refused_or_compile(seed: int, salt: int, changes: int) -> None:
    chance = random.Random(salt)
    url, data = SEEDS[seed]
    damaged = bytearray(data)
    for _ in range(changes):
        at = chance.randrange(len(damaged))
        match chance.randrange(3):
            case 0:
                damaged[at] = chance.randrange(256)
            case 1:
                damaged[at:at] = bytes([chance.randrange(256)])
            case _:
                del damaged[at]
                damaged = damaged or bytearray(b"\0")
    value = _decode(url, bytes(damaged))
    if value is None:
        return
    values: dict[str, dict[str, Value]] = {u: {} for u in URLS}
    for other, whole in SEEDS:
        kept = _decode(other, whole)
        assert kept is not None
        values[other][kept.name] = kept
    values[url][value.name] = value
    intent = Compiler().compile({"v": resources_from(values)}, [(Load("a/b", ("10.9.0.1",)), "v")])
    assert lines(intent)


@pytest.mark.parametrize("code", [0, 4, 9])
def test_enumerations_may_grow(code: int) -> None:
    resource = {
        "name": "r",
        "virtual_hosts": [
            {"name": "v", "domains": ["v"], "routes": [{"match": {"prefix": "/"}, "redirect": {"response_code": code}}]}
        ],
    }
    assert _decode(store.ROUTES, body("routes", resource)) is not None
