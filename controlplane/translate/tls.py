"""Transport sockets: the mesh's mutual TLS, and TLS that a DestinationRule asks for.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from underpass.api import envoy

TLS_SOCKET: Final = "envoy.transport_sockets.tls"
RAW_SOCKET: Final = "envoy.transport_sockets.raw_buffer"

#: Cipher suites of servers in the mesh, TLS 1.2; Istio's list.
CIPHERS: Final = (
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-GCM-SHA256",
)

SYSTEM_ROOTS: Final = "/etc/ssl/certs/ca-certificates.crt"

DISABLE, SIMPLE, MUTUAL, ISTIO_MUTUAL = range(4)


def ads_source() -> Any:
    """A config source that says: over the stream that brought this."""
    return envoy.ConfigSource(ads={}, initial_fetch_timeout={}, resource_api_version="V3")


def sds_source() -> Any:
    """Istio's source of certificates: the ``sds-grpc`` cluster of a proxy's bootstrap."""
    return envoy.ConfigSource(
        api_config_source=envoy.ApiConfigSource(
            api_type="GRPC",
            transport_api_version="V3",
            set_node_on_first_message_only=True,
            grpc_services=[{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
        ),
        initial_fetch_timeout={},
        resource_api_version="V3",
    )


def secret(name: str, source: Any = None) -> Any:
    """A reference to a secret."""
    return envoy.SdsSecretConfig(name=name, sds_config=sds_source() if source is None else source)


def _params(*, server: bool) -> Any:
    return envoy.message("envoy.extensions.transport_sockets.tls.v3.TlsParameters")(
        tls_minimum_protocol_version="TLSv1_2",
        tls_maximum_protocol_version="TLSv1_3",
        cipher_suites=CIPHERS if server else (),
    )


def _san(**matcher: Any) -> Any:
    kind = envoy.message("envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher")
    return kind(san_type="URI", matcher=envoy.StringMatcher(**matcher))


def raw_socket() -> Any:
    """Plain text."""
    return envoy.TransportSocket(name=RAW_SOCKET, typed_config=envoy.pack_any(envoy.RawBuffer()))


def _socket(context: Any) -> Any:
    return envoy.TransportSocket(name=TLS_SOCKET, typed_config=envoy.pack_any(context))


def client_mutual(sni: str, sans: Iterable[str], *, http2: bool) -> Any:
    """Mutual TLS with the mesh's certificates, the server being one of ``sans`` (SPIFFE ids)."""
    common = envoy.CommonTlsContext(
        alpn_protocols=["istio", "h2"] if http2 else ["istio"],
        tls_params=_params(server=False),
        tls_certificate_sds_secret_configs=[secret("default")],
    )
    combined = common.combined_validation_context
    combined.default_validation_context.match_typed_subject_alt_names.extend(_san(exact=name) for name in sorted(sans))
    combined.validation_context_sds_secret_config.CopyFrom(secret("ROOTCA"))
    return _socket(envoy.UpstreamTlsContext(common_tls_context=common, sni=sni))


def auto_mutual(sni: str, sans: Iterable[str], *, http2: bool) -> list[Any]:
    """Mutual TLS to those endpoints that say they can, plain text to the others."""
    match = envoy.Cluster.TransportSocketMatch
    strict = envoy.Struct()
    strict.update({"tlsMode": "istio"})
    return [
        match(name="tlsMode-istio", match=strict, transport_socket=client_mutual(sni, sans, http2=http2)),
        match(name="tlsMode-disabled", match={}, transport_socket=raw_socket()),
    ]


def client_tls(settings: Any, *, http2: bool, sds: bool) -> Any:
    """TLS to an outside server as a DestinationRule's ``tls`` block asks (modes SIMPLE and MUTUAL, by files).

    Without ``caCertificates`` the operating system's authorities count: istio-proxy is asked for them by SDS (``sds``),
    another Envoy reads them where Debian keeps them, and refuses the cluster when there is no such file.
    """
    common = envoy.CommonTlsContext(tls_params=_params(server=False), alpn_protocols=["h2"] if http2 else [])
    validation = envoy.CertificateValidationContext()
    for name in settings.subject_alt_names:
        kind = envoy.message("envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher")
        san_type = "URI" if "://" in name else "DNS"
        validation.match_typed_subject_alt_names.append(kind(san_type=san_type, matcher={"exact": name}))
    if settings.mode == MUTUAL and settings.client_certificate:
        common.tls_certificates.add(
            certificate_chain={"filename": settings.client_certificate}, private_key={"filename": settings.private_key}
        )
    if settings.ca_crl:
        validation.crl.filename = settings.ca_crl
    if settings.insecure_skip_verify.value:
        validation.trust_chain_verification = 1
        common.validation_context.CopyFrom(validation)
    elif settings.ca_certificates:
        validation.trusted_ca.filename = settings.ca_certificates
        common.validation_context.CopyFrom(validation)
    elif sds:
        common.combined_validation_context.default_validation_context.CopyFrom(validation)
        common.combined_validation_context.validation_context_sds_secret_config.CopyFrom(secret("file-root:system"))
    else:
        validation.trusted_ca.filename = SYSTEM_ROOTS
        common.validation_context.CopyFrom(validation)
    return _socket(envoy.UpstreamTlsContext(common_tls_context=common, sni=settings.sni))


def hbone_mutual(trust_domain: str) -> Any:
    """The client's end of an HBONE tunnel: HTTP/2 in TLS 1.3, to any identity of the trust domain."""
    common = envoy.CommonTlsContext(
        alpn_protocols=["h2"],
        tls_params=envoy.message("envoy.extensions.transport_sockets.tls.v3.TlsParameters")(
            tls_minimum_protocol_version="TLSv1_3", tls_maximum_protocol_version="TLSv1_3"
        ),
        tls_certificate_sds_secret_configs=[secret("default")],
    )
    combined = common.combined_validation_context
    combined.default_validation_context.match_typed_subject_alt_names.append(_san(prefix=f"spiffe://{trust_domain}/"))
    combined.validation_context_sds_secret_config.CopyFrom(secret("ROOTCA"))
    return _socket(envoy.UpstreamTlsContext(common_tls_context=common))


def server_mutual(trust_domain: str) -> Any:
    """A server in the mesh: any identity of the trust domain is let in (authorization decides the rest)."""
    common = envoy.CommonTlsContext(
        alpn_protocols=["h2", "http/1.1"],
        tls_params=_params(server=True),
        tls_certificate_sds_secret_configs=[secret("default")],
    )
    combined = common.combined_validation_context
    combined.default_validation_context.match_typed_subject_alt_names.append(_san(prefix=f"spiffe://{trust_domain}/"))
    combined.validation_context_sds_secret_config.CopyFrom(secret("ROOTCA"))
    return _socket(envoy.DownstreamTlsContext(common_tls_context=common, require_client_certificate={"value": True}))
