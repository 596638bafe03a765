"""The entry point: what it imports, how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from nodeagent.bpf.errors import NotPinnedError, PermissionDeniedError
from nodeagent.errors import AgentError, NotRunningError
from tests.support.tiers import repository
from underpass.cli import app
from underpass.cli.errors import FAILED, UNREACHABLE, USAGE, CliError, text, understood
from underpass.lab.errors import LabError

HEAVY = ("controlplane", "nodeagent", "google", "grpc", "rich", "yaml", "underpass.lab")


def test_help_lists_every_command_and_imports_none() -> None:
    code = (
        "import sys, json\nfrom underpass.cli.app import main\nstatus = main(['--help'])\n"
        "print(json.dumps([status, sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository(), check=True)
    status, modules = json.loads(done.stdout.splitlines()[-1])
    assert status == 0
    for name in ("demo", "lab", "status", "routes", "explain", "bpf", "analyze", "config", "version"):
        assert f"\n  {name} " in done.stdout
    assert [m for m in modules if any(m == heavy or m.startswith(f"{heavy}.") for heavy in HEAVY)] == []


@pytest.mark.parametrize("name", sorted(app._COMMANDS))
def test_every_command_loads(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main([name, "--help"]) == 0
    assert "Usage: underpass" in capsys.readouterr().out


def test_the_lab_is_mounted_with_its_own_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["lab", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in ("up", "apply", "exec", "down", "status"))


def test_a_wrong_command_is_usage_and_suggests(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["route"]) == USAGE
    assert "routes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CliError("a", "b", "c", USAGE), USAGE),
        (LabError("a", "b", "c", UNREACHABLE), UNREACHABLE),
        (AgentError("a", "b", "c"), FAILED),
        (NotRunningError("a", "b", "c"), UNREACHABLE),
        (NotPinnedError("a", "b", "c"), UNREACHABLE),
        (PermissionDeniedError("a", "b", "c"), UNREACHABLE),
    ],
)
def test_every_programs_errors_are_told_alike(error: Exception, code: int) -> None:
    found = understood(error)
    assert found is not None
    assert found.exit_code == code
    assert text(found) == "error: a\n  why:  b\n  next: c"


def _raise(error: BaseException) -> Any:
    def command(**_: Any) -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (CliError("cannot", "because", "do", 4), 4, "error: cannot\n  why:  because\n  next: do\n"),
        (PermissionError(13, "Permission denied", "/x"), UNREACHABLE, "error: cannot open /x"),
        (RuntimeError("boom"), FAILED, "which is a bug\n  why:  RuntimeError: boom"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_no_error_is_a_traceback(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("UNDERPASS_DEBUG", raising=False)
    monkeypatch.setattr("typer.main.get_command", lambda _: type("Broken", (), {"main": _raise(error)}))
    assert app.main([]) == code
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
