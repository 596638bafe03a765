"""VirtualServices and services to Envoy routes.  Pure.

Every route carries two blocks of metadata: ``istio.config``, which istioctl reads, and ``underpass``, which tells
rule, file and line to whoever counts or explains requests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from controlplane.model.labels import freeze, selects
from controlplane.model.mesh import Mesh, Service, fqdn, visible
from controlplane.model.objects import Config, Key, Origin
from controlplane.translate import names
from controlplane.translate.delegate import merge_delegates
from controlplane.translate.policy import hash_of
from controlplane.translate.route_action import (
    HeaderOperations,
    cors,
    direct_response,
    duration,
    fault,
    hash_policy,
    mirrors,
    redirect,
    retry_policy,
    zero,
)
from controlplane.translate.route_match import is_catch_all, route_match
from controlplane.translate.scope import Scope
from underpass.api import envoy

FAULT: Final = "envoy.filters.http.fault"
CORS: Final = "envoy.filters.http.cors"


@dataclass(frozen=True, slots=True)
class Place:
    """Where routes are made for: a listener's port, and the gateways whose rules count there (``mesh`` in sidecars)."""

    port: int
    gateways: frozenset[str] = frozenset({"mesh"})
    tls: bool = False


@dataclass(frozen=True, slots=True)
class SourcedRule:
    """One ``http[]`` rule with the object that it counts for and where it was written (a delegate's own place)."""

    rule: Any
    config: Config
    origin: Origin


def metadata(kind: str, namespace: str, name: str, rule: int, file: str, line: int, *, istio: bool) -> Any:
    """Route metadata: who made this route."""
    out = envoy.Metadata()
    if istio:
        out.filter_metadata["istio"].update({"config": names.config_path(kind, namespace, name)})
    out.filter_metadata["underpass"].update(
        {"kind": kind, "name": name, "namespace": namespace, "rule": rule, "file": file, "line": line}
    )
    return out


def rules_of(config: Config, mesh: Mesh) -> list[SourcedRule]:
    """Return the ``http[]`` rules of a VirtualService, delegation resolved."""
    out: list[SourcedRule] = []
    for index, rule in enumerate(config.spec.http):
        if not rule.HasField("delegate"):
            origin = (
                config.origins[index] if config.origins else Origin(config.meta, index, config.line(f"http[{index}]"))
            )
            out.append(SourcedRule(rule, config, origin))
            continue
        space = rule.delegate.namespace or config.meta.key.namespace
        other = mesh.delegates.get(Key("VirtualService", space, rule.delegate.name))
        if other is None or not _delegable(other, config.meta.key.namespace):
            continue
        out.extend(
            SourcedRule(merged, other, Origin(other.meta, number, other.line(f"http[{number}]")))
            for number, inner in enumerate(other.spec.http)
            if (merged := merge_delegates(rule, inner)) is not None
        )
    return out


def _delegable(delegate: Config, namespace: str) -> bool:
    return visible(tuple(delegate.spec.export_to), delegate.meta.key.namespace, namespace)


def applies(block: Any, scope: Scope, place: Place) -> bool:
    """Whether a match block counts for this client at all: port, gateway, source labels and namespace."""
    if block.port and block.port != place.port:
        return False
    if block.gateways:
        return any(name in place.gateways for name in block.gateways)
    if not selects(freeze(block.source_labels), scope.key.labels):
        return False
    return not block.source_namespace or bool(block.source_namespace == scope.key.namespace)


def virtual_service_routes(config: Config, scope: Scope, mesh: Mesh, place: Place) -> list[Any]:
    """Return the routes that a VirtualService yields here, cut behind the first that takes every request."""
    out: list[Any] = []
    for sourced in rules_of(config, mesh):
        blocks = [block for block in sourced.rule.match if applies(block, scope, place)]
        if not sourced.rule.match:
            out.append(_route(sourced, None, scope, mesh, place))
            return out
        for block in blocks:
            route = _route(sourced, block, scope, mesh, place)
            out.append(route)
            if is_catch_all(route.match):
                return out
    return out


def destination_cluster(
    destination: Any, namespace: str, scope: Scope, mesh: Mesh, port: int, *, http: bool = True
) -> str:
    """Cluster that a destination stands for.  It may not exist: then requests get 503, as in Istio.

    Without a port it is the sole port of the service, else the listener's.
    """
    host = fqdn(destination.host, namespace, mesh.domain)
    number = int(destination.port.number)
    if not number:
        service = scope.service(host)
        number = service.ports[0].number if service is not None and len(service.ports) == 1 else port
    return scope.cluster(host, number, destination.subset, http=http)


def _route(sourced: SourcedRule, block: Any, scope: Scope, mesh: Mesh, place: Place) -> Any:
    rule, config, origin = sourced.rule, sourced.config, sourced.origin
    key = config.meta.key
    name = rule.name
    if block is not None and block.name:
        name = f"{name}.{block.name}"
    written = origin.meta.key
    out = envoy.Route(
        name=name,
        match=route_match(block, gateway_api=config.gateway_api),
        metadata=metadata(
            written.kind,
            written.namespace,
            written.name,
            origin.index,
            origin.meta.source.file,
            origin.line,
            istio=True,
        ),
        stat_prefix=block.stat_prefix if block is not None else "",
    )
    operations = HeaderOperations(rule.headers)
    operations.apply(out)
    if rule.HasField("redirect"):
        out.redirect.CopyFrom(redirect(rule.redirect, place.port, tls=place.tls))
    elif rule.HasField("direct_response"):
        out.direct_response.CopyFrom(direct_response(rule.direct_response))
    else:
        _forward(out, rule, key.namespace, operations.authority, scope, mesh, place)
        if config.gateway_api:
            _as_gateway_api(out)
    out.decorator.operation = _operation(out, key.name, place.port)
    if rule.HasField("fault"):
        out.typed_per_filter_config[FAULT].CopyFrom(envoy.pack_any(fault(rule.fault)))
    if rule.HasField("cors_policy"):
        out.typed_per_filter_config[CORS].CopyFrom(envoy.pack_any(cors(rule.cors_policy)))
    return out


def _as_gateway_api(out: Any) -> None:
    """A backend that is not there is 500, and a prefix that is replaced by nothing leaves one slash, not two."""
    out.route.cluster_not_found_response_code = "INTERNAL_SERVER_ERROR"
    prefix = out.match.path_separated_prefix
    if prefix and out.route.prefix_rewrite == "/":
        out.route.prefix_rewrite = ""
        out.route.regex_rewrite.pattern.regex = f"^{re.escape(prefix)}(/?)(.*)"
        out.route.regex_rewrite.substitution = r"/\2"


def _forward(out: Any, rule: Any, namespace: str, authority: str, scope: Scope, mesh: Mesh, place: Place) -> None:
    action = out.route
    set_timeout(action, rule.timeout if rule.HasField("timeout") else None, grpc=scope.key.generator == "grpc")
    if rule.HasField("rewrite"):
        rewrite = rule.rewrite
        if rewrite.HasField("uri_regex_rewrite"):
            action.regex_rewrite.pattern.regex = rewrite.uri_regex_rewrite.match
            action.regex_rewrite.substitution = rewrite.uri_regex_rewrite.rewrite
        elif rewrite.uri:
            action.prefix_rewrite = rewrite.uri
        authority = rewrite.authority or authority
    if authority:
        action.host_rewrite_literal = authority

    def cluster_of(destination: Any) -> str:
        return destination_cluster(destination, namespace, scope, mesh, place.port)

    action.request_mirror_policies.extend(mirrors(rule, cluster_of))
    hashed = False
    if len(rule.route) == 1:
        single = rule.route[0]
        action.cluster = cluster_of(single.destination)
        operations = HeaderOperations(single.headers)
        operations.apply(out)
        if operations.authority and not authority:
            action.host_rewrite_literal = operations.authority
        hashed = _hash(action, single.destination, namespace, scope, mesh, place)
    else:
        for item in rule.route:
            if not item.weight:
                continue
            weighted = action.weighted_clusters.clusters.add(name=cluster_of(item.destination))
            weighted.weight.value = item.weight
            operations = HeaderOperations(item.headers)
            operations.apply(weighted)
            if operations.authority:
                weighted.host_rewrite_literal = operations.authority
            _hash(action, item.destination, namespace, scope, mesh, place)
    policy = retry_policy(rule.retries if rule.HasField("retries") else None, consistent_hash=hashed)
    if policy is not None:
        action.retry_policy.CopyFrom(policy)


def _hash(action: Any, destination: Any, namespace: str, scope: Scope, mesh: Mesh, place: Place) -> bool:
    host = fqdn(destination.host, namespace, mesh.domain)
    settings = hash_of(scope.rules.get(host), int(destination.port.number), destination.subset)
    policy = hash_policy(settings) if settings is not None else None
    if policy is not None:
        action.hash_policy.append(policy)
    return policy is not None


def set_timeout(action: Any, timeout: Any, *, grpc: bool = False) -> None:
    """Set a route's time limit; none is 0, which switches Envoy's own default of 15 s off."""
    value = duration(timeout) if timeout is not None else zero()
    action.timeout.CopyFrom(value)
    if grpc:
        action.max_stream_duration.max_stream_duration.CopyFrom(value)
    else:
        action.max_grpc_timeout.CopyFrom(value)


def _operation(route: Any, name: str, port: int) -> str:
    """Name of the operation in traces: destination and path."""
    match = route.match
    kind = match.WhichOneof("path_specifier")
    path = {"prefix": f"{match.prefix}*", "path": match.path, "safe_regex": match.safe_regex.regex}.get(kind, "/*")
    cluster = route.route.cluster if route.WhichOneof("action") == "route" else ""
    parts = cluster.split("|")
    if len(parts) == 4:
        return f"{parts[3]}:{parts[1]}{path}"
    return f"{name}:{port}{path}"


def default_route(service: Service, port: int, scope: Scope) -> Any:
    """The route of a service that no VirtualService rules."""
    out = envoy.Route(
        name="default",
        match=route_match(None),
        metadata=metadata(
            service.kind, service.namespace, service.object, 0, service.source.file, service.source.line, istio=False
        ),
    )
    out.route.cluster = scope.cluster(service.hostname, port)
    set_timeout(out.route, None, grpc=scope.key.generator == "grpc")
    settings = hash_of(scope.rules.get(service.hostname), port, "")
    policy = hash_policy(settings) if settings is not None else None
    out.route.retry_policy.CopyFrom(retry_policy(None, consistent_hash=policy is not None))
    if policy is not None:
        out.route.hash_policy.append(policy)
    out.decorator.operation = f"{service.hostname}:{port}/*"
    return out
