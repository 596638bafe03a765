"""The mesh's own settings out of the ConfigMap `istio`: what is read, what is refused, what has no effect."""

import pytest

from controlplane.sources.ingest import State, ingest
from controlplane.sources.mesh_config import STATUSES
from tests.support.mesh import read, snapshot
from underpass.api import envoy

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: ask, namespace: SPACE}
spec: {clusterIP: 10.96.0.9, ports: [{name: grpc, port: 9000}]}
"""


def config(mesh: str, name: str = "istio", namespace: str = "istio-system") -> str:
    """A ConfigMap with these settings."""
    lines = "".join(f"    {line}\n" for line in mesh.splitlines())
    return f"""
apiVersion: v1
kind: ConfigMap
metadata: {{name: {name}, namespace: {namespace}}}
data:
  mesh: |
{lines}"""


def provider(settings: str, kind: str = "envoyExtAuthzGrpc") -> str:
    """Settings of one provider called `p`."""
    return config(f"extensionProviders:\n- name: p\n  {kind}: {{{settings}}}")


GOOD = provider("service: ask.a.svc.cluster.local, port: 9000")


def test_a_provider_is_resolved_to_a_service() -> None:
    found = read(GOOD, SERVICE.replace("SPACE", "a")).mesh.providers["p"]
    assert (found.hostname, found.port, found.grpc) == ("ask.a.svc.cluster.local", 9000, True)


def test_other_config_maps_are_passed_over() -> None:
    done = read(config("extensionProviders: [{name: p}]", name="other"))
    assert (done.verdicts, dict(done.mesh.providers)) == ((), {})
    assert read("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio}\ndata: {meshNetworks: x}").verdicts == ()


def test_the_configuration_of_another_namespace_is_said_to_have_no_effect() -> None:
    done = read(GOOD.replace("istio-system", "elsewhere"), SERVICE.replace("SPACE", "a"))
    (verdict,) = [item for item in done.verdicts if item.kind == "ConfigMap"]
    assert [note.code for note in verdict.notes] == ["no-effect"]
    assert not done.mesh.providers


def test_settings_that_are_not_read_are_named_with_their_line() -> None:
    (verdict,) = read(config("enableTracing: true\ndefaultConfig: {concurrency: 2}")).verdicts
    assert verdict.state == "accepted"
    assert [(note.code, note.line) for note in verdict.notes] == [("not-honoured", 6)] * 2
    assert "defaultConfig" in verdict.notes[0].message


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ("a: [", "bad-mesh-config", "data.mesh"),
        ("- 1", "bad-mesh-config", "mapping"),
        ("a: 1\n---\nb: 2", "bad-mesh-config", "more than one"),
        ("extensionProviders: 3", "invalid-field", "extensionProviders"),
        ("extensionProviders: [{name: ''}]", "bad-provider", "name of its own"),
        ("extensionProviders: [{name: a}, {name: a}]", "bad-provider", "name of its own"),
    ],
)
def test_what_cannot_be_read_is_rejected_by_name(settings: str, code: str, words: str) -> None:
    (verdict,) = read(config(settings)).verdicts
    assert (verdict.state, verdict.code) == ("rejected", code)
    assert words in verdict.reason


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ("port: 1", "envoyExtAuthzGrpc", "service is missing"),
        ("service: a, port: 0", "envoyExtAuthzGrpc", "not a port"),
        ("service: a, port: 1, statusOnError: '999'", "envoyExtAuthzGrpc", "not an HTTP status"),
        ("service: a, port: 1, statusOnError: forbidden", "envoyExtAuthzGrpc", "not an HTTP status"),
        ("service: a, port: 1, timeout: 1us", "envoyExtAuthzGrpc", "at least 1ms"),
        ("service: a, port: 1, pathPrefix: check", "envoyExtAuthzHttp", "begin with a slash"),
        ("service: a, port: 1, includeRequestBodyInCheck: {}", "envoyExtAuthzHttp", "maxRequestBytes"),
    ],
)
def test_a_provider_that_istiod_refuses_is_rejected(settings: str, kind: str, words: str) -> None:
    (verdict,) = read(provider(settings, kind)).verdicts
    assert verdict.state == "rejected"
    assert words in verdict.reason


@pytest.mark.parametrize(
    ("reference", "port", "words"),
    [
        ("gone.a.svc.cluster.local", 9000, "there is no service"),
        ("b/ask.a.svc.cluster.local", 9000, "there is no service"),
        ("ask.a.svc.cluster.local", 9001, "has no port 9001"),
        ("shared.example", 80, "several namespaces (a, b)"),
    ],
)
def test_a_provider_without_a_service_is_a_note(reference: str, port: int, words: str) -> None:
    entry = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shared, namespace: SPACE}
spec: {hosts: [shared.example], ports: [{name: http, number: 80, protocol: HTTP}], resolution: DNS}
"""
    text = provider(f"service: {reference}, port: {port}")
    done = read(text, SERVICE.replace("SPACE", "a"), entry.replace("SPACE", "a"), entry.replace("SPACE", "b"))
    (verdict,) = [item for item in done.verdicts if item.kind == "ConfigMap"]
    assert [note.code for note in verdict.notes] == ["unusable-provider"]
    assert words in verdict.notes[0].message
    assert not done.mesh.providers


def test_a_broken_edit_leaves_the_last_good_providers() -> None:
    service = SERVICE.replace("SPACE", "a")
    first = ingest(State(), snapshot({"m.yaml": GOOD, "s.yaml": service}))
    second = ingest(first.state, snapshot({"m.yaml": config("- nonsense"), "s.yaml": service}, 1))
    assert list(second.mesh.providers) == ["p"]
    (verdict,) = [item for item in second.verdicts if item.state == "rejected"]
    assert verdict.last_good


def test_statuses_are_those_that_envoy_names() -> None:
    known = envoy.pool.FindEnumTypeByName("envoy.type.v3.StatusCode").values_by_number
    assert set(known) - {0} == STATUSES
