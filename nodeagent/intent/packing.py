"""Automata and route predicates as the kernel's `struct up_program` (pure).

All automata of a program share state numbers, byte classes and one table of cells: state s finds its edge for class c
in `cells[base(s) + c]`, which is s's own only if `check` says so (row displacement). State 0 is dead.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from nodeagent.abi import numbers as n
from nodeagent.abi.codec import offset_of
from nodeagent.abi.layout import STRUCTS
from nodeagent.abi.records import Action
from nodeagent.errors import CapacityError
from nodeagent.intent.automaton import Automaton

_Key = TypeVar("_Key", bound=Hashable)

PROGRAM_SIZE: Final = STRUCTS["up_program"][0]
ACTION_SIZE: Final = STRUCTS["up_action"][0]
ANY_METHOD: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class HeaderRule:
    """A header that some route looks at.

    automaton: of its value, None when only presence counts; bits: the predicate bit of each of the automaton's
    patterns; present: the bit of being there, 0 when nobody asks.
    """

    name: bytes
    present: int
    automaton: Automaton | None
    bits: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RouteRule:
    """Predicates of one route, and which action it takes."""

    need: int
    forbid: int
    methods: int
    action: int


@dataclass(frozen=True, slots=True)
class Image:
    """A packed program without its actions: (offset, bytes) of each filled array, and how many actions it has."""

    parts: tuple[tuple[int, bytes], ...]
    actions: int


def name_hash(name: bytes) -> int:
    """`up_name_hash()` of a lower-case header name: FNV-1a, a filter only."""
    value = 2166136261
    for byte in name:
        value = (value ^ byte) * 16777619 & 0xFFFFFFFF
    return value


def pack(path: Automaton, headers: Sequence[HeaderRule], routes: Sequence[RouteRule], actions: int) -> Image:
    """The image of a program. `path`'s patterns are the routes. Raises CapacityError naming the budget."""
    _budget(len(headers), n.HEADERS, "header names")
    _budget(len(routes), n.ROUTES, "routes")
    states: list[tuple[dict[int, int], int, int]] = [({}, 0, 0)]
    sets: dict[tuple[int, ...], int] = {}
    bitsets: dict[int, int] = {}
    path_start = _place(path, states, lambda matched: _numbered(sets, tuple(sorted(matched))) if matched else 0)
    header_bytes = b""
    for header in headers:
        start = 0
        if header.automaton is not None:

            def accept(matched: frozenset[int], bits: tuple[int, ...] = header.bits) -> int:
                value = 0
                for i in matched:
                    value |= bits[i]
                return _numbered(bitsets, value) if value else 0

            start = _place(header.automaton, states, accept)
        _budget(len(header.name), n.NAME_MAX, f"bytes of the header name {header.name.decode()!r}")
        header_bytes += struct.pack(
            f"=IHHQ{n.NAME_MAX}s", name_hash(header.name), len(header.name), start, header.present, header.name
        )
    _budget(len(states), n.STATES, "automaton states")
    _budget(len(sets) + 1, n.SETS, "distinct sets of routes")
    _budget(len(bitsets) + 1, n.BITSETS, "distinct sets of header predicates")
    classes, state_bytes, cell_bytes = _displace(states)
    set_bytes, candidates = struct.pack("=HH", 0, 0), array("H")
    for members in sets:
        _budget(len(members), n.CANDIDATES_MAX, "routes that one path can match")
        set_bytes += struct.pack("=HH", len(candidates), len(members))
        candidates.extend(members)
        _budget(len(candidates), n.CANDIDATES, "candidate routes of all sets")
    route_bytes = b"".join(struct.pack("=QQII", r.need, r.forbid, r.methods, r.action) for r in routes)
    head = struct.pack("=IIII", n.ABI_VERSION, len(routes), len(headers), path_start)
    bitset_bytes = struct.pack("=Q", 0) + b"".join(struct.pack("=Q", bits) for bits in bitsets)
    parts = [
        (offset_of("up_program", "version"), head),
        (offset_of("up_program", "class_of"), classes),
        (offset_of("up_program", "headers"), header_bytes),
        (offset_of("up_program", "states"), state_bytes),
        (offset_of("up_program", "cells"), cell_bytes),
        (offset_of("up_program", "sets"), set_bytes),
        (offset_of("up_program", "bitsets"), bitset_bytes),
        (offset_of("up_program", "candidates"), candidates.tobytes()),
        (offset_of("up_program", "routes"), route_bytes),
    ]
    return Image(tuple(parts), actions)


def digest(image: Image, actions: Sequence[Action]) -> str:
    """What names a program: a hash over all that it says."""
    state = hashlib.blake2b(digest_size=12)
    for offset, part in image.parts:
        state.update(struct.pack("=II", offset, len(part)) + part)
    for action in actions:
        state.update(action.pack())
    return state.hexdigest()


def assemble(image: Image, actions: Sequence[Action]) -> bytes:
    """The map value: image and actions. `len(actions)` must be what the image was packed for."""
    if len(actions) != image.actions:
        raise CapacityError(f"the program was packed for {image.actions} actions, not {len(actions)}")
    value = bytearray(PROGRAM_SIZE)
    for offset, part in image.parts:
        value[offset : offset + len(part)] = part
    at = offset_of("up_program", "actions")
    for action in actions:
        value[at : at + ACTION_SIZE] = action.pack()
        at += ACTION_SIZE
    return bytes(value)


def _budget(used: int, limit: int, what: str) -> None:
    if used > limit:
        raise CapacityError(f"{used} {what}, the kernel's route program holds {limit}")


def _numbered(table: dict[_Key, int], key: _Key) -> int:
    return table.setdefault(key, len(table) + 1)


def _place(
    automaton: Automaton, states: list[tuple[dict[int, int], int, int]], accept: Callable[[frozenset[int]], int]
) -> int:
    """Append an automaton's states; returns the global number of its start.

    States from which nothing can ever be accepted become state 0.
    """
    accepts = [accept(state.matched) for state in automaton.states]
    numbers = []
    following = len(states)
    for i, state in enumerate(automaton.states):
        if not state.edges and state.fallback == i and not accepts[i]:
            numbers.append(0)
        else:
            numbers.append(following)
            following += 1
    for i, state in enumerate(automaton.states):
        if numbers[i]:
            edges = {byte: numbers[target] for byte, target in state.edges.items()}
            states.append((edges, numbers[state.fallback], accepts[i]))
    return numbers[automaton.start]


class _Free:
    """The lowest free slot at or above a number, in nearly constant time: taken slots point beyond themselves."""

    def __init__(self, slots: int) -> None:
        self._next = list(range(slots + 1))

    def at(self, slot: int) -> int:
        """The lowest free slot >= `slot`; the number of slots when there is none."""
        root = slot
        while self._next[root] != root:
            root = self._next[root]
        while self._next[slot] != root:
            self._next[slot], slot = root, self._next[slot]
        return root

    def take(self, slot: int) -> None:
        """The slot is in use now."""
        self._next[slot] = slot + 1


def _displace(states: Sequence[tuple[dict[int, int], int, int]]) -> tuple[bytes, bytes, bytes]:
    """Byte classes, states and cells. Bytes that lead to the same state from everywhere are one class."""
    columns: dict[int, list[tuple[int, int]]] = {}
    for number, (edges, _, _) in enumerate(states):
        for byte, target in edges.items():
            columns.setdefault(byte, []).append((number, target))
    classes: dict[tuple[tuple[int, int], ...], int] = {(): 0}
    class_of = bytearray(256)
    for byte in range(256):
        column = tuple(columns.get(byte, ()))
        # 256 bytes may be 256 classes, and a class that no state has an edge for is 0: at most 255 others remain
        class_of[byte] = classes.setdefault(column, len(classes)) & 0xFF
    if len(classes) > 256:
        raise CapacityError(f"{len(classes)} byte classes, the kernel's route program holds 256")
    width = len(classes)
    rows = []
    for number, (edges, _, _) in enumerate(states):
        row = {class_of[byte]: target for byte, target in edges.items()}
        if row:
            rows.append((number, sorted(row.items())))
    checks, nexts = array("H", bytes(2 * n.CELLS)), array("H", bytes(2 * n.CELLS))
    bases = [0] * len(states)
    free = _Free(n.CELLS)
    # Long rows first: they are hard to place, single edges fill the gaps.
    for number, cells_of in sorted(rows, key=lambda item: (-len(item[1]), item[0])):
        first = cells_of[0][0]
        slot = free.at(first)
        while slot - first + width <= n.CELLS and any(checks[slot - first + c] for c, _ in cells_of):
            slot = free.at(slot + 1)
        base = slot - first
        if base + width > n.CELLS:
            raise CapacityError(f"the transitions do not fit into {n.CELLS} cells")
        for c, target in cells_of:
            checks[base + c], nexts[base + c] = number, target
            free.take(base + c)
        bases[number] = base
    used = max((base for base in bases), default=0) + width
    cells = array("H")
    for i in range(used):
        cells.append(checks[i])
        cells.append(nexts[i])
    state_bytes = b"".join(
        struct.pack("=IHH", bases[i], accept, fallback) for i, (_, fallback, accept) in enumerate(states)
    )
    return bytes(class_of), state_bytes, cells.tobytes()
