"""The core inside the kernel (kernel/test/core_test.bpf.c): asked through shared memory, answered by a test run."""

from __future__ import annotations

import ctypes as c
from typing import Any, Final

from nodeagent.abi import btf
from nodeagent.bpf.abc import Kernel
from nodeagent.core.libcore import Core
from tests.support.abi_layout import dump
from tests.support.tiers import repository

OBJECT: Final = repository() / "kernel" / "build" / "test" / "core_test.bpf.o"
_SIZES: Final = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "char": 1}
_WANTED: Final = ("up_test", "up_scratch", "up_core_head", "up_core_line", "up_shift")


def _layouts() -> dict[str, tuple[int, dict[str, tuple[int, int]]]]:
    """Structure -> (size, field -> (offset, size)), of the object itself."""
    data = dump(OBJECT)
    names = {t["id"]: t for t in data["types"]}
    kept = [t for t in names.values() if t["kind"] != "STRUCT" or t["name"] in _WANTED or _inner(t["name"])]
    found = btf.structures({"types": kept})
    out: dict[str, tuple[int, dict[str, tuple[int, int]]]] = {}
    for name in _WANTED:
        size, fields = found[name]
        ends = [offset for _, offset, _, _ in fields[1:]] + [size]
        out[name] = (size, {f[0]: (f[1], end - f[1]) for f, end in zip(fields, ends, strict=True)})
    return out


def _inner(name: str) -> bool:
    return name.startswith("up_") and name not in ("up_copy", "up_step", "up_feed", "up_walk", "up_find")


class CoreInKernel:
    """One question at a time. `test` and `heads` are the memory of struct up_test and struct up_scratch."""

    def __init__(self, kernel: Kernel) -> None:
        self.object = kernel.load(OBJECT)
        maps = self.object.maps
        self.test, self.heads = maps["test"].view(), maps["test_head"].view()
        self.responses, self.program = maps["test_response"].view(), maps["test_program"].view()
        self.layout = _layouts()
        self.fields = self.layout["up_test"][1]

    def close(self) -> None:
        """Gives everything back."""
        for view in (self.test, self.heads, self.responses, self.program):
            view.release()
        self.object.close()

    def run(self, name: str) -> None:
        """Runs one of the programs."""
        done = self.object.programs[f"up_test_{name}"].test_run()
        assert done.retval == 0, (name, done.retval)

    def set(self, name: str, value: int | bytes) -> None:
        """Writes a field of struct up_test."""
        offset, size = self.fields[name]
        data = value.to_bytes(size, "little") if isinstance(value, int) else value
        self.test[offset : offset + len(data)] = data

    def get(self, name: str) -> bytes:
        """Reads a field of struct up_test."""
        offset, size = self.fields[name]
        return bytes(self.test[offset : offset + size])

    def number(self, name: str) -> int:
        """Reads a signed number of 32 bits."""
        offset, _ = self.fields[name]
        return int.from_bytes(self.test[offset : offset + 4], "little", signed=True)

    def head(self, data: bytes) -> tuple[int, bytes, bytes]:
        """(up_reason, struct up_core_head, its lines) of a head at the beginning of `data`."""
        self.heads[: len(data)] = data
        self.set("n", len(data))
        self.run("head")
        head = self.get("head")
        count = int.from_bytes(head[self.lines_at : self.lines_at + 4], "little")
        start, size = self.fields["lines"][0], self.layout["up_core_line"][0]
        return self.number("result"), head, bytes(self.test[start : start + count * size])

    @property
    def lines_at(self) -> int:
        """Where n_lines stands in struct up_core_head."""
        return self.layout["up_core_head"][1]["n_lines"][0]

    def match(self) -> int:
        """Route index, or minus an up_reason, of the last head in the last program."""
        self.run("match")
        return self.number("result")

    def feed(self, response: Any, data: bytes) -> int:
        """`up_response_feed` over a response in the tests' own memory, which is changed as the kernel changed it."""
        self.set("response", response.raw())
        self.responses[: len(data)] = data
        self.set("n", len(data))
        self.run("feed")
        changed = self.get("response")[: response.size]
        response.memory[response.at : response.at + response.size] = changed
        return self.number("result")


class NativeCore:
    """The same questions to libcore.so."""

    def __init__(self, core: Core, layout: dict[str, Any]) -> None:
        self.lib = core.lib
        self.scratch = self.lib.up_core_scratch_new()
        self._head = c.create_string_buffer(layout["up_core_head"][0])
        self._line = c.create_string_buffer(layout["up_core_line"][0])

    def close(self) -> None:
        """Frees its memory."""
        self.lib.up_core_scratch_free(self.scratch)

    def head(self, data: bytes) -> tuple[int, bytes, bytes]:
        """See `CoreInKernel.head`."""
        reason = self.lib.up_core_head(self.scratch, data, len(data), self._head)
        lines: list[bytes] = []
        while self.lib.up_core_line(self.scratch, len(lines), self._line):
            lines.append(self._line.raw)
        return reason, self._head.raw, b"".join(lines)

    def match(self, program: Any) -> int:
        """See `CoreInKernel.match`."""
        return int(self.lib.up_core_match(program.memory, self.scratch))
