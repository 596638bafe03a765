"""What the compiler makes of routes that home carries out: rules, their clusters, and what is refused instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from nodeagent.abi import numbers as n
from nodeagent.abi.numbers import ActionKind, NameKind, Reason
from nodeagent.abi.records import Action, HomeRule, Reply, Vhost
from nodeagent.cache.resources import Forward, RouteConfiguration, WeightedCluster
from nodeagent.cache.routes import routes_from
from nodeagent.cache.store import Resources
from nodeagent.intent.compile import Compiler
from nodeagent.intent.model import Intent, RouteInfo, Table, Where
from nodeagent.intent.replies import of_reasons
from nodeagent.rules.model import DirectReply, Mirror, Rule
from nodeagent.rules.text import decode, encode, key_of
from tests.support.resources import Load, from_yaml
from tests.unit.nodeagent.intent.test_compile import GOLDEN
from underpass.api import envoy


@pytest.fixture
def base() -> Resources:
    return from_yaml(GOLDEN / "routing.in.yaml")["view"]


def compiled(base: Resources, *views: Mapping[str, Any]) -> Intent:
    """Views whose one virtual host has one route, given as Envoy's JSON but for the match."""

    def routes(entry: Mapping[str, Any]) -> RouteConfiguration:
        route = {"match": {"prefix": "/"}, **entry}
        vhost = {"name": "v", "domains": ["v"], "routes": [route]}
        return routes_from(envoy.from_dict("RouteConfiguration", {"name": "80", "virtual_hosts": [vhost]}))

    made = {f"v{i}": replace(base, routes={"80": routes(entry)}) for i, entry in enumerate(views)}
    return Compiler().compile(made, [(Load(f"ns/{key}", ("10.9.0.1",)), key) for key in made])


def the_route(intent: Intent) -> tuple[RouteInfo, Action]:
    (value,) = set(intent.entries[Table.VHOSTS].values())
    action = Vhost.unpack(value).direct
    return intent.routes[action.route], action


def the_rules(intent: Intent) -> list[Rule]:
    records = [HomeRule.unpack(value) for value in intent.entries[Table.RULES].values()]
    return [decode(record.text[: record.len]) for record in records]


def cluster(intent: Intent, name: str) -> int:
    return intent.known.of(NameKind.CLUSTER)[name]


def test_a_rule_has_the_numbers_of_its_clusters_and_the_punt_its_destinations(base: Resources) -> None:
    weighted = {
        "clusters": [{"name": "a", "weight": 3}, {"name": "b", "weight": 1, "request_headers_to_remove": ["x"]}]
    }
    mirrors = [{"cluster": "b"}, {"cluster": "nowhere"}]
    entry = {"route": {"weighted_clusters": weighted, "timeout": "0s", "request_mirror_policies": mirrors}}
    intent = compiled(base, entry)
    info, action = the_route(intent)
    assert (info.where, info.features) == (Where.HOME, ("request-headers", "mirror"))
    assert (action.kind, action.reason) == (ActionKind.PUNT, Reason.ROUTE_HEADERS)
    assert [(w.upto, w.cluster) for w in action.to] == [(3, cluster(intent, "a")), (4, cluster(intent, "b"))]
    (rule,) = the_rules(intent)
    assert [mirror.number for mirror in rule.mirrors] == [cluster(intent, "b"), 0]
    assert [d.number for d in rule.destinations] == [cluster(intent, "b")]
    assert not [r for r in intent.rejections if r.kind == "route" and r.name.startswith("v ")]


def test_istios_default_retries_alone_stay_in_the_kernel(base: Resources) -> None:
    default = {
        "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes", "num_retries": 2,
        "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts"}],
        "host_selection_retry_max_attempts": "5",
    }  # fmt: skip
    intent = compiled(base, {"route": {"cluster": "a", "timeout": "0s", "retry_policy": default}})
    info, action = the_route(intent)
    assert (info.where, action.kind) == (Where.KERNEL, ActionKind.CLUSTERS)
    (alone,) = the_rules(intent)
    assert (alone, action.rule) == (Rule(retry=alone.retry), key_of(encode(alone)))
    other = compiled(base, {"route": {"cluster": "a", "timeout": "1s", "retry_policy": default}})
    (rule,) = the_rules(other)
    assert rule.retry is not None, "but who goes through home anyway has them"
    assert (rule.retry.attempts, rule.retry.avoid) == (2, 5)


@pytest.mark.parametrize(
    ("entry", "feature"),
    [
        ({"route": {"cluster": "a", "timeout": "1s", "auto_host_rewrite": True}}, "auto-host-rewrite"),
        ({"route": {"cluster": "a", "timeout": "1s", "hash_policy": [{"terminal": True}]}}, "hash-nothing"),
        (
            {
                "route": {"cluster": "a"},
                "request_headers_to_add": [{"header": {"key": "x", "value": "%DOWNSTREAM_REMOTE_ADDRESS%"}}],
            },
            "header-format %DOWNSTREAM_REMOTE_ADDRESS%",
        ),
        (
            {"route": {"cluster": "a", "retry_policy": {"retry_on": "5xx,retriable-headers"}}},
            "retry-on retriable-headers",
        ),
        (
            {"route": {"cluster": "a", "request_mirror_policies": [{"cluster": "b", "host_rewrite_literal": "x"}]}},
            "mirror-host-rewrite-literal",
        ),
        ({"direct_response": {"status": 200, "body": {"filename": "/x"}}}, "direct-response-filename"),
    ],
)
def test_what_home_does_not_do_is_refused_by_name(base: Resources, entry: Mapping[str, Any], feature: str) -> None:
    intent = compiled(base, entry)
    info, action = the_route(intent)
    assert info.where is Where.WAYPOINT
    assert feature in info.features
    assert (action.kind, action.rule, action.to) == (ActionKind.PUNT, 0, ())
    assert not intent.entries[Table.RULES]
    assert [r.reason for r in intent.rejections if r.kind == "route"] == ["; ".join(info.features)]


def test_a_rule_that_is_too_long_is_a_rejection(base: Resources) -> None:
    fits = compiled(base, {"direct_response": {"status": 200, "body": {"inline_string": "x" * (n.RULE_TEXT - 100)}}})
    assert the_route(fits)[0].where is Where.HOME
    intent = compiled(base, {"direct_response": {"status": 200, "body": {"inline_string": "x" * n.RULE_TEXT}}})
    info, action = the_route(intent)
    assert (info.where, action.reason) == (Where.WAYPOINT, Reason.CAPACITY)
    assert any(f"home's map holds {n.RULE_TEXT}" in feature for feature in info.features)


def test_views_that_differ_in_a_rule_have_a_route_each(base: Resources) -> None:
    one, two = ({"direct_response": {"status": status}} for status in (200, 201))
    assert len(compiled(base, one, one).entries[Table.RULES]) == 1
    both = compiled(base, one, two)
    assert {rule.direct for rule in the_rules(both)} == {DirectReply(200), DirectReply(201)}
    assert len({info.rule for info in both.routes.values() if info.where is Where.HOME}) == 2


def test_a_values_route_and_one_of_xds_compile_alike(base: Resources) -> None:
    intent = compiled(base, {"route": {"cluster": "a", "timeout": "2s", "request_mirror_policies": [{"cluster": "b"}]}})
    (rule,) = the_rules(intent)
    assert rule == Rule(timeout=2.0, mirrors=(Mirror(number=cluster(intent, "b")),))
    assert Forward((WeightedCluster("a"),), 2.0).retry is None


def direct(status: int, body: str = "") -> dict[str, Any]:
    return {"direct_response": {"status": status, **({"body": {"inline_string": body}} if body else {})}}


def test_an_answer_that_is_always_the_same_is_the_kernels_too(base: Resources) -> None:
    intent = compiled(base, direct(410, "gone"))
    _, action = the_route(intent)
    assert (action.kind, action.reply) == (ActionKind.PUNT, 1)
    reply = Reply.unpack(intent.entries[Table.REPLIES][action.rule.to_bytes(8, "little")])
    assert (reply.status, reply.text[: reply.len][reply.head :]) == (410, b"gone")
    # refusals that need no rule are there for every client, whatever its routes
    assert set(of_reasons()) < set(intent.entries[Table.REPLIES])


@pytest.mark.parametrize("entry", [direct(200, "x" * n.REPLY_MAX), direct(301), {"redirect": {"host_redirect": "b"}}])
def test_other_answers_are_homes_alone(base: Resources, entry: dict[str, Any]) -> None:
    intent = compiled(base, entry)
    _, action = the_route(intent)
    assert (action.reply, bool(action.rule)) == (0, True)
    assert set(intent.entries[Table.REPLIES]) == set(of_reasons())


def test_replies_beyond_the_budget_are_homes(base: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(n, "REPLIES", len(of_reasons()) + 1)
    intent = compiled(base, direct(410), direct(411), direct(412))
    actions = [Vhost.unpack(value).direct for value in intent.entries[Table.VHOSTS].values()]
    assert sorted(action.reply for action in actions) == [0, 0, 1]
    assert all(action.rule for action in actions)
    assert len(intent.entries[Table.REPLIES]) == n.REPLIES
