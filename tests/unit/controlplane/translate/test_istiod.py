"""What a genuine istiod serves for the same configuration, resource by resource.

Every difference is listed here with its reason; anything else fails.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from controlplane.model import parse_node
from tests.support.mesh import KINDS, plain, read, resources
from tests.support.tiers import shared
from underpass.api import envoy

pytestmark = pytest.mark.needs("shared")

CASES = {
    "bookinfo": [],
    "all-v1": ["destination-rule-all", "virtual-service-all-v1"],
    "gateway": ["bookinfo-gateway"],
    "mtls-dr": ["destination-rule-all-mtls"],
    "ratings-abort": ["destination-rule-all", "virtual-service-ratings-test-abort"],
    "ratings-delay": ["destination-rule-all", "virtual-service-ratings-test-delay"],
    "reviews-80-20": ["destination-rule-all", "virtual-service-reviews-80-20"],
    "reviews-jason": ["destination-rule-all", "virtual-service-reviews-jason-v2-v3"],
}
NODES = {"all-v1": ["sidecar"], "bookinfo": ["sidecar", "server"], "gateway": ["router"]}

NODE = """
apiVersion: v1
kind: Node
metadata:
  name: node-1
  labels: {topology.kubernetes.io/region: region1, topology.kubernetes.io/zone: zone1}
"""

#: Differences on purpose: path (indices left out) -> (which side has it, why).
ALLOWED = {
    "tracing": ("theirs", "no tracing provider is configured, so sampling and custom tags would have no effect"),
    "match_subject_alt_names": ("theirs", "deprecated in Envoy; match_typed_subject_alt_names says the same"),
    "match_typed_subject_alt_names": ("ours", "the field that replaces match_subject_alt_names"),
    "underpass": ("ours", "which rule, file and line a route comes from"),
    "metadata": ("ours", "only to hold underpass, on routes where istiod has no metadata"),
}


def mesh(case: str) -> Any:
    root = shared()
    texts = [(root / "istiod" / "pods.yaml").read_text(encoding="utf-8"), NODE]
    for name in CASES[case]:
        path = root / "istio" / "bookinfo" / "networking" / f"{name}.yaml"
        texts.append(path.read_text(encoding="utf-8"))
    done = read(*texts)
    assert all(verdict.state == "accepted" for verdict in done.verdicts)
    return done.mesh


def differences(ours: Any, theirs: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], str, Any]]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        out = []
        for key in sorted(ours.keys() | theirs.keys()):
            here = (*path, key)
            if key not in ours:
                out.append((here, "theirs", theirs[key]))
            elif key not in theirs:
                out.append((here, "ours", ours[key]))
            else:
                out.extend(differences(ours[key], theirs[key], here))
        return out
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [
            item
            for index, pair in enumerate(zip(ours, theirs, strict=True))
            for item in differences(*pair, (*path, str(index)))
        ]
    return [] if ours == theirs else [(path, "both", (ours, theirs))]


def allowed(path: tuple[str, ...], side: str, value: Any) -> bool:
    wanted = ALLOWED.get(path[-1])
    if wanted is None or wanted[0] != side:
        return False
    return path[-1] != "metadata" or list(value["filter_metadata"]) == ["underpass"]


@pytest.mark.parametrize(
    ("case", "client"), [(case, client) for case in CASES for client in NODES.get(case, ["sidecar"])]
)
def test_equal(case: str, client: str) -> None:
    directory = shared() / "istiod" / case / client
    built = mesh(case)
    for short, url in KINDS.items():
        golden = json.loads((directory / f"{short}.json").read_text(encoding="utf-8"))
        assert golden["type_url"] == url
        kind = golden["node"].split("~")[0]
        labels = {"istio": "ingressgateway"} if kind == "router" else {}
        node = parse_node(golden["node"], {"LABELS": labels, "NAMESPACE": golden["node"].split("~")[3].split(".")[0]})
        ours = plain(resources(built, node))[short]
        assert list(ours) == sorted(golden["resources"])
        for name, resource in golden["resources"].items():
            body = {key: value for key, value in resource.items() if key != "@type"}
            parsed = envoy.from_dict(resource["@type"].partition("/")[2], body)
            theirs = json.loads(json.dumps(envoy.to_dict(parsed, proto_names=True)))
            rest = [item for item in differences(ours[name], theirs) if not allowed(*item)]
            assert not rest, f"{short} {name}"


def test_all_cases_are_known() -> None:
    assert sorted(path.name for path in Path(shared() / "istiod").iterdir() if path.is_dir()) == sorted(CASES)
