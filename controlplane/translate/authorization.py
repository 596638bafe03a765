"""AuthorizationPolicy to Envoy's RBAC filters, as Istio translates it.  Pure.

Order of judgement: CUSTOM, AUDIT, DENY, ALLOW.  CUSTOM asks a provider of the mesh configuration; where it cannot be
asked, what its rules match is refused.  On a TCP port an attribute of HTTP can not be judged: a DENY rule
ignores it (and denies more), a CUSTOM rule too (and asks more), an ALLOW rule with one is left out (and allows less).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from controlplane.model.labels import get
from controlplane.model.mesh import Mesh, Provider
from controlplane.model.objects import Config
from controlplane.translate import external
from controlplane.translate.targets import Spot, attached
from underpass.api import envoy

HTTP_RBAC: Final = "envoy.filters.http.rbac"
TCP_RBAC: Final = "envoy.filters.network.rbac"
JWT: Final = "envoy.filters.http.jwt_authn"

ALLOW, DENY, AUDIT, CUSTOM = range(4)
_ACTIONS: Final = {ALLOW: "ALLOW", DENY: "DENY", AUDIT: "LOG", CUSTOM: "DENY"}


#: Where a tunnel's listener leaves the identity of who is at its other end.
PEER_PRINCIPAL: Final = "io.istio.peer_principal"


class _HttpOnlyError(Exception):
    """An attribute that only HTTP has, on a TCP port."""


@dataclass(frozen=True, slots=True)
class Trust:
    """The mesh's trust domain and other names for it: ``cluster.local`` in a policy stands for all of them."""

    domain: str = "cluster.local"
    aliases: tuple[str, ...] = ()
    #: Whether the peer's identity is that of the tunnel around the connection, as its listener left it (waypoints).
    tunnelled: bool = False


@dataclass(frozen=True, slots=True)
class Enforcement:
    """Filters to put before the router, and before the TCP proxy."""

    http: tuple[Any, ...] = ()
    tcp: tuple[Any, ...] = ()


def enforcement(mesh: Mesh, spot: Spot) -> Enforcement:
    """Return the filters that enforce the policies which count at ``spot``."""
    policies = sorted(attached(mesh.authorization_policies, mesh, spot), key=lambda policy: policy.meta.age)
    trust = Trust(mesh.trust_domain, tunnelled=spot.waypoint)
    http, tcp = (tuple(filters(policies, trust, mesh.providers, tcp=tcp)) for tcp in (False, True))
    return Enforcement(http, tcp)


def filters(
    policies: Iterable[Config], trust: Trust, providers: Mapping[str, Provider] | None = None, *, tcp: bool
) -> list[Any]:
    """Return one RBAC filter for each action that some policy has, and behind that of CUSTOM the one that asks."""
    listed = list(policies)
    custom = [policy for policy in listed if policy.spec.action == CUSTOM]
    out: list[Any] = _custom(custom, trust, providers or {}, tcp=tcp) if custom else []
    for action in (AUDIT, DENY, ALLOW):
        chosen = [policy for policy in listed if policy.spec.action == action]
        if not chosen:
            continue
        rules = envoy.RBAC(action=_ACTIONS[action])
        shadow = envoy.RBAC(action=_ACTIONS[action])
        enforced = shadowed = False
        for policy in chosen:
            dry = get(policy.meta.annotations, "istio.io/dry-run") == "true"
            enforced, shadowed = enforced or not dry, shadowed or dry
            for name, rule in _policies(policy, trust, tcp=tcp):
                (shadow if dry else rules).policies[name].CopyFrom(rule)
        prefix = "istio_dry_run_deny_" if shadowed and action == DENY else "istio_dry_run_allow_"
        out.append(_rbac(rules if enforced else None, shadow if shadowed else None, prefix, tcp=tcp))
    return out


def _custom(policies: list[Config], trust: Trust, providers: Mapping[str, Provider], *, tcp: bool) -> list[Any]:
    """Ask the provider about what the policies match; refuse what it cannot be asked about."""
    wanted = {policy.spec.provider.name for policy in policies}
    provider = providers.get(min(wanted)) if len(wanted) == 1 else None
    rules = envoy.RBAC(action=_ACTIONS[CUSTOM])
    if provider is None:
        # Nobody to ask, or several, whose verdicts could not be told apart: nothing is let in.
        rules.policies["default-deny-all-due-to-bad-CUSTOM-action"].CopyFrom(_everything())
        return [_rbac(rules, None, "istio_dry_run_allow_", tcp=tcp)]
    for policy in policies:
        for name, rule in _policies(policy, trust, tcp=tcp):
            rules.policies[f"{external.policy_prefix(provider.name)}-{name}"].CopyFrom(rule)
    if not tcp:
        return [_rbac(None, rules, external.SHADOW_PREFIX, tcp=tcp), external.http_filter(provider, HTTP_RBAC)]
    if provider.grpc:
        return [_rbac(None, rules, external.SHADOW_PREFIX, tcp=tcp), external.tcp_filter(provider, TCP_RBAC)]
    # An HTTP provider knows nothing of connections. Istio lets them pass; what nobody judged is refused here.
    return [_rbac(rules, None, external.SHADOW_PREFIX, tcp=tcp)]


def _rbac(rules: Any, shadow: Any, prefix: str, *, tcp: bool) -> Any:
    """A filter with rules in force, rules in the shadow, or both."""
    made: Any = envoy.NetworkRBAC(stat_prefix="tcp.") if tcp else envoy.HttpRBAC()
    made.shadow_rules_stat_prefix = prefix
    if rules is not None:
        made.rules.CopyFrom(rules)
    if shadow is not None:
        made.shadow_rules.CopyFrom(shadow)
    packed = envoy.pack_any(made)
    if tcp:
        return envoy.Filter(name=TCP_RBAC, typed_config=packed)
    return envoy.HttpFilter(name=HTTP_RBAC, typed_config=packed)


def _everything() -> Any:
    return envoy.Policy(permissions=[{"any": True}], principals=[{"any": True}])


def _policies(policy: Config, trust: Trust, *, tcp: bool) -> Iterable[tuple[str, Any]]:
    key = policy.meta.key
    prefix = f"ns[{key.namespace}]-policy[{key.name}]"
    if not policy.spec.rules:
        if policy.spec.action in (ALLOW, CUSTOM):  # matches nothing; by being there, ALLOW denies everything else
            yield (
                f"{prefix}-rule[0]",
                envoy.Policy(permissions=[{"not_rule": {"any": True}}], principals=[{"not_id": {"any": True}}]),
            )
        return
    for index, rule in enumerate(policy.spec.rules):
        made = _Rule(rule, key.namespace, trust, tcp=tcp, lenient=policy.spec.action in (DENY, CUSTOM)).translate()
        if made is not None:
            yield f"{prefix}-rule[{index}]", made


_Maker = Callable[[str], Any]


class _Rule:
    """One rule: any source, and any operation, and all conditions."""

    def __init__(self, rule: Any, namespace: str, trust: Trust, *, tcp: bool, lenient: bool) -> None:
        self._rule = rule
        self._namespace = namespace
        self._trust = trust
        self._tcp = tcp
        self._lenient = lenient

    def translate(self) -> Any:
        """Return Envoy's policy, or None where a TCP port can not judge the rule."""
        try:
            when_permissions, when_principals = self._conditions()
            permissions = [
                self._and_rules([*self._operation(item.operation), *when_permissions]) for item in self._rule.to
            ] or [self._and_rules(when_permissions)]
            sources = getattr(self._rule, "from")
            principals = [self._and_ids([*self._source(item.source), *when_principals]) for item in sources] or [
                self._and_ids(when_principals)
            ]
        except _HttpOnlyError:
            return None
        return envoy.Policy(permissions=permissions, principals=principals)

    @staticmethod
    def _and_rules(rules: list[Any]) -> Any:
        return envoy.Permission(and_rules={"rules": rules or [envoy.Permission(any=True)]})

    @staticmethod
    def _and_ids(ids: list[Any]) -> Any:
        return envoy.Principal(and_ids={"ids": ids or [envoy.Principal(any=True)]})

    # --------------------------------------------------------------------------------------------- combining
    def _http(self, make: Callable[[], list[Any]]) -> list[Any]:
        """Judge something that only HTTP has."""
        if not self._tcp:
            return make()
        if self._lenient:
            return []
        raise _HttpOnlyError

    @staticmethod
    def _permissions(make: _Maker, values: Iterable[str], excluded: Iterable[str]) -> list[Any]:
        out: list[Any] = []
        if wanted := [make(value) for value in values]:
            out.append(envoy.Permission(or_rules={"rules": wanted}))
        if unwanted := [make(value) for value in excluded]:
            out.append(envoy.Permission(not_rule=envoy.Permission(or_rules={"rules": unwanted})))
        return out

    @staticmethod
    def _principals(make: _Maker, values: Iterable[str], excluded: Iterable[str]) -> list[Any]:
        out: list[Any] = []
        if wanted := [make(value) for value in values]:
            out.append(envoy.Principal(or_ids={"ids": wanted}))
        if unwanted := [make(value) for value in excluded]:
            out.append(envoy.Principal(not_id=envoy.Principal(or_ids={"ids": unwanted})))
        return out

    # ------------------------------------------------------------------------------------- sources, operations
    def _source(self, source: Any) -> list[Any]:
        out = self._principals(self._principal, self._expand(source.principals), self._expand(source.not_principals))
        if source.request_principals or source.not_request_principals:
            out.extend(
                self._http(
                    lambda: self._principals(
                        self._request_principal, source.request_principals, source.not_request_principals
                    )
                )
            )
        out.extend(self._principals(self._space, source.namespaces, source.not_namespaces))
        out.extend(self._principals(self._account, source.service_accounts, source.not_service_accounts))
        out.extend(self._principals(self._trust_domain, source.trust_domains, source.not_trust_domains))
        out.extend(self._principals(_remote_ip, source.remote_ip_blocks, source.not_remote_ip_blocks))
        out.extend(self._principals(_direct_ip, source.ip_blocks, source.not_ip_blocks))
        return out

    def _operation(self, operation: Any) -> list[Any]:
        out: list[Any] = []
        for make, values, excluded in (
            (_host, operation.hosts, operation.not_hosts),
            (_method, operation.methods, operation.not_methods),
            (_path, operation.paths, operation.not_paths),
        ):
            if values or excluded:
                out.extend(self._http(partial(self._permissions, make, values, excluded)))
        out.extend(self._permissions(_port, operation.ports, operation.not_ports))
        return out

    # ------------------------------------------------------------------------------------------- conditions
    def _conditions(self) -> tuple[list[Any], list[Any]]:
        permissions: list[Any] = []
        principals: list[Any] = []
        for when in self._rule.when:
            values, excluded = list(when.values), list(when.not_values)
            key = str(when.key)
            if key == "destination.ip":
                permissions.extend(self._permissions(_destination_ip, values, excluded))
            elif key == "destination.port":
                permissions.extend(self._permissions(_port, values, excluded))
            elif key == "connection.sni":
                permissions.extend(self._permissions(_sni, values, excluded))
            elif key.startswith("experimental.envoy.filters."):
                permissions.extend(_experimental(key, values, excluded))
            else:
                principals.extend(self._who(key, values, excluded))
        return permissions, principals

    def _who(self, key: str, values: list[str], excluded: list[str]) -> list[Any]:
        if key == "source.ip":
            return self._principals(_direct_ip, values, excluded)
        if key == "remote.ip":
            return self._principals(_remote_ip, values, excluded)
        if key == "source.namespace":
            return self._principals(self._space, values, excluded)
        if key == "source.principal":
            return self._principals(self._principal, self._expand(values), self._expand(excluded))
        if key == "source.serviceAccount":
            return self._principals(self._account, values, excluded)
        if key.startswith("request.headers["):
            name = key[len("request.headers[") :].removesuffix("]")
            return self._http(lambda: self._principals(lambda v: _header_principal(name, v), values, excluded))
        if key == "request.auth.principal":
            return self._http(lambda: self._principals(self._request_principal, values, excluded))
        if key == "request.auth.audiences":
            return self._http(lambda: _claim(["aud"], values, excluded))
        if key == "request.auth.presenter":
            return self._http(lambda: _claim(["azp"], values, excluded))
        path = re.findall(r"\[([^\]]+)\]", key.removeprefix("request.auth.claims"))
        return self._http(lambda: _claim(path, values, excluded))

    # --------------------------------------------------------------------------------------------- identities
    def _expand(self, values: Iterable[str]) -> list[str]:
        """Put the mesh's trust domains in the place of ``cluster.local``."""
        domains = [self._trust.domain, *self._trust.aliases]
        out: list[str] = []
        for value in values:
            domain, slash, rest = value.partition("/")
            if slash and domain in ("cluster.local", *domains):
                out.extend(f"{name}/{rest}" for name in domains)
            else:
                out.append(value)
        return out

    def _peer(self, **matcher: Any) -> Any:
        if self._trust.tunnelled:
            return envoy.Principal(filter_state={"key": PEER_PRINCIPAL, "string_match": matcher})
        return envoy.Principal(authenticated={"principal_name": matcher})

    def _space(self, value: str) -> Any:
        regex = f".*/ns/{'.*'.join(_quote(part) for part in value.split('*'))}/.*"
        return self._peer(safe_regex={"regex": regex})

    def _trust_domain(self, value: str) -> Any:
        regex = f"spiffe://{'.*'.join(_quote(part) for part in value.split('*'))}/.*"
        return self._peer(safe_regex={"regex": regex})

    def _principal(self, value: str) -> Any:
        if value == "*":
            return self._peer(safe_regex={"regex": ".+"})
        if value.startswith("*"):
            return self._peer(safe_regex={"regex": f"spiffe://.*{_quote(value[1:])}"})
        if value.endswith("*"):
            return self._peer(prefix=f"spiffe://{value[:-1]}")
        return self._peer(exact=f"spiffe://{value}")

    def _account(self, value: str) -> Any:
        space, slash, name = value.partition("/")
        if not slash:
            space, name = self._namespace, value
        regex = f"spiffe://.+/ns/{_quote(space)}/(.+/|)sa/{_quote(name)}(/.+)?"
        return self._peer(safe_regex={"regex": regex})

    @staticmethod
    def _request_principal(value: str) -> Any:
        """``issuer/subject``: the last slash divides; wildcards stay at the ends."""
        if value == "*":
            issuer, subject = "*", "*"
        else:
            cut = value.rfind("/")
            if cut >= 0:
                issuer, subject = value[:cut], value[cut + 1 :]
            elif value.startswith("*"):
                issuer, subject = "*", value
            elif value.endswith("*"):
                issuer, subject = value, "*"
            else:
                issuer, subject = value, ""
        return envoy.Principal(
            and_ids={
                "ids": [
                    envoy.Principal(metadata=_metadata(["iss"], envoy.ValueMatcher(string_match=_text(issuer)))),
                    envoy.Principal(metadata=_metadata(["sub"], envoy.ValueMatcher(string_match=_text(subject)))),
                ]
            }
        )


def _quote(text: str) -> str:
    """Escape RE2's special characters, and no others."""
    return re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", text)


def _text(value: str, *, ignore_case: bool = False) -> Any:
    """Exact, ``prefix*``, ``*suffix``; ``*`` is any text but the empty."""
    if value == "*":
        return envoy.StringMatcher(safe_regex={"regex": ".+"})
    if value.startswith("*"):
        return envoy.StringMatcher(suffix=value[1:], ignore_case=ignore_case)
    if value.endswith("*"):
        return envoy.StringMatcher(prefix=value[:-1], ignore_case=ignore_case)
    return envoy.StringMatcher(exact=value, ignore_case=ignore_case)


def _cidr(value: str) -> Any:
    address, _, length = value.partition("/")
    width = ipaddress.ip_address(address).max_prefixlen
    return envoy.CidrRange(address_prefix=address, prefix_len={"value": int(length) if length else width})


def _remote_ip(value: str) -> Any:
    return envoy.Principal(remote_ip=_cidr(value))


def _direct_ip(value: str) -> Any:
    return envoy.Principal(direct_remote_ip=_cidr(value))


def _destination_ip(value: str) -> Any:
    return envoy.Permission(destination_ip=_cidr(value))


def _port(value: str) -> Any:
    return envoy.Permission(destination_port=int(value))


def _sni(value: str) -> Any:
    return envoy.Permission(requested_server_name=_text(value))


def _header(name: str, value: str, *, ignore_case: bool = False) -> Any:
    if value == "*":
        return envoy.HeaderMatcher(name=name, present_match=True)
    return envoy.HeaderMatcher(name=name, string_match=_text(value, ignore_case=ignore_case))


def _header_principal(name: str, value: str) -> Any:
    return envoy.Principal(header=_header(name, value))


def _host(value: str) -> Any:
    return envoy.Permission(header=_header(":authority", value, ignore_case=True))


def _method(value: str) -> Any:
    return envoy.Permission(header=_header(":method", value))


def _path(value: str) -> Any:
    if "{*}" in value or "{**}" in value:
        template = envoy.message("envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig")
        config = template(path_template=value.replace("{**}", "**").replace("{*}", "*"))
        return envoy.Permission(uri_template={"name": "uri-template", "typed_config": envoy.pack_any(config)})
    return envoy.Permission(url_path={"path": _text(value)})


def _metadata(path: list[str], value: Any, *, filter_name: str = JWT, payload: bool = True) -> Any:
    keys = ["payload", *path] if payload else path
    return envoy.MetadataMatcher(filter=filter_name, path=[{"key": key} for key in keys], value=value)


def _or_values(values: list[str]) -> Any:
    """One of several texts; a single one needs no list."""
    matchers = [envoy.ValueMatcher(string_match=_text(value)) for value in values]
    return matchers[0] if len(matchers) == 1 else envoy.ValueMatcher(or_match={"value_matchers": matchers})


def _claim(path: list[str], values: list[str], excluded: list[str]) -> list[Any]:
    """A claim that is a text, or a list of texts with one that matches."""

    def matcher(wanted: list[str]) -> Any:
        inner = _or_values(wanted)
        either = [envoy.ValueMatcher(list_match={"one_of": inner}), inner]
        return envoy.Principal(metadata=_metadata(path, envoy.ValueMatcher(or_match={"value_matchers": either})))

    out: list[Any] = []
    if values:
        out.append(matcher(values))
    if excluded:
        out.append(envoy.Principal(not_id=matcher(excluded)))
    return out


def _experimental(key: str, values: list[str], excluded: list[str]) -> list[Any]:
    """Dynamic metadata of any filter: ``experimental.envoy.filters.a.b[key]``; a value in brackets asks a list."""
    name, _, rest = key.removeprefix("experimental.").partition("[")

    def matcher(wanted: list[str]) -> Any:
        if all(value.startswith("[") and value.endswith("]") for value in wanted):
            value = envoy.ValueMatcher(list_match={"one_of": _or_values([text[1:-1] for text in wanted])})
        else:
            value = _or_values(wanted)
        return envoy.Permission(metadata=_metadata([rest.removesuffix("]")], value, filter_name=name, payload=False))

    out: list[Any] = []
    if values:
        out.append(matcher(values))
    if excluded:
        out.append(envoy.Permission(not_rule=matcher(excluded)))
    return out
