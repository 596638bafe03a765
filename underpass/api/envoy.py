"""Envoy's v3 API as fast (upb) protobuf classes, without touching the process-wide descriptor pool.

``envoy.Cluster``, ``envoy.Listener`` and the other names of :mod:`underpass.api.names` are message classes; any other
message is ``envoy.message("envoy.config.cluster.v3.Cluster")``. The schema is a descriptor set shipped beside this
module (``envoy.binpb``, written by :mod:`underpass.api.derive`). The pool is private: another library that carries the
same protos, even another version of them, cannot collide with it. Classes of this pool are therefore *not* the
classes of ``google.protobuf.any_pb2`` and friends; use ``envoy.Any``, ``envoy.Duration``, ``envoy.Struct``.

A file of the schema is read into the pool when a message of it is first asked for, so a process pays for what it uses.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Final, cast
from typing import Any as _Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

from underpass.api.names import ALIASES

if TYPE_CHECKING:
    from google.protobuf.message import Message

TYPE_PREFIX: Final = "type.googleapis.com/"

_ENUM_CACHE: dict[str, _Any] = {}


class SchemaError(Exception):
    """A message does not fit the schema: what was asked, and why it cannot be given."""


class UnknownTypeError(SchemaError):
    """A message or enum name that the schema does not have."""


class _Files:
    """Descriptor database over the shipped set: the pool asks it for one file at a time."""

    def __init__(self, data: bytes) -> None:
        self._by_name: dict[str, descriptor_pb2.FileDescriptorProto] = {}
        self._by_symbol: dict[str, descriptor_pb2.FileDescriptorProto] = {}
        for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
            self._by_name[file.name] = file
            for message_type in file.message_type:
                self._by_symbol[f"{file.package}.{message_type.name}"] = file
            for enum_type in file.enum_type:
                self._by_symbol[f"{file.package}.{enum_type.name}"] = file

    def FindFileByName(self, name: str) -> descriptor_pb2.FileDescriptorProto:  # noqa: N802 - protobuf's interface
        return self._by_name[name]

    def FindFileContainingSymbol(self, symbol: str) -> descriptor_pb2.FileDescriptorProto:  # noqa: N802
        while symbol not in self._by_symbol:
            symbol, _, last = symbol.rpartition(".")
            if not last or not symbol:
                raise KeyError(symbol)
        return self._by_symbol[symbol]


pool: Final = descriptor_pool.DescriptorPool(
    cast("_Any", _Files(resources.files("underpass.api").joinpath("envoy.binpb").read_bytes()))
)
_lock: Final = threading.Lock()
_classes: Final[dict[str, type[Message]]] = {}


def message(full_name: str) -> type[Message]:
    """The class of the message called *full_name* (``envoy.config.cluster.v3.Cluster``).

    Raises :class:`UnknownTypeError` when the schema has no such message.
    """
    found = _classes.get(full_name)
    if found is None:
        with _lock:
            try:
                descriptor = pool.FindMessageTypeByName(full_name)
            except KeyError:
                raise UnknownTypeError(f"no message {full_name!r} in the schema of this release") from None
            found = _classes[full_name] = message_factory.GetMessageClass(descriptor)
    return found


def enum_value(full_name: str, value: str) -> int:
    """Number of the value called *value* of the enum *full_name*."""
    found = _enum(full_name).values_by_name.get(value)
    if found is None:
        raise UnknownTypeError(f"enum {full_name} has no value {value!r}")
    return int(found.number)


def enum_name(full_name: str, number: int) -> str:
    """Name of value *number* of the enum *full_name*; the number as text when the schema does not name it."""
    found = _enum(full_name).values_by_number.get(number)
    return str(number) if found is None else str(found.name)


def _enum(full_name: str) -> _Any:
    found = _ENUM_CACHE.get(full_name)
    if found is None:
        try:
            found = _ENUM_CACHE[full_name] = pool.FindEnumTypeByName(full_name)
        except KeyError:
            raise UnknownTypeError(f"no enum {full_name!r} in the schema of this release") from None
    return found


def type_url(kind: Message | type[Message] | str) -> str:
    """``type.googleapis.com/`` + full name, for a message, a class, an alias or a full name."""
    if isinstance(kind, str):
        return TYPE_PREFIX + ALIASES.get(kind, kind)
    return TYPE_PREFIX + str(kind.DESCRIPTOR.full_name)


def pack_any(payload: Message) -> _Any:
    """*payload* in an ``Any`` of this pool, serialised deterministically (map entries in key order)."""
    return _any()(type_url=type_url(payload), value=payload.SerializeToString(deterministic=True))


def _any() -> _Any:
    return message("google.protobuf.Any")


def unpack_any(packed: Message) -> Message:
    """The message inside an ``Any``.

    Raises :class:`UnknownTypeError` for a type that the schema lacks, :class:`SchemaError` for bytes that are not one.
    """
    box: _Any = packed
    name = str(box.type_url).rpartition("/")[2]
    kind = message(name)
    try:
        return kind.FromString(box.value)
    except Exception as error:  # protobuf raises its own DecodeError, which differs between backends
        raise SchemaError(f"the bytes of an Any are not a {name}: {error}") from error


def to_dict(payload: Message, *, proto_names: bool = False, defaults: bool = False) -> dict[str, _Any]:
    """proto3 JSON of *payload* as Python values; ``Any`` is expanded through this schema."""
    return json_format.MessageToDict(
        payload,
        preserving_proto_field_name=proto_names,
        always_print_fields_with_no_presence=defaults,
        descriptor_pool=pool,
    )


def to_json(payload: Message, *, indent: int | None = None) -> str:
    """proto3 JSON text of *payload*, keys sorted; one line unless *indent* is given."""
    return json_format.MessageToJson(payload, indent=indent, sort_keys=True, descriptor_pool=pool)


def from_dict(kind: type[Message] | str, data: Mapping[str, _Any], *, ignore_unknown: bool = False) -> Message:
    """The message that proto3 JSON *data* describes; raises :class:`SchemaError` naming the field at fault."""
    target = _resolve(kind)()
    try:
        json_format.ParseDict(dict(data), target, ignore_unknown_fields=ignore_unknown, descriptor_pool=pool)
    except json_format.ParseError as error:
        raise SchemaError(f"not a {target.DESCRIPTOR.full_name}: {error}") from error
    return target


def from_json(kind: type[Message] | str, text: str | bytes, *, ignore_unknown: bool = False) -> Message:
    """As :func:`from_dict`, from JSON text."""
    target = _resolve(kind)()
    try:
        json_format.Parse(text, target, ignore_unknown_fields=ignore_unknown, descriptor_pool=pool)
    except json_format.ParseError as error:
        raise SchemaError(f"not a {target.DESCRIPTOR.full_name}: {error}") from error
    return target


def _resolve(kind: type[Message] | str) -> type[Message]:
    return message(ALIASES.get(kind, kind)) if isinstance(kind, str) else kind


def aliases() -> Mapping[str, str]:
    """Short name -> full name of every alias."""
    return dict(ALIASES)


def __getattr__(name: str) -> _Any:
    full = ALIASES.get(name)
    if full is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; use message(full_name)")
    found = message(full)
    globals()[name] = found  # later look-ups skip this function
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *ALIASES})
