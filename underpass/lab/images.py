"""The lab file: which local process an image stands for. Pure.

    images:
      docker.io/library/redis: [redis-server, --port, $(UNDERPASS_PORTS)]
      registry.example.com/team/*:                 # shell patterns match, too
        command: python3 -m http.server $(UNDERPASS_PORTS)
        env: {MODE: lab}
      busybox: {}                                  # an empty entry: our sample server, said explicitly

`$(NAME)` is expanded from the process's environment, as Kubernetes expands it in `command` and `args`.
"""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.sources.documents import parse
from underpass.lab.errors import ManifestError

_VARIABLE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")


@dataclass(frozen=True, slots=True)
class Image:
    """What plays an image. No `command`: the sample server."""

    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Images:
    """The images of a lab file, in its order."""

    entries: tuple[tuple[str, Image], ...] = ()

    def find(self, image: str) -> Image | None:
        """The entry for `image`: its exact name, then its name without tag and digest, then the first pattern."""
        named = dict(self.entries)
        for name in (image, bare_name(image)):
            if name in named:
                return named[name]
        for pattern, entry in self.entries:
            if fnmatch.fnmatchcase(image, pattern) or fnmatch.fnmatchcase(bare_name(image), pattern):
                return entry
        return None


def bare_name(image: str) -> str:
    """An image's name without tag and digest; a registry's port is no tag."""
    name = image.split("@", 1)[0]
    head, slash, tail = name.rpartition("/")
    return head + slash + tail.split(":", 1)[0]


def expand(text: str, env: Mapping[str, str]) -> str:
    """`$(NAME)` from `env`; an unknown name stays as it is and `$$` is one dollar sign (Kubernetes' rules)."""

    def one(match: re.Match[str]) -> str:
        if match[1] is None:
            return "$"
        return env.get(match[1], match[0])

    return _VARIABLE.sub(one, text)


def parse_lab_file(file: str, text: str) -> Images:
    """The lab file's images. Raises ManifestError for anything that is not one."""
    documents = parse(file, text)
    for document in documents:
        if document.error is not None:
            raise ManifestError(file, document.error[2], document.error[1])
    if not documents:
        return Images()
    first = documents[0]
    if len(documents) > 1 or not isinstance(first.data, dict) or set(first.data) - {"images"}:
        raise ManifestError(file, first.line, "a lab file is one mapping with the key 'images'")
    images = first.data.get("images") or {}
    if not isinstance(images, dict):
        raise ManifestError(file, first.line, "'images' must map an image to a command")
    return Images(tuple((name, _entry(file, first.line, name, value)) for name, value in images.items()))


def _entry(file: str, line: int, name: str, value: object) -> Image:
    env: dict[str, str] = {}
    if isinstance(value, dict):
        unknown = set(value) - {"command", "env"}
        if unknown:
            raise ManifestError(file, line, f"image {name!r}: unknown key {sorted(unknown)[0]!r} (command, env)")
        pairs = value.get("env") or {}
        if not isinstance(pairs, dict):
            raise ManifestError(file, line, f"image {name!r}: env must map names to values")
        env = {str(key): _text(item) for key, item in pairs.items()}
        value = value.get("command")
    if value is None:
        return Image((), env)
    if isinstance(value, str):
        try:
            return Image(tuple(shlex.split(value)), env)
        except ValueError as error:
            raise ManifestError(file, line, f"image {name!r}: command: {error}") from error
    if isinstance(value, list) and value and all(isinstance(part, str | int | float) for part in value):
        return Image(tuple(_text(part) for part in value), env)
    raise ManifestError(file, line, f"image {name!r}: the command must be a string or a list of strings")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
