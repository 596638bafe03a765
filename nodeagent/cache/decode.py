"""What the four decoders share: refusing a resource by reason, naming what is not carried, metadata and durations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any

from google.protobuf.message import DecodeError

from nodeagent.cache.resources import Source
from nodeagent.errors import ResourceError


def parse(message_class: Any, body: bytes) -> Any:
    """Bytes as a message, or ResourceError. Bytes are never trusted: they come from another process."""
    try:
        return message_class.FromString(body)
    except DecodeError as error:
        raise ResourceError(f"the bytes are not a {message_class.DESCRIPTOR.name}: {error}") from None


def leftovers(message: Any, known: Iterable[str], names: Mapping[str, str] | None = None) -> list[str]:
    """Features for the set fields of `message` that are not in `known`.

    `names` maps a field to the feature it stands for (several fields may share one); other fields are named after
    themselves in kebab case. Unknown field numbers, from a newer schema than ours, are a feature as well.
    """
    carried = frozenset(known)
    table = names or {}
    found = []
    for descriptor, _value in message.ListFields():
        if descriptor.name not in carried:
            found.append(table.get(descriptor.name, descriptor.name.replace("_", "-")))
    if _has_unknown_fields(message):
        found.append("unknown-field")
    return found


def _has_unknown_fields(message: Any) -> bool:
    from google.protobuf.unknown_fields import UnknownFieldSet

    return len(UnknownFieldSet(message)) > 0


def unique(features: Iterable[str]) -> tuple[str, ...]:
    """Features without repetition, in order of appearance."""
    return tuple(dict.fromkeys(features))


def seconds(duration: Any) -> float:
    """A protobuf Duration in seconds. Raises ResourceError for a negative one."""
    value = float(duration.seconds) + float(duration.nanos) / 1e9
    if value < 0:
        raise ResourceError(f"negative duration {value} s")
    return value


def is_ip(text: str) -> bool:
    """Whether `text` is an IPv4 or IPv6 address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def filter_metadata(message: Any, key: str) -> Mapping[str, Any]:
    """`metadata.filter_metadata[key]` as plain values; empty when absent."""
    if not message.HasField("metadata") or key not in message.metadata.filter_metadata:
        return {}
    return dict(message.metadata.filter_metadata[key].items())


def source_of(message: Any) -> Source | None:
    """Which configuration object a route or cluster came from.

    Our control plane's `underpass` metadata, else what Istio's `istio.config` path tells (kind, namespace, name).
    """
    ours = filter_metadata(message, "underpass")
    if ours:
        return Source(
            kind=_text(ours.get("kind")),
            name=_text(ours.get("name")),
            namespace=_text(ours.get("namespace")),
            rule=_number(ours.get("rule"), -1),
            file=_text(ours.get("file")),
            line=_number(ours.get("line"), 0),
        )
    return source_of_path(_text(filter_metadata(message, "istio").get("config")))


#: Istio writes a kind as its kebab-case singular.
_KINDS = {
    "virtual-service": "VirtualService",
    "destination-rule": "DestinationRule",
    "service-entry": "ServiceEntry",
    "gateway": "Gateway",
    "sidecar": "Sidecar",
    "http-route": "HTTPRoute",
    "grpc-route": "GRPCRoute",
}


def source_of_path(path: str) -> Source | None:
    """`/apis/GROUP/VERSION/namespaces/NS/KIND/NAME` as a Source, or None."""
    parts = path.strip("/").split("/")
    if len(parts) != 7 or parts[0] != "apis" or parts[3] != "namespaces":
        return None
    kind = _KINDS.get(parts[5]) or "".join(word.capitalize() for word in parts[5].split("-"))
    return Source(kind=kind, name=parts[6], namespace=parts[4])


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object, default: int) -> int:
    return int(value) if isinstance(value, (int, float)) else default
