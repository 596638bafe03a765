"""A control plane as a process, driven by tests: a directory, flags, its addresses, and a stop that is checked."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from tests.support.tiers import repository


class ControlPlaneProcess:
    """``underpass-controlplane`` over *config* (None: flags name a store); a context manager."""

    def __init__(self, config: Path | None, scratch: Path, *flags: str, listen: str = "127.0.0.1:0") -> None:
        self._config = config
        self._scratch = scratch
        self._flags = flags
        self._listen = listen
        self._process: subprocess.Popen[bytes] | None = None
        self.xds = ""
        self.http = ""
        self.tls = ""

    @property
    def config(self) -> Path:
        """Its directory; one that reads a store has none."""
        assert self._config is not None
        return self._config

    @property
    def log(self) -> str:
        path = self._scratch / "controlplane.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def rss(self) -> int:
        """Resident memory in bytes."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def start(self) -> None:
        addresses = self._scratch / "addresses.json"
        addresses.unlink(missing_ok=True)
        command = [sys.executable, "-m", "controlplane.app", "--listen", self._listen]
        command += [] if self._config is None else ["--config", str(self._config)]
        command += ["--http", "127.0.0.1:0", "--addresses-file", str(addresses), "--log-level", "debug", *self._flags]
        with (self._scratch / "controlplane.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=repository(), stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while not addresses.exists():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)
        bound = json.loads(addresses.read_text())
        self.xds, self.http, self.tls = bound["xds"], bound["http"], bound.get("tls", "")

    def stop(self, *, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it and give its exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        try:
            return self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
            raise

    def restart(self) -> None:
        """Stop it, then start it on the same xDS address."""
        self._listen = self.xds
        self.stop()
        self.start()

    def running(self) -> contextlib.AbstractContextManager[Self]:
        """A context for one that was started by :meth:`start`."""

        @contextlib.contextmanager
        def until() -> Iterator[Self]:
            try:
                yield self
            finally:
                self.__exit__()

        return until()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page of the admin surface."""
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=10) as reply:
                return int(reply.status), reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def json(self, path: str) -> Any:
        status, body = self.get(path)
        assert status == 200, body
        return json.loads(body)


def wait_for(what: str, condition: Any, seconds: float = 15.0, every: float = 0.02) -> Any:
    """Poll *condition* until it is true; its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(every)
