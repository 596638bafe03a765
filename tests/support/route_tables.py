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
    st.sampled_from(("x-user", "X-Group", "cookie", ":authority", "x_u", "user-agent", "accept")),
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
    st.lists(_methods, max_size=1),
    st.one_of(st.just([]), st.just([]), st.lists(_parameters, min_size=1, max_size=2)),
)
_names = st.sampled_from((*CLUSTERS, *CLUSTERS, MISSING[0]))
_weighted = (
    st.lists(st.tuples(_names, st.integers(0, 100)), min_size=1, max_size=5, unique_by=lambda item: item[0])
    .filter(lambda items: sum(weight for _, weight in items) > 0)
    .map(lambda items: {"weighted_clusters": {"clusters": [{"name": n, "weight": w} for n, w in items]}})
)
_forwards = st.builds(
    lambda to, more: {"route": {**to, "timeout": "0s", **more}},
    st.one_of(_names.map(lambda name: {"cluster": name}), _names.map(lambda name: {"cluster": name}), _weighted),
    st.sampled_from(
        (
            *({},) * 8,
            {"timeout": "3s"},
            {"prefix_rewrite": "/rewritten"},
            {"host_rewrite_literal": "other"},
            {"cluster_not_found_response_code": "NOT_FOUND"},
            {"cluster_not_found_response_code": "INTERNAL_SERVER_ERROR"},
            {"retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 2}},
            {"retry_policy": {"retry_on": "5xx", "num_retries": 2}},
            {"hash_policy": [{"header": {"header_name": "x-user"}}]},
        )
    ),
)
_others = st.sampled_from(
    (
        {"redirect": {"path_redirect": "/moved"}},
        {"redirect": {"host_redirect": "moved.example", "response_code": "FOUND"}},
        {"direct_response": {"status": 418, "body": {"inline_string": "teapot"}}},
        {"direct_response": {"status": 200}},
        {"non_forwarding_action": {}},
    )
)
_additions = st.sampled_from(
    (
        *({},) * 10,
        {"request_headers_to_add": [{"header": {"key": "x-added", "value": "1"}}]},
        {"request_headers_to_remove": ["x-user"]},
        {"response_headers_to_add": [{"header": {"key": "x-added", "value": "1"}}]},
    )
)
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
        vhosts.append(vhost)
    body = {"name": name, "virtual_hosts": vhosts, "ignore_port_in_host_matching": draw(st.booleans())}
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
