"""The pages and the debug queries of istiod's surface, computed from the running control plane.

istioctl asks in two ways: over HTTP on the monitoring port, and over xDS with types that begin ``istio.io/debug``.
Both end here. Nothing in this file does I/O.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from controlplane.admin import dump
from controlplane.admin.history import History, Revision, difference, summary
from controlplane.admin.http import Reply, Request, as_json, text
from controlplane.admin.objects import PAGES, STORE_PAGE, Objects, refused
from controlplane.admin.status import Refusal, attribute, lineage, report
from controlplane.identity.caller import Caller, plaintext
from controlplane.identity.gate import Refused
from controlplane.model.verdict import Verdict
from controlplane.snapshot.urls import short
from controlplane.store.errors import StoreError
from controlplane.views import Views
from controlplane.xds.events import Acked, Nacked, Query
from controlplane.xds.server import Connection
from underpass.api import envoy

_DEBUG: Final = "istio.io/debug"
_API: Final = tuple(f"/api/v1/config/{name}" for name in ("status", "history", "diff", "lineage", "rollback"))
#: Pages that tell what others have, or change it. The status of objects, metrics and health are for all.
_OPERATORS: Final = ("/debug", *_API[1:], *PAGES, STORE_PAGE)
_CLIENT_CONFIG: Final = envoy.type_url("ClientConfig")
#: Refusals that are remembered, newest of each client and type.
_MAX_REFUSALS: Final = 10_000


class Debug:
    """Answers about one control plane; ``connections`` and ``verdicts`` are set by the application."""

    def __init__(self, views: Views, *, name: str, version: str, registry: CollectorRegistry) -> None:
        self._views = views
        self._name = name
        self._version = version
        self._registry = registry
        self.ready = False
        self.verdicts: tuple[Verdict, ...] = ()
        self.connections: Mapping[str, Connection] = {}
        self.history = History()
        #: Puts an earlier revision in force; set by the application.
        self.rollback: Callable[[Revision], Awaitable[None]] | None = None
        self.rolled_back_to = ""
        #: Configuration objects in the store, where there is one; set by the application.
        self.objects = Objects(None)
        #: Who a request is, from its address and headers; raises :class:`Refused`. Set by the application.
        self.admit: Callable[[str, Mapping[str, str]], Caller] = lambda peer, _: plaintext(f"ipv4:{peer}:0")
        self._refusals: dict[tuple[str, str], Refusal] = {}
        self._pages: dict[str, tuple[str, Any]] = {
            "syncz": ("Synchronization status of all Envoys connected to this Pilot instance", self._syncz_page),
            "connections": ("Info about the connected XDS clients", self._connections_page),
            "adsz": ("Status and debug interface for ADS", self._connections_page),
            "config_dump": (
                "ConfigDump in the form of the Envoy admin config dump API for passed in proxyID",
                self._dump,
            ),
            "edsz": ("Endpoints served to the passed in proxyID", self._edsz),
            "configz": ("Debug support for config", self._configz),
            "registryz": ("Debug support for registry", self._registryz),
            "endpointz": ("Endpoints by service", self._endpointz),
            "push_status": ("Last PushContext Details", self._push_status),
            "list": ("List all supported debug commands in json", self._list),
        }

    # --- identity -----------------------------------------------------------------------------------------------------

    @property
    def identifier(self) -> str:
        """``control_plane.identifier`` of every response: JSON, as istioctl parses it."""
        info = {
            "version": self._version,
            "revision": self._version,
            "golang_version": f"python{platform.python_version()}",
            "status": "Clean",
            "tag": self._version,
        }
        return json.dumps({"Component": "istiod", "ID": self._name, "Info": info}, separators=(",", ":"))

    # --- refusals -----------------------------------------------------------------------------------------------------

    def on_nack(self, connection: Connection, nacked: Nacked) -> None:
        """Remember a refusal against the objects that caused it."""
        if connection.view is None:
            return
        refusal = attribute(nacked, connection.view.snapshot, connection.node_id, time.time())
        self._refusals[connection.node_id, nacked.type_url] = refusal
        if len(self._refusals) > _MAX_REFUSALS:
            self._refusals.pop(next(iter(self._refusals)))

    def on_ack(self, connection: Connection, acked: Acked) -> None:
        """The client accepts the type again."""
        if self._refusals:
            self._refusals.pop((connection.node_id, acked.type_url), None)

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    def handle(self, request: Request) -> Reply | Awaitable[Reply]:
        """One HTTP request of the admin surface."""
        path = "/" + request.path.strip("/")
        if path in ("/ready", "/healthz/ready"):
            return text("ready") if self.ready else text("not ready: the configuration is not in force yet", 503)
        if path in ("/healthz", "/livez"):
            return text("ok")
        if path == "/metrics":
            return Reply(200, generate_latest(self._registry), CONTENT_TYPE_LATEST)
        if path == "/version":
            return as_json(json.loads(self.identifier)["Info"])
        if path.startswith(_OPERATORS) and (refusal := self._refusal(request)) is not None:
            return refusal
        if path in PAGES or path == STORE_PAGE:
            return self.objects.handle(request)
        if path == "/api/v1/config/status":
            return as_json(report(self.verdicts, self._refusals.values()))
        if path.startswith("/api/v1/config/"):
            return self._config(path.removeprefix("/api/v1/config/"), request)
        if path == "/":
            return as_json({"pages": ["/ready", "/metrics", "/version", "/debug/list", *_API, *PAGES, STORE_PAGE]})
        if path.startswith("/debug"):
            return self._debug_page(path.removeprefix("/debug").strip("/"), request.query)
        return text(f"no page {path}; see / for those there are", 404)

    def _refusal(self, request: Request) -> Reply | None:
        """The answer to a request from beyond this machine that is no operator's."""
        try:
            if self.admit(request.peer, request.headers).operator:
                return None
        except Refused as error:
            return text(f"{request.path} is for operators: {error}", 401)
        return text(f"{request.path} is for operators", 403)

    def _config(self, name: str, request: Request) -> Reply | Awaitable[Reply]:
        query = request.query
        try:
            if name == "history":
                return as_json(
                    {"rolledBackTo": self.rolled_back_to, "revisions": [summary(revision) for revision in self.history]}
                )
            if name == "diff":
                old, new = self.history.find(query.get("from", "")), self.history.latest
                if "to" in query:
                    new = self.history.find(query["to"])
                assert new is not None  # there is one, or find() would have raised
                return as_json({"from": old.id, "to": new.id, "changes": difference(old, new)})
            if name == "lineage":
                return as_json(self._lineage(query))
            if name == "rollback":
                return self._rollback(request)
        except LookupError as error:
            return text(str(error.args[0]), 404)
        return text(f"no page /api/v1/config/{name}", 404)

    def _rollback(self, request: Request) -> Reply | Awaitable[Reply]:
        if request.method != "POST":
            return text("rollback changes what is in force: use POST", 405)
        if "x-underpass" not in request.headers:
            # A browser cannot send this header to another origin without asking first, so no web page can do this.
            return text("send the header X-Underpass: 1", 403)
        revision = self.history.find(request.query.get("to", ""))
        return self._roll(revision)

    async def _roll(self, revision: Revision) -> Reply:
        assert self.rollback is not None
        try:
            await self.rollback(revision)
        except StoreError as error:
            return refused(error)
        until = (
            "the next change of the store" if self.objects.stored else "the next change of the configuration directory"
        )
        return as_json({"inForce": revision.id, "until": until})

    def _lineage(self, query: Mapping[str, str]) -> Any:
        owner = (query.get("kind", ""), query.get("namespace", ""), query.get("name", ""))
        if not owner[0] or not owner[2]:
            raise LookupError("give kind, namespace and name of an object")
        found = []
        for connection in self.clients():
            view = connection.view
            states = {status.type_url: status for status in connection.session.status()}
            if view is None:
                continue
            for type_url, state in view.snapshot.types.items():
                status = states.get(type_url)
                if status is None:
                    continue  # this client never asked for the type
                watched = connection.session.watched(type_url)
                for resource in lineage(owner, state.values()):
                    if watched is None or resource.name in watched:
                        refused = resource.name in status.error_names
                        found.append(
                            {
                                "node": connection.node_id,
                                "type": short(type_url),
                                "resource": resource.name,
                                "version": resource.version,
                                "state": "ERROR" if refused else status.state,
                            }
                        )
        return found

    def _debug_page(self, name: str, query: Mapping[str, str]) -> Reply:
        page = self._pages.get(name or "list")
        if page is None:
            return text(f"no debug page {name}; see /debug/list", 404)
        try:
            return as_json(page[1](query))
        except LookupError as error:
            return text(str(error.args[0]), 404)

    # --- xDS ----------------------------------------------------------------------------------------------------------

    def is_query(self, type_url: str) -> bool:
        """Whether a type is answered per request instead of watched."""
        return type_url == _DEBUG or type_url.startswith(f"{_DEBUG}/")

    def answer(self, connection: Connection, query: Query) -> Sequence[tuple[str, bytes]]:
        """The resources that answer a debug query: pairs of type URL and value."""
        if query.type_url == f"{_DEBUG}/syncz":
            return [(_CLIENT_CONFIG, dump.client_config(c).SerializeToString()) for c in self.clients()]
        if query.type_url == f"{_DEBUG}/config_dump":
            if len(query.names) != 1:
                return [self._problem("exactly one proxy name is needed, as POD.NAMESPACE")]
            found = self._find(query.names[0])
            if found is None:
                return [self._problem(f"no client {query.names[0]} is connected to {self._name}")]
            return [(packed.type_url, packed.value) for packed in dump.config_dump(found).configs]
        return [(_DEBUG, self._by_path(query))]

    def _by_path(self, query: Query) -> bytes:
        path = query.names[0] if query.names else query.type_url.removeprefix(_DEBUG).strip("/")
        name, _, rest = path.partition("?")
        parameters = dict(part.partition("=")[::2] for part in rest.split("&") if part)
        return self._debug_page(name, parameters).body

    @staticmethod
    def _problem(message: str) -> tuple[str, bytes]:
        return _DEBUG, json.dumps({"error": message}).encode()

    def clients(self) -> list[Connection]:
        """Connections of proxies, in order of their nodes; istioctl itself is none."""
        return sorted(
            (c for c in self.connections.values() if c.attachment is not None and not dump.is_tool(c.node)),
            key=lambda c: (c.node_id, c.id),
        )

    def _find(self, name: str) -> Connection | None:
        """The client whose id contains *name*, as istiod matches."""
        return next((c for c in self.clients() if name and name in dump.connection_id(c)), None)

    # --- pages --------------------------------------------------------------------------------------------------------

    def _list(self, _: Mapping[str, str]) -> Any:
        return [
            {"href": f"/debug/{name}", "name": f"/debug/{name}", "help": page[0]} for name, page in self._pages.items()
        ]

    def _syncz_page(self, _: Mapping[str, str]) -> Any:
        return [dump.sync_entry(connection, self._version) for connection in self.clients()]

    def _connections_page(self, _: Mapping[str, str]) -> Any:
        clients = self.clients()
        return {
            "totalClients": len(clients),
            "clients": [
                {
                    "connectionId": dump.connection_id(c),
                    "connectedAt": datetime.fromtimestamp(c.since, UTC).isoformat(),
                    "address": c.peer,
                    "delta": c.delta,
                    "watches": {short(s.type_url): s.names if not s.wildcard else "*" for s in c.session.status()},
                    "status": [dump.status_entry(s, c.time_of(s.type_url)) for s in c.session.status()],
                }
                for c in clients
            ],
        }

    def _wanted(self, query: Mapping[str, str]) -> Connection:
        name = query.get("proxyID", "")
        if not name:
            raise LookupError("You must provide a proxyID in the query string")
        found = self._find(name)
        if found is None:
            raise LookupError(f"Proxy not connected to this Pilot instance: {name}")
        return found

    def _dump(self, query: Mapping[str, str]) -> Any:
        return envoy.to_dict(dump.config_dump(self._wanted(query)), proto_names=True)

    def _edsz(self, query: Mapping[str, str]) -> Any:
        return dump.endpoints(self._wanted(query))

    def _configz(self, _: Mapping[str, str]) -> Any:
        mesh = self._views.prepared.mesh
        kinds = (mesh.virtual_services, mesh.destination_rules, mesh.gateways, mesh.sidecars)
        return [
            {
                "kind": config.meta.key.kind,
                "metadata": {
                    "name": config.meta.key.name,
                    "namespace": config.meta.key.namespace,
                    "labels": dict(config.meta.labels),
                    "annotations": dict(config.meta.annotations),
                    "source": str(config.meta.source),
                },
                "spec": envoy.to_dict(config.spec),
            }
            for configs in kinds
            for config in configs
        ]

    def _registryz(self, _: Mapping[str, str]) -> Any:
        return [
            {
                "hostname": service.hostname,
                "ports": [
                    {"name": port.name, "port": port.number, "protocol": port.protocol} for port in service.ports
                ],
            }
            for service in self._views.prepared.mesh.services
        ]

    def _endpointz(self, _: Mapping[str, str]) -> Any:
        mesh = self._views.prepared.mesh
        return [
            {
                "svc": f"{service.hostname}:{port.name}",
                "ep": [
                    {"address": e.address, "port": e.port, "labels": dict(e.labels)}
                    for e in mesh.endpoints_of(service, port.number)
                ],
            }
            for service in mesh.services
            for port in service.ports
        ]

    def _push_status(self, _: Mapping[str, str]) -> Any:
        return {
            "generation": self._views.generation,
            "clients": len(self.clients()),
            "groups": sum(group.node.generator != "event" for group in self._views.groups),
            "refusals": [
                {"node": r.node, "type": r.type, "resources": list(r.resources), "reason": r.reason, "at": r.at}
                for r in self._refusals.values()
            ],
        }
