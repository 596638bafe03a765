"""RouteConfiguration -> value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import re2

from nodeagent.cache.decode import leftovers, parse, seconds, source_of, unique
from nodeagent.cache.resources import (
    Action,
    Forward,
    OtherAction,
    PathKind,
    PathMatch,
    Route,
    RouteConfiguration,
    RouteMatch,
    StringKind,
    ValueMatch,
    VirtualHost,
    WeightedCluster,
)
from nodeagent.cache.rules import MUTATIONS, Reader
from nodeagent.errors import ResourceError
from nodeagent.rules.model import Edits, Rule
from underpass.api import envoy

_ACTION_FEATURES: Final = {"rate_limits": "rate-limit"}


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
            *MUTATIONS,
        ),
    )
    hosts = tuple(_virtual_host(message, vhost) for vhost in message.virtual_hosts)
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


def _virtual_host(table: Any, message: Any) -> VirtualHost:
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
            "retry_policy",
            "metadata",
            *MUTATIONS,
        ),
        {"rate_limits": "rate-limit", "require_tls": "require-tls"},
    )
    routes = []
    for index, route in enumerate(message.routes):
        try:
            routes.append(_route(table, message, route))
        except ResourceError as error:
            label = f"route {index}" + (f" ({route.name})" if route.name else "")
            raise ResourceError(f"virtual host {message.name!r}, {label}: {error}") from None
    domains = tuple(domain.lower() for domain in message.domains)
    return VirtualHost(message.name, domains, tuple(routes), unique(extra))


def _route(table: Any, vhost: Any, message: Any) -> Route:
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
            *MUTATIONS,
        ),
    )
    reader = Reader()
    match = _match(message.match)
    matched = len(match.path.value.encode()) if match.path.kind in (PathKind.PREFIX, PathKind.SEPARATED) else -1
    kind = message.WhichOneof("action")
    rule = _levels(reader, table, vhost, message)
    action: Action
    if kind == "route":
        action, more = _forward(message.route, vhost, reader)
        extra += more
        policies = message.route.request_mirror_policies or vhost.request_mirror_policies
        rule = replace(
            rule,
            destinations=reader.destinations(message.route.weighted_clusters),
            rewrite=reader.rewrite(message.route, matched),
            mirrors=reader.mirrors(policies or table.request_mirror_policies),
            hash_on=reader.hash_on(message.route.hash_policy),
        )
    elif kind == "redirect":
        action = reader.redirect(message.redirect, matched)
    elif kind == "direct_response":
        if not 200 <= message.direct_response.status < 600:
            raise ResourceError(f"direct response with status {message.direct_response.status}")
        action = reader.direct(message.direct_response)
    elif kind is None:
        raise ResourceError("the route has no action")
    else:
        action = OtherAction(kind.replace("_", "-"))
    return Route(message.name, match, action, source_of(message), unique(extra + reader.refused), rule)


def _levels(reader: Reader, table: Any, vhost: Any, route: Any) -> Rule:
    """What the three levels say together about headers and filters."""
    last = table.most_specific_header_mutations_wins
    levels = (table, vhost, route) if last else (route, vhost, table)
    changes = [(reader.edits(level, "request"), reader.edits(level, "response")) for level in levels]
    return replace(
        reader.filters(route, vhost, table),
        request=tuple(request for request, _ in changes if request != Edits()),
        response=tuple(response for _, response in changes if response != Edits()),
        specific_last=last and route.HasField("route") and route.route.HasField("weighted_clusters"),
    )


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


def _forward(message: Any, vhost: Any, reader: Reader) -> tuple[Action, list[str]]:
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
            "prefix_rewrite",
            "regex_rewrite",
            "host_rewrite_literal",
            "hash_policy",
        ),
        _ACTION_FEATURES,
    )
    if message.HasField("idle_timeout") and seconds(message.idle_timeout) > 0:
        extra.append("idle-timeout")
    timeout = seconds(message.timeout) if message.HasField("timeout") else None
    if message.HasField("max_stream_duration") and message.max_stream_duration.HasField("max_stream_duration"):
        # It takes the place of `timeout` (proxyless and inbound routes).
        timeout = seconds(message.max_stream_duration.max_stream_duration)
    retry = None
    if message.HasField("retry_policy") or vhost.HasField("retry_policy"):
        retry = reader.retry(message.retry_policy if message.HasField("retry_policy") else vhost.retry_policy)
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
        extra += leftovers(item, ("name", "weight", "typed_per_filter_config", *MUTATIONS), _ACTION_FEATURES)
        extra += [f"destination filter {name}" for name in sorted(item.typed_per_filter_config)]
        clusters.append(WeightedCluster(item.name, item.weight.value))
    if not clusters:
        raise ResourceError("weighted_clusters is empty")
    total = sum(cluster.weight for cluster in clusters)
    if total == 0:
        raise ResourceError("the weights of a route's clusters sum up to 0")
    if total > 0xFFFFFFFF:
        raise ResourceError(f"the weights of a route's clusters sum up to {total}, more than 2^32 - 1")
    return tuple(clusters), extra
