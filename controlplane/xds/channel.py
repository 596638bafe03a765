"""One type on one stream: what the client asked for, what it was told, what it is still to be told.

Common to both variants of the protocol. A channel never queues messages. It knows the state it last compared with
(``base``) and, as exceptions from it, the names that the client must still hear about (``pending``); whatever changes
while a write is under way collapses into these, and the latest content wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from controlplane.snapshot.resource import Resource
from controlplane.snapshot.state import EMPTY, Change, Snapshot, TypeState
from controlplane.snapshot.urls import FULL_STATE, GROUPED, NAMED_ONLY
from controlplane.xds.events import Nacked, TypeStatus

#: Responses that may await their answer before the oldest is given up on (a client that never answers).
MAX_OUTSTANDING: Final = 64


class View(Protocol):
    """What one client is served at one moment."""

    @property
    def snapshot(self) -> Snapshot:
        """All resources that it is served unasked."""

    def lookup(self, type_url: str, name: str) -> Resource | None:
        """A resource outside the snapshot that a client may ask for by name, or None."""


Diff = Callable[[TypeState, TypeState], Change]


class _Must:
    """The client has to be told whatever it already has."""

    def __repr__(self) -> str:
        return "MUST"


MUST: Final = _Must()
#: In place of a version: the client refused the response that had it and may have kept it or not.
DOUBT: Final = "in doubt"
Told = str | _Must | None
"""What the client has of a pending name: a version (or DOUBT), nothing (None), or it must be answered anyway (MUST)."""


@dataclass(slots=True)
class Sent:
    """A response that awaits its answer."""

    version: str
    names: tuple[str, ...]


class Channel:
    """State of one type on one stream."""

    __slots__ = (
        "acked_nonce",
        "acked_version",
        "answer_due",
        "base",
        "error",
        "error_names",
        "groups",
        "held",
        "implied",
        "named_once",
        "names",
        "outside",
        "outstanding",
        "pending",
        "retry_due",
        "sent_nonce",
        "sent_version",
        "started",
        "type_url",
        "uncertain",
        "wildcard",
    )

    def __init__(self, type_url: str) -> None:
        self.type_url = type_url
        self.started = False
        self.wildcard = False
        #: An empty list of names means "everything" only while no name was ever given.
        self.named_once = False
        self.names: dict[str, None] = {}
        #: Name or alias asked for -> the group that it stands for (of types whose resources come in groups).
        self.groups: dict[str, str] = {}
        #: Of ``names``, those that the client did not ask for, but for their group.
        self.implied: dict[str, None] = {}
        self.base: TypeState = EMPTY
        self.pending: dict[str, Told] = {}
        #: Names asked for that the snapshot lacks, with the version told (None: told that it does not exist).
        self.outside: dict[str, str | None] = {}
        #: Resources that left the state, kept until their removal may be sent (state of the world repeats them).
        self.held: dict[str, Resource] = {}
        #: Names in refused responses: whether the client has them is unknown. They are said again with the next change
        #: of the type, after it and apart from it: one bad resource may not take good news down with it.
        self.uncertain: dict[str, None] = {}
        self.retry_due = False
        self.answer_due = False
        self.outstanding: dict[str, Sent] = {}
        self.sent_nonce = self.sent_version = self.acked_nonce = self.acked_version = ""
        self.error = ""
        self.error_names: tuple[str, ...] = ()

    # --- subscriptions ------------------------------------------------------------------------------------------------

    @property
    def legacy_wildcard_allowed(self) -> bool:
        """Whether a request without names means all resources of the type."""
        return not self.named_once and self.type_url not in NAMED_ONLY

    def wants(self, name: str) -> bool:
        """Whether changes of *name* concern this client."""
        return self.wildcard or name in self.names

    def enter_wildcard(self) -> None:
        """From now on everything; the client is told all of it, as nothing is known of what it has."""
        self.wildcard = True
        self.answer_due = True
        for name in self.base:
            self.pending[name] = MUST

    def leave_wildcard(self) -> None:
        """From now on only explicit names; the client forgets the rest by itself."""
        self.wildcard = False
        for record in (self.pending, self.uncertain, self.held):
            for name in [name for name in record if name not in self.names]:
                del record[name]

    def add_name(self, name: str, told: Told = MUST) -> None:
        """Subscribe to one name and note what the client has of it."""
        known = self.base.get(name)
        if known is not None:
            name = known.name  # one string for all clients: a thousand of them with a thousand names each add up
        self.names[name] = None
        self.named_once = True
        self.pending[name] = told
        self.implied.pop(name, None)
        self._follow(name)
        self._arm_retry()

    def _follow(self, name: str) -> None:
        """Whoever asks for a group is told its members as if they had been asked for, now and later."""
        if self.type_url not in GROUPED or self.wildcard:
            return
        found = self.base.find(name)
        if found is not None and found.name != name:
            self._imply(found.name)  # asked for by an alias: a change of address or its end is told by its name
        if found is not None and found.groups:
            return  # a member; groups are not nested
        group = self.groups[name] = name if found is None else found.name
        for member in self.base.members(group):
            self._imply(member)

    def _imply(self, member: str) -> bool:
        """Count *member* among the names asked for; False when it is already."""
        if member in self.names:
            return False
        self.names[member] = self.implied[member] = None
        self.pending[member] = MUST
        return True

    def _advance_groups(self, changed: Iterable[Resource]) -> bool:
        """Resources appeared or changed: follow those that are asked-for groups, or became members of one."""
        noted = False
        for resource in changed:
            for asked in list(self._asked(resource)):
                self._follow(asked)
        followed = set(self.groups.values())
        for resource in changed:
            if not followed.isdisjoint(resource.groups):
                noted = self._imply(resource.name) or noted
        return noted

    def _drop_group(self, name: str) -> None:
        self.groups.pop(name, None)
        followed = set(self.groups.values())
        for member in list(self.implied):
            resource = self.base.get(member)
            if resource is None or (
                followed.isdisjoint((member, *resource.groups)) and self.names.keys().isdisjoint(resource.aliases)
            ):
                del self.implied[member]
                self.drop_name(member)

    def drop_name(self, name: str) -> None:
        """Unsubscribe from one name. Under a wildcard the client needs to hear whether it still has it."""
        if name not in self.names:
            return  # never subscribed: ignored
        del self.names[name]
        self.outside.pop(name, None)
        self._drop_group(name)
        if self.wildcard:
            self.pending[name] = MUST
        else:
            for record in (self.pending, self.uncertain, self.held):
                record.pop(name, None)

    # --- content ------------------------------------------------------------------------------------------------------

    def find(self, name: str, view: View) -> Resource | None:
        """The resource that *name* means now."""
        return self.base.find(name) or (view.lookup(self.type_url, name) if name in self.names else None)

    def start(self, view: View | None) -> None:
        """First request of the type: compare with the present state from here on (nothing, while no view is known)."""
        self.started = True
        self.base = EMPTY if view is None else view.snapshot[self.type_url]

    def advance(self, view: View, diff: Diff) -> None:
        """The view changed: note what the client has not heard of."""
        target = view.snapshot[self.type_url]
        noted = False
        if target is not self.base:
            change = diff(self.base, target)
            for resource in change.changed:
                old = self.base.get(resource.name)
                for name in self._asked(resource):
                    self._note(name, self._told(name, old))
                    noted = True
                self.held.pop(resource.name, None)
            for name in change.removed:
                gone = self.base[name]
                for asked in self._asked(gone):
                    self._note(asked, gone.version)
                    noted = True
                    self.held.setdefault(name, gone)
            self.base = target
            if self.groups and not self.wildcard:
                noted = self._advance_groups(change.changed) or noted
        noted = self._advance_outside(view) or noted
        if noted:
            self._arm_retry()

    def _arm_retry(self) -> None:
        """Something is about to be said: what was refused before follows it. A refusal alone causes nothing."""
        self.retry_due = self.retry_due or bool(self.uncertain)

    def _told(self, name: str, old: Resource | None) -> str | None:
        return self.outside.pop(name, None) if old is None else old.version

    def _asked(self, resource: Resource) -> Iterator[str]:
        """The names by which this client asked for *resource*."""
        if self.wants(resource.name):
            yield resource.name
        for alias in resource.aliases:
            if alias in self.names:
                yield alias

    def _note(self, name: str, told: Told) -> None:
        self.pending.setdefault(name, DOUBT if name in self.uncertain else told)

    def _advance_outside(self, view: View) -> bool:
        noted = False
        for name, told in list(self.outside.items()):
            inside = self.base.find(name)
            if inside is not None:
                del self.outside[name]
            found = inside or view.lookup(self.type_url, name)
            if (found.version if found else None) != told:
                self._note(name, told)
                noted = True
        return noted

    def force(self, name: str) -> None:
        """Tell *name* again even if the client has it, when it is one of the client's."""
        if self.wants(name):
            self.pending[name] = MUST

    def settle(self, name: str, resource: Resource | None) -> None:
        """*name* was answered with *resource* (None: with its absence), or needs no answer because it stands so."""
        self.pending.pop(name, None)
        self.uncertain.pop(name, None)
        if resource is None:
            self.held.pop(name, None)
            if name in self.implied:  # it came along, and is gone: nobody waits for it to come back
                del self.implied[name], self.names[name]
        if name in self.names and self.base.find(name) is None:
            self.outside[name] = resource.version if resource else None

    def additions(self, view: View) -> list[tuple[str, Resource | None]]:
        """Pending names that may be answered now, in name order; None answers that a name asked for does not exist.

        Names about which there is nothing to tell are dropped on the way.
        """
        ready: list[tuple[str, Resource | None]] = []
        for name in sorted(self.pending):
            told = self.pending[name]
            resource = self.find(name, view)
            if told is MUST or (resource is not None and told != resource.version):
                ready.append((name, resource))
            elif resource is not None or told is None:
                self.settle(name, resource)  # back to what the client has, or gone before it heard of it
        if not ready and self.retry_due:
            self.retry_due = False
            for name in self.uncertain:
                self._note(name, DOUBT)
            return self.additions(view)
        return ready

    def has_fresh(self, ready: Iterable[tuple[str, Resource | None]]) -> bool:
        """Whether the client is not known to have some version of one of the resources that it is about to be told."""
        return any(r is not None and not isinstance(self.pending.get(name), str) for name, r in ready)

    def removals(self, view: View) -> list[str]:
        """Names that the client has and that are gone; to be told after all additions."""
        return [
            name
            for name in sorted(self.pending)
            if isinstance(self.pending[name], str) and self.find(name, view) is None
        ]

    # --- answers ------------------------------------------------------------------------------------------------------

    def record_sent(self, nonce: str, version: str, names: Iterable[str]) -> None:
        """A response left."""
        self.outstanding[nonce] = Sent(version, tuple(names))
        if len(self.outstanding) > MAX_OUTSTANDING:
            self.outstanding.pop(next(iter(self.outstanding)))
        self.sent_nonce, self.sent_version = nonce, version
        self.answer_due = False

    def ack(self, nonce: str) -> str:
        """The client accepted *nonce*; gives the version."""
        sent = self.outstanding.pop(nonce)
        self.acked_nonce, self.acked_version = nonce, sent.version
        self.error, self.error_names = "", ()
        return sent.version

    def nack(self, nonce: str, message: str, code: int, *, earlier: bool = False) -> Nacked:
        """The client refused *nonce*; its resources are in doubt until they are sent again.

        With *earlier*, so are those of the unanswered responses before it: a state-of-the-world client merges answers.
        """
        sent = self.outstanding.pop(nonce, None)
        names = sent.names if sent else ()
        doubtful = list(names)
        if earlier:
            doubtful += [name for other in self.outstanding.values() for name in other.names]
        for name in doubtful:
            if name in self.pending:
                if self.pending[name] is not MUST:
                    self.pending[name] = DOUBT
            elif self.wants(name):
                self.uncertain[name] = None
        self.error, self.error_names = message or "refused without a reason", names
        return Nacked(self.type_url, nonce, self.error, code, names)

    @property
    def full_state(self) -> bool:
        """Whether a state-of-the-world response must hold everything."""
        return self.type_url in FULL_STATE

    def status(self) -> TypeStatus:
        """The channel as shown to people."""
        if self.error:
            state = "ERROR"
        elif not self.sent_nonce:
            state = "NOT_SENT"
        elif self.sent_nonce == self.acked_nonce and not self.pending:
            state = "SYNCED"
        else:
            state = "STALE"
        return TypeStatus(
            type_url=self.type_url,
            wildcard=self.wildcard,
            names=len(self.names),
            state=state,
            sent_nonce=self.sent_nonce,
            acked_nonce=self.acked_nonce,
            sent_version=self.sent_version,
            acked_version=self.acked_version,
            error=self.error,
            error_names=self.error_names,
        )
