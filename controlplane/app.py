"""``underpass-controlplane``: one process from YAML files to xDS clients.

``Directory`` (or ``Replica``) -> ``ingest`` -> ``prepare`` -> ``Views`` -> ``XdsServer``, and the
admin surface beside it. Everything runs on one event loop; a mesh that takes long to read is read in a thread.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata as distribution
from pathlib import Path

import grpc
import structlog
from prometheus_client import CollectorRegistry

from controlplane.admin.debug import Debug
from controlplane.admin.history import Revision
from controlplane.admin.http import HttpServer
from controlplane.admin.metrics import ConfigMetrics, StoreMetrics
from controlplane.admin.objects import Objects
from controlplane.admin.services import Services
from controlplane.errors import AddressInUse, ControlPlaneError, UsageProblem
from controlplane.identity.caller import Rights
from controlplane.identity.front import TlsFiles, TlsFront, Watched, context
from controlplane.identity.gate import Gate, Tokens
from controlplane.model.build import build
from controlplane.model.verdict import Verdict
from controlplane.settings import Address, Settings, Tls, parse
from controlplane.sources.files import Directory, DirectoryError, Snapshot, Stamp
from controlplane.sources.ingest import Ingested, State, ingest
from controlplane.store.errors import StoreDenied
from controlplane.store.service import Store
from controlplane.translate import Prepared, prepare, remarked
from controlplane.views import Views
from controlplane.xds.metrics import XdsMetrics
from controlplane.xds.server import CHANNEL_OPTIONS, XdsServer

_log = structlog.get_logger("controlplane")

#: A change that took less than this to take in (seconds) is taken in on the event loop: a thread would cost more.
_INLINE = 0.05
#: Clients have the event loop for themselves for so long after a change, seconds.
_AFTER = 0.02
#: When to look for garbage in cycles. A change of a large mesh makes hundreds of thousands of objects, nearly none of
#: them in a cycle; with Python's own figures (700, 10, 10) a third of a change's time went into looking.
_GC = (50_000, 20, 20)
#: Streams get this long to hear that the process ends, seconds.
_STOP_GRACE = 0.5


def version() -> str:
    """The version of the installed distribution."""
    try:
        return distribution.version("underpass")
    except distribution.PackageNotFoundError:
        return "0.0.0+source"


@dataclass(slots=True)
class Bound:
    """Ports that the process listens on."""

    xds: int
    http: int
    #: 0 without TLS.
    tls: int = 0


@dataclass(slots=True)
class TlsListener:
    """The port with TLS, and the socket behind it at which gRPC listens."""

    front: TlsFront
    inner: Path


def _verifier(path: Path, tls: Tls, trust_domain: str) -> Watched:
    """Tokens' verifier, newly made when its file changes. Raises :class:`UsageProblem`."""
    from controlplane.identity.tokens import Verifier, read_keys  # cryptography costs 16 MiB: only who needs it pays

    def make() -> Verifier:
        return Verifier(read_keys(path.read_bytes()), trust_domain, tls.jwt_audiences, tls.jwt_issuers)

    try:
        return Watched((path,), make)
    except (OSError, ValueError) as error:
        raise UsageProblem(f"--jwt-keys {path}: {error}") from error


class ControlPlane:
    """One running control plane; :meth:`start`, then :meth:`run` until :meth:`stop`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.registry = CollectorRegistry()
        self.metrics = ConfigMetrics(self.registry, version())
        self._mesh_settings = {
            "domain": settings.domain,
            "trust_domain": settings.trust_domain,
            "root_namespace": settings.root_namespace,
        }
        self._directory = None if settings.config is None else Directory(settings.config)
        self._store = None if settings.store is None else Store(settings.store, settings.name)
        self._state = State()
        self._prepared: Prepared | None = None
        self._cost = 0.0
        self._stamps: dict[str, Stamp] = {}
        #: Set by :meth:`stop`.
        self.stopping = asyncio.Event()
        #: One change at a time: an edit and a rollback may come together.
        self._changing = asyncio.Lock()
        self._tokens: Watched | None = None
        self.gate = Gate(Rights(settings.operators, settings.node_proxies), self._verify_tokens)
        self._tls: TlsListener | None = None
        self.views = Views(build({}, **self._mesh_settings).mesh)
        self.debug = Debug(self.views, name=settings.name, version=version(), registry=self.registry)
        self.server = XdsServer(
            self.views,
            XdsMetrics(self.registry),
            identifier=self.debug.identifier,
            max_streams=settings.max_streams,
            streams_per_caller=settings.streams_per_client,
            admit=self.gate.admit,
            diff=self.views.builder.diff,
            is_query=self.debug.is_query,
            answer=self.debug.answer,
            on_nack=self.debug.on_nack,
            on_ack=self.debug.on_ack,
        )
        self.debug.connections = self.server.connections
        self.debug.objects = Objects(self._store)
        if self._store is not None:
            StoreMetrics(self.registry, self._store)
        self.debug.rollback = self._rollback
        self.debug.admit = self.gate.admit_bearer
        self._services = Services(self.debug.clients, lambda: self.debug.ready, self.gate.admit)
        self._grpc = grpc.aio.server(options=CHANNEL_OPTIONS)
        self._http = HttpServer(self.debug.handle)

    async def start(self) -> Bound:
        """Read the configuration once, then listen. Raises :class:`ControlPlaneError`."""
        http = self.settings.http
        try:
            http_port = await self._http.start(http.host, http.port)  # at once: a store may keep the rest waiting
        except OSError as error:
            raise AddressInUse(f"--http {http}: {error.strerror or error}; choose another address") from error
        try:
            return await self._start(http_port)
        except BaseException:
            if self._store is not None:
                await self._store.close()
            await self._http.close()
            raise

    async def _start(self, http_port: int) -> Bound:
        first = await self._first()
        gc.disable()  # what is being read is all kept: walking it again and again would find nothing
        await self._take(first)
        self.server.register(self._grpc)
        self._services.register(self._grpc)
        xds = self._listen(self.settings.listen)
        for address in self.settings.also_listen:
            self._listen(address)
        if self.settings.tls is not None:
            self._tls = self._prepare_tls(self.settings.tls)
        await self._grpc.start()
        tls_port = await self._start_tls()
        self.debug.ready = True
        gc.collect()
        gc.freeze()  # the modules and the first mesh live as long as the process: do not walk them again
        gc.set_threshold(*_GC)
        gc.enable()
        bound = Bound(xds, http_port, tls_port)
        if self.settings.addresses_file is not None:
            _write_addresses(self.settings.addresses_file, self.settings, bound)
        _log.info(
            "serving",
            xds=f"{self.settings.listen.host}:{xds}",
            http=f"{self.settings.http.host}:{http_port}",
            tls=f"{self.settings.tls.listen.host}:{tls_port}" if self.settings.tls else "off",
            config=str(self.settings.config or self.settings.store),
            objects=len(self.debug.verdicts),
        )
        return bound

    async def _first(self) -> Snapshot:
        """The configuration, read for the first time: at once from a directory, when it can be had from a store."""
        if self._store is not None:
            self._store.start()
            try:
                return await self._store.first()
            except StoreDenied as error:
                raise UsageProblem(f"--store: {error}; {error.next_step}") from error
        assert self._directory is not None
        try:
            return await asyncio.to_thread(self._directory.read)
        except DirectoryError as error:
            raise UsageProblem(f"--config: {error}") from error

    def _listen(self, address: Address) -> int:
        try:
            port = self._grpc.add_insecure_port(str(address))
        except RuntimeError as error:
            raise AddressInUse(
                f"--listen {address}: the address is in use or not one of this machine's; choose another"
            ) from error
        return int(port)

    def _prepare_tls(self, tls: Tls) -> TlsListener:
        """Read the files and let gRPC listen behind the port. Raises :class:`UsageProblem`."""
        files = TlsFiles(tls.certificate, tls.key, tls.client_ca)
        try:
            context(files)
        except (OSError, ValueError) as error:
            raise UsageProblem(f"--tls-certificate, --tls-key, --tls-client-ca: {error}") from error
        keys = tls.jwt_keys
        if keys is not None:
            self._tokens = _verifier(keys, tls, self.settings.trust_domain)
        inner = Path(tempfile.mkdtemp(prefix="underpass-")) / "xds"  # a directory that only this user may enter
        self._grpc.add_insecure_port(f"unix:{inner}")
        return TlsListener(TlsFront(self.gate, files, self.settings.trust_domain, str(inner)), inner)

    def _verify_tokens(self) -> Tokens | None:
        found: Tokens | None = None if self._tokens is None else self._tokens.get()
        return found

    async def _start_tls(self) -> int:
        tls = self.settings.tls
        if tls is None or self._tls is None:
            return 0
        try:
            return await self._tls.front.start(tls.listen.host, tls.listen.port)
        except OSError as error:
            await self._stop_listening()
            raise AddressInUse(f"--tls-listen {tls.listen}: {error.strerror or error}; choose another") from error

    async def _stop_listening(self) -> None:
        await self._http.close()
        if self._tls is not None:
            await self._tls.front.close()
        await self._grpc.stop(_STOP_GRACE)
        if self._tls is not None:
            shutil.rmtree(self._tls.inner.parent, ignore_errors=True)

    async def run(self) -> None:
        """Follow the configuration until :meth:`stop`."""
        follow = asyncio.ensure_future(self._follow())
        stop = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait([follow, stop], return_when=asyncio.FIRST_COMPLETED)
            if follow.done():
                follow.result()  # it never ends by itself, so this raises
        finally:
            follow.cancel()
            stop.cancel()
            self.debug.ready = False
            if self._store is not None:
                await self._store.close()  # first: another replica can lead while this one says goodbye to its clients
            await self.server.close()
            await self._stop_listening()
            _log.info("stopped")

    def stop(self) -> None:
        """Make :meth:`run` return."""
        self.stopping.set()

    def _changes(self) -> AsyncIterator[Snapshot]:
        if self._store is not None:
            return self._store.watch()
        assert self._directory is not None
        return self._directory.watch()

    async def _follow(self) -> None:
        async for snapshot in self._changes():
            stamps = _stamps(snapshot)
            if stamps != self._stamps:  # the watch begins with the present state, which start() has taken in
                await self._take(snapshot)

    async def _take(self, snapshot: Snapshot) -> None:
        """Take a state of the directory into force; what is wrong with it is a verdict, not a failure."""
        async with self._changing:
            await self._take_in(snapshot)

    async def _take_in(self, snapshot: Snapshot) -> None:
        born = time.monotonic()
        if self._cost < _INLINE and self._prepared is not None:
            taken, prepared = self._digest(snapshot)
        else:
            taken, prepared = await asyncio.to_thread(self._digest, snapshot)
        self._cost = time.monotonic() - born
        self._stamps = _stamps(snapshot)
        self._state = taken.state
        before, self.debug.verdicts = self.debug.verdicts, remarked(taken.verdicts, taken.mesh)
        self.debug.rolled_back_to = ""
        at = time.time()
        await self._publish(prepared, born)
        # Clients first: what follows takes a while in a large mesh, and nobody waits for it.
        await asyncio.sleep(_AFTER)
        self._report(before, self.debug.verdicts)
        revision = self.debug.history.record(taken.state.objects(), at, "edit")
        if revision is not None and self._store is not None:
            self._store.remember(revision.id, {kept.id for kept in self.debug.history})

    async def _publish(self, prepared: Prepared, born: float) -> None:
        self._prepared = prepared
        changed = await self.views.publish(prepared, born)
        took = time.monotonic() - born
        self.metrics.pushed(took, prepared.mesh, self.debug.verdicts)
        _log.info(
            "configuration in force",
            generation=self.views.generation,
            milliseconds=round(took * 1000, 1),
            changed_views=changed,
            clients=len(self.server.connections),
        )

    async def _rollback(self, revision: Revision) -> None:
        """Put an earlier revision in force until the directory changes: the files stay the source of truth.

        With a store the earlier content is written to it, so that all replicas go back; it is a change like any other.
        """
        if self._store is not None:
            await self._store.restore(revision.id)
            return
        async with self._changing:
            born = time.monotonic()
            mesh = build(revision.objects, **self._mesh_settings).mesh
            self.debug.history.record(revision.objects, time.time(), f"rollback to {revision.id}")
            self.debug.rolled_back_to = revision.id
            _log.warning("rolled back; the next change of the directory takes over again", revision=revision.id)
            await self._publish(prepare(mesh, self._prepared), born)

    def _digest(self, snapshot: Snapshot) -> tuple[Ingested, Prepared]:
        taken = ingest(self._state, snapshot, **self._mesh_settings)
        return taken, prepare(taken.mesh, self._prepared)

    @staticmethod
    def _report(before: Iterable[Verdict], verdicts: Iterable[Verdict]) -> None:
        """Log each verdict once, when it is new. Of most objects there is nothing to say."""
        said = {verdict for verdict in before if verdict.state != "accepted" or verdict.notes}
        for verdict in verdicts:
            if (verdict.state == "accepted" and not verdict.notes) or verdict in said:
                continue
            where = f"{verdict.file}:{verdict.line}"
            name = f"{verdict.namespace}/{verdict.name}" if verdict.namespace else verdict.name
            if verdict.state == "rejected":
                _log.error(
                    "object rejected",
                    at=where,
                    kind=verdict.kind,
                    name=name,
                    code=verdict.code,
                    reason=verdict.reason,
                    last_good_in_force=verdict.last_good,
                )
            elif verdict.state == "shadowed":
                _log.warning(
                    "object shadowed", at=where, kind=verdict.kind, name=name, code=verdict.code, reason=verdict.reason
                )
            for note in verdict.notes:
                _log.warning(
                    note.message, at=f"{verdict.file}:{note.line}", kind=verdict.kind, name=name, code=note.code
                )


def _stamps(snapshot: Snapshot) -> dict[str, Stamp]:
    return {name: file.stamp for name, file in snapshot.files.items()}


def _write_addresses(path: os.PathLike[str], settings: Settings, bound: Bound) -> None:
    content = {
        "xds": str(Address(settings.listen.host, bound.xds)),
        "http": str(Address(settings.http.host, bound.http)),
        "pid": os.getpid(),
    }
    if settings.tls is not None:
        content["tls"] = str(Address(settings.tls.listen.host, bound.tls))
    temporary = f"{os.fspath(path)}.tmp"
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(content, stream)
    os.replace(temporary, path)


def configure_logging(log_format: str, level: str) -> None:
    """One line per event on standard error, as text or JSON; control characters are escaped in both."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=True)
        if log_format == "json"
        else structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"], repr_native_str=True)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


async def serve(settings: Settings) -> None:
    """Run one control plane until SIGTERM or SIGINT."""
    plane = ControlPlane(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, plane.stop)
    start = asyncio.ensure_future(plane.start())
    stopped = asyncio.ensure_future(plane.stopping.wait())  # a store that is away can keep the start waiting for long
    await asyncio.wait([start, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not start.done():
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        return
    start.result()
    await plane.run()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit status: 0 stopped by a signal, 2 bad flags or directory, 3 address in use, 1 anything else."""
    try:
        settings = parse(argv)
        configure_logging(settings.log_format, settings.log_level)
        asyncio.run(serve(settings))
    except ControlPlaneError as error:
        print(f"underpass-controlplane: {error}", file=sys.stderr)
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
