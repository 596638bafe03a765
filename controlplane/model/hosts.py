"""Host names with Istio's wildcards: ``*`` alone, or ``*.suffix`` (and ``*-suffix``), most specific first."""

from __future__ import annotations


def is_wildcard(host: str) -> bool:
    """Whether the host is a pattern."""
    return host.startswith("*")


def matches(pattern: str, host: str) -> bool:
    """Whether ``host`` (possibly itself a wildcard) is wholly covered by ``pattern``."""
    if not is_wildcard(pattern):
        return pattern == host
    return host.removeprefix("*").endswith(pattern[1:]) and len(host) >= len(pattern)


def overlap(a: str, b: str) -> bool:
    """Whether some name belongs to both."""
    return matches(a, b) or matches(b, a)


def specificity(host: str) -> tuple[bool, int, str]:
    """Sort key, most specific first: exact before wildcard, longer before shorter, then by text."""
    return (is_wildcard(host), -len(host), host)
