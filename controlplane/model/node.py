"""Who asks: the identity that an xDS client claims in its ``Node`` message.

Istio's node id has four parts, ``type~ip~name.namespace~dns-domain``, and most of what translation needs besides is
in the metadata (``LABELS``, ``NAMESPACE``, ``SERVICE_ACCOUNT``, ``INSTANCE_IPS``, ``GENERATOR`` ...).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from controlplane.model.labels import Labels, freeze

NodeType = Literal["sidecar", "router", "waypoint", "ztunnel", "agentgateway"]
Generator = Literal["", "grpc", "event", "api"]
#: How a sidecar's connections get to it. HOME is ours: an Envoy that takes what the kernel's programs of its node
#: leave. Its bootstrap has the listeners that connections arrive at, so it is sent neither those nor anything inbound.
Interception = Literal["REDIRECT", "TPROXY", "NONE", "HOME"]

_NODE_TYPES: frozenset[str] = frozenset(get_args(NodeType))
_INTERCEPTIONS: frozenset[str] = frozenset(get_args(Interception))


#: How agents of the kernel's programs call themselves.
AGENT: Final = "underpass-agent"


class NodeError(ValueError):
    """A client's node identity cannot be used; the message says which part and what is expected."""


@dataclass(frozen=True, slots=True)
class Node:
    """One xDS client.

    Two nodes whose :attr:`view` is equal are served equal resources, so callers may compute a view once.
    """

    id: str
    type: NodeType
    ips: tuple[str, ...]
    name: str
    namespace: str
    domain: str
    labels: Labels = ()
    service_account: str = ""
    cluster_id: str = "Kubernetes"
    node_name: str = ""
    generator: str = ""
    interception: Interception = "REDIRECT"
    #: False for an upstream Envoy that does not claim to be istio-proxy: it has no ``sds-grpc`` cluster, so nothing
    #: that needs a certificate may be sent to it.
    mesh_certificates: bool = True
    locality: tuple[str, str, str] = ("", "", "")
    #: An agent of the kernel's programs, which no EnvoyFilter is for.
    kernel: bool = False
    #: What the proxy says its version is (``ISTIO_VERSION``).
    version: str = ""

    @property
    def view(self) -> tuple[object, ...]:
        """The part of the identity on which the translated resources depend (hashable)."""
        return (
            self.type,
            self.ips,
            self.namespace,
            self.domain,
            self.labels,
            self.service_account,
            self.cluster_id,
            self.generator,
            self.interception,
            self.mesh_certificates,
            self.locality,
            self.kernel,
            self.version,
        )


def _text(metadata: Mapping[str, object], key: str) -> str:
    value = metadata.get(key)
    return value if isinstance(value, str) else ""


def parse_node(
    node_id: str,
    metadata: Mapping[str, object],
    *,
    user_agent: str = "",
    locality: tuple[str, str, str] = ("", "", ""),
) -> Node:
    """Build a :class:`Node` from an xDS node id and its metadata (a ``Struct`` as plain Python values).

    ``user_agent`` is ``Node.user_agent_name``.  Raises :class:`NodeError` when the id has not four parts, the type is
    unknown, or no usable IP address is given for a type that needs one.  An empty IP part is accepted where
    ``INSTANCE_IPS`` has one, and for istioctl (``GENERATOR`` ``event``), which sends none on a host without network.
    """
    parts = node_id.split("~")
    if len(parts) != 4:
        raise NodeError(f"node id {node_id!r} has {len(parts)} parts; expected four: type~ip~name.namespace~dns-domain")
    kind, ip, full_name, domain = parts
    if kind not in _NODE_TYPES:
        raise NodeError(f"node id {node_id!r}: unknown type {kind!r}; expected one of {', '.join(sorted(_NODE_TYPES))}")
    generator = _text(metadata, "GENERATOR")
    claimed = [text.strip() for text in _text(metadata, "INSTANCE_IPS").split(",") if text.strip()] or [ip]
    ips: list[str] = []
    for text in claimed:
        try:
            address = str(ipaddress.ip_address(text))
        except ValueError:
            continue
        if address not in ips:
            ips.append(address)
    if not ips and generator not in ("event", "api"):
        raise NodeError(f"node id {node_id!r}: neither its second part nor INSTANCE_IPS holds an IP address")
    name, _, name_namespace = full_name.rpartition(".")
    if not name:
        name, name_namespace = full_name, ""
    raw_labels = metadata.get("LABELS")
    labels = (
        freeze({str(k): v for k, v in raw_labels.items() if isinstance(v, str)})
        if isinstance(raw_labels, Mapping)
        else ()
    )
    mode = _text(metadata, "INTERCEPTION_MODE")
    istio_proxy = "ISTIO_VERSION" in metadata or "PROXY_CONFIG" in metadata
    return Node(
        id=node_id,
        type=kind,  # type: ignore[arg-type]  # membership was checked above
        ips=tuple(ips),
        name=name,
        namespace=_text(metadata, "NAMESPACE") or domain.split(".")[0] or name_namespace or "default",
        domain=domain,
        labels=labels,
        service_account=_text(metadata, "SERVICE_ACCOUNT"),
        cluster_id=_text(metadata, "CLUSTER_ID") or "Kubernetes",
        node_name=_text(metadata, "NODE_NAME"),
        generator=generator,
        interception=mode if mode in _INTERCEPTIONS else "REDIRECT",  # type: ignore[arg-type]  # checked
        mesh_certificates=istio_proxy or user_agent != "envoy",
        locality=locality,
        kernel=user_agent == AGENT,
        version=_text(metadata, "ISTIO_VERSION"),
    )
