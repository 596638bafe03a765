"""What every `Map` must do, the fake and the real one: run by test_map_conformance.py and its twin in tests/bpf."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nodeagent.bpf.abc import BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, Kernel, Map, MapSpec, MapType, Mode
from nodeagent.bpf.errors import BpfError, KeyExistsError, KeyMissingError, MapFullError, SizeMismatchError

MakeMap = Callable[[MapSpec], Map]


def key(number: int) -> bytes:
    return number.to_bytes(4, "little")


class MapConformance:
    """Subclasses give `kernel`."""

    @pytest.fixture
    def make(self, kernel: Kernel) -> MakeMap:
        return kernel.create_map

    def test_hash_holds_what_was_written(self, make: MakeMap) -> None:
        m = make(MapSpec("conf_hash", MapType.HASH, 4, 12, 8))
        assert m.lookup(key(1)) is None
        assert m.next_key(None) is None
        assert list(m.items()) == []
        m.update(key(1), b"a" * 12)
        m.update(key(2), b"\0" * 12)
        m.update(key(1), b"b" * 12)
        assert m.lookup(key(1)) == b"b" * 12
        assert dict(m.items()) == {key(1): b"b" * 12, key(2): b"\0" * 12}
        assert sorted(m.keys()) == [key(1), key(2)]
        assert m.delete(key(1)) is True
        assert m.delete(key(1)) is False
        assert m.lookup(key(1)) is None

    def test_next_key_walks_everything_once(self, make: MakeMap) -> None:
        m = make(MapSpec("conf_walk", MapType.HASH, 4, 4, 64))
        for i in range(40):
            m.update(key(i), key(i))
        seen, at = [], m.next_key(None)
        while at is not None:
            seen.append(at)
            at = m.next_key(at)
        assert sorted(seen) == sorted(key(i) for i in range(40))
        assert m.next_key(key(999)) == m.next_key(None)

    def test_modes(self, make: MakeMap) -> None:
        m = make(MapSpec("conf_modes", MapType.HASH, 4, 4, 4))
        with pytest.raises(KeyMissingError):
            m.update(key(1), key(1), Mode.REPLACE)
        m.update(key(1), key(1), Mode.CREATE)
        with pytest.raises(KeyExistsError):
            m.update(key(1), key(2), Mode.CREATE)
        m.update(key(1), key(3), Mode.REPLACE)
        assert m.lookup(key(1)) == key(3)

    def test_full_is_an_error_and_drops_nothing(self, make: MakeMap) -> None:
        m = make(MapSpec("conf_full", MapType.HASH, 4, 4, 4))
        for i in range(4):
            m.update(key(i), key(i))
        with pytest.raises(MapFullError, match="conf_full"):
            m.update(key(9), key(9))
        m.update(key(0), key(7))
        assert dict(m.items()) == {key(0): key(7), key(1): key(1), key(2): key(2), key(3): key(3)}

    def test_lru_makes_room(self, make: MakeMap) -> None:
        m = make(MapSpec("conf_lru", MapType.LRU_HASH, 4, 4, 4))
        for i in range(64):
            m.update(key(i), key(i))
        assert m.lookup(key(63)) == key(63)
        assert len(list(m.items())) < 64

    def test_sizes_are_checked_before_the_kernel_sees_them(self, make: MakeMap) -> None:
        m = make(MapSpec("conf_sizes", MapType.HASH, 4, 4, 4))
        for attempt in (
            lambda: m.lookup(b"abc"),
            lambda: m.update(key(1), b"abc"),
            lambda: m.update(key(1), b"abcde"),
            lambda: m.update(b"", key(1)),
            lambda: m.delete(b"12345"),
            lambda: m.next_key(b"1"),
            lambda: m.update_many([(key(1), key(1)), (key(2), b"short")]),
        ):
            with pytest.raises(SizeMismatchError, match="conf_sizes"):
                attempt()
        assert m.lookup(key(2)) is None

    def test_array_entries_exist_always(self, make: MakeMap) -> None:
        m = make(MapSpec("conf_array", MapType.ARRAY, 4, 4, 3))
        assert m.lookup(key(2)) == key(0)
        assert m.lookup(key(3)) is None
        m.update(key(1), key(5))
        assert list(m.items()) == [(key(0), key(0)), (key(1), key(5)), (key(2), key(0))]
        with pytest.raises(BpfError):
            m.delete(key(1))
        with pytest.raises(MapFullError):
            m.update(key(3), key(1))
        with pytest.raises(KeyExistsError):
            m.update(key(1), key(1), Mode.CREATE)
        assert m.next_key(key(2)) is None
        assert m.next_key(key(99)) == key(0)

    def test_per_cpu(self, make: MakeMap) -> None:
        for kind in (MapType.PERCPU_HASH, MapType.PERCPU_ARRAY):
            m = make(MapSpec("conf_percpu", kind, 4, 4, 4))
            m.update(key(1), b"same")
            slots = m.lookup_percpu(key(1))
            assert slots is not None
            assert set(slots) == {b"same"}
            m.update_percpu(key(1), [key(i) for i in range(len(slots))])
            assert m.lookup_percpu(key(1)) == [key(i) for i in range(len(slots))]
            whole = dict(m.items())[key(1)]
            assert len(whole) == 8 * len(slots)
            with pytest.raises(SizeMismatchError):
                m.update_percpu(key(1), [b"toolong"] * len(slots))
            with pytest.raises(SizeMismatchError):
                m.update_percpu(key(1), [key(1)] * (len(slots) + 1))
        with pytest.raises(BpfError):
            make(MapSpec("conf_plain", MapType.HASH, 4, 4, 4)).lookup_percpu(key(1))

    def test_many(self, make: MakeMap) -> None:
        m = make(MapSpec("conf_many", MapType.HASH, 4, 4, 20_000))
        assert m.update_many((key(i), key(i * 3)) for i in range(10_000)) == 10_000
        assert dict(m.items()) == {key(i): key(i * 3) for i in range(10_000)}
        assert m.delete_many(key(i) for i in range(5_000, 12_000)) == 5_000
        assert sorted(m.keys()) == sorted(key(i) for i in range(5_000))
        assert m.update_many([]) == 0

    def test_items_while_entries_go(self, make: MakeMap) -> None:
        m = make(MapSpec("conf_going", MapType.HASH, 4, 4, 512))
        m.update_many((key(i), key(i)) for i in range(300))
        seen = []
        for k, _ in m.items():
            seen.append(k)
            m.delete(k)
        assert sorted(seen) == sorted(key(i) for i in range(300))
        assert m.next_key(None) is None

    def test_queue_and_stack(self, make: MakeMap) -> None:
        for kind, order in ((MapType.QUEUE, [b"1111", b"2222"]), (MapType.STACK, [b"2222", b"1111"])):
            m = make(MapSpec("conf_line", kind, 0, 4, 2))
            assert m.pop() is None
            m.push(b"1111")
            m.push(b"2222")
            with pytest.raises(MapFullError):
                m.push(b"3333")
            assert [m.pop(), m.pop(), m.pop()] == [*order, None]
            with pytest.raises(SizeMismatchError):
                m.push(b"12345")

    def test_memory_is_shared(self, make: MakeMap) -> None:
        m = make(MapSpec("conf_memory", MapType.ARRAY, 4, 12, 3, BPF_F_MMAPABLE))
        view = m.view()
        m.update(key(1), b"abcdefghijkl")
        assert bytes(view[16:28]) == b"abcdefghijkl"
        view[32:36] = b"wxyz"
        assert m.lookup(key(2)) == b"wxyz" + bytes(8)
        with pytest.raises(BpfError):
            make(MapSpec("conf_unmapped", MapType.ARRAY, 4, 12, 3)).view()

    def test_closed_map_refuses(self, make: MakeMap) -> None:
        m = make(MapSpec("conf_closed", MapType.HASH, 4, 4, 4))
        m.close()
        m.close()
        with pytest.raises(BpfError):
            m.lookup(key(1))

    def test_info(self, make: MakeMap) -> None:
        m = make(MapSpec("conf_information_long_name", MapType.HASH, 4, 12, 8, BPF_F_NO_PREALLOC))
        info = m.info
        assert (info.name, info.type, info.key_size) == ("conf_informatio", MapType.HASH, 4)
        assert (info.value_size, info.max_entries, info.flags) == (12, 8, BPF_F_NO_PREALLOC)
        assert info.id > 0
