"""The part of etcd's v3 API that the control plane speaks, as upb classes of a private pool.

``protos/etcd`` declares it; ``python -m underpass.api.etcd`` (needs grpcio-tools) compiles that into ``etcd.binpb``,
which the wheel ships. No client library is used (docs/dependencies.md): two of them cannot even be in one process.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    data = resources.files("underpass.api").joinpath("etcd.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.Add(file)
    return pool


@cache
def message(name: str) -> Any:
    """The class of a message of etcd's service, as ``RangeRequest``; raises :class:`KeyError` for one it lacks."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"etcdserverpb.{name}"))


def generate(target: str = "underpass/api/etcd.binpb") -> None:
    """Write the descriptor set from ``protos/``; run from the repository's root."""
    from pathlib import Path  # developers only

    from grpc_tools import protoc

    sources = sorted(str(path) for path in Path("protos/etcd").rglob("*.proto"))
    arguments = ["protoc", "-Iprotos", "--include_imports", f"--descriptor_set_out={target}", *sources]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; its message is above")


if __name__ == "__main__":
    generate()
