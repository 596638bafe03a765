"""Service account tokens: what is accepted, and each way in which one is not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from controlplane.identity.caller import Identity, IdentityError
from controlplane.identity.tokens import KeyProblem, Verifier, read_keys
from tests.support.certificates import Issuer, encode

ISSUER = Issuer()
NOW = time.time()


def verifier(**options: Any) -> Verifier:
    return Verifier(read_keys(ISSUER.jwks), "cluster.local", ("istio-ca",), **options)


def test_a_good_token() -> None:
    found = verifier().verify(ISSUER.token("shop:web", node="n1"), NOW)
    assert found.identity == Identity("cluster.local", "shop", "web")
    assert found.node == "n1"
    assert NOW < found.expires < NOW + 700
    assert verifier(issuers=("https://kubernetes.default.svc",)).verify(ISSUER.token(), NOW).node == ""
    assert verifier().verify(ISSUER.token(aud="istio-ca"), NOW).identity.account == "web", "an audience may be a string"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"exp": int(NOW) - 60}, "expired"),
        ({"exp": None}, "no expiry"),
        ({"exp": "tomorrow"}, "no expiry"),
        ({"exp": True}, "no expiry"),
        ({"nbf": NOW + 900}, "not valid yet"),
        ({"aud": ["other"]}, "audience"),
        ({"aud": None}, "audience"),
        ({"aud": {"istio-ca": 1}}, "audience"),
        ({"sub": "system:node:n1"}, "service account"),
        ({"sub": None}, "service account"),
        ({"account": "default:"}, "no part of an identity"),
        ({"account": "a/b:web"}, "no part of an identity"),
        ({"header": {"alg": "none"}}, "not signed by a key"),
        ({"header": {"alg": "HS256"}}, "not signed by a key"),
        ({"header": {"alg": "ES384"}}, "not signed by a key"),
        ({"header": {"alg": ["ES256"]}}, "not signed by a key"),
        ({"header": {"kid": "other"}}, "not signed by a key"),
        ({"header": {"crit": ["exp"]}}, "extensions"),
    ],
)
def test_each_way_not_to_be_accepted(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(IdentityError, match=said):
        verifier().verify(ISSUER.token(**changes), NOW)


def test_another_issuer_and_another_key() -> None:
    with pytest.raises(IdentityError, match="another issuer"):
        verifier(issuers=("https://example.org",)).verify(ISSUER.token(), NOW)
    with pytest.raises(IdentityError, match="not signed by a key"):
        verifier().verify(Issuer().token(), NOW)


def test_a_public_key_is_no_shared_secret() -> None:
    """The classic confusion: an HMAC with the public key's bytes, which everybody has."""
    head, body, _ = ISSUER.token(header={"alg": "HS256"}).split(".")
    forged = encode(hmac.new(ISSUER.jwks, f"{head}.{body}".encode(), hashlib.sha256).digest())
    with pytest.raises(IdentityError, match="not signed by a key"):
        verifier().verify(f"{head}.{body}.{forged}", NOW)


def test_every_changed_byte_breaks_the_signature() -> None:
    token = ISSUER.token()
    head, body, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    claims["sub"] = "system:serviceaccount:istio-system:admin"
    for forged in (f"{head}.{encode(json.dumps(claims).encode())}.{signature}", f"{head}.{body}.{encode(bytes(64))}"):
        with pytest.raises(IdentityError, match="not signed by a key"):
            verifier().verify(forged, NOW)


@given(st.one_of(st.text(max_size=200), st.lists(st.text(max_size=40), min_size=3, max_size=3).map(".".join)))
def test_garbage_is_refused_by_name(token: str) -> None:
    with pytest.raises(IdentityError):
        verifier().verify(token, NOW)


def test_a_giant_token_is_not_looked_at() -> None:
    with pytest.raises(IdentityError, match="16384 are allowed"):
        verifier().verify("a" * 20_000, NOW)


@pytest.mark.parametrize("algorithm", ["RS256", "PS384", "EdDSA"])
def test_other_algorithms_with_pem(algorithm: str) -> None:
    key: Any
    if algorithm == "EdDSA":
        key = ed25519.Ed25519PrivateKey.generate()
    else:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    head, body, _ = ISSUER.token(header={"alg": algorithm}).split(".")
    signed = f"{head}.{body}".encode()
    if algorithm == "EdDSA":
        signature = key.sign(signed)
    elif algorithm == "RS256":
        signature = key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
    else:
        signature = key.sign(signed, padding.PSS(padding.MGF1(hashes.SHA384()), 48), hashes.SHA384())
    checker = Verifier(read_keys(pem), "cluster.local", ("istio-ca",))
    assert checker.verify(f"{head}.{body}.{encode(signature)}", NOW).identity.account == "web"
    with pytest.raises(IdentityError, match="not signed by a key"):
        checker.verify(ISSUER.token(), NOW)


def test_files_that_hold_no_key_are_refused_with_the_reason() -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()
    pem = weak.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for data, said in (
        (b"", "no public key"),
        (b"garbage", "no public key"),
        (b'{"keys": []}', "no public key"),
        (b'{"keys": 7}', "not a JWK set"),
        (b'{"keys": [{"kty": "RSA"}]}', "not a JWK set"),
        (b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', "no public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not PEM"),
        (pem, "1024 bits"),
    ):
        with pytest.raises(KeyProblem, match=said):
            read_keys(data)
