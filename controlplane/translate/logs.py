"""Access logs of Envoys, as Telemetry objects and the mesh's configuration ask for them.  Pure.

The mesh's level is overridden by the namespace's, and that by the workload's: an entry that names providers takes the
place of those above, one that is disabled takes its providers away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import json_format

from controlplane.model.labels import Labels
from controlplane.model.mesh import Mesh
from controlplane.model.objects import Config
from controlplane.model.targets import target_refs
from controlplane.model.telemetry import BUILT_IN, usable
from controlplane.translate import names
from controlplane.translate.resources import Message, Resources
from controlplane.translate.targets import Spot, attached
from underpass.api import envoy

#: Istio's line of text where nobody asks for another.
FORMAT: Final = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% '
    '%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% '
    '%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" '
    '"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% '
    "%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
)
_FILE_LOG: Final = "envoy.extensions.access_loggers.file.v3.FileAccessLog"
_CEL: Final = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
_BOTH, _CLIENT, _SERVER = range(3)
_INBOUND: Final = 1


@dataclass(frozen=True, slots=True)
class Loggers:
    """What is logged of requests and connections that a client makes, and that it serves."""

    client: tuple[Any, ...] = ()
    server: tuple[Any, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.client or self.server)


def loggers(mesh: Mesh, kind: str, namespace: str, labels: Labels) -> Loggers:
    """The access logs of a client of node type ``kind``."""
    known = usable(mesh.settings)
    levels = _levels(mesh, Spot.of(kind, namespace, labels))
    made = {}
    for mode in (_CLIENT, _SERVER):
        chosen = _chosen(mesh, levels, mode)
        made[mode] = tuple(_logger(known[name], chosen[name]) for name in sorted(chosen) if name in known)
    return Loggers(made[_CLIENT], made[_SERVER])


def _levels(mesh: Mesh, spot: Spot) -> list[Config]:
    """At most one object for each level, the oldest: mesh, namespace, workload."""
    found: dict[int, Config] = {}
    for config in mesh.telemetries:
        space = config.meta.key.namespace
        if target_refs(config) or config.spec.selector.match_labels:
            if (target_refs(config) or space == spot.namespace) and attached([config], mesh, spot):
                found.setdefault(2, config)
        elif space == spot.namespace:
            found.setdefault(1, config)
        elif space == mesh.root_namespace:
            found.setdefault(0, config)
    return [config for _, config in sorted(found.items())]


def _chosen(mesh: Mesh, levels: Iterable[Config], mode: int) -> dict[str, str]:
    """Providers by name, with the expression that filters what is logged."""
    spec = mesh.settings.spec if mesh.settings is not None else None
    defaults = list(spec.default_providers.access_logging) if spec is not None else []
    if spec is not None and spec.access_log_file and not defaults:
        defaults = [BUILT_IN]
    current = dict.fromkeys(defaults, "")
    for config in levels:
        entries = [item for item in config.spec.access_logging if item.match.mode in (_BOTH, mode)]
        lists = any(item.providers and not item.disabled.value for item in entries)
        mine = {} if lists else dict(current)
        for item in entries:
            for name in [one.name for one in item.providers] or list(current) or defaults or [BUILT_IN]:
                if item.disabled.value:
                    mine.pop(name, None)
                else:
                    mine[name] = item.filter.expression or current.get(name, "")
        current = mine
    return current


def _logger(provider: Any, expression: str) -> Any:
    """provider: an EnvoyFileAccessLogProvider."""
    config: Any = envoy.message(_FILE_LOG)(path=provider.path)
    shape = provider.log_format.WhichOneof("log_format")
    if shape == "labels":
        fields: Mapping[str, Any] = json_format.MessageToDict(provider.log_format.labels)
        config.log_format.json_format.update(fields)
    else:
        text = provider.log_format.text or FORMAT
        config.log_format.text_format_source.inline_string = text if text.endswith("\n") else f"{text}\n"
    out: Any = envoy.message("envoy.config.accesslog.v3.AccessLog")(
        name="envoy.access_loggers.file", typed_config=envoy.pack_any(config)
    )
    if expression:
        extension = out.filter.extension_filter
        extension.name = "envoy.access_loggers.extension_filters.cel"
        extension.typed_config.CopyFrom(envoy.pack_any(envoy.message(_CEL)(expression=expression)))
    return out


def apply(resources: Resources, found: Loggers, kind: str) -> Resources:
    """Put the logs into a client's listeners; what logs nothing stays the same object."""
    table = resources.get(names.LISTENER, {})
    return {**resources, names.LISTENER: {name: _logged(item, found, kind) for name, item in table.items()}}


def _logged(message: Message, found: Loggers, kind: str) -> Message:
    serves = kind == "waypoint" or message.traffic_direction == _INBOUND
    mine = found.server if serves else found.client
    if not mine or message.name in ("connect_terminate", "connect_originate"):
        return message
    out = type(message)()
    out.CopyFrom(message)
    for chain in [*out.filter_chains, *([out.default_filter_chain] if out.HasField("default_filter_chain") else [])]:
        for item in chain.filters:
            url = item.typed_config.type_url
            if not url.endswith(("HttpConnectionManager", "TcpProxy")):
                continue
            config: Any = envoy.unpack_any(item.typed_config)
            config.access_log.extend(mine)
            item.typed_config.CopyFrom(envoy.pack_any(config))
    return out
