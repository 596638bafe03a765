"""The workload registry: total parsing, and polls that miss nothing and lose nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.node.registry import Registry, RegistryError, Workload, parse

GOOD: dict[str, Any] = {
    "name": "reviews-v1-0", "owner": "reviews-v1", "namespace": "default", "service_account": "bookinfo-reviews",
    "labels": {"version": "v1", "app": "reviews"}, "ips": ["10.244.1.10", "FD00:0::A"], "netns": "/run/netns/r1",
    "cgroup": "/sys/fs/cgroup/unified/underpass/node-1/default.reviews-v1-0", "interface": "eth0",
    "host_interface": "veth7", "node": "node-1", "ports": [9080], "cluster": "Kubernetes",
    "trust_domain": "cluster.local",
}  # fmt: skip


def text(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def write(directory: Path, name: str, data: bytes) -> None:
    temporary = directory / f".{name}.tmp"
    temporary.write_bytes(data)
    temporary.rename(directory / name)


def keys(workloads: tuple[Workload, ...]) -> list[str]:
    return [workload.key for workload in workloads]


def test_a_whole_entry() -> None:
    workload = parse(text())
    assert workload.key == "default/reviews-v1-0"
    assert workload.ips == ("10.244.1.10", "fd00::a")
    assert workload.labels == {"app": "reviews", "version": "v1"}
    assert workload.ports == (9080,)
    assert workload.netns == Path("/run/netns/r1")


def test_what_may_be_missing() -> None:
    raw = {k: v for k, v in GOOD.items() if k in ("name", "namespace", "netns", "cgroup", "interface", "ips")}
    workload = parse(json.dumps({**raw, "host_interface": "veth7"}).encode())
    assert (workload.owner, workload.service_account) == ("reviews-v1-0", "default")
    assert (workload.cluster, workload.trust_domain, workload.ports) == ("Kubernetes", "cluster.local", ())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "../x"}, "name"),
        ({"namespace": 7}, "namespace"),
        ({"netns": "relative"}, "netns"),
        ({"cgroup": None}, "cgroup"),
        ({"interface": "x" * 16}, "interface"),
        ({"host_interface": "a\0b"}, "host_interface"),
        ({"ips": []}, "ips"),
        ({"ips": ["10.0.0.300"]}, "ips"),
        ({"ips": [10]}, "ips"),
        ({"ports": [0]}, "ports"),
        ({"ports": [True]}, "ports"),
        ({"ports": "80"}, "ports"),
        ({"labels": {"a": 1}}, "labels"),
        ({"labels": []}, "labels"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(RegistryError, match=f"`{named}`"):
        parse(text(**changes))


@given(st.one_of(st.binary(), st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(sorted(GOOD)), inner),
).map(lambda value: json.dumps(value).encode())))  # fmt: skip
def test_parse_is_total(data: bytes) -> None:
    try:
        assert isinstance(parse(data), Workload)
    except RegistryError:
        pass


def test_polls(tmp_path: Path) -> None:
    directory = tmp_path / "workloads"
    registry = Registry(directory)
    assert not registry.poll()
    directory.mkdir()
    write(directory, "default.a.json", text(name="a"))
    write(directory, "default.b.json", text(name="b"))
    (directory / "notes.txt").write_text("not ours")
    change = registry.poll()
    assert keys(change.present) == ["default/a", "default/b"]
    assert not registry.poll()
    write(directory, "default.a.json", text(name="a", labels={}))
    (directory / "default.b.json").unlink()
    change = registry.poll()
    assert (keys(change.present), change.absent) == (["default/a"], ("default/b",))
    assert registry.workloads["default/a"].labels == {}
    write(directory, "default.a.json", text(name="a", labels={}))
    assert not registry.poll(), "the same content again is no change"
    os.rename(directory, tmp_path / "away")
    assert registry.poll().absent == ("default/a",)
    assert registry.workloads == {}


def test_a_broken_file_keeps_its_workload_and_is_told_once(tmp_path: Path) -> None:
    write(tmp_path, "default.a.json", text(name="a"))
    registry = Registry(tmp_path)
    assert keys(registry.poll().present) == ["default/a"]
    write(tmp_path, "default.a.json", b"{")
    change = registry.poll()
    assert (change.present, change.absent, len(change.errors)) == ((), (), 1)
    assert "default.a.json" in str(change.errors[0])
    assert not registry.poll()
    assert list(registry.workloads) == ["default/a"]
    (tmp_path / "default.a.json").unlink()
    assert registry.poll().absent == ("default/a",)


def test_a_file_that_describes_another_workload_now(tmp_path: Path) -> None:
    write(tmp_path, "x.json", text(name="a"))
    registry = Registry(tmp_path)
    registry.poll()
    write(tmp_path, "x.json", text(name="b"))
    change = registry.poll()
    assert (keys(change.present), change.absent) == (["default/b"], ("default/a",))
    assert list(registry.workloads) == ["default/b"]


def test_two_writes_in_one_tick_are_both_seen(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for i in range(200):
        write(tmp_path, f"w{i}.json", text(name=f"w{i}"))
        registry.poll()
    for _ in range(3):
        registry.poll()
    assert len(registry.workloads) == 200
