"""gRPC server reflection, v1 and v1alpha: what grpcurl and its kin ask before they can call anything.

The stock package (grpcio-reflection) answers v1alpha only, and puts its own messages into the process-wide pool. Ours
answers from the private pools of :mod:`underpass.api`. Those have messages but no services, so the services that are
served are declared here, each in a file of its own. Only schema is told, never data.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import DecodeError

from underpass.api import envoy, istio

#: Packages under which the one protocol is spoken; the messages are the same.
PACKAGES: Final = ("grpc.reflection.v1", "grpc.reflection.v1alpha")

_HEALTH: Final = "grpc.health.v1"
#: A question names a file, a symbol or a host: nothing longer than this is one.
_MAX_QUESTION: Final = 4096
_NOT_FOUND: Final = grpc.StatusCode.NOT_FOUND.value[0]

Method = tuple[str, str, str, bool, bool]
"""Name, full names of request and response, whether requests and responses are streams."""


def _message(name: str, *fields: tuple[str, int, str], choice: str = "", nested: Iterable[str] = ()) -> DescriptorProto:
    """A message; a type in brackets is repeated, one with a dot is a message. *nested* fields are in oneof *choice*."""
    out = DescriptorProto(name=name)
    if choice:
        out.oneof_decl.add(name=choice)
    for field_name, number, kind in fields:
        field = out.field.add(name=field_name, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
        if kind.startswith("["):
            kind, field.label = kind.strip("[]"), FieldDescriptorProto.LABEL_REPEATED
        if kind.startswith("."):
            field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, kind
        else:
            field.type = getattr(FieldDescriptorProto, f"TYPE_{kind.upper()}")
        if field_name in nested:
            field.oneof_index = 0
    return out


def _reflection(package: str) -> FileDescriptorProto:
    """The protocol's own file. Names, types and numbers are those of grpc/reflection/v1/reflection.proto."""
    at = f".{package}."
    out = FileDescriptorProto(name=f"{package.replace('.', '/')}/reflection.proto", package=package, syntax="proto3")
    questions = [
        ("file_by_filename", 3, "string"),
        ("file_containing_symbol", 4, "string"),
        ("file_containing_extension", 5, f"{at}ExtensionRequest"),
        ("all_extension_numbers_of_type", 6, "string"),
        ("list_services", 7, "string"),
    ]
    answers = [
        ("file_descriptor_response", 4, f"{at}FileDescriptorResponse"),
        ("all_extension_numbers_response", 5, f"{at}ExtensionNumberResponse"),
        ("list_services_response", 6, f"{at}ListServiceResponse"),
        ("error_response", 7, f"{at}ErrorResponse"),
    ]
    request, reply = f"{at}ServerReflectionRequest", f"{at}ServerReflectionResponse"
    out.message_type.extend(
        (
            _message(
                "ServerReflectionRequest",
                ("host", 1, "string"),
                *questions,
                choice="message_request",
                nested=[name for name, *_ in questions],
            ),
            _message("ExtensionRequest", ("containing_type", 1, "string"), ("extension_number", 2, "int32")),
            _message(
                "ServerReflectionResponse",
                ("valid_host", 1, "string"),
                ("original_request", 2, request),
                *answers,
                choice="message_response",
                nested=[name for name, *_ in answers],
            ),
            _message("FileDescriptorResponse", ("file_descriptor_proto", 1, "[bytes]")),
            _message("ExtensionNumberResponse", ("base_type_name", 1, "string"), ("extension_number", 2, "[int32]")),
            _message("ListServiceResponse", ("service", 1, f"[{at}ServiceResponse]")),
            _message("ServiceResponse", ("name", 1, "string")),
            _message("ErrorResponse", ("error_code", 1, "int32"), ("error_message", 2, "string")),
        )
    )
    _add_service(out, "ServerReflection", [("ServerReflectionInfo", request[1:], reply[1:], True, True)])
    return out


def _health() -> FileDescriptorProto:
    at = f"{_HEALTH}."
    out = FileDescriptorProto(name="grpc/health/v1/health.proto", package=_HEALTH, syntax="proto3")
    request, reply = (
        _message("HealthCheckRequest", ("service", 1, "string")),
        DescriptorProto(name="HealthCheckResponse"),
    )
    states = reply.enum_type.add(name="ServingStatus")
    for number, name in enumerate(("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")):
        states.value.add(name=name, number=number)
    reply.field.add(
        name="status",
        number=1,
        label=FieldDescriptorProto.LABEL_OPTIONAL,
        type=FieldDescriptorProto.TYPE_ENUM,
        type_name=f".{at}HealthCheckResponse.ServingStatus",
    )
    out.message_type.extend((request, reply))
    ends = (f"{at}HealthCheckRequest", f"{at}HealthCheckResponse")
    _add_service(out, "Health", [("Check", *ends, False, False), ("Watch", *ends, False, True)])
    return out


def _add_service(file: FileDescriptorProto, name: str, methods: Iterable[Method]) -> None:
    service = file.service.add(name=name)
    for method, request, reply, client_streams, server_streams in methods:
        service.method.add(
            name=method,
            input_type=f".{request}",
            output_type=f".{reply}",
            client_streaming=client_streams,
            server_streaming=server_streams,
        )


def _service_file(full_name: str, methods: Iterable[Method]) -> FileDescriptorProto:
    """A file for a service whose messages are in Envoy's pool."""
    package, _, name = full_name.rpartition(".")
    listed = list(methods)
    out = FileDescriptorProto(name=f"underpass/services/{full_name}.proto", package=package, syntax="proto3")
    messages = {message for _, request, reply, *_ in listed for message in (request, reply)}
    out.dependency.extend(sorted({envoy.pool.FindMessageTypeByName(message).file.name for message in messages}))
    _add_service(out, name, listed)
    return out


_FILES: Final = {package: _reflection(package) for package in PACKAGES}
_pool: Final = descriptor_pool.DescriptorPool()
for _file in _FILES.values():
    _pool.AddSerializedFile(_file.SerializeToString())


class Reflection:
    """Answers about the services of one server: *served* maps full names to their methods (Envoy's messages)."""

    def __init__(self, served: Mapping[str, Iterable[Method]]) -> None:
        own = [*_FILES.values(), _health(), *(_service_file(name, methods) for name, methods in served.items())]
        self._files = {file.name: file.SerializeToString() for file in own}
        self._symbols = {symbol: file.name for file in own for symbol in _symbols(file)}
        self.services = tuple(sorted(f"{file.package}.{service.name}" for file in own for service in file.service))

    def register(self, server: grpc.aio.Server) -> None:
        """Serve on *server*; call before it starts."""
        server.add_generic_rpc_handlers(
            tuple(
                grpc.method_handlers_generic_handler(
                    f"{package}.ServerReflection",
                    {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(_Answering(self, package).serve)},
                )
                for package in PACKAGES
            )
        )

    def file_named(self, name: str) -> bytes:
        """The serialised ``FileDescriptorProto`` of a file, without its imports; raises :class:`KeyError`."""
        found = self._files.get(name)
        if found is not None:
            return found
        for pool in (envoy.pool, istio.pool):
            try:
                return bytes(pool.FindFileByName(name).serialized_pb)
            except KeyError:
                continue
        raise KeyError(name)

    def file_with(self, symbol: str) -> bytes:
        """The file that declares a message, enum, service or method; raises :class:`KeyError`."""
        known = self._symbols.get(symbol)
        if known is not None:
            return self._files[known]
        for pool in (envoy.pool, istio.pool):
            try:
                return bytes(pool.FindFileContainingSymbol(symbol).serialized_pb)
            except KeyError:
                continue
        raise KeyError(symbol)


class _Answering:
    """One version of the protocol."""

    def __init__(self, reflection: Reflection, package: str) -> None:
        self._reflection = reflection
        find = _pool.FindMessageTypeByName
        self._request: Any = message_factory.GetMessageClass(find(f"{package}.ServerReflectionRequest"))
        self._reply: Any = message_factory.GetMessageClass(find(f"{package}.ServerReflectionResponse"))

    async def serve(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        """Answer each question of a stream, bad ones with an error of their own."""
        async for data in requests:
            try:
                if len(data) > _MAX_QUESTION:
                    raise DecodeError(f"a question of {len(data)} bytes; {_MAX_QUESTION} allowed")
                request = self._request.FromString(data)
            except DecodeError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"not a reflection request: {error}")
            yield self._answer(request).SerializeToString()

    def _answer(self, request: Any) -> Any:
        reply = self._reply(valid_host=request.host, original_request=request)
        asked = request.WhichOneof("message_request")
        try:
            if asked == "list_services":
                for name in self._reflection.services:
                    reply.list_services_response.service.add(name=name)
            elif asked == "file_by_filename":
                found = self._reflection.file_named(request.file_by_filename)
                reply.file_descriptor_response.file_descriptor_proto.append(found)
            elif asked == "file_containing_symbol":
                found = self._reflection.file_with(request.file_containing_symbol)
                reply.file_descriptor_response.file_descriptor_proto.append(found)
            elif asked == "all_extension_numbers_of_type":
                name = request.all_extension_numbers_of_type
                self._reflection.file_with(name)  # proto3 has no extensions, but a type that is not there is an error
                reply.all_extension_numbers_response.base_type_name = name
            else:
                raise KeyError("no extensions are served" if asked else "nothing was asked")
        except KeyError as error:
            reply.error_response.error_code = _NOT_FOUND
            reply.error_response.error_message = f"not found: {error.args[0]}"
        return reply


def _symbols(file: FileDescriptorProto) -> Iterable[str]:
    for message in file.message_type:
        yield f"{file.package}.{message.name}"
        for enum in message.enum_type:
            yield f"{file.package}.{message.name}.{enum.name}"
    for service in file.service:
        yield f"{file.package}.{service.name}"
        for method in service.method:
            yield f"{file.package}.{service.name}.{method.name}"


__all__ = ["PACKAGES", "Method", "Reflection"]
