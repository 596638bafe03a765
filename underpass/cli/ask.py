"""Asking running programs over HTTP: the control plane at its address, an agent at its unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any, Final

from underpass.cli.errors import FAILED, UNREACHABLE, USAGE, CliError

TIMEOUT: Final = 5.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("agent", timeout=timeout)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


#: Without it the control plane changes nothing: a web page cannot make a browser send it.
_OURS: Final = {"X-Underpass": "1"}


def control_plane(address: str, path: str, timeout: float = TIMEOUT, *, method: str = "GET") -> Any:
    """A page of the control plane: JSON, or text for what is none. Raises CliError with the reason.

    `method` POST is for what changes something.
    """
    status, body = _exchange(address, path, timeout, method, b"")
    # /ready tells by its status, with the reason in its body.
    if status != 200 and not (path == "/ready" and status == 503):
        what = f"http://{address}{path} answered {status}"
        why = body[:200].decode("utf-8", "replace").strip()
        refuse(status, _document(body))
        if status == 404 and why.startswith("no revision"):
            raise CliError("no such revision", why, "underpass config history lists them", USAGE)
        raise CliError(what, why, "is it an underpass-controlplane that listens there?", FAILED)
    return _document(body)


def exchange(address: str, path: str, *, body: bytes | None = None, timeout: float = TIMEOUT) -> tuple[int, Any]:
    """A page's status and document, whatever the status; with a body it is a POST. Raises CliError when none comes."""
    status, answer = _exchange(address, path, timeout, "GET" if body is None else "POST", body or b"")
    return status, _document(answer)


def refuse(status: int, document: Any) -> None:
    """Raise CliError for a refusal in which the control plane says what, why and what next; else return."""
    told = document.get("error") if isinstance(document, dict) else None
    if isinstance(told, dict):
        what, why, next_step, code = (str(told.get(part, "")) for part in ("what", "why", "next", "code"))
        raise CliError(what, why, next_step, _REFUSALS.get(code, UNREACHABLE if status in (502, 503) else FAILED))


_REFUSALS: Final = {"no-store": USAGE, "bad-request": USAGE}


def _exchange(address: str, path: str, timeout: float, method: str, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        return _ask(connection, path, method, body)
    except (OSError, http.client.HTTPException) as error:
        raise CliError(
            f"the control plane at {address} does not answer",
            _reason(error),
            "start underpass-controlplane, or say where it is: --control-plane HOST:PORT",
            UNREACHABLE,
        ) from error


def agent(socket_path: Path, path: str = "/status", timeout: float = TIMEOUT) -> Any:
    """A page of a node's agent; None when it does not answer, which is how an agent that is not running looks."""
    connection = _UnixConnection(socket_path, timeout)
    try:
        status, body = _ask(connection, path)
    except (OSError, http.client.HTTPException):
        return None
    return _document(body) if status == 200 else None


def _ask(
    connection: http.client.HTTPConnection, path: str, method: str = "GET", body: bytes = b""
) -> tuple[int, bytes]:
    try:
        connection.request(method, path, body or None, _OURS if method == "POST" else {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _document(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace").strip()


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT:.0f} s"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"{type(error).__name__}: {error}" if str(error) else "it closed the connection without an answer"
