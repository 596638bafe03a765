"""Access logs: expressions and formats that get as far as an Envoy are ones that it reads."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.sources import expressions, log_formats
from controlplane.sources.convert import Rejected, convert
from controlplane.sources.documents import parse
from controlplane.translate.logs import FORMAT
from tests.support.mesh import envoy_validates, plain, read, resources, router, sidecar
from underpass.api import envoy

GOOD = (
    "response.code >= 400",
    "!has(response.code) || response.code >= 400 && response.code < 500.5",
    "connection.mtls && request.url_path.contains('v1beta3')",
    'request.headers["x-a"] == "b" || request.method in [\'GET\', "POST"]',
    "(request.path.startsWith('/a') || !request.path.matches('b.*')) && size(request.path) > 3",
    "xds.cluster_name != 'BlackHoleCluster' && true",
    "metadata.filter_metadata['a']['b'] == 1 || source.port in []",
)
BAD = (
    "",
    "response.code >=",
    "response.code 400",
    "response.code >= 400)",
    "(response.code",
    "nothing.code == 1",
    "response.code == 'a\\n'",
    "request.path.explode('a')",
    "request.path.contains(1)",
    "has(1)",
    "request.headers[1]",
    "system('rm')",
    "response.code ? 1 : 2",
    "[response.code]",
    "!" * 3,
    "(" * 100 + "true" + ")" * 100,
    "true" + " || true" * 1000,
)


@pytest.mark.parametrize("text", GOOD)
def test_good_expressions(text: str) -> None:
    expressions.check(text)


@pytest.mark.parametrize("text", BAD)
def test_bad_expressions(text: str) -> None:
    with pytest.raises(expressions.ExpressionError):
        expressions.check(text)


@given(
    st.lists(
        st.sampled_from(["request", ".", "path", "'a'", "(", ")", "[", "]", "==", "in", "!", "||", "has", "1", ","])
    )
)
def test_any_expression_is_judged(parts: list[str]) -> None:
    try:
        expressions.check(" ".join(parts))
    except expressions.ExpressionError:
        pass


@pytest.mark.parametrize(
    "text",
    [
        "%",
        "%RESPONSE_CODE",
        "%NOTHING%",
        "%REQ%",
        "%REQ()%",
        "%REQ(a b)%",
        "%response_code%",
        "%RESPONSE_CODE(a)%",
        "%%%",
    ],
)
def test_bad_formats(text: str) -> None:
    with pytest.raises(log_formats.FormatError):
        log_formats.check(text)
    with pytest.raises(log_formats.FormatError):
        log_formats.check_fields({"a": ["b", {"c": text}]})


def test_good_formats() -> None:
    log_formats.check(FORMAT)
    log_formats.check("100 %% %REQ(:PATH?X-PATH):10% %START_TIME(%s)%".replace("(%s)", "(xs)"))
    log_formats.check_fields({"a": "%RESPONSE_CODE%", "b": 1.0, "c": None})


def _mesh(settings: str, expression: str = "") -> str:
    lines = "".join(f"    {line}\n" for line in settings.splitlines())
    filtered = f'filter: {{expression: "{expression}"}}, ' if expression else ""
    return f"""
apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data:
  mesh: |
{lines}---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {{name: all, namespace: istio-system}}
spec: {{accessLogging: [{{{filtered}providers: [{{name: envoy}}]}}]}}
"""


@pytest.mark.needs("envoy")
def test_an_envoy_reads_whatever_is_let_through() -> None:
    every = " ".join(f"%{name}%" for name in sorted(log_formats._PLAIN))
    log_formats.check(every)
    for expression in GOOD:
        mesh = read(_mesh(f"accessLogFormat: {every!r}", expression.replace('"', '\\"'))).mesh
        assert mesh.telemetries
        assert envoy_validates(resources(mesh, sidecar())) == ""


def test_refused() -> None:
    head = "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: a, namespace: n}\nspec:\n"
    for entry, code in (("{filter: {expression: '('}}", "bad-expression"), ("{providers: [{}]}", "no-name")):
        (document,) = parse("t.yaml", f"{head}  accessLogging:\n  - {entry}\n")
        made = convert(document)
        assert isinstance(made, Rejected)
        assert (made.code, made.source.line) == (code, 6)
    head = head.replace("spec:\n", "spec:\n  targetRefs: [{kind: Service, name: s}]\n")
    (document,) = parse("t.yaml", f"{head}  accessLogging: [{{}}]\n")
    made = convert(document)
    assert isinstance(made, Rejected)
    assert made.code == "unsupported-target"
    for settings in (
        "accessLogFormat: '%NO%'",
        "accessLogFile: relative",
        "extensionProviders: [{name: a, envoyFileAccessLog: {path: b}}]",
    ):
        (verdict, _) = sorted(read(_mesh(settings)).verdicts, key=lambda item: item.kind)
        assert verdict.state == "rejected", settings


def paths(text: str, *, inbound: bool = False, **node: Any) -> list[str]:
    client = router() if node.pop("edge", False) else sidecar(**node)
    table = plain(resources(read(text).mesh, client))["lds"]
    found = set()
    for name, listener in table.items():
        if (name == "virtualInbound") is inbound:
            for chain in listener["filter_chains"]:
                for item in chain["filters"][-1]["typed_config"].get("access_log", []):
                    found.add(item["typed_config"]["path"])
    return sorted(found)


def test_who_logs_what() -> None:
    both = _mesh("accessLogFile: /a") + "---\n"

    def more(name: str, spec: str, space: str = "default") -> str:
        head = f"apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: {name}, namespace: {space}}}\n"
        return f"{head}spec: {spec}\n---\n"

    assert paths(both) == paths(both, inbound=True) == ["/a"]
    assert paths(both.partition("---")[0]) == ["/a"], "accessLogFile alone is enough"
    off = more("quiet", "{accessLogging: [{disabled: true}]}")
    assert paths(both + off) == []
    assert paths(both + off, namespace="other") == ["/a"]
    server = more("server", "{accessLogging: [{match: {mode: SERVER}, disabled: true}]}")
    assert (paths(both + server), paths(both + server, inbound=True)) == (["/a"], [])
    mine = more("mine", "{selector: {matchLabels: {app: a}}, accessLogging: [{providers: [{name: envoy}]}]}")
    assert paths(both + off + mine, labels={"app": "a"}) == ["/a"]
    assert paths(both + off + mine, labels={"app": "b"}) == []
    assert paths(_mesh("accessLogFile: /a").replace("providers: [{name: envoy}]", "providers: [{name: lost}]")) == []
    assert paths("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n") == []


def test_the_default_providers() -> None:
    settings = "extensionProviders: [{name: p, envoyFileAccessLog: {path: /p}}]\ndefaultProviders: {accessLogging: [p]}"
    assert paths(_mesh(settings).partition("---")[0]) == ["/p"]


def test_kernel_agents_get_no_logs() -> None:
    mesh = read(_mesh("accessLogFile: /a")).mesh
    made: Any = resources(mesh, replace(sidecar(), kernel=True))
    assert b"/a" not in b"".join(item.SerializeToString() for item in made[envoy.type_url("Listener")].values())
