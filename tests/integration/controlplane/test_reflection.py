"""gRPC server reflection: by a stock client (v1alpha), and by hand in both versions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from controlplane.xds.server import method_names
from tests.support import shop
from tests.support.controlplane import ControlPlaneProcess
from underpass.api import envoy

pytestmark = pytest.mark.timeout(60)

VERSIONS = ("grpc.reflection.v1", "grpc.reflection.v1alpha")


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    scratch: Path = tmp_path_factory.mktemp("reflection")
    (scratch / "config").mkdir()
    shop.write(scratch / "config" / "all.yaml", shop.service(80, 8080))
    with ControlPlaneProcess(scratch / "config", scratch) as plane, grpc.insecure_channel(plane.xds) as opened:
        yield opened


def ask(channel: grpc.Channel, version: str, *questions: Any) -> list[Any]:
    method: Any = channel.stream_stream(f"/{version}.ServerReflection/ServerReflectionInfo")
    raw = [question if isinstance(question, bytes) else question.SerializeToString() for question in questions]
    return [ServerReflectionResponse.FromString(data) for data in method(iter(raw), timeout=10)]


def test_a_stock_client_finds_every_service_and_can_call_by_what_it_found(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = descriptor_pool.DescriptorPool(database)
    services = set(database.get_services())
    assert services >= set(method_names())
    assert {f"{version}.ServerReflection" for version in VERSIONS} | {"grpc.health.v1.Health"} <= services
    for name in sorted(services):
        for method in pool.FindServiceByName(name).methods:
            assert message_factory.GetMessageClass(method.input_type)().ByteSize() == 0

    # Nothing but what was reflected: the request of a discovery, as grpcurl would make it.
    [ads] = [s for s in services if s.endswith(".AggregatedDiscoveryService")]
    method = pool.FindServiceByName(ads).methods_by_name["StreamAggregatedResources"]
    assert (method.client_streaming, method.server_streaming) == (True, True)
    request: Any = message_factory.GetMessageClass(method.input_type)()
    request.type_url = envoy.type_url("Cluster")
    request.node.id = "sidecar~10.0.0.1~a.default~default.svc.cluster.local"
    call: Any = channel.stream_stream(f"/{ads}/{method.name}")
    answers = call(iter([request.SerializeToString()]), timeout=10)
    answer: Any = message_factory.GetMessageClass(method.output_type).FromString(next(answers))
    assert any(resource.type_url == envoy.type_url("Cluster") for resource in answer.resources)
    answers.cancel()
    check = pool.FindServiceByName("grpc.health.v1.Health").methods_by_name["Check"]
    health: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
    state: Any = message_factory.GetMessageClass(check.output_type).FromString(health(b"", timeout=10))
    assert state.DESCRIPTOR.fields_by_name["status"].enum_type.values_by_number[state.status].name == "SERVING"


@pytest.mark.parametrize("version", VERSIONS)
def test_both_versions_answer_alike(channel: grpc.Channel, version: str) -> None:
    question = ServerReflectionRequest(host="h", file_containing_symbol=f"{version}.ServerReflection")
    [answer] = ask(channel, version, question)
    assert answer.valid_host == "h"
    assert answer.original_request == question
    [data] = answer.file_descriptor_response.file_descriptor_proto
    file = descriptor_pb2.FileDescriptorProto.FromString(data)
    assert file.package == version
    stock = ServerReflectionRequest.DESCRIPTOR.file
    ours = {(m.name, f.name): (f.number, f.type, f.label) for m in file.message_type for f in m.field}
    original = descriptor_pb2.FileDescriptorProto.FromString(stock.serialized_pb)
    assert ours == {(m.name, f.name): (f.number, f.type, f.label) for m in original.message_type for f in m.field}

    types = ServerReflectionRequest(all_extension_numbers_of_type="envoy.config.cluster.v3.Cluster")
    listed = ServerReflectionRequest(list_services="*")
    methods = ServerReflectionRequest(
        file_containing_symbol="envoy.service.discovery.v3.AggregatedDiscoveryService.DeltaAggregatedResources"
    )
    first, second, third = ask(channel, version, types, listed, methods)
    assert list(first.all_extension_numbers_response.extension_number) == []
    assert [s.name for s in second.list_services_response.service] == sorted(
        {*method_names(), *(f"{v}.ServerReflection" for v in VERSIONS)}
        | {"grpc.health.v1.Health", "envoy.service.status.v3.ClientStatusDiscoveryService"}
    )
    assert len(third.file_descriptor_response.file_descriptor_proto) == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_not_there_is_an_answer_and_garbage_ends_only_its_stream(channel: grpc.Channel, version: str) -> None:
    unknown = [
        ServerReflectionRequest(file_by_filename="../../etc/passwd"),
        ServerReflectionRequest(file_containing_symbol="no.such.Thing"),
        ServerReflectionRequest(all_extension_numbers_of_type="no.such.Thing"),
        ServerReflectionRequest(),
    ]
    for answer in ask(channel, version, *unknown):
        assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        assert answer.error_response.error_message
    for garbage in (b"\xff\xff", b"\x1a\xff\x7f" + b"x" * 20_000):
        with pytest.raises(grpc.RpcError) as caught:
            ask(channel, version, garbage)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(ask(channel, version, ServerReflectionRequest(list_services=""))) == 1
