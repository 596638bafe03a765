"""Route tables as Hypothesis makes them: RouteConfigurations that Envoy accepts, beyond what samples contain.

Words are few and short, so that conditions of different routes touch: prefixes of one another, same header with other
values, the same host in several forms. Clusters are the same few for every table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from hypothesis import strategies as st

from underpass.api import envoy
from underpass.equivalence.subjects import Subjects, of_views

CLUSTERS: Final = tuple(f"c{i}" for i in range(6))
MISSING: Final = ("m0", "m1")

_segments = st.lists(st.text("abA-.", min_size=1, max_size=3).filter(lambda s: s.strip(".")), max_size=3)
_paths = _segments.map(lambda parts: "/" + "/".join(parts))
_cut = st.tuples(_paths, st.integers(0, 3)).map(lambda pair: pair[0][: max(len(pair[0]) - pair[1], 1)])
_REGEXES: Final = (
    "/a+.*", "/[ab]*", ".*", "/a/b?", "/(a|b)", "/A{1,2}/a", "/[^/]+/b", "/(a|ab)(b|)", "(?i)/ab/.*", "/a.b", "/a\\.b",
    "/[a-c]{2,3}(/.*)?", "/\\w+", "/a|/b", "/(?:a/)*b", "", "/", ".+",
)  # fmt: skip
_VALUE_REGEXES: Final = (".*", ".+", "(?i)a.*", "[^1]*", "a?b?", "(a|B)+1?", "^a$", "(.*;)?a=b(;.*)?", "\\d+", "")
_values = st.text("abAB1 ;=", max_size=4).map(str.strip)
_some = _values.filter(bool)


def _path_match() -> st.SearchStrategy[dict[str, Any]]:
    separated = _cut.map(lambda path: path.rstrip("/") or "/a")
    literal = st.one_of(
        st.builds(lambda value: {"prefix": value}, st.one_of(_cut, st.just("/"), st.just(""))),
        st.builds(lambda value: {"path": value}, _cut),
        st.builds(lambda value: {"path_separated_prefix": value}, separated),
    )
    folded = st.builds(lambda match: {**match, "case_sensitive": False}, literal)
    regex = st.sampled_from(_REGEXES[:-3] + _REGEXES[-2:]).map(lambda value: {"safe_regex": {"regex": value}})
    return st.one_of(literal, literal, folded, regex)


_string_match = st.one_of(
    st.builds(
        lambda kind, value, fold: {kind: value, **({"ignore_case": True} if fold else {})},
        st.sampled_from(("prefix", "suffix", "contains")),
        _some,
        st.booleans(),
    ),
    st.builds(lambda value, fold: {"exact": value, **({"ignore_case": True} if fold else {})}, _values, st.booleans()),
    st.sampled_from(_VALUE_REGEXES[:-1]).map(lambda value: {"safe_regex": {"regex": value}}),
)
_headers = st.builds(
    lambda name, condition, invert, empty: {
        "name": name,
        **condition,
        **({"invert_match": True} if invert else {}),
        **({"treat_missing_header_as_empty": True} if empty else {}),
    },
    st.sampled_from(("x-user", "X-Group", "cookie", ":authority", "x_u", "user-agent", "accept", "origin")),
    st.one_of(
        _string_match.map(lambda match: {"string_match": match}),
        st.booleans().map(lambda present: {"present_match": present}),
        st.just({"range_match": {"start": 1, "end": 20}}),
    ),
    st.booleans(),
    st.booleans(),
)
_methods = st.builds(
    lambda value, invert: {
        "name": ":method",
        "string_match": value,
        **({"invert_match": True} if invert else {}),
    },
    st.sampled_from(({"exact": "GET"}, {"exact": "POST"}, {"prefix": "P"}, {"safe_regex": {"regex": "GET|PUT"}})),
    st.booleans(),
)
_schemes = st.builds(
    lambda value, invert: {"name": ":scheme", "string_match": value, **({"invert_match": True} if invert else {})},
    st.sampled_from(({"exact": "http"}, {"exact": "https"}, {"prefix": "http"}, {"suffix": "s"}, {"exact": "x"})),
    st.booleans(),
)
_parameters = st.builds(
    lambda name, condition: {"name": name, **condition},
    st.sampled_from(("q", "a", "long-name")),
    st.one_of(
        _string_match.map(lambda match: {"string_match": match}),
        st.booleans().map(lambda present: {"present_match": present}),
    ),
)
_matches = st.builds(
    lambda path, headers, methods, query: {**path, "headers": [*headers, *methods], "query_parameters": query},
    _path_match(),
    st.lists(_headers, max_size=3),
    st.one_of(st.lists(_methods, max_size=1), st.lists(_schemes, max_size=1)),
    st.one_of(st.just([]), st.just([]), st.lists(_parameters, min_size=1, max_size=2)),
)
_names = st.sampled_from((*CLUSTERS, *CLUSTERS, MISSING[0]))
_destination_edits = st.one_of(
    *[st.just({})] * 9, st.just({"request_headers_to_add": [{"header": {"key": "x-to", "value": "1"}}]})
)
_weighted = (
    st.lists(st.tuples(_names, st.integers(0, 100)), min_size=1, max_size=5, unique_by=lambda item: item[0])
    .filter(lambda items: sum(weight for _, weight in items) > 0)
    .flatmap(lambda items: st.tuples(st.just(items), st.lists(_destination_edits, min_size=5, max_size=5)))
    .map(
        lambda pair: {
            "weighted_clusters": {
                "clusters": [{"name": n, "weight": w, **more} for (n, w), more in zip(pair[0], pair[1], strict=False)]
            }
        }
    )
)
_header_names = st.sampled_from(("x-added", "x-user", "X-Group", "accept", "cookie", "x-more"))
_header_values = st.sampled_from(("1", "a b", "%REQ(x-user)%", "<%REQ(:path)%>", "100%%", "%REQ(x-none)%", "é"))
_APPEND: Final = ("APPEND_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT", "OVERWRITE_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS")
_options = st.builds(
    lambda key, value, action: {"header": {"key": key, "value": value}, "append_action": action},
    _header_names,
    _header_values,
    st.sampled_from(_APPEND),
)


def _edits(*sides: str) -> st.SearchStrategy[dict[str, Any]]:
    """Header changes of one level, mostly none."""
    parts: dict[str, st.SearchStrategy[Any]] = {}
    for side in sides:
        parts[f"{side}_headers_to_add"] = st.lists(_options, min_size=1, max_size=3)
        parts[f"{side}_headers_to_remove"] = st.lists(_header_names, min_size=1, max_size=2)
    some = st.fixed_dictionaries({}, optional=parts)
    return st.one_of(*[st.just({})] * 5, some)


_SUBSTITUTIONS: Final = (
    ("/a", "/z"),
    ("^/([^/]*)/(.*)$", r"/\2/\1"),
    ("[ab]", "c"),
    ("b*", "x"),
    ("/$", ""),
    ("A", r"\\"),
)
_regex_rewrites = st.sampled_from(_SUBSTITUTIONS).map(
    lambda pair: {"regex_rewrite": {"pattern": {"regex": pair[0]}, "substitution": pair[1]}}
)
_path_rewrites = st.one_of(
    st.sampled_from(("/rewritten", "/", "/r/", "/a?b=c")).map(lambda path: {"prefix_rewrite": path}), _regex_rewrites
)
_more = st.one_of(
    *[st.just({})] * 6,
    st.sampled_from(
        (
            {"timeout": "3s"},
            {"host_rewrite_literal": "other"},
            {"host_rewrite_literal": "other:81", "append_x_forwarded_host": True},
            {"host_rewrite_header": "x-user"},
            {"cluster_not_found_response_code": "NOT_FOUND"},
            {"cluster_not_found_response_code": "INTERNAL_SERVER_ERROR"},
            {"retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 2}},
            {"retry_policy": {"retry_on": "5xx", "num_retries": 2}},
            {"hash_policy": [{"header": {"header_name": "x-user"}}]},
            {"request_mirror_policies": [{"cluster": "c5"}]},
        )
    ),
    _path_rewrites,
    st.builds(lambda first, second: {**first, **second}, _path_rewrites, st.just({"host_rewrite_literal": "other"})),
)
_forwards = st.builds(
    lambda to, more: {"route": {**to, "timeout": "0s", **more}},
    st.one_of(_names.map(lambda name: {"cluster": name}), _names.map(lambda name: {"cluster": name}), _weighted),
    _more,
)
_redirects = st.builds(
    lambda where, more: {"redirect": {**where, **more}},
    st.one_of(
        st.sampled_from(("/moved", "/moved?x=y", "/")).map(lambda path: {"path_redirect": path}),
        st.sampled_from(("/moved", "/")).map(lambda path: {"prefix_rewrite": path}),
        _regex_rewrites,
        st.just({}),
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "host_redirect": st.sampled_from(("moved.example", "moved.example:81")),
            "port_redirect": st.sampled_from((80, 81, 443)),
            "scheme_redirect": st.sampled_from(("http", "https")),
            "response_code": st.sampled_from(("FOUND", "SEE_OTHER", "TEMPORARY_REDIRECT", "PERMANENT_REDIRECT")),
            "strip_query": st.booleans(),
        },
    ),
)
_others = st.one_of(
    _redirects,
    # What has no body must not be given one: Envoy would send it all the same.
    st.sampled_from((204, 302, 304)).map(lambda status: {"direct_response": {"status": status}}),
    st.builds(
        lambda status, body: {
            "direct_response": {"status": status, **({"body": {"inline_string": body}} if body else {})}
        },
        st.sampled_from((200, 201, 302, 404, 418, 503)),
        st.sampled_from(("", "teapot", "é\n")),
    ),
    st.just({"non_forwarding_action": {}}),
)
_FAULT: Final = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"
_CORS: Final = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy"
_filters = st.one_of(
    *[st.just({})] * 9,
    st.sampled_from((0, 100, 50)).map(
        lambda share: {
            "envoy.filters.http.fault": {
                "@type": _FAULT,
                "abort": {"http_status": 418, "percentage": {"numerator": share}},
            }
        }
    ),
    st.builds(
        lambda origin, more: {
            "envoy.filters.http.cors": {"@type": _CORS, "allow_origin_string_match": [origin], **more}
        },
        st.sampled_from(({"exact": "http://x"}, {"prefix": "http"}, {"exact": "*"}, {"safe_regex": {"regex": ".*x"}})),
        st.fixed_dictionaries(
            {},
            optional={
                "allow_methods": st.just("GET,PUT"),
                "allow_headers": st.just("x-user"),
                "expose_headers": st.just("x-added"),
                "max_age": st.just("5"),
                "allow_credentials": st.booleans(),
                "forward_not_matching_preflights": st.booleans(),
            },
        ),
    ),
).map(lambda config: {"typed_per_filter_config": config} if config else {})
_additions = st.builds(lambda edits, filters: {**edits, **filters}, _edits("request", "response"), _filters)
_routes = st.builds(
    lambda match, action, more: {"match": match, **action, **more},
    _matches,
    st.one_of(_forwards, _forwards, _forwards, _forwards, _others),
    _additions,
)
_catch_all = st.builds(lambda action: {"match": {"prefix": "/"}, **action}, _forwards)
_DOMAINS: Final = (
    "a", "ab", "a.b", "B.example", "c.b.example", "*.b.example", "*.example", "*.b", "10.0.0.1", "[fd00::1]", "*",
    "a:80", "a.b:9080", "x.a.b.c.d.e.f.g.h.i", "*.i", "a.", "*-x.example", "a.*", "w.*",
)  # fmt: skip


@st.composite
def tables(draw: st.DrawFn, name: str = "t") -> Any:
    """One RouteConfiguration message."""
    # Wildcards that are no suffix behind a dot make a table the waypoint's as a whole: rare, or nothing else is tried.
    odd = draw(st.integers(0, 19)) == 0
    pool = [
        domain for domain in _DOMAINS if odd or not ((domain.endswith("*") and domain != "*") or domain[:2] == "*-")
    ]
    domains = draw(st.permutations(pool))
    vhosts = []
    for index in range(draw(st.integers(1, 4))):
        count = draw(st.integers(1, 3))
        mine, domains = domains[:count], domains[count:]
        routes = draw(st.lists(_routes, min_size=1, max_size=7))
        if draw(st.booleans()):
            routes = [*routes, draw(_catch_all)]
        vhost: dict[str, Any] = {"name": f"v{index}", "domains": mine, "routes": routes}
        if draw(st.integers(0, 9)) == 0:
            vhost["include_request_attempt_count"] = True
        vhost |= draw(_edits("request", "response"))
        vhosts.append(vhost)
    more: dict[str, Any] = draw(_edits("request", "response"))
    specific = draw(st.booleans())
    if more and specific:
        more["most_specific_header_mutations_wins"] = True
    body = {**more, "name": name, "virtual_hosts": vhosts, "ignore_port_in_host_matching": draw(st.booleans())}
    return envoy.from_dict("RouteConfiguration", body)


def batches(size: int) -> st.SearchStrategy[list[Any]]:
    """Several tables, for one Envoy."""
    return st.lists(tables(), min_size=1, max_size=size)


def subjects(routes: Sequence[Any]) -> Subjects:
    """Tables as one view of an agent has them, each behind a listener of its own."""
    listeners, configurations = {}, {}
    for index, table in enumerate(routes):
        configuration = envoy.RouteConfiguration()
        configuration.CopyFrom(table)
        configuration.name = f"{table.name}{index}"
        configurations[configuration.name] = configuration
        listeners[f"l{index}"] = _listener(f"l{index}", 1000 + index, configuration.name)
    clusters = {
        name: envoy.Cluster(name=name, type="STATIC", load_assignment={"cluster_name": name}) for name in CLUSTERS
    }
    return of_views(
        [
            (
                "sidecar~192.0.2.1~generated.laws~laws.svc.cluster.local",
                {
                    envoy.type_url("Listener"): listeners,
                    envoy.type_url("RouteConfiguration"): configurations,
                    envoy.type_url("Cluster"): clusters,
                },
            )
        ]
    )


def _listener(name: str, port: int, routes: str) -> Any:
    manager = envoy.HttpConnectionManager(stat_prefix=name, normalize_path={"value": True})
    manager.path_with_escaped_slashes_action = envoy.HttpConnectionManager.KEEP_UNCHANGED
    manager.proxy_100_continue = True
    manager.use_remote_address.value = False
    for filter_name, config in (("fault", envoy.HTTPFault()), ("cors", envoy.HttpCors())):
        manager.http_filters.add(name=f"envoy.filters.http.{filter_name}", typed_config=envoy.pack_any(config))
    manager.http_filters.add(name="envoy.filters.http.router", typed_config=envoy.pack_any(envoy.Router()))
    manager.rds.route_config_name = routes
    manager.rds.config_source.ads.SetInParent()
    listener = envoy.Listener(name=name, traffic_direction="OUTBOUND")
    listener.address.socket_address.address = "0.0.0.0"
    listener.address.socket_address.port_value = port
    listener.filter_chains.add().filters.add(
        name="envoy.filters.network.http_connection_manager", typed_config=envoy.pack_any(manager)
    )
    return listener
