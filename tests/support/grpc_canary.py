"""A greeter with every kind of call, and a client that is no friend of any mesh: it dials a name and a port.

``python -m tests.support.grpc_canary --serve HOST:PORT NAME`` or ``... TARGET``; the client reads orders from standard
input, ``METHOD COUNT``, and answers each with one line of JSON: how many calls had which outcome.
"""

from __future__ import annotations

import json
import queue
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc

SERVICE = "test.Greeter"
MESSAGES = 3


def serve(address: str, name: str) -> None:
    """Every answer is the server's name; until a signal."""
    mine = name.encode()

    def hello(_: bytes, __: grpc.ServicerContext) -> bytes:
        return mine

    def watch(_: bytes, __: grpc.ServicerContext) -> Iterator[bytes]:
        for _number in range(MESSAGES):
            yield mine

    def chat(messages: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
        for message in messages:
            yield mine + b" " + message

    def collect(messages: Iterator[bytes], _: grpc.ServicerContext) -> bytes:
        return b"%s %d" % (mine, sum(len(message) for message in messages))

    def fail(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{name} is not in the mood: 50 % done")
        raise AssertionError("abort raises")

    handlers: dict[str, Any] = {
        "Hello": grpc.unary_unary_rpc_method_handler(hello),
        "Watch": grpc.unary_stream_rpc_method_handler(watch),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "Collect": grpc.stream_unary_rpc_method_handler(collect),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
    }
    server = grpc.server(futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(address)
    server.start()
    signal.pause()


def _hello(channel: grpc.Channel, method: str) -> str:
    call: Any = channel.unary_unary(method)  # bytes both ways: the stubs want serializers
    return bytes(call(b"", timeout=10)).decode()


def _watch(channel: grpc.Channel, method: str) -> str:
    call: Any = channel.unary_stream(method)
    said = [bytes(message).decode() for message in call(b"", timeout=10)]
    return said[0] if said == said[:1] * MESSAGES else f"mixed {said}"


def _chat(channel: grpc.Channel, method: str) -> str:
    """Each message is sent only when the one before was answered."""
    call: Any = channel.stream_stream(method)
    outbox: queue.Queue[bytes | None] = queue.Queue()
    answers = call(iter(outbox.get, None), timeout=10)
    names = []
    for number in range(MESSAGES):
        outbox.put(b"%d" % number)
        name, _, echo = bytes(next(answers)).decode().rpartition(" ")
        names.append(name if echo == str(number) else f"wrong {echo}")
    outbox.put(None)
    assert list(answers) == []
    return names[0] if names == names[:1] * MESSAGES else f"mixed {names}"


def _collect(channel: grpc.Channel, method: str) -> str:
    call: Any = channel.stream_unary(method)
    sent = [b"x" * 70_000] * MESSAGES
    name, _, size = bytes(call(iter(sent), timeout=10)).decode().rpartition(" ")
    return name if size == str(sum(map(len, sent))) else f"wrong {size}"


_CALLS: dict[str, Callable[[grpc.Channel, str], str]] = {
    "Hello": _hello, "Watch": _watch, "Chat": _chat, "Collect": _collect, "Fail": _hello, "Unknown": _hello,
}  # fmt: skip


def outcome(channel: grpc.Channel, method: str) -> str:
    """Who answered one call, or its status and details."""
    try:
        return _CALLS[method](channel, f"/{SERVICE}/{method}")
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"


def main() -> None:
    if sys.argv[1] == "--serve":
        serve(sys.argv[2], sys.argv[3])
    with grpc.insecure_channel(sys.argv[1]) as channel:
        for line in sys.stdin:
            method, count = line.split()
            print(json.dumps(Counter(outcome(channel, method) for _ in range(int(count)))), flush=True)


if __name__ == "__main__":
    main()
