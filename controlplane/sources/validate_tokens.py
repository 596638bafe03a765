"""RequestAuthentication, and the targets of policies: what istiod refuses, and what would protect nobody.  Pure."""

from __future__ import annotations

import ipaddress
from typing import Any, Final
from urllib.parse import urlsplit

from controlplane.model.objects import Config
from controlplane.model.targets import target_refs
from controlplane.sources.findings import Findings, is_ip
from controlplane.sources.key_sets import KeySetError, check

#: Kinds of targets by API group; Istio's list.
_TARGETS: Final = {
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
    ("", "Service"),
    ("core", "Service"),
    ("networking.istio.io", "ServiceEntry"),
}
_MOST_TARGETS: Final = 16
_LONGEST_URI: Final = 2048


def targets(config: Config, out: Findings) -> bool:
    """Check ``selector`` and ``targetRefs`` of a policy; tells whether it has targets."""
    spec = config.spec
    listed = target_refs(config)
    for name in ("selector", "workload_selector"):
        if listed and name in spec.DESCRIPTOR.fields_by_name and spec.HasField(name):
            field = spec.DESCRIPTOR.fields_by_name[name].json_name
            out.error("conflicting-settings", f"{field} and targetRefs exclude each other")
    if len(listed) > len(spec.target_refs) and spec.target_refs:
        out.error("conflicting-settings", "targetRef and targetRefs exclude each other")
    if len(listed) > _MOST_TARGETS:
        out.error("bad-target", f"{len(listed)} targets; {_MOST_TARGETS} are allowed", "targetRefs")
    for path, target in listed:
        if not target.kind or not target.name:
            out.error("bad-target", "a target needs a kind and a name", path)
        elif (target.group, target.kind) not in _TARGETS:
            out.error("bad-target", f"policies have no targets of kind {target.kind} of group {target.group!r}", path)
        if target.namespace and target.namespace != config.meta.key.namespace:
            out.error("bad-target", "a target must be in the policy's own namespace", path)
    return bool(listed)


def whole_proxies(config: Config, out: Findings) -> None:
    """Refuse targets that are a part of what a waypoint stands for, where only whole proxies are configured."""
    for path, target in target_refs(config):
        if target.kind not in ("Gateway", "GatewayClass"):
            text = f"a waypoint is configured as a whole: name its Gateway, not a {target.kind} behind it"
            out.error("unsupported-target", text, path)


def request_authentication(config: Config, out: Findings) -> None:
    """Check a RequestAuthentication."""
    if not targets(config, out):
        text = "only Envoys of this control plane check tokens; underpass-agent's workloads get requests with any token"
        out.note("not-enforced", text)
    if not config.spec.jwt_rules:
        out.note("no-effect", "no jwtRules: nothing is checked")
    for index, rule in enumerate(config.spec.jwt_rules):
        path = f"jwtRules[{index}]"
        if not rule.issuer:
            out.error("no-issuer", "issuer is missing", path)
        for name in ("audiences", "from_params", "from_cookies", "space_delimited_claims"):
            if not all(getattr(rule, name)):
                field = rule.DESCRIPTOR.fields_by_name[name].json_name
                out.error("empty-value", f"{field} must not hold an empty text", f"{path}.{field}")
        _keys(rule, path, out)
        _places(rule, path, out)


def _keys(rule: Any, path: str, out: Findings) -> None:
    if rule.jwks and rule.jwks_uri:
        out.error("conflicting-settings", "jwks and jwksUri exclude each other", path)
    elif rule.jwks:
        _inline(str(rule.jwks), f"{path}.jwks", out)
    elif rule.jwks_uri:
        _uri(str(rule.jwks_uri), f"{path}.jwksUri", out)
    else:
        # Istio would ask the issuer's discovery document. Nobody here does, and no keys means that no token is good.
        text = "neither jwks nor jwksUri: keys are not discovered by issuer here, so every token of it is refused"
        out.note("no-keys", text, path)
    if rule.HasField("timeout"):
        out.duration(rule, "timeout", f"{path}.timeout")
        if not rule.jwks_uri:
            out.note("no-effect", "timeout is for fetching jwksUri only", f"{path}.timeout")


def _inline(text: str, path: str, out: Findings) -> None:
    try:
        for problem in check(text):
            out.note("unusable-key", f"jwks: {problem}", path)
    except KeySetError as error:
        out.error("bad-keys", f"jwks: {error}", path)


def _uri(text: str, path: str, out: Findings) -> None:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        out.error("bad-uri", f"jwksUri {text!r}: {error}", path)
        return
    if parts.scheme not in ("http", "https") or not host or len(text) > _LONGEST_URI:
        out.error("bad-uri", f"jwksUri {text[:200]!r} is not an http or https URL with a host", path)
    elif parts.username is not None or port == 0 or any(ord(char) <= 32 or ord(char) > 126 for char in text):
        out.error("bad-uri", f"jwksUri {text!r} holds a user, port 0 or characters that no URL has", path)
    elif is_ip(host) and ipaddress.ip_address(host).is_link_local:
        # Metadata services of clouds live there; a policy's author must not make proxies ask them.
        out.error("bad-uri", f"jwksUri {text!r}: keys are not fetched from a link-local address", path)
    elif not is_ip(host):
        out.host(host, path, ip=False)
        if "*" in host:
            out.error("bad-uri", f"jwksUri {text!r}: a wildcard is no host", path)


def _places(rule: Any, path: str, out: Findings) -> None:
    for index, place in enumerate(rule.from_headers):
        out.header(place.name, f"{path}.fromHeaders[{index}]")
    seen: set[str] = set()
    for index, copied in enumerate(rule.output_claim_to_headers):
        here = f"{path}.outputClaimToHeaders[{index}]"
        out.header(copied.header, here)
        if not copied.claim:
            out.error("no-claim", "claim is missing", here)
        if copied.header.startswith(":") or copied.header.lower() == "host":
            out.error("bad-header", f"{copied.header!r} decides on the request's route: no claim may write it", here)
        if copied.header.lower() in seen:
            out.error("duplicate-header", f"two claims are written to {copied.header!r}", here)
        seen.add(copied.header.lower())
    if rule.output_payload_to_header:
        out.header(rule.output_payload_to_header, f"{path}.outputPayloadToHeader")
        if rule.output_payload_to_header.startswith(":") or rule.output_payload_to_header.lower() == "host":
            out.error("bad-header", "the payload must not replace a part of the request's head", path)
