"""Bytes of map entries, remembered: most of a large node's are the same in every round, and making them is its time."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Final

from nodeagent.abi import numbers as n
from nodeagent.abi.numbers import NameKind
from nodeagent.abi.records import (
    Cluster,
    Endpoint,
    NameKey,
    NameText,
    ServiceKey,
    VhostKey,
    address,
    family,
)
from nodeagent.errors import CapacityError
from nodeagent.intent.clusters import endpoint_of
from nodeagent.intent.model import RouteInfo

_TCP: Final = 6
#: Least request compares so many endpoints: Envoy's default.
_CHOICES: Final = 2


@lru_cache(maxsize=2 * n.ENDPOINTS)
def endpoint_entry(key: str, live: bool) -> bytes:
    """An endpoint's record, by its key."""
    ip, port = endpoint_of(key)
    packed = address(ip)
    return Endpoint(packed, port, family(packed), int(live)).pack()


@lru_cache(maxsize=2 * n.CLUSTERS)
def cluster_entry(lb: int, slot: tuple[int, ...]) -> bytes:
    """A cluster's record, by its balancer and the endpoint ids in its slots."""
    return Cluster(n=len(slot), lb=lb, turn=0, choices=_CHOICES, live=1, slot=slot).pack()


@lru_cache(maxsize=n.VHOSTS)
def vhost_key(table: int, host: str) -> bytes:
    """Key of a virtual host."""
    return VhostKey(table, host.encode()).pack()


@lru_cache(maxsize=n.VHOSTS)
def name_entry(kind: NameKind, number: int, text: str) -> tuple[bytes, bytes]:
    """Key and value of a name."""
    return NameKey(kind, number).pack(), NameText(fitting(text)).pack()


@lru_cache(maxsize=n.SERVICES)
def service_key(view: int, ip: str, port: int) -> bytes:
    """Key of a TCP service."""
    return ServiceKey(view, port, _TCP, address(ip)).pack()


@lru_cache(maxsize=n.ROUTE_IDS)
def route_text(variant: str, info: RouteInfo) -> str:
    """The name text of a route: JSON, short enough for the map by leaving out what explains, never what identifies."""
    source = info.source
    data: dict[str, object] = {"key": variant, "host": info.host, "route": info.route}
    optional: list[tuple[str, object]] = [
        ("where", info.where.value),
        ("reason", info.reason),
        ("source", source and [source.kind, source.namespace, source.name, source.rule, source.file, source.line]),
        ("clusters", [list(item) for item in info.clusters]),
        ("match", info.match),
        ("features", list(info.features)),
    ]
    for name, value in optional:
        if value:
            longer = {**data, name: value}
            if len(json.dumps(longer, separators=(",", ":")).encode()) < n.NAME_TEXT:
                data = longer
    return json.dumps(data, separators=(",", ":"))


def fitting(text: str) -> bytes:
    """A name text's bytes. Raises CapacityError rather than cutting an identity; callers check lengths before."""
    data = text.encode()
    if len(data) >= n.NAME_TEXT:
        raise CapacityError(f"the name {text[:80]!r}... is longer than {n.NAME_TEXT - 1} bytes")
    return data
