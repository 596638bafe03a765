"""`underpass`: the command line.

Exit codes of every command: 0 it is so, 1 a check failed, 2 wrong usage, 3 something cannot be reached, 4 some of it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import ClassVar

import typer

from underpass.cli.errors import FAILED, OK, CliError, report, understood
from underpass.cli.lazy import LazyGroup, Table

_COMMANDS: Table = {
    "demo": ("underpass.lab.cli", "demo", "A tour: the sample shop under the mesh; fails when anything deviates."),
    "lab": ("underpass.lab.cli", "app", "A mesh on one machine: Kubernetes YAML as local workloads."),
    "status": ("underpass.cli.commands.status", "status", "Control plane, agents, workloads, programs, maps."),
    "routes": ("underpass.cli.commands.routes", "routes", "Each route: who decided how many of its requests."),
    "explain": ("underpass.cli.commands.explain", "app", "What happens to a request, and which line of YAML says so."),
    "bpf": ("underpass.cli.commands.bpf", "app", "The pinned programs, maps and links of a node."),
    "features": ("underpass.cli.commands.features", "features", "What this kernel can do, and what follows from it."),
    "analyze": ("underpass.cli.commands.analyze", "analyze", "Judge YAML files: what runs where, what is refused."),
    "test": ("underpass.cli.commands.test", "app", "Proofs about a configuration: kernel and Envoy agree."),
    "config": ("underpass.cli.commands.config", "app", "What the control plane says of each object."),
    "version": ("underpass.cli.commands.version", "version", "Versions of this program and of the control plane."),
}


class _Root(LazyGroup):
    table: ClassVar[Table] = _COMMANDS


app = typer.Typer(
    cls=_Root,
    help="A sidecarless service mesh in which the kernel itself routes each HTTP request.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root() -> None:
    """A sidecarless service mesh in which the kernel itself routes each HTTP request."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status. Nothing that a user can do ends in a traceback."""
    try:
        typer.main.get_command(app).main(args=None if arguments is None else list(arguments), prog_name="underpass")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else OK if end.code is None else FAILED
    except BrokenPipeError:
        # `underpass ... | head`: the reader has what it wanted. Python would complain while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - the last one who can say something
        known = understood(error)
        if known is None:
            if os.environ.get("UNDERPASS_DEBUG"):
                traceback.print_exc()
            known = CliError(
                "underpass itself failed, which is a bug",
                f"{type(error).__name__}: {error}",
                "run it again with UNDERPASS_DEBUG=1 and report what it prints",
            )
        return report(known)
    return OK


if __name__ == "__main__":
    sys.exit(main())
