"""Entries of the pinned maps as records, ids replaced by what they stand for, and as one line each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from nodeagent.abi import numbers as n
from nodeagent.abi.codec import offset_of
from nodeagent.abi.layout import STRUCTS
from nodeagent.abi.numbers import ActionKind, Kind, Lb, NameKind, ServiceKind, State
from nodeagent.abi.records import (
    Action,
    Address,
    Cluster,
    Config,
    Endpoint,
    EndpointRun,
    EndpointStat,
    FlowKey,
    FlowStat,
    HomeRule,
    HomeStat,
    InterfaceStat,
    NameKey,
    Origin,
    PuntKey,
    Reply,
    RouteStat,
    Service,
    ServiceKey,
    Stock,
    StockKey,
    Table,
    Tuple,
    Vhost,
    VhostKey,
    Workload,
    address_text,
)

Entry = dict[str, Any]
"""One entry for JSON; `line` renders it."""

_TABLE_FLAGS: Final = (
    (n.TABLE_LIVE, "live"), (n.TABLE_WILD, "wild"), (n.TABLE_ANY, "any"), (n.TABLE_IGNORE_PORT, "ignore-port")
)  # fmt: skip
_CONN_FLAGS: Final = (
    (n.CF_UNSYNCED, "unsynced"), (n.CF_FIN, "fin"), (n.CF_ACTIVE, "active"), (n.CF_USEC_TS, "usec-ts"),
    (n.CF_STOCKED, "stocked"), (n.CF_TS, "timestamps"), (n.CF_CLOSED, "closed"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Context:
    """What the decoders need besides an entry: names by kind and id, and the interfaces' names by index."""

    names: Mapping[tuple[int, int], str] = field(default_factory=dict)
    interfaces: Mapping[int, str] = field(default_factory=dict)
    cgroups: Mapping[int, str] = field(default_factory=dict)

    def name(self, kind: NameKind, number: int) -> str:
        """What an id stands for, without what is only there to tell versions apart; `#id` if nobody knows."""
        text = self.names.get((kind, number))
        if text is None:
            return f"#{number}" if number else "-"
        if kind is NameKind.ROUTE:
            return _route_name(text, number)
        if kind in (NameKind.TABLE, NameKind.WORKLOAD):
            return text.partition(" @ " if kind is NameKind.TABLE else " ")[0]
        if kind in (NameKind.PROGRAM,):
            return text.partition(" ")[2] or text
        return text


def _route_name(text: str, number: int) -> str:
    try:
        data = json.loads(text)
        return f"{data['host']} {data.get('match', data.get('route', ''))}".strip()
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"#{number}"


def names(entries: Iterable[tuple[bytes, bytes]]) -> dict[tuple[int, int], str]:
    """The map `names`, decoded."""
    found = {}
    for key, text in entries:
        name = NameKey.unpack(key)
        found[name.kind, name.id] = text.rstrip(b"\0").decode("utf-8", "replace")
    return found


Decode = Callable[[bytes, bytes, Context], Entry | None]
"""Key and value to an entry; None for an array's unused element. Of per-CPU maps the values are summed beforehand."""


def _number(key: bytes) -> int:
    return int.from_bytes(key, "little")


def _config(_: bytes, value: bytes, __: Context) -> Entry:
    config = Config.unpack(value)
    return {
        "version": config.version,
        "generation": config.generation,
        "home_generation": config.home_generation,
        "home": [_address(peer) for peer in (config.home4, config.home6) if peer.family],
        "home_kind": "envoy" if config.home_kind == 1 else "underpass-home",
    }


def _address(peer: Address) -> str:
    return socket_text(peer.addr, peer.port)


def socket_text(addr: bytes, port: int) -> str:
    """`10.0.0.1:80` or `[fd00::1]:80`."""
    text = address_text(addr)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def _workload(key: bytes, value: bytes, context: Context) -> Entry | None:
    record = Workload.unpack(value)
    if not record.view:
        return None
    own = [address_text(addr) for addr in (record.addr4, record.addr6) if any(addr)]
    number = _number(key)
    return {
        "id": number,
        "workload": context.name(NameKind.WORKLOAD, number),
        "view": context.name(NameKind.VIEW, record.view),
        "addresses": own,
    }


def _service(key: bytes, value: bytes, context: Context) -> Entry:
    where, service = ServiceKey.unpack(key), Service.unpack(value)
    entry: Entry = {
        "view": context.name(NameKind.VIEW, where.view),
        "address": socket_text(where.addr, where.port),
        "kind": _label(ServiceKind, service.kind),
    }
    if service.kind == ServiceKind.HTTP:
        entry["table"] = f"{context.name(NameKind.TABLE, service.table)} #{service.table}"
    elif service.kind:
        entry["action"] = action_text(service.tcp, context)
    return entry


def _table(key: bytes, value: bytes, context: Context) -> Entry | None:
    flags = Table.unpack(value).flags
    number = _number(key)
    text = context.names.get((NameKind.TABLE, number), "")
    if not flags:
        return None
    return {
        "id": number,
        "table": text.partition(" @ ")[0] or f"#{number}",
        "view": text.partition(" @ ")[2],
        "flags": _bits(flags, _TABLE_FLAGS),
    }


def _vhost(key: bytes, value: bytes, context: Context) -> Entry:
    where, vhost = VhostKey.unpack(key), Vhost.unpack(value)
    entry: Entry = {
        "table": f"{context.name(NameKind.TABLE, where.table)} #{where.table}",
        "domain": where.host.decode("utf-8", "replace"),
    }
    if vhost.program:
        entry["program"] = f"{context.name(NameKind.PROGRAM, vhost.program)} #{vhost.program}"
    else:
        entry["action"] = action_text(vhost.direct, context)
    return entry


def action_text(action: Action, context: Context) -> str:
    """What a route does, in words."""
    if action.kind == ActionKind.PUNT:
        return f"punt {n.REASON_LABELS.get(action.reason, str(action.reason))}"
    if action.kind != ActionKind.CLUSTERS:
        return "no route"
    parts, before = [], 0
    for weight in action.to:
        name = context.name(NameKind.CLUSTER, weight.cluster) if weight.cluster else "(no such cluster)"
        parts.append(name if action.n == 1 else f"{weight.upto - before}x {name}")
        before = weight.upto
    return ", ".join(parts)


def _cluster(key: bytes, value: bytes, context: Context) -> Entry | None:
    cluster = Cluster.unpack(value)
    if not cluster.live:
        return None
    number = _number(key)
    slots = cluster.slot[: cluster.n]
    shares = {slot: slots.count(slot) for slot in dict.fromkeys(slots)}
    return {
        "id": number,
        "cluster": context.name(NameKind.CLUSTER, number),
        "balance": _label(Lb, cluster.lb),
        "endpoints": [
            context.name(NameKind.ENDPOINT, slot).partition(" ")[0] + (f" x{share}" if share > 1 else "")
            for slot, share in shares.items()
        ],
    }


def _endpoint(key: bytes, value: bytes, context: Context) -> Entry | None:
    record = Endpoint.unpack(value)
    if not record.family:
        return None
    number = _number(key)
    return {
        "id": number,
        "address": socket_text(record.addr, record.port),
        "workload": context.names.get((NameKind.ENDPOINT, number), "").partition(" ")[2].partition(";")[0],
        "live": bool(record.live),
    }


def _endpoint_stat(key: bytes, value: bytes, context: Context) -> Entry | None:
    stat = EndpointStat.unpack(value)
    number = _number(key)
    if not (stat.active or stat.requests or stat.errors):
        return None
    return {
        "id": number,
        "endpoint": context.name(NameKind.ENDPOINT, number).partition(" ")[0],
        "active": stat.active - (1 << 32 if stat.active >= 1 << 31 else 0),
        "requests": stat.requests,
        "errors": stat.errors,
    }


def _endpoint_run(key: bytes, value: bytes, context: Context) -> Entry | None:
    run = EndpointRun.unpack(value)
    if run == EndpointRun():
        return None
    number = _number(key)
    return {
        "id": number,
        "endpoint": context.name(NameKind.ENDPOINT, number).partition(" ")[0],
        "errors": run.errors,
        "gateway": run.gateway,
        "errors_peak": run.errors_peak,
        "gateway_peak": run.gateway_peak,
    }


def _name(key: bytes, value: bytes, _: Context) -> Entry:
    name = NameKey.unpack(key)
    text = value.rstrip(b"\0").decode("utf-8", "replace")
    return {"kind": _label(NameKind, name.kind), "id": name.id, "text": text}


def _conn(key: bytes, value: bytes, context: Context) -> Entry:
    where = Tuple.unpack(key)
    get = reader("up_conn", value)
    kind = get("kind")
    entry: Entry = {
        "kind": _label(Kind, kind),
        "local": socket_text(where.laddr, where.lport),
        "remote": socket_text(where.raddr, where.rport),
        "state": _label(State, get("state")),
        "flags": _bits(get("flags"), _CONN_FLAGS),
        "workload": context.name(NameKind.WORKLOAD, get("workload")),
    }
    at = offset_of("up_conn", "peer")
    peer = Tuple.unpack(value[at : at + Tuple.size()])
    if get("state") in (State.AWAY, State.LENT, State.DYING):
        entry["peer"] = f"{socket_text(peer.laddr, peer.lport)}>{socket_text(peer.raddr, peer.rport)}"
    if get("endpoint"):
        entry["endpoint"] = context.name(NameKind.ENDPOINT, get("endpoint")).partition(" ")[0]
    if kind == Kind.CLIENT:
        entry["table"] = context.name(NameKind.TABLE, get("table"))
    else:
        entry["requests"] = get("requests")
    return entry


def _stock(key: bytes, value: bytes, context: Context) -> Entry:
    where, stock = StockKey.unpack(key), Stock.unpack(value)
    return {
        "workload": context.name(NameKind.WORKLOAD, where.workload),
        "endpoint": context.name(NameKind.ENDPOINT, where.endpoint).partition(" ")[0],
        "free": stock.n,
        "misses": stock.misses,
        "ports": list(stock.port[: stock.n]),
    }


def _ports(key: bytes, value: bytes, _: Context) -> Entry | None:
    """One word of the set of local ports; the numbers are in network order, as packets carry them."""
    word, first = _number(value), _number(key) * 32
    ports = [int.from_bytes((first + bit).to_bytes(2, "little"), "big") for bit in range(32) if word >> bit & 1]
    return {"ports": sorted(ports)} if ports else None


def _counter(key: bytes, value: bytes, _: Context) -> Entry | None:
    label = n.COUNTER_LABELS.get(_number(key))
    return {"counter": label, "count": _number(value)} if label is not None else None


def _route_stat(key: bytes, value: bytes, context: Context) -> Entry | None:
    stat = RouteStat.unpack(value)
    number = _number(key)
    if not stat.kernel and (NameKind.ROUTE, number) not in context.names:
        return None
    return {"id": number, "route": context.name(NameKind.ROUTE, number), "kernel": stat.kernel}


def _punt_stat(key: bytes, value: bytes, context: Context) -> Entry:
    where = PuntKey.unpack(key)
    return {
        "route": context.name(NameKind.ROUTE, where.route) if where.route else "(not known)",
        "reason": n.REASON_LABELS.get(where.reason, str(where.reason)),
        "count": _number(value[:8]),
    }


def _flow_stat(key: bytes, value: bytes, context: Context) -> Entry:
    where, stat = FlowKey.unpack(key), FlowStat.unpack(value)
    return {
        "workload": context.name(NameKind.WORKLOAD, where.workload).partition(" ")[0],
        "route": context.name(NameKind.ROUTE, where.route),
        "endpoint": context.name(NameKind.ENDPOINT, where.endpoint).partition(" ")[0],
        "status": where.status or "cut",
        "requests": stat.requests,
        "asked": stat.asked,
        "answered": stat.answered,
        "mean_us": stat.us // stat.requests if stat.requests else 0,
    }


def _origin(key: bytes, value: bytes, context: Context) -> Entry:
    where, origin = Tuple.unpack(key), Origin.unpack(value)
    return {
        "local": socket_text(where.laddr, where.lport),
        "remote": socket_text(where.raddr, where.rport),
        "address": socket_text(origin.vip, origin.vport),
        "workload": context.name(NameKind.WORKLOAD, origin.workload),
    }


def _home_stat(key: bytes, value: bytes, context: Context) -> Entry:
    stat, number = HomeStat.unpack(value), _number(key)
    return {
        "route": context.name(NameKind.ROUTE, number) if number else "(not known)",
        "requests": stat.requests,
        "refused": stat.refused,
    }


def _home_rule(key: bytes, value: bytes, _: Context) -> Entry:
    rule = HomeRule.unpack(value)
    return {"rule": f"{_number(key):016x}", "text": rule.text[: rule.len].decode("utf-8", "replace")}


def _reply(key: bytes, value: bytes, _: Context) -> Entry:
    reply, number = Reply.unpack(value), _number(key)
    answers = n.REASON_LABELS.get(number, str(number)) if number < n.REPLY_FIRST else f"{number:016x}"
    return {"answers": answers, "status": reply.status, "text": reply.text[: reply.len].decode("utf-8", "replace")}


def _interface_stat(_: bytes, value: bytes, context: Context) -> Entry | None:
    stat = InterfaceStat.unpack(value)
    if not stat.ifindex:
        return None
    return {
        "interface": context.interfaces.get(stat.ifindex, f"#{stat.ifindex}"),
        "to_pod_packets": stat.to_pod_packets,
        "to_pod_bytes": stat.to_pod_bytes,
        "from_pod_packets": stat.from_pod_packets,
        "from_pod_bytes": stat.from_pod_bytes,
    }


def _cgroup(key: bytes, value: bytes, context: Context) -> Entry:
    number = _number(key[:8])
    return {
        "cgroup": context.cgroups.get(number, f"#{number}"),
        "workload": context.name(NameKind.WORKLOAD, _number(value[:4])),
    }


def _program(key: bytes, value: bytes, context: Context) -> Entry:
    """A route program; `value` is the whole of it, of which the heads of the sections are told."""
    get = reader("up_program", value)
    number = _number(key)
    digest, _, title = context.names.get((NameKind.PROGRAM, number), "").partition(" ")
    at, size = offset_of("up_program", "headers"), STRUCTS["up_header"][0]
    looked = []
    for index in range(min(get("n_headers"), n.HEADERS)):
        header = reader("up_header", value[at + index * size : at + (index + 1) * size])
        looked.append(header("name"))
    return {
        "id": number,
        "virtual_host": title or f"#{number}",
        "digest": digest,
        "routes": get("n_routes"),
        "headers": looked,
    }


DECODERS: Final[dict[str, Decode]] = {
    "config": _config,
    "workloads": _workload,
    "services": _service,
    "tables": _table,
    "vhosts": _vhost,
    "programs": _program,
    "clusters": _cluster,
    "endpoints": _endpoint,
    "endpoint_stats": _endpoint_stat,
    "endpoint_runs": _endpoint_run,
    "names": _name,
    "conns": _conn,
    "stocks": _stock,
    "ports": _ports,
    "counters": _counter,
    "route_stats": _route_stat,
    "punt_stats": _punt_stat,
    "home_stats": _home_stat,
    "home_rules": _home_rule,
    "replies": _reply,
    "reply_stats": _punt_stat,
    "flow_stats": _flow_stat,
    "origins": _origin,
    "interface_stats": _interface_stat,
    "cgroup_workload": _cgroup,
}
"""The maps that can be dumped. Of the others, `sockets` and `accepted` lie in sockets, `events` has its one reader."""

_SUMMED: Final = {
    "counters": ("Q", 1), "route_stats": ("Q", 2), "punt_stats": ("Q", 1), "reply_stats": ("Q", 1),
    "interface_stats": ("Q", 4),
    "flow_stats": ("Q", 14),  # the last ten are pairs of 32-bit counts: a sum of one does not reach its neighbour
}  # fmt: skip


def summed(name: str, slots: Iterable[bytes]) -> bytes:
    """The value of a per-CPU map over all CPUs: its counters added up; what follows them is the same on all."""
    _, count = _SUMMED[name]
    totals = [0] * count
    rest = b""
    for slot in slots:
        rest = slot[8 * count :]
        for index in range(count):
            totals[index] += int.from_bytes(slot[8 * index : 8 * index + 8], "little")
    return b"".join((total & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little") for total in totals) + rest


def reader(structure: str, value: bytes) -> Callable[[str], Any]:
    """A function from a field's name to its value: integers, and text for `char[]`."""
    layout = {name: (offset, kind, count) for name, offset, kind, count in STRUCTS[structure][1]}
    sizes = {"u8": 1, "u16": 2, "be16": 2, "u32": 4, "u64": 8}

    def get(name: str) -> Any:
        offset, kind, count = layout[name]
        if kind == "char":
            return value[offset : offset + count].rstrip(b"\0").decode("utf-8", "replace")
        return int.from_bytes(value[offset : offset + sizes[kind]], "big" if kind == "be16" else "little")

    return get


def decode(name: str, entries: Iterable[tuple[bytes, bytes]], context: Context) -> Iterator[Entry]:
    """The entries of a map that are in use, decoded."""
    decoder = DECODERS[name]
    for key, value in entries:
        entry = decoder(key, value, context)
        if entry is not None:
            yield entry


def line(entry: Mapping[str, Any]) -> str:
    """An entry as one line: `field=value`, empty fields left out."""
    return "  ".join(f"{key}={_shown(value)}" for key, value in entry.items() if value not in ("", [], None))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _label(kinds: Any, number: int) -> str:
    try:
        return str(kinds(number).name).lower().replace("_", "-")
    except ValueError:
        return str(number)


def _bits(flags: int, words: Iterable[tuple[int, str]]) -> list[str]:
    return [text for bit, text in words if flags & bit]


@dataclass(frozen=True, slots=True)
class Pressure:
    """How full a map is; `used` None where nobody can tell."""

    map: str
    used: int | None
    limit: int

    @property
    def share(self) -> float:
        """Used part, 0 to 1."""
        return self.used / self.limit if self.used is not None and self.limit else 0.0


#: Arrays whose elements are ids: their use is that of the names of a kind.
_BY_NAMES: Final = {
    "workloads": NameKind.WORKLOAD,
    "tables": NameKind.TABLE,
    "programs": NameKind.PROGRAM,
    "clusters": NameKind.CLUSTER,
    "endpoints": NameKind.ENDPOINT,
    "route_stats": NameKind.ROUTE,
}
#: Hashes that are counted by their keys.
COUNTED: Final = ("services", "vhosts", "names", "conns", "stocks", "punt_stats", "home_stats", "home_rules", "replies")


def pressure(
    limits: Mapping[str, int], counted: Mapping[str, int], names_: Mapping[tuple[int, int], str]
) -> list[Pressure]:
    """How full each map is, the fullest first. `limits`: max_entries by map; `counted`: keys of the hashes."""
    kinds: dict[int, int] = {}
    for kind, _ in names_:
        kinds[kind] = kinds.get(kind, 0) + 1
    found = []
    for name, limit in limits.items():
        if name in counted:
            found.append(Pressure(name, counted[name], limit))
        elif name in _BY_NAMES:
            found.append(Pressure(name, kinds.get(_BY_NAMES[name], 0), limit - 1))  # id 0 is nobody's
    return sorted(found, key=lambda item: (-item.share, item.map))
