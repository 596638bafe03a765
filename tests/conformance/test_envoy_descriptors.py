"""The derived schema against the descriptors inside a real Envoy 1.40: names, numbers, types, oneofs, enum values."""

from __future__ import annotations

import importlib.util
from importlib import resources
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorSet

from tests.support.envoy_descriptors import embedded_files, enums_of, messages_of
from underpass.api import derive, envoy
from underpass.api.names import ALIASES

pytestmark = pytest.mark.needs("envoy")

#: Fields of the schema source that Envoy 1.40 renumbered or dropped since; none is one we send.
_SKEW = {
    ("envoy.extensions.filters.http.mcp_json_rest_bridge.v3.ServerInfo", "supported_protocol_versions"),
    ("google.api.expr.v1alpha1.Decl.FunctionDecl", "doc"),
}
#: Enums whose nested name cannot be told from the flattened class name; visible neither on the wire nor in JSON.
_PLACED_ELSEWHERE = {
    "envoy.config.route.v3.RetryPolicy.ResetHeader.Format": "envoy.config.route.v3.RetryPolicy.ResetHeaderFormat",
    "envoy.data.core.v3.HealthCheckFailure.Type": "envoy.data.core.v3.HealthCheckFailureType",
}


def _binary() -> Path:
    spec = importlib.util.find_spec("envoy")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / "_bin" / "envoy"


@pytest.fixture(scope="module")
def theirs() -> tuple[dict[str, DescriptorProto], dict[str, EnumDescriptorProto]]:
    files = embedded_files(_binary())
    assert len(files) > 400, "the scan of the binary found too little to compare with"
    return (
        {name: message for file in files.values() for name, message in messages_of(file)},
        {name: enum for file in files.values() for name, enum in enums_of(file)},
    )


@pytest.fixture(scope="module")
def ours() -> tuple[dict[str, DescriptorProto], dict[str, EnumDescriptorProto]]:
    shipped = FileDescriptorSet.FromString(resources.files("underpass.api").joinpath("envoy.binpb").read_bytes())
    return (
        {name: message for file in shipped.file for name, message in messages_of(file)},
        {name: enum for file in shipped.file for name, enum in enums_of(file)},
    )


def _shape(message: DescriptorProto) -> dict[str, tuple[object, ...]]:
    out: dict[str, tuple[object, ...]] = {}
    for field in message.field:
        group = ""
        if field.HasField("oneof_index") and not field.proto3_optional:
            group = message.oneof_decl[field.oneof_index].name
        kind = _PLACED_ELSEWHERE.get(field.type_name[1:], field.type_name[1:]).lower()  # HTTPVersion -> HttpVersion
        out[field.name] = (field.number, field.type, field.label, kind, field.proto3_optional, group)
    return out


def test_every_field_that_we_can_set_is_the_field_that_envoy_reads(
    ours: tuple[dict[str, DescriptorProto], dict[str, EnumDescriptorProto]],
    theirs: tuple[dict[str, DescriptorProto], dict[str, EnumDescriptorProto]],
) -> None:
    wrong = []
    compared = 0
    for name, message in ours[0].items():
        if name not in theirs[0]:
            continue
        genuine = _shape(theirs[0][name])
        for field, shape in _shape(message).items():
            compared += 1
            if (name, field) not in _SKEW and genuine.get(field) != shape:
                wrong.append((name, field, shape, genuine.get(field)))
    assert compared > 4500
    assert not wrong


def test_enum_numbers_and_names_are_envoys(
    ours: tuple[dict[str, DescriptorProto], dict[str, EnumDescriptorProto]],
    theirs: tuple[dict[str, DescriptorProto], dict[str, EnumDescriptorProto]],
) -> None:
    genuine = {name.lower(): enum for name, enum in theirs[1].items()}
    compared = 0
    for name, enum in ours[1].items():
        oracle = genuine.get(_PLACED_ELSEWHERE.get(name, name).lower())
        if oracle is None:
            continue
        compared += 1
        assert {(v.name, v.number) for v in enum.value} <= {(v.name, v.number) for v in oracle.value}, name
    assert compared > 140


def test_each_alias_names_a_message_that_envoy_has(
    theirs: tuple[dict[str, DescriptorProto], dict[str, EnumDescriptorProto]],
) -> None:
    # google.protobuf's own files are in the binary too, but under the runtime's names and layout.
    # CSDS is a service that only control planes and gRPC have: Envoy has no file of it.
    elsewhere = ("google.protobuf.", "envoy.service.status.")
    named = {full for full in ALIASES.values() if not full.startswith(elsewhere)}
    assert named - set(theirs[0]) == set()
    for alias in ALIASES:
        assert getattr(envoy, alias)().ByteSize() == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_shipped_files_are_what_the_schema_source_yields() -> None:
    assert derive.main(["--check"]) == 0
