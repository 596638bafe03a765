"""`underpass analyze`: where rules run, and each sort of bad input by file and line, nothing else lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.abi import numbers as n
from tests.support.fake_node import SHOP
from tests.support.tiers import shared
from underpass.cli import app
from underpass.cli.records import analysis_text as text
from underpass.cli.records.analysis import Judged, Problem, Report, judge

VS = """apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: shop}}
spec:
  hosts: [{host}]
  http:
{http}
"""


QUERY = "  - match: [{queryParams: {a: {exact: b}}}]\n    route: [{destination: {host: api}}]"


def virtual(http: str, name: str = "rules", host: str = "empty") -> str:
    return VS.format(name=name, host=host, http=http)


def find(report: Report, name: str, kind: str = "VirtualService") -> Judged:
    found = [item for item in report.objects if (item.kind, item.name) == (kind, name)]
    assert len(found) == 1, report.objects
    return found[0]


def wheres(report: Report, name: str, kind: str = "VirtualService") -> list[str]:
    return [rule.where for rule in find(report, name, kind).rules]


def problem(report: Report, code: str) -> Problem:
    found = [item for item in report.problems if item.code == code]
    assert len(found) == 1, report.problems
    return found[0]


def line_of(source: str, part: str) -> int:
    return source[: source.index(part)].count("\n") + 1


def test_where_each_rule_of_the_shop_runs() -> None:
    report = judge({"shop.yaml": SHOP})
    rules = find(report, "api").rules
    assert [(rule.name, rule.where, rule.why) for rule in rules] == [
        ("jason", "kernel", ""),
        ("slow", "home", "timeout"),
        ("split", "kernel", ""),
    ]
    assert [rule.line for rule in rules] == [line_of(SHOP, f"- name: {name}") for name in ("jason", "slow", "split")]
    assert [weight for _, weight in rules[2].placements[0].clusters] == [75, 25]
    assert wheres(report, "db", "Service") == ["kernel"]
    assert report.rules() == {"home": 1, "kernel": 4}  # api's port is its VirtualService's
    assert not report.failed(strict=True)


def test_a_rule_that_home_cannot_carry_out_needs_a_waypoint() -> None:
    report = judge({"shop.yaml": SHOP, "query.yaml": virtual(QUERY)})
    assert wheres(report, "rules") == ["waypoint"]
    assert problem(report, "needs-waypoint").line == line_of(virtual(QUERY), "- match")
    assert not report.failed(strict=False)
    assert report.failed(strict=True)


@pytest.mark.parametrize(
    ("http", "code", "severity", "where"),
    [
        ("  - route: [{destination: {host: nobody}}]", "unknown-host", "warning", "- route"),
        (
            "  - route:\n    - {destination: {host: api}, weight: 0}\n    - {destination: {host: db}, weight: 0}",
            "zero-weight", "error", "- route",
        ),
        (
            "  - match: [{uri: {regex: 'a(b'}}]\n    route: [{destination: {host: api}}]",
            "bad-regex", "error", "- match",
        ),
        ("  - colour: red\n    route: [{destination: {host: api}}]", "unknown-field", "warning", "- colour"),
    ],
)  # fmt: skip
def test_bad_input_is_named_with_its_line_and_nothing_else_is_lost(
    http: str, code: str, severity: str, where: str
) -> None:
    bad = virtual(http)
    report = judge({"shop.yaml": SHOP, "bad.yaml": bad})
    found = problem(report, code)
    assert (found.severity, found.file, found.line) == (severity, "bad.yaml", line_of(bad, where))
    assert report.failed(strict=False) == (severity == "error")
    assert wheres(report, "api") == ["kernel", "home", "kernel"]


def test_yaml_that_cannot_be_parsed() -> None:
    report = judge({"shop.yaml": SHOP, "bad.yaml": "a: 1\nkind: [\n"})
    found = problem(report, "invalid-yaml")
    assert (found.severity, found.file) == ("error", "bad.yaml")
    assert wheres(report, "api") == ["kernel", "home", "kernel"]


def test_a_duplicate_virtual_service() -> None:
    http = "  - route: [{destination: {host: api}}]"
    report = judge({"a.yaml": SHOP, "b.yaml": virtual(http, "one"), "c.yaml": virtual(http, "two")})
    found = problem(report, "duplicate-host")
    assert (found.severity, found.file, found.name) == ("error", "c.yaml", "two")
    assert wheres(report, "one") == ["kernel"]
    (rule,) = find(report, "two").rules
    assert (rule.where, rule.why) == ("nowhere", "the object is not in force")
    again = judge({"a.yaml": SHOP, "b.yaml": virtual(http), "c.yaml": virtual(http)})
    assert problem(again, "duplicate-object").file == "c.yaml"


def test_a_route_table_over_capacity_is_one_error() -> None:
    many = n.ROUTES + 1
    http = "\n".join(
        f"  - match: [{{uri: {{exact: /p{i}}}}}]\n    route: [{{destination: {{host: api}}}}]" for i in range(many)
    )
    report = judge({"shop.yaml": SHOP, "huge.yaml": virtual(http)})
    found = problem(report, "over-capacity")
    assert (found.severity, found.line) == ("error", line_of(virtual(http), "- match"))
    assert f"{many} routes" in found.message
    assert f"and {many - 1} more rules" in found.message
    assert wheres(report, "rules") == ["waypoint"] * many
    assert wheres(report, "api") == ["kernel", "home", "kernel"]


def test_rules_alone_are_judged_as_if_their_hosts_were_there() -> None:
    http = "  - match: [{uri: {prefix: /a}}]\n    rewrite: {uri: /b}\n    route: [{destination: {host: web}}]"
    report = judge({"rules.yaml": virtual(http, host="web")})
    assert report.assumed == ("web.shop.svc.cluster.local",)
    assert find(report, "rules").rules[0].why == "rewrite; 503 while there is no service web.shop.svc.cluster.local"
    assert wheres(report, "rules") == ["home"]
    assert problem(report, "unknown-host").severity == "warning"


def test_rules_for_some_clients_only() -> None:
    http = """  - match: [{sourceLabels: {app: cart}, uri: {prefix: /a}}]
    route: [{destination: {host: api}}]
  - match: [{gateways: [edge]}]
    route: [{destination: {host: api}}]
  - route: [{destination: {host: api}}]
  - match: [{uri: {prefix: /never}}]
    route: [{destination: {host: api}}]"""
    report = judge({"shop.yaml": SHOP, "rules.yaml": virtual(http)})
    assert wheres(report, "rules") == ["kernel", "gateway", "kernel", "nowhere"]
    assert problem(report, "unreachable").line == line_of(virtual(http), "- match: [{uri: {prefix: /never}}]")
    gateway = virtual("  - route: [{destination: {host: api}}]").replace("  http:", "  gateways: [edge]\n  http:")
    assert wheres(judge({"shop.yaml": SHOP, "rules.yaml": gateway}), "rules") == ["gateway"]


POLICIES = """apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: shop}
spec:
  rules:
  - to: [{operation: {methods: [GET]}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ext, namespace: shop}
spec: {hosts: [tls.example.com], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: conn, namespace: shop}
spec:
  hosts: [db, tls.example.com]
  tls:
  - match: [{port: 443, sniHosts: [tls.example.com]}]
    route: [{destination: {host: tls.example.com, port: {number: 443}}}]
  tcp:
  - match: [{port: 5432}]
    route: [{destination: {host: db, port: {number: 5432}}}]
"""


def test_what_nobody_enforces_is_an_error() -> None:
    report = judge({"shop.yaml": SHOP, "policies.yaml": POLICIES})
    assert wheres(report, "deny", "AuthorizationPolicy") == ["unsupported"]
    assert wheres(report, "strict", "PeerAuthentication") == ["unsupported"]
    assert wheres(report, "ext", "ServiceEntry") == ["unsupported"]
    assert wheres(report, "conn") == ["unsupported", "kernel"]
    errors = {(p.kind, p.line) for p in report.problems if p.severity == "error"}
    assert errors == {
        ("AuthorizationPolicy", line_of(POLICIES, "- to:")),
        ("PeerAuthentication", line_of(POLICIES, "spec: {mtls")),
        ("VirtualService", line_of(POLICIES, "- match: [{port: 443")),
    }


HEADLESS = """apiVersion: v1
kind: Service
metadata: {name: nodes, namespace: shop}
spec: {clusterIP: None, selector: {app: api}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
""" + virtual("  - route: [{destination: {host: nodes}}]", "nodes", "nodes")


def test_rules_of_a_headless_service_reach_nobody_and_are_said_to() -> None:
    report = judge({"shop.yaml": SHOP, "headless.yaml": HEADLESS})
    told = problem(report, "not-captured")
    assert (told.severity, told.kind, told.name, told.file) == ("warning", "VirtualService", "nodes", "headless.yaml")
    assert told.message.startswith("nodes.shop.svc.cluster.local:80: no service address leads to it")
    assert told.line == line_of(HEADLESS, "  - route:")


def test_the_judgement_does_not_depend_on_the_order_of_files() -> None:
    rules = virtual("  - route: [{destination: {host: api}}]")
    one, two = judge({"a.yaml": SHOP, "b.yaml": rules}), judge({"b.yaml": rules, "a.yaml": SHOP})
    assert text.document(one) == text.document(two)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shop.yaml").write_text(SHOP)
    (tmp_path / "README.md").write_text("# not YAML\n- at all: [")
    assert app.main(["analyze", str(tmp_path), "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert found["files"] == [str(tmp_path / "shop.yaml")]
    assert found["summary"]["rules"] == {"home": 1, "kernel": 4}
    rule = next(item for item in found["objects"] if item["kind"] == "VirtualService")["rules"][2]
    assert (rule["path"], rule["rule"], rule["where"]) == ("http[2]", 2, "kernel")
    assert app.main(["analyze", str(tmp_path), "--strict"]) == 0
    (tmp_path / "query.yaml").write_text(virtual(QUERY))
    assert app.main(["analyze", str(tmp_path), "--strict"]) == 1
    (tmp_path / "latin.yaml").write_bytes(b"a: b\nb: \xff\n")
    assert app.main(["analyze", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"error {tmp_path}/latin.yaml:2: rejected: byte 8 is not UTF-8 (not-utf8)" in out
    assert "http[1] (slow)" in out
    assert app.main(["analyze", str(tmp_path / "none")]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.needs("shared")
def test_istios_bookinfo_runs_in_the_kernel() -> None:
    root = shared() / "istio" / "bookinfo"
    names = ["platform/bookinfo.yaml", "networking/destination-rule-all.yaml"]
    for rules in ("all-v1", "reviews-50-v3", "reviews-80-20", "reviews-test-v2", "reviews-jason-v2-v3"):
        paths = [root / name for name in (*names, f"networking/virtual-service-{rules}.yaml")]
        report = judge({path.name: path.read_text(encoding="utf-8") for path in paths})
        assert report.problems == ()
        assert set(report.rules()) == {"kernel"}


@pytest.mark.needs("shared")
def test_nothing_of_istios_own_tests_is_an_exception() -> None:
    for path in sorted((shared() / "istio").rglob("*.yaml")):
        report = judge({path.name: path.read_text(encoding="utf-8")})
        assert text.document(report)["kind"] == "Analysis"
        assert all(list(text.rule_lines(item)) is not None for item in report.objects)


LINES = [*SHOP.splitlines(), *POLICIES.splitlines(), "---", "  http: {}", "spec: []", "  hosts: ['*']", "\t", "kind: 1"]


@given(st.lists(st.sampled_from(LINES), max_size=60), st.integers(0, len(SHOP)))
@settings(max_examples=60, deadline=None)
def test_no_text_is_an_exception(lines: list[str], cut: int) -> None:
    report = judge({"a.yaml": SHOP[:cut], "b.yaml": SHOP[cut:], "c.yaml": "\n".join(lines)})
    assert text.document(report)["kind"] == "Analysis"
