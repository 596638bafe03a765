"""Collects what is wrong with one object, and small checks that several kinds share.  Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Any, Final

import re2

from controlplane.model.objects import Config
from controlplane.model.verdict import Note
from controlplane.sources.rejection import RejectedError

#: Envoy's default for ``re2.max_program_size.error_level``; Istio's bootstrap raises it, a stock Envoy's does not.
ENVOY_REGEX_SIZE: Final = 100

_LABEL: Final = re.compile(r"[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?")
_HEADER: Final = re.compile(r":?[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_OPTIONS: Final = re2.Options()
_OPTIONS.log_errors = False


class Findings:
    """Errors and notes of one object.  :meth:`finish` raises the errors as one rejection, else returns the notes."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._errors: list[tuple[str, str, str]] = []
        self._notes: list[Note] = []

    def error(self, code: str, message: str, path: str = "") -> None:
        """The object cannot be used."""
        self._errors.append((code, message, path))

    def note(self, code: str, message: str, path: str = "") -> None:
        """The object is used, and its author should know something."""
        self._notes.append(Note(self._config.line(path), code, message))

    def finish(self) -> list[Note]:
        """Raise :class:`RejectedError` for the first error, with the others in its text; else return the notes."""
        if self._errors:
            code, _, path = self._errors[0]
            shown = [f"{where}: {text}" if where else text for _, text, where in self._errors[:5]]
            more = len(self._errors) - len(shown)
            raise RejectedError(code, "; ".join(shown) + (f"; and {more} more" if more else ""), path)
        return self._notes

    def regex(self, pattern: str, path: str) -> None:
        """A pattern must be RE2 syntax, Envoy's engine."""
        try:
            compiled = re2.compile(pattern, _OPTIONS)
        except re2.error as error:
            reason = error.args[0] if error.args else "not RE2 syntax"
            text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
            self.error("bad-regex", f"regex {pattern!r} is not valid RE2: {text}", path)
            return
        size = compiled.programsize
        if size > ENVOY_REGEX_SIZE:
            self.note(
                "large-regex",
                f"regex {pattern!r} compiles to {size} instructions; an Envoy whose bootstrap does not raise "
                f"re2.max_program_size.error_level above {ENVOY_REGEX_SIZE} refuses it",
                path,
            )

    def duration(self, message: Any, name: str, path: str, *, zero: bool = False) -> None:
        """A set duration must be 1 ms or more (or 0 where that means "off")."""
        if not message.HasField(name):
            return
        value = getattr(message, name)
        nanos = value.seconds * 10**9 + value.nanos
        if nanos == 0 and zero:
            return
        if nanos < 10**6:
            self.error("bad-duration", "a duration must be at least 1ms", path)

    def percent(self, value: float, path: str) -> None:
        """A percentage must be 0 to 100."""
        if not 0.0 <= value <= 100.0:
            self.error("bad-percentage", f"{value:g} is not a percentage between 0 and 100", path)

    def port(self, number: int, path: str) -> None:
        """A port must be 1 to 65535."""
        if not 0 < number < 65536:
            self.error("bad-port", f"{number} is not a port (1 to 65535)", path)

    def header(self, name: str, path: str) -> None:
        """A header's name must be an HTTP token."""
        if not _HEADER.fullmatch(name):
            self.error("bad-header", f"{name!r} is not a header name", path)

    def label(self, text: str, what: str, path: str) -> None:
        """A name must be a DNS label."""
        if len(text) > 63 or not _LABEL.fullmatch(text):
            self.error("bad-name", f"{what} {text!r} is not a DNS label (letters, digits, '-', at most 63)", path)

    def host(self, text: str, path: str, *, ip: bool = True) -> None:
        """A host must be a DNS name, ``*``, ``*.suffix`` or, where allowed, an IP address."""
        if not text:
            self.error("bad-host", "a host must not be empty", path)
        elif is_ip(text):
            if not ip:
                self.error("bad-host", f"{text!r} is an address; a name is needed", path)
        elif text != "*":
            rest = text[1:].lstrip("-.") if text.startswith("*") else text
            parts = rest.removesuffix(".").split(".")
            if len(text) > 255 or not all(
                len(part) <= 63 and re.fullmatch(r"[a-zA-Z0-9_]([-a-zA-Z0-9_]*[a-zA-Z0-9_])?", part) for part in parts
            ):
                self.error("bad-host", f"{text!r} is neither a DNS name nor a wildcard like *.example.com", path)

    def subnets(self, values: Iterable[str], path: str) -> None:
        """Each value must be an IP address or a CIDR block."""
        for value in values:
            try:
                ipaddress.ip_network(value, strict=False)
            except ValueError:
                self.error("bad-address", f"{value!r} is neither an IP address nor a CIDR block", path)

    def gateway_name(self, name: str, path: str) -> None:
        """A gateway reference is ``mesh``, ``name`` or ``namespace/name``."""
        parts = name.split("/")
        if len(parts) > 2 or not all(parts):
            self.error("bad-gateway", f"{name!r} is neither mesh, a name nor namespace/name", path)

    def export_to(self, values: Iterable[str]) -> None:
        """``exportTo`` holds namespaces, ``.``, ``*`` or ``~``."""
        seen: set[str] = set()
        for index, value in enumerate(values):
            path = f"exportTo[{index}]"
            if value in seen:
                self.error("bad-export", f"{value!r} is listed twice", path)
            seen.add(value)
            if value not in (".", "*", "~"):
                self.label(value, "namespace", path)


def is_ip(text: str) -> bool:
    """Whether the text is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
