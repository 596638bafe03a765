"""Formats of access logs: whether an Envoy would read one; if not, it refuses the whole listener.  Pure."""

from __future__ import annotations

import re
from typing import Any, Final

#: Envoy 1.40's command operators without an argument, or with an optional one.
_PLAIN: Final = frozenset(
    [
        "START_TIME",
        "START_TIME_LOCAL",
        "EMIT_TIME",
        "EMIT_TIME_LOCAL",
        "REQUEST_HEADERS_BYTES",
        "RESPONSE_HEADERS_BYTES",
        "RESPONSE_TRAILERS_BYTES",
        "BYTES_RECEIVED",
        "BYTES_SENT",
        "BYTES_RETRANSMITTED",
        "PACKETS_RETRANSMITTED",
        "UPSTREAM_WIRE_BYTES_SENT",
        "UPSTREAM_WIRE_BYTES_RECEIVED",
        "UPSTREAM_HEADER_BYTES_SENT",
        "UPSTREAM_HEADER_BYTES_RECEIVED",
        "DOWNSTREAM_WIRE_BYTES_SENT",
        "DOWNSTREAM_WIRE_BYTES_RECEIVED",
        "DOWNSTREAM_HEADER_BYTES_SENT",
        "DOWNSTREAM_HEADER_BYTES_RECEIVED",
        "PROTOCOL",
        "UPSTREAM_PROTOCOL",
        "RESPONSE_CODE",
        "RESPONSE_CODE_DETAILS",
        "CONNECTION_TERMINATION_DETAILS",
        "DURATION",
        "REQUEST_DURATION",
        "REQUEST_TX_DURATION",
        "RESPONSE_DURATION",
        "RESPONSE_TX_DURATION",
        "DOWNSTREAM_HANDSHAKE_DURATION",
        "ROUNDTRIP_DURATION",
        "RESPONSE_FLAGS",
        "RESPONSE_FLAGS_LONG",
        "ROUTE_NAME",
        "VIRTUAL_CLUSTER_NAME",
        "UPSTREAM_HOST",
        "UPSTREAM_HOST_NAME",
        "UPSTREAM_HOST_NAME_WITHOUT_PORT",
        "UPSTREAM_CLUSTER",
        "UPSTREAM_CLUSTER_RAW",
        "UPSTREAM_LOCAL_ADDRESS",
        "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
        "UPSTREAM_LOCAL_PORT",
        "UPSTREAM_REMOTE_ADDRESS",
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
        "UPSTREAM_REMOTE_PORT",
        "UPSTREAM_REQUEST_ATTEMPT_COUNT",
        "UPSTREAM_TLS_CIPHER",
        "UPSTREAM_TLS_VERSION",
        "UPSTREAM_TLS_SESSION_ID",
        "UPSTREAM_PEER_ISSUER",
        "UPSTREAM_PEER_CERT",
        "UPSTREAM_PEER_SUBJECT",
        "UPSTREAM_PEER_URI_SAN",
        "UPSTREAM_PEER_DNS_SAN",
        "UPSTREAM_PEER_IP_SAN",
        "UPSTREAM_LOCAL_URI_SAN",
        "UPSTREAM_LOCAL_DNS_SAN",
        "UPSTREAM_TRANSPORT_FAILURE_REASON",
        "UPSTREAM_CONNECTION_ID",
        "UPSTREAM_CONNECTION_POOL_READY_DURATION",
        "DOWNSTREAM_REMOTE_ADDRESS",
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
        "DOWNSTREAM_REMOTE_PORT",
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
        "DOWNSTREAM_DIRECT_REMOTE_PORT",
        "DOWNSTREAM_LOCAL_ADDRESS",
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
        "DOWNSTREAM_LOCAL_PORT",
        "CONNECTION_ID",
        "GRPC_STATUS_NUMBER",
        "DOWNSTREAM_PEER_URI_SAN",
        "DOWNSTREAM_PEER_DNS_SAN",
        "DOWNSTREAM_PEER_IP_SAN",
        "DOWNSTREAM_LOCAL_URI_SAN",
        "DOWNSTREAM_LOCAL_DNS_SAN",
        "DOWNSTREAM_PEER_SUBJECT",
        "DOWNSTREAM_PEER_ISSUER",
        "DOWNSTREAM_LOCAL_SUBJECT",
        "DOWNSTREAM_TLS_SESSION_ID",
        "DOWNSTREAM_TLS_CIPHER",
        "DOWNSTREAM_TLS_VERSION",
        "DOWNSTREAM_PEER_FINGERPRINT_256",
        "DOWNSTREAM_PEER_FINGERPRINT_1",
        "DOWNSTREAM_PEER_SERIAL",
        "DOWNSTREAM_PEER_CERT",
        "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
        "HOSTNAME",
        "LOCAL_REPLY_BODY",
        "FILTER_CHAIN_NAME",
        "ACCESS_LOG_TYPE",
        "STREAM_ID",
        "TRACE_ID",
        "REQUESTED_SERVER_NAME",
        "GRPC_STATUS",
        "DOWNSTREAM_PEER_CERT_V_START",
        "DOWNSTREAM_PEER_CERT_V_END",
    ]
)
_WITH_ARGUMENT: Final = frozenset(
    [
        "REQ",
        "RESP",
        "TRAILER",
        "DYNAMIC_METADATA",
        "CLUSTER_METADATA",
        "UPSTREAM_METADATA",
        "FILTER_STATE",
        "UPSTREAM_FILTER_STATE",
    ]
)
_TIMES: Final = frozenset({"START_TIME", "START_TIME_LOCAL", "EMIT_TIME", "EMIT_TIME_LOCAL"})
_HEADERS: Final = frozenset({"REQ", "RESP", "TRAILER"})
_OPERATOR: Final = re.compile(r"([A-Z][A-Z0-9_]*)(?:\(([^()%]*)\))?(?::([0-9]{1,5}))?")
_HEADER: Final = re.compile(r":?[A-Za-z0-9_.-]+(?:\?:?[A-Za-z0-9_.-]+)?")


class FormatError(ValueError):
    """No Envoy could read the format; the text says why."""


def check(text: str) -> None:
    """Raise :class:`FormatError` for a line of text that no Envoy could read, or that is not known to be readable."""
    parts = text.split("%")
    if len(parts) % 2 == 0:
        raise FormatError("a percent sign is alone; a literal one is written %%")
    for inside in parts[1::2]:
        if inside:  # %% is a percent sign
            _operator(inside)


def _operator(text: str) -> None:
    found = _OPERATOR.fullmatch(text)
    if found is None:
        raise FormatError(f"%{text[:60]}% is no command operator")
    name, argument = found[1], found[2]
    if name in _WITH_ARGUMENT:
        if not argument:
            raise FormatError(f"%{name}% needs an argument in parentheses")
        if name in _HEADERS and not _HEADER.fullmatch(argument):
            raise FormatError(f"%{name}({argument[:60]})%: HEADER or HEADER?ALTERNATIVE is expected")
    elif name not in _PLAIN:
        raise FormatError(f"%{name}% is not known")
    elif argument is not None and name not in _TIMES:
        raise FormatError(f"%{name}% takes no argument here")


def check_fields(fields: Any) -> None:
    """The same for the texts of a structured format (a ``Struct`` as plain values)."""
    if isinstance(fields, dict):
        for value in fields.values():
            check_fields(value)
    elif isinstance(fields, list):
        for value in fields:
            check_fields(value)
    elif isinstance(fields, str):
        check(fields)
