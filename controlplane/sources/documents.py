"""YAML text to plain documents that remember their lines.  Pure and total: broken YAML is a document with an error.

Scalars are read as Kubernetes reads them, not as YAML 1.1 in full: ``1:30`` is a string and not ninety, a date is a
string.  ``---`` at the start of a line always ends a document, whatever came before, so text is cut there first and
one broken document spoils only itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

#: Nodes in one document after aliases are expanded; more is an attack or a mistake.
MAX_NODES: Final = 500_000
#: Nesting of one document.
MAX_DEPTH: Final = 64

_MARKER: Final = re.compile(r"^---(?=[ \t\r\n]|$)", re.MULTILINE)
#: Line breaks as the YAML scanner counts them.
_BREAK: Final = re.compile(r"\r\n|[\r\n\x85\u2028\u2029]")
_INT: Final = re.compile(r"[-+]?(0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)")
#: Numbers that PyYAML, following YAML 1.1 to the letter, takes for text.
_NUMBER_TO_OTHERS: Final = re.compile(r"[-+]?0o[0-7]+|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]{1,4}")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class RawDocument:
    """One document: plain values, or the reason why there are none.

    ``line`` is 1-based.  ``lines`` maps paths (``spec.http[0]``) to lines, for objects whose parts are reported.
    ``error`` is ``(code, message, line)``.
    """

    file: str
    line: int
    data: Any = None
    lines: Mapping[str, int] = field(default_factory=dict)
    error: tuple[str, str, int] | None = None


class _Loader(yaml.CSafeLoader):
    """The C parser, asked for nodes only; values are made below."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


class _BadError(Exception):
    def __init__(self, code: str, message: str, line: int) -> None:
        super().__init__(message)
        self.code, self.message, self.line = code, message, line


def parse(file: str, text: str) -> tuple[RawDocument, ...]:
    """Split ``text`` into documents.  Empty documents are left out; a ``List`` becomes its items.  Never raises."""
    return tuple(document for line, chunk in _chunks(text) for document in _documents(file, line, chunk))


def broken(file: str, code: str, message: str) -> tuple[RawDocument, ...]:
    """Return the documents of a file that could not be read as text at all."""
    return (RawDocument(file, 1, error=(code, message, 1)),)


def _chunks(text: str) -> Iterator[tuple[int, str]]:
    """Pieces between document markers, with the 0-based line that each begins on."""
    starts = [0, *(match.start() for match in _MARKER.finditer(text))]
    line = 0
    for begin, end in zip(starts, [*starts[1:], len(text)], strict=True):
        chunk = text[begin:end]
        if chunk.strip():
            yield line, chunk
        line += len(_BREAK.findall(chunk))


def _documents(file: str, offset: int, chunk: str) -> Iterator[RawDocument]:
    first = offset + 1
    if all(not line.strip() or line.lstrip().startswith(("#", "%")) for line in chunk.splitlines()):
        return  # comments and directives only
    try:
        loader = _Loader(chunk)
        try:
            while loader.check_node():
                node = loader.get_node()
                if node is not None:
                    first = offset + node.start_mark.line + 1
                    yield from _expand(file, offset, node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = offset + mark.line + 1 if mark is not None else first
        what = " ".join(part for part in (error.context, error.problem) if part) or "not YAML"
        yield RawDocument(file, line, error=("invalid-yaml", what, line))
    except yaml.YAMLError as error:  # characters that YAML forbids
        yield RawDocument(file, first, error=("invalid-yaml", str(error).splitlines()[0], first))
    except _BadError as error:
        yield RawDocument(file, first, error=(error.code, error.message, error.line))
    except (RecursionError, ValueError) as error:  # composing a very deep document; a number beyond all limits
        yield RawDocument(file, first, error=("invalid-yaml", f"cannot be read: {type(error).__name__}", first))


def _expand(file: str, offset: int, node: yaml.Node) -> Iterator[RawDocument]:
    lines: dict[str, int] = {}
    data = _Values(offset, lines).value(node, "", 0)
    line = offset + node.start_mark.line + 1
    if data is None:
        return
    items = data.get("items") if isinstance(data, dict) and str(data.get("kind", "")).endswith("List") else None
    if not isinstance(items, list):
        yield RawDocument(file, line, data, _relevant(data, lines))
        return
    for index, item in enumerate(items):
        prefix = f"items[{index}]"
        inner = {path[len(prefix) + 1 :]: number for path, number in lines.items() if path.startswith(f"{prefix}.")}
        yield RawDocument(file, lines.get(prefix, line), item, _relevant(item, inner))


def _relevant(data: Any, lines: Mapping[str, int]) -> Mapping[str, int]:
    """Lines are kept for Istio's objects only: a mesh has many endpoints, and nobody asks for a line inside one."""
    version = data.get("apiVersion") if isinstance(data, dict) else None
    if version == "v1" and data.get("kind") == "ConfigMap":  # it may hold the mesh's settings
        return {"data.mesh": lines["data.mesh"]} if "data.mesh" in lines else {}
    return dict(lines) if isinstance(version, str) and ("istio.io" in version or "gateway." in version) else {}


class _Values:
    """Nodes to plain values, with limits that aliases cannot get around."""

    def __init__(self, offset: int, lines: dict[str, int]) -> None:
        self._offset = offset
        self._lines = lines
        self._left = MAX_NODES

    def _bad(self, code: str, message: str, node: yaml.Node) -> _BadError:
        return _BadError(code, message, self._offset + node.start_mark.line + 1)

    def value(self, node: yaml.Node, path: str, depth: int) -> Any:
        self._left -= 1
        if self._left < 0:
            raise self._bad("too-large", f"more than {MAX_NODES} values in one document", node)
        if depth > MAX_DEPTH:
            raise self._bad("too-deep", f"nested more than {MAX_DEPTH} deep", node)
        if path:
            self._lines[path] = self._offset + node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._bad("invalid-yaml", "a key must be a plain word", key_node)
            key = str(key_node.value)
            if key_node.tag == "tag:yaml.org,2002:merge":
                self._merge(merged, self.value(value_node, f"{path}.<<", depth + 1), value_node)
                continue
            if key in result:
                raise self._bad("duplicate-key", f"key {key!r} is given twice", key_node)
            here = f"{path}.{key}" if path else key
            result[key] = self.value(value_node, here, depth + 1)
            self._lines[here] = self._offset + key_node.start_mark.line + 1
        return {**merged, **result}

    def _merge(self, target: dict[str, Any], source: Any, node: yaml.Node) -> None:
        for item in source if isinstance(source, list) else [source]:
            if not isinstance(item, dict):
                raise self._bad("invalid-yaml", "<< needs a mapping", node)
            for key, value in item.items():
                target.setdefault(key, value)

    def _scalar(self, node: yaml.Node) -> Any:
        text = str(node.value)
        kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() in ("yes", "true", "on", "y")
        if kind == "int":
            if not _INT.fullmatch(text) or len(text) > 80:
                return text
            return _integer(text.replace("_", ""))
        if kind == "float":
            if not _FLOAT.fullmatch(text):
                return text  # 1:30.5, .inf, .nan: no JSON number
            return float(text)
        if kind == "str" and not getattr(node, "style", "") and _NUMBER_TO_OTHERS.fullmatch(text):
            return float(text) if "e" in text.lower() else _integer(text)
        return text


def _integer(text: str) -> int:
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("+-")
    if digits.startswith(("0x", "0X")):
        return sign * int(digits, 16)
    if digits.startswith("0b"):
        return sign * int(digits, 2)
    if len(digits) > 1 and digits.startswith("0"):
        return sign * int(digits.removeprefix("0o").removeprefix("0") or "0", 8)
    return sign * int(digits)
