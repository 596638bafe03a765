"""A gRPC greeter without generated code, and a client program that calls it over ``xds:///``.

``python -m tests.support.grpc_greeter TARGET COUNT [name=value ...]`` prints one line per call: who answered, or the
status and details. It runs as its own process, because gRPC reads its xDS bootstrap once.

With COUNT ``-`` each line ``COUNT [name=value ...]`` of standard input is an order on one and the same channel,
answered by one line of JSON: how many calls had which outcome. ``--serve HOST:PORT NAME`` runs a server instead.
"""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
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


def outcome(call: Any, metadata: list[str]) -> str:
    """Who answered one call, or its status and details."""
    try:
        pairs = [tuple(pair.split("=", 1)) for pair in metadata]
        name: bytes = call(b"", timeout=10, metadata=pairs, wait_for_ready=False)
        return name.decode()
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"


def main() -> None:
    if sys.argv[1] == "--serve":
        host, _, port = sys.argv[2].rpartition(":")
        with GreeterServer(host, int(port), sys.argv[3]):
            signal.pause()
    target, count = sys.argv[1], sys.argv[2]
    with grpc.insecure_channel(target) as channel:
        call: Any = channel.unary_unary(METHOD)  # bytes both ways: the stubs want serializers
        if count == "-":
            for line in sys.stdin:
                number, *metadata = line.split()
                print(json.dumps(Counter(outcome(call, metadata) for _ in range(int(number)))), flush=True)
            return
        for _ in range(int(count)):
            print(outcome(call, sys.argv[3:]), flush=True)


if __name__ == "__main__":
    main()
