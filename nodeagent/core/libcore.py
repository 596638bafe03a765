"""The only ctypes over libcore.so (kernel/core/libcore.h): the code that runs in the kernel, compiled for user space.

Structures that only libcore has (`up_core_head`, `up_core_line`) are declared here; those of abi.h stay bytes, whose
layout `nodeagent.abi` knows. Not for several threads at once on one `HeadReader` or `ResponseReader`.
"""

from __future__ import annotations

import ctypes as c
from dataclasses import dataclass
from pathlib import Path

from nodeagent.abi.codec import offset_of
from nodeagent.abi.layout import STRUCTS
from nodeagent.abi.numbers import ABI_VERSION, HEAD_MAX, HOST_MAX, RSP_HEAD_MAX
from nodeagent.bpf import objects
from nodeagent.bpf.errors import ObjectFileError

_u32 = c.c_uint32

FLAG_LENGTH, FLAG_CLOSE, FLAG_EXPECT, FLAG_HOST, FLAG_PORT = 1, 2, 4, 8, 16  # UP_HEAD_* of core/head.h


class _Head(c.Structure):
    _fields_ = [
        ("reason", _u32), ("len", _u32), ("method", _u32), ("flags", _u32), ("length", c.c_uint64), ("path", _u32),
        ("path_len", _u32), ("target_len", _u32), ("host", _u32), ("host_len", _u32), ("n_lines", _u32),
    ]  # fmt: skip


class _Line(c.Structure):
    _fields_ = [("name", _u32), ("name_len", _u32), ("value", _u32), ("value_len", _u32)]


_PROTOTYPES: dict[str, tuple[object, tuple[object, ...]]] = {
    "up_core_abi_version": (_u32, ()),
    "up_core_reason_name": (c.c_char_p, (_u32,)),
    "up_core_name_hash": (_u32, (c.c_char_p, _u32)),
    "up_core_scratch_new": (c.c_void_p, ()),
    "up_core_scratch_free": (None, (c.c_void_p,)),
    "up_core_head": (c.c_int, (c.c_void_p, c.c_char_p, _u32, c.c_void_p)),
    "up_core_line": (c.c_int, (c.c_void_p, _u32, c.c_void_p)),
    "up_core_host": (c.c_void_p, (c.c_void_p,)),
    "up_core_domain": (c.c_int, (c.c_void_p, _u32, c.c_void_p)),
    "up_core_match": (c.c_int, (c.c_void_p, c.c_void_p)),
    "up_core_action_cluster": (_u32, (c.c_char_p, _u32)),
    "up_core_balance": (c.c_int, (c.c_void_p, _u32, c.c_void_p)),
    "up_core_response_begin": (None, (c.c_void_p, _u32, c.c_int)),
    "up_core_response_feed": (c.c_int, (c.c_void_p, c.c_char_p, _u32)),
    "up_core_response_over": (c.c_int, (c.c_void_p, _u32)),
    "up_core_response_pass": (None, (c.c_void_p, _u32)),
}


@dataclass(frozen=True, slots=True)
class Head:
    """A request head as the core read it. Offsets and lengths are bytes of the input.

    reason: 0, or an `up_reason` for which the rest may be unfilled; size: of the head with its empty line; body: bytes
    of the body; method: an `up_method`; flags: FLAG_*; path_end: behind the path, target_end: behind the query, too.
    """

    reason: int
    size: int
    method: int
    flags: int
    body: int
    path: int
    path_end: int
    target_end: int
    lines: int


class HeadReader:
    """Parses request heads and matches the last one, in memory of its own."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._scratch = core.lib.up_core_scratch_new()
        if not self._scratch:
            raise MemoryError("libcore scratch")
        self._out = _Head()
        self._out_at = c.byref(self._out)
        self._domain = c.create_string_buffer(HOST_MAX)

    def __del__(self) -> None:
        if getattr(self, "_scratch", None):
            self.core.lib.up_core_scratch_free(self._scratch)

    def parse(self, data: bytes) -> Head:
        """Reads a head from the beginning of `data`; bytes beyond HEAD_MAX are not looked at."""
        out = self._out
        self.core.lib.up_core_head(self._scratch, data, len(data), self._out_at)
        return Head(
            out.reason, out.len, out.method, out.flags, out.length, out.path, out.path + out.path_len,
            out.path + out.target_len, out.n_lines,
        )  # fmt: skip

    @property
    def has_port(self) -> bool:
        """Whether the last head's host came with a port."""
        return bool(self._out.flags & FLAG_PORT)

    def header_lines(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Names and values of the last head, which `data` begins with."""
        line, found = _Line(), list[tuple[bytes, bytes]]()
        while self.core.lib.up_core_line(self._scratch, len(found), c.byref(line)):
            name, value = line.name, line.value
            found.append((data[name : name + line.name_len], data[value : value + line.value_len]))
        return found

    def host(self) -> bytes:
        """The last head's host as the key of a virtual host, without padding."""
        return c.string_at(self.core.lib.up_core_host(self._scratch), HOST_MAX).rstrip(b"\0")

    def domains(self) -> list[bytes]:
        """The domains to look the last head's host up by, in order, padded to HOST_MAX."""
        found: list[bytes] = []
        while self.core.lib.up_core_domain(self._scratch, len(found), self._domain):
            found.append(self._domain.raw)
        return found

    def match(self, program: RouteProgram) -> int:
        """Index of the route for the last head, or minus an `up_reason`."""
        return int(self.core.lib.up_core_match(program.memory, self._scratch))


_PROGRAM_SIZE = STRUCTS["up_program"][0]
_ROUTES, _ACTIONS = offset_of("up_program", "routes"), offset_of("up_program", "actions")
_ROUTE_SIZE, _ACTION_SIZE = STRUCTS["up_route"][0], STRUCTS["up_action"][0]
_ROUTE_ACTION = offset_of("up_route", "action")


class RouteProgram:
    """One generation of a route program: the bytes of `struct up_program`, 8-byte aligned."""

    def __init__(self, data: bytes) -> None:
        """ObjectFileError for bytes of another size."""
        if len(data) != _PROGRAM_SIZE:
            raise ObjectFileError("route program", f"{len(data)} bytes, not {_PROGRAM_SIZE}", "builds differ")
        self._words = (c.c_uint64 * (_PROGRAM_SIZE // 8)).from_buffer_copy(data)
        self.memory = c.addressof(self._words)

    def view(self) -> memoryview:
        """The bytes, read where they are."""
        return memoryview(self._words).cast("B").toreadonly()

    def action(self, route: int) -> bytes:
        """Bytes of the `up_action` of a route that `HeadReader.match` returned."""
        view = memoryview(self._words).cast("B")
        at = _ROUTES + route * _ROUTE_SIZE + _ROUTE_ACTION
        index = int.from_bytes(view[at : at + 4], "little")
        start = _ACTIONS + index * _ACTION_SIZE
        return bytes(view[start : start + _ACTION_SIZE])


_RSP_SIZE = STRUCTS["up_response"][0]
_NEXT, _END, _LEFT = (offset_of("up_response", name) for name in ("next", "end", "left"))
_STATUS, _STATE, _FLAGS = (offset_of("up_response", name) for name in ("status", "state", "flags"))
_HEAD, _SPLIT, _LENGTH, _CHUNKS, _CLOSE = 1, 2, 3, 4, 5  # enum up_response_state
_RSPF_CLOSE, _RSPF_DONE = 8, 16
_MASK = 0xFFFFFFFF
UNBOUNDED = 1 << 62


class ResponseReader:
    """Follows the framing of one response after another. `position` counts the bytes given, modulo 2^32."""

    def __init__(self, core: Core) -> None:
        self._lib = core.lib
        self._memory = c.create_string_buffer(_RSP_SIZE)
        self._address = c.addressof(self._memory)
        self._next, self._end = (_u32.from_buffer(self._memory, at) for at in (_NEXT, _END))
        self._left = c.c_uint64.from_buffer(self._memory, _LEFT)
        self._status = c.c_uint16.from_buffer(self._memory, _STATUS)
        self._state, self._flags = (c.c_uint8.from_buffer(self._memory, at) for at in (_STATE, _FLAGS))
        self.position = 0

    def begin(self, head_only: bool) -> None:
        """A request was sent; head_only: it was HEAD."""
        self._lib.up_core_response_begin(self._address, self.position, head_only)

    def feed(self, data: bytes) -> int:
        """Takes the next bytes of the stream, up to the response's end.

        Returns how many belong to it: less than given when it is over before; what follows is not part of it.
        """
        size = len(data)
        while self._wants():
            ahead = (self._next.value - self.position) & _MASK
            if ahead >= size:
                break
            if not self._lib.up_core_response_feed(self._address, data[ahead : ahead + RSP_HEAD_MAX], size - ahead):
                break
        if self.done:
            size = min(size, self.rest())
        self.skip(size)
        return size

    def skip(self, size: int) -> None:
        """That many bytes passed which need not be looked at (see `unread`)."""
        self.position = (self.position + size) & _MASK
        self._lib.up_core_response_pass(self._address, self.position)

    def _wants(self) -> bool:
        state = self._state.value
        return state in (_HEAD, _SPLIT) or (state == _CHUNKS and not self._flags.value & _RSPF_DONE)

    @property
    def done(self) -> bool:
        """Whether the end is known."""
        return bool(self._flags.value & _RSPF_DONE)

    @property
    def over(self) -> bool:
        """Whether all of it has passed."""
        return self.done and self.rest() == 0

    def rest(self) -> int:
        """Bytes still to come of a response that is `done`."""
        return int(self._left.value) + ((self._end.value - self.position) & _MASK)

    def unread(self) -> int:
        """How many of the next bytes are sure to be body, and may be passed on without a look."""
        state = self._state.value
        if self.done:
            return self.rest()
        if state == _CHUNKS:
            return (self._next.value - self.position) & _MASK
        return UNBOUNDED if state == _CLOSE else 0

    @property
    def until_close(self) -> bool:
        """Whether the response ends with the connection, as it said."""
        return self._state.value == _CLOSE

    @property
    def lost(self) -> bool:
        """Whether the framing is not understood."""
        return self._state.value > _CLOSE

    @property
    def closing(self) -> bool:
        """Whether the connection is not to be used again."""
        return bool(self._flags.value & _RSPF_CLOSE) or self._state.value >= _CLOSE

    @property
    def status(self) -> int:
        """Status of the last whole or partial head, 0 before."""
        return int(self._status.value)


class Core:
    """libcore.so. ObjectFileError when it is missing or of another ABI version."""

    def __init__(self, path: Path | None = None) -> None:
        path = path or objects.find("libcore.so")
        try:
            self.lib = c.CDLL(str(path))
            for name, (result, arguments) in _PROTOTYPES.items():
                function = getattr(self.lib, name)
                function.restype = result
                function.argtypes = list(arguments)
        except (OSError, AttributeError) as cause:
            raise ObjectFileError(f"core {path}", str(cause), "build it with `make -C kernel`") from cause
        version = self.lib.up_core_abi_version()
        if version != ABI_VERSION:
            raise ObjectFileError(
                f"core {path}", f"its ABI version is {version}, not {ABI_VERSION}", "build it with `make -C kernel`"
            )

    def reason_name(self, reason: int) -> str:
        """Metric label of an `up_reason`; "unknown" for a number that has none."""
        name = self.lib.up_core_reason_name(reason)
        return name.decode() if name else "unknown"

    def name_hash(self, lower_case_name: bytes) -> int:
        """The hash of a header's name that route programs use."""
        return int(self.lib.up_core_name_hash(lower_case_name, len(lower_case_name)))

    def action_cluster(self, action: bytes, random: int) -> int:
        """The destination of an `up_action`, by 32 random bits; 0: one whose cluster does not exist."""
        return int(self.lib.up_core_action_cluster(action, random))

    def balance(self, cluster: bytearray, random: int) -> tuple[int, int, int]:
        """(`up_reason`, endpoint, second endpoint or 0) of an `up_cluster`, whose `turn` is counted in place."""
        out = (_u32 * 2)()
        memory = (c.c_char * len(cluster)).from_buffer(cluster)
        reason = int(self.lib.up_core_balance(c.addressof(memory), random, c.addressof(out)))
        return reason, out[0], out[1]


HEAD_LIMIT = HEAD_MAX
"""A head that is not whole after so many bytes is too long."""
