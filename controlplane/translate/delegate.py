"""Delegation: a root's rule and a delegate's rule become one.  Pure."""

from __future__ import annotations

from typing import Any

from underpass.api import istio

_HTTP_ROUTE = istio.message("istio.networking.v1alpha3.HTTPRoute")
_FIELDS = (
    "redirect", "direct_response", "rewrite", "timeout", "retries", "fault", "mirror", "mirror_percent",
    "mirror_percentage", "cors_policy", "headers",
)  # fmt: skip


def merge_delegates(root: Any, inner: Any) -> Any:
    """Return the delegate's rule narrowed to the root's matches; None when no request can match both.

    What the delegate does not set (timeout, retries, fault ...) comes from the root.  Names join as ``root-delegate``.
    """
    if inner.HasField("delegate"):
        return None  # one tier only
    blocks = _merge_matches(root.match, inner.match)
    if blocks is None:
        return None
    merged: Any = _HTTP_ROUTE()
    merged.CopyFrom(inner)
    del merged.match[:]
    merged.match.extend(blocks)
    merged.name = "-".join(part for part in (root.name, inner.name) if part)
    for field in _FIELDS:
        if root.HasField(field) and not merged.HasField(field):
            getattr(merged, field).CopyFrom(getattr(root, field))
    if root.mirrors and not merged.mirrors:
        merged.mirrors.extend(root.mirrors)
    return merged


def _merge_matches(root: Any, inner: Any) -> list[Any] | None:
    if not root:
        return list(inner)
    if not inner:
        return list(root)
    out = [block for a in root for b in inner if (block := _merge_block(a, b)) is not None]
    return out or None


def _merge_block(root: Any, inner: Any) -> Any:
    """Intersect two match blocks; None when they exclude each other."""
    merged = type(root)()
    merged.CopyFrom(inner)
    merged.name = "-".join(part for part in (root.name, inner.name) if part)
    for field in ("uri", "scheme", "method", "authority"):
        if not root.HasField(field):
            continue
        if not inner.HasField(field):
            getattr(merged, field).CopyFrom(getattr(root, field))
        elif not _within(getattr(inner, field), getattr(root, field)):
            return None
    for field in ("headers", "without_headers", "query_params"):
        mine, theirs = getattr(merged, field), getattr(root, field)
        for name in theirs:
            if name not in mine:
                mine[name].CopyFrom(theirs[name])
            elif not _within(mine[name], theirs[name]):
                return None
    for name in root.source_labels:
        if merged.source_labels.get(name, root.source_labels[name]) != root.source_labels[name]:
            return None
        merged.source_labels[name] = root.source_labels[name]
    for field in ("port", "source_namespace"):
        mine, theirs = getattr(merged, field), getattr(root, field)
        if theirs and mine and mine != theirs:
            return None
        setattr(merged, field, mine or theirs)
    merged.ignore_uri_case = inner.ignore_uri_case or root.ignore_uri_case
    merged.stat_prefix = inner.stat_prefix or root.stat_prefix
    if root.gateways:
        shared = [name for name in inner.gateways if name in root.gateways] if inner.gateways else list(root.gateways)
        if not shared:
            return None
        del merged.gateways[:]
        merged.gateways.extend(shared)
    return merged


def _within(inner: Any, root: Any) -> bool:
    """Whether everything that ``inner`` matches, ``root`` matches too.  Regexes are compared by text only."""
    a, b = inner.WhichOneof("match_type"), root.WhichOneof("match_type")
    if b is None:
        return True
    if "regex" in (a, b):
        return bool(inner == root)
    if a is None:
        return False
    if b == "exact":
        return a == "exact" and bool(inner.exact == root.exact)
    text = inner.exact if a == "exact" else inner.prefix
    return bool(text.startswith(root.prefix))
