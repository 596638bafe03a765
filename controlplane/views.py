"""Who is connected and what each of them is served: the model on one side, the xDS server on the other.

Clients whose nodes look the same to translation share one :class:`Group`, so it is translated once. A new generation
of the mesh goes through all groups; only those whose resources differ hear of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import structlog

from controlplane.identity.caller import Caller
from controlplane.model.mesh import Mesh
from controlplane.model.node import Node, NodeError, parse_node
from controlplane.snapshot import Builder, Resource, Snapshot, check
from controlplane.translate import Prepared, parts, prepare, resource_for
from controlplane.xds.channel import View
from controlplane.xds.server import NodeRefusedError
from underpass.api import envoy

_log = structlog.get_logger("controlplane.views")

#: The event loop is left alone for at most this long while a change goes through the groups, seconds.
_SLICE: Final = 0.01
_EMPTY: Final = Snapshot({})

Notify = Callable[[View, float], None]


class Generation:
    """One mesh, ready to be translated; ``born`` is the monotonic time at which its change was seen."""

    def __init__(self, number: int, prepared: Prepared, born: float) -> None:
        self.number = number
        self.prepared = prepared
        self.born = born


class GroupView:
    """What the clients of one group are served in one generation; translated when first asked for."""

    def __init__(self, group: Group, generation: Generation, builder: Builder) -> None:
        self._group = group
        self._generation = generation
        self._builder = builder
        self._snapshot: Snapshot | None = None
        #: Answers to names outside the snapshot, also the negative ones.
        self.asked: dict[tuple[str, str], Resource | None] = {}

    @property
    def snapshot(self) -> Snapshot:
        """All resources that are served unasked."""
        if self._snapshot is None:
            self._snapshot = self._builder.snapshot(*parts(self._generation.prepared, self._group.node))
        return self._snapshot

    @property
    def made(self) -> bool:
        """Whether anybody needed the snapshot yet; istioctl never does."""
        return self._snapshot is not None

    def lookup(self, type_url: str, name: str) -> Resource | None:
        """A resource that exists only once it is asked for."""
        key = (type_url, name)
        if key not in self.asked:
            message = resource_for(self._generation.prepared, self._group.node, type_url, name)
            self.asked[key] = None if message is None else self._builder.resource(type_url, name, message)
        return self.asked[key]

    def adopt(self, snapshot: Snapshot) -> None:
        """Take an equal snapshot's object instead of the own one."""
        self._snapshot = snapshot


class Group:
    """Clients that are served the same."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.view: GroupView
        self.members: dict[int, Notify] = {}


class _Attachment:
    """One client's membership of its group."""

    def __init__(self, views: Views, group: Group, node: Node, number: int) -> None:
        self._views = views
        self._group = group
        self._number = number
        self.node = node

    @property
    def view(self) -> View:
        """What the client is served now."""
        return self._group.view

    @property
    def node_id(self) -> str:
        """The client's node id."""
        return self.node.id

    def close(self) -> None:
        """The client left; the last one takes its group along."""
        self._group.members.pop(self._number, None)
        if not self._group.members:
            self._views.forget(self._group)


class Views:
    """The publisher that the xDS server asks. All methods belong to the event loop's thread."""

    def __init__(self, mesh: Mesh) -> None:
        self.builder = Builder()
        self._groups: dict[tuple[object, ...], Group] = {}
        self._members = 0
        self._generation = Generation(0, prepare(mesh), time.monotonic())
        self._checked: set[tuple[int, ...]] = set()

    @property
    def prepared(self) -> Prepared:
        """The generation in force, as translation wants it."""
        return self._generation.prepared

    @property
    def generation(self) -> int:
        """Number of the generation in force."""
        return self._generation.number

    @property
    def groups(self) -> list[Group]:
        """The groups of connected clients."""
        return list(self._groups.values())

    def attach(self, node: Any, notify: Notify, caller: Caller) -> _Attachment:
        """Admit a client, if *caller* may be the node that it claims to be.

        Raises :class:`NodeRefusedError` with the reason.
        """
        place = node.locality
        try:
            parsed = parse_node(
                node.id,
                envoy.to_dict(node.metadata) if node.HasField("metadata") else {},
                user_agent=node.user_agent_name,
                locality=(place.region, place.zone, place.sub_zone),
            )
        except NodeError as error:
            raise NodeRefusedError(str(error)) from error
        refusal = caller.refusal(parsed.type, parsed.namespace, parsed.service_account, parsed.node_name)
        if refusal:
            raise NodeRefusedError(refusal, "PERMISSION_DENIED")
        group = self._groups.get(parsed.view)
        if group is None:
            group = Group(parsed)
            group.view = GroupView(group, self._generation, self.builder)
            self._groups[parsed.view] = group
        self._members += 1
        group.members[self._members] = notify
        return _Attachment(self, group, parsed, self._members)

    def forget(self, group: Group) -> None:
        """Nobody is in *group* any more."""
        if self._groups.get(group.node.view) is group:
            del self._groups[group.node.view]

    async def publish(self, prepared: Prepared, born: float) -> int:
        """Put a new generation in force; gives the number of groups that it changed.

        A group that cannot be translated keeps what it has, and the log says so: one client's trouble is not another's.
        """
        self._generation = Generation(self._generation.number + 1, prepared, born)
        self.builder.begin_round()
        generation = self._generation
        changed = 0
        slice_end = time.monotonic() + _SLICE
        for group in self.groups:
            if group.members and self._renew(group, generation):
                changed += 1
            if time.monotonic() > slice_end:
                await asyncio.sleep(0)
                if generation is not self._generation:
                    break  # a newer one is on its way through already
                slice_end = time.monotonic() + _SLICE
        return changed

    def _renew(self, group: Group, generation: Generation) -> bool:
        old = group.view
        if old._generation is generation:
            return False  # attached while this generation was going through
        new = GroupView(group, generation, self.builder)
        try:
            changed = old.made and new.snapshot != old.snapshot
            changed = any(new.lookup(*key) != was for key, was in old.asked.items()) or changed
        except Exception:  # noqa: BLE001 - whatever is wrong with one node's translation, the others are served
            _log.exception("translation failed; the client keeps what it has", node=group.node.id)
            return False
        if old.made:
            if new.snapshot == old.snapshot:
                new.adopt(old.snapshot)
            else:
                self._check(group, old.snapshot, new.snapshot)
        group.view = new
        if changed:
            for notify in list(group.members.values()):
                notify(new, generation.born)
        return changed

    def _check(self, group: Group, old: Snapshot, snapshot: Snapshot) -> None:
        """Say once which subscriptions of a snapshot nothing would answer: a client would wait for them in vain.

        What did not change was looked at with *old*, unless something that is asked for is gone.
        """
        key, before = (tuple(id(state) for state in item.types.values()) for item in (snapshot, old))
        if key in self._checked:
            return
        looked_at = before in self._checked
        if len(self._checked) > 10_000:
            self._checked.clear()
        self._checked.add(key)
        changes = {url: self.builder.diff(old[url], snapshot[url]) for url in {*old.types, *snapshot.types}}
        gone = any(change.removed for change in changes.values())
        for dangling in check(snapshot, changes if looked_at and not gone else None):
            _log.error("inconsistent snapshot", problem=str(dangling), node=group.node.id)


__all__ = ["Generation", "Group", "GroupView", "Views"]
