"""What policies say they are for, and whether there is such a thing.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from controlplane.model.gateway_objects import KubeGateway
from controlplane.model.mesh import Mesh
from controlplane.model.objects import Config, Key, Object
from controlplane.model.verdict import Note


def target_refs(policy: Config) -> list[tuple[str, Any]]:
    """A policy's targets with their field paths; the older singular field counts too."""
    spec = policy.spec
    listed = [(f"targetRefs[{index}]", target) for index, target in enumerate(spec.target_refs)]
    return [*listed, *([("targetRef", spec.target_ref)] if spec.HasField("target_ref") else [])]


def review(mesh: Mesh, objects: Mapping[Key, Object]) -> Iterator[tuple[Key, Note]]:
    """Remarks on policies whose target is not there: nobody enforces them, and that must be said."""
    known = {("Gateway", *_name(item)) for item in objects.values() if isinstance(item, KubeGateway)}
    policies: Iterable[Config] = (*mesh.authorization_policies, *mesh.request_authentications)
    for policy in policies:
        space = policy.meta.key.namespace
        for path, target in target_refs(policy):
            if (target.kind, space, target.name) not in known:
                text = f"there is no {target.kind} {space}/{target.name}: the policy has no effect there"
                yield policy.meta.key, Note(policy.line(path), "unknown-target", text)


def _name(item: KubeGateway) -> tuple[str, str]:
    return item.meta.key.namespace, item.meta.key.name
