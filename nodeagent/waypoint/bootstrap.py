"""What the agent adds to an Envoy's own configuration: its admin socket and the control plane.  Pure.

Envoy merges the two, so that listeners and clusters of the user's file may say `ads: {}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: Name of the control plane's cluster; no cluster of Istio's naming can be called this.
XDS_CLUSTER: Final = "underpass-control-plane"
_HTTP2: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def overlay(*, xds: tuple[str, int], node_id: str, metadata: Mapping[str, Any], admin: str) -> dict[str, Any]:
    """The agent's part of a bootstrap. xds: host and port; admin: path of the socket that the agent asks at."""
    host, port = xds
    where = {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}
    # no end to the wait for the first answer: an Envoy without clusters would refuse what home can still do
    source = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
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
            "cds_config": source,
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
