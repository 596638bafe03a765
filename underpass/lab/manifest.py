"""Careful reading of Kubernetes objects for the planner: shapes are checked, lines are kept. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from controlplane.sources.documents import parse
from underpass.lab.errors import ManifestError
from underpass.lab.model import SourceFile

POD_MAKERS = {
    "Deployment": "apps",
    "StatefulSet": "apps",
    "ReplicaSet": "apps",
    "DaemonSet": "apps",
    "ReplicationController": "",
}
"""Kinds with `spec.template`, and their API groups."""

NODE_ANNOTATION = "lab.underpass.io/node"

CLUSTER_SCOPED = frozenset(
    {"Namespace", "Node", "PersistentVolume", "StorageClass", "ClusterRole", "ClusterRoleBinding", "GatewayClass"}
)


@dataclass(frozen=True, slots=True)
class Object:
    """One object of a file, as far as its identity could be read."""

    file: SourceFile
    line: int
    api_version: str
    kind: str
    namespace: str
    name: str
    data: dict[str, Any]

    @property
    def group(self) -> str:
        """The API group; empty for Kubernetes' core."""
        return self.api_version.rpartition("/")[0]

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What makes two objects the same one: group, kind, namespace and name (not the version)."""
        return (self.group, self.kind, self.namespace, self.name)

    def bad(self, why: str) -> ManifestError:
        """An error that points to this object."""
        return ManifestError(self.file.path, self.line, f"{self.kind} {self.namespace}/{self.name}: {why}")

    def mapping(self, value: Any, what: str) -> dict[str, Any]:
        """`value` as a mapping, an absent one as empty."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.bad(f"{what} must be a mapping")
        return value

    def sequence(self, value: Any, what: str) -> list[Any]:
        """`value` as a list, an absent one as empty."""
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.bad(f"{what} must be a list")
        return value

    def mappings(self, value: Any, what: str) -> list[dict[str, Any]]:
        """`value` as a list of mappings."""
        return [self.mapping(item, f"{what}[{index}]") for index, item in enumerate(self.sequence(value, what))]

    def strings(self, value: Any, what: str) -> dict[str, str]:
        """`value` as a mapping of strings (labels, annotations, selectors)."""
        out = {}
        for key, item in self.mapping(value, what).items():
            if isinstance(item, dict | list):
                raise self.bad(f"{what}.{key} must be a string")
            out[str(key)] = "" if item is None else _text(item)
        return out

    def port(self, value: Any, what: str) -> int:
        """`value` as a port number."""
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
            raise self.bad(f"{what} must be a port from 1 to 65535, not {value!r}")
        return value

    def text(self, value: Any, what: str) -> str:
        """`value` as a string, an absent one as empty."""
        if value is None:
            return ""
        if isinstance(value, dict | list):
            raise self.bad(f"{what} must be a string")
        return _text(value)


def _text(value: object) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def identify(file: SourceFile, line: int, data: object) -> Object | None:
    """The object in `data`, or None when it has no kind or name (the control plane will say so with its own words)."""
    if not isinstance(data, dict):
        return None
    metadata = data.get("metadata")
    kind, version = data.get("kind"), data.get("apiVersion")
    if not isinstance(metadata, dict) or not isinstance(kind, str) or not isinstance(version, str):
        return None
    name = metadata.get("name")
    if not isinstance(name, str | int) or not str(name):
        return None
    namespace = "" if kind in CLUSTER_SCOPED else str(metadata.get("namespace") or "default")
    return Object(file, line, version, kind, namespace, str(name), data)


def objects(file: SourceFile) -> Iterator[Object]:
    """The objects of a file in order. Documents that are not YAML or not objects are left out here."""
    for document in parse(file.path, file.text):
        if document.error is None:
            found = identify(file, document.line, document.data)
            if found is not None:
                yield found


def problems(file: SourceFile) -> list[str]:
    """What of the file is no YAML, as FILE:LINE: reason."""
    return [
        f"{file.path}:{document.error[2]}: {document.error[1]}"
        for document in parse(file.path, file.text)
        if document.error is not None
    ]
