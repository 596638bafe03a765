"""Offline judgement of files: verdicts, fields and views."""

from pathlib import Path

import pytest

from controlplane.analyze import analyze
from controlplane.translate.names import CLUSTER, ROUTE
from tests.support.tiers import shared

SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80, name: http}]}\n"
SIDECAR = """apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: s}
spec:
  ingress:
  - port: {number: 80, protocol: HTTP, name: http}
    defaultEndpoint: 127.0.0.1:8080
  egress:
  - hosts: [./*]
"""
POD = """apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: a}}
spec: {containers: [{name: c}]}
status: {podIP: 10.0.0.1}
"""


def test_fields_without_effect_are_named_once() -> None:
    done = analyze({"s.yaml": SIDECAR})
    (sidecar,) = done.objects
    assert {use.path for use in sidecar.fields if use.honoured} == {"egress[0].hosts"}
    assert len(sidecar.in_vain) == 4
    (verdict,) = done.verdicts
    assert [(note.code, note.line) for note in verdict.notes] == [("not-honoured", 6)]
    assert "ingress[0] has no effect" in verdict.notes[0].message
    assert not done.clean


def test_views_of_workloads_or_of_namespaces() -> None:
    assert [client.namespace for client in analyze({"a": SERVICE}).clients] == ["default"]
    twin = POD.replace("name: p,", "name: q,").replace("10.0.0.1", "10.0.0.2")
    done = analyze({"a": SERVICE, "p": POD, "q": twin})
    (client,) = done.clients  # two pods of one kind share a view
    assert client.labels == (("app", "a"),)
    assert list(done.resources(client)[ROUTE]) == ["80"]
    assert "inbound|80||" not in done.resources(client)[CLUSTER]
    assert done.clean


def test_broken_input_is_a_verdict() -> None:
    done = analyze({"x": "kind: [", "y": "\x00", "z": "a: 1"})
    assert [(verdict.file, verdict.state) for verdict in done.verdicts] == [
        ("x", "rejected"),
        ("y", "rejected"),
        ("z", "rejected"),
    ]


@pytest.mark.needs("shared")
def test_istios_own_samples_are_accepted() -> None:
    """What is refused of Istio's samples is listed here."""
    root = shared() / "istio" / "bookinfo"
    refused = {}
    for path in sorted([*(root / "networking").glob("*.yaml"), *(root / "platform").glob("*.yaml")]):
        for verdict in analyze({path.name: Path(path).read_text(encoding="utf-8")}).verdicts:
            if verdict.state == "rejected":
                refused[path.name, verdict.kind] = verdict.code
    assert refused == {
        ("bookinfo-certificate.yaml", "ClusterIssuer"): "unsupported-kind",
        ("bookinfo-certificate.yaml", "Certificate"): "unsupported-kind",
    }


@pytest.mark.needs("shared")
def test_istios_test_configuration_is_accepted() -> None:
    refused = {}
    for path in sorted((shared() / "istio" / "config").glob("*.yaml")):
        for verdict in analyze({path.name: Path(path).read_text(encoding="utf-8")}).verdicts:
            if verdict.state == "rejected":
                refused[path.name, verdict.name] = (verdict.code, verdict.reason)
    assert refused == {}
