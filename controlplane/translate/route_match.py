"""HTTP match conditions to Envoy's.  Pure."""

from __future__ import annotations

import re
from typing import Any

from underpass.api import envoy


def string_matcher(match: Any) -> Any:
    """Istio's StringMatch as Envoy's; None when nothing is set."""
    kind = match.WhichOneof("match_type")
    if kind == "exact":
        return envoy.StringMatcher(exact=match.exact)
    if kind == "prefix":
        return envoy.StringMatcher(prefix=match.prefix)
    if kind == "regex":
        return envoy.StringMatcher(safe_regex=envoy.RegexMatcher(regex=match.regex))
    return None


def is_presence(match: Any) -> bool:
    """An empty match, and the regex ``*``, ask only whether the header is there."""
    kind = match.WhichOneof("match_type")
    return kind is None or (kind == "regex" and match.regex == "*")


def header_matcher(name: str, match: Any) -> Any:
    """Match one header (or pseudo-header)."""
    if is_presence(match):
        return envoy.HeaderMatcher(name=name, present_match=True)
    return envoy.HeaderMatcher(name=name, string_match=string_matcher(match))


_CLAIM_PREFIX = "@request.auth.claims"


def claim_path(name: str) -> list[str] | None:
    """``@request.auth.claims.a.b`` or ``@request.auth.claims[a][b]`` as a path; None for an ordinary header."""
    if not name.lower().startswith(_CLAIM_PREFIX):
        return None
    rest = name[len(_CLAIM_PREFIX) :]
    if rest.startswith("."):
        return [part for part in rest[1:].split(".") if part]
    return re.findall(r"\[([^\]]+)\]", rest)


def _claim_matcher(path: list[str], match: Any, *, invert: bool) -> Any:
    value = string_matcher(match) or envoy.StringMatcher(safe_regex=envoy.RegexMatcher(regex=".+"))
    segment = envoy.MetadataMatcher.PathSegment
    return envoy.MetadataMatcher(
        filter="envoy.filters.http.jwt_authn",
        path=[segment(key=part) for part in ("payload", *path)],
        value=envoy.ValueMatcher(list_match={"one_of": {"string_match": value}}),
        invert=invert,
    )


def route_match(block: Any, *, gateway_api: bool = False) -> Any:
    """Translate one match block; None stands for "every request".

    ``gateway_api``: a prefix is one of whole path segments, as the Gateway API says, not of characters.
    """
    if block is None:
        return envoy.RouteMatch(prefix="/")
    headers: list[Any] = []
    metadata: list[Any] = []
    for name in sorted(block.headers):
        path = claim_path(name)
        if path is None:
            headers.append(header_matcher(name, block.headers[name]))
        else:
            metadata.append(_claim_matcher(path, block.headers[name], invert=False))
    for name in sorted(block.without_headers):
        match = block.without_headers[name]
        path = claim_path(name)
        if path is not None:
            metadata.append(_claim_matcher(path, match, invert=True))
            continue
        matcher = header_matcher(name, match)
        matcher.invert_match = True
        if not is_presence(match):
            matcher.treat_missing_header_as_empty = True
        headers.append(matcher)
    headers.sort(key=lambda matcher: str(matcher.name))
    for field, name in (("method", ":method"), ("authority", ":authority"), ("scheme", ":scheme")):
        if block.HasField(field):
            headers.append(header_matcher(name, getattr(block, field)))
    out = envoy.RouteMatch(
        headers=headers,
        dynamic_metadata=metadata,
        query_parameters=[_query(name, block.query_params[name]) for name in sorted(block.query_params)],
        case_sensitive=envoy.BoolValue(value=not block.ignore_uri_case),
    )
    kind = block.uri.WhichOneof("match_type")
    if kind == "exact":
        out.path = block.uri.exact
    elif kind == "regex":
        out.safe_regex.regex = block.uri.regex
    elif kind == "prefix" and gateway_api and block.uri.prefix.rstrip("/"):
        out.path_separated_prefix = block.uri.prefix.rstrip("/")
    else:
        out.prefix = block.uri.prefix if kind == "prefix" else "/"
    return out


def _query(name: str, match: Any) -> Any:
    if is_presence(match):
        return envoy.QueryParameterMatcher(name=name, present_match=True)
    return envoy.QueryParameterMatcher(name=name, string_match=string_matcher(match))


def is_catch_all(match: Any) -> bool:
    """Whether an Envoy match takes every request: routes behind it are never reached."""
    kind = match.WhichOneof("path_specifier")
    whole = (kind == "prefix" and match.prefix == "/") or (kind == "safe_regex" and match.safe_regex.regex == ".*")
    return whole and not (match.headers or match.query_parameters or match.dynamic_metadata)
