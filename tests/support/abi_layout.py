"""Where `nodeagent/abi/{layout,numbers}.py` come from: compiles kernel/include/abi.h to BTF and renders it.

`python -m tests.support.abi_layout --write` after every change of abi.h; without the flag it only compares (status 1).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from nodeagent.abi import btf

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "kernel" / "include" / "abi.h"
COUNTS = HEADER.with_name("counts.h")  # a part of it
REASONS = ROOT / "kernel" / "core" / "reasons.h"
ABI = ROOT / "nodeagent" / "abi"


def tools() -> tuple[str, str] | None:
    """clang and bpftool, or None when either is missing."""
    clang = next(filter(None, (shutil.which(name) for name in ("clang-19", "clang"))), None)
    bpftool = shutil.which("bpftool") or shutil.which("bpftool", path="/usr/sbin:/sbin")
    return (clang, bpftool) if clang and bpftool else None


def dump(obj: Path) -> Any:
    """BTF of an object file, as bpftool prints it."""
    found = tools()
    assert found is not None, "bpftool is missing"
    text = subprocess.run([found[1], "btf", "dump", "-j", "file", str(obj)], check=True, capture_output=True, text=True)
    return json.loads(text.stdout)


def header_btf() -> Any:
    """BTF of every structure and enumeration of abi.h, whether a program uses it or not."""
    found = tools()
    assert found is not None, "clang or bpftool is missing"
    text = HEADER.read_text() + COUNTS.read_text()
    lines = ["#include <linux/bpf.h>", f'#include "{HEADER}"']
    for keyword in ("struct", "enum"):
        for name in sorted(set(re.findall(rf"^{keyword} (up_\w+) {{", text, re.MULTILINE))):
            lines.append(f"{keyword} {name} one_{name};")
    with tempfile.TemporaryDirectory() as directory:
        source, out = Path(directory, "abi.c"), Path(directory, "abi.o")
        source.write_text("\n".join(lines) + "\n")
        command = [found[0], "-target", "bpf", "-g", "-O2", "-D__BPF__"]
        command += [f"-I/usr/include/{triple}" for triple in ("x86_64-linux-gnu", "aarch64-linux-gnu")]
        subprocess.run([*command, "-c", str(source), "-o", str(out)], check=True)
        return dump(out)


def rendered() -> dict[Path, str]:
    """File -> what it should hold."""
    data = header_btf()
    return {
        ABI / "layout.py": btf.render_layout(data),
        ABI / "numbers.py": btf.render_numbers(data, HEADER.read_text() + COUNTS.read_text(), REASONS.read_text()),
    }


def main(arguments: list[str]) -> int:
    """Entry point."""
    stale = [path for path, text in rendered().items() if not path.exists() or path.read_text() != text]
    for path, text in rendered().items():
        if path in stale and "--write" in arguments:
            path.write_text(text)
    print("\n".join(f"{'written' if '--write' in arguments else 'stale'}: {path}" for path in stale) or "up to date")
    return 0 if "--write" in arguments or not stale else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
