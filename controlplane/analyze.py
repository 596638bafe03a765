"""Configuration judged without any process running: what is accepted, what each field does, what clients would get.

``underpass analyze`` and tests call this; it is pure, as everything below it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controlplane.model.labels import Labels
from controlplane.model.mesh import Mesh
from controlplane.model.node import Node
from controlplane.model.objects import Config, Key
from controlplane.model.verdict import Verdict
from controlplane.sources.documents import parse
from controlplane.sources.ingest import State, ingest
from controlplane.sources.snapshot import File, Snapshot
from controlplane.sources.support import FieldUse, fields
from controlplane.translate import Prepared, Resources, prepare, remarked, translate


@dataclass(frozen=True, slots=True)
class ObjectFields:
    """Every field that one Istio object sets, with its line, and why it has no effect if it has none."""

    key: Key
    file: str
    line: int
    fields: tuple[FieldUse, ...]

    @property
    def in_vain(self) -> tuple[FieldUse, ...]:
        """The fields without effect."""
        return tuple(use for use in self.fields if not use.honoured)


@dataclass(frozen=True, slots=True)
class Analysis:
    """The result of :func:`analyze`.

    ``verdicts`` are sorted by file and line.  ``clients`` are the views that a mesh of these files has: one sidecar
    for each distinct namespace, labels and service account among the workloads.  ``prepared`` translates for them.
    """

    verdicts: tuple[Verdict, ...]
    objects: tuple[ObjectFields, ...]
    mesh: Mesh
    clients: tuple[Node, ...]
    prepared: Prepared

    @property
    def clean(self) -> bool:
        """Whether everything was accepted without a remark."""
        return all(verdict.state == "accepted" and not verdict.notes for verdict in self.verdicts)

    def resources(self, client: Node) -> Resources:
        """Return what one client would be served."""
        return translate(self.prepared, client)


def analyze(
    files: Mapping[str, str],
    *,
    domain: str = "cluster.local",
    trust_domain: str = "cluster.local",
    root_namespace: str = "istio-system",
) -> Analysis:
    """Judge YAML texts by file name.  Never raises for what they contain."""
    snapshot = Snapshot({name: File(name, (0, 0, 0), parse(name, text)) for name, text in sorted(files.items())})
    done = ingest(State(), snapshot, domain=domain, trust_domain=trust_domain, root_namespace=root_namespace)
    objects = tuple(
        ObjectFields(key, item.meta.source.file, item.meta.source.line, tuple(fields(item)))
        for key, item in done.state.objects().items()
        if isinstance(item, Config)
    )
    ordered = tuple(sorted(objects, key=lambda item: (item.file, item.line)))
    return Analysis(remarked(done.verdicts, done.mesh), ordered, done.mesh, clients(done.mesh), prepare(done.mesh))


def clients(mesh: Mesh) -> tuple[Node, ...]:
    """One sidecar for each kind of workload; without workloads, one in each namespace that has services.

    Manifests usually hold Deployments and no Pods, so there is often nothing that runs yet; the namespace's own view
    still tells what its clients would be told.
    """
    kinds: dict[tuple[str, Labels, str], tuple[str, tuple[str, ...]]] = {}
    for _, workload in sorted(mesh.workloads.items()):
        key = (workload.namespace, workload.labels, workload.service_account)
        kinds.setdefault(key, (workload.name, workload.ips))
    served = {namespace for namespace, _, _ in kinds}
    for service in mesh.services:
        if service.namespace not in served:
            kinds.setdefault((service.namespace, (), ""), ("client", ("192.0.2.1",)))
    return tuple(
        Node(
            id=f"sidecar~{ips[0]}~{name}.{namespace}~{namespace}.svc.{mesh.domain}",
            type="sidecar",
            ips=ips,
            name=name,
            namespace=namespace,
            domain=f"{namespace}.svc.{mesh.domain}",
            labels=labels,
            service_account=account,
            kernel=True,
        )
        for (namespace, labels, account), (name, ips) in sorted(kinds.items())
    )
