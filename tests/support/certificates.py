"""Certificates and tokens for tests: an authority with certificates of servers and clients, an issuer of tokens."""

from __future__ import annotations

import base64
import datetime as dt
import json
import time
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


class Authority:
    """A root of its own; ``ca`` is the path of its certificate under *directory*."""

    def __init__(self, directory: Path, name: str = "root") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
        certificate = self._builder(self._subject, self._key, 3600).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.ca = self._write(f"{name}-ca.pem", certificate.sign(self._key, hashes.SHA256()))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, seconds: float) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(seconds=seconds))
        )

    def _write(self, name: str, item: x509.Certificate | ec.EllipticCurvePrivateKey) -> Path:
        path = self._directory / name
        if isinstance(item, x509.Certificate):
            path.write_bytes(item.public_bytes(serialization.Encoding.PEM))
        else:
            path.write_bytes(
                item.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
            )
        return path

    def issue(self, name: str, *names: x509.GeneralName, seconds: float = 3600) -> tuple[Path, Path]:
        """Paths of a certificate with these alternative names, for servers and clients, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._builder(x509.Name([]), key, seconds).add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        if names:
            made = made.add_extension(x509.SubjectAlternativeName(names), critical=True)
        certificate = self._write(f"{name}.pem", made.sign(self._key, hashes.SHA256()))
        return certificate, self._write(f"{name}-key.pem", key)

    def server(self, name: str = "server") -> tuple[Path, Path]:
        """A server's certificate for localhost."""
        return self.issue(name, x509.DNSName("localhost"))

    def workload(self, *uris: str, seconds: float = 3600) -> tuple[Path, Path]:
        """A client's certificate with URIs, as ``spiffe://cluster.local/ns/default/sa/web``."""
        return self.issue(
            f"client-{abs(hash((uris, seconds)))}",
            *(x509.UniformResourceIdentifier(uri) for uri in uris),
            seconds=seconds,
        )


class Issuer:
    """Signs service account tokens with ES256; ``jwks`` is its key set."""

    def __init__(self, kid: str = "k1") -> None:
        self.kid = kid
        self.key = ec.generate_private_key(ec.SECP256R1())

    @property
    def jwks(self) -> bytes:
        numbers = self.key.public_key().public_numbers()
        key = {
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.kid,
            "x": encode(numbers.x.to_bytes(32, "big")), "y": encode(numbers.y.to_bytes(32, "big")),
        }  # fmt: skip
        return json.dumps({"keys": [key]}).encode()

    def token(
        self, account: str = "default:web", *, header: Any = None, seconds: float = 600, node: str = "", **claims: Any
    ) -> str:
        """A token of ``NAMESPACE:ACCOUNT``, bound to *node*; *claims* replace the usual ones, None removes one."""
        body: dict[str, Any] = {
            "iss": "https://kubernetes.default.svc",
            "aud": ["istio-ca"],
            "sub": f"system:serviceaccount:{account}",
            "exp": int(time.time() + seconds),
        } | claims
        if node:
            body["kubernetes.io"] = {"node": {"name": node}}
        body = {name: value for name, value in body.items() if value is not None}
        head = {"alg": "ES256", "kid": self.kid} | (header or {})
        signed = f"{encode(json.dumps(head).encode())}.{encode(json.dumps(body).encode())}"
        r, s = decode_dss_signature(self.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def encode(data: bytes) -> str:
    """base64url without padding, as JOSE has it."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
