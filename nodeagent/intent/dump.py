"""An intent as lines for people and for tests: ids are replaced by what they stand for (pure)."""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.abi import numbers as n
from nodeagent.abi.numbers import ActionKind, Lb, NameKind, ServiceKind
from nodeagent.abi.records import (
    Action,
    Cluster,
    HomeRule,
    NameKey,
    Service,
    ServiceKey,
    Vhost,
    VhostKey,
    address_text,
)
from nodeagent.abi.records import Table as TableRecord
from nodeagent.intent.model import Intent, Table

_FLAGS = ((n.TABLE_LIVE, "live"), (n.TABLE_WILD, "wild"), (n.TABLE_ANY, "any"), (n.TABLE_IGNORE_PORT, "ignore-port"))


def lines(intent: Intent) -> list[str]:
    """One line per service, table, virtual host, route, cluster and rejection, sorted within each sort."""
    return list(_Dump(intent).lines())


class _Dump:
    def __init__(self, intent: Intent) -> None:
        self._intent = intent
        self._names: dict[tuple[int, int], str] = {}
        for key, text in intent.entries[Table.NAMES].items():
            name = NameKey.unpack(key)
            self._names[name.kind, name.id] = text.rstrip(b"\0").decode()

    def lines(self) -> Iterator[str]:
        entries = self._intent.entries
        services = [(ServiceKey.unpack(key), value) for key, value in entries[Table.SERVICES].items()]
        for service, value in sorted(services, key=lambda item: _service_order(item[0])):
            yield self._service(service, Service.unpack(value))
        for key, value in sorted(entries[Table.TABLES].items()):
            flags = TableRecord.unpack(value).flags
            words = " ".join(word for bit, word in _FLAGS if flags & bit)
            yield f"table {self._name(NameKind.TABLE, int.from_bytes(key, 'little'))}: {words}"
        vhosts: dict[tuple[int, str], list[str]] = {}
        for key, value in entries[Table.VHOSTS].items():
            where = VhostKey.unpack(key)
            vhosts.setdefault((where.table, self._vhost(Vhost.unpack(value))), []).append(where.host.decode())
        for (table, what), hosts in sorted(vhosts.items(), key=lambda i: (i[0][0], sorted(i[1]))):
            name = self._name(NameKind.TABLE, table).partition(" @ ")[0]
            yield f"vhost {name} [{' '.join(sorted(hosts))}]: {what}"
        for number, program in sorted(self._intent.programs.items(), key=lambda i: self._program(i[0])):
            for index, action in enumerate(program.actions):
                info = self._intent.routes.get(action.route)
                match = info.match if info else "?"
                yield f"program {self._program(number)} {index}: {match} -> {self._action(action)}"
        for key, value in sorted(entries[Table.CLUSTERS].items(), key=lambda i: self._cluster_name(i[0])):
            yield f"cluster {self._cluster_name(key)}: {self._cluster(Cluster.unpack(value))}"
        for r in sorted(self._intent.rejections, key=lambda r: (r.view, r.kind, r.name, r.reason)):
            yield f"reject {r.kind} {r.name}: {r.reason} ({r.effect})"

    def _name(self, kind: NameKind, number: int) -> str:
        return self._names.get((kind, number), f"#{number}" if number else "none")

    def _program(self, number: int) -> str:
        return self._name(NameKind.PROGRAM, number).partition(" ")[2]

    def _cluster_name(self, key: bytes) -> str:
        return self._name(NameKind.CLUSTER, int.from_bytes(key, "little"))

    def _service(self, key: ServiceKey, service: Service) -> str:
        view = self._name(NameKind.VIEW, key.view)
        what = {ServiceKind.HTTP: "http", ServiceKind.TCP: "tcp", ServiceKind.REFUSE: "refuse"}.get(
            ServiceKind(service.kind), "none"
        )
        if service.kind == ServiceKind.HTTP:
            what += f" {self._name(NameKind.TABLE, service.table).partition(' @ ')[0]}"
        elif service.kind == ServiceKind.TCP:
            what += f" {self._action(service.tcp)}"
        return f"service {view} {address_text(key.addr)} {key.port}: {what}"

    def _vhost(self, vhost: Vhost) -> str:
        return f"program {self._program(vhost.program)}" if vhost.program else self._action(vhost.direct)

    def _action(self, action: Action) -> str:
        if action.kind == ActionKind.PUNT:
            punt = f"punt {n.REASON_LABELS.get(action.reason, str(action.reason))}"
            if not action.rule:
                return punt
            rule = HomeRule.unpack(self._intent.entries[Table.RULES][action.rule.to_bytes(8, "little")])
            return f"{punt}, home {rule.text[: rule.len].decode()}" + (
                f" to {self._choice(action)}" if action.n else ""
            )
        return self._choice(action) if action.kind == ActionKind.CLUSTERS else "no route"

    def _choice(self, action: Action) -> str:
        parts, before = [], 0
        for weight in action.to:
            name = self._name(NameKind.CLUSTER, weight.cluster)
            parts.append(name if action.n == 1 else f"{weight.upto - before}x {name}")
            before = weight.upto
        return ", ".join(parts)

    def _cluster(self, cluster: Cluster) -> str:
        names = [self._name(NameKind.ENDPOINT, slot).partition(" ")[0] for slot in cluster.slot]
        return f"{Lb(cluster.lb).name.lower().replace('_', '-')} {' '.join(names) or '(no endpoints)'}"


def _service_order(key: ServiceKey) -> tuple[int, int, bytes]:
    return key.view, key.port, key.addr
