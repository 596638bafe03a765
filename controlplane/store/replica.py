"""One replica's hold on the store: follows the configuration, keeps a lease, does the leader's duty. The I/O.

What was read last stays, whatever becomes of the store; nothing is ever taken back. Nothing here ends the process;
a lost store is tried again for ever, with pauses that grow to two seconds and differ between replicas.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog
import tenacity

from controlplane.settings import StoreSettings
from controlplane.sources.snapshot import File, Snapshot
from controlplane.store import layout
from controlplane.store.copy import Copy, CopyError, dump, load
from controlplane.store.election import TTL, Election
from controlplane.store.errors import Compacted, StoreDenied, StoreError, StoreUnavailable
from controlplane.store.etcd import Etcd, Put
from controlplane.store.follow import Follower, List, Listing
from controlplane.store.layout import Entry

_log = structlog.get_logger("controlplane.store")

#: Pauses between attempts, seconds: full jitter, the first at most this, none more than the second.
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0
#: The lease is renewed, the leader's key looked at and the store's health seen this often, seconds.
BEAT: Final = 1.0
#: Changes that come together are taken in together: the first of them waits so long for the others, seconds.
GATHER: Final = 0.01

#: A start waits so long for the store before it takes the copy; the copy is written so often at most. Seconds.
COPY_AFTER: Final = 3.0
COPY_PAUSE: Final = 1.0

_FOLLOW: Final = "follow"
_BEAT: Final = "beat"


@dataclass(frozen=True, slots=True)
class Status:
    """What ``/api/v1/store`` tells."""

    available: bool
    reason: str
    revision: int
    leader: str
    leads: bool
    member: str
    relists: int
    since: float


class Replica:
    """The store as one replica sees it. :meth:`start`, :meth:`first`, :meth:`watch`; in the end :meth:`close`."""

    def __init__(self, settings: StoreSettings, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.etcd = Etcd(settings)
        self.config = f"{settings.prefix}/config/"
        self._name = name
        self._clock = clock
        self._follower = Follower()
        self._election = Election(name)
        self._files: dict[str, tuple[Entry, File]] = {}
        self._snapshot = Snapshot()
        self._held: Mapping[str, bytes] = {}
        self._news = asyncio.Condition()
        self._count = 0
        self._seen = 0
        self._tasks: list[asyncio.Task[None]] = []
        #: What is wrong, by which of the two tasks found it; empty when all is well.
        self._problems: dict[str, StoreError] = {_FOLLOW: StoreUnavailable(f"the store {settings} is not read yet")}
        #: The kind of error that was logged last: one line for an outage, not one for each attempt.
        self._said: type[StoreError] | None = None
        self._since = time.time()
        self._past: deque[tuple[float, int]] = deque()

    # --- what it knows ------------------------------------------------------------------------------------------------

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The configuration's keys as they are followed, by their names without the prefix."""
        return self._follower.entries

    @property
    def status(self) -> Status:
        """The state of the connection and of the election."""
        problem = next(iter(self._problems.values()), None)
        return Status(
            available=problem is None,
            reason="" if problem is None else str(problem),
            revision=self._follower.revision,
            leader=self._election.leader if problem is None else "",
            leads=self._election.leads(self._clock()),
            member=self.etcd.member,
            relists=self._follower.relists,
            since=self._since,
        )

    @property
    def held(self) -> Mapping[str, bytes]:
        """The values of which the snapshot was made that was handed out last, by key."""
        return self._held

    # --- following ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to follow, and to stand for election."""
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._beat())]
        if self.settings.copy:
            self._tasks.append(asyncio.create_task(self._keep_copy()))

    async def close(self) -> None:
        """Give up the lease, so that another leads at once, and all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._election.lease and not self._problems:
            with contextlib.suppress(StoreError):
                await self.etcd.revoke(self._election.lease)
            self._election.dropped()
        await self.etcd.close()

    async def first(self) -> Snapshot:
        """The configuration as soon as it has been read once, however long that takes.

        Raises :class:`StoreDenied` when the store answers, and does not let this replica read.
        """
        copied = asyncio.create_task(self._begin_with_copy()) if self.settings.copy else None
        async with self._news:
            await self._news.wait_for(lambda: self._count > 0 or self._denied is not None)
        if copied is not None:
            copied.cancel()
            await asyncio.gather(copied, return_exceptions=True)
        if self._denied is not None and not self._count:
            raise self._denied
        return self._take()

    @property
    def _denied(self) -> StoreDenied | None:
        problem = self._problems.get(_FOLLOW)
        return problem if isinstance(problem, StoreDenied) else None

    async def watch(self) -> AsyncIterator[Snapshot]:
        """Each configuration that differs from the one taken last; those in between are left out."""
        while True:
            async with self._news:
                await self._news.wait_for(lambda: self._count > self._seen)
            await asyncio.sleep(GATHER)
            yield self._take()

    def _take(self) -> Snapshot:
        self._seen = self._count
        self._held = {key: entry.value for key, (entry, _) in self._files.items()}
        return self._snapshot

    async def _begin_with_copy(self) -> None:
        """Take the copy when the store has not answered for a while."""
        await asyncio.sleep(COPY_AFTER)
        try:
            found = await asyncio.to_thread(_read_copy, self.settings.copy, self.config)
        except (OSError, CopyError) as error:
            _log.error(
                "there is no copy to begin with: waiting for the store", file=self.settings.copy, reason=str(error)
            )
            return
        if self._follower.seed(Listing(found.cluster, found.revision, found.entries)):
            _log.warning("the store is away: beginning with the copy", file=self.settings.copy, keys=len(found.entries))
            await self._publish()

    async def _keep_copy(self) -> None:
        """Write the copy after changes, at most once a while, in a thread."""
        written = 0
        while True:
            async with self._news:
                await self._news.wait_for(lambda: self._count > written)  # noqa: B023 - it is asked at once
            written, follower = self._count, self._follower
            copy = Copy(self.config, follower.cluster, follower.revision, follower.entries)
            try:
                await asyncio.to_thread(_write_copy, self.settings.copy, copy)
            except OSError as error:
                _log.error("the copy cannot be written", file=self.settings.copy, reason=str(error))
            await asyncio.sleep(COPY_PAUSE)

    async def _follow(self) -> None:
        """Carry out the follower's commands for ever."""
        pause, failures = tenacity.wait_random_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE), 0
        while True:
            began = self._clock()
            try:
                await self._step()
                self._well(_FOLLOW)
            except Compacted:
                self._follower.compacted()
            except StoreError as error:
                self._follower.lost()
                await self._ill(_FOLLOW, error)
            if self._clock() - began > LONGEST_PAUSE:
                failures = 0  # it went well for a while
            if isinstance(self._follower.command, List) or _FOLLOW in self._problems:
                failures += 1
                await asyncio.sleep(pause(_attempt(failures)) if failures > 1 else 0)

    async def _step(self) -> None:
        """One list, or one watch for as long as it lasts."""
        follower = self._follower
        command = follower.command
        if isinstance(command, List):
            await asyncio.sleep(command.after)
            listing = await self.etcd.list(self.config)
            changed = follower.listed(listing)
            if isinstance(follower.command, List):
                _log.warning(
                    "the store's content is surprising: what is in force stays until a second look says the same",
                    keys=len(listing.entries),
                    revision=listing.revision,
                    known_keys=len(follower.entries),
                    known_revision=follower.revision,
                )
            if changed:
                await self._publish()
            return
        async with contextlib.aclosing(self.etcd.watch(self.config, command.revision)) as responses:
            async for response in responses:
                relists = follower.relists
                if follower.watched(response):
                    await self._publish()
                if response.created and not response.canceled:
                    self._well(_FOLLOW)
                if follower.relists != relists:
                    _log.info("revisions that were missed are compacted: reading everything again")
                if isinstance(follower.command, List):
                    return
        follower.lost()  # the member ended the stream, as it does when it is stopped in an orderly way

    async def _publish(self) -> None:
        entries = self._follower.entries
        # What did not change keeps its file, also when everything was listed anew: it is not converted again.
        order = self._files if entries.keys() == self._files.keys() else sorted(entries)
        files = {}
        for key in order:
            known, entry = self._files.get(key), entries[key]
            files[key] = known if known is not None and known[0] == entry else (entry, _file(entry))
        self._files = files
        self._snapshot = Snapshot({key: file for key, (_, file) in files.items()})
        async with self._news:
            self._count += 1
            self._news.notify_all()

    # --- health, leases, the leader's duty ----------------------------------------------------------------------------

    def _well(self, task: str) -> None:
        if self._problems.pop(task, None) is not None and not self._problems:
            self._since, self._said = time.time(), None
            _log.info("store reached", store=str(self.settings), member=self.etcd.member)

    async def _ill(self, task: str, error: StoreError) -> None:
        if not self._problems:
            self._since = time.time()
        if type(error) is not self._said:
            self._said = type(error)
            _log.error(
                "store lost: what is in force stays, nothing can be written", reason=str(error), next=error.next_step
            )
        self._problems[task] = error
        async with self._news:
            self._news.notify_all()  # who waits for the first configuration wants to know

    async def _beat(self) -> None:
        while True:
            try:
                await self._campaign()
                await self._compact()
                self._well(_BEAT)
            except StoreError as error:
                await self._ill(_BEAT, error)
            await asyncio.sleep(BEAT)

    async def _campaign(self) -> None:
        """Keep the lease, and take the leader's key when it is free."""
        election, asked = self._election, self._clock()
        led = election.leads(asked)
        if election.lease and not election.expired(asked):
            election.kept(asked, await self.etcd.keep(election.lease))
        if election.expired(asked):
            election.dropped()
            asked = self._clock()
            lease, ttl = await self.etcd.grant(TTL)
            election.granted(lease, asked, ttl)
            await self.etcd.transact({}, [Put(self._presence(lease), json.dumps(self._card()).encode(), lease)])
        key = f"{self.settings.prefix}/leader"
        outcome = await self.etcd.transact({key: 0}, [Put(key, self._name.encode(), election.lease)])
        if outcome.done:
            election.campaigned(self._name, election.lease)
        elif key in outcome.found:
            value, _, lease = outcome.found[key]
            election.campaigned(value.decode(errors="replace"), lease)
        if election.leads(self._clock()) != led:
            _log.info("leading" if not led else "not leading any more", leader=election.leader)

    def _presence(self, lease: int) -> str:
        return f"{self.settings.prefix}/replicas/{self._name}-{lease & 0xFFFFFFFF:08x}"

    def _card(self) -> dict[str, Any]:
        return {"name": self._name, "since": int(time.time())}

    async def replicas(self) -> list[dict[str, Any]]:
        """The replicas that hold a lease, as they present themselves. Raises :class:`StoreError`."""
        prefix = f"{self.settings.prefix}/replicas/"
        found = []
        for entry in (await self.etcd.list(prefix)).entries.values():
            try:
                card = json.loads(entry.value)
            except ValueError:
                card = {}
            found.append({"id": entry.key, "name": str(card.get("name", "")), "since": card.get("since", 0)})
        return found

    async def _compact(self) -> None:
        """The leader's duty: old revisions go, when asked to, so that an etcd that nobody tends does not fill up."""
        keep = self.settings.compact
        if not keep:
            return
        now = self._clock()
        revision = await self.etcd.revision()
        self._past.append((now, revision))
        due = 0
        while self._past and self._past[0][0] <= now - keep:
            due = self._past.popleft()[1]
        if due and self._election.leads(now):
            try:
                await self.etcd.compact(due)
            except Compacted:
                return  # somebody else did
            _log.debug("compacted", revision=due)


def _attempt(number: int) -> tenacity.RetryCallState:
    """The state that tenacity's pauses are computed from."""
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = number
    return state


def _read_copy(path: str, prefix: str) -> Copy:
    with open(path, "rb") as stream:
        return load(stream.read(), prefix)


def _write_copy(path: str, copy: Copy) -> None:
    """Whole or not at all, and for nobody else to read: it is the mesh's configuration."""
    temporary = f"{path}.tmp"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        stream.write(dump(copy))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def _file(entry: Entry) -> File:
    stored = layout.decode(entry.value)
    # Equal on all replicas, and after each restart: an object's age decides which of two rules a host.
    at = stored.at if stored is not None else 0
    return File(entry.key, (at * 1_000_000_000, entry.modified, entry.created), layout.documents(entry, stored))
