"""Rules as JSON and back: what stands in the `home_rules` map. Fields that have their default are left out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, Final, TypeVar, cast, get_args, get_origin, get_type_hints

from nodeagent.errors import RuleError
from nodeagent.rules.model import Rule

_T = TypeVar("_T")
_SCALARS: Final = (bool, int, float, str)


def encode(rule: Rule) -> bytes:
    """The rule's JSON; equal rules give equal bytes."""
    return json.dumps(_plain(rule), separators=(",", ":"), ensure_ascii=False).encode()


def key_of(text: bytes) -> int:
    """The 64-bit number that names a rule by its text; never one below 64, which name refusals (`up_reply`)."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") | 64


def decode(text: bytes) -> Rule:
    """The rule of some JSON. Raises RuleError for anything that `encode` does not make."""
    try:
        data = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as cause:
        raise RuleError("a rule is not JSON", str(cause), "agent and home may be of different builds") from None
    return _made(Rule, data, "rule")


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        shown = {}
        for field in fields(value):
            item = getattr(value, field.name)
            if field.default is MISSING or item != field.default:
                shown[field.name] = _plain(item)
        return shown
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, StrEnum) else value


def _made(kind: type[_T], data: Any, where: str) -> _T:
    if not isinstance(data, dict):
        raise _unfit(where, "an object", data)
    hints = get_type_hints(kind)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise RuleError(f"{where} has {unknown[0]!r}", "this build does not know it", "upgrade home and agent together")
    given = {name: _value(hints[name], item, f"{where}.{name}") for name, item in data.items()}
    try:
        return kind(**given)
    except TypeError as cause:
        raise RuleError(f"{where} is not whole", str(cause), "upgrade home and agent together") from None


def _value(hint: Any, data: Any, where: str) -> Any:
    if isinstance(hint, UnionType):  # `X | None`; None is a default and never written
        hint = next(part for part in get_args(hint) if part is not NoneType)
    if get_origin(hint) is tuple:
        if not isinstance(data, list):
            raise _unfit(where, "a list", data)
        inner = get_args(hint)[0]
        return tuple(_value(inner, item, f"{where}[{i}]") for i, item in enumerate(data))
    if is_dataclass(hint):
        return _made(cast("type[Any]", hint), data, where)
    if issubclass(hint, StrEnum):
        try:
            return hint(data)
        except ValueError:
            raise _unfit(where, f"a {hint.__name__}", data) from None
    if hint is float and type(data) is int:
        return float(data)
    if hint not in _SCALARS or type(data) is not hint:
        raise _unfit(where, hint.__name__, data)
    return data


def _unfit(where: str, wanted: str, data: Any) -> RuleError:
    return RuleError(f"{where} is not {wanted}", f"it is {str(data)[:40]!r}", "upgrade home and agent together")
