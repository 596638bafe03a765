"""Resources for gRPC's own xDS client (``xds:///host:port``), which has no proxy.  Pure.

A Listener is named exactly as the application dialled: ``host:port``, short names included.  It holds an API listener
that points to the route configuration ``outbound|port||fqdn`` with one virtual host.
"""

from __future__ import annotations

from typing import Any

from controlplane.model.mesh import HTTP_PROTOCOLS, Mesh, Service, fqdn
from controlplane.translate import names
from controlplane.translate.memo import Memo
from controlplane.translate.scope import Scope
from controlplane.translate.tls import ads_source
from controlplane.translate.virtual_hosts import alternative_names, group_hosts
from underpass.api import envoy


def _dialled(hostname: str, scope: Scope) -> list[str]:
    return [hostname, *alternative_names(hostname, scope.key.domain)]


def _serves(service: Service, number: int) -> bool:
    port = service.port(number)
    return port is not None and (port.protocol in HTTP_PROTOCOLS or port.protocol in ("AUTO", "TCP"))


def resources(scope: Scope, mesh: Mesh, memo: Memo) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return listeners under every name that a service can be dialled by, and the route configurations."""
    lds: dict[str, Any] = {}
    rds: dict[str, Any] = {}
    grouped: dict[int, list[Any]] = {}
    for service in scope.services.values():
        for port in service.ports:
            if not _serves(service, port.number):
                continue
            if port.number not in grouped:
                grouped[port.number] = group_hosts(scope, mesh, port.number, memo)
            for host in _dialled(service.hostname, scope):
                name = names.domain(host, port.number)
                lds[name] = _listener(name, names.cluster(service.hostname, port.number))
            rds[names.cluster(service.hostname, port.number)] = _routes(
                service, port.number, grouped[port.number], scope
            )
    return lds, rds


def listener_for(scope: Scope, name: str) -> Any:
    """Return a Listener called ``name``, or None when no service is called so.  ``host`` alone means its sole port."""
    host, colon, text = name.rpartition(":")
    if not colon:
        host, text = name, ""
    number = int(text) if text.isdigit() else 0
    for candidate in (
        host.rstrip("."),
        fqdn(host, scope.key.namespace, _suffix(scope)),
        f"{host}.{_svc(scope)}",
        f"{host}.{_suffix(scope)}",
    ):
        service = scope.service(candidate)
        if service is None:
            continue
        if not number and len(service.ports) == 1:
            number = service.ports[0].number
        if number and service.port(number) is not None:
            return _listener(name, names.cluster(service.hostname, number))
    return None


def _svc(scope: Scope) -> str:
    return f"svc.{_suffix(scope)}"


def _suffix(scope: Scope) -> str:
    return scope.key.domain.partition(".svc.")[2] or "cluster.local"


def _listener(name: str, route: str) -> Any:
    """GRPC accepts the fault and router filters only, and wants the terminal router."""
    manager = envoy.HttpConnectionManager(
        http_filters=[
            envoy.HttpFilter(name="envoy.filters.http.fault", typed_config=envoy.pack_any(envoy.HTTPFault())),
            envoy.HttpFilter(name="envoy.filters.http.router", typed_config=envoy.pack_any(envoy.Router())),
        ],
        rds=envoy.Rds(route_config_name=route, config_source=ads_source()),
    )
    return envoy.Listener(name=name, api_listener={"api_listener": envoy.pack_any(manager)})


def _routes(service: Service, number: int, groups: list[Any], scope: Scope) -> Any:
    name = names.cluster(service.hostname, number)
    domains: list[str] = []
    for host in _dialled(service.hostname, scope):
        domains.extend([host, names.domain(host, number)])
    found = next((group for group in groups if any(item.hostname == service.hostname for item in group.services)), None)
    made = envoy.VirtualHost(name=names.domain(service.hostname, number), domains=domains)
    if found is not None:
        made.routes.extend(found.routes)
    else:
        route = made.routes.add(name="default", match={"prefix": ""})
        route.route.cluster = name
    return envoy.RouteConfiguration(name=name, virtual_hosts=[made])
