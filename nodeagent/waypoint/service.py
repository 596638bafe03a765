"""The waypoint as the agent sees it: made from the settings, started as soon as home stands by beneath it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog

from nodeagent.errors import SettingsError
from nodeagent.settings import Settings
from nodeagent.waypoint.bootstrap import overlay
from nodeagent.waypoint.process import Launch, Waypoint, admin_socket, find_envoy

_NODE_ID: Final = "sidecar~127.0.0.1~waypoint-{node}.{namespace}~{namespace}.svc.cluster.local"

log = structlog.get_logger("waypoint")


def prepare(settings: Settings, run: Path) -> WaypointService:
    """What `--waypoint auto` asks for. SettingsError: no Envoy, no such file."""
    config = settings.envoy_config
    if config is None or not config.is_file():
        raise SettingsError(f"--envoy-config {config}", "no such file", "name an Envoy bootstrap in YAML or JSON")
    host, _, port = settings.xds.rpartition(":")
    part = overlay(
        xds=(host.strip("[]"), int(port)),
        node_id=_NODE_ID.format(node=settings.node, namespace=settings.envoy_namespace),
        metadata={"NAMESPACE": settings.envoy_namespace, "NODE_NAME": settings.node},
        admin=str(admin_socket(run)),
    )
    return WaypointService(Launch(find_envoy(settings.envoy), run, config.absolute(), part))


class WaypointService:
    """Waits for a home that stands by; from then on the process is supervised."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self._home = asyncio.Event()
        self._reason = "waits for underpass-home"
        self._process: Waypoint | None = None

    @property
    def ready(self) -> bool:
        """Whether an Envoy serves."""
        return self._process is not None and self._process.ready

    def home_seen(self, stands_by: bool) -> bool:
        """What underpass-home says of itself. Returns whether the status document says something else for it."""
        before = self._reason
        if stands_by:
            self._home.set()
        elif not self._home.is_set():
            self._reason = "underpass-home does not stand by: start it with --standby"
        return self._reason != before

    def status(self) -> dict[str, Any]:
        """For the status document."""
        if self._process is None:
            return {"state": "waiting", "reason": self._reason, "restarts": 0, "pid": 0}
        return self._process.status()

    async def run(self, changed: Callable[[], None]) -> None:
        """Until cancelled. Whatever goes wrong here, the agent goes on."""
        await self._home.wait()
        self._process = Waypoint(self.launch, changed)
        try:
            await self._process.run()
        except Exception as error:  # noqa: BLE001 - routes of the kernel must not depend on an Envoy's fate
            log.error("the waypoint is not supervised any more", error=str(error), type=type(error).__name__)
