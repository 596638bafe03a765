"""Connected clients as the messages and JSON that istioctl, grpcdebug and people read. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from controlplane.snapshot.state import Snapshot, TypeState
from controlplane.snapshot.urls import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, short
from controlplane.xds.events import TypeStatus
from controlplane.xds.server import Connection, TypeTimes
from underpass.api import envoy

_ADMIN: Final = "envoy.admin.v3."
_STATUS: Final = "envoy.service.status.v3.ConfigStatus"
#: Keys of ``syncz`` by type.
_SYNC_KEYS: Final = {CLUSTER: "cluster", LISTENER: "listener", ROUTE: "route", ENDPOINT: "endpoint"}
_EMPTY: Final = Snapshot({})


def _metadata(node: Any) -> dict[str, Any]:
    return envoy.to_dict(node.metadata) if node is not None and node.HasField("metadata") else {}


def is_tool(node: Any) -> bool:
    """Whether a client only asks questions (istioctl), so that it is no proxy to report on."""
    return _metadata(node).get("GENERATOR") == "event"


def proxy_name(connection: Connection) -> str:
    """``pod.namespace`` of a client, as istioctl shows it."""
    parts = connection.node_id.split("~")
    return parts[2] if len(parts) == 4 else connection.node_id


def connection_id(connection: Connection) -> str:
    """``pod.namespace-NUMBER``: what istiod calls a connection."""
    return f"{proxy_name(connection)}-{connection.id.rpartition('-')[2]}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z") if seconds else ""


def client_config(connection: Connection) -> Any:
    """A client as ``ClientConfig``, the way istiod answers ``istio.io/debug/syncz``."""
    config = envoy.ClientConfig()
    config.node.id = proxy_name(connection)
    own = _metadata(connection.node)
    fields = config.node.metadata.fields
    fields["CLUSTER_ID"].string_value = str(own.get("CLUSTER_ID", "Kubernetes"))
    fields["NAMESPACE"].string_value = str(own.get("NAMESPACE", proxy_name(connection).rpartition(".")[2]))
    fields["ISTIO_VERSION"].string_value = str(own.get("ISTIO_VERSION", ""))
    for status in connection.session.status():
        entry = config.generic_xds_configs.add(type_url=status.type_url)
        state = "NOT_SENT" if status.state == "NOT_SENT" else status.state
        entry.config_status = envoy.enum_value(_STATUS, state)
        entry.version_info = status.acked_version or status.sent_version
        times = connection.time_of(status.type_url)
        last = max(times.sent, times.acked, times.nacked)
        if last:
            entry.last_updated.FromNanoseconds(int(last * 1e9))
        if status.error:
            entry.error_state.details = status.error
            entry.error_state.last_update_attempt.FromNanoseconds(int(times.nacked * 1e9))
            entry.error_state.version_info = status.sent_version
    return config


_CLIENT_STATUS: Final = "envoy.admin.v3.ClientResourceStatus"


def resources(connection: Connection, *, contents: bool) -> Any:
    """A client resource by resource, as CSDS describes it: version, what the client made of it, and the content."""
    config = envoy.ClientConfig()
    if connection.node is not None:
        config.node.id = connection.node.id
        config.node.metadata.CopyFrom(connection.node.metadata)
    snapshot = _snapshot(connection)
    for status in connection.session.status():
        times = connection.time_of(status.type_url)
        wanted = connection.session.watched(status.type_url)
        for resource in snapshot[status.type_url].values():
            if wanted is not None and resource.name not in wanted:
                continue
            refused = resource.name in status.error_names
            entry = config.generic_xds_configs.add(
                type_url=status.type_url, name=resource.name, version_info=resource.version
            )
            entry.config_status = envoy.enum_value(_STATUS, "ERROR" if refused else status.state)
            client = "NACKED" if refused else "ACKED" if status.state == "SYNCED" else "REQUESTED"
            entry.client_status = envoy.enum_value(_CLIENT_STATUS, client)
            if times.sent:
                entry.last_updated.FromNanoseconds(int(times.sent * 1e9))
            if refused:
                entry.error_state.details = status.error
            if contents and status.type_url != SECRET:
                entry.xds_config.type_url = resource.type_url
                entry.xds_config.value = resource.body
    return config


def sync_entry(connection: Connection, version: str) -> dict[str, Any]:
    """A client as ``/debug/syncz`` lists it, read by ``istioctl version``."""
    own = _metadata(connection.node)
    entry: dict[str, Any] = {
        "cluster_id": own.get("CLUSTER_ID", "Kubernetes"),
        "proxy": proxy_name(connection),
        "proxy_type": connection.node_id.split("~")[0],
        "istio_version": own.get("ISTIO_VERSION", version),
    }
    for status in connection.session.status():
        key = _SYNC_KEYS.get(status.type_url)
        if key is not None:
            entry[f"{key}_sent"] = status.sent_nonce
            entry[f"{key}_acked"] = status.acked_nonce
    return entry


def status_entry(status: TypeStatus, times: TypeTimes) -> dict[str, Any]:
    """One type of one client for people."""
    return {
        "type": short(status.type_url),
        "state": status.state,
        "wildcard": status.wildcard,
        "names": status.names,
        "sentVersion": status.sent_version,
        "ackedVersion": status.acked_version,
        "sentAt": _time(times.sent),
        "ackedAt": _time(times.acked),
        "error": status.error,
    }


def _snapshot(connection: Connection) -> Snapshot:
    view = connection.view
    return _EMPTY if view is None else view.snapshot


def endpoints(connection: Connection) -> list[dict[str, Any]]:
    """The load assignments that a client is served, as JSON."""
    state = _snapshot(connection)[ENDPOINT]
    return [envoy.to_dict(envoy.ClusterLoadAssignment.FromString(r.body)) for r in state.values()]


def config_dump(connection: Connection) -> Any:
    """What a client is served, in the shape of Envoy's own ``/config_dump``."""
    snapshot = _snapshot(connection)
    result = envoy.ConfigDump()
    for part in (
        _clusters(snapshot[CLUSTER]),
        _listeners(snapshot[LISTENER]),
        _routes(snapshot[ROUTE]),
        _secrets(snapshot[SECRET]),
        _load_assignments(snapshot[ENDPOINT]),
    ):
        result.configs.append(envoy.pack_any(part))
    return result


def _pack(target: Any, state: TypeState, name: str) -> None:
    resource = state[name]
    target.type_url = resource.type_url
    target.value = resource.body


def _clusters(state: TypeState) -> Any:
    part = envoy.ClustersConfigDump(version_info=state.version)
    for name in state:
        entry = part.dynamic_active_clusters.add(version_info=state[name].version)
        _pack(entry.cluster, state, name)
    return part


def _listeners(state: TypeState) -> Any:
    part = envoy.ListenersConfigDump(version_info=state.version)
    for name in state:
        entry = part.dynamic_listeners.add(name=name)
        entry.active_state.version_info = state[name].version
        _pack(entry.active_state.listener, state, name)
    return part


def _routes(state: TypeState) -> Any:
    part = envoy.RoutesConfigDump()
    for name in state:
        entry = part.dynamic_route_configs.add(version_info=state[name].version)
        _pack(entry.route_config, state, name)
    return part


def _secrets(state: TypeState) -> Any:
    """Names only: the control plane shows no key to anybody."""
    part = envoy.SecretsConfigDump()
    for name in state:
        part.dynamic_active_secrets.add(name=name, version_info=state[name].version)
    return part


def _load_assignments(state: TypeState) -> Any:
    part = envoy.EndpointsConfigDump()
    for name in state:
        entry = part.dynamic_endpoint_configs.add(version_info=state[name].version)
        _pack(entry.endpoint_config, state, name)
    return part
