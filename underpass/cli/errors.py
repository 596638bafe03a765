"""What the command line says when it cannot do what it was asked: what, why, and what to do next."""

from __future__ import annotations

import sys
from typing import Final

#: Exit codes, the same for every command.
OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
PARTIAL: Final = 4


class CliError(Exception):
    """A failure that a person can act on; `exit_code` is one of this module's constants."""

    def __init__(self, what: str, why: str = "", next_step: str = "", exit_code: int = FAILED) -> None:
        self.what, self.why, self.next_step, self.exit_code = what, why, next_step, exit_code
        super().__init__(": ".join(part for part in (what, why) if part))


def understood(error: BaseException) -> CliError | None:
    """An error of any of this project's programs as the command line tells it; None for what nobody foresaw."""
    if isinstance(error, CliError):
        return error
    parts = [getattr(error, name, None) for name in ("what", "why", "next_step")]
    if all(isinstance(part, str) for part in parts):
        what, why, next_step = (str(part) for part in parts)
        return CliError(what, why, next_step, _exit_code(error))
    if isinstance(error, PermissionError):
        what = f"cannot open {error.filename}" if error.filename else "not permitted"
        return CliError(what, error.strerror or "", "run as root", UNREACHABLE)
    return None


def _exit_code(error: BaseException) -> int:
    given = getattr(error, "exit_code", None)
    if isinstance(given, int):
        return given
    # The agent's errors carry no exit codes. These two modules are small, and loaded already when the error is theirs.
    from nodeagent.bpf.errors import NotPinnedError, PermissionDeniedError
    from nodeagent.errors import NotRunningError, SettingsError

    if isinstance(error, NotRunningError | NotPinnedError | PermissionDeniedError):
        return UNREACHABLE
    return USAGE if isinstance(error, SettingsError) else FAILED


def text(error: CliError) -> str:
    """The error as lines, without colour."""
    lines = [f"error: {error.what}"]
    if error.why:
        lines.append(f"  why:  {error.why}")
    if error.next_step:
        lines.append(f"  next: {error.next_step}")
    return "\n".join(lines)


def report(error: CliError) -> int:
    """Write the error to standard error; returns its exit code."""
    print(text(error), file=sys.stderr)
    return error.exit_code
