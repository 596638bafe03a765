"""The only ctypes over libbpf (1.1 or later) and over setns(2): plain functions on integers and bytes.

Nothing here decides anything; `kernel` makes objects of it. Functions return what libbpf returns: 0 or more, or
a negative errno, unless they say that they raise. Structs of *this project* are not typed here (`nodeagent.abi`).
"""

from __future__ import annotations

import ctypes as c
import errno
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from nodeagent.bpf.abc import LibbpfMessage
from nodeagent.bpf.errors import ObjectFileError, PermissionDeniedError, UnsupportedFeatureError
from nodeagent.bpf.structures import (
    BatchOpts,
    MapCreateOpts,
    ObjectOpenOpts,
    RawLinkInfo,
    RawMapInfo,
    RawProgramInfo,
    TcHook,
    TcOpts,
    TestRunOpts,
)

_u32, _u64, _int, _size, _ptr, _str = c.c_uint32, c.c_uint64, c.c_int, c.c_size_t, c.c_void_p, c.c_char_p

_PrintFn = c.CFUNCTYPE(_int, _int, _str, _ptr)
_SampleFn = c.CFUNCTYPE(_int, _ptr, _ptr, _size)

_PROTOTYPES: dict[str, tuple[object, tuple[object, ...]]] = {
    "libbpf_set_print": (_ptr, (_PrintFn,)),
    "libbpf_num_possible_cpus": (_int, ()),
    "libbpf_probe_bpf_helper": (_int, (_int, _int, _ptr)),
    "libbpf_probe_bpf_map_type": (_int, (_int, _ptr)),
    "bpf_object__open_file": (_ptr, (_str, _ptr)),
    "bpf_object__load": (_int, (_ptr,)),
    "bpf_object__close": (None, (_ptr,)),
    "bpf_object__next_program": (_ptr, (_ptr, _ptr)),
    "bpf_object__next_map": (_ptr, (_ptr, _ptr)),
    "bpf_object__btf": (_ptr, (_ptr,)),
    "bpf_program__name": (_str, (_ptr,)),
    "bpf_program__fd": (_int, (_ptr,)),
    "bpf_program__set_autoload": (_int, (_ptr, c.c_bool)),
    "bpf_map__name": (_str, (_ptr,)),
    "bpf_map__fd": (_int, (_ptr,)),
    "bpf_map__is_internal": (c.c_bool, (_ptr,)),
    "bpf_map__set_max_entries": (_int, (_ptr, _u32)),
    "bpf_map__set_pin_path": (_int, (_ptr, _str)),
    "bpf_map__initial_value": (_ptr, (_ptr, c.POINTER(_size))),
    "btf__type_cnt": (_u32, (_ptr,)),
    "btf__type_by_id": (_ptr, (_ptr, _u32)),
    "btf__name_by_offset": (_str, (_ptr, _u32)),
    "bpf_map_create": (_int, (_int, _str, _u32, _u32, _u32, _ptr)),
    "bpf_map_lookup_elem_flags": (_int, (_int, _str, _ptr, _u64)),
    "bpf_map_lookup_and_delete_elem": (_int, (_int, _str, _ptr)),
    "bpf_map_update_elem": (_int, (_int, _str, _str, _u64)),
    "bpf_map_delete_elem": (_int, (_int, _str)),
    "bpf_map_get_next_key": (_int, (_int, _str, _ptr)),
    "bpf_map_lookup_batch": (_int, (_int, _ptr, _ptr, _ptr, _ptr, c.POINTER(_u32), _ptr)),
    "bpf_map_update_batch": (_int, (_int, _str, _str, c.POINTER(_u32), _ptr)),
    "bpf_obj_pin": (_int, (_int, _str)),
    "bpf_obj_get": (_int, (_str,)),
    "bpf_link_create": (_int, (_int, _int, _int, _ptr)),
    "bpf_link_update": (_int, (_int, _int, _ptr)),
    "bpf_link_detach": (_int, (_int,)),
    "bpf_prog_get_next_id": (_int, (_u32, c.POINTER(_u32))),
    "bpf_map_get_next_id": (_int, (_u32, c.POINTER(_u32))),
    "bpf_link_get_next_id": (_int, (_u32, c.POINTER(_u32))),
    "bpf_prog_get_fd_by_id": (_int, (_u32,)),
    "bpf_map_get_fd_by_id": (_int, (_u32,)),
    "bpf_link_get_fd_by_id": (_int, (_u32,)),
    "bpf_obj_get_info_by_fd": (_int, (_int, _ptr, c.POINTER(_u32))),
    "bpf_prog_test_run_opts": (_int, (_int, _ptr)),
    "bpf_prog_load": (_int, (_int, _str, _str, _str, _size, _ptr)),
    "bpf_enable_stats": (_int, (_int,)),
    "bpf_tc_hook_create": (_int, (_ptr,)),
    "bpf_tc_attach": (_int, (_ptr, _ptr)),
    "bpf_tc_detach": (_int, (_ptr, _ptr)),
    "bpf_tc_query": (_int, (_ptr, _ptr)),
    "ring_buffer__new": (_ptr, (_int, _SampleFn, _ptr, _ptr)),
    "ring_buffer__free": (None, (_ptr,)),
    "ring_buffer__consume": (_int, (_ptr,)),
    "ring_buffer__epoll_fd": (_int, (_ptr,)),
}

_libc = c.CDLL(None, use_errno=True)
_libc.setns.argtypes = [_int, _int]
_libc.vsnprintf.argtypes = [_ptr, _size, _ptr, _ptr]
_CLONE_NEWNET = 0x40000000
_LOG_ROOM = 16 << 20  # the verifier's longest log, BPF_LOG_BUF_SIZE
_library: c.CDLL | None = None
_collected: list[tuple[int, str]] | None = None
_message_handler: LibbpfMessage | None = None


def _on_print(level: int, text: bytes | None, arguments: int | None) -> int:
    """Collects libbpf's messages. They may be the only place where the cause of an error is told."""
    room = _LOG_ROOM if text and b"LOAD LOG" in text else 4096
    buffer = c.create_string_buffer(room)
    _libc.vsnprintf(buffer, room, c.cast(c.c_char_p(text), _ptr), arguments)
    message = buffer.value.decode("utf-8", "replace").rstrip("\n")
    if _collected is not None:
        _collected.append((level, message))
    if _message_handler is not None and level < 2:
        _message_handler(level, message)
    return 0


_printer = _PrintFn(_on_print)  # libbpf keeps the pointer, so the object must live as long


def library() -> c.CDLL:
    """libbpf, loaded at the first use so that importing this module needs no libbpf. UnsupportedFeatureError."""
    global _library
    if _library is None:
        try:
            lib = c.CDLL("libbpf.so.1", use_errno=True)
            for name, (result, arguments) in _PROTOTYPES.items():
                function = getattr(lib, name)
                function.restype = result
                function.argtypes = list(arguments)
        except (OSError, AttributeError) as cause:
            raise UnsupportedFeatureError(
                "libbpf", f"libbpf.so.1 (1.1 or later) cannot be used: {cause}", "install Debian's libbpf1 or the like"
            ) from cause
        lib.libbpf_set_print(_printer)
        _library = lib
    return _library


def set_message_handler(handler: LibbpfMessage | None) -> None:
    """Where libbpf's warnings and information go beside the errors that they explain; None: nowhere."""
    global _message_handler
    _message_handler = handler


def collect(call: Callable[[], int]) -> tuple[int, list[str]]:
    """Runs one call; its result and what libbpf said meanwhile."""
    global _collected
    _collected = []
    try:
        result = call()
        return result, [text for _, text in _collected]
    finally:
        _collected = None


def _opts(structure: c.Structure) -> c.Structure:
    structure.sz = c.sizeof(structure)
    return structure


@functools.cache
def possible_cpus() -> int:
    """How many slots a per-CPU value has."""
    return int(library().libbpf_num_possible_cpus())


def setns(fd: int) -> None:
    """Moves the calling thread into the network namespace that `fd` stands for. PermissionDeniedError, OSError."""
    if _libc.setns(fd, _CLONE_NEWNET) < 0:
        number = c.get_errno()
        if number == errno.EPERM:
            raise PermissionDeniedError("setns", os.strerror(number), "needs CAP_SYS_ADMIN", number)
        raise OSError(number, os.strerror(number), "setns")


def unshare() -> None:
    """Gives the calling thread a network namespace of its own, with only lo in it. PermissionDeniedError, OSError."""
    if _libc.unshare(_CLONE_NEWNET) < 0:
        number = c.get_errno()
        if number == errno.EPERM:
            raise PermissionDeniedError("unshare", os.strerror(number), "needs CAP_SYS_ADMIN", number)
        raise OSError(number, os.strerror(number), "unshare")


# ---- maps ----


@functools.cache
def _room(size: int) -> type[c.Array[c.c_char]]:
    """A buffer's type. Kept, because ctypes forgets an array type with its last instance, and making one is slow."""
    return c.c_char * size


def map_create(
    kind: int, name: str, key_size: int, value_size: int, entries: int, flags: int = 0, inner_fd: int = 0
) -> int:
    """Descriptor of a new map."""
    opts = _opts(MapCreateOpts(map_flags=flags, inner_map_fd=inner_fd))
    short = name.encode()[:15]
    return int(library().bpf_map_create(kind, short, key_size, value_size, entries, c.byref(opts)))


def map_lookup(fd: int, key: bytes, room: int, flags: int = 0) -> bytes | int:
    """The value's bytes, or a negative errno."""
    buffer = _room(room)()
    return library().bpf_map_lookup_elem_flags(fd, key, buffer, flags) or buffer.raw


def map_pop(fd: int, key: bytes | None, room: int) -> bytes | int:
    """Looks up and deletes; queues and stacks have no key."""
    buffer = _room(room)()
    return library().bpf_map_lookup_and_delete_elem(fd, key, buffer) or buffer.raw


def map_update(fd: int, key: bytes | None, value: bytes, flags: int = 0) -> int:
    """0 or a negative errno."""
    return int(library().bpf_map_update_elem(fd, key, value, flags))


def map_delete(fd: int, key: bytes) -> int:
    """0 or a negative errno."""
    return int(library().bpf_map_delete_elem(fd, key))


def map_next_key(fd: int, key: bytes | None, size: int) -> bytes | int:
    """The next key's bytes, or a negative errno."""
    buffer = _room(size)()
    return library().bpf_map_get_next_key(fd, key, buffer) or buffer.raw


def map_lookup_batch(
    fd: int, token: bytes | None, key_size: int, slot: int, count: int, flags: int = 0
) -> tuple[int, int, bytes, bytes, bytes]:
    """(result, number read, keys, values, next token). -ENOENT with a number: the last batch; -ENOSPC: ask for more."""
    size = max(key_size, 4)  # hash maps count buckets in it, others use a key
    before = c.create_string_buffer(token, size) if token is not None else None
    after = c.create_string_buffer(size)
    keys, values = c.create_string_buffer(key_size * count), c.create_string_buffer(slot * count)
    number = _u32(count)
    opts = _opts(BatchOpts(elem_flags=flags))
    result = int(library().bpf_map_lookup_batch(fd, before, after, keys, values, c.byref(number), c.byref(opts)))
    n = number.value if result in (0, -errno.ENOENT) else 0
    return result, n, c.string_at(keys, n * key_size), c.string_at(values, n * slot), after.raw


def map_update_batch(fd: int, keys: bytes, values: bytes, count: int, flags: int = 0) -> tuple[int, int]:
    """(result, number written)."""
    number = _u32(count)
    opts = _opts(BatchOpts(elem_flags=flags))
    result = int(library().bpf_map_update_batch(fd, keys, values, c.byref(number), c.byref(opts)))
    return result, number.value


def obj_pin(fd: int, path: Path) -> int:
    """0 or a negative errno."""
    return int(library().bpf_obj_pin(fd, os.fsencode(path)))


def obj_get(path: Path) -> int:
    """Descriptor, or a negative errno."""
    return int(library().bpf_obj_get(os.fsencode(path)))


def link_create(program_fd: int, target: int, attach_type: int) -> int:
    """Descriptor of a new link.

    target: a cgroup's descriptor, or an interface index for tcx: the two share one field
    of the system call, which is why libbpf 1.1, that does not know tcx, can make such links.
    """
    return int(library().bpf_link_create(program_fd, target, attach_type, None))


def attach(program_fd: int, target: int, attach_type: int) -> int:
    """Attaches without a link, as to a SOCKHASH; it lasts as long as the target. 0 or a negative errno."""
    return int(library().bpf_prog_attach(program_fd, target, attach_type, 0))


def link_update(link_fd: int, program_fd: int) -> int:
    """0 or a negative errno."""
    return int(library().bpf_link_update(link_fd, program_fd, None))


def link_detach(link_fd: int) -> int:
    """0 or a negative errno."""
    return int(library().bpf_link_detach(link_fd))


def map_info(fd: int) -> RawMapInfo | int:
    """The map's information, or a negative errno."""
    raw = RawMapInfo()
    return _info(fd, raw) or raw


def link_info(fd: int) -> RawLinkInfo | int:
    """The link's information, or a negative errno."""
    raw = RawLinkInfo()
    return _info(fd, raw) or raw


def program_info(fd: int) -> tuple[RawProgramInfo, tuple[int, ...]] | int:
    """The program's information and the ids of its maps, or a negative errno."""
    raw = RawProgramInfo()
    ids = (_u32 * 64)()
    raw.nr_map_ids, raw.map_ids = 64, c.addressof(ids)
    result = _info(fd, raw)
    return result or (raw, tuple(ids[: min(raw.nr_map_ids, 64)]))


def _info(fd: int, raw: c.Structure) -> int:
    size = _u32(c.sizeof(raw))
    return int(library().bpf_obj_get_info_by_fd(fd, c.byref(raw), c.byref(size)))


def next_id(kind: str, after: int) -> int:
    """The next id of a "prog", "map" or "link", or a negative errno."""
    value = _u32()
    result = int(getattr(library(), f"bpf_{kind}_get_next_id")(after, c.byref(value)))
    return result or value.value


def fd_by_id(kind: str, number: int) -> int:
    """Descriptor of the "prog", "map" or "link" with that id, or a negative errno."""
    return int(getattr(library(), f"bpf_{kind}_get_fd_by_id")(number))


def enable_statistics() -> int:
    """Descriptor that keeps run-time statistics on (BPF_STATS_RUN_TIME), or a negative errno."""
    return int(library().bpf_enable_stats(0))


def program_load(kind: int, name: str, instructions: bytes) -> int:
    """Loads raw instructions (for probes). Descriptor or a negative errno."""
    count = len(instructions) // 8
    return int(library().bpf_prog_load(kind, name.encode()[:15], b"Dual BSD/GPL", instructions, count, None))


def probe(what: str, *arguments: int) -> bool:
    """Asks one of libbpf's own behavioural probes: "helper" (program type, number) or "map_type" (number)."""
    return bool(getattr(library(), f"libbpf_probe_bpf_{what}")(*arguments, None) == 1)


def test_run(
    fd: int, data: bytes, context: bytes, repeat: int, room: int, context_back: bool
) -> tuple[int, int, bytes, bytes, int]:
    """(result, retval, packet, context, mean ns). Without context_back the kernel writes it over its input."""
    opts = _opts(TestRunOpts(repeat=repeat))
    packet = c.create_string_buffer(len(data) + room)
    given = c.create_string_buffer(context, len(context)) if context else None
    back = c.create_string_buffer(len(context)) if context and context_back else None
    held = c.create_string_buffer(data, len(data)) if data else None
    if held is not None:
        opts.data_in, opts.data_size_in = c.addressof(held), len(data)
        opts.data_out, opts.data_size_out = c.addressof(packet), len(packet)
    if given is not None:
        opts.ctx_in, opts.ctx_size_in = c.addressof(given), len(context)
    if back is not None:
        opts.ctx_out, opts.ctx_size_out = c.addressof(back), len(context)
    result = int(library().bpf_prog_test_run_opts(fd, c.byref(opts)))
    out = back or given
    size = min(opts.data_size_out, len(packet)) if held is not None else 0
    return result, opts.retval, packet.raw[:size], out.raw if out else b"", opts.duration


def packet_runner(fd: int, size: int) -> Callable[[bytes], tuple[int, int]]:
    """A test run of one packet of always the same size, in memory kept for it: (result, retval). For one thread."""
    packet = c.create_string_buffer(size)
    opts = _opts(TestRunOpts(data_in=c.addressof(packet), data_size_in=size, repeat=1))
    run, at = library().bpf_prog_test_run_opts, c.byref(opts)

    def call(data: bytes) -> tuple[int, int]:
        packet.raw = data
        opts.data_size_out = 0
        return run(fd, at), opts.retval

    return call


TC_HANDLE, TC_PRIORITY = 0x75, 0x7500  # our one filter on a hook: "u", after whatever a CNI put at low numbers


def _tc(name: str, ifindex: int, egress: bool, fields: Mapping[str, int]) -> tuple[int, TcOpts]:
    hook = _opts(TcHook(ifindex=ifindex, attach_point=2 if egress else 1))
    if name == "attach":
        created = int(library().bpf_tc_hook_create(c.byref(hook)))
        if created not in (0, -errno.EEXIST):
            return created, TcOpts()
    opts = TcOpts(handle=TC_HANDLE, priority=TC_PRIORITY, **fields)
    return int(getattr(library(), f"bpf_tc_{name}")(c.byref(hook), c.byref(_opts(opts)))), opts


def tc_attach(ifindex: int, egress: bool, program_fd: int) -> int:
    """Adds clsact if need be, and adds or replaces our filter."""
    return _tc("attach", ifindex, egress, {"prog_fd": program_fd, "flags": 1})[0]


def tc_query(ifindex: int, egress: bool) -> int:
    """Program id in our filter, or a negative errno (-ENOENT or -EINVAL when there is none)."""
    result, opts = _tc("query", ifindex, egress, {})
    return result or int(opts.prog_id)


def tc_detach(ifindex: int, egress: bool) -> int:
    """0 or a negative errno."""
    return _tc("detach", ifindex, egress, {})[0]


class RingHandle:
    """libbpf's ring consumer, records as bytes. Not for more than one thread."""

    def __init__(self, map_fd: int) -> None:
        """OSError when the map is not a ring buffer."""
        self._records: list[bytes] = []
        self._limit = 0

        def on_sample(_context: int | None, data: int, size: int) -> int:
            self._records.append(c.string_at(data, size))
            return -errno.EAGAIN if self._limit and len(self._records) >= self._limit else 0

        self._callback = _SampleFn(on_sample)  # libbpf keeps the pointer, so we must keep the object
        self._ring = library().ring_buffer__new(map_fd, self._callback, None, None)
        if not self._ring:
            raise OSError(c.get_errno(), os.strerror(c.get_errno()), "ring_buffer__new")

    @property
    def fd(self) -> int:
        """Epoll descriptor."""
        return int(library().ring_buffer__epoll_fd(self._ring))

    def drain(self, limit: int) -> list[bytes]:
        """What is there; a callback's error stops libbpf behind the record that it was given."""
        self._limit = limit
        library().ring_buffer__consume(self._ring)
        taken, self._records = self._records, []
        return taken

    def close(self) -> None:
        """Unmaps it."""
        if self._ring:
            library().ring_buffer__free(self._ring)
            self._ring = None


_KIND_VAR, _KIND_DATASEC = 14, 15  # include/uapi/linux/btf.h


class ObjectHandle:
    """A bpf_object between open and close. Descriptors belong to it: duplicate what shall outlive it."""

    def __init__(self, path: Path, pin_dir: Path | None) -> None:
        """ObjectFileError when libbpf cannot read the file."""
        self.path = path
        self._obj: int | None = None
        opts = _opts(ObjectOpenOpts(pin_root_path=os.fsencode(pin_dir) if pin_dir else None))

        def open_file() -> int:
            self._obj = library().bpf_object__open_file(os.fsencode(path), c.byref(opts))
            return 0 if self._obj else -c.get_errno()

        result, said = collect(open_file)
        if result < 0:
            why = "; ".join(said[-3:]) or (os.strerror(-result) if -result < 4000 else f"libbpf error {-result}")
            raise ObjectFileError(f"BPF object {path}", why, "build it with `make -C kernel`", -result)
        if pin_dir is None:  # libbpf would take /sys/fs/bpf
            for pointer in self.map_pointers().values():
                library().bpf_map__set_pin_path(pointer, None)

    def close(self) -> None:
        """Frees it and its descriptors."""
        if self._obj:
            library().bpf_object__close(self._obj)
            self._obj = None

    def _each(self, step: str, name: str) -> dict[str, int]:
        lib, found, at = library(), {}, None
        while at := getattr(lib, step)(self._obj, at):
            found[bytes(getattr(lib, name)(at)).decode()] = int(at)
        return found

    def program_pointers(self) -> dict[str, int]:
        """Programs by name."""
        return self._each("bpf_object__next_program", "bpf_program__name")

    def map_pointers(self) -> dict[str, int]:
        """Maps by name, internal ones (.rodata and so on) included."""
        return self._each("bpf_object__next_map", "bpf_map__name")

    def skip_program(self, pointer: int) -> None:
        """Leaves a program out of the load."""
        library().bpf_program__set_autoload(pointer, False)

    def set_max_entries(self, pointer: int, entries: int) -> None:
        """Sizes a map before the load."""
        library().bpf_map__set_max_entries(pointer, entries)

    def load(self) -> tuple[int, list[str]]:
        """(0 or a negative errno, libbpf's messages, verifier logs among them)."""
        return collect(lambda: int(library().bpf_object__load(self._obj)))

    def program_fd(self, pointer: int) -> int:
        """Descriptor, negative when it was not loaded."""
        return int(library().bpf_program__fd(pointer))

    def map_fd(self, pointer: int) -> int:
        """Descriptor, -1 for internal maps, which nobody outside needs."""
        return -1 if library().bpf_map__is_internal(pointer) else int(library().bpf_map__fd(pointer))

    def set_constants(self, values: Mapping[str, bytes]) -> None:
        """Sets `const volatile` variables by name before the load. ObjectFileError: no such variable, or its size."""
        places = self._variables(".rodata")
        region = next((p for name, p in self.map_pointers().items() if name.endswith(".rodata")), None)
        size = _size()
        start = library().bpf_map__initial_value(region, c.byref(size)) if region else None
        for name, value in values.items():
            offset, length = places.get(name, (0, 0))
            if start is None or length != len(value) or offset + length > size.value:
                raise ObjectFileError(
                    f"constant {name} of {self.path}",
                    f"the object has {length} bytes for it, given are {len(value)}",
                    "object and agent are of different builds",
                )
            c.memmove(start + offset, value, length)

    def _variables(self, section: str) -> dict[str, tuple[int, int]]:
        """(offset, size) of each variable of a data section, out of the object's BTF."""
        lib, found = library(), {}
        btf = lib.bpf_object__btf(self._obj)
        if not btf:
            return {}

        def words(pointer: int, count: int) -> tuple[int, ...]:
            return tuple((_u32 * count).from_address(pointer))

        for number in range(1, int(lib.btf__type_cnt(btf))):
            at = int(lib.btf__type_by_id(btf, number))
            name_at, kind, _ = words(at, 3)
            if kind >> 24 & 31 != _KIND_DATASEC or bytes(lib.btf__name_by_offset(btf, name_at)).decode() != section:
                continue
            for i in range(kind & 0xFFFF):
                variable, offset, size = words(at + 12 + 12 * i, 3)
                inner = words(int(lib.btf__type_by_id(btf, variable)), 2)
                if inner[1] >> 24 & 31 == _KIND_VAR:
                    found[bytes(lib.btf__name_by_offset(btf, inner[0])).decode()] = (offset, size)
        return found
