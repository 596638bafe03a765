"""The command line: usual places by default, mistakes said plainly."""

from __future__ import annotations

import pytest

from nodeagent.app import main
from nodeagent.errors import SettingsError
from nodeagent.settings import parse_arguments


def test_defaults() -> None:
    settings = parse_arguments([])
    assert (settings.node, settings.xds, settings.home, settings.cleanup) == ("node-1", "127.0.0.1:15010", (), False)


def test_homes_may_be_given_together_or_apart() -> None:
    together = parse_arguments(["--home", "10.0.0.1:15001", "[fd00::1]:15001"])
    apart = parse_arguments(["--home", "10.0.0.1:15001", "--home", "[fd00::1]:15001"])
    assert together.home == apart.home == (("10.0.0.1", 15001), ("fd00::1", 15001))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--home", "10.0.0.1"], "write 10.0.0.1:15001"),
        (["--home", "10.0.0.1:99999"], "is no port"),
        (["--home", "10.0.0.1:1", "10.0.0.2:1"], "more than one home peer"),
        (["--home-is-envoy"], "no --home is given"),
        (["--node", "a/b"], "without slashes"),
        (["--xds", "localhost"], "not a host and a port"),
    ],
)
def test_mistakes(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError, match=text.replace("[", r"\[")):
        parse_arguments(arguments)
    assert main(arguments) == 2
    out = capsys.readouterr()
    assert text in out.err
    assert "Traceback" not in out.err
