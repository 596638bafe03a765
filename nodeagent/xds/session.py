"""One delta ADS stream of one view, without I/O: events in, requests out.

The session owns the *protocol* state of a view: what is subscribed, which version of each resource was
accepted last, which nonces wait for an answer. It never decodes a resource: what LDS and CDS refer to is told
to it through `want`, by whoever decoded them. It survives the stream: after a reconnect `open` repeats the
subscriptions with `initial_resource_versions`, so that the server sends only what changed meanwhile.

Rules followed (xDS delta protocol; Envoy and istiod agree on all of them):
- the first request of a wildcard type names nothing; named types are not opened before they have a name,
  because an empty first request would mean "everything";
- every response is answered exactly once, in the order of arrival per type, after it was applied; a refusal carries
  the reasons by resource name and does not undo what was good in the same response;
- a version is remembered when it was accepted, never when it was refused: a refused resource is sent again
  at the next reconnect;
- nonces belong to a stream: an answer that comes late for a stream that is gone is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

TYPE_PREFIX: Final = "type.googleapis.com/"
LDS: Final = TYPE_PREFIX + "envoy.config.listener.v3.Listener"
RDS: Final = TYPE_PREFIX + "envoy.config.route.v3.RouteConfiguration"
CDS: Final = TYPE_PREFIX + "envoy.config.cluster.v3.Cluster"
EDS: Final = TYPE_PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"

#: Make before break: clusters and their endpoints are asked for before what refers to them.
ORDER: Final = (CDS, EDS, LDS, RDS)
WILDCARD: Final = frozenset({LDS, CDS})
NAMED: Final = frozenset({RDS, EDS})

#: `google.rpc.Code` of a refusal.
INVALID_ARGUMENT: Final = 3
#: A refusal's text is cut here; the status file and the log carry all of it.
MAX_ERROR_TEXT: Final = 4096


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource as it came: `body` is the inner message's bytes, or None for a heartbeat without content."""

    name: str
    version: str
    type_url: str
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Response:
    """A `DeltaDiscoveryResponse` as plain data."""

    type_url: str
    nonce: str
    resources: tuple[Resource, ...] = ()
    removed: tuple[str, ...] = ()
    system_version: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """A `DeltaDiscoveryRequest` as plain data. `error` is the refusal's text, or None for an acceptance."""

    type_url: str
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    initial_versions: tuple[tuple[str, str], ...] = ()
    nonce: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """What one response changes, for the cache. `stream` and `nonce` identify it in `applied`.

    `refused` holds what the protocol itself forbids (name -> reason); the cache adds its own to it.
    """

    stream: int
    type_url: str
    nonce: str
    changed: tuple[Resource, ...]
    removed: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _TypeState:
    """What is known of one resource type: names subscribed by us, versions accepted by us."""

    wildcard: bool
    opened: bool = False
    wanted: set[str] = field(default_factory=set)
    versions: dict[str, str] = field(default_factory=dict)
    #: the last refusal by resource name; cleared when a later version of that name is accepted
    refused: dict[str, str] = field(default_factory=dict)
    last_version: str = ""
    responses: int = 0


@dataclass(frozen=True, slots=True)
class TypeStatus:
    """One row of the status file: how a type stands on this view."""

    type_url: str
    subscribed: int | None
    resources: int
    responses: int
    version: str
    refused: Mapping[str, str]


class Session:
    """The delta ADS state machine of one view. Not thread-safe; it is driven by one task."""

    def __init__(self) -> None:
        self._types = {url: _TypeState(wildcard=url in WILDCARD) for url in ORDER}
        self._stream = 0
        self._connected = False
        self._waiting: dict[tuple[str, str], Update] = {}

    def successor(self) -> Session:
        """A session for another stream that takes this one's place: subscriptions and versions, no stream."""
        other = Session()
        for url, state in self._types.items():
            other._types[url].wanted = set(state.wanted)
            other._types[url].versions = dict(state.versions)
            other._types[url].refused = dict(state.refused)
        return other

    @property
    def stream(self) -> int:
        """Number of the present stream; 0 before the first `open`."""
        return self._stream

    @property
    def connected(self) -> bool:
        """True between `open` and `close`."""
        return self._connected

    def open(self) -> tuple[Request, ...]:
        """A new stream begins: the requests to send first, in make-before-break order."""
        self._stream += 1
        self._connected = True
        self._waiting.clear()
        requests = []
        for url in ORDER:
            state = self._types[url]
            state.opened = state.wildcard or bool(state.wanted)
            if state.opened:
                requests.append(self._opening(url, state))
        return tuple(requests)

    def close(self) -> None:
        """The stream ended. Subscriptions and versions stay for the next `open`."""
        self._connected = False
        self._waiting.clear()

    def want(self, type_url: str, names: Iterable[str]) -> tuple[Request, ...]:
        """Subscribe to exactly `names` of a named type. Returns what must be sent; empty when nothing changes.

        Versions of names that are not wanted any longer are forgotten, so that wanting them again brings them
        again. Raises KeyError for a wildcard or unknown type: a mistake of the caller, not of the peer.
        """
        if type_url not in NAMED:
            raise KeyError(f"{type_url} is not a type with named subscriptions")
        state = self._types[type_url]
        wanted = set(names)
        added, gone = sorted(wanted - state.wanted), sorted(state.wanted - wanted)
        state.wanted = wanted
        for name in gone:
            state.versions.pop(name, None)
            state.refused.pop(name, None)
        if not self._connected or not (added or gone):
            return ()
        if not state.opened:
            state.opened = True
            return (self._opening(type_url, state),)
        return (Request(type_url, subscribe=tuple(added), unsubscribe=tuple(gone)),)

    def wanted(self, type_url: str) -> frozenset[str]:
        """The names that are subscribed at the moment; empty for wildcard types."""
        return frozenset(self._types[type_url].wanted)

    def receive(self, response: Response) -> tuple[Update | None, tuple[Request, ...]]:
        """A response came in: either an update to apply (and then to confirm with `applied`), or an answer at once.

        A type that we never asked for is refused: accepting what nobody will enforce would be a lie.
        """
        state = self._types.get(response.type_url)
        if state is None or not state.opened:
            text = f"{response.type_url}: this type is not subscribed on this stream"
            return None, (Request(response.type_url, nonce=response.nonce, error=text),)
        state.responses += 1
        state.last_version = response.system_version or state.last_version
        refused: dict[str, str] = {}
        changed: dict[str, Resource] = {}
        for resource in response.resources:
            reason = self._protocol_fault(response, resource, changed)
            if reason is not None:
                refused[resource.name or "(unnamed)"] = reason
                changed.pop(resource.name, None)
            elif resource.body is not None and (state.wildcard or resource.name in state.wanted):
                changed[resource.name] = resource
        removed = tuple(n for n in dict.fromkeys(response.removed) if state.wildcard or n in state.wanted)
        update = Update(self._stream, response.type_url, response.nonce, tuple(changed.values()), removed, refused)
        self._waiting[(response.type_url, response.nonce)] = update
        return update, ()

    def applied(self, update: Update, refused: Mapping[str, str]) -> tuple[Request, ...]:
        """An update is in force except for the names in `refused`: the ACK or NACK to send.

        Empty when the stream that brought the update is gone; the server will send it again.
        """
        if update.stream != self._stream or self._waiting.pop((update.type_url, update.nonce), None) is None:
            return ()
        state = self._types[update.type_url]
        faults = {**update.refused, **refused}
        for resource in update.changed:
            if resource.name in faults:
                continue
            # A name that was unsubscribed meanwhile must not come back through an old answer.
            if state.wildcard or resource.name in state.wanted:
                state.versions[resource.name] = resource.version
            state.refused.pop(resource.name, None)
        for name in update.removed:
            state.versions.pop(name, None)
            state.refused.pop(name, None)
        state.refused.update(faults)
        error = None
        if faults:
            error = "; ".join(f"{name}: {reason}" for name, reason in sorted(faults.items()))[:MAX_ERROR_TEXT]
        return (Request(update.type_url, nonce=update.nonce, error=error),)

    def status(self) -> tuple[TypeStatus, ...]:
        """How every type stands, in the order of `ORDER`."""
        return tuple(
            TypeStatus(
                url,
                None if state.wildcard else len(state.wanted),
                len(state.versions),
                state.responses,
                state.last_version,
                dict(state.refused),
            )
            for url, state in self._types.items()
        )

    def versions(self, type_url: str) -> dict[str, str]:
        """Accepted version by resource name."""
        return dict(self._types[type_url].versions)

    def _opening(self, url: str, state: _TypeState) -> Request:
        names = () if state.wildcard else tuple(sorted(state.wanted))
        return Request(url, subscribe=names, initial_versions=tuple(sorted(state.versions.items())))

    @staticmethod
    def _protocol_fault(response: Response, resource: Resource, seen: Mapping[str, Resource]) -> str | None:
        if not resource.name:
            return "the resource has no name"
        if resource.name in seen:
            return "the name occurs twice in one response"
        if resource.name in response.removed:
            return "the name is changed and removed in one response"
        if resource.body is not None and resource.type_url != response.type_url:
            return f"the resource is a {resource.type_url or 'message without type'}, not a {response.type_url}"
        return None
