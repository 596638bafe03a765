"""External authorization: the filters that ask a provider about what a policy of action CUSTOM matches.  Pure.

An RBAC filter judges the policies in the shadow and leaves the name of the one that matches in the request's metadata;
the filter behind it asks the provider when that name is one of this provider's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from controlplane.model.mesh import Provider
from controlplane.translate import names
from underpass.api import envoy

HTTP_FILTER: Final = "envoy.filters.http.ext_authz"
TCP_FILTER: Final = "envoy.filters.network.ext_authz"
#: Where the shadow's verdict is found, and how the names of policies begin that have to be asked about.
SHADOW_PREFIX: Final = "istio_ext_authz_"
_VERDICT: Final = f"{SHADOW_PREFIX}shadow_effective_policy_id"
_TCP: Final = "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz"
_HTTP: Final = "envoy.extensions.filters.http.ext_authz.v3"
#: Seconds: nobody waits so long, but Envoy wants a limit.
_PATIENCE: Final = 600


def policy_prefix(provider: str) -> str:
    """What the names of a provider's policies begin with."""
    return f"istio-ext-authz-{provider}"


def http_filter(provider: Provider, rbac: str) -> Any:
    """The filter that asks about requests; ``rbac`` is the name of the filter that judged in the shadow."""
    spec = provider.spec
    out = envoy.message(f"{_HTTP}.ExtAuthz")(
        transport_api_version="V3",
        failure_mode_allow=spec.fail_open,
        clear_route_cache=spec.clear_route_cache,
        filter_enabled_metadata=_when(provider, rbac),
    )
    made: Any = out
    if spec.status_on_error:
        made.status_on_error.code = int(spec.status_on_error)
    if spec.HasField("include_request_body_in_check"):
        body = spec.include_request_body_in_check
        made.with_request_body.max_request_bytes = body.max_request_bytes
        made.with_request_body.allow_partial_message = body.allow_partial_message
        made.with_request_body.pack_as_bytes = provider.grpc and body.pack_as_bytes
    if provider.grpc:
        made.grpc_service.CopyFrom(_grpc(provider))
    else:
        made.http_service.CopyFrom(_http(provider))
        sent = [*spec.include_request_headers_in_check, *spec.include_headers_in_check]
        if sent:
            made.allowed_headers.CopyFrom(_headers(sent))
    return envoy.HttpFilter(name=HTTP_FILTER, typed_config=envoy.pack_any(made))


def tcp_filter(provider: Provider, rbac: str) -> Any:
    """The filter that asks a gRPC provider about connections."""
    made = envoy.message(_TCP)(
        stat_prefix="tcp.",
        transport_api_version="V3",
        failure_mode_allow=provider.spec.fail_open,
        grpc_service=_grpc(provider),
        filter_enabled_metadata=_when(provider, rbac),
    )
    return envoy.Filter(name=TCP_FILTER, typed_config=envoy.pack_any(made))


def _when(provider: Provider, rbac: str) -> Any:
    value = envoy.ValueMatcher(string_match={"prefix": policy_prefix(provider.name)})
    return envoy.MetadataMatcher(filter=rbac, path=[{"key": _VERDICT}], value=value)


def _timeout(spec: Any) -> Any:
    if spec.HasField("timeout"):
        return envoy.Duration(seconds=spec.timeout.seconds, nanos=spec.timeout.nanos)
    return envoy.Duration(seconds=_PATIENCE)


def _grpc(provider: Provider) -> Any:
    target = {"cluster_name": names.cluster(provider.hostname, provider.port), "authority": provider.hostname}
    return envoy.GrpcService(envoy_grpc=target, timeout=_timeout(provider.spec))


def _http(provider: Provider) -> Any:
    spec = provider.spec
    out: Any = envoy.message(f"{_HTTP}.HttpService")(path_prefix=spec.path_prefix)
    # The URI is demanded and not used: the cluster says where to go.
    out.server_uri.uri = f"http://{names.domain(provider.hostname, provider.port)}"
    out.server_uri.cluster = names.cluster(provider.hostname, provider.port)
    out.server_uri.timeout.CopyFrom(_timeout(spec))
    for name, value in sorted(spec.include_additional_headers_in_check.items()):
        out.authorization_request.headers_to_add.add(key=name, value=value)
    for wanted, field in (
        (spec.headers_to_upstream_on_allow, "allowed_upstream_headers"),
        (spec.headers_to_downstream_on_deny, "allowed_client_headers"),
        (spec.headers_to_downstream_on_allow, "allowed_client_headers_on_success"),
    ):
        if wanted:
            getattr(out.authorization_response, field).CopyFrom(_headers(wanted))
    return out


def _headers(values: Iterable[str]) -> Any:
    """Names of headers: exact, ``prefix*`` or ``*suffix``."""
    out = envoy.message("envoy.type.matcher.v3.ListStringMatcher")()
    made: Any = out
    for value in values:
        if value.startswith("*"):
            made.patterns.add(suffix=value[1:], ignore_case=True)
        elif value.endswith("*"):
            made.patterns.add(prefix=value[:-1], ignore_case=True)
        else:
            made.patterns.add(exact=value, ignore_case=True)
    return out
