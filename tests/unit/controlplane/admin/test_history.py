"""Revisions: content-addressed, cheap to keep, comparable."""

from __future__ import annotations

import pytest

from controlplane.admin.history import History, UnknownRevisionError, difference, summary
from controlplane.model.labels import freeze
from controlplane.model.objects import Config, Key, KubeService, Meta, Object, SourceRef
from underpass.api import istio


def service(name: str, *ips: str, line: int = 1) -> KubeService:
    return KubeService(Meta(Key("Service", "ns", name), SourceRef("f.yaml", line)), (), freeze({"app": name}), ips)


def rule(name: str, host: str) -> Config:
    spec = istio.message("istio.networking.v1alpha3.VirtualService")()
    spec.hosts.append(host)  # type: ignore[attr-defined]
    return Config(Meta(Key("VirtualService", "ns", name), SourceRef("f.yaml", 1)), spec)


def objects(*items: Object) -> dict[Key, Object]:
    return {item.meta.key: item for item in items}


def test_the_same_objects_have_the_same_id_wherever_they_were_written() -> None:
    one, other = History(), History()
    a = one.record(objects(service("a"), rule("r", "a")), 1, "edit")
    b = other.record(objects(rule("r", "a"), service("a", line=99)), 2, "edit")
    assert a is not None
    assert b is not None
    assert a.id == b.id


def test_nothing_changed_is_no_revision() -> None:
    history = History()
    assert history.record(objects(service("a")), 1, "edit") is not None
    assert history.record(objects(service("a", line=7)), 2, "edit") is None


def test_an_undone_edit_leads_back_to_its_id() -> None:
    history = History()
    first = history.record(objects(rule("r", "a")), 1, "edit")
    second = history.record(objects(rule("r", "b")), 2, "edit")
    third = history.record(objects(rule("r", "a")), 3, "edit")
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.id == third.id != second.id
    assert history.find(first.id[:6]) is third, "the newest of equal ones"


def test_changes_are_named_with_both_sides() -> None:
    history = History()
    old = history.record(objects(service("a", "10.0.0.1"), rule("gone", "x")), 1, "edit")
    new = history.record(objects(service("a", "10.0.0.2"), rule("new", "y")), 2, "edit")
    assert old is not None
    assert new is not None
    found = {(c["change"], c["kind"], c["name"]): c for c in difference(old, new)}
    assert set(found) == {
        ("changed", "Service", "a"),
        ("removed", "VirtualService", "gone"),
        ("added", "VirtualService", "new"),
    }
    changed = found["changed", "Service", "a"]
    assert changed["before"]["spec"]["cluster_ips"] == ["10.0.0.1"]
    assert changed["after"]["spec"]["cluster_ips"] == ["10.0.0.2"]
    assert found["added", "VirtualService", "new"]["after"]["spec"] == {"hosts": ["y"]}
    assert summary(new)["changes"][0]["name"]


def test_history_is_bounded_in_revisions_and_in_objects() -> None:
    history = History(keep=3)
    for number in range(10):
        history.record(objects(rule("r", f"h{number}")), number, "edit")
    assert [revision.at for revision in history] == [9, 8, 7]
    history = History(keep_objects=10)
    for number in range(10):
        history.record(objects(*(rule(f"r{i}", f"h{number}") for i in range(4))), number, "edit")
    assert len(list(history)) == 2


def test_an_unknown_revision_is_named() -> None:
    with pytest.raises(UnknownRevisionError, match="no revision 'abc'"):
        History().find("abc")
