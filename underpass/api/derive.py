"""Derive the protobuf schema that Underpass speaks; run when dependencies change, never by the product.

``python -m underpass.api.derive [--check]`` reads the dataclass metadata of envoy-data-plane (the schema the
project names) and writes, next to this file,

* ``envoy.binpb``: a serialised ``FileDescriptorSet`` of Envoy's v3 API, and
* ``envoy.pyi``: the names that :mod:`underpass.api.envoy` offers, for type checkers.

Why a derived set instead of the library itself: its codec is about a thousand times slower than upb and pulls
pydantic into every process. Why not xds-protos: it lacks fields, and overwrites files of other distributions.

The library keeps package, message and field names, numbers, types, oneofs and enum numbers. It does not keep proto
files, nor the full names of enums. Neither is visible on the wire or in JSON: each top-level message (with whatever
refers back to it) becomes a file of its own, and an enum is placed under the longest message whose flattened name
begins its own. ``tests/conformance/test_envoy_descriptors.py`` compares the result with the descriptors that a real
Envoy carries.
"""

from __future__ import annotations

import argparse
import importlib
import keyword
import pkgutil
import sys
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf import any_pb2, duration_pb2, empty_pb2, struct_pb2, timestamp_pb2, wrappers_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from underpass.api.extra import EXTRA_FILES
from underpass.api.names import ALIASES

HERE = Path(__file__).resolve().parent
BINARY = HERE / "envoy.binpb"
STUB = HERE / "envoy.pyi"

#: Files of google.protobuf come from the protobuf runtime itself, byte for byte.
_WELL_KNOWN = tuple(
    module.DESCRIPTOR for module in (any_pb2, duration_pb2, empty_pb2, struct_pb2, timestamp_pb2, wrappers_pb2)
)
_WELL_KNOWN_FILE_OF = {
    f"google.protobuf.{name}": file.name for file in _WELL_KNOWN for name in file.message_types_by_name
} | {f"google.protobuf.{name}": file.name for file in _WELL_KNOWN for name in file.enum_types_by_name}

#: Package prefixes that are annotations on schemas, never data on a wire, and the retired v2 API.
_SKIPPED = ("google.protobuf", "validate", "udpa.annotations", "xds.annotations", "envoy.annotations", "envoy.api.v2")

_SCALARS = {
    name: getattr(FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in (
        "bool",
        "bytes",
        "double",
        "enum",
        "fixed32",
        "fixed64",
        "float",
        "int32",
        "int64",
        "message",
        "sfixed32",
        "sfixed64",
        "sint32",
        "sint64",
        "string",
        "uint32",
        "uint64",
    )
}


def _retired(package: str) -> bool:
    parts = package.split(".")
    return package.startswith(_SKIPPED) or any(part.startswith("v2") for part in parts)


class _Schema:
    """The registered message classes and the enums they use, by full protobuf name."""

    def __init__(self) -> None:
        root = importlib.import_module("envoy_data_plane")
        modules = [
            importlib.import_module(found.name)
            for found in pkgutil.walk_packages(root.__path__, f"{root.__name__}.")
            if found.name.endswith(".google.protobuf") or not _retired(found.name.removeprefix(f"{root.__name__}."))
        ]
        pool = importlib.import_module("envoy_data_plane.message_pool").default_message_pool
        self.name_of: dict[type, str] = {cls: url.rpartition("/")[2] for cls, url in pool.type_to_url.items()}
        self.package_of: dict[str, str] = {}
        self.messages: dict[str, type] = {}
        flat: dict[tuple[str, str], str] = {}
        for cls, full in sorted(self.name_of.items(), key=lambda item: item[1]):
            package = cls.__module__.removeprefix(f"{root.__name__}.")
            self.package_of[full] = package
            flat[package, cls.__name__] = full
            if not _retired(package):
                self.messages[full] = cls
        enum_base = importlib.import_module("betterproto2").Enum
        self.enums: dict[str, type] = {}
        for module in modules:
            package = module.__name__.removeprefix(f"{root.__name__}.")
            for name in getattr(module, "__all__", ()):
                cls = getattr(module, name)
                if isinstance(cls, type) and issubclass(cls, enum_base) and cls.__module__ == module.__name__:
                    full = _place_enum(package, name, flat)
                    self.name_of[cls] = full
                    self.package_of[full] = package
                    if not _retired(package):
                        self.enums[full] = cls


def _place_enum(package: str, name: str, flat: dict[tuple[str, str], str]) -> str:
    """Full name of an enum whose flattened class name is *name*: nested in the longest message that begins it."""
    for cut in range(len(name) - 1, 0, -1):
        parent = flat.get((package, name[:cut]))
        if parent and name[cut].isupper():
            return f"{parent}.{name[cut:]}"
    return f"{package}.{name}"


def _enum(cls: typing.Any, name: str) -> EnumDescriptorProto:
    renamed = cls.betterproto_value_to_renamed_proto_names()
    out = EnumDescriptorProto(name=name)
    numbers = set()
    for member, value in cls.__members__.items():
        number = int(value)
        if number in numbers:
            out.options.allow_alias = True
        numbers.add(number)
        out.value.add(name=renamed.get(number, member), number=number)
    # proto3 wants the zero value first; the order has no other meaning.
    ordered = sorted(out.value, key=lambda item: (item.number != 0,))
    fresh = EnumDescriptorProto(name=name)
    fresh.options.CopyFrom(out.options)
    if not out.HasField("options"):
        fresh.ClearField("options")
    fresh.value.extend(ordered)
    return fresh


def _type_of(schema: _Schema, meta: typing.Any, cls: typing.Any, field: FieldDescriptorProto) -> None:
    """Fill type and type_name of *field*."""
    field.type = _SCALARS[meta.proto_type]
    if meta.proto_type in ("message", "enum"):
        target = meta.unwrap() if meta.unwrap else cls
        field.type_name = f".{schema.name_of[target]}"


def _message(schema: _Schema, full: str, cls: typing.Any) -> DescriptorProto:
    out = DescriptorProto(name=full.rpartition(".")[2])
    details = cls._betterproto
    groups: dict[str, int] = {}
    presence: list[FieldDescriptorProto] = []
    for name, meta in details.meta_by_field_name.items():
        proto_name = name[:-1] if name.endswith("_") and keyword.iskeyword(name[:-1]) else name
        field = out.field.add(name=proto_name, number=meta.number)
        field.label = FieldDescriptorProto.LABEL_REPEATED if meta.repeated else FieldDescriptorProto.LABEL_OPTIONAL
        if meta.map_meta is not None:
            field.label = FieldDescriptorProto.LABEL_REPEATED
            entry = out.nested_type.add(name="".join(p[:1].upper() + p[1:] for p in proto_name.split("_")) + "Entry")
            entry.options.map_entry = True
            for number, (part, part_meta) in enumerate(zip(("key", "value"), meta.map_meta, strict=True), start=1):
                inner = entry.field.add(name=part, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
                _type_of(schema, part_meta, details.cls_by_field.get(f"{name}.value"), inner)
            field.type = FieldDescriptorProto.TYPE_MESSAGE
            field.type_name = f".{full}.{entry.name}"
            continue
        _type_of(schema, meta, details.cls_by_field[name], field)
        if meta.group:
            if meta.group not in groups:
                groups[meta.group] = len(out.oneof_decl)
                out.oneof_decl.add(name=meta.group)
            field.oneof_index = groups[meta.group]
        elif meta.optional and meta.proto_type != "message":
            field.proto3_optional = True
            presence.append(field)
    for field in presence:  # synthetic oneofs come after the real ones, as protoc orders them
        field.oneof_index = len(out.oneof_decl)
        out.oneof_decl.add(name=f"_{field.name}")
    return out


def _references(message: DescriptorProto) -> Iterator[str]:
    for field in message.field:
        if field.type_name:
            yield field.type_name[1:]
    for nested in message.nested_type:
        yield from _references(nested)


def _top_level(schema: _Schema) -> dict[str, DescriptorProto | EnumDescriptorProto]:
    """Top-level messages (with everything nested in them) and top-level enums."""
    built: dict[str, DescriptorProto] = {}
    for full in sorted(schema.messages):
        built[full] = _message(schema, full, schema.messages[full])
    tops: dict[str, DescriptorProto | EnumDescriptorProto] = {}
    for full in sorted(schema.enums):
        made = _enum(schema.enums[full], full.rpartition(".")[2])
        parent = full.rpartition(".")[0]
        if parent in built:
            built[parent].enum_type.append(made)
        else:
            tops[full] = made
    # Children before parents: extend() copies, so the deepest must be complete first.
    for full in sorted(built, key=lambda name: -name.count(".")):
        parent = full.rpartition(".")[0]
        if parent in built:
            built[parent].nested_type.append(built[full])
        elif parent == schema.package_of[full]:
            tops[full] = built[full]
        else:
            raise SystemExit(f"derive: {full} has a parent that is neither a message nor its package")
    return tops


def _components(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components in dependency order (Tarjan, iterative)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    out: list[list[str]] = []
    for root in sorted(graph):
        if root in index:
            continue
        work = [(root, iter(sorted(graph[root])))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, children = work[-1]
            for child in children:
                if child not in index:
                    index[child] = low[child] = len(index)
                    stack.append(child)
                    on_stack.add(child)
                    work.append((child, iter(sorted(graph[child]))))
                    break
                if child in on_stack:
                    low[node] = min(low[node], index[child])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    component = []
                    while True:
                        member = stack.pop()
                        on_stack.discard(member)
                        component.append(member)
                        if member == node:
                            break
                    out.append(sorted(component))
    return out


def _file_path(full: str) -> str:
    return "underpass/" + full.replace(".", "/") + ".proto"


def derive() -> FileDescriptorSet:
    """The whole schema as a descriptor set, files in dependency order; deterministic."""
    schema = _Schema()
    tops = _top_level(schema)
    extra_of = {f"{file.package}.{message.name}": file.name for file in EXTRA_FILES for message in file.message_type}

    def owner(wanted: str) -> str:
        name = wanted
        while name not in tops:
            name = name.rpartition(".")[0]
            if not name:
                raise SystemExit(f"derive: {wanted} is referred to and not declared")
        return name

    graph: dict[str, set[str]] = {}
    outside: dict[str, set[str]] = {}
    for full, proto in tops.items():
        refs = set(_references(proto)) if isinstance(proto, DescriptorProto) else set()
        outside[full] = {_WELL_KNOWN_FILE_OF[r] for r in refs if r in _WELL_KNOWN_FILE_OF}
        graph[full] = {owner(r) for r in refs if r not in _WELL_KNOWN_FILE_OF} - {full}
    result = FileDescriptorSet()
    for known in _WELL_KNOWN:
        result.file.add().MergeFromString(known.serialized_pb)
    file_of: dict[str, str] = {}
    for component in _components(graph):
        packages = {schema.package_of[name] for name in component}
        if len(packages) != 1:
            raise SystemExit(f"derive: messages of several packages refer to each other: {component}")
        path = _file_path(component[0])
        file = FileDescriptorProto(name=path, package=packages.pop(), syntax="proto3")
        needs: set[str] = set()
        for name in component:
            file_of[name] = path
        for name in component:
            needs |= outside[name] | {file_of[ref] for ref in graph[name]}
            proto = tops[name]
            if isinstance(proto, DescriptorProto):
                file.message_type.append(proto)
            else:
                file.enum_type.append(proto)
        file.dependency.extend(sorted(needs - {path}))
        result.file.append(file)
    for extra in EXTRA_FILES:
        clash = [name for name in extra_of if name in tops]
        if clash:
            raise SystemExit(f"derive: envoy-data-plane now has {clash}; remove them from underpass/api/extra.py")
        resolved = FileDescriptorProto()
        resolved.CopyFrom(extra)
        del resolved.dependency[:]
        refs = {ref for message in extra.message_type for ref in _references(message)}
        own = {f"{extra.package}.{message.name}" for message in extra.message_type}
        resolved.dependency.extend(
            sorted(
                {
                    _WELL_KNOWN_FILE_OF.get(ref) or extra_of.get(ref) or file_of[owner(ref)]
                    for ref in refs
                    if not any(ref == name or ref.startswith(f"{name}.") for name in own)
                }
            )
        )
        result.file.append(resolved)
    return result


def _stub() -> str:
    head = """# Generated by python -m underpass.api.derive; do not edit. See envoy.py for what the functions do.

from collections.abc import Mapping
from typing import Any as _Any

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

class _Meta(type):
    def __getattr__(cls, name: str) -> _Any: ...

class _M(Message, metaclass=_Meta):
    def __init__(self, **fields: _Any) -> None: ...
    def __getattr__(self, name: str) -> _Any: ...
    def __setattr__(self, name: str, value: _Any) -> None: ...

class SchemaError(Exception): ...
class UnknownTypeError(SchemaError): ...

TYPE_PREFIX: str
pool: DescriptorPool

def message(full_name: str) -> type[_M]: ...
def enum_value(full_name: str, value: str) -> int: ...
def enum_name(full_name: str, number: int) -> str: ...
def type_url(kind: Message | type[Message] | str) -> str: ...
def pack_any(payload: Message) -> Any: ...
def unpack_any(packed: Message) -> _M: ...
def to_dict(payload: Message, *, proto_names: bool = ..., defaults: bool = ...) -> dict[str, _Any]: ...
def to_json(payload: Message, *, indent: int | None = ...) -> str: ...
def from_dict(kind: type[_M] | str, data: Mapping[str, _Any], *, ignore_unknown: bool = ...) -> _M: ...
def from_json(kind: type[_M] | str, text: str | bytes, *, ignore_unknown: bool = ...) -> _M: ...
def aliases() -> Mapping[str, str]: ...

"""
    return head + "".join(f"class {alias}(_M): ...\n" for alias in sorted(ALIASES))


def main(argv: Iterable[str] | None = None) -> int:
    """Write the two files, or with ``--check`` compare them; exit status 1 when they differ."""
    parser = argparse.ArgumentParser(prog="python -m underpass.api.derive", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the files in place, change nothing")
    options = parser.parse_args(None if argv is None else list(argv))
    binary = derive().SerializeToString(deterministic=True)
    stub = _stub()
    if options.check:
        stale = [
            path.name
            for path, content in ((BINARY, binary), (STUB, stub.encode()))
            if not path.exists() or path.read_bytes() != content
        ]
        if stale:
            print(f"stale: {', '.join(stale)}; run python -m underpass.api.derive", file=sys.stderr)
        return 1 if stale else 0
    BINARY.write_bytes(binary)
    STUB.write_text(stub)
    return 0


if __name__ == "__main__":
    sys.exit(main())
