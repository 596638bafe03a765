"""Tokens and key sets for tests, good ones and every bad one that can be thought of."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.support.certificates import encode


class RsaIssuer:
    """Signs tokens with RS256; ``jwks`` is its key set."""

    def __init__(self, name: str, kid: str = "r1") -> None:
        self.name, self.kid = name, kid
        self._key = rsa.generate_private_key(65537, 2048)

    @property
    def jwks(self) -> str:
        numbers = self._key.public_key().public_numbers()
        key = {
            "kty": "RSA", "kid": self.kid, "alg": "RS256", "use": "sig",
            "n": encode(numbers.n.to_bytes(256, "big")), "e": encode(numbers.e.to_bytes(3, "big")),
        }  # fmt: skip
        return json.dumps({"keys": [key]})

    @property
    def pem(self) -> bytes:
        """The public key as text: what an attacker would use as the secret of HS256."""
        return self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def body(self, **claims: Any) -> dict[str, Any]:
        """The usual claims; None removes one."""
        made = {"iss": self.name, "sub": "alice", "aud": "shop", "exp": int(time.time()) + 600} | claims
        return {name: value for name, value in made.items() if value is not None}

    def token(self, **claims: Any) -> str:
        """A good token, but for what *claims* make of it."""
        return self.sign(json.dumps(self.body(**claims)))

    def sign(self, body: str, **header: Any) -> str:
        """Sign any text as a body."""
        signed = _joined({"alg": "RS256", "kid": self.kid} | header, body)
        return f"{signed}.{encode(self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"

    def unsigned(self, alg: str = "none") -> str:
        """Nobody signed this."""
        return f"{_joined({'alg': alg, 'kid': self.kid}, json.dumps(self.body()))}."

    def confused(self, secret: bytes) -> str:
        """Signed with HS256, and with something public as the secret."""
        signed = _joined({"alg": "HS256", "kid": self.kid}, json.dumps(self.body()))
        return f"{signed}.{encode(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


def _joined(header: dict[str, Any], body: str) -> str:
    return f"{encode(json.dumps(header).encode())}.{encode(body.encode())}"
