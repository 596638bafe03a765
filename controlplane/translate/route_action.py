"""What a route does with a request: forward, redirect, answer; and what happens to it on the way.  Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from controlplane.model.grpc_status import GRPC_STATUS
from controlplane.translate.route_match import string_matcher
from underpass.api import envoy

DEFAULT_RETRY_ON: Final = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"

_REDIRECT_CODES: Final = {
    0: "MOVED_PERMANENTLY", 301: "MOVED_PERMANENTLY", 302: "FOUND", 303: "SEE_OTHER", 307: "TEMPORARY_REDIRECT",
    308: "PERMANENT_REDIRECT",
}  # fmt: skip


def duration(value: Any) -> Any:
    """Copy a duration from Istio's pool to Envoy's."""
    return envoy.Duration(seconds=value.seconds, nanos=value.nanos)


def zero() -> Any:
    """No time at all, which in Envoy's timeouts means "no limit"."""
    return envoy.Duration()


def million(percent: float) -> Any:
    """A percentage in millionths, as Istio writes them."""
    return envoy.FractionalPercent(numerator=int(percent * 10000), denominator="MILLION")


def hundred(percent: int) -> Any:
    """A whole percentage."""
    return envoy.FractionalPercent(numerator=percent, denominator="HUNDRED")


def previous_hosts() -> Any:
    """Retry on another host than before."""
    return envoy.RetryPolicy.RetryHostPredicate(
        name="envoy.retry_host_predicates.previous_hosts", typed_config=envoy.pack_any(envoy.PreviousHostsPredicate())
    )


def retry_policy(retries: Any, *, consistent_hash: bool = False) -> Any:
    """Translate a retry policy; None is the mesh's default.  Returns None when retries are turned off."""
    out = envoy.RetryPolicy(
        retry_on=DEFAULT_RETRY_ON, num_retries=envoy.UInt32Value(value=2), host_selection_retry_max_attempts=5
    )
    if not consistent_hash:  # a retry elsewhere would break the affinity that was asked for
        out.retry_host_predicate.append(previous_hosts())
    if retries is None:
        return out
    if retries.attempts <= 0:
        return None
    out.num_retries.value = retries.attempts
    if retries.retry_on:
        parts = [text.strip() for text in retries.retry_on.split(",") if text.strip()]
        codes = [int(text) for text in parts if text.isdigit()]
        conditions = [text for text in parts if not text.isdigit()]
        if codes and "retriable-status-codes" not in conditions:
            conditions.append("retriable-status-codes")
        out.retry_on = ",".join(conditions)
        out.retriable_status_codes.extend(codes)
    if retries.HasField("per_try_timeout"):
        out.per_try_timeout.CopyFrom(duration(retries.per_try_timeout))
    if retries.HasField("retry_ignore_previous_hosts"):
        del out.retry_host_predicate[:]
        if retries.retry_ignore_previous_hosts.value:
            out.retry_host_predicate.append(previous_hosts())
    if retries.retry_remote_localities.value:
        config = envoy.message("envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig")
        out.retry_priority.name = "envoy.retry_priorities.previous_priorities"
        out.retry_priority.typed_config.CopyFrom(envoy.pack_any(config(update_frequency=2)))
    if retries.HasField("backoff"):
        out.retry_back_off.base_interval.CopyFrom(duration(retries.backoff))
    return out


class HeaderOperations:
    """Header changes of one ``headers`` block, in Envoy's terms; ``authority`` is a rewritten Host."""

    def __init__(self, headers: Any) -> None:
        request, response = headers.request, headers.response
        self.request_add = [*_options(request.set, append=False), *_options(request.add, append=True)]
        self.response_add = [*_options(response.set, append=False), *_options(response.add, append=True)]
        self.request_remove = [name for name in request.remove if not _internal(name)]
        self.response_remove = [name for name in response.remove if not _internal(name)]
        self.authority = _authority(request.set) or _authority(request.add)

    def apply(self, target: Any) -> None:
        """Append to a route's or a weighted cluster's lists."""
        target.request_headers_to_add.extend(self.request_add)
        target.response_headers_to_add.extend(self.response_add)
        target.request_headers_to_remove.extend(self.request_remove)
        target.response_headers_to_remove.extend(self.response_remove)


def _internal(name: str) -> bool:
    return name.startswith(":") or name.lower() == "host"


def _authority(headers: Any) -> str:
    return next((headers[name] for name in sorted(headers) if name.lower() in (":authority", "host")), "")


def _options(headers: Any, *, append: bool) -> list[Any]:
    action = "APPEND_IF_EXISTS_OR_ADD" if append else "OVERWRITE_IF_EXISTS_OR_ADD"
    return [
        envoy.HeaderValueOption(header=envoy.HeaderValue(key=name, value=headers[name]), append_action=action)
        for name in sorted(headers)
        if not _internal(name)
    ]


def redirect(spec: Any, port: int, *, tls: bool = False) -> Any:
    """Translate a redirect; ``port`` is the listener's, for "the request's port"."""
    out = envoy.RedirectAction(
        host_redirect=spec.authority, response_code=_REDIRECT_CODES[spec.redirect_code], path_redirect=spec.uri
    )
    if spec.prefix_rewrite:
        out.prefix_rewrite = spec.prefix_rewrite
    if spec.scheme:
        out.scheme_redirect = spec.scheme
    kind = spec.WhichOneof("redirect_port")
    if kind == "port":
        out.port_redirect = spec.port
    elif kind == "derive_port" and spec.derive_port == 1:
        out.port_redirect = port
    scheme = spec.scheme or ("https" if tls else "http")
    if (out.port_redirect, scheme) in ((80, "http"), (443, "https")):
        out.port_redirect = 0
    return out


def direct_response(spec: Any) -> Any:
    """Translate a fixed answer."""
    out = envoy.DirectResponseAction(status=spec.status)
    kind = spec.body.WhichOneof("specifier")
    if kind == "string":
        out.body.inline_string = spec.body.string
    elif kind == "bytes":
        out.body.inline_bytes = spec.body.bytes
    return out


def fault(spec: Any) -> Any:
    """Translate fault injection.  A percentage that is not given means every request."""
    out = envoy.HTTPFault()
    if spec.HasField("delay"):
        delay = spec.delay
        out.delay.fixed_delay.CopyFrom(duration(delay.fixed_delay))
        if delay.HasField("percentage"):
            out.delay.percentage.CopyFrom(million(delay.percentage.value))
        else:
            out.delay.percentage.CopyFrom(hundred(delay.percent or 100))
    if spec.HasField("abort"):
        abort = spec.abort
        percentage = million(abort.percentage.value) if abort.HasField("percentage") else hundred(100)
        out.abort.percentage.CopyFrom(percentage)
        if abort.WhichOneof("error_type") == "grpc_status":
            out.abort.grpc_status = GRPC_STATUS[abort.grpc_status]
        else:
            out.abort.http_status = abort.http_status
    return out


def cors(policy: Any) -> Any:
    """Translate a CORS policy."""
    out = envoy.HttpCorsPolicy(
        filter_enabled=envoy.RuntimeFractionalPercent(default_value=hundred(100)),
        allow_methods=",".join(policy.allow_methods),
        allow_headers=",".join(policy.allow_headers),
        expose_headers=",".join(policy.expose_headers),
        forward_not_matching_preflights=envoy.BoolValue(value=policy.unmatched_preflights != 2),
    )
    if policy.allow_origins:
        out.allow_origin_string_match.extend(
            matcher for origin in policy.allow_origins if (matcher := string_matcher(origin)) is not None
        )
    else:
        out.allow_origin_string_match.extend(
            envoy.StringMatcher(safe_regex={"regex": ".*"}) if text == "*" else envoy.StringMatcher(exact=text)
            for text in policy.allow_origin
        )
    if policy.HasField("allow_credentials"):
        out.allow_credentials.value = policy.allow_credentials.value
    if policy.HasField("max_age"):
        out.max_age = str(policy.max_age.seconds)
    return out


def mirrors(rule: Any, cluster_of: Callable[[Any], str]) -> list[Any]:
    """Translate ``mirror`` and ``mirrors``; 0 % is no mirror."""
    out: list[Any] = []
    if rule.HasField("mirror"):
        if rule.HasField("mirror_percentage"):
            share = million(rule.mirror_percentage.value)
        elif rule.HasField("mirror_percent"):
            share = hundred(rule.mirror_percent.value)
        else:
            share = hundred(100)
        out.append(_mirror(cluster_of(rule.mirror), share))
    for item in rule.mirrors:
        share = million(item.percentage.value) if item.HasField("percentage") else hundred(100)
        out.append(_mirror(cluster_of(item.destination), share))
    return [policy for policy in out if policy is not None]


def _mirror(cluster: str, share: Any) -> Any:
    if not share.numerator:
        return None
    return envoy.RouteAction.RequestMirrorPolicy(
        cluster=cluster,
        runtime_fraction=envoy.RuntimeFractionalPercent(default_value=share),
        trace_sampled=envoy.BoolValue(value=False),
    )


def hash_policy(consistent_hash: Any) -> Any:
    """What a consistent-hash load balancer hashes, as a route tells Envoy; None without a key."""
    kind = consistent_hash.WhichOneof("hash_key")
    policy = envoy.RouteAction.HashPolicy()
    if kind == "http_header_name":
        policy.header.header_name = consistent_hash.http_header_name
    elif kind == "http_cookie":
        cookie = consistent_hash.http_cookie
        policy.cookie.name, policy.cookie.path = cookie.name, cookie.path
        if cookie.HasField("ttl"):
            policy.cookie.ttl.CopyFrom(duration(cookie.ttl))
        for attribute in cookie.attributes:
            policy.cookie.attributes.add(name=attribute.name, value=attribute.value)
    elif kind == "use_source_ip":
        policy.connection_properties.source_ip = consistent_hash.use_source_ip
    elif kind == "http_query_parameter_name":
        policy.query_parameter.name = consistent_hash.http_query_parameter_name
    else:
        return None
    return policy
