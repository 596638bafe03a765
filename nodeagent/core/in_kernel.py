"""The core as the verifier accepted it, asked for single heads: a `HeadReader` whose answers the kernel gives.

For `underpass test equivalence` and tests; no part of a node's data path. The programs are those of
kernel/test/core_test.bpf.c, which share memory with whoever asks; their `struct up_test` begins with the fields below.
"""

from __future__ import annotations

import struct
from typing import Final

from nodeagent.abi.numbers import HEAD_MAX, HOST_MAX, LINES_MAX
from nodeagent.bpf import objects
from nodeagent.bpf.abc import Kernel
from nodeagent.bpf.errors import BpfError
from nodeagent.core.libcore import FLAG_PORT, Core, Head, HeadReader, RouteProgram

OBJECT: Final = "test/core_test.bpf.o"
#: Offsets in `struct up_test`: n, random, result, n_domains, head, lines, domains.
AT_N, AT_RESULT, AT_N_DOMAINS, AT_HEAD, AT_LINES = 0, 8, 12, 16, 64
_HEAD, _LINE = struct.Struct("<IIIIQIIIIII"), struct.Struct("<IIII")
AT_DOMAINS: Final = AT_LINES + LINES_MAX * _LINE.size


class KernelHeadReader(HeadReader):
    """Parses heads and matches the last one inside the kernel. One at a time; `close` gives the programs back."""

    def __init__(self, core: Core, kernel: Kernel) -> None:
        """Raises BpfError where programs cannot be loaded, ObjectFileError when they were not built."""
        super().__init__(core)
        self._object = kernel.load(objects.find(OBJECT))
        maps = self._object.maps
        self._test, self._bytes = maps["test"].view(), maps["test_head"].view()
        self._program = maps["test_program"].view()
        self._programs = self._object.programs
        self._last = Head(1, 0, 0, 0, 0, 0, 0, 0, 0)
        self._loaded: RouteProgram | None = None
        self._domains: list[bytes] | None = None  # the program that tells them uses them up

    def close(self) -> None:
        """Unloads the programs."""
        for view in (self._test, self._bytes, self._program):
            view.release()
        self._object.close()

    def parse(self, data: bytes) -> Head:
        """See `HeadReader.parse`."""
        data = data[:HEAD_MAX]
        self._bytes[: len(data)] = data
        self._test[AT_N : AT_N + 4] = len(data).to_bytes(4, "little")
        self._run("head")
        self._domains = None
        reason, size, method, flags, length, path, path_len, target_len, _, _, lines = _HEAD.unpack_from(
            self._test, AT_HEAD
        )
        self._last = Head(reason, size, method, flags, length, path, path + path_len, path + target_len, lines)
        return self._last

    @property
    def has_port(self) -> bool:
        """See `HeadReader.has_port`."""
        return bool(self._last.flags & FLAG_PORT)

    def header_lines(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """See `HeadReader.header_lines`."""
        found = []
        for index in range(self._last.lines):
            name, name_len, value, value_len = _LINE.unpack_from(self._test, AT_LINES + index * _LINE.size)
            found.append((data[name : name + name_len], data[value : value + value_len]))
        return found

    def domains(self) -> list[bytes]:
        """See `HeadReader.domains`."""
        if self._domains is None:
            self._run("domains")
            count = int.from_bytes(self._test[AT_N_DOMAINS : AT_N_DOMAINS + 4], "little")
            starts = range(AT_DOMAINS, AT_DOMAINS + count * HOST_MAX, HOST_MAX)
            self._domains = [bytes(self._test[at : at + HOST_MAX]) for at in starts]
        return self._domains

    def host(self) -> bytes:
        """See `HeadReader.host`."""
        return self.domains()[0].rstrip(b"\0")

    def match(self, program: RouteProgram) -> int:
        """See `HeadReader.match`."""
        if program is not self._loaded:
            image = program.view()
            self._program[: len(image)] = image
            self._loaded = program
        self._run("match")
        return int.from_bytes(self._test[AT_RESULT : AT_RESULT + 4], "little", signed=True)

    def _run(self, name: str) -> None:
        done = self._programs[f"up_test_{name}"].test_run()
        if done.retval:
            raise BpfError(f"program up_test_{name}", f"returned {done.retval}", "a bug of this build")
