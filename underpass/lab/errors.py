"""What the lab says when it cannot do what it was asked: what went wrong, why, and what to do next."""

from __future__ import annotations


class LabError(Exception):
    """A failure that a person can act on.

    `what` names the thing that failed, `why` the reason as far as it is known, `next_step` a command or an edit
    that helps. `exit_code` follows the command line's convention: 1 failed, 2 usage, 3 cannot reach.
    """

    def __init__(self, what: str, why: str = "", next_step: str = "", exit_code: int = 1) -> None:
        self.what = what
        self.why = why
        self.next_step = next_step
        self.exit_code = exit_code
        super().__init__(": ".join(part for part in (what, why) if part))


class ManifestError(LabError):
    """A YAML file that the lab was given cannot be used; `why` starts with FILE:LINE."""

    def __init__(self, file: str, line: int, why: str, next_step: str = "correct the file and try again") -> None:
        self.file = file
        self.line = line
        super().__init__("cannot use the manifest", f"{file}:{line}: {why}", next_step, exit_code=2)


class CommandError(LabError):
    """A program that the lab runs (ip, nsenter, cc) failed; `why` is its own message."""
