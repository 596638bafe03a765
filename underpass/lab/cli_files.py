"""Files as the user names them on the command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from underpass.lab.config import STDIN
from underpass.lab.errors import LabError
from underpass.lab.model import SourceFile


def read_file(path: str) -> SourceFile:
    """A file as the user named it; `-` is standard input. Raises LabError."""
    try:
        data = sys.stdin.buffer.read() if path == STDIN else Path(path).read_bytes()
    except OSError as error:
        raise LabError(f"cannot read {path}", error.strerror or "", "name an existing YAML file", 2) from error
    name = STDIN if path == STDIN else os.path.abspath(path)
    return SourceFile("", name, data.decode("utf-8", "surrogateescape"))


def read_all(paths: list[str]) -> list[SourceFile]:
    """All files of the command line; a directory stands for its YAML files, by name. Raises LabError."""
    out: list[SourceFile] = []
    for path in paths:
        if path != STDIN and Path(path).is_dir():
            inside = sorted(p for p in Path(path).iterdir() if p.suffix in (".yaml", ".yml", ".json"))
            if not inside:
                raise LabError(
                    f"no YAML in {path}", "the directory has no .yaml, .yml or .json file", "name another", 2
                )
            out += [read_file(str(p)) for p in inside]
        else:
            out.append(read_file(path))
    return out
