"""Views: which xDS clients the node's workloads are (pure).

Workloads with equal namespace, labels and service account see the same configuration, so they share one stream.
The stream speaks in the name of one of them, its *representative*; it stays the representative while it lives,
because a change of the node id costs a reconnect.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol


class WorkloadLike(Protocol):
    """What a view needs to know of a workload (`nodeagent.node.registry.Workload` has it)."""

    @property
    def name(self) -> str:
        """Pod-like name."""
        ...

    @property
    def namespace(self) -> str:
        """Its namespace."""
        ...

    @property
    def service_account(self) -> str:
        """Its service account."""
        ...

    @property
    def labels(self) -> Mapping[str, str]:
        """All labels."""
        ...

    @property
    def ips(self) -> tuple[str, ...]:
        """Own addresses, the primary one first."""
        ...

    @property
    def node(self) -> str:
        """Name of the node."""
        ...

    @property
    def owner(self) -> str:
        """Deployment, Pod or WorkloadEntry."""
        ...

    @property
    def cluster(self) -> str:
        """Istio cluster id."""
        ...


@dataclass(frozen=True, slots=True)
class View:
    """One xDS client: `key` is stable for (namespace, labels, service account); `id` is Istio's four-part node id."""

    key: str
    id: str
    namespace: str
    service_account: str
    labels: tuple[tuple[str, str], ...]
    name: str
    ips: tuple[str, ...]
    node: str
    cluster: str
    owner: str

    def metadata(self) -> dict[str, object]:
        """Node metadata as an Istio sidecar sends it.

        ISTIO_VERSION stays unset: it would ask a control plane for Istio's own Envoy extensions. The interception mode
        must not be NONE: such a sidecar gets no inbound listener, and so would never hear of the workload's policies.
        """
        return {
            "NAME": self.name,
            "NAMESPACE": self.namespace,
            "LABELS": dict(self.labels),
            "SERVICE_ACCOUNT": self.service_account,
            "CLUSTER_ID": self.cluster,
            "INSTANCE_IPS": ",".join(self.ips),
            "NODE_NAME": self.node,
            "WORKLOAD_NAME": self.owner,
            "INTERCEPTION_MODE": "REDIRECT",
        }


def view_key(namespace: str, service_account: str, labels: Mapping[str, str]) -> str:
    """Stable short name of a view: namespace, service account and a hash over the labels."""
    digest = hashlib.sha256(json.dumps(sorted(labels.items())).encode()).hexdigest()[:12]
    return f"{namespace}/{service_account}/{digest}"


def views(workloads: Iterable[WorkloadLike], previous: Mapping[str, View]) -> dict[str, View]:
    """The views of `workloads` by key.

    A view of `previous` is kept as it is while its representative lives unchanged; otherwise the first workload by
    name represents it.
    """
    groups: dict[str, list[WorkloadLike]] = {}
    for workload in workloads:
        if workload.ips:
            key = view_key(workload.namespace, workload.service_account, workload.labels)
            groups.setdefault(key, []).append(workload)
    result: dict[str, View] = {}
    for key in sorted(groups):
        candidates = [_view(key, w) for w in sorted(groups[key], key=lambda w: w.name)]
        old = previous.get(key)
        result[key] = old if old in candidates else candidates[0]
    return result


def key_of(workload: WorkloadLike) -> str:
    """The key of the view that a workload belongs to."""
    return view_key(workload.namespace, workload.service_account, workload.labels)


def _view(key: str, w: WorkloadLike) -> View:
    return View(
        key=key,
        id=f"sidecar~{w.ips[0]}~{w.name}.{w.namespace}~{w.namespace}.svc.cluster.local",
        namespace=w.namespace,
        service_account=w.service_account,
        labels=tuple(sorted(w.labels.items())),
        name=w.name,
        ips=tuple(w.ips),
        node=w.node,
        cluster=w.cluster,
        owner=w.owner,
    )
