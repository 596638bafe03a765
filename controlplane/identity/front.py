"""The TLS port: ends TLS, notes who presented which certificate, and passes the bytes on to the gRPC server.

gRPC's Python server either demands client certificates or never asks for one. Clients of a mesh come with either a
certificate or a token, on one port; so TLS is ended here, where a certificate is asked for and may be missing. The
gRPC server listens on a socket in a directory of our own; each connection to it comes from an abstract address that
nobody else can have, and by which the server's ``peer()`` finds what the client presented.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import secrets
import socket
import ssl
import time
from asyncio import sslproto
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from controlplane.identity.caller import IdentityError, of_certificate
from controlplane.identity.gate import Gate, Presented

_log = structlog.get_logger("controlplane.tls")

_HANDSHAKE: Final = 10.0
_FAREWELL: Final = 5.0
_CHUNK: Final = 64 * 1024
#: Connections at once, streams of each are the gRPC server's business.
_MAX_CONNECTIONS: Final = 20_000
#: Handshakes under way at once: whoever connects and says nothing costs memory until it is given up.
_MAX_HANDSHAKES: Final = 2_000
#: asyncio reserves this much for every TLS connection before its first byte: 256 KiB, a quarter of a gigabyte for a
#: thousand clients. A TLS record is 16 KiB.
_TLS_BUFFER: Final = 32 * 1024
#: How often files are looked at, seconds.
_LOOK: Final = 1.0


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the server's certificate chain and key, and the authorities of client certificates, if any."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.certificate, self.key, *([self.client_ca] if self.client_ca else []))


def context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.2 or later with HTTP/2; a client certificate is asked for when there are authorities.

    Raises :class:`OSError`, which :class:`ssl.SSLError` is one of.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(["h2"])
    made.load_cert_chain(files.certificate, files.key)
    if files.client_ca is not None:
        made.verify_mode = ssl.CERT_OPTIONAL
        made.load_verify_locations(files.client_ca)
    return made


class Watched:
    """The newest good version of something made of files; a bad new version is logged and not taken."""

    def __init__(self, paths: tuple[Path, ...], make: Any) -> None:
        self._paths = paths
        self._make = make
        self._stamps = self._look()
        self._looked = time.monotonic()
        self._value = make()

    def get(self) -> Any:
        """The value now; looks at the files at most once a second."""
        now = time.monotonic()
        if now - self._looked >= _LOOK:
            self._looked = now
            stamps = self._look()
            if stamps != self._stamps:
                self._stamps = stamps
                try:
                    self._value = self._make()
                    _log.info("files taken in", files=[str(path) for path in self._paths])
                except (OSError, ValueError) as error:
                    _log.error("files not taken in; the last good stay", reason=str(error))
        return self._value

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        found: list[tuple[int, int, int] | None] = []
        for path in self._paths:
            try:
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_ino, status.st_size))
            except OSError:
                found.append(None)
        return tuple(found)


class TlsFront:
    """Listens with TLS and passes on to ``inner``, the path of the gRPC server's socket."""

    def __init__(self, gate: Gate, files: TlsFiles, trust_domain: str, inner: str) -> None:
        self._gate = gate
        self._files = files
        self._trust_domain = trust_domain
        self._inner = inner
        self._contexts: Watched | None = None
        self._numbers = itertools.count()
        self._secret = secrets.token_hex(16)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._shaking = 0

    async def start(self, host: str, port: int) -> int:
        """Listen; gives the port. Raises :class:`OSError` for an address or for files that cannot be used."""
        self._contexts = Watched(self._files.paths(), lambda: context(self._files))
        sslproto.SSLProtocol.max_size = _TLS_BUFFER
        self._server = await asyncio.start_server(self._serve, host, port, limit=_CHUNK, backlog=1024)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and end the connections."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._open):
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= _MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._open.add(writer)
        name, peer = "", _peer(writer)  # asked now: asyncio's TLS transport cannot be asked once it is lost
        try:
            await self._shake_hands(writer)
            ours, name = self._address()
            self._gate.arrived[name] = self._presented(writer, peer)
            inner_reader, inner_writer = await self._connect(ours)
            try:
                await _both(reader, writer, inner_reader, inner_writer)
            finally:
                inner_writer.close()
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:  # a handshake that fails is an OSError
            _log.debug("TLS connection ended", peer=peer, reason=str(error))
        except asyncio.CancelledError:
            pass  # the process ends; nobody waits for this task
        finally:
            self._open.discard(writer)
            self._gate.arrived.pop(name, None)
            _end(writer)

    async def _shake_hands(self, writer: asyncio.StreamWriter) -> None:
        if self._shaking >= _MAX_HANDSHAKES:
            raise ConnectionAbortedError(f"{_MAX_HANDSHAKES} handshakes are under way")
        assert self._contexts is not None
        self._shaking += 1
        try:
            await writer.start_tls(self._contexts.get(), ssl_handshake_timeout=_HANDSHAKE)
        finally:
            self._shaking -= 1

    def _address(self) -> tuple[str, str]:
        """An abstract address of our own, and what gRPC calls it."""
        text = f"underpass-{os.getpid()}-{self._secret}-{next(self._numbers)}"
        return f"\0{text}", f"unix-abstract:{text}"

    async def _connect(self, ours: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.bind(ours)
            await asyncio.get_running_loop().sock_connect(sock, self._inner)
        except BaseException:
            sock.close()
            raise
        return await asyncio.open_unix_connection(sock=sock, limit=_CHUNK)

    def _presented(self, writer: asyncio.StreamWriter, peer: str) -> Presented:
        certificate = writer.get_extra_info("peercert")
        if not certificate:
            return Presented(peer)
        try:
            who = of_certificate(certificate.get("subjectAltName", ()), self._trust_domain)
        except IdentityError as error:
            return Presented(peer, problem=str(error))
        until = certificate.get("notAfter")
        return Presented(peer, who, ssl.cert_time_to_seconds(until) if until else math.inf)


def _end(writer: asyncio.StreamWriter) -> None:
    """Close, and do not wait for long for a peer that does not read what is left."""
    transport = writer.transport
    with contextlib.suppress(OSError, RuntimeError):
        writer.close()
        asyncio.get_running_loop().call_later(_FAREWELL, transport.abort)


def _peer(writer: asyncio.StreamWriter) -> str:
    found = writer.get_extra_info("peername")
    return f"{found[0]}:{found[1]}" if found else "unknown"


async def _both(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    inner_reader: asyncio.StreamReader,
    inner_writer: asyncio.StreamWriter,
) -> None:
    """Pass bytes on in both directions until one of them ends: HTTP/2 has no half-closed connections."""
    ways = [
        asyncio.ensure_future(_pass(reader, inner_writer)),
        asyncio.ensure_future(_pass(inner_reader, writer)),
    ]
    try:
        done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in done:
            way.result()
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while (data := await reader.read(_CHUNK)) and not writer.is_closing():
        writer.write(data)
        await writer.drain()
