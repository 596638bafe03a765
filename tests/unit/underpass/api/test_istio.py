"""Our declarations of Istio's messages against the CRDs' OpenAPI, field by field; and proto JSON as Istio reads it."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import yaml

from tests.support.tiers import shared
from underpass.api import istio

#: Field paths that the CRDs have and we do not, or the other way, with the reason.
ONLY_CRD: dict[str, str] = {
    "VirtualService http[].mirror_percent": "the deprecated field under its proto name; proto JSON takes both names",
    "RequestAuthentication jwtRules[].jwks_uri": "jwksUri under its proto name; proto JSON takes both names",
}
ONLY_OURS: dict[str, str] = {}


@cache
def openapi() -> dict[str, Any]:
    path = shared() / "istio" / "crds" / "crd-all.gen.yaml"
    out: dict[str, Any] = {}
    for document in yaml.load_all(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader):
        if document and document["spec"]["names"]["kind"] in istio.KINDS:
            versions = {item["name"]: item for item in document["spec"]["versions"]}
            newest = versions.get("v1") or next(iter(versions.values()))
            out[document["spec"]["names"]["kind"]] = newest["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return out


def crd_fields(schema: dict[str, Any], path: str = "") -> set[str]:
    out: set[str] = set()
    for name, item in schema.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        inner = item
        if item.get("type") == "array":
            here, inner = f"{here}[]", item["items"]
        extra = item.get("additionalProperties")
        if isinstance(extra, dict):
            here, inner = f"{here}{{}}", extra
        out.add(here)
        out |= crd_fields(inner, here)
    return out


@pytest.mark.needs("shared")
@pytest.mark.parametrize("kind", sorted(istio.KINDS))
def test_fields_are_the_crds(kind: str) -> None:
    theirs = crd_fields(openapi()[kind])
    ours = set(istio.fields(istio.KINDS[kind][1]))
    assert sorted(f for f in theirs - ours if f"{kind} {f}" not in ONLY_CRD) == []
    assert sorted(f for f in ours - theirs if f"{kind} {f}" not in ONLY_OURS) == []


@pytest.mark.needs("shared")
@pytest.mark.parametrize("kind", sorted(istio.KINDS))
def test_types_are_the_crds(kind: str) -> None:
    """A value that the OpenAPI type allows is parsed, one of another type is refused."""
    samples = {
        "string": "10s",
        "integer": 1,
        "number": 1.5,
        "boolean": True,
    }

    def check(schema: dict[str, Any], wrap: Callable[[Any], Any]) -> None:
        for name, item in schema.get("properties", {}).items():
            inner, here = item, partial(_at, wrap, name)
            if item.get("type") == "array":
                inner, here = item["items"], partial(_in_list, here)
            elif isinstance(item.get("additionalProperties"), dict):
                inner, here = item["additionalProperties"], partial(_in_map, here)
            if inner.get("type") == "object" or "properties" in inner:
                check(inner, here)
                continue
            value = inner["enum"][-1] if "enum" in inner else samples[inner["type"]]
            if name == "bytes":
                value = "YQ=="
            istio.parse(istio.KINDS[kind][1], here(value))
            with pytest.raises(istio.IstioSchemaError):
                istio.parse(istio.KINDS[kind][1], here({"not": ["a", "scalar"]}))

    check(openapi()[kind], lambda value: value)


def _at(wrap: Callable[[Any], Any], name: str, value: Any) -> Any:
    return wrap({name: value})


def _in_list(wrap: Callable[[Any], Any], value: Any) -> Any:
    return wrap([value])


def _in_map(wrap: Callable[[Any], Any], value: Any) -> Any:
    return wrap({"1": value})


@pytest.mark.parametrize(
    ("text", "seconds", "nanos"),
    [
        ("1.5s", 1, 500_000_000),
        ("100ms", 0, 100_000_000),
        ("1m30s", 90, 0),
        ("2h", 7200, 0),
        ("0", 0, 0),
        ("3us", 0, 3000),
    ],
)
def test_durations(text: str, seconds: int, nanos: int) -> None:
    made = istio.parse("istio.networking.v1alpha3.HTTPRoute", {"timeout": text}).message.timeout
    assert (made.seconds, made.nanos) == (seconds, nanos)


@pytest.mark.parametrize("text", ["soon", "1", "1 s", "s", "1x", ""])
def test_bad_durations(text: str) -> None:
    with pytest.raises(istio.IstioSchemaError, match="timeout"):
        istio.parse("istio.networking.v1alpha3.HTTPRoute", {"timeout": text})


def test_both_names_of_a_field_and_null() -> None:
    kind = "istio.networking.v1alpha3.HTTPRoute"
    assert istio.parse(kind, {"corsPolicy": {}}).message == istio.parse(kind, {"cors_policy": {}}).message
    assert not istio.parse(kind, {"timeout": None}).message.HasField("timeout")


def test_descriptor_set_is_what_protos_say(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The committed set is not stale."""
    pytest.importorskip("grpc_tools")
    from importlib import resources

    from grpc_tools import protoc

    from tests.support.tiers import repository

    root = repository()
    include = str(resources.files("grpc_tools").joinpath("_proto"))
    sources = sorted(str(path.relative_to(root)) for path in (root / "protos" / "istio").rglob("*.proto"))
    target = tmp_path / "istio.binpb"
    monkeypatch.chdir(root)
    arguments = ["protoc", "-Iprotos", f"-I{include}", "--include_imports", f"--descriptor_set_out={target}", *sources]
    assert protoc.main(arguments) == 0
    assert target.read_bytes() == (root / "underpass" / "api" / "istio.binpb").read_bytes()
