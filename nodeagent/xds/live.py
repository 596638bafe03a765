"""One view as the agent runs it: its stream, its resources, and how far its first synchronisation is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from nodeagent.cache.store import Decoder, Resources, ViewCache
from nodeagent.xds.client import ViewStream
from nodeagent.xds.session import CDS, EDS, LDS, RDS, Update
from nodeagent.xds.views import View

#: A control plane that never answers for a name must not keep a view waiting for ever; Envoy waits as long.
PATIENCE_S: Final = 15.0


@dataclass(slots=True)
class Received:
    """An update that waits for being applied, and what of it is refused already."""

    update: Update
    refused: dict[str, str]


@dataclass(slots=True)
class LiveView:
    """State of one view. `ready` becomes true once all that was asked for at first was answered, and stays so."""

    view: View
    cache: ViewCache
    stream: ViewStream | None = None
    ready: bool = False
    waiting: list[Received] = field(default_factory=list)
    _answered: dict[str, set[str]] = field(default_factory=lambda: {LDS: set(), CDS: set(), RDS: set(), EDS: set()})
    _begun: set[str] = field(default_factory=set)
    _since: float = 0.0

    @classmethod
    def of(cls, view: View, decoder: Decoder) -> LiveView:
        """A new view without resources."""
        return cls(view, ViewCache(decoder))

    def resources(self) -> Resources:
        """What the compiler gets."""
        return self.cache.resources()

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
        if not self.ready:
            self.ready = self._complete()

    def look(self) -> bool:
        """Whether patience made the view ready just now."""
        if self.ready or not self._since or time.monotonic() - self._since < PATIENCE_S:
            return False
        self.ready = True
        return True

    def missing(self) -> list[str]:
        """What the first synchronisation still waits for."""
        found = [f"first answer for {url.rpartition('.')[2]}" for url in (CDS, LDS) if url not in self._begun]
        resources = self.cache.resources()
        for url, names in ((RDS, resources.rds_names()), (EDS, resources.eds_names())):
            found += sorted(names - self._answered[url])
        return found

    def _complete(self) -> bool:
        if not {LDS, CDS} <= self._begun:
            return False
        if not self._since:
            self._since = time.monotonic()
        return not self.missing()
