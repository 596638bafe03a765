"""A node without an agent: real namespaces, the real objects, maps written by hand, a real home process.

For tests of home and of the data path that need to say exactly what the maps hold. Names and addresses are this
process's own, and everything is removed again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from nodeagent.abi.numbers import ABI_VERSION, ActionKind, Lb
from nodeagent.abi.records import (
    Action,
    Address,
    Cgroup,
    Cluster,
    Config,
    Endpoint,
    Service,
    ServiceKey,
    Table,
    Vhost,
    VhostKey,
    Weight,
    address,
)
from nodeagent.abi.records import Workload as WorkloadRecord
from nodeagent.bpf import features
from nodeagent.bpf.kernel import LinuxKernel
from nodeagent.intent.homerules import entry
from nodeagent.intent.replies import packed
from nodeagent.node import programs
from nodeagent.node.attach import Attacher, set_workload_id
from nodeagent.node.interfaces import slot_of
from nodeagent.node.netns import inside
from nodeagent.node.paths import NodePaths
from nodeagent.node.programs import Loaded
from nodeagent.node.registry import Workload
from nodeagent.rules.model import Rule
from nodeagent.rules.standing import standing_reply

HOME_PORT, SERVICE_PORT, SERVER_PORT = 15001, 80, 8080
VIP4, VIP6 = "10.96.7.1", "fd00:96::71"
TABLE, VIEW = 1, 1
PATIENCE = int(os.environ.get("UNDERPASS_TEST_PATIENCE", "1"))
"""How many times longer than usual to wait for processes: an emulated machine (guest.py) may be twenty times slower."""
_NUMBERS = itertools.count()
_LIVE, _WILD, _ANY, _IGNORE_PORT = 1, 2, 4, 8


def ip(*arguments: str, ns: str | None = None) -> None:
    """Runs `ip`, in a namespace if given."""
    subprocess.run(["ip", *(["-n", ns] if ns else []), *arguments], check=True, capture_output=True)


@dataclass
class Pod:
    """A namespace on the bridge. host: its number, the last part of its addresses."""

    name: str
    host: int
    ns: str
    veth: str
    ip4: str
    ip6: str
    cgroup: Path
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)


class LittleNode:
    """One bridge, some pods, one home. Use as a context manager.

    home_kind 1, set before it is entered: somebody else (an Envoy) listens at the home address, home keeps upstreams.
    """

    def __init__(self, root: Path, home_arguments: Sequence[str] = ()) -> None:
        number = next(_NUMBERS)
        self.tag = f"{os.getpid() % 10000:04d}{number}"
        octet = 64 + (os.getpid() + number) % 128
        self.net4, self.net6 = f"10.{octet}.9", f"fd77:{os.getpid() % 9999}:{number}"
        self.home4, self.home6 = f"{self.net4}.1", f"{self.net6}::1"
        self.bridge = f"nvb{self.tag}"
        self.node = f"nvtest{self.tag}"
        self.root, self.home_arguments = root, list(home_arguments)
        self.home_kind = 0
        self.kernel = LinuxKernel()
        self.paths = NodePaths.of(self.node, features.bpffs(), features.cgroup2(), run=root / "run")
        self.pods: dict[str, Pod] = {}
        self.loaded = Loaded()
        self.home: subprocess.Popen[bytes] | None = None
        self.home_log = root / "home.log"
        self.generation = 1

    # ---- the machine ----

    def __enter__(self) -> Self:
        try:
            # with an address of its own: a bridge without one takes its ports' lowest, and changes it when a pod joins
            ip("link", "add", self.bridge, "address", "02:00:00:00:77:01", "type", "bridge")
            ip("addr", "add", f"{self.home4}/24", "dev", self.bridge)
            ip("addr", "add", f"{self.home6}/64", "dev", self.bridge, "nodad")
            ip("link", "set", self.bridge, "up")
            self.paths.workloads.mkdir(parents=True)
            self.loaded = programs.load(self.kernel, self.paths)
            self.configure()
            self.attacher = Attacher(self.kernel, self.paths, self.loaded.programs)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes everything, whatever state it is in."""
        self.stop_home()
        for pod in self.pods.values():
            for child in pod.children:
                child.kill()
                child.wait()
        self.loaded.close()
        for pod in self.pods.values():
            subprocess.run(["ip", "netns", "delete", pod.ns], check=False, capture_output=True)
            subprocess.run(["ip", "link", "delete", pod.veth], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", self.bridge], check=False, capture_output=True)
        shutil.rmtree(self.paths.bpffs, ignore_errors=True)
        for cgroup in [*(pod.cgroup for pod in self.pods.values()), self.paths.home_cgroup, self.paths.waypoint_cgroup,
                       self.paths.cgroup]:  # fmt: skip
            for _ in range(50):
                try:
                    cgroup.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.02)
        for shared in (self.paths.bpffs.parent, self.paths.cgroup.parent):
            with contextlib.suppress(OSError):
                shared.rmdir()  # of all nodes; not empty while another test or lab runs

    def pod(self, name: str, host: int) -> Pod:
        """Makes a namespace with a veth to the bridge."""
        pod = Pod(
            name, host, f"nv{self.tag}{name}", f"nv{self.tag}{host}", f"{self.net4}.{host}", f"{self.net6}::{host:x}",
            self.paths.cgroup / f"default.{name}",
        )  # fmt: skip
        self.pods[name] = pod
        ip("netns", "add", pod.ns)
        ip("link", "add", pod.veth, "type", "veth", "peer", "name", "eth0", "netns", pod.ns)
        ip("link", "set", pod.veth, "master", self.bridge, "up")
        ip("addr", "add", f"{pod.ip4}/24", "dev", "eth0", ns=pod.ns)
        ip("addr", "add", f"{pod.ip6}/64", "dev", "eth0", "nodad", ns=pod.ns)
        ip("link", "set", "lo", "up", ns=pod.ns)
        ip("link", "set", "eth0", "up", ns=pod.ns)
        ip("route", "add", "default", "via", self.home4, ns=pod.ns)
        ip("-6", "route", "add", "default", "via", self.home6, ns=pod.ns)
        return pod

    def spawn(self, pod: Pod, command: Sequence[str], *, enrolled: bool = False) -> subprocess.Popen[bytes]:
        """Starts a command in the pod's namespace, and in its cgroup if enrolled."""
        script = f'echo $$ > "{pod.cgroup}/cgroup.procs"; exec "$@"' if enrolled else 'exec "$@"'
        child = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{pod.ns}", "sh", "-c", script, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        pod.children.append(child)
        return child

    def run(self, pod: Pod, command: Sequence[str], timeout: float = 60 * PATIENCE) -> str:
        """Runs a command as the enrolled workload; its output. Fails with it."""
        child = self.spawn(pod, command, enrolled=True)
        output, _ = child.communicate(timeout=timeout)
        assert child.returncode == 0, output.decode(errors="replace")
        return output.decode(errors="replace")

    def serve(self, pod: Pod, *arguments: str) -> None:
        """Starts the sample server in a pod and waits until it listens."""
        command = [sys.executable, "-m", "underpass.lab.server", "--port", str(SERVER_PORT), *arguments]
        environment = {"UNDERPASS_WORKLOAD": pod.name, "UNDERPASS_NAMESPACE": "default"}
        self.spawn(pod, ["env", *(f"{k}={v}" for k, v in environment.items()), *command])
        self.await_port(pod.ns, pod.ip4, SERVER_PORT)

    @staticmethod
    def await_port(ns: str, host: str, port: int) -> None:
        """Until something listens there."""
        for _ in range(200 * PATIENCE):
            with inside(Path("/run/netns") / ns):
                probe = socket.socket()
            with probe:
                probe.settimeout(1)
                if probe.connect_ex((host, port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError(f"nothing listens at {host}:{port} in {ns}")

    # ---- the maps ----

    def put(self, name: str, key: bytes | int, value: bytes, *, lock: bool = False) -> None:
        """Writes one map entry."""
        raw = key.to_bytes(4, "little") if isinstance(key, int) else key
        self.loaded.maps[name].update(raw, value, lock=lock)

    def configure(self) -> None:
        """The node's configuration, home's generation kept."""
        current = Config.unpack(self.loaded.maps["config"].lookup(bytes(4)) or b"")
        config = Config(
            version=ABI_VERSION,
            generation=self.generation,
            home_generation=current.home_generation,
            home4=Address(address(self.home4), HOME_PORT, 4),
            home6=Address(address(self.home6), HOME_PORT, 6),
            home_kind=self.home_kind,
        )
        self.put("config", 0, config.pack())

    def bump(self) -> None:
        """Tells home that endpoints, clusters or workloads changed."""
        self.generation += 1
        self.configure()

    def enroll(self, pod: Pod, number: int) -> None:
        """Makes the pod a workload, as the agent and the lab do together."""
        pod.cgroup.mkdir(parents=True, exist_ok=True)
        record = {
            "name": pod.name, "namespace": "default", "ips": [pod.ip4, pod.ip6], "netns": f"/run/netns/{pod.ns}",
            "cgroup": str(pod.cgroup), "interface": "eth0", "host_interface": pod.veth, "node": self.node,
        }  # fmt: skip
        data = json.dumps(record).encode()
        from nodeagent.node.registry import parse

        workload: Workload = parse(data)
        addresses = WorkloadRecord(view=VIEW, addr4=address(pod.ip4), addr6=address(pod.ip6))
        self.put("workloads", number, addresses.pack())
        self.attacher.attach(workload)
        slot_of(self.loaded.maps["interface_stats"], socket.if_nametoindex(pod.veth))
        set_workload_id(self.loaded.maps["cgroup_workload"], pod.cgroup, number)
        assert Cgroup.unpack(number.to_bytes(4, "little")).workload == number
        path = self.paths.workloads / f"default.{pod.name}.json"
        path.with_suffix(".tmp").write_bytes(data)
        path.with_suffix(".tmp").rename(path)

    def endpoint(self, number: int, pod: Pod, *, family: int = 4, port: int = SERVER_PORT, live: int = 1) -> int:
        """An endpoint at a pod."""
        where = address(pod.ip4 if family == 4 else pod.ip6)
        self.put("endpoints", number, Endpoint(where, port, family, live).pack())
        return number

    def cluster(self, number: int, *slots: int, lb: int = Lb.ROUND_ROBIN) -> int:
        """A cluster of endpoints."""
        self.put("clusters", number, Cluster(n=len(slots), lb=lb, choices=2, live=1, slot=slots).pack(), lock=True)
        return number

    def service(self) -> None:
        """The service VIPs of the one view, by the one table."""
        self.put("tables", TABLE, Table(_LIVE | _WILD | _ANY | _IGNORE_PORT).pack())
        for vip in (VIP4, VIP6):
            key = ServiceKey(VIEW, SERVICE_PORT, 6, address(vip))
            self.put("services", key.pack(), Service(kind=1, table=TABLE).pack())

    def route(
        self,
        host: str,
        route: int,
        *clusters: tuple[int, int],
        reason: int = 0,
        rule: Rule | None = None,
        reply: bool = False,
    ) -> None:
        """A virtual host with one route: (weight, cluster) pairs, or why it is punted, and home's rule then.

        reply: the kernel gives the rule's answer, if that is always the same.
        """
        total, to = 0, []
        for weight, cluster in clusters:
            total += weight
            to.append(Weight(total, cluster))
        kind = ActionKind.PUNT if reason else ActionKind.CLUSTERS
        key = 0
        if rule is not None:
            key, value = entry(rule)
            self.put("home_rules", key.to_bytes(8, "little"), value)
            if reply:
                answer = standing_reply(rule)
                assert answer is not None
                self.put("replies", key.to_bytes(8, "little"), packed(*answer))
        action = Action(route, kind, reason, len(to), 0, total, tuple(to), int(reply), key)
        self.put("vhosts", VhostKey(TABLE, host.encode()).pack(), Vhost(0, action).pack())

    # ---- home ----

    def start_home(self) -> None:
        """Starts home and waits until it is ready."""
        command = [
            sys.executable, "-m", "nodeagent.home.app", "--node", self.node, "--run-dir", str(self.paths.run),
        ]  # fmt: skip
        if self.home_kind:
            command += ["--upstreams-only"]
        else:
            command += ["--listen", f"{self.home4}:{HOME_PORT}", "--listen", f"[{self.home6}]:{HOME_PORT}"]
        command += self.home_arguments
        with self.home_log.open("ab") as log:
            self.home = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(200 * PATIENCE):
            if (self.paths.run / "home.json").exists() and self.status()["pid"] == self.home.pid:
                return
            assert self.home.poll() is None, self.home_log.read_text()
            time.sleep(0.05)
        raise AssertionError(self.home_log.read_text())

    def stop_home(self, *, kill: bool = False) -> float:
        """Ends home; how long it took."""
        if self.home is None:
            return 0.0
        begin = time.monotonic()
        if kill:
            self.home.kill()
        else:
            self.home.terminate()
        try:
            self.home.wait(10 * PATIENCE)
        except subprocess.TimeoutExpired:
            self.home.kill()
            self.home.wait()
        self.home = None
        return time.monotonic() - begin

    def status(self) -> dict[str, object]:
        """Home's status file."""
        loaded: dict[str, object] = json.loads((self.paths.run / "home.json").read_text())
        return loaded

    def counter(self, number: int) -> int:
        """A kernel counter, summed over CPUs."""
        slots = self.loaded.maps["counters"].lookup_percpu(number.to_bytes(4, "little")) or []
        return sum(int.from_bytes(slot, "little") for slot in slots)

    def punts(self) -> dict[tuple[int, int], int]:
        """Punted requests by (route, reason)."""
        found: dict[tuple[int, int], int] = {}
        for key, value in self.loaded.maps["punt_stats"].items():
            slots = [int.from_bytes(value[i : i + 8], "little") for i in range(0, len(value), 8)]
            found[int.from_bytes(key[:4], "little"), int.from_bytes(key[4:], "little")] = sum(slots)
        return found
