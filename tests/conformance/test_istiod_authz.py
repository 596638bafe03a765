"""AuthorizationPolicy to RBAC filters: Istio's own pairs, equal as messages.

There is no table of differences here because there is none.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.model import Mesh
from controlplane.translate.authorization import Trust, filters
from tests.support.mesh import read
from tests.support.parity import differences
from tests.support.tiers import shared
from underpass.api import envoy

pytestmark = pytest.mark.needs("shared")


#: Istio keeps this pair's input in its test's code: what the outputs were made of, as an operator would write it.
ASKING = """
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - name: default
      envoyExtAuthzGrpc:
        service: foo/my-custom-ext-authz.foo.svc.cluster.local
        port: 9000
        failOpen: true
        statusOnError: "403"
        timeout: 2ms
        includeRequestBodyInCheck: {maxRequestBytes: 4096, allowPartialMessage: true}
---
apiVersion: v1
kind: Service
metadata: {name: my-custom-ext-authz, namespace: foo}
spec: {clusterIP: 10.96.7.7, ports: [{name: grpc, port: 9000}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: httpbin-1, namespace: foo}
spec:
  action: CUSTOM
  provider: {name: default}
  rules: [{to: [{operation: {paths: [/httpbin1]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: httpbin-2, namespace: foo}
spec:
  action: CUSTOM
  provider: {name: default}
  rules: [{to: [{operation: {paths: [/httpbin2]}}]}]
"""


PLAIN = Trust()


@dataclass(frozen=True, slots=True)
class Case:
    """One pair: `NAME-in.yaml` (or `text`), and `NAME-out{part}.yaml` for each filter, in order."""

    name: str
    parts: tuple[str, ...] = ("",)
    trust: Trust = PLAIN
    text: str = ""

    @property
    def input(self) -> str:
        return self.text or (_directory() / f"{self.name}-in.yaml").read_text(encoding="utf-8")

    @property
    def outputs(self) -> list[Path]:
        return [_directory() / f"{self.name}-out{part}.yaml" for part in self.parts]


CASES = (
    Case("http/allow-empty-rule"),
    Case("http/allow-full-rule"),
    Case("http/allow-nil-rule"),
    Case("http/allow-path"),
    Case("http/audit-full-rule"),
    Case("http/custom-grpc-provider", ("1", "2"), text=ASKING),
    Case("http/deny-and-allow", ("1", "2")),
    Case("http/dry-run-mix"),
    Case("http/simple-policy-td-aliases", trust=Trust("td1", ("cluster.local",))),
    Case("http/single-policy"),
    Case("tcp/allow-both-http-tcp"),
    Case("tcp/deny-both-http-tcp"),
)


def _directory() -> Path:
    return shared() / "istio" / "authz"


def _mesh(text: str) -> Mesh:
    done = read(text)
    assert not [verdict for verdict in done.verdicts if verdict.state != "accepted"]
    return done.mesh


def _expected(path: Path) -> Any:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    return envoy.from_dict("Filter" if "network" in data["name"] else "HttpFilter", data)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equal(case: Case) -> None:
    mesh = _mesh(case.input)
    ours = filters(mesh.authorization_policies, case.trust, mesh.providers, tcp=case.name.startswith("tcp"))
    theirs = [_expected(path) for path in case.outputs]
    assert len(ours) == len(theirs)
    found = [str(item) for mine, wanted in zip(ours, theirs, strict=True) for item in differences(mine, wanted)]
    assert not found, "\n".join(found)


def test_every_output_is_compared() -> None:
    compared = [path for case in CASES for path in case.outputs]
    assert sorted(compared) == sorted(_directory().glob("*/*-out*.yaml"))
    inputs = [_directory() / f"{case.name}-in.yaml" for case in CASES if not case.text]
    assert sorted(inputs) == sorted(_directory().glob("*/*-in.yaml"))
