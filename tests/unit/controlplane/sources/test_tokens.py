"""RequestAuthentication: what is refused, with its line; key sets as an Envoy would take them."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from controlplane.sources.convert import Accepted, Rejected, convert
from controlplane.sources.documents import parse
from controlplane.sources.key_sets import KeySetError, check
from tests.support.certificates import Issuer, encode
from tests.support.jose import RsaIssuer

HEAD = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: a, namespace: n}\nspec:\n"


def one(spec: str, head: str = HEAD) -> Accepted | Rejected:
    (document,) = parse("tokens.yaml", head + spec)
    made = convert(document)
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("{jwks: x}", "no-issuer"),
        ("{issuer: a, jwks: '{}', jwksUri: 'http://a/'}", "conflicting-settings"),
        ("{issuer: a, jwks: '{'}", "bad-keys"),
        ("{issuer: a, jwks: '{\"keys\":[]}'}", "bad-keys"),
        ("{issuer: a, jwksUri: 'ftp://a/'}", "bad-uri"),
        ("{issuer: a, jwksUri: 'http:///keys'}", "bad-uri"),
        ("{issuer: a, jwksUri: 'http://u:p@a/'}", "bad-uri"),
        ("{issuer: a, jwksUri: 'http://a:99999/'}", "bad-uri"),
        ("{issuer: a, jwksUri: 'http://[::1/'}", "bad-uri"),
        ("{issuer: a, jwksUri: 'http://169.254.169.254/latest/meta-data'}", "bad-uri"),
        ("{issuer: a, jwksUri: 'http://[fe80::1]/'}", "bad-uri"),
        ("{issuer: a, jwksUri: 'http://a/ b'}", "bad-uri"),
        ("{issuer: a, jwksUri: 'http://a_-/'}", "bad-host"),
        ("{issuer: a, jwksUri: 'http://a/', timeout: 1us}", "bad-duration"),
        ("{issuer: a, audiences: ['']}", "empty-value"),
        ("{issuer: a, fromHeaders: [{name: 'a b'}]}", "bad-header"),
        ("{issuer: a, outputClaimToHeaders: [{header: x}]}", "no-claim"),
        ("{issuer: a, outputClaimToHeaders: [{header: ':path', claim: x}]}", "bad-header"),
        ("{issuer: a, outputClaimToHeaders: [{header: x, claim: a}, {header: X, claim: b}]}", "duplicate-header"),
        ("{issuer: a, outputPayloadToHeader: 'host'}", "bad-header"),
        ("{issuer: a, presence: SOMETIMES}", "invalid-field"),
        ("{issuer: a, presence: 7}", "invalid-field"),
        ("{issuer: a, presence: '-1'}", "invalid-field"),
    ],
)
def test_refused(rule: str, code: str) -> None:
    made = one(f"  jwtRules:\n  - {{issuer: first, jwksUri: 'http://b/'}}\n  - {rule}\n")
    assert isinstance(made, Rejected)
    assert made.code == code
    assert made.source.file == "tokens.yaml"
    assert made.source.line in ((5, 7) if code == "invalid-field" else (7,)), made.source.line


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("{selector: {matchLabels: {a: b}}, targetRef: {kind: Service, name: a}}", "conflicting-settings"),
        ("{targetRefs: [{kind: Pod, name: a}]}", "bad-target"),
        ("{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway}]}", "bad-target"),
        ("{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: a, namespace: b}]}", "bad-target"),
    ],
)
@pytest.mark.parametrize("kind", ["RequestAuthentication", "AuthorizationPolicy"])
def test_targets(kind: str, spec: str, code: str) -> None:
    made = one(f"  {spec}\n", HEAD.replace("RequestAuthentication", kind))
    assert isinstance(made, Rejected)
    assert made.code == code


def test_what_its_author_should_know() -> None:
    made = one("  jwtRules:\n  - issuer: a\n    timeout: 1s\n")
    assert isinstance(made, Accepted)
    assert [(note.line, note.code) for note in made.notes] == [(1, "not-enforced"), (6, "no-keys"), (7, "no-effect")]


def _keys(*keys: object) -> str:
    return json.dumps({"keys": list(keys)})


RSA = json.loads(RsaIssuer("a").jwks)["keys"][0]
EC = json.loads(Issuer().jwks)["keys"][0]
OCT = {"kty": "oct", "k": "c2VjcmV0"}


def test_good_keys() -> None:
    ed = {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": encode(ed25519.Ed25519PrivateKey.generate().public_key().public_bytes_raw()),
    }
    assert check(_keys(RSA, EC, OCT, ed)) == []
    for curve, name, size in ((ec.SECP384R1(), "P-384", 48), (ec.SECP521R1(), "P-521", 66)):
        numbers = ec.generate_private_key(curve).public_key().public_numbers()
        x, y = (encode(value.to_bytes(size, "big")) for value in (numbers.x, numbers.y))
        assert check(_keys({"kty": "EC", "crv": name, "x": x, "y": y})) == []


@pytest.mark.parametrize(
    "key",
    [
        7,
        {},
        {"kty": "RSA"},
        RSA | {"alg": "HS256"},
        RSA | {"alg": 7},
        RSA | {"n": "AQAB"},
        RSA | {"n": "!"},
        RSA | {"e": "Ag"},
        EC | {"x": EC["y"]},
        EC | {"crv": "secp256k1"},
        EC | {"crv": ["P-256"]},
        {"kty": "oct", "k": ""},
        {"kty": "OKP", "crv": "X25519", "x": "AA"},
    ],
)
def test_bad_keys(key: object) -> None:
    with pytest.raises(KeySetError):
        check(_keys(key))
    assert len(check(_keys(RSA, key))) == 1, "beside a good one it is passed over, and named"


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"keys": {}}', '{"keys": [], "keys": [{}]}', '{"keys": [NaN]}', "[" * 10**5]
)
def test_no_key_set(text: str) -> None:
    with pytest.raises(KeySetError):
        check(text)
