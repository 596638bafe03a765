"""The kernel edge as Protocols, so that everything above it runs against the real kernel or against `fake` alike.

Keys and values are `bytes` of exactly the map's sizes; codecs live in `nodeagent.abi`. One conformance suite
(`tests/support/map_conformance.py`) runs against both implementations.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class MapType(enum.IntEnum):
    """`enum bpf_map_type`, the ones that this project uses."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    SOCKHASH = 18
    CGROUP_STORAGE = 19
    QUEUE = 22
    STACK = 23
    SK_STORAGE = 24
    RINGBUF = 27
    CGRP_STORAGE = 32

    @property
    def per_cpu(self) -> bool:
        """Whether a value is one slot per possible CPU."""
        return self in (MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH)

    @property
    def of_maps(self) -> bool:
        """Whether a value is another map."""
        return self in (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS)

    @property
    def array(self) -> bool:
        """Whether keys are the indices 0 to max_entries - 1, all of them always present."""
        return self in (MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.ARRAY_OF_MAPS)


class ProgramType(enum.IntEnum):
    """`enum bpf_prog_type`, the ones that this project uses or shows."""

    UNSPEC = 0
    SOCKET_FILTER = 1
    SCHED_CLS = 3
    XDP = 6
    CGROUP_SKB = 8
    SOCK_OPS = 13
    SK_SKB = 14
    SK_MSG = 16
    CGROUP_SOCK_ADDR = 18
    CGROUP_SOCKOPT = 25
    SYSCALL = 31


class AttachType(enum.IntEnum):
    """`enum bpf_attach_type`, the ones that this project attaches."""

    CGROUP_SOCK_OPS = 3
    CGROUP_INET4_CONNECT = 10
    CGROUP_INET6_CONNECT = 11
    CGROUP_UDP4_SENDMSG = 14
    CGROUP_UDP6_SENDMSG = 15
    CGROUP_UDP4_RECVMSG = 19
    CGROUP_UDP6_RECVMSG = 20
    CGROUP_GETSOCKOPT = 21
    CGROUP_INET4_GETPEERNAME = 29
    CGROUP_INET6_GETPEERNAME = 30
    TCX_INGRESS = 46
    TCX_EGRESS = 47


class Mode(enum.IntEnum):
    """What an update does about an existing key (BPF_ANY, BPF_NOEXIST, BPF_EXIST)."""

    ANY = 0
    CREATE = 1
    REPLACE = 2


BPF_F_NO_PREALLOC = 1 << 0
BPF_F_MMAPABLE = 1 << 10
BPF_F_INNER_MAP = 1 << 12


@dataclass(frozen=True, slots=True)
class MapSpec:
    """The shape of a map. `value_size` is that of one slot; per-CPU maps hold one per possible CPU."""

    name: str
    type: MapType
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel says about a map. `type` stays a number, since other tools' maps are listed, too."""

    id: int
    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says about a program. run_time_ns and run_cnt stand still unless statistics are enabled."""

    id: int
    name: str
    type: int
    tag: str
    jited_bytes: int
    xlated_bytes: int
    verified_insns: int
    load_time_ns: int
    run_time_ns: int
    run_cnt: int
    recursion_misses: int
    map_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """What the kernel says about a link.

    cgroup_id or ifindex is 0 when it is not of that sort, or when the cgroup or device has gone.
    """

    id: int
    type: int
    program_id: int
    attach_type: int
    cgroup_id: int = 0
    ifindex: int = 0


@dataclass(frozen=True, slots=True)
class TestRun:
    """Outcome of BPF_PROG_TEST_RUN: return value, packet and context afterwards, mean run time of one repetition."""

    __test__ = False

    retval: int
    data: bytes
    context: bytes
    duration_ns: int


class Closable(Protocol):
    """Holds a file descriptor until closed; closing twice is harmless. What is pinned or attached survives."""

    @property
    def fd(self) -> int:
        """The descriptor. -1 once closed; a fake's is a number that no system call knows."""
        ...

    def close(self) -> None:
        """Gives the descriptor back."""
        ...


class Map(Closable, Protocol):
    """One map. Sizes are checked here (SizeMismatchError), because the kernel would read past a short buffer."""

    @property
    def info(self) -> MapInfo:
        """Id, name and shape."""
        ...

    def lookup(self, key: bytes, *, lock: bool = False) -> bytes | None:
        """The value, or None.

        lock: read under the value's spin lock (BPF_F_LOCK); the lock word reads as 0.
        Of a per-CPU map all slots, 8-byte aligned, one after the other.
        """
        ...

    def lookup_percpu(self, key: bytes) -> list[bytes] | None:
        """One value per possible CPU, or None."""
        ...

    def update(self, key: bytes, value: bytes, mode: Mode = Mode.ANY, *, lock: bool = False) -> None:
        """Writes a value.

        Raises MapFullError, KeyExistsError (CREATE), KeyMissingError (REPLACE).
        Of a per-CPU map the same value on every CPU. lock: BPF_F_LOCK, the lock word in `value` is ignored.
        """
        ...

    def update_percpu(self, key: bytes, values: Sequence[bytes], mode: Mode = Mode.ANY) -> None:
        """Writes one value per possible CPU."""
        ...

    def delete(self, key: bytes) -> bool:
        """Removes a key; False when there was none. Arrays refuse (BpfError)."""
        ...

    def next_key(self, key: bytes | None) -> bytes | None:
        """The key after `key` in the kernel's order (the first for None or a key that has gone), None at the end."""
        ...

    def keys(self) -> Iterator[bytes]:
        """All keys, each once, though other writers are at work: keys added meanwhile may be missed."""
        ...

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries (batched where the kernel can); entries removed meanwhile are left out."""
        ...

    def update_many(self, entries: Iterable[tuple[bytes, bytes]]) -> int:
        """Writes many entries in as few system calls as possible; returns how many.

        Raises as update does, having
        written a prefix.
        """
        ...

    def delete_many(self, keys: Iterable[bytes]) -> int:
        """Removes many keys; absent ones do not count."""
        ...

    def push(self, value: bytes) -> None:
        """QUEUE and STACK: adds a value. MapFullError when there is no room."""
        ...

    def pop(self) -> bytes | None:
        """QUEUE and STACK: takes a value, None when empty."""
        ...

    def put_map(self, key: bytes, inner: Map, mode: Mode = Mode.ANY) -> None:
        """Map of maps: swaps `inner` in, in one step for every reader."""
        ...

    def inner_id(self, key: bytes) -> int | None:
        """Map of maps: id of the map there, or None."""
        ...

    def view(self) -> memoryview:
        """The values of a BPF_F_MMAPABLE array as shared memory, writable, slots 8-byte aligned.

        Lives as long as the
        memoryview does.
        """
        ...

    def pin(self, path: Path) -> None:
        """Makes the map outlive the process, in a bpffs. An occupied path is KeyExistsError."""
        ...


class Program(Closable, Protocol):
    """One loaded program."""

    @property
    def name(self) -> str:
        """Function name (whole if it came from an object, the kernel's 15 characters if from a pin)."""
        ...

    def info(self) -> ProgramInfo:
        """The kernel's current account."""
        ...

    def pin(self, path: Path) -> None:
        """Pins it."""
        ...

    def test_run(self, data: bytes = b"", context: bytes = b"", *, repeat: int = 1, room: int = 256) -> TestRun:
        """Runs it once or more on a packet and context (struct __sk_buff, or any for SYSCALL programs).

        room: how much the packet may grow. Programs of some types cannot be run so: UnsupportedFeatureError.
        """
        ...

    def runner(self, size: int) -> Callable[[bytes], int]:
        """Test runs of packets of that size, quickly: a function from the packet to the return value."""
        ...


class Link(Closable, Protocol):
    """An attachment. It ends when the last descriptor and the last pin go."""

    def info(self) -> LinkInfo:
        """Id, program, and target as they are now."""
        ...

    def pin(self, path: Path) -> None:
        """Pins it."""
        ...

    def update(self, program: Program) -> None:
        """Replaces the program in one step; no packet passes without one."""
        ...

    def detach(self) -> None:
        """Takes the program off at once, pins notwithstanding."""
        ...


class Object(Protocol):
    """A loaded object file: its maps (shared by pin where declared so) and programs by name."""

    @property
    def maps(self) -> Mapping[str, Map]:
        """Maps by name, `.rodata` and its like left out."""
        ...

    @property
    def programs(self) -> Mapping[str, Program]:
        """Programs by function name."""
        ...

    def close(self) -> None:
        """Lets go of everything that is neither pinned nor attached."""
        ...


class Ring(Protocol):
    """Consumer of a RINGBUF map."""

    @property
    def fd(self) -> int:
        """Readable when there are records (an epoll descriptor)."""
        ...

    def drain(self, limit: int = 0) -> list[bytes]:
        """Takes what is there, at most `limit` records if given, without waiting."""
        ...

    def close(self) -> None:
        """Unmaps it."""
        ...


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load an object.

    pin_dir: bpffs directory of the maps that are declared LIBBPF_PIN_BY_NAME; max_entries: sizes by map name;
    constants: `const volatile` variables by name; skip: programs not to load; only: if given, load only these.
    """

    pin_dir: Path | None = None
    max_entries: Mapping[str, int] | None = None
    constants: Mapping[str, bytes] | None = None
    skip: frozenset[str] = frozenset()
    only: frozenset[str] | None = None


class Kernel(Protocol):
    """The BPF side of one kernel. Interfaces are those of the calling thread's network namespace."""

    def load(self, path: Path, options: LoadOptions | None = None) -> Object:
        """Loads an object file. ObjectFileError, VerifierError, IncompatibleMapError, UnsupportedFeatureError."""
        ...

    def create_map(self, spec: MapSpec) -> Map:
        """A new, unpinned map."""
        ...

    def pinned_map(self, path: Path) -> Map:
        """NotPinnedError when there is none."""
        ...

    def map_by_id(self, number: int) -> Map:
        """Any map of this machine, such as one in a map of maps. KeyMissingError when it has gone."""
        ...

    def pinned_program(self, path: Path) -> Program:
        """NotPinnedError when there is none."""
        ...

    def pinned_link(self, path: Path) -> Link:
        """NotPinnedError when there is none."""
        ...

    def attach_cgroup(self, program: Program, cgroup: Path, attach_type: AttachType) -> Link:
        """Attaches to a cgroup and all below it."""
        ...

    def attach_tcx(self, program: Program, ifindex: int, attach_type: AttachType) -> Link:
        """Attaches at an interface by a tcx link. UnsupportedFeatureError before Linux 6.6."""
        ...

    def attach_clsact(self, program: Program, ifindex: int, attach_type: AttachType) -> None:
        """Attaches (or replaces) our one filter under clsact; it needs no pin and lasts as long as the interface."""
        ...

    def query_clsact(self, ifindex: int, attach_type: AttachType) -> int | None:
        """Id of the program in our filter, or None."""
        ...

    def detach_clsact(self, ifindex: int, attach_type: AttachType) -> bool:
        """Removes our filter (and leaves the qdisc, which others may use)."""
        ...

    def ring(self, source: Map) -> Ring:
        """A consumer of that RINGBUF map."""
        ...

    def programs(self) -> Iterator[ProgramInfo]:
        """Every program of this machine."""
        ...

    def maps(self) -> Iterator[MapInfo]:
        """Every map of this machine."""
        ...

    def links(self) -> Iterator[LinkInfo]:
        """Every link of this machine."""
        ...

    def statistics(self) -> Closable:
        """Run-time statistics of programs are counted until this is closed."""
        ...


LibbpfMessage = Callable[[int, str], None]
"""Receiver of libbpf's own messages: level (0 warning, 1 info, 2 debug) and text."""
