"""The pages about the store, over a store that is none: every answer is JSON, and what is refused changes nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from controlplane.admin.http import Request
from controlplane.admin.objects import Objects
from controlplane.model.objects import Key
from controlplane.store.errors import StoreUnavailable
from controlplane.store.layout import Entry
from controlplane.store.replica import Status
from controlplane.store.writer import Written
from controlplane.store.writes import Judged, judge


class FakeStore:
    def __init__(self, *, lost: bool = False) -> None:
        self.lost = lost
        self.calls: list[tuple[str, Any, bool]] = []

    @property
    def status(self) -> Status:
        return Status(True, "", 7, "one", True, "h:1", 0, 1.0)

    @property
    def entries(self) -> Mapping[str, Entry]:
        return {
            "VirtualService/a/b": Entry("VirtualService/a/b", b"kind: X\n", 3, 5),
            "odd": Entry("odd", b"\xff", 1, 1),
        }

    async def replicas(self) -> list[dict[str, Any]]:
        if self.lost:
            raise StoreUnavailable("it is gone", "nobody is there", "wait")
        return []

    async def apply(self, files: Mapping[str, str], *, dry: bool = False) -> Written:
        await self.replicas()
        self.calls.append(("apply", files, dry))
        judged = judge(files)
        return Written(judged, problems=judged.problems, revision=8)

    async def delete(self, keys: list[Key], *, dry: bool = False) -> Written:
        self.calls.append(("delete", keys, dry))
        return Written(Judged(), revision=9)


OURS = {"x-underpass": "1"}


def ask(store: FakeStore | None, path: str, body: Any = None, *, raw: bytes = b"", **query: str) -> tuple[int, Any]:
    method = "POST" if body is not None or raw else "GET"
    request = Request(method, path, query, OURS, raw or json.dumps(body).encode())
    reply = asyncio.run(Objects(store).handle(request))
    return reply.status, json.loads(reply.body)


def test_without_a_store() -> None:
    assert ask(None, "/api/v1/store") == (200, {"configured": False})
    for page in ("objects", "apply", "delete"):
        status, answer = ask(None, f"/api/v1/config/{page}", {})
        assert (status, answer["error"]["code"]) == (409, "no-store")
        assert "--store" in answer["error"]["next"]


@pytest.mark.parametrize(
    ("page", "raw"),
    [
        ("apply", b"{"),
        ("apply", b"[" * 100_000),
        ("apply", b"[]"),
        ("apply", b"{}"),
        ("apply", b'{"files": {"a": 1}}'),
        ("apply", b"\xff"),
        ("delete", b'{"objects": []}'),
        ("delete", b'{"objects": [1]}'),
        ("delete", b'{"objects": [{"kind": "A"}]}'),
        ("delete", b'{"objects": [{"kind": "A", "name": 1}]}'),
    ],
)
def test_a_request_that_is_none(page: str, raw: bytes) -> None:
    store = FakeStore()
    status, answer = ask(store, f"/api/v1/config/{page}", raw=raw)
    assert (status, answer["error"]["code"]) == (400, "bad-request")
    assert store.calls == []


def test_only_a_post_with_the_header_changes_something() -> None:
    store = FakeStore()
    for request in (
        Request("GET", "/api/v1/config/apply", {}, OURS),
        Request("POST", "/api/v1/config/apply", {}, {}, b'{"files": {}}'),
    ):
        reply = asyncio.run(Objects(store).handle(request))
        assert reply.status == 400
    assert store.calls == []


def test_what_is_passed_on_and_what_is_told() -> None:
    store = FakeStore()
    files = {"a.yaml": "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\n"}
    status, answer = ask(store, "/api/v1/config/apply", {"files": files}, dryRun="1")
    assert (status, answer["dryRun"], answer["ignored"]) == (
        200,
        True,
        [{"file": "a.yaml", "line": 1, "kind": "Secret"}],
    )
    status, answer = ask(store, "/api/v1/config/apply", {"files": {"a.yaml": "a: [\n"}})
    assert status == 422
    assert [(item["file"], item["code"]) for item in answer["problems"]] == [("a.yaml", "invalid-yaml")]
    assert ask(store, "/api/v1/config/delete", {"objects": [{"kind": "Node", "name": "n"}]})[0] == 200
    assert [(name, dry) for name, _, dry in store.calls] == [("apply", True), ("apply", False), ("delete", False)]
    assert store.calls[-1][1] == [Key("Node", "", "n")]
    status, answer = ask(FakeStore(lost=True), "/api/v1/config/apply", {"files": {}})
    told = {"code": "store-unavailable", "what": "it is gone", "why": "nobody is there", "next": "wait"}
    assert (status, answer) == (503, {"error": told})


def test_what_is_there_is_listed_whatever_it_is() -> None:
    status, answer = ask(FakeStore(), "/api/v1/config/objects")
    assert status == 200
    assert [(item["kind"], item["name"], item["resourceVersion"]) for item in answer["objects"]] == [
        ("VirtualService", "b", "5"),
        ("", "odd", "1"),
    ]
    assert answer["objects"][0]["object"] == {"kind": "X"}
    assert ask(FakeStore(), "/api/v1/config/objects", kind="Service")[1]["objects"] == []
    _, lost = ask(FakeStore(lost=True), "/api/v1/store")
    assert (lost["available"], lost["reason"]) == (False, "it is gone: nobody is there")
