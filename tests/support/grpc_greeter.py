"""A gRPC greeter without generated code, and a client program that calls it over ``xds:///``.

``python -m tests.support.grpc_greeter TARGET COUNT [name=value ...]`` prints one line per call: who answered, or the
status and details. It runs as its own process, because gRPC reads its xDS bootstrap once.
"""

from __future__ import annotations

import json
import sys
from concurrent import futures
from typing import Any, Self

import grpc

METHOD = "/test.Greeter/Hello"


class GreeterServer:
    """Answers with its own name; a context manager."""

    def __init__(self, host: str, port: int, name: str) -> None:
        def hello(_: bytes, __: grpc.ServicerContext) -> bytes:
            return name.encode()

        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        handler = grpc.method_handlers_generic_handler(
            "test.Greeter", {"Hello": grpc.unary_unary_rpc_method_handler(hello)}
        )
        self._server.add_generic_rpc_handlers((handler,))
        self._server.add_insecure_port(f"{host}:{port}")

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait(5)


def bootstrap(xds: str, node_id: str) -> str:
    """gRPC's xDS bootstrap for a proxyless client in Istio's terms."""
    return json.dumps(
        {
            "xds_servers": [
                {"server_uri": xds, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}
            ],
            "node": {"id": node_id, "metadata": {"GENERATOR": "grpc", "NAMESPACE": "default"}},
        }
    )


def main() -> None:
    target, count = sys.argv[1], int(sys.argv[2])
    metadata = [tuple(pair.split("=", 1)) for pair in sys.argv[3:]]
    with grpc.insecure_channel(target) as channel:
        call: Any = channel.unary_unary(METHOD)  # bytes both ways: the stubs want serializers
        for _ in range(count):
            try:
                print(call(b"", timeout=10, metadata=metadata, wait_for_ready=False).decode(), flush=True)
            except grpc.RpcError as error:
                print(f"{error.code().name}: {error.details()}", flush=True)


if __name__ == "__main__":
    main()
