"""Objects, pins, links, rings and test runs against the running kernel."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nodeagent.bpf import features, objects
from nodeagent.bpf.abc import AttachType, Kernel, LoadOptions, MapSpec, MapType, ProgramType
from nodeagent.bpf.errors import (
    IncompatibleMapError,
    KeyExistsError,
    NoSuchDeviceError,
    NotPinnedError,
    ObjectFileError,
    UnsupportedFeatureError,
    VerifierError,
)
from nodeagent.bpf.kernel import LinuxKernel
from nodeagent.node.netns import inside
from tests.support.tiny_bpf import build

pytestmark = pytest.mark.needs("root", "bpf", "clang", "netns", "cgroup2")

SHARED_MAP = """
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 64); __type(key, __u32); __type(value, __u64);
         __uint(pinning, LIBBPF_PIN_BY_NAME); } shared SEC(".maps");
"""
COUNT = (
    SHARED_MAP
    + """
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } ring SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_SK_STORAGE); __uint(map_flags, BPF_F_NO_PREALLOC); __type(key, int);
         __type(value, __u64); } tags SEC(".maps");
struct inner { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, __u32); __type(value, __u64); };
struct { __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS); __uint(max_entries, 2); __type(key, __u32);
         __array(values, struct inner); } outer SEC(".maps");
const volatile __u64 step = 1;
const volatile __u16 other = 7;
SEC("tc") int count(struct __sk_buff *skb)
{
    __u32 key = 1, zero = 0; __u64 one = step, *v = bpf_map_lookup_elem(&shared, &key);
    if (v) __sync_fetch_and_add(v, step); else bpf_map_update_elem(&shared, &key, &one, BPF_ANY);
    __u32 length = skb->len;
    bpf_ringbuf_output(&ring, &length, sizeof(length), 0);
    void *in = bpf_map_lookup_elem(&outer, &zero);
    __u64 *w = in ? bpf_map_lookup_elem(in, &zero) : 0;
    return w ? (int)*w : (int)other;
}
SEC("tc") int drop_all(struct __sk_buff *skb) { return 2; }
"""
)
CONNECT = (
    SHARED_MAP
    + """
SEC("cgroup/connect4") int refuse(struct bpf_sock_addr *ctx) { return ctx->user_port != __builtin_bswap16(7); }
SEC("cgroup/connect4") int allow(struct bpf_sock_addr *ctx) { return 1; }
"""
)
REJECTED = """
SEC("tc") int wild(struct __sk_buff *skb) { return *(int *)(long)skb->len; }
"""
PACKET = bytes(60)


@pytest.fixture
def kernel() -> Kernel:
    return LinuxKernel()


@pytest.fixture
def pins() -> Iterator[Path]:
    place = features.bpffs() / f"nv-test-{os.getpid()}"
    place.mkdir()
    yield place
    for pin in place.iterdir():
        pin.unlink()
    place.rmdir()


@pytest.fixture
def namespace() -> Iterator[Path]:
    name = f"nvt{os.getpid()}"
    for command in (
        f"netns add {name}",
        f"-n {name} link add nv0 type veth peer name nv1",
        f"-n {name} link set nv0 up",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    yield Path("/run/netns") / name
    subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.fixture
def cgroup() -> Iterator[Path]:
    place = features.cgroup2() / f"nv-test-{os.getpid()}"
    place.mkdir()
    yield place
    place.rmdir()


def test_maps_are_shared_by_pin(kernel: Kernel, pins: Path, tmp_path: Path) -> None:
    first = kernel.load(build(tmp_path, "count", COUNT), LoadOptions(pin_dir=pins))
    second = kernel.load(build(tmp_path, "connect", CONNECT), LoadOptions(pin_dir=pins))
    assert first.maps["shared"].info.id == second.maps["shared"].info.id
    assert kernel.pinned_map(pins / "shared").info.id == first.maps["shared"].info.id
    assert sorted(first.programs) == ["count", "drop_all"]
    first.maps["shared"].update(struct.pack("I", 5), struct.pack("Q", 9))
    first.close()
    second.close()
    again = kernel.load(build(tmp_path, "count", COUNT), LoadOptions(pin_dir=pins))
    assert again.maps["shared"].lookup(struct.pack("I", 5)) == struct.pack("Q", 9)


def test_changed_layout_is_told(kernel: Kernel, pins: Path, tmp_path: Path) -> None:
    kernel.load(build(tmp_path, "count", COUNT), LoadOptions(pin_dir=pins)).close()
    with pytest.raises(IncompatibleMapError, match="shared"):
        kernel.load(
            build(tmp_path, "other", COUNT.replace("max_entries, 64)", "max_entries, 128)")), LoadOptions(pin_dir=pins)
        )


def test_verifier_log(kernel: Kernel, tmp_path: Path) -> None:
    with pytest.raises(VerifierError) as caught:
        kernel.load(build(tmp_path, "rejected", REJECTED))
    assert caught.value.program == "wild"
    assert "invalid mem access" in caught.value.log
    assert "invalid mem access" in str(caught.value)


def test_bad_object_files(kernel: Kernel, tmp_path: Path) -> None:
    with pytest.raises(ObjectFileError, match="no such file"):
        kernel.load(tmp_path / "absent.o")
    (tmp_path / "garbage.o").write_bytes(b"not an object")
    with pytest.raises(ObjectFileError, match="garbage"):
        kernel.load(tmp_path / "garbage.o")
    with pytest.raises(ObjectFileError, match=r"nonesuch\.bpf\.o"):
        objects.find("nonesuch.bpf.o")


def test_constants_and_test_run(kernel: Kernel, tmp_path: Path) -> None:
    path = build(tmp_path, "count", COUNT)
    options = LoadOptions(constants={"step": struct.pack("Q", 5), "other": struct.pack("H", 3)}, pin_dir=None)
    with pytest.raises(ObjectFileError, match="absent"):
        kernel.load(path, LoadOptions(constants={"absent": b"1234"}))
    with pytest.raises(ObjectFileError, match="step"):
        kernel.load(path, LoadOptions(constants={"step": b"1234"}))
    loaded = kernel.load(path, options)
    run = loaded.programs["count"].test_run(PACKET, repeat=4)
    assert run.retval == 3
    assert run.data == PACKET
    assert loaded.maps["shared"].lookup(struct.pack("I", 1)) == struct.pack("Q", 20)
    ring = kernel.ring(loaded.maps["ring"])
    assert ring.drain(3) == [struct.pack("I", 60)] * 3
    assert ring.drain() == [struct.pack("I", 60)]
    assert ring.drain() == []
    ring.close()


def test_map_of_maps_swaps_whole(kernel: Kernel, tmp_path: Path) -> None:
    loaded = kernel.load(build(tmp_path, "count", COUNT))
    outer, key = loaded.maps["outer"], struct.pack("I", 0)
    assert outer.inner_id(key) is None
    for value in (11, 12):
        inner = kernel.create_map(MapSpec("generation", MapType.ARRAY, 4, 8, 1))
        inner.update(key, struct.pack("Q", value))
        outer.put_map(key, inner)
        assert outer.inner_id(key) == inner.info.id
        inner.close()
        assert loaded.programs["count"].test_run(PACKET).retval == value
    with pytest.raises(IncompatibleMapError):
        outer.put_map(key, kernel.create_map(MapSpec("wrong", MapType.ARRAY, 4, 16, 1)))
    assert outer.delete(key)
    assert outer.inner_id(key) is None


def test_socket_storage_by_descriptor(kernel: Kernel, tmp_path: Path) -> None:
    tags = kernel.load(build(tmp_path, "count", COUNT)).maps["tags"]
    with socket.socket() as tagged, socket.socket() as plain:
        tags.update(struct.pack("i", tagged.fileno()), struct.pack("Q", 77))
        assert tags.lookup(struct.pack("i", tagged.fileno())) == struct.pack("Q", 77)
        assert tags.lookup(struct.pack("i", plain.fileno())) is None


def connects(cgroup: Path, port: int) -> bool:
    """Whether a process in that cgroup gets as far as the network: a refusal there is EPERM."""
    code = (
        "import os,socket,sys\n"
        f"open({str(cgroup / 'cgroup.procs')!r},'w').write(str(os.getpid()))\n"
        f"try: socket.create_connection(('127.0.0.1',{port}),1)\n"
        "except PermissionError: sys.exit(3)\n"
        "except OSError: pass\n"
    )
    return subprocess.run(["python3", "-c", code], check=False).returncode != 3


def test_cgroup_link_lives_by_its_pin(kernel: Kernel, pins: Path, cgroup: Path, tmp_path: Path) -> None:
    loaded = kernel.load(build(tmp_path, "connect", CONNECT))
    link = kernel.attach_cgroup(loaded.programs["refuse"], cgroup, AttachType.CGROUP_INET4_CONNECT)
    link.pin(pins / "link")
    with pytest.raises(KeyExistsError):
        link.pin(pins / "link")
    loaded.programs["refuse"].pin(pins / "prog")
    link.close()
    assert not connects(cgroup, 7)
    assert connects(cgroup, 9)
    again = kernel.pinned_link(pins / "link")
    info = again.info()
    assert info.attach_type == AttachType.CGROUP_INET4_CONNECT
    assert info.cgroup_id == cgroup.stat().st_ino
    assert info.program_id == kernel.pinned_program(pins / "prog").info().id
    again.update(loaded.programs["allow"])
    assert connects(cgroup, 7)
    again.update(kernel.pinned_program(pins / "prog"))
    assert not connects(cgroup, 7)
    assert info.id in {each.id for each in kernel.links()}
    again.detach()
    assert connects(cgroup, 7)
    assert again.info().cgroup_id == 0
    with pytest.raises(NoSuchDeviceError):
        kernel.attach_cgroup(loaded.programs["allow"], cgroup / "absent", AttachType.CGROUP_INET4_CONNECT)
    with pytest.raises(NotPinnedError):
        kernel.pinned_link(pins / "absent")


def packets_reach_peer(namespace: Path) -> bool:
    """Whether a frame sent at nv0 arrives at nv1."""
    name = namespace.name
    subprocess.run(["ip", "-n", name, "link", "set", "nv1", "up"], check=True)
    with inside(namespace):
        receiver = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with receiver, sender:
        receiver.bind(("nv1", 0x88B5))
        receiver.settimeout(0.3)
        sender.bind(("nv0", 0x88B5))
        try:
            sender.send(bytes(12) + b"\x88\xb5" + bytes(46))
            receiver.recv(64)
        except OSError as lost:  # a drop at egress may be told to the sender
            return lost.errno not in (None, errno.ENOBUFS)
        return True


def test_tcx_link_inside_a_namespace(kernel: Kernel, pins: Path, namespace: Path, tmp_path: Path) -> None:
    try:
        features.tcx()
    except UnsupportedFeatureError as missing:
        pytest.skip(f"unavailable: {missing}")
    loaded = kernel.load(build(tmp_path, "count", COUNT))
    with inside(namespace):
        ifindex = socket.if_nametoindex("nv0")
        link = kernel.attach_tcx(loaded.programs["drop_all"], ifindex, AttachType.TCX_EGRESS)
        with pytest.raises(NoSuchDeviceError):
            kernel.attach_tcx(loaded.programs["drop_all"], 9999, AttachType.TCX_EGRESS)
    link.pin(pins / "egress")
    link.close()
    assert not packets_reach_peer(namespace)
    again = kernel.pinned_link(pins / "egress")
    info = again.info()
    assert (info.ifindex, info.attach_type) == (ifindex, AttachType.TCX_EGRESS)
    again.detach()
    assert packets_reach_peer(namespace)
    assert again.info().ifindex == 0


def test_clsact_where_there_is_no_tcx(kernel: Kernel, namespace: Path, tmp_path: Path) -> None:
    loaded = kernel.load(build(tmp_path, "count", COUNT))
    drop, count = loaded.programs["drop_all"], loaded.programs["count"]
    with inside(namespace):
        ifindex = socket.if_nametoindex("nv0")
        assert kernel.query_clsact(ifindex, AttachType.TCX_EGRESS) is None
        kernel.attach_clsact(count, ifindex, AttachType.TCX_EGRESS)
        kernel.attach_clsact(drop, ifindex, AttachType.TCX_EGRESS)
        assert kernel.query_clsact(ifindex, AttachType.TCX_EGRESS) == drop.info().id
        assert kernel.query_clsact(ifindex, AttachType.TCX_INGRESS) is None
    loaded.close()
    assert not packets_reach_peer(namespace)
    with inside(namespace):
        assert kernel.detach_clsact(ifindex, AttachType.TCX_EGRESS)
        assert not kernel.detach_clsact(ifindex, AttachType.TCX_EGRESS)
    assert packets_reach_peer(namespace)


def test_information_and_statistics(kernel: Kernel, tmp_path: Path) -> None:
    loaded = kernel.load(build(tmp_path, "count", COUNT))
    with closing(kernel.statistics()):
        loaded.programs["count"].test_run(PACKET, repeat=10)
    info = loaded.programs["count"].info()
    assert (info.name, info.type) == ("count", ProgramType.SCHED_CLS)
    assert info.run_cnt == 10
    assert info.run_time_ns > 0
    assert info.verified_insns > 0
    assert loaded.maps["shared"].info.id in info.map_ids
    assert info.id in {each.id for each in kernel.programs()}
    assert loaded.maps["shared"].info in set(kernel.maps())
