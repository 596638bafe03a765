"""Where the compiled BPF objects and libcore.so are: a checkout's kernel/build, or what the wheel ships."""

from __future__ import annotations

import os
from pathlib import Path

from nodeagent.bpf.errors import ObjectFileError

_PACKAGE = Path(__file__).resolve().parents[1]


def candidates() -> list[Path]:
    """Directories in order of precedence.

    UNDERPASS_OBJECTS (to try another build), the package's own nodeagent/objects (a wheel puts them there), and
    kernel/build beside the package (a checkout).
    """
    given = os.environ.get("UNDERPASS_OBJECTS")
    return [*([Path(given)] if given else []), _PACKAGE / "objects", _PACKAGE.parent / "kernel" / "build"]


def find(name: str) -> Path:
    """Path of a built file such as "tc_workload.bpf.o" or "libcore.so", else ObjectFileError."""
    places = candidates()
    for place in places:
        if (place / name).is_file():
            return place / name
    raise ObjectFileError(name, f"not found in {', '.join(map(str, places))}", "build it with `make -C kernel`")
