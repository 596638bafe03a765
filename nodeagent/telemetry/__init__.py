"""Counters of the pinned maps as plain records, for the command line and for Prometheus.

`read_routes(bpffs_dir)` and its like need no running agent, only what it pinned.
"""

from nodeagent.telemetry.read import (
    Counters,
    EndpointCount,
    InterfaceCount,
    RouteCount,
    read_counters,
    read_endpoints,
    read_interfaces,
    read_routes,
    read_unrouted,
)

__all__ = [
    "Counters",
    "EndpointCount",
    "InterfaceCount",
    "RouteCount",
    "read_counters",
    "read_endpoints",
    "read_interfaces",
    "read_routes",
    "read_unrouted",
]
