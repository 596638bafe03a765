"""Access log providers: the built-in one, and those of the mesh's configuration.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from controlplane.model.objects import Config, Key
from controlplane.model.verdict import Note
from underpass.api import istio

#: Istio's provider that need not be declared: it writes to ``accessLogFile``, or to standard output.
BUILT_IN: Final = "envoy"
_STDOUT: Final = "/dev/stdout"
_FILE: Final[Any] = istio.message("istio.mesh.v1alpha1.MeshConfig.ExtensionProvider.EnvoyFileAccessLogProvider")


def usable(settings: Config | None) -> Mapping[str, Any]:
    """Providers by name, each as an ``EnvoyFileAccessLogProvider``."""
    built_in = _FILE(path=_STDOUT)
    out = {BUILT_IN: built_in}
    if settings is None:
        return out
    spec = settings.spec
    built_in.path = spec.access_log_file or _STDOUT
    if spec.access_log_format:
        built_in.log_format.text = spec.access_log_format
    for item in spec.extension_providers:
        if item.WhichOneof("provider") == "envoy_file_access_log":
            made = _FILE()
            made.CopyFrom(item.envoy_file_access_log)
            made.path = made.path or _STDOUT
            out[item.name] = made
    return out


def review(telemetries: Iterable[Config], settings: Config | None) -> Iterator[tuple[Key, Note]]:
    """Remarks on logs that nobody writes because their provider is not there."""
    known = usable(settings)
    for config in telemetries:
        for index, entry in enumerate(config.spec.access_logging):
            for number, provider in enumerate(entry.providers):
                if provider.name not in known:
                    path = f"accessLogging[{index}].providers[{number}]"
                    text = f"the mesh configuration has no envoyFileAccessLog {provider.name!r}: nothing is logged"
                    yield config.meta.key, Note(config.line(path), "unknown-provider", text)
