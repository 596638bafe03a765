"""What a route does beyond choosing an endpoint: xDS -> `nodeagent.rules.model`, and names for what is not carried."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from nodeagent.cache.decode import leftovers, parse, seconds
from nodeagent.rules.model import (
    Abort,
    Comparison,
    Cors,
    Delay,
    Destination,
    DirectReply,
    Edits,
    Field,
    HashOn,
    HashSource,
    Mirror,
    Origin,
    Placing,
    Redirect,
    Regex,
    Retry,
    Rewrite,
    Rule,
    Share,
)
from underpass.api import envoy

_PLACINGS: Final = (Placing.APPEND, Placing.IF_ABSENT, Placing.SET, Placing.IF_PRESENT)
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
#: Literal text, `%%`, and the one operator that is carried.
_VALUE: Final = re.compile(r"(?:[\t\x20-\x24\x26-\x7e\x80-\U0010ffff]|%%|%REQ\([A-Za-z0-9_-]+\)%)*")
#: Headers that say how long a message is and where it goes: nobody may rewrite them like others.
_FRAMING: Final = frozenset(
    {"connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
_DENOMINATORS: Final = {0: 100, 1: 10_000, 2: 1_000_000}
_CODES: Final = {0: 301, 1: 302, 2: 303, 3: 307, 4: 308}
#: Retry conditions that need what home does not look at.
_OTHER_CONDITIONS: Final = frozenset({"envoy-ratelimited", "retriable-headers", "http3-post-connect-failure"})
_PREVIOUS_HOSTS: Final = "envoy.retry_host_predicates.previous_hosts"
_FAULT: Final = "envoy.filters.http.fault"
_CORS: Final = "envoy.filters.http.cors"
_CORS_POLICY: Final = "envoy.extensions.filters.http.cors.v3.CorsPolicy"
_PER_FILTER: Final = {
    "envoy.filters.http.local_ratelimit": "rate-limit",
    "envoy.filters.http.ratelimit": "rate-limit",
    "envoy.filters.http.rbac": "authorization",
    "envoy.filters.http.jwt_authn": "jwt",
    "envoy.filters.http.ext_authz": "ext-authz",
}
#: Fields of a route, a virtual host and a table that this module reads.
MUTATIONS: Final = (
    "request_headers_to_add", "request_headers_to_remove", "response_headers_to_add", "response_headers_to_remove",
)  # fmt: skip


class Reader:
    """Collects the features that are not carried while messages are read."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    # ---- headers ----

    def edits(self, message: Any, side: str) -> Edits:
        """`{side}_headers_to_add` and `..._to_remove` of any message that has them."""
        put = [self._field(option) for option in getattr(message, f"{side}_headers_to_add")]
        remove = [name.lower() for name in getattr(message, f"{side}_headers_to_remove")]
        for name in remove:
            self._name(name)
        return Edits(tuple(remove), tuple(field for field in put if field is not None))

    def _field(self, option: Any) -> Field | None:
        self.refused += leftovers(option, ("header", "append", "append_action", "keep_empty_value"))
        self.refused += leftovers(option.header, ("key", "value"), {"raw_value": "header-raw-value"})
        name, value = option.header.key.lower(), option.header.value
        if option.HasField("append"):
            placing = Placing.APPEND if option.append.value else Placing.SET
        elif option.append_action < len(_PLACINGS):
            placing = _PLACINGS[option.append_action]
        else:
            self.refused.append("header-append-action")
            return None
        if not self._name(name):
            return None
        if not _VALUE.fullmatch(value):
            self.refused.append(f"header-format {value}")
            return None
        return Field(name, value, placing, option.keep_empty_value)

    def _name(self, name: str) -> bool:
        if name in _FRAMING or not _NAME.fullmatch(name):
            self.refused.append(f"edit-header {name}")
            return False
        return True

    # ---- forwarding ----

    def destinations(self, message: Any) -> tuple[Destination, ...]:
        """Header changes of the weighted clusters that have any."""
        found: dict[str, Destination] = {}
        names = [item.name for item in message.clusters]
        for item in message.clusters:
            made = Destination(item.name, self.edits(item, "request"), self.edits(item, "response"))
            if (made.request, made.response) != (Edits(), Edits()):
                found[item.name] = made
                if names.count(item.name) > 1:
                    # The kernel's choice says which cluster, not which of several destinations.
                    self.refused.append("destination-headers of one cluster that occurs twice")
        return tuple(found.values())

    def rewrite(self, message: Any, matched: int) -> Rewrite | None:
        """Of a route action. matched: bytes that the path condition covers, -1: the whole path."""
        regex = self.regex(message, "regex_rewrite")
        made = Rewrite(message.prefix_rewrite, matched, regex, message.host_rewrite_literal)
        if not _VALUE.fullmatch(made.authority) or " " in made.authority or "%" in made.authority:
            self.refused.append("host-rewrite")
        return made if made.path or made.regex or made.authority else None

    @staticmethod
    def regex(message: Any, field: str) -> Regex | None:
        """A `RegexMatchAndSubstitute`."""
        if not message.HasField(field):
            return None
        value = getattr(message, field)
        return Regex(value.pattern.regex, value.substitution)

    def mirrors(self, policies: Iterable[Any]) -> tuple[Mirror, ...]:
        """Mirror policies; those that never apply are left out."""
        found = []
        for policy in policies:
            share = Share()
            if policy.HasField("runtime_fraction"):
                share = self._share(policy.runtime_fraction.default_value)
            if not share.n:
                continue
            extra = leftovers(
                policy, ("cluster", "runtime_fraction", "trace_sampled", "disable_shadow_host_suffix_append")
            )
            self.refused += [f"mirror-{feature}" for feature in extra]
            found.append(Mirror(policy.cluster, share, not policy.disable_shadow_host_suffix_append))
        return tuple(found)

    def retry(self, message: Any) -> Retry:
        """A retry policy."""
        extra = leftovers(
            message,
            (
                "retry_on", "num_retries", "per_try_timeout", "retriable_status_codes", "retry_host_predicate",
                "host_selection_retry_max_attempts", "retry_back_off",
            ),
        )  # fmt: skip
        on = tuple(sorted({part.strip() for part in message.retry_on.split(",") if part.strip()}))
        extra += [f"on {condition}" for condition in _OTHER_CONDITIONS.intersection(on)]
        extra += [item.name for item in message.retry_host_predicate if item.name != _PREVIOUS_HOSTS]
        self.refused += [f"retry-{feature}" for feature in extra]
        made = Retry(
            on,
            message.num_retries.value if message.HasField("num_retries") else 1,
            seconds(message.per_try_timeout) if message.HasField("per_try_timeout") else 0.0,
            tuple(sorted(message.retriable_status_codes)),
        )
        if message.HasField("retry_back_off"):
            base = seconds(message.retry_back_off.base_interval)
            ceiling = 10 * base
            if message.retry_back_off.HasField("max_interval"):
                ceiling = seconds(message.retry_back_off.max_interval)
            made = replace(made, base=base, ceiling=ceiling)
        if any(item.name == _PREVIOUS_HOSTS for item in message.retry_host_predicate):
            made = replace(made, avoid=max(1, message.host_selection_retry_max_attempts))
        return made

    def hash_on(self, policies: Iterable[Any]) -> tuple[HashOn, ...]:
        """What a hash is made of."""
        found = []
        for policy in policies:
            kind = policy.WhichOneof("policy_specifier")
            extra: list[str] = []
            if kind == "header":
                extra = leftovers(policy.header, ("header_name",))
                made = HashOn(HashSource.HEADER, policy.header.header_name.lower(), policy.terminal)
            elif kind == "cookie":
                extra = leftovers(policy.cookie, ("name", "ttl", "path"))
                ttl = seconds(policy.cookie.ttl) if policy.cookie.HasField("ttl") else None
                made = HashOn(HashSource.COOKIE, policy.cookie.name, policy.terminal, ttl, policy.cookie.path)
            elif kind == "query_parameter":
                made = HashOn(HashSource.QUERY, policy.query_parameter.name, policy.terminal)
            elif kind == "connection_properties" and policy.connection_properties.source_ip:
                made = HashOn(HashSource.ADDRESS, terminal=policy.terminal)
            else:
                self.refused.append(f"hash-{(kind or 'nothing').replace('_', '-')}")
                continue
            self.refused += [f"hash-{kind}-{feature}" for feature in extra]
            found.append(made)
        return tuple(found)

    # ---- answers ----

    def redirect(self, message: Any, matched: int) -> Redirect:
        """A redirect action."""
        self.refused += leftovers(
            message,
            (
                "host_redirect", "port_redirect", "path_redirect", "prefix_rewrite", "regex_rewrite", "https_redirect",
                "scheme_redirect", "strip_query", "response_code",
            ),
        )  # fmt: skip
        if message.response_code not in _CODES:
            self.refused.append("redirect-code")
        regex = self.regex(message, "regex_rewrite")
        rewrite = Rewrite(message.prefix_rewrite, matched, regex)
        return Redirect(
            code=_CODES.get(message.response_code, 301),
            scheme="https" if message.https_redirect else message.scheme_redirect,
            host=message.host_redirect,
            port=message.port_redirect,
            path=message.path_redirect,
            strip_query=message.strip_query,
            rewrite=rewrite if rewrite.path or regex else None,
        )

    def direct(self, message: Any) -> DirectReply:
        """A direct response action."""
        self.refused += [f"direct-response-{name}" for name in leftovers(message, ("status", "body"))]
        kind = message.body.WhichOneof("specifier")
        body = message.body.inline_string if kind == "inline_string" else ""
        if kind == "inline_bytes":
            try:
                body = message.body.inline_bytes.decode()
            except UnicodeDecodeError:
                self.refused.append("direct-response-bytes")
        elif kind not in (None, "inline_string"):
            self.refused.append(f"direct-response-{kind}")
        return DirectReply(message.status, body)

    # ---- filters ----

    def filters(self, *levels: Any) -> Rule:
        """Per-filter configuration by name, of the route, the virtual host and the table: the first of them counts."""
        merged: dict[str, Any] = {}
        for level in reversed(levels):
            merged |= {name: level.typed_per_filter_config[name] for name in level.typed_per_filter_config}
        rule = Rule()
        for name in sorted(merged):
            url, body = merged[name].type_url, merged[name].value
            if name == _FAULT or url.endswith(".HTTPFault"):
                rule = self._fault(rule, parse(envoy.HTTPFault, body))
            elif name == _CORS and url.endswith(".cors.v3.CorsPolicy"):
                rule = replace(rule, cors=self._cors(parse(envoy.message(_CORS_POLICY), body)))
            else:
                self.refused.append(_PER_FILTER.get(name, "cors" if name == _CORS else f"filter {name}"))
        return rule

    def _fault(self, rule: Rule, message: Any) -> Rule:
        extra = leftovers(
            message, ("delay", "abort", "disable_downstream_cluster_stats"), {"response_rate_limit": "rate-limit"}
        )
        abort, delay = None, None
        if message.HasField("abort"):
            extra += leftovers(message.abort, ("http_status", "percentage"))
            share = self._share(message.abort.percentage)
            if share.n:
                abort = Abort(message.abort.http_status, share)
        if message.HasField("delay"):
            extra += leftovers(message.delay, ("fixed_delay", "percentage"))
            share = self._share(message.delay.percentage)
            if share.n:
                delay = Delay(seconds(message.delay.fixed_delay), share)
        self.refused += [f"fault-{feature}" for feature in extra]
        return replace(rule, abort=abort, delay=delay)

    def _cors(self, message: Any) -> Cors | None:
        extra = leftovers(
            message,
            (
                "allow_origin_string_match", "allow_methods", "allow_headers", "expose_headers", "max_age",
                "allow_credentials", "filter_enabled", "forward_not_matching_preflights",
            ),
        )  # fmt: skip
        if message.HasField("filter_enabled"):
            share = self._share(message.filter_enabled.default_value)
            if share.n == 0 and not extra:
                return None
            if share.n < share.of:
                extra.append("filter-enabled")
        origins = []
        for matcher in message.allow_origin_string_match:
            kind = matcher.WhichOneof("match_pattern")
            if kind in ("exact", "prefix", "suffix", "contains"):
                origins.append(Origin(getattr(matcher, kind), Comparison(kind), matcher.ignore_case))
            elif kind == "safe_regex":
                origins.append(Origin(matcher.safe_regex.regex, Comparison.REGEX))
            else:
                extra.append("origin-match")
        self.refused += [f"cors-{feature}" for feature in extra]
        forward = not message.HasField("forward_not_matching_preflights")
        return Cors(
            tuple(origins), message.allow_methods, message.allow_headers, message.expose_headers, message.max_age,
            message.allow_credentials.value, forward or message.forward_not_matching_preflights.value,
        )  # fmt: skip

    @staticmethod
    def _share(percent: Any) -> Share:
        return Share(percent.numerator, _DENOMINATORS.get(percent.denominator, 100))
