"""The waypoint as the agent sees it: made from the settings, started as soon as home stands by beneath it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from nodeagent.cache.store import Resources
from nodeagent.errors import SettingsError, WaypointError
from nodeagent.settings import Settings
from nodeagent.waypoint.bootstrap import overlay, whole
from nodeagent.waypoint.process import Launch, Waypoint, admin_socket, find_envoy
from nodeagent.waypoint.scopes import Scope, choose
from nodeagent.xds.views import View

_NODE_ID: Final = "sidecar~{ip}~waypoint-{node}.{namespace}~{namespace}.svc.cluster.local"

#: What a sidecar's connections are captured by: on all addresses of the node, where nothing is captured.
_CAPTURE: Final = frozenset({"virtualInbound", "virtualOutbound"})

log = structlog.get_logger("waypoint")


@dataclass(frozen=True, slots=True)
class Home:
    """What underpass-home says of itself.

    peers: where it listens, if it stands by only while no Envoy does; mss: the largest segment it asks for; own: where
    it listens at the same addresses even then.
    """

    peers: tuple[tuple[str, int], ...]
    stands_by: bool
    mss: int = 0
    own: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an Envoy is launched once it is known where and in whose name. cgroup: where its programs are attached."""

    binary: Path
    run: Path
    xds: tuple[str, int]
    node: str
    cgroup: Path | None
    config: Path | None = None
    namespace: str = ""

    def launch(self, home: Home, view: View | None) -> Launch:
        """With the user's configuration, or, at the home addresses, with what a workload of `view` is served."""
        metadata: dict[str, object] = {"NAMESPACE": self.namespace, "NODE_NAME": self.node}
        namespace, ip = self.namespace, "127.0.0.1"
        if view is not None:
            namespace, ip = view.namespace, view.ips[0]
            metadata = {**view.metadata(), "NAME": f"waypoint-{self.node}", "INTERCEPTION_MODE": "HOME"}
        part = overlay(
            xds=self.xds,
            node_id=_NODE_ID.format(ip=ip, node=self.node, namespace=namespace),
            metadata=metadata,
            admin=str(admin_socket(self.run)),
        )
        if view is None:
            return Launch(self.binary, self.run, self.config, part, cgroup=self.cgroup)
        made = whole(part, home.peers, home.mss)
        return Launch(self.binary, self.run, None, made, cgroup=self.cgroup, barred=_CAPTURE)


def prepare(settings: Settings, run: Path, cgroup: Path | None = None) -> WaypointService:
    """What `--waypoint auto` asks for. cgroup: the one for Envoy. SettingsError: no Envoy, no such file."""
    config = settings.envoy_config
    if config is not None and not config.is_file():
        raise SettingsError(f"--envoy-config {config}", "no such file", "name an Envoy bootstrap in YAML or JSON")
    host, _, port = settings.xds.rpartition(":")
    recipe = Recipe(
        find_envoy(settings.envoy),
        run,
        (host.strip("[]"), int(port)),
        settings.node,
        cgroup,
        config.absolute() if config is not None else None,
        settings.envoy_namespace,
    )
    admin_socket(run)  # a path that is too long is said now
    return WaypointService(recipe)


class WaypointService:
    """Waits for a home that stands by and, without a file, for workloads; from then on the process is supervised."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._home: Home | None = None
        self._scope: Scope | None = None
        self._view: View | None = None
        self._wanted: Launch | None = None
        self._due = asyncio.Event()
        self._reason = "waits for underpass-home"
        self._refused = ""
        self._process: Waypoint | None = None

    @property
    def ready(self) -> bool:
        """Whether an Envoy serves."""
        return self._process is not None and self._process.ready

    def apart(self, views: Iterable[str]) -> frozenset[str]:
        """Which of these views' workloads keep to underpass-home.

        All of them, until it is known whose eyes Envoy sees with: one of an agent before may be serving still.
        """
        if self.recipe.config is not None or self._home is None or not self._home.own:
            return frozenset()
        return frozenset(views) & (self._scope.apart if self._scope is not None else frozenset(views))

    def home_seen(self, home: Home) -> bool:
        """What underpass-home says of itself. Returns whether the status document says something else for it."""
        before = self._reason
        if home.stands_by:
            self._home = home
        elif self._home is None:
            self._reason = "underpass-home does not stand by: start it with --standby"
        self._settle()
        return self._reason != before

    def views_seen(self, views: Mapping[str, tuple[View, Resources]]) -> None:
        """What the node's workloads are served, all of them complete."""
        if self.recipe.config is not None:
            return
        before = self._scope
        self._scope = choose(
            {key: resources for key, (_, resources) in views.items()}, before.view if before is not None else ""
        )
        if self._scope is not None and (self._view is None or self._view.key != self._scope.view):
            self._view = views[self._scope.view][0]  # another representative of it is no reason for a restart
            log.info("waypoint sees with", view=self._view.key)
        if self._scope is not None and self._scope.apart != (before.apart if before is not None else frozenset()):
            log.info("workloads that see something else keep to underpass-home", views=sorted(self._scope.apart))
        self._settle()

    def _settle(self) -> None:
        if self._home is None:
            return
        if self.recipe.config is None and self._view is None:
            self._reason = "waits for a workload"
            return
        launch = self.recipe.launch(self._home, self._view)
        if launch != self._wanted:
            self._wanted = launch
            self._due.set()

    def status(self) -> dict[str, Any]:
        """For the status document."""
        found: dict[str, Any] = {"state": "waiting", "reason": self._reason, "restarts": 0, "pid": 0}
        if self._process is not None:
            found = self._process.status()
        if self._refused:
            found |= {"state": "refused", "reason": self._refused}
        if self._scope is not None:
            found |= {"view": self._scope.view, "apart": sorted(self._scope.apart)}
        return found

    async def run(self, changed: Callable[[], None]) -> None:
        """Until cancelled. Whatever goes wrong here, the agent goes on."""
        life: asyncio.Task[None] | None = None
        try:
            while True:
                await self._due.wait()
                self._due.clear()
                if life is not None:
                    await _end(life)
                assert self._wanted is not None
                self._process, self._refused = Waypoint(self._wanted, changed), ""
                life = asyncio.create_task(self._supervise(self._process, changed))
        finally:
            if life is not None:
                await _end(life)

    async def _supervise(self, process: Waypoint, changed: Callable[[], None]) -> None:
        try:
            await process.run()
        except WaypointError as error:
            self._refused = str(error)
            log.error("the waypoint is refused", reason=self._refused)
            changed()
        except Exception as error:  # noqa: BLE001 - routes of the kernel must not depend on an Envoy's fate
            log.error("the waypoint is not supervised any more", error=str(error), type=type(error).__name__)


async def _end(life: asyncio.Task[None]) -> None:
    """Wait until it is drained and has ended, whoever else is cancelled meanwhile."""
    life.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.shield(asyncio.gather(life, return_exceptions=True))
