"""A copy of what the store held, as bytes for a file: what a replica that starts while the etcd is away serves. Pure.

A line of JSON about the whole, one for each key, and a last one with a hash of all before it: a copy that is cut short
or damaged is none. It is written aside and renamed, by whoever does the I/O.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from controlplane.store.layout import Entry

_FORM: Final = 1


class CopyError(ValueError):
    """The bytes are no copy, or not one of this store; the message says why."""


@dataclass(frozen=True, slots=True)
class Copy:
    """The keys below ``prefix`` at ``revision`` of the cluster."""

    prefix: str
    cluster: int
    revision: int
    entries: Mapping[str, Entry]


def dump(copy: Copy) -> bytes:
    """The bytes of a copy."""
    about = {"form": _FORM, "prefix": copy.prefix, "cluster": copy.cluster, "revision": copy.revision}
    rows = [
        [entry.key, entry.created, entry.modified, base64.b64encode(entry.value).decode()]
        for _, entry in sorted(copy.entries.items())
    ]
    body = "".join(json.dumps(row) + "\n" for row in (about, *rows)).encode()
    return body + _hash(body) + b"\n"


def load(data: bytes, prefix: str) -> Copy:
    """Read a copy of *prefix*. Raises :class:`CopyError`; nothing that the bytes contain raises anything else."""
    body, _, last = data.removesuffix(b"\n").rpartition(b"\n")
    body += b"\n"
    if last != _hash(body):
        raise CopyError("it is damaged or cut short: its hash is not that of its content")
    try:
        about, *rows = [json.loads(line) for line in body.splitlines()]
        if about["form"] != _FORM or about["prefix"] != prefix:
            raise CopyError(
                f"it is a copy of {about['prefix']} in form {about['form']}, not of {prefix} in form {_FORM}"
            )
        entries = {
            key: Entry(key, base64.b64decode(value, validate=True), int(created), int(modified))
            for key, created, modified, value in rows
        }
        return Copy(prefix, int(about["cluster"]), int(about["revision"]), entries)
    except CopyError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise CopyError(f"it is none: {error}") from error


def _hash(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).hexdigest().encode()
