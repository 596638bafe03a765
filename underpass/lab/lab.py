"""Bringing a lab up, changing it while it runs, and running commands in it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from underpass.lab import config, follow, host, programs, topology
from underpass.lab.addresses import DEFAULT_NAME, choose_octet, fabric_netns
from underpass.lab.errors import LabError
from underpass.lab.generate import (
    ENDPOINTS_FILE,
    REVISION_FILE,
    endpoints_yaml,
    hosts_text,
    registry_entry,
    revision_yaml,
)
from underpass.lab.images import Images, parse_lab_file
from underpass.lab.manifest import problems
from underpass.lab.model import Options, Plan, SourceFile, Workload
from underpass.lab.plan import find_workload, make_plan
from underpass.lab.processes import Started, inside, listening_ports, sample_server_command, start, stop, tail
from underpass.lab.state import Paths, State, WorkloadState, load, locked, require, write_atomically
from underpass.lab.teardown import leftovers, take_down

Report = Callable[[str], None]

LISTEN_TIMEOUT = 15.0


class Interrupted(BaseException):
    """SIGTERM or SIGHUP while a lab was being changed; like KeyboardInterrupt for SIGINT."""


def up(
    files: Sequence[SourceFile], lab_file: SourceFile | None, options: Options, report: Report
) -> tuple[Plan, State]:
    """Bring a lab up. On any failure, and on a signal, everything made so far is taken away again. Raises LabError."""
    paths = Paths(options.name)
    host.check_machine(options.mesh)
    with locked(options.name), ExitStack() as shared:
        _check_absent(options.name)
        images = parse_lab_file(lab_file.path, lab_file.text) if lab_file is not None else Images()
        kept: list[SourceFile] = []
        for file in files:
            kept = config.apply(kept, dataclasses.replace(file, name=config.name_for(file.path, kept)))
        shared.enter_context(locked())  # until the routes are there by which others see that the network is taken
        octet = choose_octet(host.own_routes())
        plan = make_plan(kept, images, options, octet)
        for note in [problem for file in kept for problem in problems(file)] + list(plan.notes):
            report(f"note: {note}")
        state = State(options, octet, created=datetime.now(UTC).isoformat(timespec="seconds"))
        state.nodes = [node.name for node in plan.nodes]
        if lab_file is not None:
            state.lab_file = {"path": lab_file.path, "text": lab_file.text}
        with _undone_on_failure(options.name, state):
            state.save()
            _Builder(paths, plan, state, report).build(kept, shared.close)
            state.status = "up"
            state.save()
    return plan, state


def down(name: str) -> None:
    """Take a lab down, or what is left of one. Raises LabError when there is nothing, or when something stays."""
    with locked(name):
        try:
            state = load(name)
        except LabError:
            state = None  # unreadable: names tell the rest
        if state is None and not leftovers(name):
            raise LabError("no lab is up", "there is nothing to take down", "underpass lab up FILE...", exit_code=3)
        with _deaf():
            left = take_down(name, state)
        if left:
            raise LabError("the lab is not wholly down", "; ".join(left), "try `underpass lab down` again")


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply` did. `written_at`: when the control plane's directory was complete, on CLOCK_MONOTONIC."""

    plan: Plan
    state: State
    written_at: float


def apply(name: str, new: Sequence[SourceFile], report: Report) -> Applied:
    """Apply files to a lab that is up, as `kubectl apply` would. Returns once the control plane's directory has them.

    Workloads that the files add are started, those that they scale down are ended.
    """
    with locked(name):
        state = require(name)
        paths = state.paths
        images = parse_lab_file(state.lab_file["path"], state.lab_file["text"]) if state.lab_file else Images()
        before = state.source_files()
        files = before
        for file in new:
            files = config.apply(files, dataclasses.replace(file, name=config.name_for(file.path, files)))
        old = make_plan(before, images, state.options, state.octet, state.allocation)
        plan = make_plan(files, images, state.options, state.octet, state.allocation)
        for note in [problem for file in new for problem in problems(file)]:
            report(f"note: {note}")
        for note in plan.notes:
            if note not in old.notes:
                report(f"note: {note}")
        builder = _Builder(paths, plan, state, report)
        written_at = builder.change(old, before, files)
        state.save()
    return Applied(plan, state, written_at)


def exec_command(name: str, workload: str, command: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The argv and environment that run `command` as if inside WORKLOAD. Raises LabError when there is none."""
    state = require(name)
    found = find_state(state, workload)
    entry = found.entry
    netns = Path(entry["netns"]).name
    env = {**os.environ, **found.env}
    return inside(command, netns=netns, cgroup=entry["cgroup"], hosts=found.hosts), env


def find_state(state: State, workload: str) -> WorkloadState:
    """The running workload that a user calls `workload`. Raises LabError."""
    return find_workload(state.workloads, workload)


def _check_absent(name: str) -> None:
    flag = "" if name == DEFAULT_NAME else f" --name {name}"
    try:
        state = load(name)
    except LabError:
        state = None
    if state is not None:
        raise LabError(
            "a lab is up already",
            f"{state.paths.state} tells of {len(state.workloads)} workloads since {state.created}",
            f"underpass lab down{flag}, or give the new one another --name",
        )
    rest = leftovers(name)
    if rest:
        raise LabError("an earlier lab was not taken down", f"{rest[0]} is still there", f"underpass lab down{flag}")


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into Interrupted within the block, so that what was made is taken down again."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(signal.Signals(number).name)

    try:
        before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    except ValueError:
        before = {}  # not the main thread: signals are somebody else's
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _undone_on_failure(name: str, state: State) -> Iterator[None]:
    """Take the lab down when the block does not end well."""
    with interruptible():
        try:
            yield
        except BaseException as cause:
            with _deaf():
                left = take_down(name, state)
            if left:
                why = f"{cause}; and left behind: {'; '.join(left)}"
                raise LabError("the lab did not come up", why, "underpass lab down") from cause
            raise


@contextmanager
def _deaf() -> Iterator[None]:
    """Ignore signals that would stop the clean-up half way."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    try:
        before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    except ValueError:
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Builder:
    """Carries a plan out, and records in the state what was made, so that it can be taken away."""

    def __init__(self, paths: Paths, plan: Plan, state: State, report: Report) -> None:
        self._paths = paths
        self._plan = plan
        self._state = state
        self._report = report
        self._cgroups = host.cgroup_mount() / "underpass"

    # -- the whole lab -------------------------------------------------------------------------------------------

    def build(self, files: list[SourceFile], network_is_there: Callable[[], None]) -> None:
        """Make everything, and say when the machine's own namespace is done with."""
        plan, paths = self._plan, self._paths
        for directory in (paths.config, paths.originals, paths.logs, paths.hosts):
            directory.mkdir(parents=True, exist_ok=True)
        for node in plan.nodes:
            paths.registry(node.name).mkdir(parents=True, exist_ok=True)
        host.make_cgroup(self._cgroups / paths.cgroup_name)
        self._network()
        network_is_there()
        self._write_files([], files, None)
        self._add_workloads(plan.workloads)
        if plan.options.mesh:
            self._mesh()
        self._state.allocation = plan.allocation()
        self._state.save()
        self._wait_for_ports(plan.workloads)
        follow.wait_ready(self._state)
        names = ", ".join(sorted({workload.owner for workload in plan.workloads}))
        self._report(f"{len(plan.workloads)} workloads on {len(plan.nodes)} node(s): {names}")

    def _network(self) -> None:
        plan = self._plan
        host.add_namespaces(topology.namespaces(plan))
        host.set_sysctls(topology.base_sysctls(plan))
        links = topology.lossy_links(plan)
        if links:
            binary = self._paths.directory / "link"
            programs.compile_link(binary)
            for link in links:
                cgroup = self._cgroups / self._paths.cgroup_name
                netns, spare = fabric_netns(plan.options.name), list(plan.addressing.host())
                ends = (link.fabric_end, link.node_end)
                self._started(programs.start_link(binary, self._paths, plan.options.link, ends, netns, cgroup, spare))
        host.carry_out(topology.base_steps(plan))

    def _mesh(self) -> None:
        plan, paths, state = self._plan, self._paths, self._state
        host_address = plan.addressing.host()[0]
        port = programs.free_port(programs.XDS_PORT)
        state.xds, inner = f"127.0.0.1:{port}", f"{host_address}:{port}"
        state.http = f"127.0.0.1:{programs.free_port(programs.HTTP_PORT)}"
        lab_cgroup = self._cgroups / paths.cgroup_name
        control = programs.start_control_plane(paths, plan, lab_cgroup, [state.xds, inner], state.http)
        self._started(control)
        running = []
        for node in plan.nodes:
            home_cgroup, agent_cgroup = self._cgroups / node.name / "home", self._cgroups / node.name / "agent"
            host.make_cgroup(home_cgroup)
            host.make_cgroup(agent_cgroup)
            running.append(self._started(programs.start_agent(paths, plan, node, agent_cgroup, inner)))
            running.append(self._started(programs.start_home(paths, plan, node, home_cgroup)))
        programs.wait_until(
            "the control plane is not ready",
            lambda: programs.get_json(state.http, "/ready")[0] == 200,
            [control],
            20.0,
        )
        self._report(f"control plane at {state.xds}")

    def _started(self, process: Started) -> Started:
        self._state.processes.append(process)
        self._state.save()
        return process

    # -- changes -------------------------------------------------------------------------------------------------

    def change(self, old: Plan, before: list[SourceFile], files: list[SourceFile]) -> float:
        """From the plan `old` to this builder's, moving nothing that both have. When the files were written."""
        was = {workload.key: workload for workload in old.workloads}
        shall = {workload.key: workload for workload in self._plan.workloads}
        gone = [workload for key, workload in was.items() if not workload.runs_like(shall.get(key))]
        new = [workload for key, workload in shall.items() if not workload.runs_like(was.get(key))]
        self._write_hosts([workload for workload in self._plan.workloads if workload not in new])
        self._add_workloads([workload for workload in new if workload.key not in was])
        self._wait_for_ports([workload for workload in new if workload.key not in was])
        self._write_files(before, files, old)
        written_at = time.monotonic()
        self._remove_workloads(old, gone)
        replaced = [workload for workload in new if workload.key in was]
        self._add_workloads(replaced)
        self._wait_for_ports(replaced)
        self._state.allocation = self._plan.allocation()
        return written_at

    def _write_files(self, before: list[SourceFile], files: list[SourceFile], old: Plan | None) -> None:
        """Bring both directories to `files`.

        The newest goes first: for a moment an object may be there twice, which the control plane settles in favour of
        the one in force; but it is never missing.
        """
        paths, plan = self._paths, self._plan
        generated = {file.name: config.complete(file, plan) for file in files}
        earlier = {file.name: config.complete(file, old) for file in before} if old is not None else {}
        write_atomically(paths.config / ENDPOINTS_FILE, endpoints_yaml(plan))
        for file in reversed(files):
            write_atomically(paths.originals / file.name, file.text)
            if generated[file.name] != earlier.get(file.name):
                self._replace(paths.config / file.name, generated[file.name], keep_age=file.name in earlier)
        for name in earlier.keys() - generated.keys():
            (paths.config / name).unlink(missing_ok=True)
            (paths.originals / name).unlink(missing_ok=True)
        self._state.revision += 1
        write_atomically(paths.config / REVISION_FILE, revision_yaml(self._state.revision))
        self._state.files = [{"name": file.name, "path": file.path} for file in files]

    @staticmethod
    def _replace(path: Path, text: str, keep_age: bool) -> None:
        """Write a configuration file. A file's age stands for its objects' creation time, so it is kept."""
        try:
            age = path.stat().st_mtime_ns if keep_age else None
        except FileNotFoundError:
            age = None
        write_atomically(path, text)
        if age is not None:
            os.utime(path, ns=(age, age))

    # -- workloads -----------------------------------------------------------------------------------------------

    def _add_workloads(self, workloads: Sequence[Workload]) -> None:
        if not workloads:
            return
        plan = self._plan
        host.add_namespaces(plan.netns(workload) for workload in workloads)
        if plan.addressing.dual_stack:
            host.set_sysctls([topology.Sysctl(plan.netns(w), "ipv6/conf/all/accept_dad", "0") for w in workloads])
        host.carry_out(_by_namespace([step for w in workloads for step in topology.workload_steps(plan, w)]))
        self._write_hosts(workloads)
        for workload in workloads:
            cgroup = self._cgroup(workload)
            host.make_cgroup(cgroup)
            entry = registry_entry(plan, workload, str(host.NETNS_DIR), str(cgroup))
            write_atomically(self._registry_file(workload), _json(entry))
            env = dict(workload.processes[0].env)
            hosts = str(self._hosts_file(workload))
            self._state.workloads.append(WorkloadState(workload.kind, entry, env, hosts))
            for process in workload.processes:
                command = list(process.command) or sample_server_command()
                inner = inside(command, plan.netns(workload), str(cgroup), hosts)
                log = self._paths.logs / f"{workload.namespace}.{workload.name}.{process.container}.log"
                self._state.processes.append(start(f"{workload.key} {process.container}", inner, log, process.env))
        self._state.save()

    def _remove_workloads(self, old: Plan, workloads: Sequence[Workload]) -> None:
        for workload in workloads:
            self._registry_file(workload).unlink(missing_ok=True)
            mine = [process for process in self._state.processes if process.role.startswith(f"{workload.key} ")]
            stop(mine)
            host.kill_cgroup(self._cgroup(workload))
            self._state.processes = [process for process in self._state.processes if process not in mine]
            self._state.workloads = [
                item for item in self._state.workloads if f"{item.namespace}/{item.name}" != workload.key
            ]
            self._hosts_file(workload).unlink(missing_ok=True)
        # The interface first and by name: a deleted namespace's goes some time later, and its name is wanted again.
        host.carry_out([topology.Step(old.node(w).netns, f"link delete {w.host_interface}") for w in workloads])
        host.delete_namespaces(old.netns(workload) for workload in workloads)
        if workloads:
            self._state.save()
            self._report(f"removed {', '.join(workload.key for workload in workloads)}")

    def _write_hosts(self, workloads: Sequence[Workload]) -> None:
        for workload in workloads:
            path = self._hosts_file(workload)
            text = hosts_text(self._plan, workload)
            # In place: the file is bound over /etc/hosts in the workload, and a new inode would not be seen there.
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                path.write_text(text, encoding="utf-8")

    def _wait_for_ports(self, workloads: Sequence[Workload]) -> None:
        """Wait until every port is listened on. A process that ends is an error; one that listens elsewhere is not."""
        waiting: list[tuple[Started, set[int], bool]] = []
        by_role = {process.role: process for process in self._state.processes}
        for workload in workloads:
            for process in workload.processes:
                started = by_role[f"{workload.key} {process.container}"]
                waiting.append((started, set(process.ports), not process.command))
        deadline = time.monotonic() + LISTEN_TIMEOUT
        while waiting:
            for started, _, _ in waiting:
                if not started.alive:
                    raise LabError(f"{started.role} ended", tail(started.log) or "no output", f"see {started.log}")
            waiting = [item for item in waiting if not item[1] <= listening_ports(item[0].pid)]
            if waiting and time.monotonic() > deadline:
                if any(ours for _, _, ours in waiting):
                    started = next(started for started, _, ours in waiting if ours)
                    raise LabError(f"{started.role} does not listen", tail(started.log), f"see {started.log}")
                for started, ports, _ in waiting:
                    self._report(f"note: {started.role} does not listen on {sorted(ports)}")
                return
            if waiting:
                time.sleep(0.02)

    def _cgroup(self, workload: Workload) -> Path:
        return self._cgroups / self._plan.node(workload).name / f"{workload.namespace}.{workload.name}"

    def _registry_file(self, workload: Workload) -> Path:
        return self._paths.registry(self._plan.node(workload).name) / f"{workload.namespace}.{workload.name}.json"

    def _hosts_file(self, workload: Workload) -> Path:
        return self._paths.hosts / f"{workload.namespace}.{workload.name}"


def _by_namespace(steps: Sequence[topology.Step]) -> list[topology.Step]:
    """Steps of independent workloads, grouped so that each namespace costs one process: nodes' ends come first.

    Within one namespace the order stays. A pod's steps need its veth, which a node's step makes; no step needs a pod's.
    """
    order: dict[str, list[topology.Step]] = {}
    for step in steps:
        order.setdefault(step.netns, []).append(step)
    pods = {netns for netns in order if netns.count(".") > 1}
    return [step for netns, group in order.items() if netns not in pods for step in group] + [
        step for netns, group in order.items() if netns in pods for step in group
    ]


def _json(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"
