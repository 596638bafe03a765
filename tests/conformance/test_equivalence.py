"""`underpass test equivalence` with a real Envoy: it finds nothing where nothing is wrong, and what is wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.hostile_heads import JOINED
from tests.support.route_tables import subjects
from tests.support.tiers import repository, shared
from underpass.api import envoy
from underpass.cli.app import main
from underpass.equivalence.corpus import Limits
from underpass.equivalence.envoy import Oracle
from underpass.equivalence.outcome import Kind, Request, Result, Sort
from underpass.equivalence.report import document
from underpass.equivalence.run import Cores, Options, run

pytestmark = pytest.mark.needs("core", "envoy")


@pytest.fixture(scope="module")
def cores() -> Iterator[Cores]:
    with Cores() as made:
        yield made


def table(*routes: dict[str, Any], domains: tuple[str, ...] = ("a",)) -> Any:
    vhost = {"name": "v", "domains": list(domains), "routes": list(routes)}
    return envoy.from_dict("RouteConfiguration", {"name": "t", "virtual_hosts": [vhost]})


def to(cluster: str, **match: Any) -> dict[str, Any]:
    return {"match": match or {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}


def test_the_shop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shop, page = repository() / "samples" / "shop", tmp_path / "report.html"
    names = ("shop", "destination-rules", "catalog-testers-v2")
    files = [part for name in names for part in ("-f", str(shop / f"{name}.yaml"))]
    status = main(["test", "equivalence", *files, "--requests", "50", "-o", "json", "--html", str(page)])
    report = json.loads(capsys.readouterr().out)
    assert (status, report["different"], report["puntRatio"]) == (0, 0, 0.0), report["differences"]
    assert report["executors"]["envoy"] == "1.40.0"
    assert report["requests"]["plain"]["equal"] > 300
    assert report["requests"]["cut"]["punted"] > 100
    assert any("end-user=tester" in row["match"] for row in report["routes"])
    assert "0 DIFFERENT" in page.read_text()


def test_a_report_is_reproducible_from_its_seed(cores: Cores) -> None:
    weights = {"clusters": [{"name": "c0", "weight": 80}, {"name": "c1", "weight": 20}]}
    split = {"match": {"prefix": "/b"}, "route": {"weighted_clusters": weights, "timeout": "0s"}}
    found = subjects([table(to("c0", path="/a"), split, to("c2"))])
    first, again, other = (
        document(run(found, Options(seed, more=50, limits=Limits(hostile=1, cuts=1)), cores=cores))
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    assert first["different"] == other["different"] == 0


def test_a_wrong_decision_is_found(cores: Cores) -> None:
    routes = [to("c0", path="/a"), to("c1", prefix="/")]
    found = subjects([table(*routes)])
    wrong = found.tables[0].routes.virtual_hosts[0].routes[1].route
    wrong.cluster = "c2"  # Envoy's copy alone: as if the compiler had mixed up two clusters
    results = run(found, Options(limits=Limits(hostile=0, cuts=0)), cores=cores)
    bad = [item for item in results.judged if item.result is Result.DIFFERENT]
    assert bad
    assert all(item.why == "the core sends it to c1, Envoy to c2" for item in bad)
    assert results.count(Result.EQUAL) > 0
    assert document(results)["different"] == len(bad)


@pytest.mark.parametrize(
    ("action", "change", "says"),
    [
        ({"route": {"cluster": "c0", "prefix_rewrite": "/x"}}, "route.prefix_rewrite=/y", "home: request line"),
        ({"redirect": {"path_redirect": "/x"}}, "redirect.path_redirect=/y", "home: it tells the client"),
        ({"direct_response": {"status": 418}}, "direct_response.status=419", "home: it answers 418, Envoy answers 419"),
        ({"direct_response": {"status": 418, "body": {"inline_string": "a"}}}, "direct_response.body.inline_string=b",
         "home: it tells the client"),
    ],
)  # fmt: skip
def test_what_home_does_wrong_is_found(cores: Cores, action: dict[str, Any], change: str, says: str) -> None:
    path, _, value = change.partition("=")
    found = subjects([table({"match": {"prefix": "/a"}, **action})])
    assert not run(found, Options(limits=Limits(hostile=0, cuts=0)), cores=cores).different
    *parents, name = path.split(".")
    message = found.tables[0].routes.virtual_hosts[0].routes[0]
    for parent in parents:
        message = getattr(message, parent)
    setattr(message, name, int(value) if value.isdigit() else value)
    results = run(found, Options(limits=Limits(hostile=0, cuts=0)), cores=cores)
    bad = [item.why for item in results.judged if item.result is Result.DIFFERENT]
    assert bad
    assert all(why.startswith(says) for why in bad), bad


def test_a_wrong_split_is_found(cores: Cores) -> None:
    weights = {"clusters": [{"name": "c0", "weight": 90}, {"name": "c1", "weight": 10}]}
    found = subjects([table({"match": {"prefix": "/"}, "route": {"weighted_clusters": weights, "timeout": "0s"}})])
    for item in found.tables[0].routes.virtual_hosts[0].routes[0].route.weighted_clusters.clusters:
        item.weight.value = 50
    results = run(found, Options(limits=Limits(hostile=0, cuts=0)), cores=cores)
    assert [why.partition(":")[0] for _, _, why in results.splits] == ["Envoy"]


def test_a_table_that_envoy_refuses_is_told_and_the_others_are_tried(cores: Cores) -> None:
    found = subjects([table(to("c0")), table(to("c1")), table(to("c2"))])
    found.tables[1].routes.virtual_hosts[0].domains.append("a")
    results = run(found, Options(limits=Limits(hostile=0, cuts=0)), cores=cores)
    assert [(name, aim) for name, aim, _ in results.splits] == [(found.tables[1].name, "the table")]
    assert "domain" in results.splits[0][2]
    asked = {item.table for item in results.judged if item.envoy is not None}
    assert asked == {found.tables[0].name, found.tables[2].name}


#: Found by generated tables, made small: (routes, domains, request). The core may leave each to Envoy, but not decide.
FOUND: dict[str, tuple[list[dict[str, Any]], tuple[str, ...], bytes]] = {
    "a wildcard behind more labels than are looked up": (
        [to("c0")], ("*.i",), b"GET / HTTP/1.1\r\nHost: x.a.b.c.d.e.f.g.h.i\r\n\r\n",
    ),
    "the status for a cluster that does not exist": (
        [{"match": {"prefix": "/"}, "route": {
            "cluster": "m0", "timeout": "0s", "cluster_not_found_response_code": "INTERNAL_SERVER_ERROR"}}],
        ("a",), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    "a header that is joined": ([to("c0")], ("a",), b"GET / HTTP/1.1\r\nHost: a\r\nAccept: 1\r\naccept: 2\r\n\r\n"),
    "orders to a proxy": ([to("c0")], ("a",), b"GET / HTTP/1.1\r\nHost: a\r\nx-envoy-max-retries: 9\r\n\r\n"),
    "no request id": ([to("c0")], ("a",), b"GET / HTTP/1.1\r\nHost: a\r\nx-request-id:\r\n\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("proto", ["https", "HTTPS", "http", "wss"])
def test_the_scheme_is_what_a_proxy_in_front_says(cores: Cores, proto: str) -> None:
    """For matching, and for where a redirect leads (home's)."""

    def by(scheme: str) -> list[dict[str, Any]]:
        return [{"name": ":scheme", "string_match": {"exact": scheme}}]

    moved = {"match": {"prefix": "/moved"}, "redirect": {"path_redirect": "/x"}}
    routes = (moved, to("c0", prefix="/", headers=by("https")), to("c1", prefix="/", headers=by("http")))
    heads = [
        b"GET %s HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: %s\r\n\r\n" % (p, proto.encode()) for p in (b"/", b"/moved")
    ]
    requests = [Request(head, len(head), Sort.PLAIN, "") for head in heads]
    results = run(subjects([table(*routes)]), Options(), lambda _: requests, cores)
    assert [item.result for item in results.judged] == [Result.EQUAL, Result.PUNTED], results.judged
    assert results.judged[0].native.cluster == ("c0" if proto.lower() == "https" else "c1")
    assert results.judged[1].native.home is not None


@pytest.mark.parametrize("name", FOUND)
def test_found_before(cores: Cores, name: str) -> None:
    routes, domains, data = FOUND[name]
    found = subjects([table(*routes, domains=domains)])
    results = run(found, Options(), lambda _: [Request(data, len(data), Sort.PLAIN, name)], cores)
    assert [item.result for item in results.judged] == [Result.PUNTED], results.judged


def adds(side: str, *pairs: tuple[str, str]) -> dict[str, Any]:
    return {f"{side}_headers_to_add": [{"header": {"key": key, "value": value}} for key, value in pairs]}


_ABORT = {
    "typed_per_filter_config": {
        "envoy.filters.http.fault": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
            "abort": {"http_status": 418, "percentage": {"numerator": 100}},
        }
    }
}
_CORS = {
    "typed_per_filter_config": {
        "envoy.filters.http.cors": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
            "allow_origin_string_match": [{"exact": "*"}],
        }
    }
}
_REGEX = {"regex_rewrite": {"pattern": {"regex": "/nothing-like-it"}, "substitution": "/x"}}
_NOTHING = {"regex_rewrite": {"pattern": {"regex": "/.*"}, "substitution": ""}}
_FORWARD = {"cluster": "c0", "timeout": "0s"}

#: What home did otherwise than Envoy, until generated tables found it: (fields of the route, fields of the table).
AT_HOME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a rewrite that changes nothing": ({"route": {**_FORWARD, **_REGEX}}, {}),
    "a rewrite that leaves nothing": ({"route": {**_FORWARD, **_NOTHING}}, {}),
    "a value made of a header that was just added": (
        {"route": _FORWARD, **adds("request", ("x-new", "1"))}, adds("request", ("x-copy", "%REQ(x-new)%"))
    ),
    "a value made of a header that was just removed": (
        {"route": _FORWARD, "request_headers_to_remove": ["x-user"], **adds("response", ("x-copy", "<%REQ(x-user)%>"))},
        {},
    ),
    "one more value for a header that has one line": ({"route": _FORWARD, **adds("request", ("accept", "b"))}, {}),
    "header changes of an abort": (
        {"route": _FORWARD, **_ABORT, **adds("response", ("x-route", "1"))}, adds("response", ("x-table", "1"))
    ),
    "header changes of an abort in place of a redirect": (
        {"redirect": {"path_redirect": "/x"}, **_ABORT, **adds("response", ("x-route", "1"))}, {}
    ),
    "CORS and a redirect": ({"redirect": {"path_redirect": "/x"}, **_CORS}, {}),
    "CORS and an answer": ({"direct_response": {"status": 404}, **_CORS}, {}),
    "where something was created": ({"direct_response": {"status": 201, "body": {"inline_string": "a"}}}, {}),
    "a redirect to a path without a slash": (
        {"redirect": {"regex_rewrite": {"pattern": {"regex": "^/"}, "substitution": "x"}}}, {}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AT_HOME)
def test_found_at_home(cores: Cores, name: str) -> None:
    route, fields = AT_HOME[name]
    made = envoy.to_dict(table({"match": {"prefix": "/"}, **route}), proto_names=True)
    found = subjects([envoy.from_dict("RouteConfiguration", {**made, **fields})])
    data = b"GET /a?b=c HTTP/1.1\r\nHost: a\r\nAccept: a\r\nOrigin: http://o\r\nX-User: u\r\n\r\n"
    results = run(found, Options(), lambda _: [Request(data, len(data), Sort.PLAIN, name)], cores)
    (item,) = results.judged
    assert item.native.home is not None
    assert item.result is Result.PUNTED, (item.why, item.native.home, item.envoy)


def test_the_headers_that_envoy_joins() -> None:
    """Those, and no other that clients send: the core's list is a copy of what Envoy does."""
    others = (b"x", b"cookie", b"accept-language", b"x-b3-traceid", b"traceparent", b"range", b"x-real-ip", b"if-x")
    names = (*JOINED, *others)
    heads = [b"GET / HTTP/1.1\r\nHost: a\r\n%s: v1\r\n%s: v2\r\n\r\n" % (name, name) for name in names]

    async def ask() -> list[bytes]:
        async with Oracle(subjects([table(to("c0"))]).tables) as oracle:
            requests = [(Request(head, len(head), Sort.HOSTILE, ""), True) for head in heads]
            outcomes = (await oracle.ask([(0, requests)]))[0]
            assert {outcome.kind for outcome in outcomes} == {Kind.FORWARD}
            return [outcome.head for outcome in outcomes]

    joined = {name for name, head in zip(names, asyncio.run(ask()), strict=True) if b"\r\n%s: v1,v2\r\n" % name in head}
    assert joined == set(JOINED)


@pytest.mark.slow
@pytest.mark.needs("shared")
@pytest.mark.parametrize("what", ["istiod", "istio/config"])
def test_istios_own(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A genuine istiod's resources, and Istio's own test configurations all at once."""
    arguments = ["--istiod" if what == "istiod" else "-f", str(shared() / what)]
    status = main(["test", "equivalence", *arguments, "-o", "json"])
    report = json.loads(capsys.readouterr().out)
    assert (status, report["different"]) == (0, 0), report["differences"]


@pytest.mark.needs("shared")
@pytest.mark.parametrize("rule", ["reviews-80-20", "reviews-jason-v2-v3"])
def test_bookinfo(rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    samples = shared() / "istio" / "bookinfo"
    files = ("platform/bookinfo", "networking/destination-rule-all", f"networking/virtual-service-{rule}")
    status = main(["test", "equivalence", *(str(samples / f"{name}.yaml") for name in files), "-o", "json"])
    report = json.loads(capsys.readouterr().out)
    assert (status, report["different"], report["puntRatio"]) == (0, 0, 0.0), report["differences"]


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ([], 2, "nothing to test"),
        (["-f", "/nonexistent"], 2, "cannot read /nonexistent"),
        (["--istiod", "/nonexistent"], 2, "nothing in /nonexistent"),
        (["-f", "x", "--istiod", "y"], 2, "two things to test"),
    ],
)
def test_wrong_usage(arguments: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "equivalence", *arguments]) == status
    assert says in capsys.readouterr().err
