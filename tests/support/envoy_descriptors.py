"""The descriptors that a real Envoy binary embeds: an independent oracle for the derived schema.

protoc's C++ code carries each file's serialised ``FileDescriptorProto`` in the read-only data. They are found by their
first field (the file name) and measured by walking the wire format: a descriptor ends where the next field would be
no field of ``FileDescriptorProto``, or where the name comes a second time.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto
from google.protobuf.message import DecodeError

_START = re.compile(rb"\x0a([\x0a-\x7f])((?:envoy|xds|udpa|google|cel|validate)/[A-Za-z0-9_/.-]+?\.proto)\x12")
_FIELDS = {field.number: field for field in FileDescriptorProto.DESCRIPTOR.fields}
_LENGTH_DELIMITED = 2
_VARINT = 0


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 35:
            return -1, at


def _end(data: mmap.mmap, start: int) -> int:
    at, last, named = start, start, False
    while at < len(data):
        tag, after = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if number not in _FIELDS or kind not in (_LENGTH_DELIMITED, _VARINT) or (number == 1 and named):
            return last
        named = named or number == 1
        if kind == _VARINT:
            _, at = _varint(data, after)
        else:
            length, after = _varint(data, after)
            if length < 0 or length > 1 << 20 or after + length > len(data):
                return last
            at = after + length
        last = at
        if number == _FIELDS[12].number and kind == _LENGTH_DELIMITED:
            return last  # protoc writes ``syntax`` last
    return last


def embedded_files(binary: Path) -> dict[str, FileDescriptorProto]:
    """File name -> descriptor of every schema file in *binary*."""
    found: dict[str, FileDescriptorProto] = {}
    with binary.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for match in _START.finditer(data):
            name = match.group(2).decode()
            if match.group(1)[0] != len(name) or name in found:
                continue
            try:
                found[name] = FileDescriptorProto.FromString(data[match.start() : _end(data, match.start())])
            except DecodeError:
                continue
    return found


def messages_of(file: FileDescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
    """Every message of *file* with its full name, nested ones and map entries too."""

    def walk(prefix: str, message: DescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
        full = f"{prefix}.{message.name}"
        yield full, message
        for nested in message.nested_type:
            yield from walk(full, nested)

    for message in file.message_type:
        yield from walk(file.package, message)


def enums_of(file: FileDescriptorProto) -> Iterator[tuple[str, EnumDescriptorProto]]:
    """Every enum of *file* with its full name."""
    for enum in file.enum_type:
        yield f"{file.package}.{enum.name}", enum
    for full, message in messages_of(file):
        for enum in message.enum_type:
            yield f"{full}.{enum.name}", enum
