"""A real etcd as a process, on free ports of this machine, in a directory of its own."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def b64(text: str) -> str:
    """Bytes in JSON, as the gateway has them."""
    return base64.b64encode(text.encode()).decode()


class EtcdProcess:
    """One member; a context manager. ``tls`` is (certificate, key, authority of clients); ``peers``: see `cluster`."""

    def __init__(
        self,
        directory: Path,
        *flags: str,
        tls: tuple[Path, Path, Path] | None = None,
        name: str = "one",
        peers: Mapping[str, int] | None = None,
    ) -> None:
        self.directory = directory
        self.port = free_port()
        self._name = name
        self._peers = peers or {name: free_port()}
        self._flags = flags
        self.tls = tls
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        return self.directory / "etcd"

    @property
    def log(self) -> str:
        return (self.directory / "etcd.log").read_text(errors="replace")

    def start(self) -> None:
        self.spawn()
        self.wait()

    def spawn(self) -> None:
        """Begin; a member of several listens only once a majority of them has begun."""
        scheme = "https" if self.tls else "http"
        client, peer = f"{scheme}://{self.address}", f"http://127.0.0.1:{self._peers[self._name]}"
        members = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in self._peers.items())
        command = ["etcd", "--name", self._name, "--data-dir", str(self.data), "--unsafe-no-fsync"]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += [
            "--listen-peer-urls",
            peer,
            "--initial-advertise-peer-urls",
            peer,
            "--initial-cluster",
            members,
        ]
        command += ["--log-outputs", "stderr", "--logger", "zap", *self._flags]
        if self.tls:
            certificate, key, authority = self.tls
            command += ["--cert-file", str(certificate), "--key-file", str(key)]
            command += ["--trusted-ca-file", str(authority), "--client-cert-auth"]
        # A member that listens on all its loopback ports; no proxy of the environment may come between.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD")}
        with (self.directory / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def wait(self) -> None:
        """Until it answers clients."""
        assert self._process is not None
        deadline = time.monotonic() + 15
        while not self._listens():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 0.2).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """As a machine that loses power."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(5)

    def pause(self) -> None:
        """The process stands still, with its connections open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        status = Path(f"/proc/{self._process.pid}/status")
        while "State:\tT" not in status.read_text():  # its threads stop one after the other
            time.sleep(0.01)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Start again with nothing, as after a lost disk."""
        self.kill()
        shutil.rmtree(self.data)
        self.start()

    def call(self, path: str, token: str = "", **body: Any) -> Any:
        """A call to etcd's own JSON gateway, which knows nothing of our client: ``kv/put``, ``auth/user/add`` ..."""
        context = None
        if self.tls:
            certificate, key, authority = self.tls
            context = ssl.create_default_context(cafile=str(authority))
            context.load_cert_chain(certificate, key)
        request = urllib.request.Request(
            f"{'https' if self.tls else 'http'}://{self.address}/v3/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", **({"Authorization": token} if token else {})},
        )
        with urllib.request.urlopen(request, timeout=10, context=context) as reply:
            return json.load(reply)

    def put(self, key: str, value: str) -> None:
        """A key as somebody else writes it."""
        self.call("kv/put", key=b64(key), value=b64(value))

    def compact(self) -> None:
        """Forget every revision but the present one."""
        header = self.call("kv/range", key=b64("x"))["header"]
        self.call("kv/compaction", revision=header["revision"], physical=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.resume()
            self.kill()


@contextlib.contextmanager
def cluster(directory: Path, size: int = 3) -> Iterator[list[EtcdProcess]]:
    """Members of one etcd, all of them answering."""
    peers = {f"member{number}": free_port() for number in range(size)}
    members = []
    for name in peers:
        (directory / name).mkdir()
        members.append(EtcdProcess(directory / name, name=name, peers=peers))
    with contextlib.ExitStack() as stack:
        for member in members:
            member.spawn()
            stack.callback(member.__exit__)
        for member in members:
            member.wait()
        yield members
