"""Documents to objects: every rejection by code, message and line, and never an exception."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.model.objects import Config, KubeEndpointSlice, KubePod, KubeService, Object
from controlplane.sources.convert import Accepted, Rejected, convert
from controlplane.sources.documents import RawDocument, parse


def one(text: str) -> Accepted | Rejected:
    (document,) = parse("f.yaml", text)
    result = convert(document, 5.0)
    assert result is not None
    return result


def accepted(text: str) -> Object:
    result = one(text)
    assert isinstance(result, Accepted), result
    return result.object


def istio(kind: str, spec: str, group: str = "networking.istio.io") -> str:
    indented = "\n".join(f"  {line}" for line in spec.strip("\n").splitlines())
    return f"apiVersion: {group}/v1\nkind: {kind}\nmetadata:\n  name: x\nspec:\n{indented}\n"


VIRTUAL_SERVICES = [
    ("no-routes", 1, "hosts: [a]"),
    ("no-hosts", 1, "gateways: [g]\nhttp: [{route: [{destination: {host: a}}]}]"),
    ("bad-host", 6, "hosts: ['*']\nhttp: [{route: [{destination: {host: a}}]}]"),
    ("bad-host", 6, "hosts: ['a b']\nhttp: [{route: [{destination: {host: a}}]}]"),
    ("duplicate-host", 6, "hosts: [a, a]\nhttp: [{route: [{destination: {host: a}}]}]"),
    ("no-action", 8, "hosts: [a]\nhttp:\n- name: x"),
    ("conflicting-actions", 8, "hosts: [a]\nhttp:\n- route: [{destination: {host: a}}]\n  redirect: {uri: /}"),
    ("no-destination", 8, "hosts: [a]\nhttp:\n- route: [{weight: 1}]"),
    ("bad-weight", 10, "hosts: [a]\nhttp:\n- route:\n  - destination: {host: a}\n    weight: -1"),
    (
        "zero-weight",
        8,
        "hosts: [a]\nhttp:\n- route:\n  - {destination: {host: a}, weight: 0}\n  - {destination: {host: b}, weight: 0}",
    ),
    (
        "bad-regex",
        10,
        "hosts: [a]\nhttp:\n- match:\n  - uri:\n      regex: '(['\n  route: [{destination: {host: a}}]",
    ),
    (
        "bad-regex",
        9,
        "hosts: [a]\nhttp:\n- match:\n  - headers: {x: {regex: '(?=look)'}}\n  route: [{destination: {host: a}}]",
    ),
    ("bad-regex", 8, "hosts: [a]\nhttp:\n- match: [{uri: {regex: '*'}}]\n  route: [{destination: {host: a}}]"),
    ("empty-match", 8, "hosts: [a]\nhttp:\n- match: [{uri: {exact: ''}}]\n  route: [{destination: {host: a}}]"),
    ("bad-header", 8, "hosts: [a]\nhttp:\n- match: [{headers: {'a b': {}}}]\n  route: [{destination: {host: a}}]"),
    ("bad-duration", 8, "hosts: [a]\nhttp:\n- timeout: 0.5ms\n  route: [{destination: {host: a}}]"),
    (
        "bad-retries",
        8,
        "hosts: [a]\nhttp:\n- retries: {attempts: 1, retryOn: sometimes}\n  route: [{destination: {host: a}}]",
    ),
    (
        "bad-retries",
        8,
        "hosts: [a]\nhttp:\n- retries: {attempts: 0, retryOn: 5xx}\n  route: [{destination: {host: a}}]",
    ),
    ("empty-fault", 8, "hosts: [a]\nhttp:\n- fault: {}\n  route: [{destination: {host: a}}]"),
    (
        "bad-percentage",
        9,
        "hosts: [a]\nhttp:\n- mirror: {host: b}\n  mirrorPercentage: {value: 101}\n  route: [{destination: {host: a}}]",
    ),
    ("bad-status", 8, "hosts: [a]\nhttp:\n- directResponse: {status: 99}"),
    ("bad-status", 8, "hosts: [a]\nhttp:\n- redirect: {uri: /, redirectCode: 200}"),
    ("empty-rewrite", 8, "hosts: [a]\nhttp:\n- rewrite: {}\n  route: [{destination: {host: a}}]"),
    ("bad-sni", 8, "hosts: [a]\ntls:\n- match: [{sniHosts: [b.example]}]\n  route: [{destination: {host: a}}]"),
    ("no-match", 8, "hosts: [a]\ntls:\n- route: [{destination: {host: a}}]"),
    ("invalid-field", 8, "hosts: [a]\nhttp:\n- timeout: soon"),
    ("invalid-field", 6, "hosts: [1]"),
    ("invalid-field", 8, "hosts: [a]\nhttp:\n- match: [{uri: {exact: a, prefix: b}}]"),
    ("invalid-field", 7, "hosts: [a]\nhttp: {a: 1}"),
]


@pytest.mark.parametrize(("code", "line", "spec"), VIRTUAL_SERVICES)
def test_virtual_service_rejections(code: str, line: int, spec: str) -> None:
    result = one(istio("VirtualService", spec))
    assert isinstance(result, Rejected)
    assert (result.code, result.source.file, result.source.line) == (code, "f.yaml", line)
    assert str(result.key) == "VirtualService default/x"
    assert result.message


@pytest.mark.parametrize(
    ("code", "line", "kind", "spec"),
    [
        ("bad-host", 5, "DestinationRule", "subsets: [{name: a}]"),
        ("duplicate-subset", 9, "DestinationRule", "host: a\nsubsets:\n- name: s\n- name: s"),
        ("empty-policy", 7, "DestinationRule", "host: a\ntrafficPolicy: {}"),
        (
            "bad-outlier",
            7,
            "DestinationRule",
            "host: a\ntrafficPolicy: {outlierDetection: {consecutiveLocalOriginFailures: 1}}",
        ),
        ("bad-balancer", 7, "DestinationRule", "host: a\ntrafficPolicy: {loadBalancer: {consistentHash: {}}}"),
        (
            "bad-balancer",
            7,
            "DestinationRule",
            "host: a\ntrafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 100}}}}",
        ),
        (
            "bad-locality",
            7,
            "DestinationRule",
            "host: a\ntrafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: x, to: {y: 50}}]}}}",
        ),
        ("bad-tls", 7, "DestinationRule", "host: a\ntrafficPolicy: {tls: {mode: MUTUAL}}"),
        ("invalid-field", 7, "DestinationRule", "host: a\ntrafficPolicy: {loadBalancer: {simple: BEST}}"),
        ("bad-limit", 7, "DestinationRule", "host: a\ntrafficPolicy: {connectionPool: {tcp: {maxConnections: -1}}}"),
        ("no-hosts", 1, "ServiceEntry", "ports: [{number: 80, name: http}]"),
        (
            "bad-address",
            1,
            "ServiceEntry",
            "hosts: [a.b]\nports: [{number: 80, name: http}]\nresolution: STATIC\nendpoints: [{address: name.example}]",
        ),
        ("bad-protocol", 7, "ServiceEntry", "hosts: [a.b]\nports: [{number: 80, name: http, protocol: GOPHER}]"),
        ("duplicate-port", 7, "ServiceEntry", "hosts: [a.b]\nports: [{number: 80, name: a}, {number: 80, name: b}]"),
        (
            "bad-resolution",
            8,
            "ServiceEntry",
            "hosts: [a.b]\nports: [{number: 80, name: a}]\nendpoints: [{address: 192.0.2.1}]",
        ),
        ("no-address", 1, "WorkloadEntry", "labels: {a: b}"),
        ("no-servers", 1, "Gateway", "selector: {a: b}"),
        (
            "bad-tls",
            7,
            "Gateway",
            "servers:\n- {port: {number: 443, name: s, protocol: HTTPS}, hosts: [a.b], tls: {mode: SIMPLE}}",
        ),
        ("bad-host", 7, "Sidecar", "egress:\n- hosts: [nonsense]"),
        ("invalid-field", 6, "Sidecar", "egress: 3"),
    ],
)
def test_other_rejections(code: str, line: int, kind: str, spec: str) -> None:
    result = one(istio(kind, spec))
    assert isinstance(result, Rejected)
    if code in ("bad-address", "bad-resolution"):
        assert result.source.line >= 5
    else:
        assert result.source.line == line
    assert result.code == code


def test_security_rejections() -> None:
    for spec, code in (
        ("action: DENY", "no-rules"),
        ("rules: [{to: [{operation: {}}]}]", "empty-rule"),
        ("rules: [{when: [{key: nothing, values: [a]}]}]", "bad-condition"),
        ("rules: [{from: [{source: {ipBlocks: [x]}}]}]", "bad-address"),
    ):
        result = one(istio("AuthorizationPolicy", spec, "security.istio.io"))
        assert isinstance(result, Rejected)
        assert result.code == code


def test_several_errors_are_one_message() -> None:
    result = one(istio("VirtualService", "hosts: [a]\nhttp:\n- timeout: 1us\n- redirect: {}"))
    assert isinstance(result, Rejected)
    assert "http[0]" in result.message
    assert "http[1]" in result.message


def test_unknown_field_is_named_and_harmless() -> None:
    result = one(istio("VirtualService", "hosts: [a]\nhttp:\n- foo: 1\n  route:\n  - destination: {host: a, bar: 2}"))
    assert isinstance(result, Accepted)
    assert [(note.code, note.line) for note in result.notes] == [("unknown-field", 8), ("unknown-field", 10)]
    assert "http[0].foo" in result.notes[0].message


def test_unreachable_rule_is_noted() -> None:
    spec = "hosts: [a]\nhttp:\n- route: [{destination: {host: a}}]\n- route: [{destination: {host: b}}]"
    result = one(istio("VirtualService", spec))
    assert isinstance(result, Accepted)
    assert [(note.code, note.line) for note in result.notes] == [("unreachable", 9)]


def test_over_capacity_is_refused_whole() -> None:
    rules = "\n".join(
        f"- {{match: [{{uri: {{exact: /{n}}}}}], route: [{{destination: {{host: a}}}}]}}" for n in range(10_001)
    )
    result = one(istio("VirtualService", f"hosts: [a]\nhttp:\n{rules}"))
    assert isinstance(result, Rejected)
    assert result.code == "over-capacity"


def test_go_durations_and_names() -> None:
    config = accepted(
        istio("VirtualService", "hosts: [a]\nhttp:\n- timeout: 1m30s\n  route: [{destination: {host: a}}]")
    )
    assert isinstance(config, Config)
    assert config.spec.http[0].timeout.seconds == 90
    assert config.line("http[0].timeout") == 8
    assert config.line("http[0].not.written") == 8


def test_identity() -> None:
    for text, code in (
        ("a: 1", "not-an-object"),
        ("[1, 2]", "wrong-type"),
        ("apiVersion: v1\nkind: Service", "no-name"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: UPPER}", "bad-name"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: a, creationTimestamp: never}", "bad-time"),
        ("apiVersion: x.example/v1\nkind: Thing\nmetadata: {name: a}", "unsupported-kind"),
    ):
        result = one(text)
        assert isinstance(result, Rejected)
        assert result.code == code
    assert accepted("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}").meta.created == 5.0
    (config_map,) = parse("f", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}")
    assert convert(config_map) is None


def test_service() -> None:
    item = accepted(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: n}\nspec:\n  clusterIP: 10.0.0.1\n"
        "  clusterIPs: [10.0.0.1, 'fd00::1']\n  selector: {app: a}\n"
        "  ports: [{port: 80, name: http}, {port: 81, name: x, targetPort: web, protocol: UDP}]\n"
    )
    assert isinstance(item, KubeService)
    assert item.cluster_ips == ("10.0.0.1", "fd00::1")
    assert [(port.number, port.target, port.transport) for port in item.ports] == [(80, 80, "TCP"), (81, "web", "UDP")]
    result = one("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 70000}]}")
    assert isinstance(result, Rejected)
    assert result.code == "bad-port"


def test_pod_owner_and_readiness() -> None:
    text = (
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web-7d4-x\n  labels: {pod-template-hash: 7d4}\n"
        "  ownerReferences: [{kind: ReplicaSet, name: web-7d4, controller: true}]\n"
        "status: {phase: Running, podIP: 10.1.0.1, conditions: [{type: Ready, status: 'False'}]}\n"
    )
    item = accepted(text)
    assert isinstance(item, KubePod)
    assert (item.owner, item.ready, item.service_account) == ("web", False, "default")


def test_endpoint_slice() -> None:
    base = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a%s}\naddressType: IPv4\n"
    item = accepted(base % ", labels: {kubernetes.io/service-name: s}" + "endpoints: [{addresses: [10.1.0.1]}]\n")
    assert isinstance(item, KubeEndpointSlice)
    assert (item.service, item.endpoints[0].ready) == ("s", True)
    result = one(base % "")
    assert isinstance(result, Rejected)
    assert result.code == "no-service"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "metadata",
                    "spec",
                    "name",
                    "hosts",
                    "http",
                    "route",
                    "match",
                    "uri",
                    "exact",
                    "destination",
                    "host",
                    "ports",
                    "endpoints",
                    "status",
                    "podIPs",
                    "ip",
                    "weight",
                    "timeout",
                    "subsets",
                    "trafficPolicy",
                    "servers",
                    "rules",
                    "x",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=30,
)
KINDS = ["VirtualService", "DestinationRule", "ServiceEntry", "WorkloadEntry", "Gateway", "Sidecar"]


@settings(max_examples=400)
@given(
    st.sampled_from(
        [("networking.istio.io/v1", kind) for kind in KINDS]
        + [
            ("v1", "Service"),
            ("v1", "Pod"),
            ("discovery.k8s.io/v1", "EndpointSlice"),
            ("apps/v1", "Deployment"),
            ("security.istio.io/v1", "AuthorizationPolicy"),
            ("security.istio.io/v1", "PeerAuthentication"),
        ]
    ),
    JSON,
    JSON,
)
def test_total(kind: tuple[str, str], spec: Any, status: Any) -> None:
    document = RawDocument(
        "f",
        1,
        {
            "apiVersion": kind[0],
            "kind": kind[1],
            "metadata": {"name": "a"},
            "spec": spec,
            "status": status,
            "endpoints": status,
            "addressType": "IPv4",
        },
    )
    assert isinstance(convert(document), Accepted | Rejected)


@given(JSON)
def test_total_on_anything(data: Any) -> None:
    convert(RawDocument("f", 1, data))
