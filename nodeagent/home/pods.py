"""The workloads as home needs them: by the kernel's id, with a way into the network namespace and source addresses."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from nodeagent.abi.records import Endpoint
from nodeagent.bpf.abc import Map
from nodeagent.bpf.errors import BpfError
from nodeagent.home.control import packed
from nodeagent.node.attach import workload_id
from nodeagent.node.netns import Switch, open_namespace
from nodeagent.node.registry import Registry, Workload

log = logging.getLogger("underpass.home")

_BIND_NO_PORT = (
    24  # IP_BIND_ADDRESS_NO_PORT (linux/in.h): the port is chosen at connect(), where the whole tuple counts
)
_TCP = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
_IN_PROGRESS = (0, errno.EINPROGRESS)


@dataclass(slots=True)
class Pod:
    """One workload. sources: its addresses, as text and as 16 bytes, by IP version."""

    id: int
    workload: Workload
    namespace: int
    sources: dict[int, tuple[str, bytes]]

    @property
    def key(self) -> str:
        """The workload's key, "namespace/name"."""
        return self.workload.key


def _sources(workload: Workload) -> dict[int, tuple[str, bytes]]:
    found: dict[int, tuple[str, bytes]] = {}
    for ip in workload.ips:
        found.setdefault(6 if ":" in ip else 4, (ip, packed(ip)))
    return found


class Pods:
    """Follows the registry. gone: called with the id of each workload that went (its sockets are to be closed)."""

    def __init__(self, registry: Registry, cgroup_workload: Map, gone: Callable[[int], None]) -> None:
        self._registry, self._ids, self._gone = registry, cgroup_workload, gone
        self._switch = Switch()
        self.by_id: dict[int, Pod] = {}
        self._by_key: dict[str, Pod] = {}
        self._waiting: dict[str, Workload] = {}

    def poll(self) -> None:
        """Takes up what changed. A workload that the agent has not enrolled yet waits for its id."""
        change = self._registry.poll()
        for error in change.errors:
            log.warning("%s", error)
        for key in change.absent:
            self._waiting.pop(key, None)
            self._drop(key)
        for workload in change.present:
            self._waiting[workload.key] = workload
        for key, workload in list(self._waiting.items()):
            self._take_up(key, workload)

    def _take_up(self, key: str, workload: Workload) -> None:
        try:
            number = workload_id(self._ids, workload.cgroup)
            if not number:
                return
            namespace = open_namespace(workload.netns)
        except BpfError:
            return  # it is starting; the next poll tries again
        self._drop(key)
        pod = Pod(number, workload, namespace, _sources(workload))
        self.by_id[number] = self._by_key[key] = pod
        del self._waiting[key]

    def recheck(self) -> None:
        """The agent changed something: a workload may have another id now."""
        for key, pod in list(self._by_key.items()):
            try:
                same = workload_id(self._ids, pod.workload.cgroup) == pod.id
            except BpfError:
                same = False
            if not same:
                self._drop(key)
                self._waiting[key] = pod.workload

    def _drop(self, key: str) -> None:
        pod = self._by_key.pop(key, None)
        if pod is not None:
            del self.by_id[pod.id]
            os.close(pod.namespace)
            self._gone(pod.id)

    def sockets(self, pod: Pod, endpoint: Endpoint, count: int) -> list[socket.socket]:
        """New TCP sockets in the workload's namespace, bound to its address. OSError: it has none of that family."""
        if endpoint.family not in pod.sources:
            raise OSError(errno.EAFNOSUPPORT, f"{pod.key} has no IPv{endpoint.family} address")
        family = socket.AF_INET if endpoint.family == 4 else socket.AF_INET6
        made: list[socket.socket] = []
        source = (pod.sources[endpoint.family][0], 0)
        try:
            with self._switch.inside(pod.namespace):
                for _ in range(count):
                    made.append(socket.socket(family, _TCP, 0))
            for each in made:
                each.setsockopt(socket.IPPROTO_IP, _BIND_NO_PORT, 1)
                each.bind(source)
        except OSError:
            for each in made:
                each.close()
            raise
        return made

    def close(self) -> None:
        """Gives all namespaces back."""
        for pod in self.by_id.values():
            os.close(pod.namespace)
        self.by_id.clear()
        self._by_key.clear()
        self._switch.close()


def start_connect(sock: socket.socket, endpoint: Endpoint) -> None:
    """Begins a connection. OSError when it fails at once."""
    if endpoint.family == 4:
        where: tuple[str, int] = (socket.inet_ntoa(endpoint.addr[12:]), endpoint.port)
    else:
        where = (socket.inet_ntop(socket.AF_INET6, endpoint.addr), endpoint.port)
    number = sock.connect_ex(where)
    if number not in _IN_PROGRESS:
        raise OSError(number, os.strerror(number))
