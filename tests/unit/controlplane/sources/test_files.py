"""The file source: what it reads, and how soon it tells of a change."""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from controlplane.sources.files import Directory, DirectoryError, Snapshot


def names(snapshot: Snapshot) -> list[str]:
    return list(snapshot.files)


def test_which_files_count(tmp_path: Path) -> None:
    for name in ("b.yaml", "a", ".hidden", "x~", "y.swp", "#z#", "sub/c.yml", ".git/d.yaml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("kind: X\n", encoding="utf-8")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    found = names(Directory(tmp_path).read())
    assert [name for name in found if "loop" not in name] == ["a", "b.yaml", "sub/c.yml"]


def test_config_map_volume(tmp_path: Path) -> None:
    data = tmp_path / "..2024"
    data.mkdir()
    (data / "a.yaml").write_text("kind: X\n", encoding="utf-8")
    (tmp_path / "..data").symlink_to("..2024")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    assert names(Directory(tmp_path).read()) == ["a.yaml"]


def test_unreadable_content_is_a_document_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "bin").write_bytes(b"a: 1\n\xff\xfe")
    (document,) = Directory(tmp_path, label="conf/").read().files["bin"].documents
    assert document.error is not None
    assert (document.file, document.error[0]) == ("conf/bin", "not-utf8")
    assert "line 2" in document.error[1]


def test_missing_directory_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(DirectoryError, match="create it or give another"):
        Directory(tmp_path / "none").read()


def test_single_file(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("kind: X\n", encoding="utf-8")
    assert names(Directory(path).read()) == ["one.yaml"]


def test_unchanged_files_keep_their_documents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("kind: A\n", encoding="utf-8")
    (tmp_path / "b").write_text("kind: B\n", encoding="utf-8")
    directory = Directory(tmp_path)
    first = directory.read()
    (tmp_path / "b").write_text("kind: BB\n", encoding="utf-8")
    second = directory.read()
    assert second.files["a"].documents is first.files["a"].documents
    assert second.files["b"].documents[0].data == {"kind": "BB"}


def test_watch_tells_soon_and_only_of_changes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("kind: A\n", encoding="utf-8")

    async def run() -> list[float]:
        delays = []
        stream = Directory(tmp_path).watch()
        assert names(await anext(stream)) == ["a"]
        for number in range(5):
            pending = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.05)
            assert not pending.done()
            temporary = tmp_path / ".new"
            temporary.write_text(f"kind: A{number}\n", encoding="utf-8")
            os.replace(temporary, tmp_path / "a")
            begin = time.monotonic()
            snapshot = await asyncio.wait_for(pending, 5)
            delays.append(time.monotonic() - begin)
            assert snapshot.files["a"].documents[0].data == {"kind": f"A{number}"}
        return delays

    delays = sorted(asyncio.run(run()))
    assert delays[2] < 0.1, delays


def test_watch_survives_the_directory_going_away(tmp_path: Path) -> None:
    root = tmp_path / "conf"
    root.mkdir()
    (root / "a").write_text("kind: A\n", encoding="utf-8")

    async def run() -> list[str]:
        stream = Directory(root).watch()
        await anext(stream)
        pending = asyncio.ensure_future(anext(stream))
        (root / "a").unlink()
        root.rmdir()
        await asyncio.sleep(0.1)
        root.mkdir()
        (root / "b").write_text("kind: B\n", encoding="utf-8")
        snapshot = await asyncio.wait_for(pending, 5)
        return names(snapshot)

    assert asyncio.run(run()) == ["b"]


def test_a_file_that_is_being_written_is_not_read_half(tmp_path: Path) -> None:
    """A writer that truncates, and writes a little later: nobody sees the empty file."""
    path = tmp_path / "a"
    path.write_text("kind: A\n", encoding="utf-8")
    directory = Directory(tmp_path)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with path.open("w", encoding="utf-8") as stream:
                time.sleep(0.002)
                stream.write(f"kind: A{number}\n")
            time.sleep(0.03)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            (document,) = directory.read().files["a"].documents
            assert document.data["kind"].startswith("A")
            time.sleep(0.003)
    finally:
        stop.set()
        writer.join()


def test_a_large_directory_is_told_soon_of_a_replaced_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full looks far apart: what replaces, adds or removes a file is seen between them, what is written in place at
    the next one."""
    monkeypatch.setattr("controlplane.sources.files.FAST_LOOK", 0.0)
    monkeypatch.setattr("controlplane.sources.files.MIN_PERIOD", 0.01)
    for name in ("a", "sub/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("kind: A\n", encoding="utf-8")

    async def run() -> None:
        directory = Directory(tmp_path)
        stream = directory.watch()
        await anext(stream)

        async def after(act: Callable[[], object]) -> tuple[Snapshot, float]:
            pending = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.05)
            assert not pending.done()
            directory._due = time.monotonic() + 0.7  # the next full look
            begin = time.monotonic()
            act()
            snapshot = await asyncio.wait_for(pending, 5)
            return snapshot, time.monotonic() - begin

        def replace() -> None:
            (tmp_path / ".new").write_text("kind: B\n", encoding="utf-8")
            os.replace(tmp_path / ".new", tmp_path / "sub" / "b")

        snapshot, took = await after(replace)
        assert snapshot.files["sub/b"].documents[0].data == {"kind": "B"}
        assert took < 0.6
        snapshot, took = await after(lambda: (tmp_path / "c").write_text("kind: C\n", encoding="utf-8"))
        assert snapshot.files["c"].documents[0].data == {"kind": "C"}
        assert took < 0.6
        snapshot, took = await after((tmp_path / "c").unlink)
        assert names(snapshot) == ["a", "sub/b"]
        assert took < 0.6
        snapshot, took = await after(lambda: (tmp_path / "a").write_text("kind: AA\n", encoding="utf-8"))
        assert snapshot.files["a"].documents[0].data == {"kind": "AA"}
        assert took > 0.6

    asyncio.run(run())
