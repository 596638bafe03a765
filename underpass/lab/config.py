"""The control plane's configuration directory as the lab keeps it. Pure; `store.py` writes the result.

Applying works as with `kubectl apply`: an object that comes again replaces the earlier one, wherever that was written.
The earlier document is blanked in place, so that all other documents of its file keep their lines, and with them the
place that messages point to. Applying the same path again replaces the file as a whole.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import yaml

from controlplane.sources.documents import parse
from underpass.lab.generate import ENDPOINTS_FILE, REVISION_FILE, pod_status, service_addresses
from underpass.lab.manifest import identify
from underpass.lab.model import Plan, SourceFile

RESERVED = (ENDPOINTS_FILE, REVISION_FILE)
STDIN = "-"

_MARKER = re.compile(r"^---(?=[ \t\r\n]|$)", re.MULTILINE)
_BREAK = re.compile(r"\r\n|[\r\n\x85\u2028\u2029]")

Key = tuple[str, str, str, str]


def name_for(path: str, files: Sequence[SourceFile]) -> str:
    """What the file at `path` is called in the directory: its own name, made unique among other paths' files."""
    for file in files:
        if file.path == path and path != STDIN:
            return file.name
    base = "stdin.yaml" if path == STDIN else path.rpartition("/")[2].lstrip(".#") or "config.yaml"
    if not base.endswith((".yaml", ".yml", ".json")):
        base += ".yaml"  # also keeps endings of backup files away, which the control plane passes over
    taken = {file.name for file in files} | set(RESERVED)
    stem, dot, ending = base.rpartition(".")
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}{dot}{ending}"
    return name


def keys(file: SourceFile) -> set[Key]:
    """The identities of all objects in a file."""
    found = (identify(file, document.line, document.data) for document in parse(file.path, file.text))
    return {item.key for item in found if item is not None}


def apply(files: Sequence[SourceFile], new: SourceFile) -> list[SourceFile]:
    """The directory after `new`: last in order, with its objects blanked everywhere else."""
    gone = keys(new)
    out = []
    for file in files:
        if file.name == new.name:
            continue
        left = blank(file, gone)
        if left is not None:
            out.append(left)
    return [*out, new]


def blank(file: SourceFile, gone: set[Key]) -> SourceFile | None:
    """`file` without the objects `gone`: the same file when it has none of them, None when nothing is left of it."""
    chunks = _chunks(file.text)
    texts, touched, objects_left = [], False, False
    for text in chunks:
        documents = parse(file.path, text)
        items = [identify(file, document.line, document.data) for document in documents]
        hit = [item is not None and item.key in gone for item in items]
        objects_left = objects_left or (len(hit) > hit.count(True))
        if not any(hit):
            texts.append(text)
            continue
        touched = True
        if all(hit):
            texts.append(_only_breaks(text))
        else:  # a List of which some items stay: they become documents, and only their lines move
            rest = [document.data for document, out in zip(documents, hit, strict=True) if not out]
            texts.append("".join(f"---\n{yaml.safe_dump(data, sort_keys=False)}" for data in rest))
    if not touched:
        return file
    return dataclasses.replace(file, text="".join(texts)) if objects_left else None


def _chunks(text: str) -> list[str]:
    starts = [0, *(match.start() for match in _MARKER.finditer(text) if match.start())]
    return [text[begin:end] for begin, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def _only_breaks(text: str) -> str:
    marker = "---" if _MARKER.match(text) else ""
    return marker + "".join(_BREAK.findall(text))


def complete(file: SourceFile, plan: Plan) -> str:
    """The text of `file` for the control plane, with what a cluster would have filled in.

    A Service that was given VIPs, and a Pod that was given an address, become one line of JSON where they began, with
    empty lines behind, so that every other line of the file stays where the user wrote it.
    """
    services = {(item.namespace, item.name): item for item in plan.services if item.allocated}
    pods = {(item.namespace, item.name): item for item in plan.workloads if item.kind == "Pod"}

    def filled_in(data: Any) -> dict[str, Any] | None:
        item = identify(file, 0, data)
        if item is None or item.group:
            return None
        if item.kind == "Service" and (service := services.get((item.namespace, item.name))) is not None:
            return {**data, "spec": {**item.mapping(data.get("spec"), "spec"), **service_addresses(service)}}
        if item.kind == "Pod" and (pod := pods.get((item.namespace, item.name))) is not None:
            status = {**item.mapping(data.get("status"), "status"), **pod_status(plan, pod)}
            spec = {**item.mapping(data.get("spec"), "spec"), "nodeName": plan.node(pod).name}
            return {**data, "spec": spec, "status": status}
        return None

    out = []
    for text in _chunks(file.text):
        documents = parse(file.path, text)
        filled = [filled_in(document.data) if document.error is None else None for document in documents]
        if not any(filled):
            out.append(text)
            continue
        lines = [document.line for document in documents]
        values = [new or document.data for new, document in zip(filled, documents, strict=True)]
        out.append(_as_lines(text, lines, values))
    return "".join(out)


def _as_lines(text: str, lines: list[int], values: list[Any]) -> str:
    """A piece of a file in which each object is one line of JSON, beginning on the line that it began on.

    Several objects (a List's items) stay elements of a List, since `---` would need a line of its own.
    """
    total = len(_BREAK.findall(text))
    rows = [""] * (total + 1)
    if _MARKER.match(text):
        rows[0] = "---"
    if len(values) == 1:
        rows[lines[0] - 1] = f"{rows[0]} {_json(values[0])}" if lines[0] == 1 and rows[0] else _json(values[0])
    else:
        opening = 0 if not rows[0] else 1
        opening = min(opening, lines[0] - 1)
        rows[opening] += ' {"apiVersion": "v1", "kind": "List", "items": ['
        for index, (line, value) in enumerate(zip(lines, values, strict=True)):
            rows[line - 1] += (", " if index else "") + _json(value)
        rows[lines[-1] - 1] += "]}"
    return "\n".join(rows)


def _json(value: Any) -> str:
    """JSON that is YAML, too: on one line, with what YAML takes for line breaks or forbids escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub(r"[\x7f-\xa0\u2028\u2029\ufeff]", lambda match: f"\\u{ord(match[0]):04x}", text)
