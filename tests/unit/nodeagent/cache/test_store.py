"""The cache: bad resources reject themselves only, by name and reason; contents are decoded once."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.cache import store
from nodeagent.cache.resources import Balance, ClusterKind, Forward, PathKind, StringKind
from nodeagent.cache.store import Decoder, ViewCache
from nodeagent.errors import ResourceError
from nodeagent.rules.model import Limit
from tests.support.resources import TYPES, Body, body, cached

ROUTER = {"name": "r", "match": {"prefix": "/"}, "route": {"cluster": "a", "timeout": "0s"}}


HOST = {"socket_address": {"address": "host", "port_value": 1}}


def routes(*entries: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "80", "virtual_hosts": [{"name": "v", "domains": ["v"], "routes": list(entries)}], **more}


def refusal(kind: str, data: dict[str, Any]) -> str:
    cache = ViewCache(Decoder())
    name = data.get("cluster_name", data.get("name", ""))
    touched, refused = cache.apply(TYPES[kind][0], (Body(name, body(kind, data)),), ())
    assert not touched
    return refused[name]


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        ("routes", routes({"match": {"prefix": "/"}}), "the route has no action"),
        ("routes", routes({"match": {}, "route": {"cluster": "a"}}), "no path condition"),
        ("routes", routes({"match": {"prefix": "/"}, "route": {}}), "names no cluster"),
        (
            "routes",
            routes({**ROUTER, "name": "w", "route": {"weighted_clusters": {"clusters": [{"name": "a"}]}}}),
            "route 0 (w): the weights of a route's clusters sum up to 0",
        ),
        ("routes", routes({**ROUTER, "match": {"safe_regex": {"regex": "("}}}), "bad regular expression"),
        ("routes", routes({"match": {"path_separated_prefix": "/a/"}, "route": {"cluster": "a"}}), "must start with"),
        (
            "routes",
            routes({"match": {"prefix": "/"}, "route": {"cluster": "a", "timeout": "-1s"}}),
            "negative duration",
        ),
        ("routes", {"name": "80", "virtual_hosts": [{"name": "v", "domains": ["a"]}] * 2}, "'v' occurs twice"),
        (
            "routes",
            {"name": "80", "virtual_hosts": [{"name": n, "domains": ["A.b"]} for n in "xy"]},
            "domain 'a.b' is in virtual hosts 'x' and 'y'",
        ),
        ("routes", {"name": "80", "virtual_hosts": [{"name": "v"}]}, "has no domains"),
        ("clusters", {"name": "c", "type": "EDS", "load_assignment": {"cluster_name": "c"}}, "its own load_assignment"),
        (
            "endpoints",
            {"cluster_name": "c", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": HOST}}]}]},
            "endpoint 'host' is not an IP address",
        ),
        ("listeners", {"name": "l"}, "no address"),
    ],
)
def test_what_envoy_would_refuse_is_refused_with_the_reason(kind: str, data: dict[str, Any], reason: str) -> None:
    assert reason in refusal(kind, data)


def test_bytes_that_are_no_message_are_refused() -> None:
    cache = ViewCache(Decoder())
    _, refused = cache.apply(store.CLUSTER, (Body("c", b"\xff\xff\xff"),), ())
    assert "the bytes are not a Cluster" in refused["c"]


def test_a_resource_must_bear_its_own_name() -> None:
    cache = ViewCache(Decoder())
    _, refused = cache.apply(store.CLUSTER, (Body("other", body("clusters", {"name": "c"})),), ())
    assert refused == {"other": "the resource calls itself 'c'"}


def test_the_last_good_one_stays_and_its_neighbours_come_through() -> None:
    cache = cached({"routes": [routes(ROUTER)]})
    bad = body("routes", routes({"match": {"prefix": "/"}}))
    good = body("routes", {"name": "90"})
    touched, refused = cache.apply(store.ROUTES, (Body("80", bad), Body("90", good)), ())
    assert touched
    assert list(refused) == ["80"]
    held = cache.resources().routes
    assert set(held) == {"80", "90"}
    assert held["80"].virtual_hosts[0].routes[0].name == "r"


def test_equal_contents_are_decoded_once_for_all_views_and_forgotten_after_use() -> None:
    decoder = Decoder()
    caches = [cached({"routes": [routes(ROUTER)]}, decoder) for _ in range(3)]
    assert len(decoder) == 1
    values = {id(cache.resources().routes["80"]) for cache in caches}
    assert len(values) == 1
    for cache in caches:
        cache.apply(store.ROUTES, (), ("80",))
    decoder.sweep({digest for cache in caches for digest in cache.digests()})
    decoder.sweep(set())
    assert len(decoder) == 0


def test_a_repeated_resource_changes_nothing() -> None:
    cache = cached({"routes": [routes(ROUTER)]})
    before = cache.resources()
    touched, _ = cache.apply(store.ROUTES, (Body("80", body("routes", routes(ROUTER))),), ("absent",))
    assert not touched
    assert cache.resources() is before


def test_references_are_what_listeners_and_clusters_name() -> None:
    cache = cached(
        {
            "clusters": [
                {"name": "a", "type": "EDS", "eds_cluster_config": {"service_name": "other"}},
                {"name": "b", "type": "EDS"},
                {"name": "c", "type": "STATIC"},
            ]
        }
    )
    assert cache.resources().eds_names() == {"other", "b"}
    assert cache.retain(store.CLUSTER, frozenset({"a"}))
    assert cache.resources().eds_names() == {"other"}


def test_every_set_field_that_is_not_carried_is_named() -> None:
    entry = {
        "match": {"prefix": "/", "runtime_fraction": {"default_value": {"numerator": 5}}, "grpc": {}},
        "route": {"cluster": "a", "rate_limits": [{"actions": [{"remote_address": {}}]}], "idle_timeout": "5s"},
        "request_headers_to_remove": ["content-length"],
        "typed_per_filter_config": {
            "custom": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy"}
        },
    }
    (vhost,) = cached({"routes": [routes(entry)]}).resources().routes["80"].virtual_hosts
    (route,) = vhost.routes
    assert set(route.match.unsupported) == {"fraction-match", "grpc-match"}
    assert set(route.unsupported) == {"edit-header content-length", "filter custom", "rate-limit", "idle-timeout"}


def test_a_schema_newer_than_ours_is_not_passed_over() -> None:
    raw = body("clusters", {"name": "c", "type": "EDS"}) + b"\x92\x7d\x01x"  # field 2002, length-delimited
    cache = ViewCache(Decoder())
    _, refused = cache.apply(store.CLUSTER, (Body("c", raw),), ())
    assert not refused
    assert "unknown-field" in cache.resources().clusters["c"].unsupported


def test_matches_and_actions_come_through_whole() -> None:
    entry = {
        "name": "n",
        "match": {
            "path_separated_prefix": "/a",
            "case_sensitive": False,
            "headers": [
                {"name": "X-A", "string_match": {"prefix": "b", "ignore_case": True}, "invert_match": True},
                {"name": "x-b", "present_match": False},
                {"name": "x-c", "exact_match": "old", "treat_missing_header_as_empty": True},
            ],
            "query_parameters": [{"name": "q", "string_match": {"exact": "1"}}],
        },
        "route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 3}, {"name": "b", "weight": 0}]}},
    }
    (route,) = cached({"routes": [routes(entry)]}).resources().routes["80"].virtual_hosts[0].routes
    assert (route.match.path.kind, route.match.path.ignore_case) == (PathKind.SEPARATED, True)
    first, second, third = route.match.headers
    assert (first.name, first.kind, first.ignore_case, first.invert) == ("x-a", StringKind.PREFIX, True, True)
    assert (second.kind, second.invert) == (StringKind.PRESENT, True)
    assert (third.value, third.missing_as_empty) == ("old", True)
    assert isinstance(route.action, Forward)
    assert [(c.name, c.weight) for c in route.action.clusters] == [("a", 3), ("b", 0)]
    assert route.action.timeout is None, "unset is Envoy's default, not none"


def test_our_metadata_wins_over_istios() -> None:
    ours = {"kind": "VirtualService", "name": "x", "namespace": "shop", "rule": 2, "file": "a.yaml", "line": 7}
    path = "/apis/networking.istio.io/v1/namespaces/default/virtual-service/reviews"
    both = {**ROUTER, "metadata": {"filter_metadata": {"underpass": ours, "istio": {"config": path}}}}
    istio = {**ROUTER, "metadata": {"filter_metadata": {"istio": {"config": path}}}}
    found = cached({"routes": [routes(both, istio)]}).resources().routes["80"].virtual_hosts[0].routes
    sources = [route.source for route in found]
    assert sources[0] is not None
    assert (sources[0].name, sources[0].rule, sources[0].line) == ("x", 2, 7)
    assert sources[1] is not None
    assert (sources[1].kind, sources[1].name, sources[1].rule) == ("VirtualService", "reviews", -1)


QUEUE = {"max_requests": 6, "max_retries": 2, "max_connections": 3, "max_pending_requests": 4}


def test_clusters() -> None:
    held = (
        cached(
            {
                "clusters": [
                    {"name": "outbound|80|v1|a.b", "type": "EDS", "lb_policy": "MAGLEV", "outlier_detection": {}},
                    {"name": "limits", "type": "EDS", "circuit_breakers": {"thresholds": [{"max_requests": 5}]}},
                    {"name": "none", "type": "EDS", "circuit_breakers": {"thresholds": [{"max_requests": 4294967295}]}},
                    {"name": "queue", "circuit_breakers": {"thresholds": [QUEUE]}},
                    {"name": "budget", "circuit_breakers": {"thresholds": [{"retry_budget": {}}]}},
                    {"name": "through", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"},
                ]
            }
        )
        .resources()
        .clusters
    )
    first = held["outbound|80|v1|a.b"]
    assert (first.balance, first.host, first.unsupported) == (Balance.MAGLEV, "a.b", ("outlier-success-rate",))
    assert (held["limits"].unsupported, held["limits"].limit) == ((), Limit("limits", requests=5))
    assert (held["none"].unsupported, held["none"].limit) == ((), None)
    assert held["queue"].unsupported == ("circuit-breaker",)
    assert held["queue"].limit == Limit("queue", requests=6, retries=2)
    assert held["budget"].retry_budget
    assert held["through"].kind is ClusterKind.ORIGINAL_DST


def test_errors_say_what() -> None:
    with pytest.raises(ResourceError, match="not a Listener"):
        Decoder().decode(store.LISTENER, b"\x01")
