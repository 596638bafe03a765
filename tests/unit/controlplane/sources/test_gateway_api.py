"""Gateway API documents: what is refused, and what becomes a rule that answers 500."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.analyze import analyze
from controlplane.model.gateway_objects import KubeRoute
from controlplane.sources.convert import Accepted, Rejected, convert
from controlplane.sources.documents import RawDocument, parse
from tests.support.tiers import shared

HEAD = "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r}}\nspec:\n"


def one(kind: str, spec: str) -> Accepted | Rejected:
    indented = "".join(f"  {line}\n" for line in spec.splitlines())
    (document,) = parse("f", HEAD.format(kind=kind) + indented)
    result = convert(document)
    assert result is not None
    return result


@pytest.mark.parametrize(
    ("code", "line", "kind", "spec"),
    [
        ("bad-parent", 5, "HTTPRoute", "parentRefs: [{kind: Deployment, group: apps, name: x}]"),
        ("bad-parent", 5, "HTTPRoute", "parentRefs: [{kind: Service, group: ''}]"),
        ("bad-match", 7, "HTTPRoute", "rules:\n- matches:\n  - path: {value: nope}"),
        ("bad-match", 7, "HTTPRoute", "rules:\n- matches:\n  - path: {type: Glob, value: /}"),
        ("bad-regex", 7, "HTTPRoute", "rules:\n- matches:\n  - path: {type: RegularExpression, value: '(['}"),
        ("bad-duration", 5, "HTTPRoute", "rules:\n- timeouts: {request: soon}"),
        ("wrong-type", 5, "HTTPRoute", "rules: 3"),
        ("no-listeners", 4, "Gateway", "gatewayClassName: x"),
        ("bad-port", 6, "Gateway", "listeners:\n- {name: a, port: 0, protocol: HTTP}"),
        (
            "bad-listener",
            6,
            "Gateway",
            "listeners:\n- {name: a, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Me}}}",
        ),
    ],
)
def test_rejections(code: str, line: int, kind: str, spec: str) -> None:
    result = one(kind, spec)
    assert isinstance(result, Rejected)
    assert (result.code, result.source.line) == (code, line)


def test_what_is_not_supported_answers_500() -> None:
    result = one("HTTPRoute", "rules:\n- filters: [{type: ExtensionRef}]\n- backendRefs: [{name: a, port: 1}]")
    assert isinstance(result, Accepted)
    assert isinstance(result.object, KubeRoute)
    assert [bool(rule.problem) for rule in result.object.rules] == [True, False]
    assert [rule.line for rule in result.object.rules] == [6, 7]


def test_two_gateways_of_one_name() -> None:
    """Istio's and the Gateway API's Gateway are different kinds."""
    istio = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec:\n"
    istio += "  servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ['*']}]\n"
    theirs = HEAD.format(kind="Gateway").replace("name: r", "name: g")
    theirs += "  listeners: [{name: a, port: 80, protocol: HTTP}]\n"
    done = analyze({"a": istio, "b": theirs})
    assert [verdict.state for verdict in done.verdicts] == ["accepted", "accepted"]


@pytest.mark.needs("shared")
def test_istios_samples_attach() -> None:
    root = shared() / "istio" / "bookinfo"
    texts = {path.name: path.read_text(encoding="utf-8") for path in (root / "gateway-api").glob("route-all-v1.yaml")}
    texts["edge"] = (root / "gateway-api" / "bookinfo-gateway.yaml").read_text(encoding="utf-8")
    texts["platform"] = (root / "platform" / "bookinfo.yaml").read_text(encoding="utf-8")
    texts["versions"] = (root / "platform" / "bookinfo-versions.yaml").read_text(encoding="utf-8")
    done = analyze(texts)
    assert {verdict.state for verdict in done.verdicts} == {"accepted"}
    assert [note for verdict in done.verdicts for note in verdict.notes] == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70000) | st.text(max_size=6) | st.just("*"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "parentRefs",
                    "rules",
                    "matches",
                    "path",
                    "type",
                    "value",
                    "filters",
                    "backendRefs",
                    "name",
                    "port",
                    "weight",
                    "listeners",
                    "protocol",
                    "headers",
                    "requestRedirect",
                    "urlRewrite",
                    "timeouts",
                    "request",
                    "cors",
                    "retry",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=25,
)


@settings(max_examples=300)
@given(st.sampled_from(["HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "Gateway", "ReferenceGrant"]), JSON)
def test_total(kind: str, spec: Any) -> None:
    data = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": {"name": "a"}, "spec": spec}
    assert isinstance(convert(RawDocument("f", 1, data)), Accepted | Rejected)
