"""RequestAuthentication to Envoy's jwt_authn filter, as Istio translates it.  Pure.

A token that is there must be good; one that is missing is no error (an AuthorizationPolicy demands it). What a good one
claims is left in the request's metadata, under ``payload``, where policies and routes read it.

Who fetches keys is different from istiod on purpose: the proxy does, by a cluster of its own, and not the control plane
on the word of whoever may write a policy. Without keys every token is refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from controlplane.model.mesh import Mesh
from controlplane.translate import names
from controlplane.translate.clusters import CONNECT_TIMEOUT, thresholds
from controlplane.translate.scope import Scope
from controlplane.translate.targets import Spot, attached
from controlplane.translate.tls import client_tls
from underpass.api import envoy, istio

HTTP_FILTER: Final = "envoy.filters.http.jwt_authn"
#: Where the claims are found in the filter's metadata.
PAYLOAD: Final = "payload"
#: Claims that hold several values with blanks between (RFC 8693 and custom), as Istio has them.
_LISTS: Final = ("scope", "permission")
#: Seconds: how long keys are good, and how long a fetch may take, where the rule does not say.
_KEEP: Final = 300
_PATIENCE: Final = 5
_REQUIRED: Final = 1
_LOOKUP: Final[dict[tuple[int, ...], str]] = {(4,): "V4_ONLY", (6,): "V6_ONLY"}
_TLS: Final = istio.message("istio.networking.v1alpha3.ClientTLSSettings")


@dataclass(frozen=True, slots=True)
class Fetch:
    """Where a key set comes from.  ``known``: the cluster is a service's, which is there already."""

    uri: str
    host: str
    port: int
    secure: bool
    cluster: str
    known: bool


def rules(mesh: Mesh, spot: Spot) -> list[Any]:
    """The JWT rules in force at ``spot``, by issuer: those of all policies together."""
    found = [rule for policy in attached(mesh.request_authentications, mesh, spot) for rule in policy.spec.jwt_rules]
    return sorted(found, key=lambda rule: str(rule.issuer))


def fetch(uri: str, scope: Scope) -> Fetch:
    """How a proxy of ``scope`` gets at ``uri``; conversion has seen to it that this is a URL with a host.

    A service that speaks plain HTTP is reached as for any other request (with the mesh's mutual TLS, say); everything
    else by a cluster of its own.
    """
    parts = urlsplit(uri)
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    service = scope.service(host)
    known = not secure and service is not None and service.port(port) is not None
    direction = "outbound" if known else "jwks"
    return Fetch(uri, host, port, secure, names.cluster(host, port, direction=direction), known)


def fetches(listed: Sequence[Any], scope: Scope) -> tuple[Fetch, ...]:
    """Every key set that the rules fetch."""
    return tuple(fetch(str(rule.jwks_uri), scope) for rule in listed if rule.jwks_uri)


def http_filter(listed: Sequence[Any], scope: Scope, *, reroute: bool) -> Any:
    """The filter for some rules, or None for no rules.

    ``reroute``: claims may decide on the route, so it is chosen again once they are known (gateways, waypoints).
    """
    if not listed:
        return None
    made: Any = envoy.JwtAuthentication(bypass_cors_preflight=True)
    for index, rule in enumerate(listed):
        made.providers[f"origins-{index}"].CopyFrom(_provider(rule, scope, reroute=reroute))
    match = made.rules.add()
    match.match.prefix = "/"
    match.requires.CopyFrom(_requirement(listed))
    return envoy.HttpFilter(name=HTTP_FILTER, typed_config=envoy.pack_any(made))


def _provider(rule: Any, scope: Scope, *, reroute: bool) -> Any:
    out: Any = envoy.message("envoy.extensions.filters.http.jwt_authn.v3.JwtProvider")(
        issuer=rule.issuer,
        audiences=rule.audiences,
        forward=rule.forward_original_token,
        forward_payload_header=rule.output_payload_to_header,
        payload_in_metadata=PAYLOAD,
        from_params=rule.from_params,
        from_cookies=rule.from_cookies,
        clear_route_cache=reroute,
    )
    out.normalize_payload_in_metadata.space_delimited_claims.extend([*_LISTS, *rule.space_delimited_claims])
    for place in rule.from_headers:
        out.from_headers.add(name=place.name, value_prefix=place.prefix)
    for copied in rule.output_claim_to_headers:
        out.claim_to_headers.add(header_name=copied.header, claim_name=copied.claim)
    if rule.jwks_uri:
        source = fetch(str(rule.jwks_uri), scope)
        remote = out.remote_jwks
        remote.http_uri.uri, remote.http_uri.cluster = source.uri, source.cluster
        remote.http_uri.timeout.seconds = _PATIENCE
        if rule.HasField("timeout"):
            remote.http_uri.timeout.seconds, remote.http_uri.timeout.nanos = rule.timeout.seconds, rule.timeout.nanos
        remote.cache_duration.seconds = _KEEP
        # Ask before the first token comes, and do not hold the listener up for it.
        remote.async_fetch.fast_listener = True
    elif rule.jwks:
        out.local_jwks.inline_string = rule.jwks
    else:
        # Nobody knows the issuer's keys, and an Envoy takes no empty set: they are fetched where nothing ever is.
        uri = out.remote_jwks.http_uri
        uri.uri, uri.cluster, uri.timeout.seconds = "http://unknown.invalid/", names.BLACK_HOLE, _PATIENCE
    return out


def _requirement(listed: Sequence[Any]) -> Any:
    """Istio's: with one rule, its token or none; with several, one of them good, or each of them good or missing.

    Rules may share the place where tokens are looked for, and there a token of another issuer is a bad one: hence the
    first alternatives. Rules that require their token (``presence: REQUIRED``) must all be satisfied; no other helps.
    """
    kind: Any = envoy.message("envoy.extensions.filters.http.jwt_authn.v3.JwtRequirement")
    required = [kind(provider_name=f"origins-{i}") for i, rule in enumerate(listed) if rule.presence == _REQUIRED]
    if required:
        return required[0] if len(required) == 1 else kind(requires_all={"requirements": required})
    each = [kind(provider_name=f"origins-{index}") for index in range(len(listed))]
    good_or_missing = [kind(requires_any={"requirements": [one, kind(allow_missing={})]}) for one in each]
    if len(each) == 1:
        return good_or_missing[0]
    return kind(requires_any={"requirements": [*each, kind(requires_all={"requirements": good_or_missing})]})


def clusters(listed: Sequence[Any], scope: Scope) -> dict[str, Any]:
    """Clusters for key sets that no service's cluster leads to."""
    return {one.cluster: _cluster(one, scope) for one in fetches(listed, scope) if not one.known}


def _cluster(source: Fetch, scope: Scope) -> Any:
    address = {"socket_address": {"address": source.host, "port_value": source.port}}
    out: Any = envoy.Cluster(
        name=source.cluster,
        type="STATIC" if _is_ip(source.host) else "STRICT_DNS",
        connect_timeout={"seconds": CONNECT_TIMEOUT},
        alt_stat_name=f"{source.cluster};",
        circuit_breakers={"thresholds": [thresholds()]},
        load_assignment={
            "cluster_name": source.cluster,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    )
    if not _is_ip(source.host):
        out.dns_lookup_family = _LOOKUP.get(scope.key.families, "ALL")
    if source.secure:
        settings: Any = _TLS(mode="SIMPLE", subject_alt_names=[source.host])
        if not _is_ip(source.host):
            settings.sni = source.host
        out.transport_socket.CopyFrom(client_tls(settings, http2=False, sds=scope.key.mesh_certificates))
    return out


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
