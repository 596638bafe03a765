"""Bytes of a BPF map's key or value as a typed, frozen record, and back (pure).

A record is a dataclass that names a structure of `layout.STRUCTS` and has its fields, in order, but without locks and
padding (written as zero, never read). Field types follow from the layout:

- integers as int; `__be16` as a host-order int;
- `__u32[4]` is an address everywhere in the ABI: 16 bytes in network order;
- `char[n]` as bytes without the trailing NULs; `__u8[n]` as n bytes;
- other arrays as tuples without the trailing zero elements, structures as records.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import fields
from typing import Any, ClassVar, Final, Self, cast, get_args, get_type_hints

from nodeagent.abi.layout import STRUCTS
from nodeagent.errors import CapacityError, LayoutError

_FORMATS: Final = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "be16": "H", "char": "c"}
_SIZES: Final = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "be16": 2, "char": 1, "bpf_spin_lock": 4}
_SWAP: Final = sys.byteorder == "little"


class Record:
    """Base of all records; subclasses are frozen dataclasses with `STRUCT` set."""

    STRUCT: ClassVar[str] = ""
    __slots__ = ()

    @classmethod
    def size(cls) -> int:
        """Bytes of the structure."""
        return STRUCTS[cls.STRUCT][0]

    def pack(self) -> bytes:
        """The structure's bytes. Raises CapacityError when a field does not fit; nothing is cut."""
        codec = _codec(type(self))
        try:
            return codec.format.pack(*codec.flatten(self))
        except struct.error as error:
            raise CapacityError(f"{self!r} does not fit struct {self.STRUCT}", str(error)) from None

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> Self:
        """A record of exactly `size()` bytes. Raises LayoutError otherwise."""
        codec = _codec(cls)
        if len(data) != codec.format.size:
            raise LayoutError(
                f"struct {cls.STRUCT} has {codec.format.size} bytes, the map gave {len(data)}",
                "the BPF object and this agent are of different versions",
            )
        record, _ = codec.gather(codec.format.unpack(data), 0)
        assert isinstance(record, cls)
        return record


class _Codec:
    """The compiled form of a record class: one `struct.Struct` over all scalars, nested records flattened."""

    def __init__(self, record: type[Record]) -> None:
        if record.STRUCT not in STRUCTS:
            raise LayoutError(f"{record.__name__} names no structure of the ABI ({record.STRUCT!r})")
        size, layout = STRUCTS[record.STRUCT]
        kept = [f for f in layout if not _padding(f[0], f[2])]
        names = [f.name for f in fields(cast("Any", record))]
        if names != [f[0] for f in kept]:
            raise LayoutError(f"{record.__name__} has fields {names}, struct {record.STRUCT} {[f[0] for f in kept]}")
        hints = get_type_hints(record)
        self.record: type[Record] = record
        self.parts: list[tuple[str, str, int, _Codec | None]] = []
        text, position = "=", 0
        for name, offset, kind, count in kept:
            text += "x" * (offset - position) if offset - position < 2 else f"{offset - position}x"
            nested = _codec(_nested(hints[name])) if kind.startswith("up_") else None
            part, length = _part(kind, count, nested)
            self.parts.append((name, kind, count, nested))
            text, position = text + part, offset + length
        text += f"{size - position}x" if size > position else ""
        self.text: str = text[1:]
        self.format: struct.Struct = struct.Struct(text)
        self.defaults: tuple[Any, ...] = self.format.unpack(bytes(self.format.size))

    def flatten(self, record: Record) -> list[Any]:
        """The scalars of a record in layout order."""
        out: list[Any] = []
        for name, kind, count, nested in self.parts:
            value = getattr(record, name)
            if nested is None:
                _flatten_scalar(out, f"{self.record.STRUCT}.{name}", kind, count, value)
            elif not count:
                out.extend(nested.flatten(value))
            else:
                if len(value) > count:
                    raise CapacityError(f"{self.record.STRUCT}.{name} holds {count} elements, not {len(value)}")
                for item in value:
                    out.extend(nested.flatten(item))
                out.extend(nested.defaults * (count - len(value)))
        return out

    def gather(self, scalars: tuple[Any, ...], at: int) -> tuple[Record, int]:
        """A record from scalars, and the position behind it."""
        values = []
        for _name, kind, count, nested in self.parts:
            if nested is None:
                value, at = _gather_scalar(kind, count, scalars, at)
            elif not count:
                value, at = nested.gather(scalars, at)
            else:
                items, zero = [], nested.gather(nested.defaults, 0)[0]
                for _ in range(count):
                    item, at = nested.gather(scalars, at)
                    items.append(item)
                while items and items[-1] == zero:
                    items.pop()
                value = tuple(items)
            values.append(value)
        return self.record(*values), at


def _padding(name: str, kind: str) -> bool:
    return kind == "bpf_spin_lock" or name == "pad" or name == "ethernet"


def _part(kind: str, count: int, nested: _Codec | None) -> tuple[str, int]:
    if nested is not None:
        return nested.text * max(count, 1), nested.format.size * max(count, 1)
    if kind == "char" or (kind == "u8" and count):
        return f"{max(count, 1)}s", max(count, 1)
    if kind == "u32" and count == 4:
        return "16s", 16
    return (f"{count}" if count else "") + _FORMATS[kind], _SIZES[kind] * max(count, 1)


def _flatten_scalar(out: list[Any], where: str, kind: str, count: int, value: Any) -> None:
    if kind == "char" or (kind in ("u8", "u32") and count and (kind == "u8" or count == 4)):
        room = 16 if kind == "u32" else max(count, 1)
        if len(value) > room or (kind == "u32" and len(value) != 16):
            raise CapacityError(f"{where} holds {room} bytes, not {len(value)}")
        out.append(value)
    elif count:
        if len(value) > count:
            raise CapacityError(f"{where} holds {count} elements, not {len(value)}")
        out.extend(_swapped(v) if kind == "be16" else v for v in value)
        out.extend([0] * (count - len(value)))
    else:
        out.append(_swapped(value) if kind == "be16" else value)


def _gather_scalar(kind: str, count: int, scalars: tuple[Any, ...], at: int) -> tuple[Any, int]:
    if kind == "char":
        return scalars[at].rstrip(b"\0"), at + 1
    if (kind == "u8" and count) or (kind == "u32" and count == 4):
        return scalars[at], at + 1
    if count:
        items = list(scalars[at : at + count])
        while items and items[-1] == 0:
            items.pop()
        return tuple(_swapped(v) if kind == "be16" else v for v in items), at + count
    return (_swapped(scalars[at]) if kind == "be16" else scalars[at]), at + 1


def _swapped(value: int) -> int:
    return (value & 0xFF) << 8 | value >> 8 if _SWAP and 0 <= value <= 0xFFFF else value


def _nested(hint: Any) -> type[Record]:
    """The record class in a field's type: `Action` or `tuple[Weight, ...]`."""
    inner = get_args(hint)[0] if get_args(hint) else hint
    if not (isinstance(inner, type) and issubclass(inner, Record)):
        raise LayoutError(f"{hint!r} is not a record")
    return inner


_CODECS: dict[type[Record], _Codec] = {}


def _codec(record: type[Record]) -> _Codec:
    found = _CODECS.get(record)
    if found is None:
        found = _CODECS[record] = _Codec(record)
    return found


def offset_of(structure: str, field: str) -> int:
    """Byte offset of a field, for values that are patched in place (`up_config.generation`)."""
    return next(offset for name, offset, _, _ in STRUCTS[structure][1] if name == field)
