"""The mesh's own settings: ``data.mesh`` of the ConfigMap ``istio``, read as istiod reads it.  Pure.

Of Istio's many settings ``extensionProviders`` (external authorization, access logs in files), ``defaultProviders``,
``accessLogFile`` and ``accessLogFormat`` are honoured; every other one that is set gets a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import json_format

from controlplane.model.objects import Config, Meta
from controlplane.model.verdict import Note
from controlplane.sources import log_formats
from controlplane.sources.documents import parse
from controlplane.sources.findings import Findings
from controlplane.sources.kubernetes_objects import Reader
from controlplane.sources.rejection import RejectedError
from underpass.api import istio

#: Name of the ConfigMap of the default revision.
NAME: Final = "istio"
_MESSAGE: Final = "istio.mesh.v1alpha1.MeshConfig"
#: The statuses that Envoy has a name for, and refuses all others (``envoy.type.v3.StatusCode``).
STATUSES: Final = frozenset(
    {100, *range(200, 209), 226, *range(300, 306), 307, 308, *range(400, 418), *range(421, 425), 426, 428, 429, 431}
    | {*range(500, 509), 510, 511}
)


def holds_settings(reader: Reader) -> bool:
    """Whether a ConfigMap is the mesh's: called ``istio`` and with a ``mesh`` in its data."""
    return reader.sub("metadata").text("name") == NAME and reader.sub("data").has("mesh")


def read(reader: Reader, about: Meta, lines: Mapping[str, int]) -> tuple[Config, list[Note]]:
    """Read the settings; raises :class:`RejectedError` or :class:`istio.IstioSchemaError` for what cannot be read."""
    found = parse(about.source.file, reader.sub("data").text("mesh"))
    if len(found) > 1:
        raise RejectedError("bad-mesh-config", "data.mesh holds more than one document", "data.mesh")
    if found and found[0].error is not None:
        _, message, _ = found[0].error
        raise RejectedError("bad-mesh-config", f"data.mesh: {message}", "data.mesh")
    data = found[0].data if found else {}
    if not isinstance(data, dict):
        raise RejectedError("bad-mesh-config", "data.mesh must be a mapping", "data.mesh")
    parsed = istio.parse(_MESSAGE, data)
    config = Config(about, parsed.message, lines)
    findings = Findings(config)
    seen: set[str] = set()
    for index, item in enumerate(parsed.message.extension_providers):
        path = f"extensionProviders[{index}]"
        if not item.name or item.name in seen:
            findings.error("bad-provider", f"{path}: a provider needs a name of its own, not {item.name!r}", path)
        seen.add(item.name)
        kind = item.WhichOneof("provider")
        if kind == "envoy_file_access_log":
            _check_log(item.envoy_file_access_log, path, findings)
        elif kind is not None:
            _check(getattr(item, kind), path, findings)
    _check_path(parsed.message.access_log_file, "accessLogFile", findings)
    try:
        log_formats.check(parsed.message.access_log_format)
    except log_formats.FormatError as error:
        findings.error("bad-format", f"accessLogFormat: {error}", "accessLogFormat")
    line = config.line("data.mesh")
    vain = [Note(line, "not-honoured", f"data.mesh: {path} has no effect here") for path in parsed.unknown]
    return config, [*findings.finish(), *vain]


def _check_log(spec: Any, where: str, findings: Findings) -> None:
    _check_path(spec.path, where, findings)
    try:
        log_formats.check(spec.log_format.text)
        log_formats.check_fields(json_format.MessageToDict(spec.log_format.labels))
    except log_formats.FormatError as error:
        findings.error("bad-format", f"{where}: logFormat: {error}", where)


def _check_path(path: str, where: str, findings: Findings) -> None:
    """A log is written where its author says, on every proxy: only to a whole path, or what a whole path is."""
    if path and not path.startswith("/"):
        findings.error("bad-provider", f"{where}: path {path!r} must begin with a slash", where)


def _check(spec: Any, path: str, findings: Findings) -> None:
    """Check an external authorizer's settings as istiod does."""
    findings.port(spec.port, path)
    if not spec.service:
        findings.error("bad-provider", f"{path}: service is missing", path)
    status = spec.status_on_error
    if status and not (status.isascii() and status.isdigit() and len(status) == 3 and int(status) in STATUSES):
        findings.error("bad-provider", f"{path}: {status!r} is not an HTTP status", path)
    if spec.HasField("timeout"):
        findings.duration(spec, "timeout", path)
    if getattr(spec, "path_prefix", "") and not spec.path_prefix.startswith("/"):
        findings.error("bad-provider", f"{path}: pathPrefix must begin with a slash", path)
    body = spec.include_request_body_in_check
    if spec.HasField("include_request_body_in_check") and not body.max_request_bytes:
        findings.error("bad-provider", f"{path}: maxRequestBytes must be more than 0", path)
