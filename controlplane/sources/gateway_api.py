"""Kubernetes Gateway API documents to typed objects.  Pure; raises ``RejectedError`` only.

A rule that cannot be carried out does not reject its route: it becomes a rule with a ``problem``, answered with 500.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from controlplane.model.gateway_objects import (
    BackendRef,
    GatewayObject,
    KubeGateway,
    KubeReferenceGrant,
    KubeRoute,
    Listener,
    ParentRef,
    RouteRule,
)
from controlplane.model.hosts import is_wildcard
from controlplane.model.labels import freeze
from controlplane.model.objects import Config, Meta
from controlplane.sources.findings import Findings
from controlplane.sources.kubernetes_objects import Reader
from controlplane.sources.rejection import RejectedError
from underpass.api import istio

GROUP: Final = "gateway.networking.k8s.io"

_ROUTE: Final[Any] = istio.message("istio.networking.v1alpha3.HTTPRoute")
_MATCH: Final[Any] = istio.message("istio.networking.v1alpha3.HTTPMatchRequest")
_HEADERS: Final[Any] = istio.message("istio.networking.v1alpha3.Headers")


class _UnsupportedError(Exception):
    """A rule asks for something that is not done here."""


class _Checker:
    """Regex checks that speak Gateway API paths."""

    def __init__(self, about: Meta) -> None:
        self._findings = Findings(Config(about, None))

    def regex(self, pattern: str, path: str) -> str:
        self._findings.regex(pattern, path)
        self._findings.finish()
        return pattern


def _parents(spec: Reader, namespace: str) -> tuple[ParentRef, ...]:
    out: list[ParentRef] = []
    for item in spec.items("parentRefs"):
        group, kind = item.text("group", GROUP), item.text("kind", "Gateway")
        if (group, kind) not in ((GROUP, "Gateway"), ("", "Service"), ("core", "Service")):
            raise RejectedError(
                "bad-parent",
                f"parentRefs: {kind} ({group or 'core'}) is neither Gateway nor Service",
                "spec.parentRefs",
            )
        name = item.text("name")
        if not name:
            raise RejectedError("bad-parent", "parentRefs: name is missing", "spec.parentRefs")
        out.append(
            ParentRef(kind, item.text("namespace") or namespace, name, item.text("sectionName"), item.number("port"))
        )
    return tuple(out)


def _backend(item: Reader, namespace: str) -> BackendRef:
    kind = item.text("kind", "Service")
    group = item.text("group")
    return BackendRef(
        kind=kind if group in ("", "core") else f"{kind}.{group}",
        namespace=item.text("namespace") or namespace,
        name=item.text("name"),
        port=item.number("port"),
        weight=item.number("weight", 1),
        headers=_backend_headers(item),
    )


def _backend_headers(item: Reader) -> Any:
    found = item.items("filters")
    if not found:
        return None
    out = _HEADERS()
    for entry in found:
        if not _modify(out, entry):
            raise _UnsupportedError(f"filter {entry.text('type')} of a backendRef")
    return out


def _modify(out: Any, entry: Reader) -> bool:
    """Apply a header filter to ``out``; False when the filter is of another type."""
    kind = entry.text("type")
    if kind == "RequestHeaderModifier":
        target, source = out.request, entry.sub("requestHeaderModifier")
    elif kind == "ResponseHeaderModifier":
        target, source = out.response, entry.sub("responseHeaderModifier")
    else:
        return False
    for name in ("set", "add"):
        for header in source.items(name):
            getattr(target, name)[header.text("name")] = header.text("value")
    target.remove.extend(source.texts("remove"))
    return True


def _text(target: Any, item: Reader, check: _Checker, path: str, default: str = "Exact") -> None:
    kind, value = item.text("type", default), item.text("value")
    if kind == "Exact":
        target.exact = value
    elif kind == "RegularExpression":
        target.regex = check.regex(value, path)
    else:
        raise RejectedError("bad-match", f"{path}: type {kind!r} is neither Exact nor RegularExpression", path)


def _http_match(item: Reader, check: _Checker, path: str) -> Any:
    out = _MATCH()
    where = item.sub("path")
    kind, value = where.text("type", "PathPrefix"), where.text("value", "/")
    if kind == "PathPrefix":
        if not value.startswith("/"):
            raise RejectedError("bad-match", f"{path}.path: {value!r} does not begin with /", path)
        out.uri.prefix = value
    elif kind == "Exact":
        out.uri.exact = value
    elif kind == "RegularExpression":
        out.uri.regex = check.regex(value, path)
    else:
        raise RejectedError("bad-match", f"{path}.path: unknown type {kind!r}", path)
    if item.has("method"):
        out.method.exact = item.text("method")
    for header in item.items("headers"):
        _text(out.headers[header.text("name").lower()], header, check, f"{path}.headers")
    for parameter in item.items("queryParams"):
        _text(out.query_params[parameter.text("name")], parameter, check, f"{path}.queryParams")
    return out


def _grpc_match(item: Reader, check: _Checker, path: str) -> Any:
    out = _MATCH()
    method = item.sub("method")
    service, name = method.text("service"), method.text("method")
    if method.text("type", "Exact") == "RegularExpression":
        out.uri.regex = check.regex(f"/{service or '[^/]+'}/{name or '[^/]+'}", path)
    elif service and name:
        out.uri.exact = f"/{service}/{name}"
    elif service:
        out.uri.prefix = f"/{service}/"
    elif name:
        out.uri.regex = f"/[^/]+/{re.escape(name)}"
    else:
        out.uri.prefix = "/"
    for header in item.items("headers"):
        _text(out.headers[header.text("name").lower()], header, check, f"{path}.headers")
    return out


_STATUS: Final = (301, 302, 303, 307, 308)


def _redirect(out: Any, source: Reader) -> None:
    target = out.redirect
    target.scheme, target.authority = source.text("scheme"), source.text("hostname")
    status = source.number("statusCode", 302)
    if status not in _STATUS:
        raise _UnsupportedError(f"requestRedirect.statusCode {status}")
    target.redirect_code = status
    path = source.sub("path")
    if path.text("type") == "ReplaceFullPath":
        target.uri = path.text("replaceFullPath")
    elif path.text("type") == "ReplacePrefixMatch":
        target.prefix_rewrite = path.text("replacePrefixMatch") or "/"
    if source.has("port"):
        target.port = source.port("port")
    elif not target.scheme:
        target.derive_port = 1  # FROM_REQUEST_PORT
    else:
        target.derive_port = 0


def _rewrite(out: Any, source: Reader) -> None:
    target = out.rewrite
    target.authority = source.text("hostname")
    path = source.sub("path")
    if path.text("type") == "ReplaceFullPath":
        target.uri_regex_rewrite.match = "/.*"
        target.uri_regex_rewrite.rewrite = path.text("replaceFullPath").replace("\\", "\\\\")
    elif path.text("type") == "ReplacePrefixMatch":
        target.uri = path.text("replacePrefixMatch") or "/"


def _filters(out: Any, rule: Reader, namespace: str) -> list[tuple[BackendRef, float]]:
    mirrors: list[tuple[BackendRef, float]] = []
    for entry in rule.items("filters"):
        kind = entry.text("type")
        if _modify(out.headers, entry):
            continue
        if kind == "RequestRedirect":
            _redirect(out, entry.sub("requestRedirect"))
        elif kind == "URLRewrite":
            _rewrite(out, entry.sub("urlRewrite"))
        elif kind == "RequestMirror":
            source = entry.sub("requestMirror")
            share = 100.0
            if source.has("percent"):
                share = float(source.number("percent"))
            elif source.has("fraction"):
                fraction = source.sub("fraction")
                share = 100.0 * fraction.number("numerator") / (fraction.number("denominator", 100) or 100)
            mirrors.append((_backend(source.sub("backendRef"), namespace), share))
        elif kind == "CORS":
            _cors(out, entry.sub("cors"))
        else:
            raise _UnsupportedError(f"filter {kind}")
    if not out.headers.ListFields():
        out.ClearField("headers")
    return mirrors


def _cors(out: Any, source: Reader) -> None:
    policy = out.cors_policy
    for origin in source.texts("allowOrigins"):
        if origin == "*":
            policy.allow_origins.add(regex=".*")
        elif is_wildcard(origin) or "*" in origin:
            policy.allow_origins.add(regex=".*".join(re.escape(part) for part in origin.split("*")))
        else:
            policy.allow_origins.add(exact=origin)
    policy.allow_methods.extend(source.texts("allowMethods"))
    policy.allow_headers.extend(source.texts("allowHeaders"))
    policy.expose_headers.extend(source.texts("exposeHeaders"))
    if source.has("maxAge"):
        policy.max_age.seconds = source.number("maxAge")
    if source.has("allowCredentials"):
        policy.allow_credentials.value = source.flag("allowCredentials")


def _timeouts(out: Any, rule: Reader) -> None:
    fields: dict[str, Any] = {}
    timeouts = rule.sub("timeouts")
    if timeouts.has("request"):
        fields["timeout"] = timeouts.text("request")
    retry = rule.sub("retry")
    if rule.has("retry"):
        fields["retries"] = {"attempts": retry.number("attempts", 1)}
        if retry.has("backoff"):
            fields["retries"]["backoff"] = retry.text("backoff")
        codes = [str(code) for code in retry.mapping().get("codes") or []]
        fields["retries"]["retryOn"] = ",".join(
            ["connect-failure", "refused-stream", "unavailable", "cancelled", *codes]
        )
    if timeouts.has("backendRequest"):
        fields.setdefault("retries", {"attempts": 2})["perTryTimeout"] = timeouts.text("backendRequest")
    if fields:
        try:
            out.MergeFrom(istio.parse("istio.networking.v1alpha3.HTTPRoute", fields).message)
        except istio.IstioSchemaError as error:
            raise RejectedError("bad-duration", str(error), "spec.rules") from error


def _http_rules(spec: Reader, about: Meta, lines: Mapping[str, int], *, grpc: bool) -> tuple[RouteRule, ...]:
    check = _Checker(about)
    namespace = about.key.namespace
    out: list[RouteRule] = []
    for index, rule in enumerate(spec.items("rules")):
        path = f"spec.rules[{index}]"
        parse = _grpc_match if grpc else _http_match
        blocks = [parse(item, check, f"{path}.matches[{n}]") for n, item in enumerate(rule.items("matches"))]
        if not blocks:
            block = _MATCH()
            block.uri.prefix = "/"
            blocks = [block]
        action = _ROUTE(name=rule.text("name"))
        problem = ""
        mirrors: list[tuple[BackendRef, float]] = []
        backends: tuple[BackendRef, ...] = ()
        try:
            mirrors = _filters(action, rule, namespace)
            backends = tuple(_backend(item, namespace) for item in rule.items("backendRefs"))
        except _UnsupportedError as error:
            problem = f"{error} is not supported"
            action = _ROUTE(name=rule.text("name"))
        _timeouts(action, rule)
        if rule.has("sessionPersistence"):
            problem = "sessionPersistence is not supported"
        line = lines.get(path, about.source.line)
        out.append(RouteRule(line, tuple(blocks), action, backends, tuple(mirrors), problem))
    return tuple(out)


def _l4_rules(spec: Reader, about: Meta, lines: Mapping[str, int]) -> tuple[RouteRule, ...]:
    out: list[RouteRule] = []
    for index, rule in enumerate(spec.items("rules")):
        try:
            backends = tuple(_backend(item, about.key.namespace) for item in rule.items("backendRefs"))
        except _UnsupportedError as error:
            raise RejectedError("bad-backend", str(error), f"spec.rules[{index}]") from error
        out.append(RouteRule(lines.get(f"spec.rules[{index}]", about.source.line), (), _ROUTE(), backends))
    return tuple(out)


def _route(document: Reader, about: Meta, lines: Mapping[str, int]) -> KubeRoute:
    spec = document.sub("spec")
    kind = about.key.kind
    if kind in ("HTTPRoute", "GRPCRoute"):
        rules = _http_rules(spec, about, lines, grpc=kind == "GRPCRoute")
        if not rules and kind == "HTTPRoute":  # the API's default: everything goes on, nowhere
            rules = ()
    else:
        rules = _l4_rules(spec, about, lines)
    return KubeRoute(about, _parents(spec, about.key.namespace), spec.texts("hostnames"), rules)


def _gateway(document: Reader, about: Meta, lines: Mapping[str, int]) -> KubeGateway:
    spec = document.sub("spec")
    listeners: list[Listener] = []
    for index, item in enumerate(spec.items("listeners")):
        allowed = item.sub("allowedRoutes").sub("namespaces")
        origin = allowed.text("from", "Same")
        if origin not in ("Same", "All", "Selector", "None"):
            raise RejectedError(
                "bad-listener", f"allowedRoutes.namespaces.from {origin!r} is not known", f"spec.listeners[{index}]"
            )
        tls = item.sub("tls")
        listeners.append(
            Listener(
                name=item.text("name"),
                port=item.port("port"),
                protocol=item.text("protocol").upper(),
                hostname=item.text("hostname"),
                tls_mode=tls.text("mode", "Terminate") if item.has("tls") else "",
                has_certificates=tls.has("certificateRefs"),
                from_namespaces=origin,
                selector=freeze(allowed.sub("selector").labels("matchLabels")),
                line=lines.get(f"spec.listeners[{index}]", about.source.line),
            )
        )
    if not listeners:
        raise RejectedError("no-listeners", "listeners is empty", "spec")
    return KubeGateway(about, spec.text("gatewayClassName"), tuple(listeners))


def _grant(document: Reader, about: Meta, lines: Mapping[str, int]) -> KubeReferenceGrant:
    del lines
    spec = document.sub("spec")
    return KubeReferenceGrant(
        about,
        tuple((item.text("kind"), item.text("namespace")) for item in spec.items("from")),
        tuple((item.text("kind"), item.text("name")) for item in spec.items("to")),
    )


#: kind -> converter of (document, metadata, lines).
KINDS: Final[Mapping[str, Callable[[Reader, Meta, Mapping[str, int]], GatewayObject]]] = {
    "HTTPRoute": _route,
    "GRPCRoute": _route,
    "TLSRoute": _route,
    "TCPRoute": _route,
    "Gateway": _gateway,
    "ReferenceGrant": _grant,
}
