"""Following a prefix of an etcd: list, watch from the next revision, list again when that one is compacted. Sans-IO.

Whoever does the I/O carries out :attr:`Follower.command` and tells what came of it; each step says whether the content
is new. What the follower holds is never older than what it held before, whatever is lost, repeated or compacted, with
two exceptions that it makes sure of: a store that is another one (its cluster id differs) or that was put back (its
revision is smaller), and a list that is suddenly empty. Such a list is believed only when a second one, a while later,
says the same: a store that was started with an empty directory must not take a mesh's configuration away.

Revisions. A watch resumes after the last revision whose events were *all* received. etcd never divides a revision's
events between two responses unless fragments are asked for, so that is the highest ``mod_revision`` seen. The revision
in the header of a response with events, or of the one that confirms a watch, may be ahead of events still to come: it
only serves to notice a store that was put back. A progress notification has no events and is sent to a watch that
lacks none: its revision counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from controlplane.store.layout import Entry

#: How long to wait before the list is made again that shall confirm a surprising one, seconds.
CONFIRM_AFTER: Final = 3.0


@dataclass(frozen=True, slots=True)
class List:
    """Read all keys at one revision, after so many seconds."""

    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Watch:
    """Watch from a revision, inclusive."""

    revision: int


Command = List | Watch


@dataclass(frozen=True, slots=True)
class Listing:
    """All keys at ``revision`` of the cluster."""

    cluster: int
    revision: int
    entries: Mapping[str, Entry]


@dataclass(frozen=True, slots=True)
class Event:
    """One change: ``entry`` is None when the key is gone."""

    key: str
    revision: int
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Response:
    """One answer on a watch; ``revision`` is its header's."""

    cluster: int
    revision: int
    events: Sequence[Event] = ()
    created: bool = False
    canceled: bool = False
    compacted: int = 0


@dataclass(slots=True)
class Follower:
    """The state: what is known, up to which revision, and what to do next."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    revision: int = 0
    cluster: int = 0
    command: Command = field(default_factory=List)
    #: Lists made, and those that had to be because a watch's revision was compacted.
    lists: int = 0
    relists: int = 0
    _suspect: bool = False

    @property
    def synced(self) -> bool:
        """Whether a list has ever been believed."""
        return self.lists > 0

    def seed(self, listing: Listing) -> bool:
        """Begin with what was known before the process was; does nothing once the store itself has been read.

        What the store says afterwards is taken as after a loss of the connection, surprises included.
        """
        if self.synced:
            return False
        self.entries, self.revision, self.cluster = dict(listing.entries), listing.revision, listing.cluster
        self.lists = 1
        self.command = Watch(self.revision + 1)
        return True

    def listed(self, listing: Listing) -> bool:
        """A list was made; returns whether the content is new."""
        if self._surprising(listing) and not self._suspect:
            self._suspect = True
            self.command = List(CONFIRM_AFTER)
            return False
        changed = not self.synced or dict(listing.entries) != dict(self.entries)
        self._suspect = False
        self.entries, self.revision, self.cluster = dict(listing.entries), listing.revision, listing.cluster
        self.lists += 1
        self.command = Watch(self.revision + 1)
        return changed

    def watched(self, response: Response) -> bool:
        """A watch answered; returns whether the content is new. ``command`` is a List when the watch is over."""
        if self._another(response.cluster) or (response.created and response.revision < self.revision):
            self.command = List()
            return False
        if response.canceled:
            # Compacted, or for a reason that may be anything: a list is right in every case.
            self.relists += response.compacted > 0
            self.command = List()
            return False
        if not response.events:
            if not response.created:
                self._advance(response.revision)
            return False
        fresh = [event for event in response.events if event.revision > self.revision]  # others a list or watch had
        entries = dict(self.entries)
        for event in fresh:
            if event.entry is None:
                entries.pop(event.key, None)
            else:
                entries[event.key] = event.entry
        self.entries = entries
        self._advance(max(event.revision for event in response.events))
        return bool(fresh)

    def lost(self) -> None:
        """The transport failed, in whatever command: go on from what is known, or begin."""
        if self._suspect:
            self.command = List(CONFIRM_AFTER)
        else:
            self.command = Watch(self.revision + 1) if self.synced else List()

    def compacted(self) -> None:
        """A list could not be completed at its revision: make another."""
        self.command = List()

    def _advance(self, revision: int) -> None:
        self.revision = max(self.revision, revision)
        self.command = Watch(self.revision + 1)

    def _another(self, cluster: int) -> bool:
        return self.synced and cluster not in (0, self.cluster)

    def _surprising(self, listing: Listing) -> bool:
        if not self.synced:
            return False
        emptied = bool(self.entries) and not listing.entries
        return emptied or self._another(listing.cluster) or listing.revision < self.revision
