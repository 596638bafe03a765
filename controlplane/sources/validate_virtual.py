"""VirtualService: what istiod refuses, and what it accepts with a warning.  Pure."""

from __future__ import annotations

from typing import Any, Final

from controlplane.model.grpc_status import GRPC_STATUS
from controlplane.model.hosts import is_wildcard, matches
from controlplane.model.objects import Config
from controlplane.sources.findings import Findings, is_ip

#: Match blocks and rules of one VirtualService; a table beyond this is refused whole, never cut.
MAX_ROUTES: Final = 10_000
MAX_BODY: Final = 1024 * 1024

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*"})
RETRY_CONDITIONS: Final = frozenset(
    {
        "5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited",
        "retriable-4xx", "refused-stream", "retriable-status-codes", "retriable-headers", "http3-post-connect-failure",
        "cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
    }
)  # fmt: skip


def virtual_service(config: Config, out: Findings) -> None:
    """Check a VirtualService."""
    spec = config.spec
    delegate = not spec.hosts
    if delegate and (spec.gateways or spec.tls or spec.tcp):
        out.error("no-hosts", "hosts is empty; only a delegate may have none, and a delegate has http rules only")
    if not (spec.http or spec.tls or spec.tcp):
        out.error("no-routes", "one of http, tls and tcp is needed")
    mesh = not spec.gateways or "mesh" in spec.gateways
    seen: dict[str, None] = {}
    patterns: list[str] = []
    for index, host in enumerate(spec.hosts):
        path = f"hosts[{index}]"
        out.host(host, path)
        if host == "*" and mesh:
            out.error("bad-host", "'*' is only possible for gateways; sidecars need a name", path)
        if host in seen:
            out.error("duplicate-host", f"{host!r} is listed twice", path)
        # Names can only overlap with patterns: looking at all pairs of 20,000 names would take minutes.
        for other in seen if is_wildcard(host) else patterns:
            if host != other and (matches(other, host) or matches(host, other)):
                out.note("overlapping-hosts", f"{host!r} and {other!r} overlap", path)
        if is_wildcard(host) and host not in seen:
            patterns.append(host)
        seen[host] = None
    for index, name in enumerate(spec.gateways):
        if name != "mesh":
            out.gateway_name(name, f"gateways[{index}]")
    total = sum(max(1, len(rule.match)) for rule in spec.http)
    if total > MAX_ROUTES:
        out.error("over-capacity", f"{total} match blocks; at most {MAX_ROUTES} are possible in one VirtualService")
        return
    ended = ""
    for index, rule in enumerate(spec.http):
        path = f"http[{index}]"
        _http(rule, path, delegate, out)
        if ended:
            out.note("unreachable", f"never reached: {ended} already matches every request", path)
        elif _catches_all(rule):
            ended = path
    for index, rule in enumerate(spec.tls):
        _tls(rule, f"tls[{index}]", list(spec.hosts), config.meta.key.namespace, out)
    for index, rule in enumerate(spec.tcp):
        _tcp(rule, f"tcp[{index}]", out)
    out.export_to(spec.export_to)


def _catches_all(rule: Any) -> bool:
    return not rule.match or any(_is_catch_all(block) for block in rule.match)


def _is_catch_all(block: Any) -> bool:
    return not (
        block.headers
        or block.query_params
        or block.without_headers
        or block.HasField("method")
        or block.HasField("authority")
        or block.HasField("scheme")
        or block.source_labels
        or block.source_namespace
        or block.gateways
        or block.port
        or (block.HasField("uri") and block.uri.prefix != "/" and block.uri.regex != ".*")
    )


def _http(rule: Any, path: str, in_delegate: bool, out: Findings) -> None:
    actions = [name for name in ("redirect", "direct_response") if rule.HasField(name)]
    if rule.route:
        actions.insert(0, "route")
    if rule.HasField("delegate"):
        if actions:
            out.error("conflicting-actions", f"a rule that delegates can have no {actions[0]}", path)
        if in_delegate:
            out.error("bad-delegate", "a delegate can not delegate again", f"{path}.delegate")
        if not rule.delegate.name:
            out.error("bad-delegate", "delegate.name is missing", f"{path}.delegate")
    elif len(actions) != 1:
        what = " and ".join(actions) if actions else "nothing"
        out.error(
            "conflicting-actions" if actions else "no-action",
            f"exactly one of route, redirect and directResponse is needed; there is {what}",
            path,
        )
    if "redirect" in actions or "direct_response" in actions:
        for name, present in (
            ("rewrite", rule.HasField("rewrite")),
            ("mirror", rule.HasField("mirror") or bool(rule.mirrors)),
            ("fault", rule.HasField("fault") and "redirect" in actions),
        ):
            if present:
                out.error("conflicting-actions", f"{name} has no meaning together with {actions[0]}", path)
    for index, block in enumerate(rule.match):
        _match(block, f"{path}.match[{index}]", out)
    destinations(rule.route, f"{path}.route", out)
    out.duration(rule, "timeout", f"{path}.timeout", zero=True)
    if rule.HasField("redirect"):
        _redirect(rule, f"{path}.redirect", out)
    if rule.HasField("direct_response"):
        _direct(rule.direct_response, f"{path}.directResponse", out)
    if rule.HasField("rewrite"):
        _rewrite(rule.rewrite, f"{path}.rewrite", out)
    if rule.HasField("retries"):
        _retries(rule.retries, f"{path}.retries", out)
    if rule.HasField("fault"):
        _fault(rule.fault, f"{path}.fault", out)
    _mirrors(rule, path, out)
    if rule.HasField("cors_policy"):
        _cors(rule.cors_policy, f"{path}.corsPolicy", out)
    headers(rule.headers, f"{path}.headers", out)


def _string(match: Any, path: str, out: Findings, *, star: bool = True) -> None:
    """``star``: the regex ``*``, no RE2 at all, means "present" there."""
    if match.WhichOneof("match_type") == "regex" and not (star and match.regex == "*"):
        out.regex(match.regex, f"{path}.regex")


def _match(block: Any, path: str, out: Findings) -> None:
    for name in ("uri", "scheme", "method", "authority"):
        if block.HasField(name):
            value = getattr(block, name)
            kind = value.WhichOneof("match_type")
            if kind is None:
                out.error("empty-match", f"{name} needs one of exact, prefix and regex", f"{path}.{name}")
            elif not getattr(value, kind):
                out.error("empty-match", f"{name}.{kind} is empty", f"{path}.{name}")
            else:
                _string(value, f"{path}.{name}", out, star=name != "uri")
    for field, values in (("headers", block.headers), ("withoutHeaders", block.without_headers)):
        for name in sorted(values):
            if not name.startswith("@request.auth."):
                out.header(name, f"{path}.{field}.{name}")
            _string(values[name], f"{path}.{field}.{name}", out)
    for name in sorted(block.query_params):
        value = block.query_params[name]
        if value.WhichOneof("match_type") is None:
            out.error(
                "empty-match",
                f"query parameter {name!r} needs one of exact, prefix and regex",
                f"{path}.queryParams.{name}",
            )
        _string(value, f"{path}.queryParams.{name}", out)
    if block.port:
        out.port(block.port, f"{path}.port")
    for index, name in enumerate(block.gateways):
        if name != "mesh":
            out.gateway_name(name, f"{path}.gateways[{index}]")


def destination(value: Any, path: str, out: Findings) -> None:
    """Check a destination: host, optional subset and port."""
    if not value.host:
        out.error("no-destination", "destination.host is missing", path)
    elif value.host == "*":
        out.error("bad-host", "a destination must be one host, not '*'", path)
    else:
        out.host(value.host, f"{path}.host")
    if value.subset:
        out.label(value.subset, "subset", f"{path}.subset")
    if value.HasField("port"):
        out.port(value.port.number, f"{path}.port")


def destinations(values: Any, path: str, out: Findings) -> None:
    """Check weighted destinations: none negative, and not all zero."""
    total = 0
    for index, value in enumerate(values):
        here = f"{path}[{index}]"
        destination(value.destination, f"{here}.destination", out)
        if value.weight < 0:
            out.error("bad-weight", f"weight {value.weight} is negative", f"{here}.weight")
        total += max(0, value.weight)
        if hasattr(value, "headers"):
            headers(value.headers, f"{here}.headers", out)
    if len(values) > 1 and total == 0:
        out.error("zero-weight", "the weights of the destinations add up to 0", path)
    if total > 2**32 - 1:
        out.error("bad-weight", "the weights of the destinations add up to more than 4294967295", path)


def headers(value: Any, path: str, out: Findings) -> None:
    """Check header operations."""
    for direction in ("request", "response"):
        operations = getattr(value, direction)
        for kind in ("set", "add"):
            for name in sorted(getattr(operations, kind)):
                out.header(name, f"{path}.{direction}.{kind}.{name}")
        for index, name in enumerate(operations.remove):
            out.header(name, f"{path}.{direction}.remove[{index}]")
            if name.lower() == "host" or name.startswith(":"):
                out.error("bad-header", f"{name!r} can not be removed", f"{path}.{direction}.remove[{index}]")


def _redirect(rule: Any, path: str, out: Findings) -> None:
    redirect = rule.redirect
    given = redirect.uri or redirect.authority or redirect.scheme or redirect.prefix_rewrite or redirect.redirect_code
    if not given and redirect.WhichOneof("redirect_port") is None:
        out.error("empty-redirect", "the redirect changes nothing", path)
    if redirect.uri and redirect.prefix_rewrite:
        out.error("conflicting-actions", "uri and prefixRewrite exclude each other", path)
    if redirect.redirect_code not in (0, 301, 302, 303, 307, 308):
        out.error("bad-status", f"redirectCode {redirect.redirect_code} is none of 301, 302, 303, 307, 308", path)
    if redirect.scheme not in ("", "http", "https"):
        out.error("bad-scheme", f"scheme {redirect.scheme!r} is neither http nor https", path)
    if redirect.WhichOneof("redirect_port") == "port":
        out.port(redirect.port, f"{path}.port")


def _direct(response: Any, path: str, out: Findings) -> None:
    if not 200 <= response.status <= 599:
        out.error("bad-status", f"status {response.status} is not between 200 and 599", path)
    body = response.body.WhichOneof("specifier")
    size = len(getattr(response.body, body)) if body else 0
    if size > MAX_BODY:
        out.error("over-capacity", f"the body has {size} bytes; at most {MAX_BODY} are possible", path)


def _rewrite(rewrite: Any, path: str, out: Findings) -> None:
    has_regex = rewrite.HasField("uri_regex_rewrite")
    if not (rewrite.uri or rewrite.authority or has_regex):
        out.error("empty-rewrite", "one of uri, authority and uriRegexRewrite is needed", path)
    if rewrite.uri and has_regex:
        out.error("conflicting-actions", "uri and uriRegexRewrite exclude each other", path)
    if has_regex:
        if not rewrite.uri_regex_rewrite.match:
            out.error("empty-match", "uriRegexRewrite.match is empty", path)
        else:
            out.regex(rewrite.uri_regex_rewrite.match, f"{path}.uriRegexRewrite")


def _retries(retries: Any, path: str, out: Findings) -> None:
    if retries.attempts < 0:
        out.error("bad-retries", f"attempts {retries.attempts} is negative", path)
    if retries.attempts == 0 and (retries.retry_on or retries.HasField("per_try_timeout")):
        out.error("bad-retries", "attempts 0 turns retries off; perTryTimeout and retryOn have no meaning then", path)
    out.duration(retries, "per_try_timeout", f"{path}.perTryTimeout", zero=True)
    out.duration(retries, "backoff", f"{path}.backoff")
    for condition in filter(None, (text.strip() for text in retries.retry_on.split(","))):
        if condition.isdigit():
            if not 100 <= int(condition) <= 599:
                out.error("bad-retries", f"retryOn: {condition} is not an HTTP status", f"{path}.retryOn")
        elif condition not in RETRY_CONDITIONS:
            out.error("bad-retries", f"retryOn: unknown condition {condition!r}", f"{path}.retryOn")


def _fault(fault: Any, path: str, out: Findings) -> None:
    if not (fault.HasField("delay") or fault.HasField("abort")):
        out.error("empty-fault", "a fault needs delay, abort or both", path)
    if fault.HasField("delay"):
        out.percent(fault.delay.percentage.value, f"{path}.delay.percentage")
        out.percent(fault.delay.percent, f"{path}.delay.percent")
        if fault.delay.WhichOneof("http_delay_type") != "fixed_delay":
            out.error("empty-fault", "delay.fixedDelay is missing", f"{path}.delay")
        else:
            out.duration(fault.delay, "fixed_delay", f"{path}.delay.fixedDelay")
    if fault.HasField("abort"):
        out.percent(fault.abort.percentage.value, f"{path}.abort.percentage")
        kind = fault.abort.WhichOneof("error_type")
        if kind == "http_status":
            if not 200 <= fault.abort.http_status <= 599:
                out.error(
                    "bad-status",
                    f"httpStatus {fault.abort.http_status} is not between 200 and 599",
                    f"{path}.abort.httpStatus",
                )
        elif kind == "grpc_status":
            if fault.abort.grpc_status not in GRPC_STATUS:
                out.error(
                    "bad-status",
                    f"grpcStatus {fault.abort.grpc_status!r} is not a gRPC status name",
                    f"{path}.abort.grpcStatus",
                )
        else:
            out.error("empty-fault", "abort needs httpStatus or grpcStatus", f"{path}.abort")


def _mirrors(rule: Any, path: str, out: Findings) -> None:
    if rule.HasField("mirror") and rule.mirrors:
        out.error("conflicting-actions", "mirror and mirrors exclude each other", path)
    if rule.HasField("mirror"):
        destination(rule.mirror, f"{path}.mirror", out)
    out.percent(rule.mirror_percentage.value, f"{path}.mirrorPercentage")
    out.percent(rule.mirror_percent.value, f"{path}.mirrorPercent")
    for index, mirror in enumerate(rule.mirrors):
        destination(mirror.destination, f"{path}.mirrors[{index}].destination", out)
        out.percent(mirror.percentage.value, f"{path}.mirrors[{index}].percentage")


def _cors(policy: Any, path: str, out: Findings) -> None:
    for index, origin in enumerate(policy.allow_origins):
        if origin.WhichOneof("match_type") is None:
            out.error("empty-match", "an origin needs one of exact, prefix and regex", f"{path}.allowOrigins[{index}]")
        _string(origin, f"{path}.allowOrigins[{index}]", out)
    for index, method in enumerate(policy.allow_methods):
        if method not in _METHODS:
            out.error("bad-method", f"{method!r} is not an HTTP method", f"{path}.allowMethods[{index}]")
    for field in ("allow_headers", "expose_headers"):
        for name in getattr(policy, field):
            out.header(name, path)
    if policy.max_age.nanos:
        out.error("bad-duration", "maxAge must be whole seconds", f"{path}.maxAge")


def _l4_match(block: Any, path: str, out: Findings) -> None:
    out.subnets(block.destination_subnets, f"{path}.destinationSubnets")
    if block.port:
        out.port(block.port, f"{path}.port")
    for index, name in enumerate(block.gateways):
        if name != "mesh":
            out.gateway_name(name, f"{path}.gateways[{index}]")


def _tls(rule: Any, path: str, hosts: list[str], namespace: str, out: Findings) -> None:
    full = [host if "." in host or host.startswith("*") else f"{host}.{namespace}.svc." for host in hosts]
    if not rule.match:
        out.error("no-match", "a tls rule needs a match with sniHosts", path)
    for index, block in enumerate(rule.match):
        here = f"{path}.match[{index}]"
        if not block.sni_hosts:
            out.error("no-match", "sniHosts is missing", here)
        for sni in block.sni_hosts:
            out.host(sni, f"{here}.sniHosts", ip=False)
            if not any(matches(host, sni) or (host.endswith(".svc.") and sni.startswith(host)) for host in full):
                out.error("bad-sni", f"SNI host {sni!r} is not among the VirtualService's hosts", f"{here}.sniHosts")
        _l4_match(block, here, out)
    if not rule.route:
        out.error("no-action", "a tls rule needs a route", path)
    destinations(rule.route, f"{path}.route", out)


def _tcp(rule: Any, path: str, out: Findings) -> None:
    for index, block in enumerate(rule.match):
        here = f"{path}.match[{index}]"
        _l4_match(block, here, out)
        if block.source_subnet and not is_ip(block.source_subnet):
            out.subnets([block.source_subnet], f"{here}.sourceSubnet")
    if not rule.route:
        out.error("no-action", "a tcp rule needs a route", path)
    destinations(rule.route, f"{path}.route", out)
