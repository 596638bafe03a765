"""PeerAuthentication: which of plain text and mutual TLS a workload takes, and what clients should expect.  Pure."""

from __future__ import annotations

from typing import Final, Literal

from controlplane.model.labels import Labels, freeze, selects
from controlplane.model.mesh import Mesh
from controlplane.model.objects import Config

Mode = Literal["DISABLE", "PERMISSIVE", "STRICT"]
_MODES: Final[dict[int, Mode]] = {1: "DISABLE", 2: "PERMISSIVE", 3: "STRICT"}


def policies_by_level(mesh: Mesh, namespace: str, labels: Labels) -> dict[int, Config]:
    """The policy that counts at each level: 0 mesh, 1 namespace, 2 workload; the oldest of a level."""
    out: dict[int, Config] = {}
    for config in mesh.peer_authentications:
        space = config.meta.key.namespace
        selector = freeze(config.spec.selector.match_labels)
        if selector:
            if space == namespace and selects(selector, labels):
                out.setdefault(2, config)
        elif space == namespace:
            out.setdefault(1, config)
        elif space == mesh.root_namespace:
            out.setdefault(0, config)
    return out


def workload_mode(mesh: Mesh, namespace: str, labels: Labels, port: int) -> Mode:
    """What a workload takes on ``port``: workload before namespace before mesh; PERMISSIVE when nobody says."""
    mode: Mode = "PERMISSIVE"
    levels = policies_by_level(mesh, namespace, labels)
    for _, config in sorted(levels.items()):
        mode = _MODES.get(config.spec.mtls.mode, mode)
    own = levels.get(2)
    if own is not None and port in own.spec.port_level_mtls:
        mode = _MODES.get(own.spec.port_level_mtls[port].mode, mode)
    return mode


def special_ports(mesh: Mesh, namespace: str, labels: Labels) -> list[int]:
    """Ports for which the workload's own policy makes an exception."""
    own = policies_by_level(mesh, namespace, labels).get(2)
    return sorted(own.spec.port_level_mtls) if own is not None else []


def service_mode(mesh: Mesh, namespace: str) -> Mode:
    """What clients expect of the services of a namespace: its own policy, else the mesh's, selectors aside."""
    mode: Mode = "PERMISSIVE"
    for level, config in sorted(policies_by_level(mesh, namespace, ()).items()):
        if level < 2:
            mode = _MODES.get(config.spec.mtls.mode, mode)
    return mode
