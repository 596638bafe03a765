"""JSON Web Key Sets (RFC 7517) in a policy's text: whether an Envoy would take them.  Pure.

An Envoy refuses a whole listener for a key set without one good key, and passes over bad keys beside a good one in
silence. So the first must not get that far, and the second is said. No library: a few lines of arithmetic are less than
the 16 MiB that one costs.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Final

#: Signature algorithms that go with a type of key.
_ALGORITHMS: Final = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "oct": ("HS256", "HS384", "HS512"),
    "OKP": ("EdDSA",),
}
#: NIST's curves (FIPS 186-4): prime and b of y^2 = x^3 - 3x + b.
_CURVES: Final = {
    "P-256": (
        2**256 - 2**224 + 2**192 + 2**96 - 1,
        0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B,
    ),
    "P-384": (
        2**384 - 2**128 - 2**96 + 2**32 - 1,
        0xB3312FA7E23EE7E4988E056BE3F82D19181D9C6EFE8141120314088F5013875AC656398D8A2ED19D2A85C8EDD3EC2AEF,
    ),
    "P-521": (
        2**521 - 1,
        0x0051953EB9618E1C9A1F929A21A0B68540EEA2DA725B99B315F3B8B489918EF109E156193951EC7E937B1652C0BD3BB1BF073573DF883D2C34F1EF451FD46B503F00,
    ),
}  # fmt: skip
_RSA_BITS: Final = (1024, 8192)
_ED25519_BYTES: Final = 32


class KeySetError(ValueError):
    """The text is no key set, or none of its keys can verify anything; the text says why."""


class _BadKey(Exception):
    """A key that is passed over."""


def check(text: str) -> list[str]:
    """Return remarks on keys that are passed over; raises :class:`KeySetError` for a set that is of no use."""
    try:
        found = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise KeySetError(f"not JSON: {str(error)[:200]}") from error
    keys = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(keys, list) or not keys:
        raise KeySetError('not a key set: {"keys": [...]} with at least one key is needed')
    problems: list[str] = []
    for index, key in enumerate(keys):
        try:
            _key(key)
        except _BadKey as error:
            problems.append(f"keys[{index}] is passed over: {error}")
    if len(problems) == len(keys):
        raise KeySetError(f"no key can verify anything: {'; '.join(problems[:3])}")
    return problems


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return out


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _key(key: Any) -> None:
    if not isinstance(key, dict):
        raise _BadKey("not an object")
    for name in ("kty", "kid", "alg", "use"):
        if not isinstance(key.get(name, ""), str):
            raise _BadKey(f"{name} is not text")
    kind = key.get("kty", "")
    allowed = _ALGORITHMS.get(kind)
    if allowed is None:
        raise _BadKey(f"type (kty) {kind!r} is none of {', '.join(_ALGORITHMS)}")
    if key.get("alg") and key["alg"] not in allowed:
        raise _BadKey(f"alg {key['alg']!r} does not go with type {kind}")
    if kind == "RSA":
        _rsa(_number(key, "n"), _number(key, "e"))
    elif kind == "EC":
        _ec(key.get("crv"), _number(key, "x"), _number(key, "y"))
    elif kind == "OKP":
        if key.get("crv") != "Ed25519" or len(_bytes(key, "x")) != _ED25519_BYTES:
            raise _BadKey("an OKP key is on crv Ed25519, with x of 32 bytes")
    elif not _bytes(key, "k"):
        raise _BadKey("k is empty")


def _rsa(modulus: int, exponent: int) -> None:
    least, most = _RSA_BITS
    if not least <= modulus.bit_length() <= most or not modulus & 1:
        raise _BadKey(f"n is not an odd number of {least} to {most} bits")
    if not exponent & 1 or not 3 <= exponent < 2**33:
        raise _BadKey("e is not an odd number of 3 to 2^33")


def _ec(curve: object, x: int, y: int) -> None:
    known = _CURVES.get(curve) if isinstance(curve, str) else None
    if known is None:
        raise _BadKey(f"crv {curve!r} is none of {', '.join(_CURVES)}")
    prime, b = known
    if not (0 <= x < prime and 0 <= y < prime) or (y * y - (x * x * x - 3 * x + b)) % prime:
        raise _BadKey(f"the point is not on {curve}")


def _bytes(key: Mapping[str, Any], name: str) -> bytes:
    text = key.get(name)
    if not isinstance(text, str) or not text.isascii():
        raise _BadKey(f"{name} is missing")
    try:
        return base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _BadKey(f"{name} is not base64url") from None


def _number(key: Mapping[str, Any], name: str) -> int:
    return int.from_bytes(_bytes(key, name), "big")
