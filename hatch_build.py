"""Wheel hook: compile kernel/ and ship its objects as package data.

The wheel carries the CO-RE objects and the native C core under `nodeagent/objects/`, so that a node needs neither a
compiler nor kernel headers. An editable install ships nothing: there the agent finds `kernel/build/` in the checkout.
"""

import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

OBJECTS = "nodeagent/objects"
PATTERNS = ("*.bpf.o", "libcore.so")
#: The core inside the kernel to be asked by `underpass test equivalence`; no node loads it.
QUESTIONS = "test/core_test.bpf.o"


class KernelObjects(BuildHookInterface[Any]):
    """Runs `make -C kernel` and maps each product into the wheel; raises RuntimeError when there is none to ship."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the kernel's objects to `build_data`; `version` is hatch's build kind ("standard" or "editable")."""
        if version == "editable":
            return
        kernel = Path(self.root) / "kernel"
        make = shutil.which("make")
        if make is None:
            raise RuntimeError("cannot build kernel/: no make (apt-get install make clang-19 bpftool libbpf-dev)")
        subprocess.run([make, "-C", str(kernel)], check=True)
        products = sorted(path for pattern in PATTERNS for path in (kernel / "build").glob(pattern))
        if not any(path.name.endswith(".bpf.o") for path in products):
            raise RuntimeError("make -C kernel left no *.bpf.o in kernel/build: the wheel would have no data path")
        products += sorted((kernel / "build").glob(QUESTIONS))
        for path in products:
            build_data["force_include"][str(path)] = f"{OBJECTS}/{path.relative_to(kernel / 'build')}"
        build_data["force_include"][str(Path(self.root) / "samples")] = "underpass/samples"  # for `underpass demo`
        # Native code inside: the wheel belongs to this architecture, but to no particular Python.
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
