"""The Protocols of `abc` over the running kernel."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType

from nodeagent.bpf import libbpf
from nodeagent.bpf.abc import (
    AttachType,
    Closable,
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
    NotPinnedError,
    ObjectFileError,
    PermissionDeniedError,
    SizeMismatchError,
    UnsupportedFeatureError,
    VerifierError,
    from_errno,
)

_F_LOCK = 4  # BPF_F_LOCK, a flag of lookups and updates
_BATCH = 4096


class Descriptor:
    """Owns one file descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def fd(self) -> int:
        """The descriptor, -1 once closed."""
        return self._fd

    def close(self) -> None:
        """Gives it back; twice is harmless."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def _pin(self, what: str, path: Path) -> None:
        result = libbpf.obj_pin(self._fd, path)
        if result == -errno.EPERM and not _on_bpffs(path):
            raise UnsupportedFeatureError(
                f"pin {what} at {path}", "that directory is not on a bpffs", "mount -t bpf bpf /sys/fs/bpf", -result
            )
        if result:
            raise from_errno(f"pin {what} at {path}", -result)


def _on_bpffs(path: Path) -> bool:
    # bpffs answers EPERM for names with a dot as well; only the file system's type tells the two apart
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    points = [line.split()[1] for line in mounts if line.split()[2] == "bpf"]
    return any(path.is_relative_to(point) for point in points)


class KernelMap(Descriptor):
    """A `Map`."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        raw = libbpf.map_info(fd)
        if isinstance(raw, int):
            self.close()
            raise from_errno("map information", -raw)
        name = raw.name.decode("ascii", "replace")
        self.info = MapInfo(raw.id, name, raw.type, raw.key_size, raw.value_size, raw.max_entries, raw.map_flags)
        per_cpu = raw.type in (MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH)
        self._stride = (raw.value_size + 7) // 8 * 8 if per_cpu else 0
        self._room = self._stride * libbpf.possible_cpus() if per_cpu else raw.value_size
        self._batches = raw.type in (
            MapType.HASH, MapType.ARRAY, MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_HASH,
            MapType.LRU_PERCPU_HASH, MapType.LPM_TRIE,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"KernelMap({self.info.name}, id {self.info.id})"

    def _check(self, key: bytes | None, value: bytes | None = None) -> None:
        if key is not None and len(key) != self.info.key_size:
            raise SizeMismatchError(f"map {self.info.name}", f"key of {len(key)} bytes, not {self.info.key_size}")
        if value is not None and len(value) != self._room:
            raise SizeMismatchError(f"map {self.info.name}", f"value of {len(value)} bytes, not {self._room}")

    def _error(self, verb: str, result: int) -> BpfError:
        return from_errno(f"{verb} map {self.info.name}", -result)

    def lookup(self, key: bytes, *, lock: bool = False) -> bytes | None:
        """See `Map.lookup`."""
        self._check(key)
        value = libbpf.map_lookup(self._fd, key, self._room, _F_LOCK if lock else 0)
        if isinstance(value, bytes):
            return value
        if value == -errno.ENOENT:
            return None
        raise self._error("look up in", value)

    def lookup_percpu(self, key: bytes) -> list[bytes] | None:
        """See `Map.lookup_percpu`."""
        if not self._stride:
            raise BpfError(f"map {self.info.name}", "is not a per-CPU map")
        whole = self.lookup(key)
        if whole is None:
            return None
        return [whole[at : at + self.info.value_size] for at in range(0, self._room, self._stride)]

    def update(self, key: bytes, value: bytes, mode: Mode = Mode.ANY, *, lock: bool = False) -> None:
        """See `Map.update`."""
        if self._stride and len(value) == self.info.value_size:
            self.update_percpu(key, [value] * (self._room // self._stride), mode)
            return
        self._check(key, value)
        result = libbpf.map_update(self._fd, key, value, mode | (_F_LOCK if lock else 0))
        if result:
            raise self._error("update", result)

    def update_percpu(self, key: bytes, values: Sequence[bytes], mode: Mode = Mode.ANY) -> None:
        """See `Map.update_percpu`."""
        if not self._stride or any(len(value) != self.info.value_size for value in values):
            raise SizeMismatchError(f"map {self.info.name}", "needs one value of its size per possible CPU")
        whole = b"".join(value.ljust(self._stride, b"\0") for value in values)
        self._check(key, whole)
        result = libbpf.map_update(self._fd, key, whole, mode)
        if result:
            raise self._error("update", result)

    def delete(self, key: bytes) -> bool:
        """See `Map.delete`."""
        self._check(key)
        result = libbpf.map_delete(self._fd, key)
        if result not in (0, -errno.ENOENT):
            raise self._error("delete from", result)
        return result == 0

    def next_key(self, key: bytes | None) -> bytes | None:
        """See `Map.next_key`."""
        self._check(key)
        found = libbpf.map_next_key(self._fd, key, self.info.key_size)
        if isinstance(found, bytes):
            return found
        if found == -errno.ENOENT:
            return None
        raise self._error("walk", found)

    def keys(self) -> Iterator[bytes]:
        """See `Map.keys`.

        The batch calls see each bucket once; a walk by next_key restarts when its key is deleted,
        so there the keys already given are remembered.
        """
        if self._batches:
            for key, _ in self._batched():
                yield key
            return
        seen: set[bytes] = set()
        at: bytes | None = None
        while (at := self.next_key(at)) is not None:
            if at not in seen:
                seen.add(at)
                yield at
            elif len(seen) > self.info.max_entries:
                return

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """See `Map.items`."""
        if self._batches:
            yield from self._batched()
            return
        for key in self.keys():
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def _batched(self) -> Iterator[tuple[bytes, bytes]]:
        token: bytes | None = None
        count, size = min(_BATCH, self.info.max_entries), self.info.key_size
        while True:
            result, n, keys, values, after = libbpf.map_lookup_batch(self._fd, token, size, self._room, count)
            if result == -errno.ENOSPC and count < 1 << 20:
                count *= 4  # one bucket alone holds more entries than we have room for
                continue
            if result not in (0, -errno.ENOENT):
                raise self._error("read", result)
            for i in range(n):
                yield keys[i * size : (i + 1) * size], values[i * self._room : (i + 1) * self._room]
            if result or not n:
                return
            token = after

    def update_many(self, entries: Iterable[tuple[bytes, bytes]]) -> int:
        """See `Map.update_many`."""
        total, source = 0, iter(entries)
        while chunk := list(islice(source, _BATCH)):
            for key, value in chunk:
                self._check(key, value)
            if not self._batches or self.info.type == MapType.LPM_TRIE:
                for key, value in chunk:
                    self.update(key, value)
                total += len(chunk)
                continue
            keys, values = b"".join(key for key, _ in chunk), b"".join(value for _, value in chunk)
            result, written = libbpf.map_update_batch(self._fd, keys, values, len(chunk))
            if result:
                raise self._error("update", result)
            total += written
        return total

    def delete_many(self, keys: Iterable[bytes]) -> int:
        """See `Map.delete_many`. One by one: the batch call stops at the first absent key."""
        return sum(self.delete(key) for key in keys)

    def push(self, value: bytes) -> None:
        """See `Map.push`."""
        self._check(None, value)
        result = libbpf.map_update(self._fd, None, value)
        if result:
            raise self._error("push to", result)

    def pop(self) -> bytes | None:
        """See `Map.pop`."""
        value = libbpf.map_pop(self._fd, None, self._room)
        if isinstance(value, bytes):
            return value
        if value == -errno.ENOENT:
            return None
        raise self._error("pop from", value)

    def put_map(self, key: bytes, inner: Map, mode: Mode = Mode.ANY) -> None:
        """See `Map.put_map`."""
        self._check(key)
        result = libbpf.map_update(self._fd, key, inner.fd.to_bytes(4, "little"), mode)
        if result == -errno.EINVAL:
            raise IncompatibleMapError(
                f"put map {inner.info.name} into {self.info.name}", "its type or sizes are not those of the inner map"
            )
        if result:
            raise self._error("update", result)

    def inner_id(self, key: bytes) -> int | None:
        """See `Map.inner_id`."""
        value = self.lookup(key)
        return None if value is None else int.from_bytes(value, "little") or None

    def view(self) -> memoryview:
        """See `Map.view`."""
        size = (self.info.value_size + 7) // 8 * 8 * self.info.max_entries
        pages = (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
        try:
            return memoryview(mmap.mmap(self._fd, pages))[:size]
        except OSError as cause:
            raise from_errno(f"map the memory of {self.info.name}", cause.errno or 0) from cause

    def pin(self, path: Path) -> None:
        """See `Map.pin`."""
        self._pin(f"map {self.info.name}", path)


class KernelProgram(Descriptor):
    """A `Program`."""

    def __init__(self, fd: int, name: str | None = None) -> None:
        super().__init__(fd)
        self.name = name or self.info().name

    def info(self) -> ProgramInfo:
        """See `Program.info`."""
        return _program_info(self._fd)

    def pin(self, path: Path) -> None:
        """See `Program.pin`."""
        self._pin(f"program {self.name}", path)

    def test_run(self, data: bytes = b"", context: bytes = b"", *, repeat: int = 1, room: int = 256) -> TestRun:
        """See `Program.test_run`."""
        syscall = self.info().type == ProgramType.SYSCALL  # takes neither a packet, nor repeat, nor a second context
        result, retval, packet, back, spent = libbpf.test_run(
            self._fd, b"" if syscall else data, context, 0 if syscall else repeat, room, not syscall
        )
        if result in (-errno.EOPNOTSUPP, -524):
            raise UnsupportedFeatureError(f"test run of {self.name}", "programs of this type cannot be run so")
        if result:
            raise from_errno(f"test run of {self.name}", -result)
        return TestRun(retval, packet, back, spent)

    def runner(self, size: int) -> Callable[[bytes], int]:
        """See `Program.runner`."""
        run = libbpf.packet_runner(self._fd, size)

        def call(packet: bytes) -> int:
            if len(packet) != size:
                raise SizeMismatchError(f"test run of {self.name}", f"packet of {len(packet)} bytes, not {size}")
            result, retval = run(packet)
            if result:
                raise from_errno(f"test run of {self.name}", -result)
            return retval

        return call


class KernelLink(Descriptor):
    """A `Link`."""

    def info(self) -> LinkInfo:
        """See `Link.info`."""
        return _link_info(self._fd)

    def pin(self, path: Path) -> None:
        """See `Link.pin`."""
        self._pin("link", path)

    def update(self, program: Program) -> None:
        """See `Link.update`."""
        result = libbpf.link_update(self._fd, program.fd)
        if result:
            raise from_errno(f"update link to program {program.name}", -result)

    def detach(self) -> None:
        """See `Link.detach`."""
        result = libbpf.link_detach(self._fd)
        if result:
            raise from_errno("detach link", -result)


class KernelRing:
    """A `Ring`."""

    def __init__(self, source: Map) -> None:
        try:
            self._handle = libbpf.RingHandle(source.fd)
        except OSError as cause:
            raise from_errno(f"consume ring buffer {source.info.name}", cause.errno or 0) from cause
        self.fd = self._handle.fd

    def drain(self, limit: int = 0) -> list[bytes]:
        """See `Ring.drain`."""
        return self._handle.drain(limit)

    def close(self) -> None:
        """See `Ring.close`."""
        self._handle.close()


class KernelObject:
    """An `Object`. Its descriptors are its own, so that libbpf's bookkeeping is freed right after the load."""

    def __init__(self, maps: dict[str, KernelMap], programs: dict[str, KernelProgram]) -> None:
        self.maps: Mapping[str, Map] = MappingProxyType(maps)
        self.programs: Mapping[str, Program] = MappingProxyType(programs)

    def close(self) -> None:
        """See `Object.close`."""
        for owner in (*self.maps.values(), *self.programs.values()):
            owner.close()


class LinuxKernel:
    """The `Kernel` that we run on."""

    def load(self, path: Path, options: LoadOptions | None = None) -> KernelObject:
        """See `Kernel.load`."""
        options = options or LoadOptions()
        if not path.is_file():
            raise ObjectFileError(f"BPF object {path}", "no such file", "build it with `make -C kernel`")
        handle = libbpf.ObjectHandle(path, options.pin_dir)
        try:
            programs, maps = handle.program_pointers(), handle.map_pointers()
            for name, pointer in programs.items():
                if name in options.skip or (options.only is not None and name not in options.only):
                    handle.skip_program(pointer)
            for name, entries in (options.max_entries or {}).items():
                if name in maps:
                    handle.set_max_entries(maps[name], entries)
            if options.constants:
                handle.set_constants(options.constants)
            result, said = handle.load()
            if result:
                raise _load_error(path, -result, said)
            return KernelObject(
                {n: KernelMap(_duplicate(fd)) for n, p in maps.items() if (fd := handle.map_fd(p)) >= 0},
                {n: KernelProgram(_duplicate(fd), n) for n, p in programs.items() if (fd := handle.program_fd(p)) >= 0},
            )
        finally:
            handle.close()

    def create_map(self, spec: MapSpec) -> KernelMap:
        """See `Kernel.create_map`."""
        fd = libbpf.map_create(spec.type, spec.name, spec.key_size, spec.value_size, spec.max_entries, spec.flags)
        if fd < 0:
            raise from_errno(f"create map {spec.name}", -fd)
        return KernelMap(fd)

    def pinned_map(self, path: Path) -> KernelMap:
        """See `Kernel.pinned_map`."""
        return KernelMap(_pinned("map", path))

    def map_by_id(self, number: int) -> KernelMap:
        """See `Kernel.map_by_id`."""
        fd = libbpf.fd_by_id("map", number)
        if fd < 0:
            raise from_errno(f"open map {number}", -fd)
        return KernelMap(fd)

    def pinned_program(self, path: Path) -> KernelProgram:
        """See `Kernel.pinned_program`."""
        return KernelProgram(_pinned("program", path))

    def pinned_link(self, path: Path) -> KernelLink:
        """See `Kernel.pinned_link`."""
        return KernelLink(_pinned("link", path))

    def attach_cgroup(self, program: Program, cgroup: Path, attach_type: AttachType) -> KernelLink:
        """See `Kernel.attach_cgroup`."""
        what = f"attach {program.name} to cgroup {cgroup}"
        try:
            fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as cause:
            raise from_errno(what, errno.ENODEV if cause.errno == errno.ENOENT else cause.errno or 0) from cause
        try:
            link = libbpf.link_create(program.fd, fd, attach_type)
        finally:
            os.close(fd)
        if link < 0:
            raise from_errno(what, -link)
        return KernelLink(link)

    def attach_tcx(self, program: Program, ifindex: int, attach_type: AttachType) -> KernelLink:
        """See `Kernel.attach_tcx`."""
        what = f"attach {program.name} to interface {ifindex} ({attach_type.name.lower()})"
        link = libbpf.link_create(program.fd, ifindex, attach_type)
        if link == -errno.EINVAL:  # a kernel that knows tcx says ENODEV, EPERM or EBUSY, never EINVAL, to this form
            raise UnsupportedFeatureError(what, "the kernel has no tcx links (Linux 6.6)", "use clsact", errno.EINVAL)
        if link < 0:
            raise from_errno(what, -link)
        return KernelLink(link)

    def attach_clsact(self, program: Program, ifindex: int, attach_type: AttachType) -> None:
        """See `Kernel.attach_clsact`."""
        result = libbpf.tc_attach(ifindex, attach_type == AttachType.TCX_EGRESS, program.fd)
        if result:
            raise from_errno(f"attach {program.name} under clsact of interface {ifindex}", -result)

    def query_clsact(self, ifindex: int, attach_type: AttachType) -> int | None:
        """See `Kernel.query_clsact`."""
        result = libbpf.tc_query(ifindex, attach_type == AttachType.TCX_EGRESS)
        if result in (-errno.ENOENT, -errno.EINVAL):  # no filter of ours; no clsact at all
            return None
        if result < 0:
            raise from_errno(f"query clsact of interface {ifindex}", -result)
        return result

    def detach_clsact(self, ifindex: int, attach_type: AttachType) -> bool:
        """See `Kernel.detach_clsact`."""
        result = libbpf.tc_detach(ifindex, attach_type == AttachType.TCX_EGRESS)
        if result not in (0, -errno.ENOENT, -errno.EINVAL):
            raise from_errno(f"detach from clsact of interface {ifindex}", -result)
        return result == 0

    def ring(self, source: Map) -> KernelRing:
        """See `Kernel.ring`."""
        return KernelRing(source)

    def programs(self) -> Iterator[ProgramInfo]:
        """See `Kernel.programs`."""
        for fd in _by_id("prog"):
            yield _program_info(fd)

    def maps(self) -> Iterator[MapInfo]:
        """See `Kernel.maps`."""
        for fd in _by_id("map"):
            raw = libbpf.map_info(fd)
            if not isinstance(raw, int):
                name = raw.name.decode("ascii", "replace")
                yield MapInfo(
                    raw.id, name, raw.type, raw.key_size, raw.value_size, raw.max_entries, raw.map_flags
                )  # fmt: skip

    def links(self) -> Iterator[LinkInfo]:
        """See `Kernel.links`."""
        for fd in _by_id("link"):
            yield _link_info(fd)

    def statistics(self) -> Closable:
        """See `Kernel.statistics`."""
        fd = libbpf.enable_statistics()
        if fd < 0:
            raise from_errno("enable run-time statistics", -fd)
        return Descriptor(fd)


def _duplicate(fd: int) -> int:
    return int(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0))


def _pinned(what: str, path: Path) -> int:
    fd = libbpf.obj_get(path)
    if fd == -errno.ENOENT:
        raise NotPinnedError(f"{what} {path}", "nothing is pinned there", "is the agent running on this node?", -fd)
    if fd < 0:
        raise from_errno(f"open pinned {what} {path}", -fd)
    return fd


def _by_id(kind: str) -> Iterator[int]:
    number = 0
    while (number := libbpf.next_id(kind, number)) > 0:
        fd = libbpf.fd_by_id(kind, number)
        if fd == -errno.ENOENT:  # gone between the two calls
            continue
        if fd < 0:
            raise from_errno(f"open {kind} {number}", -fd)
        try:
            yield fd
        finally:
            os.close(fd)
    if number not in (0, -errno.ENOENT):
        raise from_errno(f"list {kind}s", -number)


def _program_info(fd: int) -> ProgramInfo:
    result = libbpf.program_info(fd)
    if isinstance(result, int):
        raise from_errno("program information", -result)
    raw, map_ids = result
    return ProgramInfo(
        raw.id, raw.name.decode("ascii", "replace"), raw.type, bytes(raw.tag).hex(), raw.jited_prog_len,
        raw.xlated_prog_len, raw.verified_insns, raw.load_time, raw.run_time_ns, raw.run_cnt, raw.recursion_misses,
        map_ids,
    )  # fmt: skip


_LINK_CGROUP, _LINK_TCX = 3, 11  # enum bpf_link_type


def _link_info(fd: int) -> LinkInfo:
    raw = libbpf.link_info(fd)
    if isinstance(raw, int):
        raise from_errno("link information", -raw)
    if raw.type == _LINK_CGROUP:
        return LinkInfo(
            raw.id, raw.type, raw.prog_id, raw.of.cgroup.attach_type, cgroup_id=raw.of.cgroup.cgroup_id
        )  # fmt: skip
    if raw.type == _LINK_TCX:
        return LinkInfo(raw.id, raw.type, raw.prog_id, raw.of.device.attach_type, ifindex=raw.of.device.ifindex)
    return LinkInfo(raw.id, raw.type, raw.prog_id, 0)


_LOG = re.compile(r"prog '([^']+)': -- BEGIN PROG LOAD LOG --\n(.*)-- END PROG LOAD LOG --", re.DOTALL)


def _load_error(path: Path, number: int, said: list[str]) -> BpfError:
    """What a failed load means: libbpf returns one errno for many causes and tells them apart only in its messages."""
    for text in said:
        if found := _LOG.search(text):
            if number == errno.EPERM and not found[2].strip():
                return PermissionDeniedError(f"load {path}", os.strerror(number), "run as root", number)
            return VerifierError(found[1], found[2], number)
    what = f"load {path}"
    if any("reuse pinned map" in text for text in said):
        why = "; ".join(text.removeprefix("libbpf: ") for text in said if "reuse pinned map" in text)
        return IncompatibleMapError(
            what, why, "the layout changed since the map was made: detach the node and remove its pins", number
        )
    if any("CO-RE relocating" in text or "failed to perform CO-RE" in text for text in said):
        return UnsupportedFeatureError(what, "; ".join(said[-3:]), "the kernel lacks BTF or a needed field", number)
    error = from_errno(what, number)
    if isinstance(error, (KeyExistsError, KeyMissingError, MapFullError)) or type(error) is BpfError:
        return ObjectFileError(what, "; ".join(said[-3:]) or error.why, "", number)
    return error
