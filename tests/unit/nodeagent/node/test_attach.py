"""Attaching, checking and upgrading, against the fake kernel."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.bpf.abc import AttachType, MapSpec, MapType, ProgramType
from nodeagent.bpf.errors import IncompatibleMapError, NoSuchDeviceError, NotPinnedError
from nodeagent.bpf.fake import FakeKernel, FakeObjectFile
from nodeagent.node import attach as attaching
from nodeagent.node import programs
from nodeagent.node.attach import Attacher, Repair
from nodeagent.node.paths import NodePaths, pin_name
from nodeagent.node.registry import Workload

INTERFACES = {"eth0": 2, "veth0": 3}
POD = INTERFACES["eth0"]
OBJECT = Path("all.bpf.o")


def object_file(tag: str = "a" * 16, entries: int = 4) -> FakeObjectFile:
    kinds = {
        "cgroup": ProgramType.CGROUP_SOCK_ADDR,
        "pod": ProgramType.SCHED_CLS,
        "host": ProgramType.SCHED_CLS,
    }
    return FakeObjectFile(
        maps=(MapSpec("cgroup_workload", MapType.CGROUP_STORAGE, 8, 4, 0), MapSpec("t", MapType.ARRAY, 4, 4, entries)),
        programs={slot.program: kinds[slot.place] for slot in programs.SLOTS} | {"up_control": ProgramType.SCHED_CLS},
        tag=tag,
    )


class Lab:
    """A fake kernel with one workload's cgroup and interfaces."""

    def __init__(self, root: Path, tcx: bool = True) -> None:
        self.kernel = FakeKernel(tcx=tcx)
        self.kernel.files[OBJECT] = object_file()
        self.kernel.interfaces |= set(INTERFACES.values())
        self.paths = NodePaths.of("node-1", root / "bpf", root / "cg", run=root / "run")
        self.cgroup = self.paths.cgroup / "default.a"
        self.make_cgroup(self.cgroup)
        self.make_cgroup(self.paths.home_cgroup)
        self.workload = Workload(
            "a", "a", "default", "default", {}, ("10.0.0.1",), Path("/proc/self/ns/net"), self.cgroup, "eth0", "veth0",
            "node-1", (), "Kubernetes", "cluster.local",
        )  # fmt: skip

    def make_cgroup(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.kernel.cgroups[path] = path.stat().st_ino

    def start(self) -> tuple[programs.Loaded, Attacher]:
        loaded = programs.load(self.kernel, self.paths, files=(OBJECT,))
        return loaded, Attacher(self.kernel, self.paths, loaded.programs)

    def live(self) -> int:
        return sum(1 for link in self.kernel.links() if link.cgroup_id or link.ifindex)


@pytest.fixture(autouse=True)
def no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake kernel has one namespace only, and needs no root."""

    def index(name: str) -> int:
        if name not in INTERFACES:
            raise OSError("no such interface")
        return INTERFACES[name]

    monkeypatch.setattr(attaching, "inside", lambda _: nullcontext())
    monkeypatch.setattr(socket, "if_nametoindex", index)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def whys(repairs: list[Repair]) -> dict[str, str]:
    return {repair.slot: repair.why for repair in repairs}


def test_attach_is_idempotent_and_complete(lab: Lab) -> None:
    _, attacher = lab.start()
    assert whys(attacher.attach(lab.workload)) == {slot.name: "new" for slot in programs.SLOTS}
    assert attacher.attach(lab.workload) == []
    assert lab.live() == len(programs.SLOTS)
    assert attacher.attached() == ["default~a"]
    assert whys(attacher.attach_home()) == {"sockops": "new"}
    assert attacher.attach_home() == []


def test_what_was_taken_away_is_put_back_and_named(lab: Lab) -> None:
    _, attacher = lab.start()
    attacher.attach(lab.workload)
    links = lab.paths.links_of("default/a")
    lab.kernel.pinned_link(links / "connect4").detach()
    (links / "pod_egress").unlink()
    assert whys(attacher.attach(lab.workload)) == {"connect4": "it was detached", "pod_egress": "its pin was gone"}
    assert attacher.attach(lab.workload) == []
    assert lab.live() == len(programs.SLOTS)
    other = lab.kernel.create_program("other", ProgramType.SOCK_OPS)
    lab.kernel.pinned_link(links / "sockops").update(other)
    assert whys(attacher.attach(lab.workload)) == {"sockops": "it ran another program"}


def test_a_cgroup_of_the_same_name_is_not_the_same(lab: Lab) -> None:
    _, attacher = lab.start()
    attacher.attach(lab.workload)
    lab.kernel.cgroups[lab.cgroup] = 999_999_999  # what the old links report
    assert set(whys(attacher.attach(lab.workload)).values()) == {"it was on a cgroup or interface of the past"}


def test_restart_finds_everything_as_it_was(lab: Lab) -> None:
    loaded, attacher = lab.start()
    attacher.attach(lab.workload)
    ids = {name: program.info().id for name, program in loaded.programs.items()}
    loaded.close()
    again, attacher = lab.start()
    assert {name: program.info().id for name, program in again.programs.items()} == ids
    assert again.replaced == []
    assert attacher.attach(lab.workload) == []


def test_upgrade_moves_links_without_detaching(lab: Lab) -> None:
    loaded, attacher = lab.start()
    attacher.attach(lab.workload)
    before = {link.id for link in lab.kernel.links()}
    old = {program.info().id for program in loaded.programs.values()}
    loaded.close()
    lab.kernel.files[OBJECT] = object_file("b" * 16)
    again, attacher = lab.start()
    assert sorted(again.replaced) == sorted(again.programs)
    assert {link.id for link in lab.kernel.links()} == before
    assert not {link.program_id for link in lab.kernel.links()} & old
    assert attacher.attach(lab.workload) == []
    for name, program in again.programs.items():
        assert lab.kernel.pinned_program(lab.paths.programs / name).info().id == program.info().id
    assert sorted(path.name for path in lab.paths.programs.iterdir()) == sorted(again.programs)


def test_a_changed_layout_leaves_all_as_it_was(lab: Lab) -> None:
    _, attacher = lab.start()
    attacher.attach(lab.workload)
    lab.kernel.files[OBJECT] = object_file("b" * 16, entries=8)
    with pytest.raises(IncompatibleMapError):
        lab.start()
    assert attacher.attach(lab.workload) == []


def test_detach(lab: Lab) -> None:
    _, attacher = lab.start()
    attacher.attach(lab.workload)
    attacher.detach("default/a", lab.workload)
    attacher.detach("default/a", lab.workload)
    assert lab.live() == 0
    assert attacher.attached() == []


def test_without_tcx_clsact_does_it(tmp_path: Path) -> None:
    lab = Lab(tmp_path, tcx=False)
    _, attacher = lab.start()
    assert set(whys(attacher.attach(lab.workload))) == {slot.name for slot in programs.SLOTS}
    assert attacher.tcx is False
    assert attacher.attach(lab.workload) == []
    packet_slots = [slot for slot in programs.SLOTS if slot.place != "cgroup"]
    assert lab.live() == len(programs.SLOTS) - len(packet_slots)
    lab.kernel.detach_clsact(POD, AttachType.TCX_EGRESS)
    assert whys(attacher.attach(lab.workload)) == {"pod_egress": "its filter was gone"}
    attacher.detach("default/a", lab.workload)
    assert lab.kernel.query_clsact(POD, AttachType.TCX_EGRESS) is None


@pytest.mark.parametrize("spoil", ["cgroup", "interface"])
def test_what_is_not_there_yet_is_told(lab: Lab, spoil: str) -> None:
    _, attacher = lab.start()
    changed: dict[str, Callable[[], Workload]] = {
        "cgroup": lambda: replace(lab.workload, cgroup=lab.cgroup / "absent"),
        "interface": lambda: replace(lab.workload, interface="nv-absent"),
    }
    with pytest.raises(NoSuchDeviceError, match="starting or has gone"):
        attacher.attach(changed[spoil]())
    assert lab.live() == 0


def test_workload_ids_are_recovered(lab: Lab) -> None:
    loaded, attacher = lab.start()
    attacher.attach(lab.workload)
    ids = loaded.maps["cgroup_workload"]
    assert attaching.workload_id(ids, lab.cgroup) == 0
    attaching.set_workload_id(ids, lab.cgroup, 7)
    loaded.close()
    again = programs.recover(lab.kernel, lab.paths, ("cgroup_workload",), ("up_control",))
    assert attaching.workload_id(again.maps["cgroup_workload"], lab.cgroup) == 7
    with pytest.raises(NotPinnedError, match="absent"):
        programs.recover(lab.kernel, lab.paths, ("absent",))


def test_pin_names_are_one_to_one_and_fit() -> None:
    keys = ["a/b", "a/b.c", "a.b/c", "a-b/c", "a/" + "x" * 253, "a/" + "x" * 252 + "y", "n" * 63 + "/" + "x.y" * 80]
    names = [pin_name(key) for key in keys]
    assert len(set(names)) == len(names)
    assert all("." not in name and "/" not in name and len(name) < 250 for name in names)
