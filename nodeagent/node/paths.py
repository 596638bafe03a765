"""Where a node keeps what: its run directory, its directory on the bpffs, its cgroups."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

RUN_ROOT = Path("/run/underpass")
_LONGEST = 200  # of a directory's name on the bpffs, with room below NAME_MAX (255)


@dataclass(frozen=True, slots=True)
class NodePaths:
    """All paths of one node.

    run: /run/underpass/NODE; bpffs: /sys/fs/bpf/underpass/NODE; cgroup: <cgroup2 mount>/underpass/NODE.
    """

    node: str
    run: Path
    bpffs: Path
    cgroup: Path

    @classmethod
    def of(
        cls, node: str, bpffs_mount: Path, cgroup_mount: Path, run: Path | None = None, bpffs: Path | None = None
    ) -> NodePaths:
        """The usual places under the given mounts, or those that flags name instead."""
        return cls(
            node,
            run or RUN_ROOT / node,
            bpffs or bpffs_mount / "underpass" / node,
            cgroup_mount / "underpass" / node,
        )

    @property
    def workloads(self) -> Path:
        """The registry: one JSON file per workload."""
        return self.run / "workloads"

    @property
    def maps(self) -> Path:
        """Pinned maps by name."""
        return self.bpffs / "maps"

    @property
    def programs(self) -> Path:
        """Pinned programs by name."""
        return self.bpffs / "progs"

    @property
    def links(self) -> Path:
        """Pinned links: one directory per workload, `home` and `waypoint`."""
        return self.bpffs / "links"

    @property
    def home_cgroup(self) -> Path:
        """The cgroup of the home process."""
        return self.cgroup / "home"

    @property
    def waypoint_cgroup(self) -> Path:
        """The cgroup of the node's Envoy."""
        return self.cgroup / "waypoint"

    def links_of(self, key: str) -> Path:
        """Directory of one workload's links; key: "namespace/name"."""
        return self.links / pin_name(key)


def pin_name(key: str) -> str:
    """A name for the bpffs, which takes no dots. One to one: Kubernetes names have neither `_` nor `~`."""
    name = key.replace("/", "~").replace(".", "_")
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 17]}~{hashlib.sha256(key.encode()).hexdigest()[:16]}"
