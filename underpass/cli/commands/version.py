"""`underpass version`."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from underpass.cli import ask, output
from underpass.cli.errors import CliError
from underpass.cli.output import API_VERSION, Output, OutputOption
from underpass.cli.targets import ControlPlaneOption, LabOption, control_plane, discover_control_plane


def own() -> str:
    """The version of the installed distribution."""
    try:
        return metadata.version("underpass")
    except metadata.PackageNotFoundError:
        return "0.0.0+source"


def version(form: OutputOption = Output.TABLE, address: ControlPlaneOption = None, lab: LabOption = None) -> None:
    """Versions of this program, of the ABI it speaks, of the kernel, and of the control plane if one answers."""
    from nodeagent.abi.numbers import ABI_VERSION

    found: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": "Version",
        "client": own(),
        "abi": ABI_VERSION,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "control_plane": None,
    }
    trouble = ""
    try:
        where = control_plane(address, discover_control_plane(), lab)
        page = ask.control_plane(where, "/version", timeout=2.0)
        found["control_plane"] = {
            "address": where,
            "version": page.get("version", "") if isinstance(page, dict) else "",
        }
    except CliError as error:
        if address is not None:
            raise
        trouble = error.what
    if form is Output.JSON:
        output.write_json(found)
        return
    plane = found["control_plane"]
    print(f"underpass      {found['client']}")
    print(f"control plane  {plane['version']} at {plane['address']}" if plane else f"control plane  - ({trouble})")
    print(f"kernel ABI     {found['abi']}")
    print(f"kernel         {found['kernel']}")
    print(f"python         {found['python']}")
