"""The command line, and layouts that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeagent.abi.layout import STRUCTS
from nodeagent.bpf.abc import Map, MapSpec, MapType
from nodeagent.bpf.fake import FakeKernel
from nodeagent.errors import LayoutError, SettingsError
from nodeagent.home.app import _LAYOUTS, check_layouts, main, parse_address, parse_arguments


def test_defaults_and_flags() -> None:
    bare = parse_arguments([])
    assert parse_arguments(["--upstreams-only"]) == bare
    assert (bare.node, bare.listen, bare.run_dir, bare.mss) == ("node-1", (), None, 1360)
    given = parse_arguments(
        ["--node", "n2", "--listen", "10.0.0.1:15001", "--listen", "[FD00::1]:15001", "--run-dir", "/x", "--mss", "0"]
    )
    assert given.listen == (("10.0.0.1", 15001), ("fd00::1", 15001))
    assert (given.node, given.run_dir, given.mss) == ("n2", Path("/x"), 0)


@pytest.mark.parametrize(
    "text", ["", "10.0.0.1", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:70000", "x:1", ":1", "1.2.3.4:٣"]
)
def test_bad_addresses(text: str) -> None:
    with pytest.raises(SettingsError, match="--listen"):
        parse_address(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--node", "a/b"],
        ["--node", ""],
        ["--mss", "100"],
        ["--max-upstreams", "0"],
        ["--listen", "x"],
        ["--upstreams-only", "--listen", "10.0.0.1:15001"],
        ["--standby"],
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("underpass-home: ")
    assert shown.count("\n") == 1


def test_layouts_of_another_build_are_refused() -> None:
    kernel = FakeKernel()
    maps: dict[str, Map] = {
        name: kernel.create_map(MapSpec(name, MapType.HASH, 4, STRUCTS[struct][0], 4))
        for name, struct in _LAYOUTS.items()
    }
    check_layouts(maps)
    maps["conns"] = kernel.create_map(MapSpec("conns", MapType.HASH, 4, STRUCTS["up_conn"][0] + 8, 4))
    with pytest.raises(LayoutError, match="conns"):
        check_layouts(maps)
