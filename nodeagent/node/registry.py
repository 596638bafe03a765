"""The local registry of workloads: a directory of JSON files, one per workload, written atomically by their starter.

`parse` is total: any bytes give a workload or a `RegistryError`. A file that cannot be read does not remove the
workload that it described before: enrolment ends only with the file itself.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodeagent.errors import AgentError


class RegistryError(AgentError):
    """A registry file does not describe a workload."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One enrolled workload. ips: its addresses in their usual spelling, the first is the primary one."""

    name: str
    owner: str
    namespace: str
    service_account: str
    labels: Mapping[str, str]
    ips: tuple[str, ...]
    netns: Path
    cgroup: Path
    interface: str
    host_interface: str
    node: str
    ports: tuple[int, ...]
    cluster: str
    trust_domain: str

    @property
    def key(self) -> str:
        """What tells it from all others of the node: "namespace/name"."""
        return f"{self.namespace}/{self.name}"


_TEXTS = ("name", "namespace", "netns", "cgroup", "interface", "host_interface")
_DEFAULTS = {
    "service_account": "default", "node": "", "cluster": "Kubernetes", "trust_domain": "cluster.local"
}  # fmt: skip


def parse(data: bytes, where: str = "workload") -> Workload:
    """Reads one file's content. RegistryError names the field."""

    def wrong(why: str) -> RegistryError:
        return RegistryError(f"registry entry {where}", why, "see docs: workload registry")

    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as cause:
        raise wrong(f"not JSON: {cause}") from None
    if not isinstance(raw, dict):
        raise wrong("not a JSON object")

    def text(field: str, default: str | None = None) -> str:
        value = raw.get(field, default)
        if not isinstance(value, str) or (not value and default is None) or "\0" in value:
            raise wrong(f"`{field}` must be a non-empty string")
        return value

    texts = {field: text(field) for field in _TEXTS} | {f: text(f, default) for f, default in _DEFAULTS.items()}
    for field in ("name", "namespace"):
        if "/" in texts[field] or texts[field].startswith("."):
            raise wrong(f"`{field}` is not a Kubernetes name")
    for field in ("netns", "cgroup"):
        if not texts[field].startswith("/"):
            raise wrong(f"`{field}` must be an absolute path")
    for field in ("interface", "host_interface"):
        if len(texts[field].encode()) > 15:
            raise wrong(f"`{field}` is longer than an interface's name can be")
    return Workload(
        name=texts["name"],
        owner=text("owner", texts["name"]),
        namespace=texts["namespace"],
        service_account=texts["service_account"],
        labels=_labels(raw.get("labels", {}), wrong),
        ips=_ips(raw.get("ips"), wrong),
        netns=Path(texts["netns"]),
        cgroup=Path(texts["cgroup"]),
        interface=texts["interface"],
        host_interface=texts["host_interface"],
        node=texts["node"],
        ports=_ports(raw.get("ports", []), wrong),
        cluster=texts["cluster"],
        trust_domain=texts["trust_domain"],
    )


def _labels(raw: Any, wrong: Any) -> dict[str, str]:
    if not isinstance(raw, dict) or not all(isinstance(v, str) for v in raw.values()):
        raise wrong("`labels` must be an object of strings")
    return dict(sorted(raw.items()))


def _ips(raw: Any, wrong: Any) -> tuple[str, ...]:
    if not isinstance(raw, list) or not raw:
        raise wrong("`ips` must be a list with at least one address")
    try:
        return tuple(str(ipaddress.ip_address(ip)) if isinstance(ip, str) else _not_text() for ip in raw)
    except ValueError as cause:
        raise wrong(f"`ips`: {cause}") from None


def _not_text() -> str:
    raise ValueError("an address is not a string")


def _ports(raw: Any, wrong: Any) -> tuple[int, ...]:
    if not isinstance(raw, list) or not all(type(port) is int and 0 < port < 65536 for port in raw):
        raise wrong("`ports` must be a list of port numbers")
    return tuple(raw)


@dataclass(frozen=True, slots=True)
class Change:
    """What `Registry.poll` found: workloads that came or changed, keys that went, and files that could not be read."""

    present: tuple[Workload, ...] = ()
    absent: tuple[str, ...] = ()
    errors: tuple[RegistryError, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.present or self.absent or self.errors)


_Stamp = tuple[int, int, int]


class Registry:
    """The directory as it was at the last poll. Polling costs one stat call as long as nothing changes."""

    def __init__(self, directory: Path) -> None:
        """The directory need not exist yet: then there are no workloads."""
        self.directory = directory
        self.workloads: dict[str, Workload] = {}
        self._files: dict[str, tuple[_Stamp, str | None]] = {}  # file name -> stamp, key of its workload
        self._seen: int | None = None
        self._settled = False

    def poll(self) -> Change:
        """What changed since the last call. An error is told once per version of a file."""
        try:
            stamp: int | None = os.stat(self.directory).st_mtime_ns
        except FileNotFoundError:
            stamp = None
        if stamp == self._seen and self._settled:
            return Change()
        # two renames within one tick of the file system's clock have one stamp: look again until a tick has passed
        self._settled = stamp == self._seen
        self._seen = stamp
        return self._scan() if stamp is not None else self._forget(set(self._files))

    def _scan(self) -> Change:
        present: list[Workload] = []
        errors: list[RegistryError] = []
        names: set[str] = set()
        gone_keys: set[str] = set()
        with os.scandir(self.directory) as entries:
            found = sorted((e for e in entries if e.name.endswith(".json") and e.is_file()), key=lambda e: e.name)
        for entry in found:
            names.add(entry.name)
            try:
                status = entry.stat()
                stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
                known = self._files.get(entry.name)
                if known is not None and known[0] == stamp:
                    continue
                data = Path(entry.path).read_bytes()
            except FileNotFoundError:  # removed between listing and reading
                names.discard(entry.name)
                continue
            key = known[1] if known else None
            try:
                workload = parse(data, entry.path)
            except RegistryError as error:
                errors.append(error)
                self._files[entry.name] = (stamp, key)
                continue
            if key is not None and key != workload.key:
                gone_keys.add(key)
            self._files[entry.name] = (stamp, workload.key)
            if self.workloads.get(workload.key) != workload:
                self.workloads[workload.key] = workload
                present.append(workload)
        rest = self._forget(set(self._files) - names)
        absent = {*rest.absent, *(key for key in gone_keys if self._unowned(key))}
        for key in absent:
            self.workloads.pop(key, None)
        return Change(tuple(present), tuple(sorted(absent)), tuple(errors))

    def _unowned(self, key: str) -> bool:
        return all(owner != key for _, owner in self._files.values())

    def _forget(self, names: set[str]) -> Change:
        keys = {self._files.pop(name)[1] for name in names}
        absent = sorted(key for key in keys if key is not None and self._unowned(key))
        for key in absent:
            self.workloads.pop(key, None)
        return Change(absent=tuple(absent))
