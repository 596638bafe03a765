"""Which features the kernel does not do, and the reason it gives for each (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from nodeagent.abi.numbers import Reason
from nodeagent.cache.resources import DirectResponse, Forward, Redirect, Retry, Route

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
    found = [REASONS.get(feature, Reason.ROUTE_OTHER) for feature in features]
    if Reason.CAPACITY in found:
        return Reason.CAPACITY
    return min(found, default=Reason.ROUTE_OTHER)


def idle(retry: Retry | None) -> bool:
    """Whether a retry policy is kept without ever retrying."""
    if retry is None or retry.attempts == 0:
        return True
    codes = _CODES in retry.on and bool(retry.codes)
    return not codes and not retry.unsupported and not retry.per_try_timeout and IDLE_RETRIES.issuperset(retry.on)


def of_action(route: Route) -> list[str]:
    """Features of a route's action that the kernel does not do."""
    action = route.action
    if isinstance(action, Redirect):
        return ["redirect"]
    if isinstance(action, DirectResponse):
        return ["direct-response"]
    if not isinstance(action, Forward):
        return [f"action {action.name}"]
    found = []
    if action.timeout != 0:  # None is Envoy's default, 15 s
        found.append("timeout")
    if not idle(action.retry):
        found.append("retry")
    return found
