"""What the agent makes an Envoy run with.  Pure.

Beside a file of the user's: the admin socket and the control plane; Envoy merges the two, so that listeners and
clusters of the file may say `ads: {}`. Without one: the listeners at the home addresses, too. Those only find out where
a connection was going (`origin.bpf.c` answers) and hand it to the listener that the control plane has for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

#: Name of the control plane's cluster; no cluster of Istio's naming can be called this.
XDS_CLUSTER: Final = "underpass-control-plane"
_FILTERS: Final = "type.googleapis.com/envoy.extensions.filters"
#: No end to the wait for the first answer: an Envoy without clusters would refuse what home can still do.
_SOURCE: Final = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
_TCP: Final = 6
_TCP_MAXSEG: Final = 2
_HTTP2: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def overlay(*, xds: tuple[str, int], node_id: str, metadata: Mapping[str, Any], admin: str) -> dict[str, Any]:
    """The agent's part of a bootstrap. xds: host and port; admin: path of the socket that the agent asks at."""
    host, port = xds
    where = {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}
    return {
        "node": {"id": node_id, "cluster": "underpass-waypoint", "metadata": dict(metadata)},
        "admin": {"address": {"pipe": {"path": admin, "mode": 0o600}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": XDS_CLUSTER}}],
            },
            "cds_config": _SOURCE,
        },
        "static_resources": {
            "clusters": [
                {
                    "name": XDS_CLUSTER,
                    "type": "STRICT_DNS",
                    "connect_timeout": "1s",
                    "typed_extension_protocol_options": {
                        _HTTP2: {
                            "@type": f"type.googleapis.com/{_HTTP2}",
                            "explicit_http_config": {
                                "http2_protocol_options": {"connection_keepalive": {"interval": "30s", "timeout": "5s"}}
                            },
                        }
                    },
                    "load_assignment": {"cluster_name": XDS_CLUSTER, "endpoints": [{"lb_endpoints": [where]}]},
                }
            ]
        },
    }


def whole(part: Mapping[str, Any], homes: Iterable[tuple[str, int]], mss: int) -> dict[str, Any]:
    """A bootstrap that needs no file: the agent's part, with listeners at the home addresses.

    mss: the largest segment that clients are asked for, as home asks for it; 0: the interface's.
    """
    return {
        **part,
        "dynamic_resources": {**part["dynamic_resources"], "lds_config": _SOURCE},
        "static_resources": {
            **part["static_resources"],
            "listeners": [_home(address, port, mss) for address, port in homes],
        },
    }


def _home(address: str, port: int, mss: int) -> dict[str, Any]:
    """Where the kernel's programs send connections to. Whoever was not sent here by them is not served."""
    close = {"@type": f"{_FILTERS}.network.direct_response.v3.Config"}
    where = {"@type": f"{_FILTERS}.listener.original_dst.v3.OriginalDst"}
    found: dict[str, Any] = {
        "name": f"home_{address}_{port}",
        "address": {"socket_address": {"address": address, "port_value": port}},
        "traffic_direction": "OUTBOUND",
        "use_original_dst": True,
        "listener_filters": [{"name": "envoy.filters.listener.original_dst", "typed_config": where}],
        "filter_chains": [{"filters": [{"name": "nowhere", "typed_config": close}]}],
    }
    if mss:
        # the kernel's segments go on to endpoints as they are, so none may be larger than any endpoint takes
        found["socket_options"] = [{"level": _TCP, "name": _TCP_MAXSEG, "int_value": mss, "state": "STATE_PREBIND"}]
    return found
