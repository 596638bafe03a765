"""Configuration as route tables to be tried: by our own control plane's rooms, or as a genuine istiod served it (pure).

A subject is what a data path has for one route table of one view: the agent's compiled form, and the resources
themselves for Envoy, route configuration unchanged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from controlplane.analyze import analyze
from controlplane.translate import prepare, translate
from nodeagent.abi.numbers import NameKind
from nodeagent.abi.records import NameKey
from nodeagent.cache.resources import RouteConfiguration, Value
from nodeagent.cache.store import CLUSTER, LISTENER, ROUTES, Decoder, Resources, resources_from
from nodeagent.errors import ResourceError
from nodeagent.intent.compile import Compiler
from nodeagent.intent.model import Intent, Table
from nodeagent.intent.services import services_of
from underpass.api import envoy
from underpass.equivalence.completion import clients, complete

_MANAGER: Final = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
#: HTTP filters that an upstream Envoy has, and that need nothing beside it.
_STOCK_FILTERS: Final = "envoy.extensions.filters.http."

Messages = Mapping[str, Mapping[str, Any]]
"""Resources of one view: type URL -> name -> message."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One route table to be tried.

    `routes` and `manager` are messages: the RouteConfiguration as it was served, and the connection manager of the
    listener that uses it. `decoded` is the same table as the agent's cache holds it; `number` its id in `intent`.
    `clusters`: names that exist in the view. `left_out`: filters of the manager that only Istio's own Envoy has.
    """

    name: str
    view: str
    routes: Any
    manager: Any
    decoded: RouteConfiguration
    intent: Intent
    number: int
    clusters: frozenset[str]
    left_out: tuple[str, ...] = ()


@dataclass(slots=True)
class Subjects:
    """Tables, and what is none: (resource, why)."""

    tables: list[Subject] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    views: int = 0


def from_yaml(files: Mapping[str, str], *, domain: str = "cluster.local") -> Subjects:
    """Tables of YAML texts by file name, as our control plane translates them. Never raises for what they contain."""
    done = analyze(files, domain=domain)
    mesh, _ = complete(done.mesh)
    prepared = prepare(mesh)
    found = of_views((client.id, translate(prepared, client)) for client in clients(done, mesh))
    for verdict in done.verdicts:
        if verdict.state == "rejected":
            found.refused.append((f"{verdict.kind} {verdict.namespace}/{verdict.name}", verdict.reason))
    return found


def from_istiod(answers: Mapping[str, Mapping[str, Any]]) -> Subjects:
    """Tables of what an istiod served: by file name, `{"node": id, "resources": {name: proto JSON}}` of one type.

    Files of one node in one directory are one view. What our schema cannot read is named among the refused.
    """
    views: dict[str, dict[str, dict[str, Any]]] = {}
    refused: list[tuple[str, str]] = []
    for file, document in sorted(answers.items()):
        directory = file.rpartition("/")[0]
        view = views.setdefault(f"{directory} {document['node']}", {})
        for name, body in document["resources"].items():
            kind = str(body.get("@type", "")).rpartition("/")[2]
            fields = {key: value for key, value in body.items() if key != "@type"}
            try:
                message = envoy.from_dict(kind, fields)
            except envoy.SchemaError as error:
                refused.append((f"{file}: {name}", str(error)))
                continue
            view.setdefault(envoy.type_url(kind), {})[name] = message
    found = of_views(sorted(views.items()))
    found.refused = [*refused, *found.refused]
    return found


def of_views(views: Iterable[tuple[str, Messages]]) -> Subjects:
    """Tables of views, each once however many views have it."""
    out, decoder, seen = Subjects(), Decoder(), set[bytes]()
    for view, messages in views:
        if view.rpartition(" ")[2].startswith("router~"):
            out.refused.append((view, "a gateway: only its own Envoy has these routes, no agent asks for them"))
            continue
        out.views += 1
        values: dict[str, dict[str, Value]] = {}
        for url, named in messages.items():
            for name, message in named.items():
                try:
                    _, value = decoder.decode(url, message.SerializeToString(deterministic=True))
                except ResourceError as error:
                    out.refused.append((f"{url.rpartition('.')[2]} {name}", str(error)))
                except KeyError:
                    continue  # a type that agents do not ask for
                else:
                    values.setdefault(url, {})[name] = value
        for subject in _subjects(view, messages, resources_from(values)):
            digest = _digest(subject, messages)
            if digest not in seen:
                seen.add(digest)
                out.tables.append(subject)
    return out


def _digest(subject: Subject, messages: Messages) -> bytes:
    """Tables are one when their bytes, their manager's and their clusters' are."""
    names = sorted({name for _, name in destinations(subject.routes)})
    clusters = messages.get(CLUSTER, {})
    parts = [subject.routes, subject.manager, *(clusters[name] for name in names if name in clusters)]
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.SerializeToString(deterministic=True)
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def _subjects(view: str, messages: Messages, resources: Resources) -> Iterator[Subject]:
    intent = Compiler().compile({view: resources}, ())
    numbers = _tables(intent)
    managers = dict(_managers(messages))
    for use in services_of(resources).tables:
        if use.routes is None or use.name not in managers:
            continue
        manager, left_out = managers[use.name]
        routes = manager.route_config if manager.HasField("route_config") else messages[ROUTES][use.name]
        number = numbers.get(f"{use.name} @ {view}", 0)
        clusters = frozenset(messages.get(CLUSTER, {}))
        title = f"{use.name} of {_short(view)}"
        yield Subject(title, view, routes, manager, use.routes, intent, number, clusters, left_out)


def _short(view: str) -> str:
    """A view without what is the same in all of them: `DIRECTORY NAME.NAMESPACE`, or as much as there is of it."""
    directory, _, node = view.rpartition(" ")
    name = node.split("~")[2] if node.count("~") == 3 else node
    return f"{'/'.join(directory.split('/')[-2:])} {name}".strip()


def _tables(intent: Intent) -> dict[str, int]:
    found = {}
    for key, text in intent.entries[Table.NAMES].items():
        name = NameKey.unpack(key)
        if name.kind == NameKind.TABLE:
            found[text.rstrip(b"\0").decode()] = name.id
    return found


def _managers(messages: Messages) -> Iterator[tuple[str, tuple[Any, tuple[str, ...]]]]:
    """Table name -> connection manager of the first listener that uses it, fit for an upstream Envoy."""
    seen = set()
    for listener_name, listener in sorted(messages.get(LISTENER, {}).items()):
        chains = [*listener.filter_chains]
        if listener.HasField("default_filter_chain"):
            chains.append(listener.default_filter_chain)
        for chain in chains:
            for item in chain.filters:
                if item.typed_config.type_url.rpartition("/")[2] != _MANAGER:
                    continue
                manager = envoy.HttpConnectionManager.FromString(item.typed_config.value)
                name = manager.rds.route_config_name if manager.HasField("rds") else f"{listener_name} (inline)"
                if name not in seen:
                    seen.add(name)
                    yield name, _stock(manager)


def _stock(manager: Any) -> tuple[Any, tuple[str, ...]]:
    """The manager without what only Istio's Envoy has, and without what only observes."""
    kept, left_out = [], []
    for item in manager.http_filters:
        url = item.typed_config.type_url.rpartition("/")[2]
        if url.startswith(_STOCK_FILTERS):
            kept.append(item)
        else:
            left_out.append(item.name or url)
    filters = [item.__class__.FromString(item.SerializeToString()) for item in kept]
    del manager.http_filters[:]
    manager.http_filters.extend(filters)
    manager.ClearField("tracing")
    manager.ClearField("access_log")
    return manager, tuple(left_out)


def destinations(routes: Any) -> Iterator[tuple[int, str]]:
    """(weight, cluster) of every route of a RouteConfiguration; weight 0 where the route has only one."""
    for vhost in routes.virtual_hosts:
        for route in vhost.routes:
            kind = route.route.WhichOneof("cluster_specifier") if route.HasField("route") else None
            if kind == "cluster":
                yield 0, route.route.cluster
            elif kind == "weighted_clusters":
                for item in route.route.weighted_clusters.clusters:
                    yield item.weight.value, item.name
            for mirror in route.route.request_mirror_policies if kind else ():
                yield 0, mirror.cluster
