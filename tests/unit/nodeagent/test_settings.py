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
        (["--waypoint", "auto", "--envoy-namespace", "shop"], "give --envoy-config"),
        (["--waypoint", "yes"], "write 10.0.0.1:15001"),
        (["--waypoint", "10.0.0.1:15001", "--home", "10.0.0.1:15001"], "--home is given, too"),
        (["--envoy", "/usr/bin/envoy"], "add --waypoint auto"),
        (["--waypoint", "auto", "--envoy-config", "x", "--envoy-namespace", "a~b"], "no name of a namespace"),
    ],
)
def test_mistakes(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError, match=text.replace("[", r"\[")):
        parse_arguments(arguments)
    assert main(arguments) == 2
    out = capsys.readouterr()
    assert text in out.err
    assert "Traceback" not in out.err


def test_a_waypoint_that_runs_elsewhere_is_a_home_peer() -> None:
    settings = parse_arguments(["--waypoint", "10.0.0.9:15001"])
    assert (settings.home, settings.home_is_envoy, settings.waypoint) == ((("10.0.0.9", 15001),), True, False)


def test_a_waypoint_of_our_own() -> None:
    settings = parse_arguments(["--waypoint", "auto", "--envoy-config", "/e.yaml", "--envoy", "/bin/envoy"])
    assert (settings.waypoint, settings.home_is_envoy, settings.envoy_namespace) == (True, False, "default")
    assert (str(settings.envoy), str(settings.envoy_config)) == ("/bin/envoy", "/e.yaml")
