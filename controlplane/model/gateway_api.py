"""Kubernetes Gateway API objects, and how they become rules that translation knows.  Pure.

Routes are combined per host, as the API wants it: all rules for one Service (or one Gateway listener and host name)
are sorted by how specific their matches are, whichever object they come from.  The result is a VirtualService in all
but name, marked with the Gateway API's own semantics and with the object, rule and line that each part comes from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
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
from controlplane.model.hosts import matches
from controlplane.model.identity import Key, Origin
from controlplane.model.labels import Labels, freeze, selects
from controlplane.model.objects import Config
from controlplane.model.targets import WAYPOINT_CLASS
from controlplane.model.verdict import Note
from underpass.api import istio

GROUP: Final = "gateway.networking.k8s.io"
#: Label of a gateway's own pods: the name of their Gateway.
GATEWAY_NAME: Final = f"{GROUP}/gateway-name"
#: Destination of a backend that can not be used; a cluster of this name never exists.
INVALID: Final = "invalid-backend.invalid"

_VIRTUAL_SERVICE: Final[Any] = istio.message("istio.networking.v1alpha3.VirtualService")
_GATEWAY: Final[Any] = istio.message("istio.networking.v1alpha3.Gateway")


@dataclass(frozen=True, slots=True)
class Combined:
    """Rules and gateways made of Gateway API objects, and remarks by object."""

    rules: tuple[Config, ...] = ()
    gateways: tuple[Config, ...] = ()
    notes: Mapping[Key, tuple[Note, ...]] = field(default_factory=dict)


class _Combiner:
    def __init__(
        self,
        objects: Iterable[GatewayObject],
        ports: Mapping[tuple[str, str], frozenset[int]],
        namespaces: Mapping[str, Labels],
        domain: str,
    ) -> None:
        self._ports = ports
        self._namespaces = namespaces
        self._domain = domain
        listed = sorted(objects, key=lambda item: item.meta.age)
        self._routes = [item for item in listed if isinstance(item, KubeRoute)]
        self._gateways = {
            (item.meta.key.namespace, item.meta.key.name): item for item in listed if isinstance(item, KubeGateway)
        }
        self._grants = [item for item in listed if isinstance(item, KubeReferenceGrant)]
        self.notes: dict[Key, list[Note]] = defaultdict(list)

    def _note(self, route: KubeRoute, line: int, code: str, message: str) -> None:
        self.notes[route.meta.key].append(Note(line, code, message))

    # ---------------------------------------------------------------------------------------------- attaching
    def run(self) -> Combined:
        mesh: dict[tuple[str, str, str], list[tuple[KubeRoute, ParentRef]]] = defaultdict(list)
        edge: dict[tuple[str, str, str, str], list[tuple[KubeRoute, ParentRef]]] = defaultdict(list)
        for route in self._routes:
            for rule in route.rules:
                if rule.problem:
                    self._note(route, rule.line, "not-honoured", f"the rule answers 500: {rule.problem}")
            for parent in route.parents:
                if parent.kind == "Service":
                    viewer = "" if parent.namespace == route.meta.key.namespace else route.meta.key.namespace
                    if (parent.namespace, parent.name) not in self._ports:
                        self._note(
                            route,
                            route.meta.source.line,
                            "unknown-parent",
                            f"no Service {parent.namespace}/{parent.name}: the route has no effect there",
                        )
                        continue
                    mesh[viewer, parent.namespace, parent.name].append((route, parent))
                else:
                    self._attach(route, parent, edge)
        # A client's own routes go before those of the service's owner.
        rules = [self._mesh_rule(key, found) for key, found in sorted(mesh.items(), key=lambda item: item[0][0] == "")]
        rules.extend(self._edge_rule(key, found) for key, found in sorted(edge.items()))
        edges = [gateway for gateway in self._gateways.values() if gateway.class_name != WAYPOINT_CLASS]
        gateways = [made for gateway in edges for made in self._servers(gateway)]
        return Combined(tuple(rules), tuple(gateways), {key: tuple(found) for key, found in self.notes.items()})

    def _attach(
        self,
        route: KubeRoute,
        parent: ParentRef,
        edge: dict[tuple[str, str, str, str], list[tuple[KubeRoute, ParentRef]]],
    ) -> None:
        gateway = self._gateways.get((parent.namespace, parent.name))
        line = route.meta.source.line
        if gateway is None:
            self._note(route, line, "unknown-parent", f"no Gateway {parent.namespace}/{parent.name}")
            return
        attached = False
        for listener in gateway.listeners:
            if parent.section not in ("", listener.name) or parent.port not in (0, listener.port):
                continue
            if not self._allowed(gateway, listener, route) or not _speaks(listener, route.meta.key.kind):
                continue
            for host in _hosts(listener.hostname, route.hostnames):
                edge[parent.namespace, parent.name, listener.name, host].append((route, parent))
                attached = True
        if not attached:
            self._note(
                route,
                line,
                "not-attached",
                f"no listener of Gateway {parent.namespace}/{parent.name} takes this route "
                "(name, port, protocol, host names or allowedRoutes)",
            )

    def _allowed(self, gateway: KubeGateway, listener: Listener, route: KubeRoute) -> bool:
        space = route.meta.key.namespace
        if listener.from_namespaces == "All":
            return True
        if listener.from_namespaces == "Selector":
            return selects(
                listener.selector, self._namespaces.get(space, freeze({"kubernetes.io/metadata.name": space}))
            )
        return space == gateway.meta.key.namespace

    # ----------------------------------------------------------------------------------------------- combining
    def _mesh_rule(self, key: tuple[str, str, str], found: list[tuple[KubeRoute, ParentRef]]) -> Config:
        viewer, space, name = key
        config = self._config(found, space, f"{name}-mesh", [f"{name}.{space}.svc.{self._domain}"])
        config.spec.export_to.append(viewer or "*")
        return config

    def _edge_rule(self, key: tuple[str, str, str, str], found: list[tuple[KubeRoute, ParentRef]]) -> Config:
        space, name, listener, host = key
        config = self._config(found, space, f"{name}-{listener}-{host}", [host])
        config.spec.gateways.append(f"{space}/{_server_name(name, listener)}")
        return config

    def _config(self, found: list[tuple[KubeRoute, ParentRef]], space: str, name: str, hosts: list[str]) -> Config:
        spec = _VIRTUAL_SERVICE(hosts=hosts)
        flat: list[tuple[Any, ...]] = []
        for route, parent in found:
            for index, rule in enumerate(route.rules):
                origin = Origin(route.meta, index, rule.line)
                if route.meta.key.kind in ("TLSRoute", "TCPRoute"):
                    self._l4(spec, route, rule, parent)
                    continue
                for block in rule.matches:
                    flat.append((_rank(block), route.meta.age, index, len(flat), route, rule, block, parent, origin))
        flat.sort(key=lambda item: item[:4])
        for _, _, _, _, route, rule, block, parent, _ in flat:
            spec.http.append(self._rule(route, rule, block, parent))
        first = min((route.meta for route, _ in found), key=lambda meta: meta.age)
        meta = replace(first, key=Key(first.key.kind, space, name))
        return Config(meta, spec, gateway_api=True, origins=tuple(item[8] for item in flat))

    def _rule(self, route: KubeRoute, rule: RouteRule, block: Any, parent: ParentRef) -> Any:
        out = type(rule.action)()
        out.CopyFrom(rule.action)
        match = out.match.add()
        match.CopyFrom(block)
        if parent.kind == "Service" and parent.port:
            match.port = parent.port
        if rule.problem:
            _answer_500(out)
            return out
        if out.HasField("redirect"):
            return out
        total = sum(max(0, backend.weight) for backend in rule.backends)
        if not total:
            _answer_500(out)
            return out
        for backend in rule.backends:
            if backend.weight <= 0:
                continue
            destination = out.route.add(weight=backend.weight)
            self._destination(destination.destination, route, rule, backend)
            if backend.headers is not None:
                destination.headers.CopyFrom(backend.headers)
        for backend, share in rule.mirrors:
            mirror = out.mirrors.add()
            mirror.percentage.value = share
            self._destination(mirror.destination, route, rule, backend)
        return out

    def _l4(self, spec: Any, route: KubeRoute, rule: RouteRule, parent: ParentRef) -> None:
        tls = route.meta.key.kind == "TLSRoute"
        out = spec.tls.add() if tls else spec.tcp.add()
        if tls:
            out.match.add(sni_hosts=list(route.hostnames) or list(spec.hosts))
        elif parent.kind == "Service" and parent.port:
            out.match.add(port=parent.port)
        for backend in rule.backends:
            if backend.weight > 0:
                self._destination(out.route.add(weight=backend.weight).destination, route, rule, backend)

    def _destination(self, target: Any, route: KubeRoute, rule: RouteRule, backend: BackendRef) -> None:
        problem = self._problem(route, backend)
        if problem:
            self._note(route, rule.line, "invalid-backend", f"{problem}: its share of the requests gets 500")
            target.host = INVALID
            target.port.number = backend.port or 80
        else:
            target.host = f"{backend.name}.{backend.namespace}.svc.{self._domain}"
            target.port.number = backend.port

    def _problem(self, route: KubeRoute, backend: BackendRef) -> str:
        where = f"{backend.kind} {backend.namespace}/{backend.name}"
        if backend.kind != "Service":
            return f"{where} is not a Service"
        ports = self._ports.get((backend.namespace, backend.name))
        if ports is None:
            return f"there is no {where}"
        if backend.port not in ports:
            return f"{where} has no port {backend.port}"
        space = route.meta.key.namespace
        if backend.namespace != space and not any(self._grants_it(grant, route, backend) for grant in self._grants):
            return f"{where} is in another namespace, and no ReferenceGrant there allows it"
        return ""

    @staticmethod
    def _grants_it(grant: KubeReferenceGrant, route: KubeRoute, backend: BackendRef) -> bool:
        return (
            grant.meta.key.namespace == backend.namespace
            and (route.meta.key.kind, route.meta.key.namespace) in grant.sources
            and any(kind == "Service" and name in ("", backend.name) for kind, name in grant.targets)
        )

    # ------------------------------------------------------------------------------------------------ gateways
    def _servers(self, gateway: KubeGateway) -> Iterable[Config]:
        """Each listener is a Gateway of its own, for the pods that are labelled with the Gateway's name."""
        key = gateway.meta.key
        for listener in gateway.listeners:
            if listener.protocol in ("HTTPS", "TLS") and listener.tls_mode != "Passthrough":
                self.notes[key].append(
                    Note(
                        listener.line,
                        "not-honoured",
                        f"listener {listener.name}: this control plane serves no secrets yet, so TLS can not end here",
                    )
                )
                continue
            spec = _GATEWAY(selector={GATEWAY_NAME: key.name})
            server = spec.servers.add(hosts=[f"*/{listener.hostname or '*'}"])
            server.port.number, server.port.name, server.port.protocol = listener.port, listener.name, listener.protocol
            if listener.protocol == "TLS":
                server.tls.mode = 0  # PASSTHROUGH
            meta = replace(gateway.meta, key=Key("Gateway", key.namespace, _server_name(key.name, listener.name)))
            yield Config(meta, spec, gateway_api=True)


def _server_name(gateway: str, listener: str) -> str:
    return f"{gateway}-istio-autogenerated-k8s-gateway-{listener}"


def _speaks(listener: Listener, kind: str) -> bool:
    wanted = {"TLSRoute": {"TLS"}, "TCPRoute": {"TCP"}}.get(kind, {"HTTP", "HTTPS"})
    return listener.protocol in wanted


def _hosts(listener: str, route: tuple[str, ...]) -> list[str]:
    """Host names that a listener and a route have in common."""
    pattern = listener or "*"
    if not route:
        return [pattern]
    out: list[str] = []
    for host in route:
        if matches(pattern, host):
            out.append(host)
        elif matches(host, pattern):
            out.append(pattern)
    return out


def _rank(block: Any) -> tuple[int, int, int, int, int]:
    """The API's order of precedence: exact path, longer prefix, method, more headers, more query parameters."""
    kind = block.uri.WhichOneof("match_type")
    exact = 0 if kind == "exact" else 1
    length = -len(block.uri.prefix if kind == "prefix" else block.uri.regex if kind == "regex" else "")
    return (exact, length, 0 if block.HasField("method") else 1, -len(block.headers), -len(block.query_params))


def _answer_500(rule: Any) -> None:
    for part in ("redirect", "rewrite", "timeout", "retries", "fault"):
        rule.ClearField(part)
    del rule.route[:]
    rule.direct_response.status = 500


def combine(
    objects: Iterable[GatewayObject],
    ports: Mapping[tuple[str, str], frozenset[int]],
    namespaces: Mapping[str, Labels],
    domain: str,
) -> Combined:
    """Combine Gateway API objects.

    ``ports`` are the ports of each Kubernetes Service by (namespace, name); ``namespaces`` the labels of namespaces.
    """
    return _Combiner(objects, ports, namespaces, domain).run()
