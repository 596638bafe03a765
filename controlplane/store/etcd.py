"""A client of etcd's v3 API on ``grpc.aio``: reads, transactions, watches, leases; several members; TLS; tokens. I/O.

One member is spoken to at a time; the next is taken when a call to it fails for want of a connection or a leader. Every
call has a deadline, so that a member that is stopped, not dead, is noticed too. Errors are those of ``store.errors``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from controlplane.settings import StoreSettings
from controlplane.store.errors import Compacted, StoreDenied, StoreError, StoreUnavailable, TooLarge
from controlplane.store.follow import Event, Listing, Response
from controlplane.store.layout import Entry
from underpass.api import etcd

Stamps = tuple[tuple[int, int], ...]

#: An answer takes at most so long, seconds; a member that needs longer is as good as none.
DEADLINE: Final = 4.0
#: Keys that are read at once: their values have to fit into one message.
PAGE: Final = 500

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A member that came back is tried again soon; the follower's own pauses are what spares it.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),  # how long an attempt to connect may take, too
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A watch is silent for hours: without these a peer that vanished would not be missed. etcd takes 5 s or more.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Not shared between channels: one of several replicas in a process (tests) must not inherit another's back-off.
    ("grpc.use_local_subchannel_pool", 1),
)
_METHODS: Final = {
    "Range": ("KV/Range", "RangeRequest", "RangeResponse"),
    "Txn": ("KV/Txn", "TxnRequest", "TxnResponse"),
    "Compact": ("KV/Compact", "CompactionRequest", "CompactionResponse"),
    "LeaseGrant": ("Lease/LeaseGrant", "LeaseGrantRequest", "LeaseGrantResponse"),
    "LeaseRevoke": ("Lease/LeaseRevoke", "LeaseRevokeRequest", "LeaseRevokeResponse"),
    "Authenticate": ("Auth/Authenticate", "AuthenticateRequest", "AuthenticateResponse"),
}

_AWAY: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


@dataclass(frozen=True, slots=True)
class Put:
    """A key with its full name, its value, and the lease that it goes with (0: none)."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """A key to remove."""

    key: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a transaction; ``found`` are keys that it read because it did not come about."""

    done: bool
    revision: int
    found: Mapping[str, tuple[bytes, int, int]]


class _TokenError(StoreUnavailable):
    """The token is not taken any more: one more try, with a new one."""


def end_of(prefix: str) -> bytes:
    """The key that ends the range of a prefix, as etcd defines ranges."""
    raw = bytearray(prefix.encode())
    while raw and raw[-1] == 0xFF:
        raw.pop()
    if not raw:
        return b"\0"
    raw[-1] += 1
    return bytes(raw)


class Etcd:
    """One client; :meth:`close` it."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._channels: dict[str, tuple[Stamps, grpc.aio.Channel]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._current = 0
        self._token = ""

    @property
    def member(self) -> str:
        """The member that is spoken to now."""
        return self._settings.members[self._current]

    async def close(self) -> None:
        """End all connections."""
        channels, self._channels = list(self._channels.values()), {}
        for _, channel in channels:
            await channel.close()
        await asyncio.gather(*self._closing, return_exceptions=True)

    # --- reads --------------------------------------------------------------------------------------------------------

    async def list(self, prefix: str) -> Listing:
        """All keys that begin with *prefix*, at one revision. Raises :class:`Compacted` when it went away meanwhile."""
        entries: dict[str, Entry] = {}
        at, begin, end, cluster = 0, prefix.encode(), end_of(prefix), 0
        while True:
            page = await self._call("Range", key=begin, range_end=end, limit=PAGE, revision=at)
            cluster, at = page.header.cluster_id, at or page.header.revision
            for found in page.kvs:
                entry = _entry(found, prefix)
                entries[entry.key] = entry
            if not page.more:
                return Listing(cluster, at, entries)
            begin = page.kvs[-1].key + b"\0"

    async def revision(self) -> int:
        """The store's revision, from a read that a majority has to agree to: the proof that it is there."""
        reply = await self._call("Range", key=self._settings.prefix.encode(), count_only=True)
        return int(reply.header.revision)

    async def get(self, prefix: str, keys: Sequence[str]) -> tuple[dict[str, Entry], int]:
        """Single keys, named without *prefix*, and the revision at which all of them were read."""
        found: dict[str, Entry] = {}
        at = 0
        for begin in range(0, len(keys), PAGE // 5):
            operations = [
                {"request_range": {"key": (prefix + key).encode(), "revision": at}}
                for key in keys[begin : begin + PAGE // 5]
            ]
            reply = await self._call("Txn", success=operations)
            at = at or int(reply.header.revision)
            for response in reply.responses:
                for item in response.response_range.kvs:
                    entry = _entry(item, prefix)
                    found[entry.key] = entry
        return found, at

    # --- writes -------------------------------------------------------------------------------------------------------

    async def transact(self, expected: Mapping[str, int], changes: Sequence[Put | Delete]) -> Outcome:
        """Make all changes, if every key in *expected* still has that ``mod_revision`` (0: is not there), or none."""
        compare = [
            {"target": "MOD", "result": "EQUAL", "key": key.encode(), "mod_revision": revision}
            for key, revision in expected.items()
        ]
        reads = [{"request_range": {"key": key.encode()}} for key in expected]
        reply = await self._call("Txn", compare=compare, success=[_operation(item) for item in changes], failure=reads)
        found = {
            item.key.decode(errors="replace"): (bytes(item.value), int(item.mod_revision), int(item.lease))
            for response in reply.responses
            for item in response.response_range.kvs
        }
        return Outcome(bool(reply.succeeded), int(reply.header.revision), found)

    async def compact(self, revision: int) -> None:
        """Let go of what was before *revision*."""
        await self._call("Compact", revision=revision)

    # --- leases -------------------------------------------------------------------------------------------------------

    async def grant(self, ttl: float) -> tuple[int, float]:
        """A new lease and how long it lasts, seconds."""
        reply = await self._call("LeaseGrant", TTL=int(ttl))
        return int(reply.ID), float(reply.TTL)

    async def keep(self, lease: int) -> float:
        """Renew a lease; how long it lasts from now, 0 when it is gone."""
        stream: Any = self._channel().stream_stream(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=etcd.message("LeaseKeepAliveRequest").SerializeToString,
            response_deserializer=etcd.message("LeaseKeepAliveResponse").FromString,
        )
        member = self._current
        try:
            call = stream(metadata=await self._metadata(), timeout=DEADLINE)
            await call.write(etcd.message("LeaseKeepAliveRequest")(ID=lease))
            reply = await call.read()
            call.cancel()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError) as error:
            raise self._translated(error, member) from error
        return 0.0 if reply is grpc.aio.EOF else float(reply.TTL)

    async def revoke(self, lease: int) -> None:
        """Give a lease back, and the keys that go with it."""
        await self._call("LeaseRevoke", ID=lease)

    # --- watch --------------------------------------------------------------------------------------------------------

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[Response, None]:
        """Changes below *prefix* from *revision* on. Ends, or raises :class:`StoreError`, when the watch does."""
        member = self._current
        stream: Any = self._channel().stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=etcd.message("WatchRequest").SerializeToString,
            response_deserializer=etcd.message("WatchResponse").FromString,
        )
        # A member that was cut off from the others would go on watching what it has: it is asked to give up instead.
        call = stream(metadata=(*await self._metadata(), ("hasleader", "true")))
        try:
            create = {
                "key": prefix.encode(),
                "range_end": end_of(prefix),
                "start_revision": revision,
                "progress_notify": True,
            }
            await call.write(etcd.message("WatchRequest")(create_request=create))
            while (reply := await call.read()) is not grpc.aio.EOF:
                if reply.canceled and not reply.compact_revision and "auth" in reply.cancel_reason:
                    self._token = ""
                yield Response(
                    cluster=int(reply.header.cluster_id),
                    revision=int(reply.header.revision),
                    events=[_event(item, prefix) for item in reply.events],
                    created=bool(reply.created),
                    canceled=bool(reply.canceled),
                    compacted=int(reply.compact_revision),
                )
                if reply.canceled:
                    return
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError) as error:
            raise self._translated(error, member) from error
        finally:
            call.cancel()

    # --- calls --------------------------------------------------------------------------------------------------------

    def _channel(self) -> grpc.aio.Channel:
        """The channel to the member that is spoken to; a new one when the TLS files were renewed meanwhile."""
        member, stamps = self.member, _stamps(self._settings)
        known = self._channels.get(member)
        if known is not None and known[0] == stamps:
            return known[1]
        channel = self._connect(member)
        self._channels[member] = (stamps, channel)
        if known is not None:
            # What is under way on the old one may end; a watch does not, and is made again on the new one.
            task = asyncio.create_task(known[1].close(DEADLINE))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        return channel

    def _connect(self, member: str) -> grpc.aio.Channel:
        settings = self._settings
        if not settings.tls:
            return grpc.aio.insecure_channel(member, options=_OPTIONS)
        try:
            files = [Path(name).read_bytes() if name else None for name in (settings.ca, settings.key, settings.cert)]
        except OSError as error:
            raise StoreDenied(
                "the store's TLS files cannot be read", f"{error.filename}: {error.strerror}", "mend --store"
            ) from error
        return grpc.aio.secure_channel(member, grpc.ssl_channel_credentials(*files), options=_OPTIONS)

    async def _metadata(self) -> tuple[tuple[str, str], ...]:
        if self._settings.user and not self._token:
            await self._authenticate()
        return (("token", self._token),) if self._token else ()

    async def _authenticate(self) -> None:
        settings = self._settings
        password = settings.password
        if settings.password_file:
            try:
                password = _secret(settings.password_file)
            except (OSError, UnicodeDecodeError) as error:
                raise StoreDenied(
                    "the store's password cannot be read", f"{settings.password_file}: {error}", "mend the file"
                ) from error
        try:
            reply = await self._once("Authenticate", {"name": settings.user, "password": password}, ())
        except StoreError as error:
            if "authentication is not enabled" in error.why:
                return  # then nobody needs a token
            raise
        self._token = str(reply.token)

    async def _call(self, method: str, **fields: Any) -> Any:
        """One call, at the member that answers; at most one new token. Raises :class:`StoreError`."""
        last: StoreError | None = None
        for _ in range(len(self._settings.members) + 1):
            try:
                return await self._once(method, fields, await self._metadata())
            except _TokenError as error:
                last = error
            except StoreUnavailable as error:
                last = error
                if len(self._settings.members) == 1:
                    break
        assert last is not None
        raise last

    async def _once(self, method: str, fields: Mapping[str, Any], metadata: tuple[tuple[str, str], ...]) -> Any:
        path, request, response = _METHODS[method]
        member = self._current
        call = self._channel().unary_unary(
            f"/etcdserverpb.{path}",
            request_serializer=etcd.message(request).SerializeToString,
            response_deserializer=etcd.message(response).FromString,
        )
        try:
            return await call(etcd.message(request)(**fields), timeout=DEADLINE, metadata=metadata)
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            raise self._translated(error, member) from error

    def _translated(self, error: BaseException, member: int) -> BaseException:
        """An error of gRPC as one of ours; turns to the next member when this one is of no use."""
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                return error  # somebody ends this task; otherwise the channel was closed under the call
        code = error.code() if isinstance(error, grpc.aio.AioRpcError) else grpc.StatusCode.UNAVAILABLE
        said = (error.details() if isinstance(error, grpc.aio.AioRpcError) else None) or "the connection was closed"
        what = f"the store {self._settings} does not answer"
        if code == grpc.StatusCode.OUT_OF_RANGE and "compacted" in said:
            return Compacted()
        if code == grpc.StatusCode.UNAUTHENTICATED or "revision of auth store is old" in said:
            self._token = ""
            return _TokenError(f"the store {self._settings} does not take our token", said, "a new one is asked for")
        refused = "authentication failed" in said or "user name is empty" in said
        if code == grpc.StatusCode.PERMISSION_DENIED or refused:
            return StoreDenied(
                f"the store {self._settings} refuses user {self._settings.user or '(none)'}",
                said,
                "check --store-user, its password and its role's permissions on the prefix",
            )
        if "request is too large" in said or "too many operations" in said:
            return TooLarge("the store takes no request of this size", said, "see etcd's --max-request-bytes")
        if "space exceeded" in said:
            return StoreUnavailable(
                "the store takes no writes", said, "compact and defragment the etcd, then disarm it"
            )
        # While members elect a leader, some releases say so without a code of its own.
        electing = any(words in said for words in ("proposal dropped", "leader changed", "no leader", "timed out"))
        if electing or code in _AWAY:
            if self._current == member:
                self._current = (member + 1) % len(self._settings.members)
            return StoreUnavailable(what, said, "start it; reconnecting goes on by itself")
        return StoreError(f"the store {self._settings} failed", f"{code.name}: {said}", "see etcd's log")


def _stamps(settings: StoreSettings) -> Stamps:
    """What tells that a TLS file was renewed; a file that is missing just now is as it was never there."""
    found: list[tuple[int, int]] = []
    for name in (settings.ca, settings.cert, settings.key):
        try:
            about = os.stat(name) if name else None
        except OSError:
            about = None
        found.append((about.st_mtime_ns, about.st_ino) if about is not None else (0, 0))
    return tuple(found)


def _secret(file: str) -> str:
    return Path(file).read_text(encoding="utf-8").rstrip("\r\n")


def _operation(item: Put | Delete) -> dict[str, Any]:
    if isinstance(item, Put):
        return {"request_put": {"key": item.key.encode(), "value": item.value, "lease": item.lease}}
    return {"request_delete_range": {"key": item.key.encode()}}


def _entry(found: Any, prefix: str) -> Entry:
    key = found.key.decode(errors="backslashreplace").removeprefix(prefix)
    return Entry(key, bytes(found.value), int(found.create_revision), int(found.mod_revision))


def _event(item: Any, prefix: str) -> Event:
    entry = _entry(item.kv, prefix)
    gone = item.type == 1
    return Event(entry.key, entry.modified, None if gone else entry)
