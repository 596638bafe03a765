"""Objects sorted into tables by what they are looked up by, and what differs between two sets of objects.  Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from controlplane.model.labels import Labels
from controlplane.model.objects import Config, Key, KubeEndpointSlice, KubeNode, KubePod, KubeService, Object


@dataclass(slots=True)
class Tables:
    """Objects by what they are looked up by; never changed once they are filled."""

    pods: dict[tuple[str, str], KubePod] = field(default_factory=dict)
    by_namespace: dict[str, list[KubePod]] = field(default_factory=lambda: defaultdict(list))
    slices: dict[tuple[str, str], tuple[KubeEndpointSlice, ...]] = field(default_factory=dict)
    nodes: dict[str, Labels] = field(default_factory=dict)
    entries: dict[str, list[Config]] = field(default_factory=lambda: defaultdict(list))
    services: list[KubeService] = field(default_factory=list)
    service_entries: list[Config] = field(default_factory=list)

    @classmethod
    def of(cls, objects: Mapping[Key, Object]) -> Tables:
        """Sort all objects in."""
        out = cls()
        slices: dict[tuple[str, str], list[KubeEndpointSlice]] = defaultdict(list)
        for key in sorted(objects):
            item = objects[key]
            if isinstance(item, KubePod):
                out.pods[key.namespace, key.name] = item
                if not item.terminal:
                    out.by_namespace[key.namespace].append(item)
            elif isinstance(item, KubeEndpointSlice):
                slices[key.namespace, item.service].append(item)
            elif isinstance(item, KubeNode):
                out.nodes[key.name] = item.meta.labels
            elif isinstance(item, KubeService):
                out.services.append(item)
            elif isinstance(item, Config) and key.kind == "WorkloadEntry":
                out.entries[key.namespace].append(item)
            elif isinstance(item, Config) and key.kind == "ServiceEntry":
                out.service_entries.append(item)
        out.slices = {key: tuple(found) for key, found in slices.items()}
        return out


@dataclass(frozen=True, slots=True)
class Changed:
    """One object that is not what it was: before and after, None where there is none."""

    key: Key
    old: Object | None
    new: Object | None

    def concerns(self, *kinds: type[Any]) -> bool:
        """Whether it is, or was, of one of these classes."""
        return isinstance(self.old, kinds) or isinstance(self.new, kinds)


def changes(before: Mapping[Key, Object], after: Mapping[Key, Object]) -> tuple[Changed, ...]:
    """What differs between two sets of objects, told by identity: equal objects are expected to be the same ones."""
    found = [Changed(key, before.get(key), item) for key, item in after.items() if before.get(key) is not item]
    if len(before) + sum(item.old is None for item in found) != len(after):
        found += [Changed(key, item, None) for key, item in before.items() if key not in after]
    return tuple(found)
