"""A secret discovery service, as istio-agent is one for its proxy: a workload's certificate and the mesh's root."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import grpc

from underpass.api import envoy

_SECRET = "envoy.extensions.transport_sockets.tls.v3.Secret"
_METHOD = "envoy.service.secret.v3.SecretDiscoveryService"


class SecretServer:
    """Serves ``default`` and ``ROOTCA`` over plain gRPC; a context manager."""

    def __init__(self, certificate: Path, key: Path, ca: Path) -> None:
        secret: Any = envoy.message(_SECRET)
        mine = secret(name="default")
        mine.tls_certificate.certificate_chain.inline_bytes = certificate.read_bytes()
        mine.tls_certificate.private_key.inline_bytes = key.read_bytes()
        root = secret(name="ROOTCA")
        root.validation_context.trusted_ca.inline_bytes = ca.read_bytes()
        self._secrets = {"default": mine, "ROOTCA": root}
        self._server = grpc.server(ThreadPoolExecutor(16))
        handler: Any = grpc.stream_stream_rpc_method_handler(
            self._stream,
            request_deserializer=envoy.DiscoveryRequest.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_METHOD, {"StreamSecrets": handler}),)
        )
        self._port = self._server.add_insecure_port("127.0.0.1:0")

    def _stream(self, requests: Any, context: Any) -> Any:
        for request in requests:
            if request.response_nonce:
                continue  # an ACK; there is nothing new
            found = [self._secrets[name] for name in request.resource_names if name in self._secrets]
            yield envoy.DiscoveryResponse(
                version_info="1", nonce="1", type_url=envoy.TYPE_PREFIX + _SECRET, resources=map(envoy.pack_any, found)
            )

    @property
    def cluster(self) -> dict[str, Any]:
        """``sds-grpc``, as a proxy's bootstrap has it."""
        address = {"socket_address": {"address": "127.0.0.1", "port_value": self._port}}
        options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        return {
            "name": "sds-grpc",
            "type": "STATIC",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": {
                options: {
                    "@type": f"type.googleapis.com/{options}",
                    "explicit_http_config": {"http2_protocol_options": {}},
                }
            },
            "load_assignment": {
                "cluster_name": "sds-grpc",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
            },
        }

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait(5)
