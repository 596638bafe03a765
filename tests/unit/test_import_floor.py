"""What the programs load when they start: every module here costs memory on every node."""

import subprocess
import sys

import pytest

HEAVY = ("betterproto2", "pydantic", "envoy_data_plane", "kubernetes", "opentelemetry", "typer", "hypothesis")


def loaded(statement: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("program", ["controlplane.app", "nodeagent.app", "nodeagent.home.app"])
def test_programs_load_no_schema_source_and_no_tool(program: str) -> None:
    assert loaded(f"import {program}").isdisjoint(HEAVY)


def test_home_loads_neither_grpc_nor_protobuf_nor_the_agents_road() -> None:
    modules = loaded("import nodeagent.home.app")
    assert modules.isdisjoint({"grpc", "google.protobuf", "underpass.api", "asyncio", *HEAVY})
    assert not {name for name in modules if name.startswith(("nodeagent.xds", "nodeagent.cache", "nodeagent.intent"))}


def test_the_command_line_starts_without_the_programs() -> None:
    modules = loaded("import underpass.cli.app")
    assert modules.isdisjoint({"grpc", "structlog", "google.protobuf", "controlplane.app", "nodeagent.app", "re2"})
