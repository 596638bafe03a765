"""Messages that envoy-data-plane lacks and that Envoy, Istio or gRPC send inside ``Any``.

Declared here as data; names, types and numbers are those of the public API (cncf/xds). The contract test compares
them with a real Envoy's descriptors like all others. Build-time only: the runtime reads the descriptor set.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

_TYPES = {
    "string": FieldDescriptorProto.TYPE_STRING,
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "int32": FieldDescriptorProto.TYPE_INT32,
}

#: (name, number, type, repeated); a type with a dot is a message.
_Field = tuple[str, int, str, bool]


def _message(name: str, fields: list[_Field], nested: tuple[DescriptorProto, ...] = ()) -> DescriptorProto:
    out = DescriptorProto(name=name)
    for field_name, number, kind, repeated in fields:
        label = FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
        field = out.field.add(name=field_name, number=number, label=label)
        if "." in kind:
            field.type = FieldDescriptorProto.TYPE_MESSAGE
            field.type_name = f".{kind}"
        else:
            field.type = _TYPES[kind]
    out.nested_type.extend(nested)
    return out


def _file(path: str, package: str, *messages: DescriptorProto) -> FileDescriptorProto:
    out = FileDescriptorProto(name=f"underpass/extra/{path}.proto", package=package, syntax="proto3")
    out.message_type.extend(messages)
    return out


_ON_MATCH = "xds.type.matcher.v3.Matcher.OnMatch"

EXTRA_FILES: Final[tuple[FileDescriptorProto, ...]] = (
    _file(
        "xds_typed_struct",
        "xds.type.v3",
        _message("TypedStruct", [("type_url", 1, "string", False), ("value", 2, "google.protobuf.Struct", False)]),
    ),
    _file(
        "udpa_typed_struct",
        "udpa.type.v1",
        _message("TypedStruct", [("type_url", 1, "string", False), ("value", 2, "google.protobuf.Struct", False)]),
    ),
    _file(
        "xds_ip_matcher",
        "xds.type.matcher.v3",
        _message(
            "IPMatcher",
            [("range_matchers", 1, "xds.type.matcher.v3.IPMatcher.IPRangeMatcher", True)],
            (
                _message(
                    "IPRangeMatcher",
                    [
                        ("ranges", 1, "xds.core.v3.CidrRange", True),
                        ("on_match", 2, _ON_MATCH, False),
                        ("exclusive", 3, "bool", False),
                    ],
                ),
            ),
        ),
    ),
    _file(
        "xds_domain_matcher",
        "xds.type.matcher.v3",
        _message(
            "ServerNameMatcher",
            [("domain_matchers", 1, "xds.type.matcher.v3.ServerNameMatcher.DomainMatcher", True)],
            (_message("DomainMatcher", [("domains", 1, "string", True), ("on_match", 2, _ON_MATCH, False)]),),
        ),
    ),
)
