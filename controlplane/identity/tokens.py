"""Service account tokens (JWT), verified against the issuer's public keys.  Pure: the time is given.

Only what Kubernetes issues is understood: a signed token for ``system:serviceaccount:NAMESPACE:ACCOUNT`` with an
expiry. Keys come as a JWK set (what ``/openid/v1/jwks`` of an API server gives) or as PEM.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate

from controlplane.identity.caller import Identity, IdentityError, identity

_MAX_TOKEN: Final = 16 * 1024
#: Clocks differ by this much, seconds.
_LEEWAY: Final = 10.0
_SUBJECT: Final = "system:serviceaccount:"
_MIN_RSA_BITS: Final = 2048

PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
_HASHES: Final[Mapping[str, type[hashes.HashAlgorithm]]] = {
    "256": hashes.SHA256,
    "384": hashes.SHA384,
    "512": hashes.SHA512,
}
_CURVES: Final[Mapping[str, tuple[ec.EllipticCurve, str]]] = {
    "P-256": (ec.SECP256R1(), "ES256"),
    "P-384": (ec.SECP384R1(), "ES384"),
    "P-521": (ec.SECP521R1(), "ES512"),
}
_ALGORITHM_OF_CURVE: Final = {curve.name: algorithm for curve, algorithm in _CURVES.values()}


class KeyProblem(ValueError):
    """A file of keys that cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key; ``id`` is empty where the file gives none."""

    id: str
    key: PublicKey


@dataclass(frozen=True, slots=True)
class Verified:
    """What a valid token says."""

    identity: Identity
    expires: float
    node: str = ""


def read_keys(data: bytes) -> tuple[Key, ...]:
    """The keys of a JWK set or of PEM (public keys or certificates). Raises :class:`KeyProblem`."""
    text = data.strip()
    keys = _read_set(text) if text.startswith(b"{") else _read_pem(text)
    if not keys:
        raise KeyProblem("it holds no public key for signatures")
    for item in keys:
        if isinstance(item.key, rsa.RSAPublicKey) and item.key.key_size < _MIN_RSA_BITS:
            raise KeyProblem(f"an RSA key of {item.key.key_size} bits; at least {_MIN_RSA_BITS} are needed")
    return keys


def _read_set(text: bytes) -> tuple[Key, ...]:
    try:
        listed = json.loads(text)["keys"]
        return tuple(
            Key(str(item.get("kid", "")), key)
            for item in listed
            if item.get("use", "sig") == "sig" and (key := _read_jwk(item)) is not None
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise KeyProblem(f"not a JWK set: {error}") from error


def _read_jwk(item: Mapping[str, Any]) -> PublicKey | None:
    kind = item["kty"]
    if kind == "RSA":
        return rsa.RSAPublicNumbers(_number(item["e"]), _number(item["n"])).public_key()
    if kind == "EC" and item["crv"] in _CURVES:
        curve, _ = _CURVES[item["crv"]]
        return ec.EllipticCurvePublicNumbers(_number(item["x"]), _number(item["y"]), curve).public_key()
    if kind == "OKP" and item["crv"] == "Ed25519":
        return ed25519.Ed25519PublicKey.from_public_bytes(_decode(item["x"]))
    return None


def _read_pem(text: bytes) -> tuple[Key, ...]:
    found = []
    end = b"-----END "
    for block in text.split(b"-----BEGIN ")[1:]:
        pem = b"-----BEGIN " + block
        try:
            key: Any
            if block.startswith(b"CERTIFICATE"):
                key = load_pem_x509_certificate(pem).public_key()
            else:
                key = load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise KeyProblem(f"not PEM of a public key or certificate: {error}") from error
        if end not in block or not isinstance(key, PublicKey):
            raise KeyProblem("a key of this kind does not sign tokens: RSA, ECDSA and Ed25519 do")
        found.append(Key("", key))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Verifier:
    """Checks tokens. ``issuers`` empty: any issuer whose key this is; ``audiences``: one of them must be named."""

    keys: Sequence[Key]
    trust_domain: str
    audiences: tuple[str, ...]
    issuers: tuple[str, ...] = ()

    def verify(self, token: str, now: float) -> Verified:
        """What *token* says at *now* (seconds since the epoch). Raises :class:`IdentityError`, without the token."""
        if len(token) > _MAX_TOKEN:
            raise IdentityError(f"a token of {len(token)} characters; {_MAX_TOKEN} are allowed")
        parts = token.split(".")
        if len(parts) != 3:
            raise IdentityError("the token is not a signed JWT")
        try:
            header, claims = json.loads(_decode(parts[0])), json.loads(_decode(parts[1]))
            signature = _decode(parts[2])
        except (ValueError, RecursionError) as error:
            raise IdentityError("the token is not a signed JWT") from error
        if not isinstance(header, dict) or not isinstance(claims, dict):
            raise IdentityError("the token is not a signed JWT")
        if "crit" in header:
            raise IdentityError("the token demands extensions that are not understood")
        self._check_signature(header, f"{parts[0]}.{parts[1]}".encode("ascii", "replace"), signature)
        return self._check_claims(claims, now)

    def _check_signature(self, header: Mapping[str, Any], signed: bytes, signature: bytes) -> None:
        wanted, algorithm = header.get("kid"), header.get("alg")
        candidates = [item for item in self.keys if not wanted or not item.id or item.id == wanted]
        if not any(_verifies(item.key, algorithm, signed, signature) for item in candidates):
            raise IdentityError("the token is not signed by a key that is trusted here")

    def _check_claims(self, claims: Mapping[str, Any], now: float) -> Verified:
        expires, begins = claims.get("exp"), claims.get("nbf", 0)
        if expires is None or not _is_time(expires) or not _is_time(begins):
            raise IdentityError("the token has no expiry, or one that is no number")
        if now >= float(expires) + _LEEWAY:
            raise IdentityError("the token has expired")
        if now < float(begins) - _LEEWAY:
            raise IdentityError("the token is not valid yet")
        audience = claims.get("aud", [])
        named = [audience] if isinstance(audience, str) else audience if isinstance(audience, list) else []
        if not any(item in self.audiences for item in named if isinstance(item, str)):
            raise IdentityError(f"the token is for another audience; {' or '.join(self.audiences)} is needed")
        if self.issuers and claims.get("iss") not in self.issuers:
            raise IdentityError("the token is of another issuer")
        subject = claims.get("sub")
        if not isinstance(subject, str) or not subject.startswith(_SUBJECT):
            raise IdentityError("the token is not one of a service account")
        namespace, _, account = subject.removeprefix(_SUBJECT).partition(":")
        return Verified(identity(self.trust_domain, namespace, account), float(expires), _node(claims))


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12


def _node(claims: Mapping[str, Any]) -> str:
    """The node that a bound token names (Kubernetes 1.30 and later)."""
    bound = claims.get("kubernetes.io")
    node = bound.get("node") if isinstance(bound, dict) else None
    name = node.get("name") if isinstance(node, dict) else None
    return name if isinstance(name, str) else ""


def _verifies(key: PublicKey, algorithm: object, signed: bytes, signature: bytes) -> bool:
    """Whether *signature* is *key*'s. The algorithm must be one of the key's own kind: the token does not choose."""
    if not isinstance(algorithm, str):
        return False
    try:
        if isinstance(key, rsa.RSAPublicKey) and algorithm[:2] in ("RS", "PS") and algorithm[2:] in _HASHES:
            digest = _HASHES[algorithm[2:]]()
            scheme: padding.AsymmetricPadding = padding.PKCS1v15()
            if algorithm.startswith("PS"):
                scheme = padding.PSS(padding.MGF1(digest), digest.digest_size)
            key.verify(signature, signed, scheme, digest)
            return True
        if isinstance(key, ec.EllipticCurvePublicKey) and algorithm == _ALGORITHM_OF_CURVE.get(key.curve.name):
            size = (key.curve.key_size + 7) // 8
            if len(signature) != 2 * size:
                return False
            halves = int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
            key.verify(encode_dss_signature(*halves), signed, ec.ECDSA(_HASHES[algorithm[2:]]()))
            return True
        if isinstance(key, ed25519.Ed25519PublicKey) and algorithm == "EdDSA":
            key.verify(signature, signed)
            return True
    except (InvalidSignature, ValueError):
        return False
    return False


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ValueError("not base64url") from error


def _number(text: str) -> int:
    return int.from_bytes(_decode(text), "big")
