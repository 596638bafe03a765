"""Which protocol a port speaks, by what its owner declared.  Pure; the rules are istiod's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast, get_args

from controlplane.model.mesh import Protocol

_APP_PROTOCOLS: Final[Mapping[str, Protocol]] = {
    "kubernetes.io/h2c": "HTTP2",
    "kubernetes.io/ws": "HTTP",
    "kubernetes.io/wss": "HTTPS",
    "http": "HTTP",
    "http2": "HTTP2",
    "https": "HTTPS",
    "grpc": "GRPC",
    "grpc-web": "GRPC-WEB",
    "tls": "TLS",
    "tcp": "TCP",
    "mongo": "MONGO",
    "mysql": "MYSQL",
    "redis": "REDIS",
}
#: Ports whose server speaks first, where looking at the client's bytes would wait for ever: TCP unless declared.
_SERVER_FIRST: Final = frozenset({25, 53, 3306, 27017})


def protocol(port: int, name: str, app_protocol: str, transport: str) -> Protocol:
    """Protocol of a Kubernetes Service's port: ``appProtocol``, else the name's first word, else ``AUTO``."""
    if transport == "UDP":
        return "UDP"
    found = _APP_PROTOCOLS.get(app_protocol.lower())
    if found is None:
        lowered = name.lower()
        found = _APP_PROTOCOLS.get(lowered) or (
            "GRPC-WEB" if lowered.startswith("grpc-web") else _APP_PROTOCOLS.get(lowered.partition("-")[0])
        )
    if found is None:
        return "TCP" if port in _SERVER_FIRST else "AUTO"
    return found


def entry_protocol(text: str, port: int) -> Protocol:
    """Protocol of a ServiceEntry's port."""
    upper = text.upper()
    if upper in get_args(Protocol):
        return cast("Protocol", upper)
    return "TCP" if port in _SERVER_FIRST else "AUTO"
