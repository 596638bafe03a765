"""Which nodes, which control plane, which workload."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeagent.node.registry import Workload
from underpass.cli import targets
from underpass.cli.errors import UNREACHABLE, USAGE, CliError
from underpass.cli.targets import DEFAULT_HTTP, Lab, Machine, Node, choose, control_plane, find_workload, pinned_nodes


def node(name: str, lab: str = "", pinned: bool = True) -> Node:
    return Node(name, Path("/run") / name, Path("/bpf") / name, pinned, lab)


def names(nodes: list[Node]) -> list[str]:
    return [item.name for item in nodes]


BENCH = Lab("bench", ("bench-node-1",), "127.0.0.1:4001")
DEFAULT = Lab("default", ("node-1",), "127.0.0.1:4000")
BOTH = Machine((node("bench-node-1", "bench"), node("node-1", "default")), {"bench": BENCH, "default": DEFAULT})


def test_a_lab_with_a_name_does_not_mix_with_the_rest() -> None:
    assert names(choose(BOTH)) == ["node-1"]
    assert names(choose(BOTH, lab="bench")) == ["bench-node-1"]
    assert names(choose(BOTH, ["bench-node-1", "bench-node-1"])) == ["bench-node-1"]
    real = Machine((node("bench-node-1", "bench"), node("worker-7")), {"bench": BENCH})
    assert names(choose(real)) == ["worker-7"]


def test_the_only_lab_is_meant_whatever_its_name() -> None:
    assert names(choose(Machine((node("bench-node-1", "bench"),), {"bench": BENCH}))) == ["bench-node-1"]
    assert choose(Machine()) == []


def test_two_labs_with_names_are_a_question() -> None:
    two = Machine((node("a-node-1", "a"), node("b-node-1", "b")), {"a": BENCH, "b": BENCH})
    with pytest.raises(CliError, match="several are up: a, b") as error:
        choose(two)
    assert error.value.exit_code == USAGE


def test_what_is_not_there_is_told_with_a_suggestion() -> None:
    with pytest.raises(CliError, match="no node 'node-l'") as error:
        choose(BOTH, ["node-l"])
    assert error.value.next_step == "did you mean node-1?"
    assert error.value.exit_code == UNREACHABLE
    with pytest.raises(CliError, match="the labs are bench, default"):
        choose(BOTH, lab="demo")


def test_address_of_the_control_plane() -> None:
    assert control_plane("http://10.0.0.1:99/", BOTH, None) == "10.0.0.1:99"
    assert control_plane(None, BOTH, "bench") == "127.0.0.1:4001"
    assert control_plane(None, BOTH, None) == "127.0.0.1:4000"
    assert control_plane(None, Machine((node("bench-node-1", "bench"),), {"bench": BENCH}), None) == "127.0.0.1:4001"
    assert control_plane(None, Machine((node("worker-7"),), {"bench": BENCH}), None) == DEFAULT_HTTP
    for wrong in ("x", "host:", "host:0", "host:70000", ":80"):
        with pytest.raises(CliError):
            control_plane(wrong, Machine(), None)


def workload(namespace: str, name: str, owner: str) -> tuple[Node, Workload]:
    return node("node-1"), Workload(
        name, owner, namespace, "default", {}, ("10.0.0.1",), Path("/n"), Path("/c"), "eth0", "veth", "node-1", (),
        "Kubernetes", "cluster.local",
    )  # fmt: skip


KNOWN = [
    workload("shop", "web-0", "web"),
    workload("shop", "web-1", "web"),
    workload("shop", "cart-0", "cart"),
    workload("test", "cart-0", "cart"),
]


def test_a_workload_by_owner_or_pod_with_or_without_namespace() -> None:
    assert find_workload("web", KNOWN)[1].key == "shop/web-0"
    assert find_workload("web-1", KNOWN)[1].key == "shop/web-1"
    assert find_workload("test/cart", KNOWN)[1].key == "test/cart-0"
    assert find_workload("test/cart-0", KNOWN)[1].key == "test/cart-0"


def test_a_workload_that_is_ambiguous_or_unknown() -> None:
    with pytest.raises(CliError, match="there are shop/cart, test/cart") as error:
        find_workload("cart", KNOWN)
    assert error.value.exit_code == USAGE
    with pytest.raises(CliError) as error:
        find_workload("shop/wep", KNOWN)
    assert error.value.next_step == "did you mean shop/web?"
    with pytest.raises(CliError, match="there are no workloads"):
        find_workload("web", [])


def test_who_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(CliError, match="user 1000 is not root") as error:
        pinned_nodes(None, None)
    assert error.value.exit_code == UNREACHABLE


def test_a_machine_without_nodes_says_what_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(targets, "discover", lambda: Machine((node("node-1", pinned=False),)))
    with pytest.raises(CliError, match="no maps are pinned on node-1") as error:
        pinned_nodes(None, None)
    assert "start underpass-agent" in error.value.next_step
    assert error.value.exit_code == UNREACHABLE


def test_the_control_plane_is_found_by_who_may_not_see_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Machine:
        raise CliError("cannot look into /sys/fs/bpf/underpass")

    monkeypatch.setattr(targets, "discover", refuse)
    monkeypatch.setattr(targets, "_labs", lambda: {"default": DEFAULT})
    assert control_plane(None, targets.discover_control_plane(), None) == "127.0.0.1:4000"
