"""Which features the kernel does not do, and the reason it gives for each (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from nodeagent.abi.numbers import Reason
from nodeagent.cache.resources import Forward, OtherAction, Route
from nodeagent.rules.model import DirectReply, Edits, Redirect, Retry, Rule

#: Feature -> reason. What is not listed is ROUTE_OTHER; the feature's own name goes into the rejection either way.
REASONS: Final = {
    "path-regex": Reason.ROUTE_REGEX,
    "path-template": Reason.ROUTE_REGEX,
    "header-regex": Reason.ROUTE_REGEX,
    "query": Reason.ROUTE_QUERY,
    "rewrite": Reason.ROUTE_REWRITE,
    "request-headers": Reason.ROUTE_HEADERS,
    "response-headers": Reason.ROUTE_HEADERS,
    "redirect": Reason.ROUTE_REDIRECT,
    "require-tls": Reason.ROUTE_REDIRECT,
    "direct-response": Reason.ROUTE_DIRECT,
    "fault": Reason.ROUTE_FAULT,
    "fault-delay": Reason.ROUTE_FAULT,
    "fault-abort": Reason.ROUTE_FAULT,
    "fault-rate-limit": Reason.ROUTE_FAULT,
    "mirror": Reason.ROUTE_MIRROR,
    "cors": Reason.ROUTE_CORS,
    "timeout": Reason.ROUTE_TIMEOUT,
    "retry": Reason.ROUTE_RETRY,
    "consistent-hash": Reason.ROUTE_HASH,
    "header-hash": Reason.ROUTE_HASH,
    "balance ring-hash": Reason.ROUTE_HASH,
    "balance maglev": Reason.ROUTE_HASH,
    "capacity": Reason.CAPACITY,
    "idle-timeout": Reason.ROUTE_TIMEOUT,
    "auto-host-rewrite": Reason.ROUTE_REWRITE,
    "append-x-forwarded-host": Reason.ROUTE_HEADERS,
}
#: How the names of parts of features begin that nobody here does.
_FAMILIES: Final = {
    "retry-": Reason.ROUTE_RETRY,
    "hash-": Reason.ROUTE_HASH,
    "mirror-": Reason.ROUTE_MIRROR,
    "fault-": Reason.ROUTE_FAULT,
    "cors-": Reason.ROUTE_CORS,
    "redirect-": Reason.ROUTE_REDIRECT,
    "direct-response-": Reason.ROUTE_DIRECT,
    "header-": Reason.ROUTE_HEADERS,
    "edit-header ": Reason.ROUTE_HEADERS,
    "destination-headers": Reason.ROUTE_HEADERS,
    "host-rewrite": Reason.ROUTE_REWRITE,
    "path-rewrite": Reason.ROUTE_REWRITE,
}

#: Retry conditions that cannot occur on a wire that is already established, or that are gRPC's and HTTP/2's: a policy
#: of only these is kept by doing nothing. They are the whole of Istio's default policy.
IDLE_RETRIES: Final = frozenset(
    {"connect-failure", "refused-stream", "unavailable", "cancelled", "retriable-status-codes"}
)
#: Retry conditions without which a policy of numeric codes says nothing.
_CODES: Final = "retriable-status-codes"


def reason(features: Iterable[str]) -> Reason:
    """The reason that stands for several features: the most specific one, in the order of the enumeration."""
    found = [_reason(feature) for feature in features]
    if Reason.CAPACITY in found:
        return Reason.CAPACITY
    return min(found, default=Reason.ROUTE_OTHER)


def _reason(feature: str) -> Reason:
    families = (reason for start, reason in _FAMILIES.items() if feature.startswith(start))
    return REASONS.get(feature) or next(families, Reason.ROUTE_OTHER)


def idle(retry: Retry | None) -> bool:
    """Whether a retry policy is kept without ever retrying."""
    if retry is None or retry.attempts == 0:
        return True
    codes = _CODES in retry.on and bool(retry.codes)
    return not codes and not retry.per_try and IDLE_RETRIES.issuperset(retry.on)


def rule_of(route: Route) -> Rule:
    """All that a route asks of whoever carries it out, but for clusters that are not numbers yet."""
    action = route.action
    if isinstance(action, Redirect):
        return replace(route.rule, redirect=action)
    if isinstance(action, DirectReply):
        return replace(route.rule, direct=action)
    if isinstance(action, Forward):
        # None is Envoy's default
        return replace(route.rule, timeout=15.0 if action.timeout is None else action.timeout, retry=action.retry)
    return route.rule


def of_rule(rule: Rule) -> list[str]:
    """Features of a rule: what home does and the kernel does not. Empty for a rule that is kept by forwarding alone."""
    destinations = rule.destinations
    asked = {
        "request-headers": rule.request or any(d.request != Edits() for d in destinations),
        "response-headers": rule.response or any(d.response != Edits() for d in destinations),
        "rewrite": rule.rewrite,
        "redirect": rule.redirect,
        "direct-response": rule.direct,
        "fault-delay": rule.delay,
        "fault-abort": rule.abort,
        "mirror": rule.mirrors,
        "cors": rule.cors,
        "timeout": rule.timeout,
        "retry": not idle(rule.retry),
    }
    return [feature for feature, there in asked.items() if there]


def refused(route: Route) -> list[str]:
    """Features of a route's action that neither the kernel nor home does."""
    return [f"action {route.action.name}"] if isinstance(route.action, OtherAction) else []
