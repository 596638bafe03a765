"""`underpass-agent`: one process per node, one event loop.

Streams fill caches; whatever changed is compiled, planned and executed together after a few milliseconds of quiet, and
only then confirmed to the control plane. Programs, maps and links are pinned: the agent may die at any time, and the
next one recovers the ids and touches nothing that is as it should be.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import grpc.aio
import structlog

from nodeagent.abi.numbers import NameKind
from nodeagent.admin import cleanup, server, status
from nodeagent.bpf import features
from nodeagent.bpf.abc import Kernel, Map
from nodeagent.bpf.errors import BpfError, NoSuchDeviceError
from nodeagent.bpf.kernel import LinuxKernel
from nodeagent.cache.store import Decoder
from nodeagent.errors import AgentError, ApplyError, SettingsError
from nodeagent.health.outlier import What
from nodeagent.health.service import Ejections
from nodeagent.intent.apart import set_apart
from nodeagent.intent.compile import Compiler
from nodeagent.intent.ids import Known
from nodeagent.intent.model import Intent
from nodeagent.node import probes
from nodeagent.node.attach import Attacher, Repair, set_workload_id
from nodeagent.node.interfaces import slot_of
from nodeagent.node.paths import NodePaths
from nodeagent.node.programs import Loaded, load
from nodeagent.node.registry import Registry, Workload
from nodeagent.plan import Observed, announces, apply, drift, plan
from nodeagent.reconcile import Reconciler
from nodeagent.settings import Settings, parse_arguments, parse_home
from nodeagent.telemetry.prometheus import render
from nodeagent.watch import Coalescer, every
from nodeagent.waypoint.process import NOTE, end_predecessor
from nodeagent.waypoint.service import Home, WaypointService, prepare
from nodeagent.xds.client import ViewStream, open_channel
from nodeagent.xds.live import LiveView
from nodeagent.xds.session import Update
from nodeagent.xds.views import key_of, views

REGISTRY_S: Final = 0.05
HOME_S: Final = 0.2
CHECK_S: Final = 30.0
RETRY_S: Final = 1.0
STATUS_S: Final = 0.1
HEALTH_S: Final = 0.1

log = structlog.get_logger("agent")


class Agent:
    """The running agent. Everything belongs to one event loop; `run` is its life."""

    def __init__(
        self,
        settings: Settings,
        kernel: Kernel,
        paths: NodePaths,
        loaded: Loaded,
        waypoint: WaypointService | None = None,
        features: Mapping[str, object] | None = None,
    ) -> None:
        self._settings, self._paths = settings, paths
        self._maps: dict[str, Map] = dict(loaded.maps)
        self._reconciler = Reconciler(kernel, loaded.maps)
        self._attacher = Attacher(kernel, paths, loaded.programs)
        self._registry = Registry(paths.workloads)
        self._compiler, self._decoder = Compiler(), Decoder()
        self._observed: Observed = self._reconciler.observe()
        self._known: Known = self._observed.known()
        self._intent = Intent({})
        self._ejections = Ejections(self._maps["endpoint_runs"])
        self._views: dict[str, LiveView] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._states: dict[str, status.WorkloadState] = {}
        self._attached: dict[str, tuple[Workload, int]] = {}
        self._errors: dict[str, str] = {}
        self._home = settings.home
        self._own: tuple[tuple[str, int], ...] = ()
        self._waypoint = waypoint
        self._features = features or {}
        self._dirty = Coalescer()
        self._status_due = asyncio.Event()
        self._applied = status.ApplyState()
        self._started = time.time()
        self._channel: grpc.aio.Channel | None = None

    async def run(self) -> None:
        """Serve until cancelled."""
        self._channel = open_channel(self._settings.xds)
        self._configure()
        self._repairs(self._attacher.attach_home())
        if self._waypoint is not None:
            self._repairs(self._attacher.attach_waypoint())
        self._recover()
        pages = {"/status": self._page_status, "/metrics": self._page_metrics, "/ready": self._page_ready}
        socket_server = await server.serve(self._paths.run / "agent.sock", pages)
        log.info("agent up", node=self._settings.node, xds=self._settings.xds, workloads=len(self._registry.workloads))
        try:
            async with asyncio.TaskGroup() as group:
                looks = (
                    (REGISTRY_S, self._look_at_registry),
                    (HOME_S, self._look_at_home),
                    (CHECK_S, self._check),
                    (RETRY_S, self._retry),
                    (HEALTH_S, self._look_at_health),
                )
                for interval, look in looks:
                    group.create_task(every(interval, look, self._trouble))
                group.create_task(self._apply_forever())
                group.create_task(self._write_status_forever())
                if self._waypoint is not None:
                    group.create_task(self._waypoint.run(self._waypoint_changed))
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            socket_server.close()
            (self._paths.run / "agent.sock").unlink(missing_ok=True)
            await self._channel.close()
            self._write_status()

    # ---- workloads and their views ----

    def _recover(self) -> None:
        """Before any control plane was heard: workloads that the maps know keep (or get back) their programs."""
        self._take_registry()
        ids = self._observed.known()
        for key, number in self._observed_workloads(ids).items():
            workload = self._registry.workloads.get(key)
            if workload is not None:
                self._enrol(workload, number)

    @staticmethod
    def _observed_workloads(known: Known) -> dict[str, int]:
        live = known.live.get(NameKind.WORKLOAD, frozenset())
        return {name.split(" ")[0]: number for name, number in known.of(NameKind.WORKLOAD).items() if number in live}

    def _look_at_registry(self) -> None:
        if self._take_registry():
            self._status_due.set()
        for live in self._views.values():
            given_up = live.look()
            if given_up:
                log.warning("view goes on without answers", view=live.view.key, missing=given_up[:10])
                self._dirty.touch()

    def _take_registry(self) -> bool:
        change = self._registry.poll()
        for error in change.errors:
            log.error("workload not read", error=str(error))
            self._errors[error.what] = str(error)
        for key in change.absent:
            self._leave(key)
        for workload in change.present:
            attached = self._attached.get(workload.key)
            if attached is not None and _place(attached[0]) != _place(workload):
                self._leave(workload.key)
            view = key_of(workload)
            self._states[workload.key] = status.WorkloadState(workload.key, view, "waiting", "", 0, workload.ips)
        if change:
            self._set_views()
            self._dirty.touch()
        return bool(change)

    def _leave(self, key: str) -> None:
        """A workload went."""
        attached = self._attached.pop(key, None)
        self._states.pop(key, None)
        try:
            self._attacher.detach(key, attached[0] if attached else None)
        except BpfError as error:
            log.warning("workload not detached", workload=key, error=str(error))
        if attached is not None:
            log.info("workload left", workload=key)

    def _set_views(self) -> None:
        wanted = views(self._registry.workloads.values(), {key: live.view for key, live in self._views.items()})
        for key in [key for key in self._views if key not in wanted]:
            self._tasks.pop(key).cancel()
            del self._views[key]
        for key, view in wanted.items():
            live = self._views.get(key)
            if live is None:
                live = self._views[key] = LiveView.of(view, self._decoder)
            elif live.view != view:
                # The representative changed, so the node id does: another stream, the same resources until it speaks.
                self._tasks.pop(key).cancel()
                live.view, live.waiting = view, []
            if key not in self._tasks:
                self._open(live)

    def _open(self, live: LiveView) -> None:
        assert self._channel is not None
        old = live.stream
        stream = ViewStream(self._channel, live.view, self._on_update, lambda _: self._status_due.set())
        if old is not None:
            stream.session = old.session.successor()
        live.stream = stream
        self._tasks[live.view.key] = asyncio.create_task(stream.run(), name=f"view {live.view.key}")

    async def _on_update(self, stream: ViewStream, update: Update) -> None:
        live = self._views.get(stream.view.key)
        if live is None or live.stream is not stream:
            return
        was_ready = live.ready
        live.take(update)
        for name, reason in live.waiting[-1].refused.items():
            log.warning("resource refused", view=live.view.key, type=update.type_url, name=name, reason=reason)
        if live.ready and not was_ready:
            log.info("view synchronised", view=live.view.key)
        self._dirty.touch()

    # ---- applying ----

    async def _apply_forever(self) -> None:
        while True:
            await self._dirty.wait()
            self._apply()
            self._status_due.set()

    def _apply(self) -> None:
        """Compile, plan, execute; then confirm what waited for it."""
        # What a view holds back until it is complete is not in force, and so not confirmed.
        settled = [live for live in self._views.values() if not live.warming()]
        waiting = [(live, received) for live in settled for received in live.waiting]
        for live in settled:
            live.waiting = []
        failure = ""
        try:
            self._apply_now()
        except (AgentError, BpfError) as error:
            failure = str(error)
            log.error("not applied", error=failure)
            self._applied.error = failure
            # What was done stands; go on from what the maps really hold.
            self._observed = self._reconciler.observe()
        for live, received in waiting:
            refused = dict(received.refused)
            if failure:
                refused |= {resource.name: failure for resource in received.update.changed}
            if live.stream is not None:
                live.stream.applied(received.update, refused)
        held = {digest for live in self._views.values() for digest in live.cache.digests()}
        self._decoder.sweep(held)

    def _apply_now(self) -> None:
        begun = time.perf_counter()
        ready = {key: live for key, live in self._views.items() if live.ready}
        workloads = [(w, key_of(w)) for w in self._registry.workloads.values() if key_of(w) in ready]
        resources = {key: live.snapshot() for key, live in ready.items()}
        intent = self._compiler.compile(resources, workloads, self._known, self._ejections.out)
        covered = self._covered(ready)
        if self._waypoint is not None:
            if len(ready) == len(self._views):
                self._waypoint.views_seen({key: (live.view, resources[key]) for key, live in ready.items()})
            apart = self._waypoint.apart(ready)
            intent = set_apart(intent, [workload.key for workload, view in workloads if view in apart])
        steps = plan(self._observed, intent, prune=covered)
        compiled = time.perf_counter()
        self._reconciler.execute(steps)
        apply(self._observed, steps)
        self._intent, self._known = intent, intent.known if covered else intent.known.over(self._known)
        self._ejections.watch(intent.watched, intent.known.of(NameKind.ENDPOINT), time.monotonic())
        if announces(steps):
            self._applied.generation = self._reconciler.announce()
        executed = time.perf_counter()
        if steps:
            self._applied.count += 1
            self._applied.at = time.time()
            self._applied.steps = len(steps)
            self._applied.compile_ms = round((compiled - begun) * 1e3, 3)
            self._applied.execute_ms = round((executed - compiled) * 1e3, 3)
            state = self._applied
            log.info("applied", steps=state.steps, compile_ms=state.compile_ms, execute_ms=state.execute_ms)
        self._applied.error = ""
        for key, number in intent.enrolled.items():
            self._enrol(self._registry.workloads[key], number)

    def _covered(self, ready: dict[str, LiveView]) -> bool:
        """Whether everything that the maps hold for a present view is in the intent, so that the rest may go."""
        if all(key in ready for key in self._views):
            return True
        known = self._observed.known()
        serving = known.live.get(NameKind.VIEW, frozenset())
        ids = known.of(NameKind.VIEW)
        return all(key in ready or ids.get(key) not in serving for key in self._views)

    def _enrol(self, workload: Workload, number: int) -> None:
        """Attach what a workload needs and tell the hooks its number; kept waiting while its namespace is not there."""
        if self._attached.get(workload.key) == (workload, number):
            return
        state = self._states.setdefault(
            workload.key, status.WorkloadState(workload.key, key_of(workload), "waiting", "", 0, workload.ips)
        )
        try:
            self._repairs(self._attacher.attach(workload))
            self._count_interface(workload.host_interface)
            set_workload_id(self._maps["cgroup_workload"], workload.cgroup, number)
        except NoSuchDeviceError as error:
            state.state, state.reason = "waiting", str(error)
        except (BpfError, OSError) as error:
            if state.reason != str(error):
                log.error("workload not attached", workload=workload.key, error=str(error))
            state.state, state.reason = "failed", str(error)
        else:
            self._attached[workload.key] = (workload, number)
            state.state, state.reason, state.id = "enrolled", "", number
            log.info("workload enrolled", workload=workload.key, id=number)
        self._status_due.set()

    def _count_interface(self, name: str) -> None:
        if slot_of(self._maps["interface_stats"], socket.if_nametoindex(name)) is None:
            log.warning("interface not counted: its slots are taken by others", interface=name)

    # ---- looking again ----

    def _look_at_health(self) -> None:
        """Endpoints that fail are taken out of their clusters, those that have been out for long enough come back."""
        for event in self._ejections.look(time.monotonic()):
            told = {"cluster": event.watch.cluster, "endpoint": event.endpoint}
            if event.what is What.EJECTED:
                log.warning("endpoint ejected", **told, why=event.why, seconds=event.seconds)
            elif event.what is What.RETURNED:
                log.info("endpoint returns", **told)
            else:
                log.warning("endpoint not ejected: enough are out", **told, why=event.why)
            if event.what is not What.KEPT:
                self._dirty.touch()
            self._status_due.set()

    def _retry(self) -> None:
        """What failed or waited is tried again."""
        for key, number in self._intent.enrolled.items():
            workload = self._registry.workloads.get(key)
            if workload is not None and key not in self._attached:
                self._enrol(workload, number)
        if self._applied.error:
            self._dirty.touch()

    def _check(self) -> None:
        """Attachments and maps are as they were left, or are repaired."""
        if self._waypoint is not None:
            self._repairs(self._attacher.attach_waypoint())
        for workload, _ in self._attached.values():
            try:
                self._repairs(self._attacher.attach(workload))
            except (BpfError, OSError) as error:
                log.warning("workload not checked", workload=workload.key, error=str(error))
        try:
            real = self._reconciler.observe()
        except ApplyError as error:
            log.error("maps not checked", error=str(error))
            return
        found = drift(self._observed, real)
        if found:
            log.warning("the maps were changed by somebody else", entries=found)
            self._applied.drift += found
            self._observed = real
            self._dirty.touch()

    def _trouble(self, error: Exception) -> None:
        log.error("a periodic look failed", error=str(error), type=type(error).__name__)

    def _repairs(self, repairs: list[Repair]) -> None:
        for repair in repairs:
            level = log.debug if repair.why == "new" else log.warning
            level("attached", workload=repair.key, slot=repair.slot, why=repair.why)

    def _look_at_home(self) -> None:
        """Without --home, the home peers are those that underpass-home of this node says it listens on."""
        if self._settings.home:
            return
        try:
            data = json.loads((self._paths.run / "home.json").read_text(encoding="utf-8"))
            homes = tuple(parse_home(text) for text in data["listen"])
            own = tuple(parse_home(text) for text in data.get("own", []))
            home = Home(homes, bool(data.get("standby")), int(data.get("mss", 0)), own)
        except (OSError, ValueError, KeyError, TypeError, SettingsError):
            return  # not there yet, or being replaced; the last known peers stay
        if self._waypoint is not None and self._waypoint.home_seen(home):
            self._status_due.set()
        if home.peers and (home.peers, home.own) != (self._home, self._own):
            self._home, self._own = home.peers, home.own
            self._configure()
            self._dirty.touch()
            log.info("home peers", homes=home.peers)
            self._status_due.set()

    def _configure(self) -> None:
        """Tell the kernel who the home peers are, and whether an Envoy answers there."""
        envoy = self._settings.home_is_envoy or (self._waypoint is not None and self._waypoint.ready)
        self._reconciler.configure(self._home, int(envoy), self._own)

    def _waypoint_changed(self) -> None:
        """New connections have moved already: whose address it is, the listening sockets themselves decide."""
        self._configure()
        self._status_due.set()

    # ---- telling ----

    async def _write_status_forever(self) -> None:
        while True:
            self._write_status()
            await self._status_due.wait()
            self._status_due.clear()
            await asyncio.sleep(STATUS_S)

    def _write_status(self) -> None:
        try:
            status.write(self._paths.run / "status.json", self._document())
        except OSError as error:
            log.error("status not written", error=str(error))

    def _document(self) -> dict[str, object]:
        return status.document(
            node=self._settings.node,
            xds=self._settings.xds,
            started=self._started,
            views=self._views.values(),
            workloads=[self._states[key] for key in sorted(self._states)],
            rejections=self._intent.rejections,
            ejections=self._ejections.status(time.monotonic()),
            counts=self._intent.counts(),
            applied=self._applied,
            errors=self._errors.values(),
            home=self._home,
            waypoint=self._waypoint.status() if self._waypoint is not None else {"state": "off"},
            kernel=self._features,
        )

    def _page_status(self) -> tuple[int, str, bytes]:
        return 200, "application/json", json.dumps(self._document()).encode()

    def _page_metrics(self) -> tuple[int, str, bytes]:
        return 200, "text/plain; version=0.0.4", self._metrics()

    def _metrics(self) -> bytes:
        ejections = self._ejections.status(time.monotonic())
        return render(self._maps, self._applied.count, self._applied.drift, ejections, self._ejections.kept)

    def _page_ready(self) -> tuple[int, str, bytes]:
        waiting = [live.view.key for live in self._views.values() if not live.ready]
        if waiting or self._applied.error:
            return 503, "text/plain", (self._applied.error or f"waiting for {', '.join(waiting)}").encode() + b"\n"
        return 200, "text/plain", b"ready\n"


def _place(workload: Workload) -> tuple[object, ...]:
    """Where a workload's programs are attached; when that changes it is another workload for the kernel."""
    return workload.netns, workload.cgroup, workload.interface, workload.host_interface, workload.ips


def configure_logging(form: str, level: str) -> None:
    """Log lines to stderr: for people, or JSON."""
    renderer: Callable[..., str | bytes] = structlog.processors.JSONRenderer()
    if form == "text":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            {"debug": 10, "info": 20, "warning": 30, "error": 40}[level]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def lock(path: Path) -> int:
    """Take the node's agent lock for the process's life: two agents would undo each other's work. SettingsError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SettingsError(f"lock {path}", "another agent of this node is running", "stop it first") from None
    except OSError as cause:
        raise SettingsError(f"lock {path}", str(cause), "run as root, or choose another --run-dir") from cause
    return fd


async def _run(settings: Settings, paths: NodePaths) -> None:
    waypoint = prepare(settings, paths.run, paths.waypoint_cgroup) if settings.waypoint else None
    if waypoint is None:
        await asyncio.to_thread(end_predecessor, paths.run / NOTE)  # whose agent was killed: it is not wanted any more
    kernel = LinuxKernel()
    found = probes.survey(kernel, settings.cgroup_root, load=False)
    found.require(but=("programs",))  # those are loaded in earnest
    loaded = load(kernel, paths)
    found = probes.loaded(found, len(loaded.programs))
    for row in found.second_ways:
        log.info("the kernel lacks a feature; there is a second way", feature=row.feature.key, follows=row.means)
    for name in loaded.replaced:
        log.info("program upgraded in place", program=name)
    agent = Agent(settings, kernel, paths, loaded, waypoint, found.summary(platform.release()))
    task = asyncio.create_task(agent.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        log.info("agent down; programs, maps and links stay pinned")
    finally:
        loaded.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `underpass-agent`. Status 2 for a mistake in the settings, 1 for a failure."""
    try:
        settings = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        configure_logging(settings.log_format, settings.log_level)
        cgroup = settings.cgroup_root or features.cgroup2()
        paths = NodePaths.of(settings.node, features.bpffs(), cgroup, run=settings.run_dir, bpffs=settings.bpffs)
        held = lock(paths.run / "agent.lock")
        try:
            if settings.cleanup:
                end_predecessor(paths.run / NOTE)
                cleanup.remove(LinuxKernel(), paths)
            else:
                asyncio.run(_run(settings, paths))
        finally:
            os.close(held)
    except SettingsError as error:
        print(f"underpass-agent: {error}", file=sys.stderr)
        return 2
    except (AgentError, BpfError) as error:
        print(f"underpass-agent: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
