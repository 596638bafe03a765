"""Objects of every kind with a part replaced by nonsense: there is a verdict, clients are served, nothing raises."""

from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.mesh import read, resources, router, sidecar, waypoint

DIRECTORY = Path(__file__).resolve().parents[1] / "golden" / "translate"
CASES = ("tokens", "tokens-required", "tokens-gateway", "waypoint", "patches", "logs", "external-authorization")
OBJECTS = [list(yaml.safe_load_all((DIRECTORY / f"{name}.in.yaml").read_text(encoding="utf-8"))) for name in CASES]
NODES = (
    sidecar("10.244.0.21", labels={"app": "stock"}),
    router({"gateway.networking.k8s.io/gateway-name": "edge"}),
    waypoint("way"),
    waypoint("way", agent="envoy"),
)
NONSENSE = (
    st.none()
    | st.booleans()
    | st.integers(-(2**33), 2**33)
    | st.sampled_from(
        ["", "*", "x", "%", "http://", "http://[", "https://a:0/", "0", "-1s", "1s", "{}", '{"keys":[{}]}', "\x00"]
    )
    | st.lists(st.sampled_from(["", "a", 1, None]), max_size=2)
    | st.dictionaries(st.sampled_from(["", "name", "issuer", "@type", "x"]), st.sampled_from(["", 1, None]), max_size=2)
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in _paths(item, (*path, key)))]


def _replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replaced(value[path[0]], path[1:], by)
    return copy


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(OBJECTS), st.data())
def test_nothing_raises(objects: list[Any], data: st.DataObject) -> None:
    mutated = list(objects)
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, len(mutated) - 1))
        path = data.draw(st.sampled_from(_paths(mutated[index])))
        mutated[index] = _replaced(mutated[index], path, data.draw(NONSENSE))
    done = read(yaml.safe_dump_all(mutated))
    for node in NODES:
        resources(done.mesh, node)
