"""Small BPF programs for tests, compiled on the spot with clang-19."""

from __future__ import annotations

import subprocess
from pathlib import Path

_FLAGS = ["-g", "-O2", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror", "-I/usr/include/x86_64-linux-gnu"]

PRELUDE = """
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
char LICENSE[] SEC("license") = "GPL";
"""


def build(directory: Path, name: str, source: str) -> Path:
    """Compiles `source` (after the usual includes) to NAME.bpf.o."""
    text, built = directory / f"{name}.bpf.c", directory / f"{name}.bpf.o"
    text.write_text(PRELUDE + source)
    subprocess.run(["clang-19", *_FLAGS, "-c", str(text), "-o", str(built)], check=True)
    return built
