"""The Protocols of `abc` in memory: no kernel, no privileges, same answers (`tests/support/map_conformance.py`).

For unit tests, and for whatever wants to know what the maps would hold without a kernel. Programs do not run: a test
gives each a function that plays it in test runs. A pin is a small file, so that what callers do to pins with `pathlib`
(list, rename, unlink) works as on a bpffs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nodeagent.bpf.abc import (
    BPF_F_MMAPABLE,
    AttachType,
    LinkInfo,
    LoadOptions,
    Map,
    MapInfo,
    MapSpec,
    MapType,
    Mode,
    Program,
    ProgramInfo,
    ProgramType,
    TestRun,
)
from nodeagent.bpf.errors import (
    BpfError,
    IncompatibleMapError,
    KeyExistsError,
    KeyMissingError,
    MapFullError,
    NoSuchDeviceError,
    NotPinnedError,
    ObjectFileError,
    SizeMismatchError,
    UnsupportedFeatureError,
)

_UNSIZED = (MapType.SK_STORAGE, MapType.CGROUP_STORAGE, MapType.CGRP_STORAGE)  # as many entries as sockets or cgroups


@dataclass
class _Table:
    """What a map's descriptors share."""

    spec: MapSpec
    id: int
    cpus: int
    entries: dict[bytes, bytes] = field(default_factory=dict)
    queue: list[bytes] = field(default_factory=list)
    memory: bytearray | None = None

    @property
    def stride(self) -> int:
        return (self.spec.value_size + 7) // 8 * 8


class FakeMap:
    """A `Map`; several may be open on one table, as descriptors are."""

    def __init__(self, table: _Table, kernel: FakeKernel, fd: int) -> None:
        self._table, self._kernel, self._fd = table, kernel, fd
        spec = table.spec
        self.info = MapInfo(
            table.id, spec.name[:15], spec.type, spec.key_size, spec.value_size, spec.max_entries, spec.flags
        )
        self._room = table.stride * table.cpus if spec.type.per_cpu else spec.value_size

    @property
    def fd(self) -> int:
        """A number that only the fake knows."""
        return self._fd

    def close(self) -> None:
        """See `Closable.close`."""
        self._kernel.descriptors.pop(self._fd, None)
        self._fd = -1

    def _check(self, key: bytes | None, value: bytes | None = None) -> None:
        if self._fd < 0:
            raise NoSuchDeviceError(f"map {self.info.name}", "is closed")
        if key is not None and len(key) != self.info.key_size:
            raise SizeMismatchError(f"map {self.info.name}", f"key of {len(key)} bytes, not {self.info.key_size}")
        if value is not None and len(value) != self._room:
            raise SizeMismatchError(f"map {self.info.name}", f"value of {len(value)} bytes, not {self._room}")

    def _index(self, key: bytes) -> int | None:
        index = int.from_bytes(key, "little")
        return index if index < self.info.max_entries else None

    def _read(self, key: bytes) -> bytes | None:
        table = self._table
        if not table.spec.type.array:
            return table.entries.get(key)
        index = self._index(key)
        if index is None:
            return None
        if table.memory is not None:
            return bytes(table.memory[index * table.stride : index * table.stride + self.info.value_size])
        return table.entries.get(key, None if table.spec.type.of_maps else bytes(self._room))

    def lookup(self, key: bytes, *, lock: bool = False) -> bytes | None:
        """See `Map.lookup`."""
        self._check(key)
        return self._read(key)

    def lookup_percpu(self, key: bytes) -> list[bytes] | None:
        """See `Map.lookup_percpu`."""
        if not self._table.spec.type.per_cpu:
            raise BpfError(f"map {self.info.name}", "is not a per-CPU map")
        whole = self.lookup(key)
        if whole is None:
            return None
        return [whole[at : at + self.info.value_size] for at in range(0, self._room, self._table.stride)]

    def update(self, key: bytes, value: bytes, mode: Mode = Mode.ANY, *, lock: bool = False) -> None:
        """See `Map.update`."""
        table = self._table
        if table.spec.type.per_cpu and len(value) == self.info.value_size:
            self.update_percpu(key, [value] * table.cpus, mode)
            return
        self._check(key, value)
        if table.spec.type.array:
            index = self._index(key)
            if index is None:
                raise MapFullError(f"update map {self.info.name}", "index beyond its end")
            if mode == Mode.CREATE:
                raise KeyExistsError(f"update map {self.info.name}", "an array's entries exist always")
            if table.memory is not None:
                table.memory[index * table.stride : index * table.stride + len(value)] = value
                return
        elif mode == Mode.CREATE and key in table.entries:
            raise KeyExistsError(f"update map {self.info.name}", "the key exists")
        elif mode == Mode.REPLACE and key not in table.entries:
            raise KeyMissingError(f"update map {self.info.name}", "no such key")
        elif key not in table.entries and len(table.entries) >= self.info.max_entries:
            if table.spec.type in (MapType.LRU_HASH, MapType.LRU_PERCPU_HASH):
                del table.entries[next(iter(table.entries))]
            elif table.spec.type not in _UNSIZED:
                raise MapFullError(f"update map {self.info.name}", "the map is full", "raise its max_entries")
        table.entries[key] = value

    def update_percpu(self, key: bytes, values: Sequence[bytes], mode: Mode = Mode.ANY) -> None:
        """See `Map.update_percpu`."""
        table = self._table
        if not table.spec.type.per_cpu or any(len(value) != self.info.value_size for value in values):
            raise SizeMismatchError(f"map {self.info.name}", "needs one value of its size per possible CPU")
        self.update(key, b"".join(value.ljust(table.stride, b"\0") for value in values), mode)

    def delete(self, key: bytes) -> bool:
        """See `Map.delete`."""
        self._check(key)
        if self._table.spec.type.array and not self._table.spec.type.of_maps:
            raise BpfError(f"delete from map {self.info.name}", "an array's entries cannot be deleted")
        return self._table.entries.pop(key, None) is not None

    def next_key(self, key: bytes | None) -> bytes | None:
        """See `Map.next_key`."""
        self._check(key)
        if self._table.spec.type.array:
            index = -1 if key is None else self._index(key)
            following = 0 if index is None else index + 1
            return following.to_bytes(4, "little") if following < self.info.max_entries else None
        keys = list(self._table.entries)
        if key is None or key not in self._table.entries:
            return keys[0] if keys else None
        at = keys.index(key) + 1
        return keys[at] if at < len(keys) else None

    def keys(self) -> Iterator[bytes]:
        """See `Map.keys`."""
        self._check(None)
        if self._table.spec.type.array:
            yield from (index.to_bytes(4, "little") for index in range(self.info.max_entries))
        else:
            yield from list(self._table.entries)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """See `Map.items`."""
        for key in self.keys():
            value = self._read(key)
            if value is not None:
                yield key, value

    def update_many(self, entries: Iterable[tuple[bytes, bytes]]) -> int:
        """See `Map.update_many`."""
        count = 0
        for key, value in entries:
            self.update(key, value)
            count += 1
        return count

    def delete_many(self, keys: Iterable[bytes]) -> int:
        """See `Map.delete_many`."""
        return sum(self.delete(key) for key in keys)

    def push(self, value: bytes) -> None:
        """See `Map.push`."""
        self._check(None, value)
        if len(self._table.queue) >= self.info.max_entries:
            raise MapFullError(f"push to map {self.info.name}", "the map is full", "raise its max_entries")
        self._table.queue.append(value)

    def pop(self) -> bytes | None:
        """See `Map.pop`."""
        self._check(None)
        if not self._table.queue:
            return None
        return self._table.queue.pop(-1 if self._table.spec.type == MapType.STACK else 0)

    def put_map(self, key: bytes, inner: Map, mode: Mode = Mode.ANY) -> None:
        """See `Map.put_map`."""
        self._check(key)
        table = self._kernel.descriptors.get(inner.fd)
        if not isinstance(table, _Table):
            raise NoSuchDeviceError(f"put map into {self.info.name}", "that map is closed")
        shape = self._kernel.inner_shapes.get(self._table.id)
        ours = (table.spec.type, table.spec.key_size, table.spec.value_size)
        if shape is not None and ours != (shape.type, shape.key_size, shape.value_size):
            raise IncompatibleMapError(
                f"put map {inner.info.name} into {self.info.name}", "its type or sizes are not those of the inner map"
            )
        self.update(key, table.id.to_bytes(4, "little"), mode)

    def inner_id(self, key: bytes) -> int | None:
        """See `Map.inner_id`."""
        value = self.lookup(key)
        return None if value is None else int.from_bytes(value, "little") or None

    def view(self) -> memoryview:
        """See `Map.view`."""
        if self._table.memory is None:
            raise BpfError(f"map the memory of {self.info.name}", "it was not made with BPF_F_MMAPABLE")
        return memoryview(self._table.memory)

    def pin(self, path: Path) -> None:
        """See `Map.pin`."""
        self._check(None)
        self._kernel.pin(path, self._table)


TestRunFunction = Callable[[bytes, bytes], TestRun]


class FakeProgram:
    """A `Program`; `plays` is what its test runs do."""

    def __init__(self, info: ProgramInfo, kernel: FakeKernel, fd: int, plays: TestRunFunction | None = None) -> None:
        self.name, self.plays, self._info, self._kernel, self._fd = info.name, plays, info, kernel, fd

    @property
    def fd(self) -> int:
        """A number that only the fake knows."""
        return self._fd

    def close(self) -> None:
        """See `Closable.close`."""
        self._kernel.descriptors.pop(self._fd, None)
        self._fd = -1

    def info(self) -> ProgramInfo:
        """See `Program.info`."""
        return self._info

    def pin(self, path: Path) -> None:
        """See `Program.pin`."""
        self._kernel.pin(path, self)

    def test_run(self, data: bytes = b"", context: bytes = b"", *, repeat: int = 1, room: int = 256) -> TestRun:
        """See `Program.test_run`."""
        if self.plays is None:
            raise UnsupportedFeatureError(f"test run of {self.name}", "nobody said what it does")
        return self.plays(data, context)

    def runner(self, size: int) -> Callable[[bytes], int]:
        """See `Program.runner`."""
        return lambda packet: self.test_run(packet).retval


@dataclass
class _Attachment:
    """What a link's descriptors share. `where` is a cgroup's path or an interface's index; None: detached."""

    id: int
    program: ProgramInfo
    attach_type: AttachType
    where: Path | int | None
    holders: int = 0


class FakeLink:
    """A `Link`. As in the kernel, the attachment ends with its last holder."""

    def __init__(self, attachment: _Attachment, kernel: FakeKernel, fd: int) -> None:
        self._attachment, self._kernel, self._fd = attachment, kernel, fd
        attachment.holders += 1

    @property
    def fd(self) -> int:
        """A number that only the fake knows."""
        return self._fd

    def close(self) -> None:
        """See `Closable.close`."""
        if self._fd >= 0:
            self._kernel.descriptors.pop(self._fd, None)
            self._fd = -1
            self._kernel.release(self._attachment)

    def info(self) -> LinkInfo:
        """See `Link.info`."""
        of, where = self._attachment, self._attachment.where
        cgroup_id = self._kernel.cgroups.get(where, 0) if isinstance(where, Path) else 0
        ifindex = where if isinstance(where, int) else 0
        return LinkInfo(of.id, 11 if ifindex else 3, of.program.id, of.attach_type, cgroup_id, ifindex)

    def pin(self, path: Path) -> None:
        """See `Link.pin`."""
        self._kernel.pin(path, self._attachment)
        self._attachment.holders += 1

    def update(self, program: Program) -> None:
        """See `Link.update`."""
        self._attachment.program = program.info()

    def detach(self) -> None:
        """See `Link.detach`."""
        self._attachment.where = None


@dataclass(frozen=True)
class FakeObjectFile:
    """What `FakeKernel.load` finds: maps (pinned by name unless `private`), programs by name and type, their tag."""

    maps: tuple[MapSpec, ...] = ()
    programs: Mapping[str, ProgramType] = field(default_factory=dict)
    private: frozenset[str] = frozenset()
    tag: str = "0" * 16


class FakeObject:
    """An `Object`."""

    def __init__(self, maps: dict[str, FakeMap], programs: dict[str, FakeProgram]) -> None:
        self.maps: Mapping[str, Map] = maps
        self.programs: Mapping[str, Program] = programs

    def close(self) -> None:
        """See `Object.close`."""
        for owner in (*self.maps.values(), *self.programs.values()):
            owner.close()


class FakeRing:
    """A `Ring` that a test fills through `records`."""

    fd = -1

    def __init__(self) -> None:
        self.records: list[bytes] = []

    def drain(self, limit: int = 0) -> list[bytes]:
        """See `Ring.drain`."""
        count = limit or len(self.records)
        taken, self.records = self.records[:count], self.records[count:]
        return taken

    def close(self) -> None:
        """See `Ring.close`."""


class FakeKernel:
    """A `Kernel` in memory.

    files: object files by path; cgroups: id by path of those that exist; interfaces: indices that exist; tcx: whether
    this kernel has tcx links. All four may be changed at any time.
    """

    def __init__(self, cpus: int = 2, tcx: bool = True) -> None:
        self.cpus, self.tcx = cpus, tcx
        self.files: dict[Path, FakeObjectFile] = {}
        self.cgroups: dict[Path, int] = {}
        self.interfaces: set[int] = set()
        self.descriptors: dict[int, object] = {}
        self.inner_shapes: dict[int, MapSpec] = {}
        self.pins: dict[str, tuple[Path, object]] = {}
        self.filters: dict[tuple[int, AttachType], ProgramInfo] = {}
        self.attachments: list[_Attachment] = []
        self._tables: list[_Table] = []
        self._programs: list[ProgramInfo] = []
        self._numbers = itertools.count(1)

    def pin(self, path: Path, what: object) -> None:
        """Pins anything; KeyExistsError when the path is taken."""
        if path.exists():
            raise KeyExistsError(f"pin {path}", "the path is taken")
        if not path.parent.is_dir():
            raise KeyMissingError(f"pin {path}", "no such directory")
        if "." in path.name:
            raise BpfError(f"pin {path}", "a bpffs takes no dots")
        token = f"{next(self._numbers)}"
        path.write_text(token)
        self.pins[token] = (path, what)

    def pinned(self, path: Path) -> object:
        """What is pinned there, or None."""
        self.sweep()
        return self.pins[path.read_text()][1] if path.is_file() else None

    def sweep(self) -> None:
        """Ends attachments whose last pin was unlinked."""
        for token, (path, what) in list(self.pins.items()):
            if isinstance(what, _Attachment) and not path.exists():
                del self.pins[token]
                self.release(what)

    def release(self, attachment: _Attachment) -> None:
        """One holder of an attachment less; the last one ends it."""
        attachment.holders -= 1
        if not attachment.holders:
            attachment.where = None
            self.attachments.remove(attachment)

    def _open(self, what: object) -> int:
        fd = next(self._numbers) + 1_000_000
        self.descriptors[fd] = what
        return fd

    def _map(self, table: _Table) -> FakeMap:
        return FakeMap(table, self, self._open(table))

    def _program(self, info: ProgramInfo) -> FakeProgram:
        return FakeProgram(info, self, self._open(info))

    def create_map(self, spec: MapSpec, inner: MapSpec | None = None) -> FakeMap:
        """See `Kernel.create_map`; inner: the shape that a map of maps asks for."""
        table = _Table(spec, next(self._numbers), self.cpus)
        if spec.flags & BPF_F_MMAPABLE:
            table.memory = bytearray(table.stride * spec.max_entries)
        if inner is not None:
            self.inner_shapes[table.id] = inner
        self._tables.append(table)
        return self._map(table)

    def create_program(self, name: str, kind: ProgramType, tag: str = "0" * 16) -> FakeProgram:
        """A loaded program out of nothing."""
        info = ProgramInfo(next(self._numbers), name, kind, tag, 0, 0, 0, 0, 0, 0, 0, ())
        self._programs.append(info)
        return self._program(info)

    def load(self, path: Path, options: LoadOptions | None = None) -> FakeObject:
        """See `Kernel.load`."""
        options = options or LoadOptions()
        if path not in self.files:
            raise ObjectFileError(f"BPF object {path}", "no such file", "build it with `make -C kernel`")
        file, maps = self.files[path], {}
        for spec in file.maps:
            pin = options.pin_dir / spec.name if options.pin_dir and spec.name not in file.private else None
            if pin is not None and pin.exists():
                table = self.pinned(pin)
                if not isinstance(table, _Table) or table.spec != spec:
                    raise IncompatibleMapError(f"load {path}", f"pinned map {spec.name} has another layout")
                maps[spec.name] = self._map(table)
                continue
            maps[spec.name] = self.create_map(spec)
            if pin is not None:
                maps[spec.name].pin(pin)
        wanted = {n: kind for n, kind in file.programs.items() if n not in options.skip}
        if options.only is not None:
            wanted = {n: kind for n, kind in wanted.items() if n in options.only}
        return FakeObject(maps, {name: self.create_program(name, kind, file.tag) for name, kind in wanted.items()})

    def pinned_map(self, path: Path) -> FakeMap:
        """See `Kernel.pinned_map`."""
        table = self.pinned(path)
        if not isinstance(table, _Table):
            raise NotPinnedError(f"map {path}", "nothing is pinned there")
        return self._map(table)

    def map_by_id(self, number: int) -> FakeMap:
        """See `Kernel.map_by_id`."""
        for table in self._tables:
            if table.id == number:
                return self._map(table)
        raise KeyMissingError(f"open map {number}", "no such map")

    def pinned_program(self, path: Path) -> FakeProgram:
        """See `Kernel.pinned_program`."""
        program = self.pinned(path)
        if not isinstance(program, FakeProgram):
            raise NotPinnedError(f"program {path}", "nothing is pinned there")
        return FakeProgram(program.info(), self, self._open(program.info()), program.plays)

    def pinned_link(self, path: Path) -> FakeLink:
        """See `Kernel.pinned_link`."""
        attachment = self.pinned(path)
        if not isinstance(attachment, _Attachment):
            raise NotPinnedError(f"link {path}", "nothing is pinned there")
        return FakeLink(attachment, self, self._open(attachment))

    def _attach(self, program: Program, where: Path | int, attach_type: AttachType) -> FakeLink:
        attachment = _Attachment(next(self._numbers), program.info(), attach_type, where)
        self.attachments.append(attachment)
        return FakeLink(attachment, self, self._open(attachment))

    def attach_cgroup(self, program: Program, cgroup: Path, attach_type: AttachType) -> FakeLink:
        """See `Kernel.attach_cgroup`."""
        if cgroup not in self.cgroups:
            raise NoSuchDeviceError(f"attach {program.name} to cgroup {cgroup}", "no such cgroup")
        return self._attach(program, cgroup, attach_type)

    def attach_tcx(self, program: Program, ifindex: int, attach_type: AttachType) -> FakeLink:
        """See `Kernel.attach_tcx`."""
        if not self.tcx:
            raise UnsupportedFeatureError(f"attach {program.name}", "the kernel has no tcx links", "use clsact")
        self._interface(program.name, ifindex)
        return self._attach(program, ifindex, attach_type)

    def _interface(self, name: str, ifindex: int) -> None:
        if ifindex not in self.interfaces:
            raise NoSuchDeviceError(f"attach {name} to interface {ifindex}", "no such interface")

    def attach_clsact(self, program: Program, ifindex: int, attach_type: AttachType) -> None:
        """See `Kernel.attach_clsact`."""
        self._interface(program.name, ifindex)
        self.filters[ifindex, attach_type] = program.info()

    def query_clsact(self, ifindex: int, attach_type: AttachType) -> int | None:
        """See `Kernel.query_clsact`."""
        found = self.filters.get((ifindex, attach_type))
        return found.id if found else None

    def detach_clsact(self, ifindex: int, attach_type: AttachType) -> bool:
        """See `Kernel.detach_clsact`."""
        return self.filters.pop((ifindex, attach_type), None) is not None

    def ring(self, source: Map) -> FakeRing:
        """See `Kernel.ring`."""
        return FakeRing()

    def programs(self) -> Iterator[ProgramInfo]:
        """See `Kernel.programs`."""
        yield from self._programs

    def maps(self) -> Iterator[MapInfo]:
        """See `Kernel.maps`."""
        for table in self._tables:
            s = table.spec
            yield MapInfo(table.id, s.name[:15], s.type, s.key_size, s.value_size, s.max_entries, s.flags)

    def links(self) -> Iterator[LinkInfo]:
        """See `Kernel.links`."""
        self.sweep()
        for attachment in list(self.attachments):
            link = FakeLink(attachment, self, self._open(attachment))
            yield link.info()
            link.close()

    def statistics(self) -> FakeMap:
        """See `Kernel.statistics`: nothing runs, so any closable thing will do."""
        return self.create_map(MapSpec("statistics", MapType.ARRAY, 4, 8, 1))
