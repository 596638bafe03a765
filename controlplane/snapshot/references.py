"""What a resource makes a client ask for, by what other names it is asked for, and whether a snapshot would answer.

A dangling *cluster* (a route to a cluster that CDS lacks) is normal input and answered with 503 by the client. A
dangling *subscription* is not: an Envoy that waits for the endpoints of a cluster or the routes of a listener holds
everything else back for 15 seconds.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from controlplane.snapshot.urls import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, short
from underpass.api import envoy

if TYPE_CHECKING:
    from controlplane.snapshot.state import Change, Snapshot

Reference = tuple[str, str]
"""Type URL and name of a resource."""

_CLUSTER: Final = "envoy.config.cluster.v3.Cluster"
_LISTENER: Final = "envoy.config.listener.v3.Listener"
_ADDRESS: Final = "istio.workload.Address"
_WORKLOAD: Final = "istio.workload.Workload"
_SERVICE: Final = "istio.workload.Service"
_HCM_URL: Final = envoy.type_url("HttpConnectionManager")
_UPSTREAM_TLS_URL: Final = envoy.type_url("UpstreamTlsContext")
_DOWNSTREAM_TLS_URL: Final = envoy.type_url("DownstreamTlsContext")


@dataclass(frozen=True, slots=True)
class Dangling:
    """``owner`` makes clients ask for ``wanted``, which the snapshot does not have."""

    owner: Reference
    wanted: Reference

    def __str__(self) -> str:
        owner, wanted = short(self.owner[0]), short(self.wanted[0])
        return f"{owner} {self.owner[1]} refers to {wanted} {self.wanted[1]}, which is not served"


def needs(message: Any) -> tuple[Reference, ...]:
    """The subscriptions that receiving *message* leads to, in a fixed order, each once."""
    kind = _kind(message)
    if kind == _CLUSTER:
        return tuple(dict.fromkeys(_cluster(message)))
    if kind == _LISTENER:
        return tuple(dict.fromkeys(_listener(message)))
    return ()


def aliases(message: Any) -> tuple[str, ...]:
    """Further names by which *message* may be asked for: ``network/ip`` of a workload or a service."""
    kind = _kind(message)
    if kind == _ADDRESS:
        return aliases(message.workload if message.WhichOneof("type") == "workload" else message.service)
    if kind == _WORKLOAD and message.network_mode == 0:  # an address that others share tells nothing
        return tuple(f"{message.network}/{_ip(packed)}" for packed in message.addresses)
    if kind == _SERVICE:
        return tuple(
            f"{item.network}/{_ip(item.address)}" + (f"/{item.length}" if item.HasField("length") else "")
            for item in message.addresses
        )
    return ()


def groups(message: Any) -> tuple[str, ...]:
    """Names of the resources that bring *message* along when a client asks for them: a workload's services."""
    kind = _kind(message)
    if kind == _ADDRESS and message.WhichOneof("type") == "workload":
        message, kind = message.workload, _WORKLOAD
    return tuple(sorted(message.services)) if kind == _WORKLOAD else ()


def _kind(message: Any) -> str:
    descriptor = getattr(message, "DESCRIPTOR", None)
    return "" if descriptor is None else str(descriptor.full_name)


def _ip(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed))


def _cluster(message: Any) -> Iterator[Reference]:
    if message.type == envoy.Cluster.EDS and message.WhichOneof("cluster_discovery_type") == "type":
        yield ENDPOINT, message.eds_cluster_config.service_name or message.name
    yield from _secrets(message.transport_socket)
    for match in message.transport_socket_matches:
        yield from _secrets(match.transport_socket)


def _listener(message: Any) -> Iterator[Reference]:
    chains = list(message.filter_chains)
    if message.HasField("default_filter_chain"):
        chains.append(message.default_filter_chain)
    for chain in chains:
        for item in chain.filters:
            yield from _http(item.typed_config)
        yield from _secrets(chain.transport_socket)
    if message.HasField("api_listener"):
        yield from _http(message.api_listener.api_listener)


def _http(packed: Any) -> Iterator[Reference]:
    if packed.type_url == _HCM_URL:
        manager = envoy.HttpConnectionManager.FromString(packed.value)
        if manager.WhichOneof("route_specifier") == "rds":
            yield ROUTE, manager.rds.route_config_name


def _secrets(socket: Any) -> Iterator[Reference]:
    packed = socket.typed_config
    if packed.type_url == _UPSTREAM_TLS_URL:
        common = envoy.UpstreamTlsContext.FromString(packed.value).common_tls_context
    elif packed.type_url == _DOWNSTREAM_TLS_URL:
        common = envoy.DownstreamTlsContext.FromString(packed.value).common_tls_context
    else:
        return
    configs = list(common.tls_certificate_sds_secret_configs)
    which = common.WhichOneof("validation_context_type")
    if which == "validation_context_sds_secret_config":
        configs.append(common.validation_context_sds_secret_config)
    elif which == "combined_validation_context":
        configs.append(common.combined_validation_context.validation_context_sds_secret_config)
    for config in configs:
        # Only over ADS are we asked; a file or a local SDS server answers for itself.
        if config.sds_config.WhichOneof("config_source_specifier") == "ads":
            yield SECRET, config.name


def check(snapshot: Snapshot, changes: Mapping[str, Change] | None = None) -> list[Dangling]:
    """Every subscription that CDS and LDS of *snapshot* lead to and that it could not answer; empty when consistent.

    With *changes*, which led to it without removing anything, only what changed is looked at.
    """
    found: list[Dangling] = []
    states: Mapping[str, Any] = snapshot.types
    for type_url in (CLUSTER, LISTENER):
        change = None if changes is None else changes.get(type_url)
        for resource in snapshot[type_url].values() if change is None else change.changed:
            for wanted in resource.needs:
                state = states.get(wanted[0])
                if state is None or wanted[1] not in state:
                    found.append(Dangling((type_url, resource.name), wanted))
    return found
