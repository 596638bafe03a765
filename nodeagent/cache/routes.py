"""RouteConfiguration -> value."""

from __future__ import annotations

from typing import Any, Final

import re2

from nodeagent.cache.decode import leftovers, parse, seconds, source_of, unique
from nodeagent.cache.resources import (
    Action,
    DirectResponse,
    Forward,
    OtherAction,
    PathKind,
    PathMatch,
    Redirect,
    Retry,
    Route,
    RouteConfiguration,
    RouteMatch,
    StringKind,
    ValueMatch,
    VirtualHost,
    WeightedCluster,
)
from nodeagent.errors import ResourceError
from underpass.api import envoy

#: Field -> feature, for the places where several fields are one feature to a user.
_MUTATIONS: Final = {
    "request_headers_to_add": "request-headers",
    "request_headers_to_remove": "request-headers",
    "response_headers_to_add": "response-headers",
    "response_headers_to_remove": "response-headers",
}
_ACTION_FEATURES: Final = {
    **_MUTATIONS,
    "prefix_rewrite": "rewrite",
    "regex_rewrite": "rewrite",
    "path_rewrite": "rewrite",
    "path_rewrite_policy": "rewrite",
    "host_rewrite": "rewrite",
    "host_rewrite_literal": "rewrite",
    "host_rewrite_header": "rewrite",
    "host_rewrite_path_regex": "rewrite",
    "auto_host_rewrite": "rewrite",
    "append_x_forwarded_host": "request-headers",
    "rate_limits": "rate-limit",
    "hash_policy": "consistent-hash",
}
_REDIRECTS: Final = {0: 301, 1: 302, 2: 303, 3: 307, 4: 308}
_PER_FILTER: Final = {
    "envoy.filters.http.cors": "cors",
    "envoy.filters.http.local_ratelimit": "rate-limit",
    "envoy.filters.http.ratelimit": "rate-limit",
    "envoy.filters.http.rbac": "authorization",
    "envoy.filters.http.jwt_authn": "jwt",
    "envoy.filters.http.ext_authz": "ext-authz",
}


def decode_routes(body: bytes) -> RouteConfiguration:
    """Bytes of an RDS resource. Raises ResourceError for what Envoy would refuse too."""
    return routes_from(parse(envoy.RouteConfiguration, body))


def routes_from(message: Any) -> RouteConfiguration:
    """As `decode_routes`, of a parsed message (an inline `route_config`)."""
    extra = leftovers(
        message,
        (
            "name",
            "virtual_hosts",
            "validate_clusters",
            "ignore_port_in_host_matching",
            "max_direct_response_body_size_bytes",
            "internal_only_headers",
            "most_specific_header_mutations_wins",
            "typed_per_filter_config",
            "request_mirror_policies",
            "metadata",
        ),
        _MUTATIONS,
    )
    extra += _per_filter(message.typed_per_filter_config) + _mirrors(message.request_mirror_policies)
    hosts = tuple(_virtual_host(vhost) for vhost in message.virtual_hosts)
    _check_unique(hosts)
    return RouteConfiguration(message.name, hosts, message.ignore_port_in_host_matching, unique(extra))


def _check_unique(hosts: tuple[VirtualHost, ...]) -> None:
    names: set[str] = set()
    owners: dict[str, str] = {}
    for vhost in hosts:
        if vhost.name in names:
            raise ResourceError(f"virtual host {vhost.name!r} occurs twice")
        names.add(vhost.name)
        for domain in vhost.domains:
            if domain in owners:
                raise ResourceError(f"domain {domain!r} is in virtual hosts {owners[domain]!r} and {vhost.name!r}")
            owners[domain] = vhost.name


def _virtual_host(message: Any) -> VirtualHost:
    if not message.name:
        raise ResourceError("a virtual host has no name")
    if not message.domains:
        raise ResourceError(f"virtual host {message.name!r} has no domains")
    extra = leftovers(
        message,
        (
            "name",
            "domains",
            "routes",
            # both only add a header that says how often a request was tried; the kernel tries once
            "include_request_attempt_count",
            "include_attempt_count_in_response",
            "virtual_clusters",
            "typed_per_filter_config",
            "request_mirror_policies",
            "metadata",
        ),
        {**_MUTATIONS, "rate_limits": "rate-limit", "require_tls": "require-tls", "retry_policy": "retry"},
    )
    extra += _per_filter(message.typed_per_filter_config) + _mirrors(message.request_mirror_policies)
    routes = []
    for index, route in enumerate(message.routes):
        try:
            routes.append(_route(route))
        except ResourceError as error:
            label = f"route {index}" + (f" ({route.name})" if route.name else "")
            raise ResourceError(f"virtual host {message.name!r}, {label}: {error}") from None
    domains = tuple(domain.lower() for domain in message.domains)
    return VirtualHost(message.name, domains, tuple(routes), unique(extra))


def _route(message: Any) -> Route:
    extra = leftovers(
        message,
        (
            "name",
            "match",
            "route",
            "redirect",
            "direct_response",
            "filter_action",
            "non_forwarding_action",
            "metadata",
            "decorator",
            "stat_prefix",
            "tracing",
            "typed_per_filter_config",
            "per_request_buffer_limit_bytes",
        ),
        _MUTATIONS,
    )
    extra += _per_filter(message.typed_per_filter_config)
    kind = message.WhichOneof("action")
    action: Action
    if kind == "route":
        action, more = _forward(message.route)
        extra += more
    elif kind == "redirect":
        action = Redirect(code=_REDIRECTS.get(message.redirect.response_code, 0))
    elif kind == "direct_response":
        if not 200 <= message.direct_response.status < 600:
            raise ResourceError(f"direct response with status {message.direct_response.status}")
        action = DirectResponse(message.direct_response.status)
    elif kind is None:
        raise ResourceError("the route has no action")
    else:
        action = OtherAction(kind.replace("_", "-"))
    return Route(message.name, _match(message.match), action, source_of(message), unique(extra))


def _match(message: Any) -> RouteMatch:
    kind = message.WhichOneof("path_specifier")
    fold = message.HasField("case_sensitive") and not message.case_sensitive.value
    if kind == "prefix":
        path = PathMatch(PathKind.PREFIX, message.prefix, fold)
    elif kind == "path":
        path = PathMatch(PathKind.EXACT, message.path, fold)
    elif kind == "path_separated_prefix":
        value = message.path_separated_prefix
        if not value.startswith("/") or value.endswith("/"):
            raise ResourceError(f"path_separated_prefix {value!r} must start with '/' and not end with it")
        path = PathMatch(PathKind.SEPARATED, value, fold)
    elif kind == "safe_regex":
        path = PathMatch(PathKind.REGEX, _regex(message.safe_regex.regex))
    elif kind == "path_match_policy":
        path = PathMatch(PathKind.TEMPLATE, message.path_match_policy.name)
    elif kind == "connect_matcher":
        path = PathMatch(PathKind.CONNECT, "")
    else:
        raise ResourceError("the route has no path condition")
    extra = leftovers(
        message,
        (
            "prefix",
            "path",
            "path_separated_prefix",
            "safe_regex",
            "path_match_policy",
            "connect_matcher",
            "case_sensitive",
            "headers",
            "query_parameters",
        ),
        {"runtime_fraction": "fraction-match", "grpc": "grpc-match", "dynamic_metadata": "metadata-match"},
    )
    headers = []
    for header in message.headers:
        decoded, more = _header(header)
        headers.append(decoded)
        extra += more
    query = tuple(_query(parameter) for parameter in message.query_parameters)
    return RouteMatch(path, tuple(headers), query, unique(extra))


_OLD_HEADER_KINDS: Final = {
    "exact_match": StringKind.EXACT,
    "prefix_match": StringKind.PREFIX,
    "suffix_match": StringKind.SUFFIX,
    "contains_match": StringKind.CONTAINS,
}


def _header(message: Any) -> tuple[ValueMatch, list[str]]:
    name = message.name.lower()
    if not name:
        raise ResourceError("a header match has no name")
    invert, as_empty = message.invert_match, message.treat_missing_header_as_empty
    kind = message.WhichOneof("header_match_specifier")
    extra: list[str] = []
    if kind == "string_match":
        string, value, fold, extra = _string(message.string_match)
        return ValueMatch(name, string, value, fold, invert, as_empty), extra
    if kind in _OLD_HEADER_KINDS:
        value = getattr(message, kind)
        return ValueMatch(name, _OLD_HEADER_KINDS[kind], value, False, invert, as_empty), extra
    if kind == "safe_regex_match":
        value = _regex(message.safe_regex_match.regex)
        return ValueMatch(name, StringKind.REGEX, value, False, invert, as_empty), extra
    if kind == "range_match":
        value = f"{message.range_match.start}..{message.range_match.end}"
        return ValueMatch(name, StringKind.RANGE, value, False, invert, as_empty), extra
    if kind in (None, "present_match"):
        # `present_match: false` asks for absence, as does `invert_match` with presence; both cancel out.
        absent = kind == "present_match" and not message.present_match
        return ValueMatch(name, StringKind.PRESENT, "", False, invert != absent, as_empty), extra
    raise ResourceError(f"header {name!r}: unknown kind of match {kind!r}")


def _query(message: Any) -> ValueMatch:
    if not message.name:
        raise ResourceError("a query parameter match has no name")
    if message.WhichOneof("query_parameter_match_specifier") == "string_match":
        kind, value, fold, _ = _string(message.string_match)
        return ValueMatch(message.name, kind, value, fold)
    return ValueMatch(message.name, StringKind.PRESENT, "", False, _absent(message))


def _absent(message: Any) -> bool:
    chosen = message.WhichOneof("query_parameter_match_specifier") == "present_match"
    return chosen and not message.present_match


def _string(message: Any) -> tuple[StringKind, str, bool, list[str]]:
    kind = message.WhichOneof("match_pattern")
    fold = message.ignore_case
    if kind == "exact":
        return StringKind.EXACT, message.exact, fold, []
    if kind == "prefix":
        return StringKind.PREFIX, message.prefix, fold, []
    if kind == "suffix":
        return StringKind.SUFFIX, message.suffix, fold, []
    if kind == "contains":
        return StringKind.CONTAINS, message.contains, fold, []
    if kind == "safe_regex":
        return StringKind.REGEX, _regex(message.safe_regex.regex), False, []
    if kind == "custom":
        # Not carried: as a presence test it would match too much or too little, so the feature is named.
        return StringKind.PRESENT, "", False, ["custom-string-match"]
    raise ResourceError("a string match has no pattern")


def _regex(pattern: str) -> str:
    """A pattern that Envoy's engine accepts, unchanged."""
    try:
        re2.compile(pattern)
    except re2.error as error:
        reason = error.args[0]
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise ResourceError(f"bad regular expression {pattern!r}: {text}") from None
    return pattern


def _forward(message: Any) -> tuple[Action, list[str]]:
    extra = leftovers(
        message,
        (
            "cluster",
            "weighted_clusters",
            "cluster_header",
            "inline_cluster_specifier_plugin",
            "cluster_specifier_plugin",
            "cluster_not_found_response_code",
            "timeout",
            "max_grpc_timeout",
            "grpc_timeout_offset",
            "max_stream_duration",
            "retry_policy",
            "upgrade_configs",
            "request_mirror_policies",
            "idle_timeout",
            "flush_timeout",
            # selects the circuit breaker's class, which is named on the cluster when it limits anything
            "priority",
        ),
        _ACTION_FEATURES,
    )
    extra += _mirrors(message.request_mirror_policies)
    if message.HasField("idle_timeout") and seconds(message.idle_timeout) > 0:
        extra.append("timeout")
    timeout = seconds(message.timeout) if message.HasField("timeout") else None
    if message.HasField("max_stream_duration") and message.max_stream_duration.HasField("max_stream_duration"):
        # It takes the place of `timeout` (proxyless and inbound routes).
        timeout = seconds(message.max_stream_duration.max_stream_duration)
    retry = _retry(message.retry_policy) if message.HasField("retry_policy") else None
    not_found = 500 if message.cluster_not_found_response_code == 2 else 503
    if message.cluster_not_found_response_code == 1:
        not_found = 404
    kind = message.WhichOneof("cluster_specifier")
    if kind == "cluster":
        if not message.cluster:
            raise ResourceError("the route names an empty cluster")
        return Forward((WeightedCluster(message.cluster),), timeout, retry, not_found), extra
    if kind == "weighted_clusters":
        clusters, more = _weighted(message.weighted_clusters)
        return Forward(clusters, timeout, retry, not_found), extra + more
    if kind is None:
        raise ResourceError("the route names no cluster")
    return OtherAction(kind.replace("_", "-")), extra


def _weighted(message: Any) -> tuple[tuple[WeightedCluster, ...], list[str]]:
    extra = leftovers(message, ("clusters", "total_weight", "runtime_key_prefix"), {"header_name": "header-hash"})
    clusters = []
    for item in message.clusters:
        if not item.name:
            extra.append("cluster-header")
        extra += leftovers(item, ("name", "weight", "typed_per_filter_config"), _ACTION_FEATURES)
        extra += _per_filter(item.typed_per_filter_config)
        clusters.append(WeightedCluster(item.name, item.weight.value))
    if not clusters:
        raise ResourceError("weighted_clusters is empty")
    total = sum(cluster.weight for cluster in clusters)
    if total == 0:
        raise ResourceError("the weights of a route's clusters sum up to 0")
    if total > 0xFFFFFFFF:
        raise ResourceError(f"the weights of a route's clusters sum up to {total}, more than 2^32 - 1")
    return tuple(clusters), extra


def _retry(message: Any) -> Retry:
    extra = leftovers(
        message,
        (
            "retry_on",
            "num_retries",
            "per_try_timeout",
            "retriable_status_codes",
            "retry_host_predicate",
            "host_selection_retry_max_attempts",
            "retry_back_off",
        ),
    )
    per_try = seconds(message.per_try_timeout) if message.HasField("per_try_timeout") else 0.0
    attempts = message.num_retries.value if message.HasField("num_retries") else 1
    on = tuple(sorted(part.strip() for part in message.retry_on.split(",") if part.strip()))
    return Retry(on, attempts, per_try, tuple(sorted(message.retriable_status_codes)), unique(extra))


def _mirrors(policies: Any) -> list[str]:
    for policy in policies:
        fraction = policy.runtime_fraction
        never = policy.HasField("runtime_fraction") and fraction.default_value.numerator == 0
        if not never or fraction.runtime_key:
            return ["mirror"]
    return []


def _per_filter(configs: Any) -> list[str]:
    found = []
    for name in sorted(configs):
        if name == "envoy.filters.http.fault" or configs[name].type_url.endswith(".HTTPFault"):
            found += _fault(configs[name].value)
        else:
            found.append(_PER_FILTER.get(name, f"filter {name}"))
    return found


def _fault(body: bytes) -> list[str]:
    fault = parse(envoy.HTTPFault, body)
    names = {"delay": "fault-delay", "abort": "fault-abort", "response_rate_limit": "fault-rate-limit"}
    return leftovers(fault, ("upstream_cluster", "disable_downstream_cluster_stats"), names)
