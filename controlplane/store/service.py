"""The store as the application uses it: a :class:`Replica` that reads, a :class:`Writer` that writes, the way back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any

from controlplane.model.objects import Key
from controlplane.settings import StoreSettings
from controlplane.sources.snapshot import Snapshot
from controlplane.store.errors import NotFound
from controlplane.store.layout import Entry
from controlplane.store.replica import Replica, Status
from controlplane.store.writer import Writer, Written


class Store:
    """What replicas share. :meth:`start` it in a running event loop; :meth:`close` it."""

    def __init__(self, settings: StoreSettings, name: str) -> None:
        self._replica = Replica(settings, name)
        self._writer = Writer(self._replica.etcd, self._replica.config)
        #: What the store held at each revision of the history, by key. Values are shared with the entries.
        self._past: dict[str, Mapping[str, bytes]] = {}

    @property
    def status(self) -> Status:
        """The state of the connection and of the election."""
        return self._replica.status

    @property
    def entries(self) -> Mapping[str, Entry]:
        """What it holds, as far as this replica knows."""
        return self._replica.entries

    def start(self) -> None:
        """Begin to follow."""
        self._replica.start()

    async def close(self) -> None:
        """Give the lease back and end the connections."""
        await self._replica.close()

    async def first(self) -> Snapshot:
        """The first configuration; see :meth:`Replica.first`."""
        return await self._replica.first()

    def watch(self) -> AsyncIterator[Snapshot]:
        """Each configuration after the one taken last."""
        return self._replica.watch()

    async def replicas(self) -> list[dict[str, Any]]:
        """The replicas that hold a lease. Raises :class:`StoreError`."""
        return await self._replica.replicas()

    async def apply(self, files: Mapping[str, str], *, dry: bool = False) -> Written:
        """See :meth:`Writer.apply`."""
        return await self._writer.apply(files, dry=dry)

    async def delete(self, keys: list[Key], *, dry: bool = False) -> Written:
        """See :meth:`Writer.delete`."""
        return await self._writer.delete(keys, dry=dry)

    def remember(self, revision: str, kept: Collection[str]) -> None:
        """Keep what the snapshot taken last was made of, for :meth:`restore`; forget revisions not in *kept*."""
        self._past[revision] = self._replica.held
        self._past = {name: values for name, values in self._past.items() if name in kept}

    async def restore(self, revision: str) -> int:
        """Write back what was; the number of keys that changed. Raises :class:`StoreError`."""
        past = self._past.get(revision)
        if past is None:
            raise NotFound(
                f"what the store held at {revision} is not known here",
                "this replica has not seen it",
                "ask another one",
            )
        return await self._writer.restore(past, self._replica.entries)
