"""``/api/v1/config/objects``, ``apply``, ``delete`` and ``/api/v1/store``: the store as the command line meets it.

Every refusal is JSON: ``{"error": {"code", "what", "why", "next"}}``. Nothing is written unless all of a request is
good.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from controlplane.admin.http import Reply, Request, as_json
from controlplane.model.objects import Key
from controlplane.store.errors import BadRequest, NoStore, StoreError
from controlplane.store.layout import Entry, decode, documents, identity
from controlplane.store.replica import Status
from controlplane.store.writer import Written
from controlplane.store.writes import Problem

PAGES: Final = tuple(f"/api/v1/config/{name}" for name in ("objects", "apply", "delete"))
STORE_PAGE: Final = "/api/v1/store"


class Store(Protocol):
    """What these pages need of the running store."""

    @property
    def status(self) -> Status:
        """Its state."""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """What it holds."""

    async def replicas(self) -> list[dict[str, Any]]:
        """Who else follows it."""

    async def apply(self, files: Mapping[str, str], *, dry: bool = False) -> Written:
        """Write objects."""

    async def delete(self, keys: list[Key], *, dry: bool = False) -> Written:
        """Remove objects."""


def refused(error: StoreError) -> Reply:
    """A store's error as an answer."""
    told = {"code": error.code, "what": error.what, "why": error.why, "next": error.next_step}
    return as_json({"error": told}, error.status)


class Objects:
    """The pages; without a store each of them says that there is none."""

    def __init__(self, store: Store | None) -> None:
        self._store = store

    @property
    def stored(self) -> bool:
        """Whether there is a store."""
        return self._store is not None

    async def handle(self, request: Request) -> Reply:
        """One request to one of :data:`PAGES` or :data:`STORE_PAGE`."""
        path = "/" + request.path.strip("/")
        try:
            store = self._store
            if path == STORE_PAGE:
                return as_json({"configured": False} if store is None else await _status(store))
            if store is None:
                raise NoStore(
                    "this control plane has no store",
                    "it reads a directory (--config)",
                    "edit its files, or start it with --store etcd://...",
                )
            if path.endswith("/objects"):
                return as_json(_listed(store, request.query))
            _may_write(request)
            body = _body(request)
            dry = request.query.get("dryRun", "") not in ("", "0", "false")
            if path.endswith("/apply"):
                return _told(await store.apply(_files(body), dry=dry), dry=dry)
            return _told(await store.delete(_keys(body), dry=dry), dry=dry)
        except StoreError as error:
            return refused(error)


async def _status(store: Store) -> dict[str, Any]:
    status = store.status
    found: dict[str, Any] = {
        "configured": True,
        "available": status.available,
        "reason": status.reason,
        "since": status.since,
        "member": status.member,
        "revision": status.revision,
        "objects": len(store.entries),
        "relists": status.relists,
        "leader": status.leader,
        "leads": status.leads,
    }
    if status.available:
        try:
            found["replicas"] = await store.replicas()
        except StoreError as error:  # it was lost just now, and this page is the first to notice
            found |= {"available": False, "reason": str(error)}
    return found


def _listed(store: Store, query: Mapping[str, str]) -> dict[str, Any]:
    """Objects as they are stored. What this replica follows is told, also while the store is lost."""
    items = []
    for name, entry in sorted(store.entries.items()):
        key = identity(name) or Key("", "", name)
        if any(query[part] != getattr(key, part) for part in ("kind", "namespace", "name") if part in query):
            continue
        stored = decode(entry.value)
        held = documents(entry, stored)
        items.append(
            {
                "kind": key.kind,
                "namespace": key.namespace,
                "name": key.name,
                "file": stored.file if stored else f"etcd:{entry.key}",
                "line": stored.line if stored else 1,
                "resourceVersion": str(entry.modified),
                "since": stored.at if stored else 0,
                "object": held[0].data if len(held) == 1 else None,
            }
        )
    status = store.status
    return {"revision": status.revision, "stale": not status.available, "objects": items}


def _may_write(request: Request) -> None:
    if request.method != "POST":
        raise BadRequest("it changes the configuration", "use POST")
    if "x-underpass" not in request.headers:
        # A browser cannot send this header to another origin without asking first, so no web page can do this.
        raise BadRequest("a request that changes something needs a header", "X-Underpass: 1 is missing")


def _body(request: Request) -> dict[str, Any]:
    try:
        found = json.loads(request.body)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the request's body is not JSON", str(error)[:200]) from error
    if not isinstance(found, dict):
        raise BadRequest("the request's body is not a JSON object")
    return found


def _files(body: Mapping[str, Any]) -> dict[str, str]:
    files = body.get("files")
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
        raise BadRequest("files must be texts by name", "", 'as {"files": {"rules.yaml": "apiVersion: ..."}}')
    return files


def _keys(body: Mapping[str, Any]) -> list[Key]:
    objects = body.get("objects")
    if not isinstance(objects, list) or not objects:
        raise BadRequest("objects must be a list", "", 'as {"objects": [{"kind": ..., "namespace": ..., "name": ...}]}')
    keys = []
    for item in objects:
        parts = [item.get(part, "") if isinstance(item, dict) else None for part in ("kind", "namespace", "name")]
        if not all(isinstance(part, str) for part in parts) or not parts[0] or not parts[2]:
            raise BadRequest("each object needs a kind, a name and, if it has one, a namespace")
        keys.append(Key(*(str(part) for part in parts)))
    return keys


def _told(written: Written, *, dry: bool) -> Reply:
    """200: done; 409: a version was not the one that is there; 422: something is rejected. These wrote nothing."""
    document = {
        "dryRun": dry,
        "revision": written.revision,
        "changes": [{"change": change.verb, **_named(change.key), "at": change.at} for change in written.changes],
        "unchanged": [_named(key) for key in written.unchanged],
        "ignored": [{"file": file, "line": line, "kind": kind} for file, line, kind in written.judged.ignored],
        "warnings": [
            {**_named(item.key), "file": item.document.file, "line": line, "code": code, "message": message}
            for item in written.judged.wanted
            for line, code, message in item.warnings
        ],
        "problems": list(_problems(written.problems)),
    }
    return as_json(document, 200 if not written.problems else 409 if written.conflict else 422)


def _problems(problems: Iterable[Problem]) -> Iterable[dict[str, Any]]:
    for item in problems:
        yield {
            "file": item.file,
            "line": item.line,
            **_named(Key(item.kind, item.namespace, item.name)),
            "code": item.code,
            "reason": item.reason,
        }


def _named(key: Key) -> dict[str, str]:
    return {"kind": key.kind, "namespace": key.namespace, "name": key.name}
