"""One view as the agent runs it: its stream, its resources, and whether they are complete enough to be compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from nodeagent.cache.store import Decoder, Resources, ViewCache
from nodeagent.xds.client import ViewStream
from nodeagent.xds.session import CDS, EDS, LDS, RDS, Update
from nodeagent.xds.views import View

#: A control plane that never answers for a name must not keep a new view waiting for ever; Envoy waits as long.
PATIENCE_S: Final = 15.0
#: Nor may it hold up later changes for long: after this a cluster without its endpoints is in force without them.
WARMING_S: Final = 1.0


@dataclass(slots=True)
class Received:
    """An update that waits for being applied, and what of it is refused already."""

    update: Update
    refused: dict[str, str]


@dataclass(slots=True)
class LiveView:
    """State of one view.

    `ready` becomes true once all that was asked for at first was answered, and stays so. Later changes are *warmed*: as
    long as something that they refer to was not answered (the endpoints of a new cluster, say), the view is compiled as
    it was before, so that no route ever leads to a cluster whose endpoints are only on their way.
    """

    view: View
    cache: ViewCache
    stream: ViewStream | None = None
    ready: bool = False
    waiting: list[Received] = field(default_factory=list)
    clock: Callable[[], float] = time.monotonic
    _answered: dict[str, set[str]] = field(default_factory=lambda: {LDS: set(), CDS: set(), RDS: set(), EDS: set()})
    _begun: set[str] = field(default_factory=set)
    _since: float | None = None
    _complete: Resources | None = None

    @classmethod
    def of(cls, view: View, decoder: Decoder, clock: Callable[[], float] = time.monotonic) -> LiveView:
        """A new view without resources."""
        return cls(view, ViewCache(decoder), clock=clock)

    def take(self, update: Update) -> None:
        """An update came: put it into the cache, ask for what it refers to, and leave it waiting for `applied`."""
        _, refused = self.cache.apply(update.type_url, update.changed, update.removed)
        self._begun.add(update.type_url)
        answered = self._answered[update.type_url]
        answered.update(resource.name for resource in update.changed)
        answered.update(update.removed)
        answered.update(update.refused)
        self.waiting.append(Received(update, refused))
        assert self.stream is not None, "an update comes by a stream"
        for referring, named in ((LDS, RDS), (CDS, EDS)):
            if update.type_url == referring:
                resources = self.cache.resources()
                names = resources.rds_names() if named == RDS else resources.eds_names()
                self.stream.want(named, names)
                self.cache.retain(named, names)
                self._answered[named] &= names
        self._weigh()

    def look(self) -> list[str]:
        """What was waited for in vain, if patience ended just now: the view goes on without it."""
        if self._since is None:
            return []
        missing = self.missing()
        return missing if self._weigh() else []

    def warming(self) -> bool:
        """Whether the newest resources are held back."""
        return self.ready and self._since is not None

    def snapshot(self) -> Resources:
        """What to compile: the newest resources that are complete, or that were waited for long enough."""
        if self._complete is None or not self.warming():
            self._complete = self.cache.resources()
        return self._complete

    def missing(self) -> list[str]:
        """What was asked for and not answered."""
        found = [f"first answer for {url.rpartition('.')[2]}" for url in (CDS, LDS) if url not in self._begun]
        resources = self.cache.resources()
        for url, names in ((RDS, resources.rds_names()), (EDS, resources.eds_names())):
            found += sorted(names - self._answered[url])
        return found

    def _weigh(self) -> bool:
        """Decide whether the view is ready, and whether it has to wait. Returns whether waiting was given up now."""
        if not {LDS, CDS} <= self._begun:
            return False
        now = self.clock()
        if not self.missing():
            self._since, self.ready = None, True
            return False
        if self._since is None:
            self._since = now
        if self.stream is not None and self.stream.trouble:
            return False  # nobody can answer now; what is in force is safer than half of what is new
        if now - self._since < (WARMING_S if self.ready else PATIENCE_S):
            return False
        # An answer is still welcome, but nothing waits for it again.
        resources = self.cache.resources()
        self._answered[RDS] |= resources.rds_names()
        self._answered[EDS] |= resources.eds_names()
        self._since, self.ready = None, True
        return True
