"""A directory of YAML as a source: read it whole, then tell when it changes.  The only I/O of this room.

Watching is by looking: one ``stat`` of each file every few tens of milliseconds, slower the more files there are.  It
behaves the same on every file system, on symlinked ConfigMap volumes and for editors that replace files, takes at most
a twenty-fifth of a CPU by construction (a hundred files: under 2 %), and sees an edit within two periods.

Between two such looks, where they are far apart, the directories alone are looked at, every few tens of milliseconds:
a file that is replaced, added or removed changes its directory's time, and the new one is told by its inode.  So in a
large directory only those who write into a file in place wait for the next full look, two seconds at most.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Final

from controlplane.sources.documents import broken, parse
from controlplane.sources.snapshot import File, Snapshot, Stamp

__all__ = ["Directory", "DirectoryError", "File", "Snapshot", "Stamp"]

#: Shortest time between two looks, seconds.
MIN_PERIOD: Final = 0.02
#: Longest time between two looks, seconds.
MAX_PERIOD: Final = 2.0
#: A look may take this share of the time.
MAX_SHARE: Final = 0.04
#: A look that took less than this (seconds) is not worth a thread.
FAST_LOOK: Final = 0.002
#: A file must have been the same for this long before it is read, so that half-written files are rarely seen ...
SETTLE: Final = 0.015
#: ... but a directory that never rests is read after this long all the same.
MAX_WAIT: Final = 0.25
#: Largest file that is read, bytes.
MAX_FILE: Final = 64 * 1024 * 1024

_SKIP_ENDINGS: Final = ("~", ".swp", ".swx", ".swo", ".tmp", ".bak", ".orig", ".rej")


class DirectoryError(Exception):
    """The configuration directory cannot be read; the message says why and what to do."""


class Directory:
    """A directory tree of configuration files.

    Every regular file counts, whatever its name, except hidden ones and editors' backups.  Subdirectories are
    followed, hidden ones not.
    """

    def __init__(self, path: str | os.PathLike[str], *, label: str = "") -> None:
        """``path`` is the directory, or one file.  ``label`` is put before file names in messages."""
        self._path = os.fspath(path)
        self._label = label
        self._files: dict[str, File] = {}
        #: Times of the directories, at the last look.
        self._directories: dict[str, int] = {}
        #: CPU seconds of the last full look, and the monotonic time of the next.
        self._cost, self._due = 0.0, 0.0

    def read(self) -> Snapshot:
        """Read what changed since the last call.  Raises :class:`DirectoryError` when the directory is not there."""
        return self._take(self._scan())

    def _take(self, stamps: dict[str, Stamp]) -> Snapshot:
        files: dict[str, File] = {}
        for name in sorted(stamps):
            known = self._files.get(name)
            files[name] = known if known is not None and known.stamp == stamps[name] else self._load(name, stamps[name])
        self._files = files
        return Snapshot(files)

    async def watch(self) -> AsyncIterator[Snapshot]:
        """Yield the present state, then a new snapshot after each change.

        A directory that disappears for a while keeps its last snapshot.
        """
        snapshot = await asyncio.to_thread(self.read)
        yield snapshot
        while True:
            stamps = await self._changed(snapshot)
            snapshot = await asyncio.to_thread(self._take, stamps)
            yield snapshot

    async def _changed(self, snapshot: Snapshot) -> dict[str, Stamp]:
        """Wait for a change and until it rests; gives what is there then."""
        known = {name: file.stamp for name, file in snapshot.files.items()}
        while True:
            await asyncio.sleep(MIN_PERIOD)
            full = time.monotonic() >= self._due
            if not full and not self._directories_changed():
                continue
            look = partial(self._timed_scan, None if full else known)
            stamps, took = look() if self._cost < FAST_LOOK else await asyncio.to_thread(look)
            if full:
                self._cost = took
                self._due = time.monotonic() + min(MAX_PERIOD, max(MIN_PERIOD, took / MAX_SHARE))
            if stamps is None or stamps == known:
                continue
            deadline = time.monotonic() + MAX_WAIT
            while time.monotonic() < deadline:
                await asyncio.sleep(SETTLE)
                again = await asyncio.to_thread(self._again, stamps, known)
                if again == stamps:
                    break
                stamps = again or stamps
            return stamps

    def _again(self, stamps: dict[str, Stamp], known: dict[str, Stamp]) -> dict[str, Stamp] | None:
        """A second look: at what was found to be new, and for what came or went since."""
        rested = {name: stamp for name, stamp in stamps.items() if known.get(name) == stamp}
        return self._try_scan(rested)

    def _directories_changed(self) -> bool:
        """Whether some directory is not as the last look found it."""
        for path, found in self._directories.items():
            try:
                if os.stat(path).st_mtime_ns != found:
                    return True
            except OSError:
                return True
        return False

    def _timed_scan(self, reuse: Mapping[str, Stamp] | None = None) -> tuple[dict[str, Stamp] | None, float]:
        """A look, and the CPU seconds it took: time that passed would include what a busy machine did meanwhile."""
        begin = time.thread_time()
        return self._try_scan(reuse), time.thread_time() - begin

    def _try_scan(self, reuse: Mapping[str, Stamp] | None = None) -> dict[str, Stamp] | None:
        try:
            return self._scan(reuse)
        except DirectoryError:
            return None

    def _scan(self, reuse: Mapping[str, Stamp] | None = None) -> dict[str, Stamp]:
        """Look at all files.  A name that is the file (inode) it was in *reuse* is taken to have that stamp still."""
        known = reuse or {}
        self._directories = directories = {}
        stamps: dict[str, Stamp] = {}
        if os.path.isfile(self._path):
            stat = os.stat(self._path)
            return {os.path.basename(self._path): _stamp(stat)}
        pending = [("", self._path)]
        seen: set[tuple[int, int]] = set()
        while pending:
            prefix, directory = pending.pop()
            try:
                directories[directory] = os.stat(directory).st_mtime_ns  # first: what comes later is seen the next time
                entries = list(os.scandir(directory))
            except OSError as error:
                if prefix:
                    continue  # removed between two looks
                raise DirectoryError(
                    f"cannot read the configuration directory {self._path}: {error.strerror}; create it or give another"
                ) from error
            for entry in entries:
                if entry.name.startswith((".", "#")) or entry.name.endswith(_SKIP_ENDINGS):
                    continue
                name = prefix + entry.name
                if name in known and known[name][2] == entry.inode():
                    stamps[name] = known[name]
                    continue
                try:
                    stat = entry.stat()
                    if entry.is_dir():
                        if (stat.st_dev, stat.st_ino) not in seen:  # a symlink may lead back up
                            seen.add((stat.st_dev, stat.st_ino))
                            pending.append((f"{prefix}{entry.name}/", entry.path))
                    elif entry.is_file():
                        stamps[name] = _stamp(stat)
                except OSError:
                    continue  # removed between two looks, or a dangling link
        return stamps

    def _load(self, name: str, stamp: Stamp) -> File:
        shown = self._label + name
        path = self._path if os.path.isfile(self._path) else os.path.join(self._path, name)
        if stamp[1] > MAX_FILE:
            return File(name, stamp, broken(shown, "too-large", f"{stamp[1]} bytes; at most {MAX_FILE} are read"))
        try:
            known = self._files.get(name)
            stamp, data = _read_settled(path, had_content=known is not None and bool(known.documents))
        except OSError as error:
            return File(name, stamp, broken(shown, "unreadable", f"cannot be read: {error.strerror}"))
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            return File(name, stamp, broken(shown, "not-utf8", f"byte {error.start} (line {line}) is not UTF-8"))
        return File(name, stamp, parse(shown, text))


def _read_settled(path: str, *, had_content: bool) -> tuple[Stamp, bytes]:
    """Read a file that nobody is writing just now, with the stamp that belongs to what was read.

    A writer that truncates first leaves an empty file for a moment; taken at its word, it would remove objects.  So a
    file that had content and is empty now is believed only after a longer while.
    """
    deadline = time.monotonic() + 4 * MAX_WAIT
    while True:
        with open(path, "rb") as stream:
            before = _stamp(os.fstat(stream.fileno()))
            data = stream.read(MAX_FILE + 1)
        rest = MAX_WAIT if had_content and not data else SETTLE
        if _rests(path, before, rest) or time.monotonic() > deadline:
            return before, data


def _rests(path: str, stamp: Stamp, rest: float) -> bool:
    """Wait until a file has been as it is for ``rest`` seconds; False as soon as it changes."""
    while True:
        age = time.time() - stamp[0] / 1e9
        if _stamp(os.stat(path)) != stamp:
            return False
        if not 0 <= age < rest:
            return True
        time.sleep(min(rest - age, SETTLE / 2))


def _stamp(stat: os.stat_result) -> Stamp:
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)
