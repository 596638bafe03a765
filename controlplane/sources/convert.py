"""Documents to objects.  Pure and total: any document gives an object, a named rejection, or "not ours".

Nothing that a document contains makes this raise; that is a property test's law.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from controlplane.model.objects import Config, Key, Object, SourceRef
from controlplane.model.verdict import Note
from controlplane.sources import gateway_api, kubernetes_objects, mesh_config, support
from controlplane.sources.documents import RawDocument
from controlplane.sources.kubernetes_objects import Reader
from controlplane.sources.rejection import RejectedError
from controlplane.sources.validate import validate
from underpass.api import istio


@dataclass(frozen=True, slots=True)
class Accepted:
    """A document that became an object, with remarks for its author."""

    object: Object
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class Rejected:
    """A document that did not.  ``key`` is None when not even its identity can be read."""

    key: Key | None
    source: SourceRef
    code: str
    message: str


Outcome = Accepted | Rejected

#: Manifests hold much that a mesh has no use for; those documents are accepted by silence.
IGNORED_GROUPS: Final = frozenset(
    {
        "",
        "apps",
        "batch",
        "policy",
        "rbac.authorization.k8s.io",
        "networking.k8s.io",
        "autoscaling",
        "storage.k8s.io",
        "apiextensions.k8s.io",
        "admissionregistration.k8s.io",
        "coordination.k8s.io",
        "scheduling.k8s.io",
        "cert-manager.io",
        "k8s.cni.cncf.io",
    }
)
_UNSERVED: Final = "no support for this kind yet: the object has no effect here"


def convert(document: RawDocument, modified: float = 0.0) -> Outcome | None:
    """Convert one document; ``modified`` is its file's age for objects that do not tell theirs.

    None is a document of a kind that has nothing to do with a mesh (a Secret, say).
    """
    source = SourceRef(document.file, document.line)
    if document.error is not None:
        code, message, line = document.error
        return Rejected(None, SourceRef(document.file, line), code, message)
    key: Key | None = None
    try:
        reader = Reader(document.data)
        kind, version = reader.text("kind"), reader.text("apiVersion")
        if not kind or not version:
            raise RejectedError("not-an-object", "no apiVersion and kind: this is not a Kubernetes or Istio object")
        group = version.rpartition("/")[0]
        wanted = istio.KINDS.get(kind)
        if wanted is not None and wanted[0] == group:
            about = kubernetes_objects.meta(reader, kind, source, modified)
            key = about.key
            parsed = istio.parse(wanted[1], reader.sub("spec").mapping())
            notes = [
                Note(_line(document, f"spec.{path}"), "unknown-field", f"unknown field {path}: it has no effect")
                for path in parsed.unknown
            ]
            lines = {path[5:]: line for path, line in document.lines.items() if path.startswith("spec.")}
            config = Config(about, parsed.message, lines)
            notes.extend(validate(config))
            notes.extend(support.notes(config))
            return Accepted(config, tuple(sorted(notes)))
        known = kubernetes_objects.KINDS.get(kind)
        if known is not None and group in known[0]:
            about = kubernetes_objects.meta(reader, kind, source, modified)
            key = about.key
            return Accepted(known[1](reader, about))
        if (version, kind) == ("v1", "ConfigMap") and mesh_config.holds_settings(reader):
            about = kubernetes_objects.meta(reader, kind, source, modified)
            key = about.key
            config, notes = mesh_config.read(reader, about, {"data.mesh": _line(document, "data.mesh")})
            return Accepted(config, tuple(sorted(notes)))
        made = gateway_api.KINDS.get(kind) if group == gateway_api.GROUP else None
        if made is not None:
            # Istio has a kind Gateway too, so the key of this one tells its group.
            about = kubernetes_objects.meta(reader, f"{kind}.{group}" if kind == "Gateway" else kind, source, modified)
            key = about.key
            return Accepted(made(reader, about, document.lines))
        if group in IGNORED_GROUPS or (group, kind) == (gateway_api.GROUP, "GatewayClass"):
            return None
        about = kubernetes_objects.meta(reader, kind, source, modified)
        return Rejected(about.key, source, "unsupported-kind", f"{version} {kind}: {_UNSERVED}")
    except RejectedError as error:
        whole = not error.path or error.path.startswith(("metadata", "spec"))
        path = error.path if whole else f"spec.{error.path}"
        return Rejected(key, SourceRef(document.file, _line(document, path)), error.code, error.message)
    except istio.IstioSchemaError as error:
        message = str(error)
        return Rejected(
            key,
            SourceRef(document.file, _line(document, f"spec.{message.partition(':')[0]}")),
            "invalid-field",
            message,
        )


def _line(document: RawDocument, path: str) -> int:
    """Line of a path, or of the nearest part around it that is written down."""
    while path:
        found = document.lines.get(path)
        if found is not None:
            return found
        cut = max(path.rfind("."), path.rfind("["))
        path = path[:cut] if cut > 0 else ""
    return document.line
