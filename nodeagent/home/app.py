"""`underpass-home`: one process and one thread per node.

It needs what an agent has pinned, and waits for that; after that no agent is needed for it to serve.
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import json
import logging
import os
import random
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from nodeagent.abi.codec import offset_of
from nodeagent.abi.layout import STRUCTS
from nodeagent.abi.numbers import ABI_VERSION, Counter, EventType
from nodeagent.bpf import features
from nodeagent.bpf.abc import Kernel, Map
from nodeagent.bpf.errors import BpfError, NotPinnedError
from nodeagent.bpf.kernel import LinuxKernel
from nodeagent.core.decide import MAPS as DECISION_MAPS
from nodeagent.core.decide import Decider
from nodeagent.core.libcore import Core
from nodeagent.errors import AgentError, LayoutError, SettingsError
from nodeagent.home.clients import Clients
from nodeagent.home.control import TUPLE_SIZE, Control
from nodeagent.home.loop import IN, Loop
from nodeagent.home.pods import Pods
from nodeagent.home.stats import Stats
from nodeagent.home.stock import Limits
from nodeagent.home.sweep import Sweep
from nodeagent.home.upstreams import Upstreams
from nodeagent.node.attach import Attacher
from nodeagent.node.paths import NodePaths
from nodeagent.node.programs import CONTROL, HOME_SLOTS, Loaded, recover
from nodeagent.node.registry import Registry

log = logging.getLogger("underpass.home")

MAPS = (*DECISION_MAPS, "config", "cgroup_workload", "conns", "stocks", "events", "sockets", "home_stats", "counters")
_LAYOUTS = {
    "config": "up_config", "conns": "up_conn", "stocks": "up_stock", "endpoints": "up_endpoint", "tables": "up_table",
    "clusters": "up_cluster", "vhosts": "up_vhost", "sockets": "up_socket", "home_stats": "up_home_stat",
    "home_rules": "up_home_rule",
}  # fmt: skip
_VERSION, _GENERATION, _HOME = (offset_of("up_config", n) for n in ("version", "generation", "home_generation"))
_EVENT = struct.Struct("=IIIIQ")  # type, workload, endpoint, cluster, cookie: see the assertion
_TUPLE = offset_of("up_event", "tuple")
_EVENTS_AT_ONCE = 32
_WANT, _DEAD, _CLOSED = (int(kind) for kind in (EventType.WANT, EventType.DEAD, EventType.CLOSED))
assert [offset_of("up_event", n) for n in ("type", "workload", "endpoint", "cluster", "cookie")] == [0, 4, 8, 12, 16]
_DEFAULT_MSS = 1360
"""Fits into every endpoint's segments even behind IPv6 on an overlay of 1450 bytes."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line says.

    listen: home addresses; none where an Envoy is the home peer. standby: they are ours only while no Envoy has them.
    """

    node: str
    listen: tuple[tuple[str, int], ...]
    run_dir: Path | None
    bpffs: Path | None
    mss: int
    drain: float
    max_upstreams: int
    verbose: bool
    standby: bool = False


def parse_address(text: str) -> tuple[str, int]:
    """`IP:PORT`, an IPv6 address in brackets. SettingsError."""
    host, _, port = text.rpartition(":")
    try:
        address = str(ip_address(host.removeprefix("[").removesuffix("]")))
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"{port!r} is no port")
    except ValueError as cause:
        raise SettingsError(f"--listen {text}", str(cause), "write 10.0.0.1:15001 or [fd00::1]:15001") from None
    return address, int(port)


def parse_arguments(arguments: Sequence[str]) -> Settings:
    """Reads the command line. SettingsError, or SystemExit from argparse."""
    parser = argparse.ArgumentParser(prog="underpass-home", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--node", default="node-1", help="name of this node (node-1)")
    parser.add_argument(
        "--listen", action="append", default=[], metavar="IP:PORT", help="home address; may be repeated"
    )
    parser.add_argument(
        "--upstreams-only", action="store_true", help="an Envoy is the home peer: keep upstreams, listen nowhere"
    )
    parser.add_argument(
        "--standby", action="store_true", help="take the home addresses only while no Envoy listens there"
    )
    parser.add_argument("--run-dir", type=Path, help="directory of the node (/run/underpass/NODE)")
    parser.add_argument("--bpffs", type=Path, help="the node's pins (<bpffs>/underpass/NODE)")
    parser.add_argument("--mss", type=int, default=_DEFAULT_MSS, help=f"largest segment of clients ({_DEFAULT_MSS})")
    parser.add_argument(
        "--drain", type=float, default=5.0, metavar="S", help="longest wait for requests at the end (5)"
    )
    parser.add_argument(
        "--max-upstreams", type=int, default=1024, metavar="N", help="most for one workload and endpoint (1024)"
    )
    parser.add_argument("--verbose", action="store_true", help="log more")
    given = parser.parse_args(arguments)
    if not 536 <= given.mss <= 9000 and given.mss != 0:
        raise SettingsError(f"--mss {given.mss}", "not between 536 and 9000", "0 leaves it to the interface")
    if not given.node or "/" in given.node or "." in given.node:
        raise SettingsError(f"--node {given.node!r}", "a name without slashes and dots is needed")
    if given.max_upstreams < 1:
        raise SettingsError(f"--max-upstreams {given.max_upstreams}", "at least one is needed")
    if given.upstreams_only and given.listen:
        raise SettingsError(
            "--upstreams-only", "--listen is given, too", "name the Envoy to the agent: --home, --home-is-envoy"
        )
    if given.standby and not given.listen:
        raise SettingsError("--standby", "there is no --listen", "give the home addresses, too")
    listen = tuple(parse_address(text) for text in given.listen)
    return Settings(
        given.node, listen, given.run_dir, given.bpffs, given.mss, given.drain, given.max_upstreams, given.verbose,
        given.standby,
    )  # fmt: skip


class Home:
    """The process's parts, put together."""

    def __init__(self, settings: Settings, kernel: Kernel, paths: NodePaths, pinned: Loaded, core: Core) -> None:
        self._settings, self._paths = settings, paths
        maps: Mapping[str, Map] = pinned.maps
        self._config = maps["config"]
        self.generation = self._claim_generation()
        self.loop = Loop()
        self._control = Control(pinned.programs[CONTROL])
        self.pods = Pods(Registry(paths.workloads), maps["cgroup_workload"], self._pod_gone)
        limits = Limits(total=settings.max_upstreams)
        self.upstreams = Upstreams(self.loop, maps, self._control, self.pods, self.generation, limits)
        self.stats = Stats(maps["home_stats"])
        self._decider = Decider(core, kernel, maps, lambda: random.getrandbits(32))
        self.clients = Clients(self.loop, maps, self._control, self.pods, core, self._decider, self.stats)
        self._own: list[tuple[str, int]] = []
        self.sweep = Sweep(maps["conns"], self._control, self.upstreams, self.generation, self.clients.end_orphan)
        self._counters = maps["counters"]
        self._lost = self._events_lost()
        self._ring = kernel.ring(maps["events"])
        self._seen_generation = -1
        self._draining_until = 0.0

    def _claim_generation(self) -> int:
        """Makes the upstreams of all predecessors recognisable as such."""
        value = self._read_config()
        version = int.from_bytes(value[_VERSION : _VERSION + 4], "little")
        if version != ABI_VERSION:
            raise BpfError("config map", f"ABI version {version}, not {ABI_VERSION}", "restart the agent of this build")
        generation = (int.from_bytes(value[_HOME : _HOME + 4], "little") + 1) & 0xFFFFFFFF or 1
        self._write_generation(value, generation)
        return generation

    def _read_config(self) -> bytes:
        value = self._config.lookup(bytes(4))
        assert value is not None, "an array's first value exists"
        return value

    def _write_generation(self, value: bytes, generation: int) -> None:
        self._config.update(bytes(4), value[:_HOME] + generation.to_bytes(4, "little") + value[_HOME + 4 :])

    def _pod_gone(self, workload: int) -> None:
        self.upstreams.pod_gone(workload)

    def serve(self) -> None:
        """Runs until SIGTERM or SIGINT, and then until requests under way are answered or time is up."""
        wake, waker = socket.socketpair()
        wake.setblocking(False)
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self.loop.add(wake.fileno(), IN, lambda _: self._signalled(wake))
        self.loop.add(self._ring.fd, IN, lambda _: self._events())
        self._watch()
        for address, port in self._settings.listen:
            try:
                self.clients.listen(address, port, self._settings.mss, self._settings.standby)
            except OSError as cause:
                raise SettingsError(
                    f"--listen {address}:{port}", str(cause), "see `ss -ltnp` for who listens there"
                ) from cause
            if self._settings.standby:
                self._listen_beside(address, port)
        self.sweep.begin()
        self.loop.call_every(0.1, self._watch)
        self.loop.call_every(0.05, self._often)
        self.loop.call_every(1.0, self._seldom)
        self.loop.call_every(30.0, self.sweep.begin)
        self._write_status()
        # what exists now stays; and handlers make no cycles, so that looking for them every 700 objects is waste
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        log.info("ready: node %s, home generation %d", self._settings.node, self.generation)
        try:
            self.loop.run()
        finally:
            signal.set_wakeup_fd(-1)
            self.stats.flush()
            self.clients.close()
            self._ring.close()
            self.pods.close()
            self.loop.close()
            (self._paths.run / "home.json").unlink(missing_ok=True)

    def _signalled(self, wake: socket.socket) -> None:
        wake.recv(64)
        if self._draining_until:
            self.loop.stop()
            return
        log.info("draining: %d requests under way", self.clients.busy)
        self._draining_until = self.loop.now + self._settings.drain
        self.clients.stop_listening()
        self.upstreams.drain()
        self.loop.call_every(0.02, self._drained)

    def _drained(self) -> None:
        if not self.clients.busy or self.loop.now >= self._draining_until:
            self.loop.stop()

    def _events(self) -> None:
        wanted: set[tuple[int, int, int]] = set()
        for record in self._ring.drain(_EVENTS_AT_ONCE):  # level-triggered: the rest comes when others had their turn
            kind, workload, endpoint, cluster, cookie = _EVENT.unpack_from(record)
            if kind == _CLOSED:
                self.clients.on_closed(record[_TUPLE : _TUPLE + TUPLE_SIZE], cookie)
            elif kind == _DEAD:
                self.upstreams.dead(record[_TUPLE : _TUPLE + TUPLE_SIZE], cookie)
            elif kind == _WANT:
                wanted.add((workload, endpoint, cluster))
        for workload, endpoint, cluster in wanted:
            self.upstreams.want(workload, endpoint)
            if cluster:
                self.upstreams.warm(workload, self._decider.members(cluster))
        self.upstreams.refill()

    def _watch(self) -> None:
        """Looks whether the registry or the configuration changed."""
        self.pods.poll()
        value = self._read_config()
        if int.from_bytes(value[_HOME : _HOME + 4], "little") != self.generation:
            self._write_generation(value, self.generation)  # an agent wrote the whole value while we did
            self._seen_generation = -1  # and may have done so again
        generation = int.from_bytes(value[_GENERATION : _GENERATION + 4], "little")
        if generation != self._seen_generation:
            self._seen_generation = generation
            self.pods.recheck()
            self.upstreams.recheck()

    def _often(self) -> None:
        self.upstreams.refill()
        self.clients.forget_closed()
        self.sweep.step()

    def _events_lost(self) -> int:
        slots = self._counters.lookup_percpu(int(Counter.EVENTS_LOST).to_bytes(4, "little")) or []
        return sum(int.from_bytes(slot, "little") for slot in slots)

    def _seldom(self) -> None:
        lost = self._events_lost()
        if lost != self._lost:
            log.warning("%d events lost, looking through all connections", lost - self._lost)
            self._lost = lost
            self.sweep.begin()
        self.upstreams.tick()
        self.clients.expire()
        self.stats.flush()
        self._write_status()

    def _listen_beside(self, address: str, port: int) -> None:
        """For workloads whose home is not the Envoy that has the address: one port further, or anywhere."""
        try:
            beside = self.clients.listen(address, port + 1 if port < 65535 else 0, self._settings.mss)
        except OSError:
            beside = self.clients.listen(address, 0, self._settings.mss)
        self._own.append((address, beside))

    def _write_status(self) -> None:
        """For `underpass status`: a JSON file beside the registry."""
        requests, refused = self.stats.totals()
        status = {
            "pid": os.getpid(),
            "node": self._settings.node,
            "generation": self.generation,
            "time": time.time(),
            "listen": [_joined(*end) for end in self._settings.listen],
            "standby": self._settings.standby,
            "own": [_joined(*end) for end in self._own],
            "mss": self._settings.mss,
            "workloads": sorted(pod.key for pod in self.pods.by_id.values()),
            "requests": requests,
            "refused": refused,
            "faults": self.loop.faults,
            "longest_ms": round(1000 * self.loop.longest, 3),
            "stale": self.sweep.found,
            "upstreams": self.upstreams.counts(),
            "clients": self.clients.counts(),
        }
        path = self._paths.run / "home.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(status) + "\n", encoding="utf-8")
        temporary.rename(path)


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def wait_for_agent(kernel: Kernel, paths: NodePaths) -> Loaded:
    """What the agent has pinned, as soon as it has."""
    programs = (CONTROL, *(slot.program for slot in HOME_SLOTS))
    told = 0.0
    while True:
        try:
            pinned = recover(kernel, paths, MAPS, programs)
        except NotPinnedError as missing:
            if time.monotonic() - told > 10:
                told = time.monotonic()
                log.info("waiting for the agent of node %s: %s", paths.node, missing)
            time.sleep(0.1)
            continue
        config = pinned.maps["config"].lookup(bytes(4))
        if config is not None and int.from_bytes(config[_VERSION : _VERSION + 4], "little"):
            return pinned
        pinned.close()  # the maps are there, the agent has not configured them yet
        time.sleep(0.1)


def check_layouts(maps: Mapping[str, Map]) -> None:
    """Refuses to read structures of another build, which would be misread without any error. LayoutError."""
    for name, structure in _LAYOUTS.items():
        size, expected = maps[name].info.value_size, STRUCTS[structure][0]
        if size != expected:
            raise LayoutError(
                f"pinned map {name}", f"its values have {size} bytes, this home's struct {structure} {expected}",
                "home and agent are of different builds: upgrade both",
            )  # fmt: skip


def join_cgroup(cgroup: Path) -> None:
    """Moves this process into home's cgroup, where its upstreams are recognised."""
    try:
        cgroup.mkdir(parents=True, exist_ok=True)
        (cgroup / "cgroup.procs").write_text(f"{os.getpid()}\n", encoding="ascii")
    except OSError as cause:
        raise SettingsError(f"cgroup {cgroup}", str(cause), "run as root, with cgroup v2 mounted") from cause


def lock(path: Path) -> int:
    """Takes the node's home lock for the process's life: two homes would fight over generations. SettingsError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SettingsError(f"lock {path}", "another home of this node is running", "stop it first") from None
    except OSError as cause:
        raise SettingsError(f"lock {path}", str(cause), "choose another --run-dir") from cause
    return fd


def raise_descriptor_limit() -> None:
    """As many descriptors as the hard limit grants: one for each client and each upstream."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        wanted = max(hard, 1 << 18)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(settings: Settings) -> None:
    """Sets up and serves."""
    paths = NodePaths.of(
        settings.node, features.bpffs(), features.cgroup2(), run=settings.run_dir, bpffs=settings.bpffs
    )
    held = lock(paths.run / "home.lock")
    try:
        raise_descriptor_limit()
        core = Core()
        kernel = LinuxKernel()
        join_cgroup(paths.home_cgroup)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until `serve` has its own
        pinned = wait_for_agent(kernel, paths)
        check_layouts(pinned.maps)
        for repair in Attacher(kernel, paths, pinned.programs).attach_home():
            log.info("attached %s to home's cgroup (%s)", repair.slot, repair.why)
        Home(settings, kernel, paths, pinned, core).serve()
    finally:
        os.close(held)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Status 2: the command line; 1: anything else that keeps it from serving."""
    try:
        settings = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        logging.basicConfig(
            level=logging.DEBUG if settings.verbose else logging.INFO,
            format="%(asctime)s %(levelname)s %(name)s %(message)s",
            stream=sys.stderr,
        )
        run(settings)
    except SettingsError as error:
        sys.exit(_complain(error, 2))
    except AgentError as error:
        sys.exit(_complain(error, 1))
    except OSError as error:
        sys.exit(_complain(error, 1))


def _complain(error: Exception, status: int) -> int:
    print(f"underpass-home: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
