"""Resources of all views: decoded once per content, kept per view, last good stays (pure, though with state)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from nodeagent.cache.clusters import decode_assignment, decode_cluster
from nodeagent.cache.listeners import decode_listener
from nodeagent.cache.resources import Assignment, Cluster, Listener, RouteConfiguration, Value
from nodeagent.cache.routes import decode_routes
from nodeagent.errors import ResourceError

_PREFIX: Final = "type.googleapis.com/envoy.config."
LISTENER: Final = _PREFIX + "listener.v3.Listener"
ROUTES: Final = _PREFIX + "route.v3.RouteConfiguration"
CLUSTER: Final = _PREFIX + "cluster.v3.Cluster"
ASSIGNMENT: Final = _PREFIX + "endpoint.v3.ClusterLoadAssignment"

_DECODERS: Final[dict[str, Callable[[bytes], Value]]] = {
    LISTENER: decode_listener,
    ROUTES: decode_routes,
    CLUSTER: decode_cluster,
    ASSIGNMENT: decode_assignment,
}


class Arrived(Protocol):
    """A resource as the session hands it over."""

    @property
    def name(self) -> str:
        """The resource's name."""
        ...

    @property
    def body(self) -> bytes | None:
        """Its message's bytes, None for a heartbeat."""
        ...


@dataclass(frozen=True, slots=True)
class Resources:
    """Everything that one view may see, by resource name: the input of the compiler. Treat the mappings as frozen."""

    listeners: Mapping[str, Listener] = field(default_factory=dict)
    routes: Mapping[str, RouteConfiguration] = field(default_factory=dict)
    clusters: Mapping[str, Cluster] = field(default_factory=dict)
    assignments: Mapping[str, Assignment] = field(default_factory=dict)

    def rds_names(self) -> frozenset[str]:
        """Route configurations that the listeners refer to."""
        names = set()
        for listener in self.listeners.values():
            for chain in (*listener.chains, *((listener.default,) if listener.default else ())):
                if chain.http is not None and chain.http.rds:
                    names.add(chain.http.rds)
        return frozenset(names)

    def eds_names(self) -> frozenset[str]:
        """Assignments that the clusters refer to."""
        return frozenset(cluster.eds_name for cluster in self.clusters.values() if cluster.eds_name)


class Decoder:
    """Decodes each content once.

    A content's outcome, good or bad, is kept while some view holds it, plus one round: `sweep` forgets what was not
    asked for since the sweep before.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, Value | ResourceError] = {}
        self._used: set[bytes] = set()

    def decode(self, type_url: str, body: bytes) -> tuple[bytes, Value]:
        """The content's digest and value. Raises ResourceError."""
        digest = hashlib.blake2b(type_url.encode() + b"\0" + body, digest_size=16).digest()
        self._used.add(digest)
        known = self._known.get(digest)
        if known is None:
            try:
                known = _DECODERS[type_url](body)
            except ResourceError as error:
                known = error
            self._known[digest] = known
        if isinstance(known, ResourceError):
            raise ResourceError(known.what, known.why, known.next_step)
        return digest, known

    def sweep(self, held: set[bytes]) -> None:
        """Forget contents that no view holds and nobody asked for since the last sweep."""
        keep = held | self._used
        self._known = {digest: value for digest, value in self._known.items() if digest in keep}
        self._used.clear()

    def __len__(self) -> int:
        return len(self._known)


class ViewCache:
    """The accepted resources of one view. A refused change leaves the last good one in place."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._values: dict[str, dict[str, Value]] = {url: {} for url in _DECODERS}
        self._digests: dict[str, dict[str, bytes]] = {url: {} for url in _DECODERS}
        self._snapshot: Resources | None = None

    def apply(
        self, type_url: str, changed: tuple[Arrived, ...], removed: tuple[str, ...]
    ) -> tuple[bool, dict[str, str]]:
        """Take a response in. Returns whether anything changed, and the refused names with reasons."""
        values, digests = self._values[type_url], self._digests[type_url]
        refused: dict[str, str] = {}
        touched = False
        for resource in changed:
            if resource.body is None:
                continue
            try:
                digest, value = self._decoder.decode(type_url, resource.body)
                if value.name != resource.name:
                    raise ResourceError(f"the resource calls itself {value.name!r}")
            except ResourceError as error:
                refused[resource.name] = str(error)
                continue
            if digests.get(resource.name) != digest:
                values[resource.name], digests[resource.name] = value, digest
                touched = True
        for name in removed:
            if values.pop(name, None) is not None:
                del digests[name]
                touched = True
        if touched:
            self._snapshot = None
        return touched, refused

    def retain(self, type_url: str, names: frozenset[str]) -> bool:
        """Drop the resources of a type that are not in `names` (their subscription ended); True when some were."""
        values, digests = self._values[type_url], self._digests[type_url]
        gone = [name for name in values if name not in names]
        for name in gone:
            del values[name], digests[name]
        if gone:
            self._snapshot = None
        return bool(gone)

    def resources(self) -> Resources:
        """A snapshot; equal object as long as nothing changed."""
        if self._snapshot is None:
            self._snapshot = resources_from(self._values)
        return self._snapshot

    def digests(self) -> set[bytes]:
        """Digests of everything held, for `Decoder.sweep`."""
        return {digest for digests in self._digests.values() for digest in digests.values()}


def resources_from(values: Mapping[str, Mapping[str, Value]]) -> Resources:
    """Resources of values by type URL and name, for callers that have no session (`underpass analyze`, tests)."""
    # The decoders give each type its own class; the isinstance tells that to the type checker.
    return Resources(
        {n: v for n, v in sorted(values.get(LISTENER, {}).items()) if isinstance(v, Listener)},
        {n: v for n, v in sorted(values.get(ROUTES, {}).items()) if isinstance(v, RouteConfiguration)},
        {n: v for n, v in sorted(values.get(CLUSTER, {}).items()) if isinstance(v, Cluster)},
        {n: v for n, v in sorted(values.get(ASSIGNMENT, {}).items()) if isinstance(v, Assignment)},
    )
