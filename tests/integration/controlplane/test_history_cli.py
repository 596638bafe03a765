"""`underpass config history|diff|rollback` against a running control plane."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import shop
from tests.support.controlplane import ControlPlaneProcess, wait_for
from underpass.cli import app
from underpass.cli.errors import FAILED, OK, UNREACHABLE, USAGE

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlaneProcess]:
    config = tmp_path / "config"
    config.mkdir()
    shop.write(config / "service.yaml", shop.service(80, 8080))
    shop.write(config / "rules.yaml", shop.rules(10))
    with ControlPlaneProcess(config, tmp_path) as running:
        yield running


def config(plane: ControlPlaneProcess, *arguments: str) -> int:
    return app.main(["config", *arguments, "--control-plane", plane.http])


def ids(plane: ControlPlaneProcess) -> list[str]:
    return [revision["id"] for revision in plane.json("/api/v1/config/history")["revisions"]]


def test_a_person_finds_what_changed_and_takes_it_back(
    plane: ControlPlaneProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.write(plane.config / "rules.yaml", shop.rules(70))
    new, old = wait_for("two revisions", lambda: len(ids(plane)) == 2 and ids(plane))

    assert config(plane, "history") == OK
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["REVISION", "AT", "OBJECTS", "CAUSE", "CHANGES"]
    assert lines[1][:2] == ["*", new]
    assert lines[1][-3:] == ["changed", "VirtualService", "default/greeter"]
    assert lines[2][0] == old, "only what is in force has the star"

    assert config(plane, "diff", old[:8]) == FAILED, "they differ"
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{old} -> {new}: 1 objects differ"
    assert out[1] == "changed VirtualService default/greeter"
    assert "  - spec.http[1].route[0].weight: 10" in out
    assert "  + spec.http[1].route[0].weight: 70" in out
    assert config(plane, "diff", new, new) == OK
    capsys.readouterr()

    assert config(plane, "rollback", old) == OK
    assert capsys.readouterr().out.startswith(f"in force: {old}, until the next change")
    assert config(plane, "history", "-o", "json", "--limit", "1") == OK
    document = json.loads(capsys.readouterr().out)
    assert (document["kind"], document["rolledBackTo"]) == ("ConfigHistory", old)
    [last] = document["revisions"]
    assert (last["id"], last["cause"]) == (old, f"rollback to {old}")

    assert config(plane, "history", "--limit", "1") == OK
    said = capsys.readouterr().out
    assert "2 older ones: --limit 3" in said
    assert f"rolled back to {old}" in said

    assert config(plane, "rollback", new, "-o", "json") == OK
    assert json.loads(capsys.readouterr().out)["inForce"] == new
    assert config(plane, "diff", old, "-o", "json") == FAILED
    document = json.loads(capsys.readouterr().out)
    assert (document["kind"], document["from"], document["to"]) == ("ConfigDiff", old, new)


def test_what_is_not_there_is_an_error_that_says_what_to_do(
    plane: ControlPlaneProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("diff", "rollback"):
        assert config(plane, verb, "no such&to=\x1b[31m") == USAGE
        error = capsys.readouterr().err
        assert error.startswith("error: no such revision\n  why:  no revision ")
        assert "next: underpass config history" in error
        assert "\x1b" not in error
    assert config(plane, "diff") == USAGE
    capsys.readouterr()
    assert config(plane, "apply", "-f", str(plane.config / "rules.yaml")) == USAGE
    assert "edit its files, or start it with --store" in capsys.readouterr().err
    assert config(plane, "delete", "VirtualService/greeter") == USAGE
    assert config(plane, "replicas") == OK
    assert "no store" in capsys.readouterr().out
    plane.stop()
    assert config(plane, "history") == UNREACHABLE
