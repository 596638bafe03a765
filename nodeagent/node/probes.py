"""Asking this kernel what it can do, by doing it: small programs are loaded, attached and run.

Nothing of the machine's own is touched. Hooks are attached to a cgroup and a network namespace made for the purpose, in
which a process of ours (`actor`) makes a few connections to itself; both are gone afterwards, and so is every pin.
What the answers mean is `nodeagent.node.features`' business.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import select
import shutil
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from nodeagent.bpf import features as machine
from nodeagent.bpf import libbpf, objects
from nodeagent.bpf.abc import (
    BPF_F_NO_PREALLOC,
    AttachType,
    Closable,
    Kernel,
    LoadOptions,
    MapSpec,
    MapType,
    Object,
    ProgramType,
)
from nodeagent.bpf.errors import BpfError, ObjectFileError, PermissionDeniedError, UnsupportedFeatureError, from_errno
from nodeagent.node import actor, netns, programs
from nodeagent.node.features import Answer, Report, State, judge
from nodeagent.node.paths import NodePaths

OBJECT: Final = "features.bpf.o"
CONTEXT_OBJECT: Final = "features_context.bpf.o"

# Slots of `seen` in kernel/features.bpf.c.
_CONNECT, _GETPEERNAME, _ESTABLISHED, _OFFSET, _EGRESS, _SUM, _SOCKET, _INGRESS = range(8)
_PARTIAL = 1 + 3  # 1 + CHECKSUM_PARTIAL: what TCP leaves to a device that can sum, as lo can
_LO = 1  # its index in every namespace
_HOOKS: Final = {
    "ft_connect4": AttachType.CGROUP_INET4_CONNECT,
    "ft_getpeername4": AttachType.CGROUP_INET4_GETPEERNAME,
    "ft_sockops": AttachType.CGROUP_SOCK_OPS,
}
_DIRECTIONS: Final = {"ft_egress": AttachType.TCX_EGRESS, "ft_ingress": AttachType.TCX_INGRESS}
_PACKET = bytes(64)  # as much as BPF_PROG_TEST_RUN wants of a frame, and some
_PATIENCE_S: Final = 60.0  # for an emulated machine; a real one needs 0.1
_PASS = bytes.fromhex("b7000000010000009500000000000000")  # r0 = 1 (SK_PASS); exit
_SK_MSG_VERDICT = 7  # enum bpf_attach_type
_MPTCP = 262  # IPPROTO_MPTCP
_UP = struct.Struct("16sh14x")  # struct ifreq: name and flags
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

YES: Final = Answer(State.YES)


def no(detail: str) -> Answer:
    """It has been tried, and does not work."""
    return Answer(State.NO, detail)


def unknown(detail: str) -> Answer:
    """It could not be tried."""
    return Answer(State.UNKNOWN, detail)


def _told(error: BaseException) -> str:
    why = getattr(error, "why", "")
    return str(why or error)


def survey(kernel: Kernel, cgroup: Path | None = None, *, load: bool = True) -> Report:
    """Every probe's answer, judged. Takes about 0.2 s, and with `load` about as long as an agent's start.

    cgroup: where to make the cgroup for the hooks, by default the mount of cgroup v2. load: also load the data path's
    own objects, aside and unattached; whoever loads them anyway need not. Raises ObjectFileError if this distribution's
    objects are not built; whatever the kernel refuses is an answer.
    """
    for name in (OBJECT, CONTEXT_OBJECT):
        objects.find(name)
    answers = {
        "permissions": _ask(_permissions),
        "btf": _ask(_nothing_else(machine.btf)),
        "bpffs": _ask(lambda: _bpffs(kernel)),
        "cgroup2": _ask(lambda: _cgroup2(cgroup)),
        "maps": _ask(lambda: _maps(kernel)),
        "spin-lock": _ask(lambda: _run(kernel, "ft_locked", 7)),
        "bpf-loop": _ask(lambda: _run(kernel, "ft_loop", 28)),
        "loop-state": _ask(lambda: _run(kernel, "ft_loop_known", 28)),
        "ring-buffer": _ask(lambda: _ring(kernel)),
        "test-run": _ask(lambda: _run(kernel, "ft_loop", 28)),
        "test-run-syscall": _ask(lambda: _syscall(kernel)),
        "kernel-context": _ask(lambda: _context(kernel)),
        "jit": _ask(lambda: _jit(kernel)),
        "memlock": _ask(lambda: _memlock(kernel)),
        "sockmap-fionread": _ask(lambda: _fionread(kernel)),
        "mptcp": _ask(_mptcp),
        "conntrack-liberal": _ask(_conntrack),
    }
    answers |= _hooks(kernel, cgroup)
    if load:
        answers["programs"] = _ask(lambda: _programs(kernel))
    return judge(answers)


def loaded(report: Report, count: int) -> Report:
    """The report of an agent that has loaded that many programs of the data path itself."""
    answers = {row.feature.key: row.answer for row in report.rows}
    return judge(answers | {"programs": _loaded(count)})


def _loaded(count: int) -> Answer:
    return Answer(State.YES, f"{count} programs")


def _ask(probe: Callable[[], Answer]) -> Answer:
    try:
        return probe()
    except (PermissionDeniedError, PermissionError) as error:
        return unknown(_told(error))
    except (BpfError, OSError) as error:
        return no(_told(error))


def _nothing_else(probe: Callable[[], object]) -> Callable[[], Answer]:
    def ask() -> Answer:
        probe()
        return YES

    return ask


# ---- one call each ----


def _permissions() -> Answer:
    """Loads a program, and enters the namespace it is in: the two things that capabilities are asked for."""
    try:
        machine.cgroup_programs()
        with netns.inside("/proc/thread-self/ns/net"):
            pass
    except UnsupportedFeatureError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            return no(f"bpf: {error.why}")
        return unknown(f"bpf: {error.why}")
    except PermissionDeniedError as error:
        return no(f"{error.what}: {error.why}")
    return YES


def _bpffs(kernel: Kernel) -> Answer:
    mount = machine.bpffs()
    path = mount / f"underpass-probe-{os.getpid()}-map"
    with closing(kernel.create_map(MapSpec("probe", MapType.ARRAY, 4, 8, 1))) as made:
        made.pin(path)
        try:
            kernel.pinned_map(path).close()
        finally:
            path.unlink(missing_ok=True)
    return Answer(State.YES, str(mount))


def _cgroup2(given: Path | None) -> Answer:
    place = given or machine.cgroup2()
    with _cgroup(place):
        return Answer(State.YES, str(place))


_SHAPES: Final = (
    (MapType.HASH, 4, 8, 1, BPF_F_NO_PREALLOC),
    (MapType.ARRAY, 4, 8, 1, 0),
    (MapType.PERCPU_HASH, 4, 8, 1, BPF_F_NO_PREALLOC),
    (MapType.PERCPU_ARRAY, 4, 8, 1, 0),
    (MapType.LRU_HASH, 4, 8, 1, 0),
    (MapType.RINGBUF, 0, 0, 4096, 0),
)


def _maps(kernel: Kernel) -> Answer:
    """Those that can be made from user space alone; array of maps, socket and cgroup storage are in the programs."""
    refused: list[str] = []
    for kind, key, value, entries, flags in _SHAPES:
        try:
            kernel.create_map(MapSpec("probe", kind, key, value, entries, flags)).close()
        except PermissionDeniedError:
            raise
        except BpfError as error:
            refused.append(f"{kind.name}: {error.why}")
    return no("; ".join(refused)) if refused else YES


def _run(kernel: Kernel, name: str, expected: int) -> Answer:
    with _only(kernel, name) as found:
        value = found.programs[name].test_run(_PACKET).retval
    return YES if value == expected else no(f"the program's result was {value}, not {expected}")


def _syscall(kernel: Kernel) -> Answer:
    with _only(kernel, "ft_syscall") as found:
        value = found.programs["ft_syscall"].test_run(context=(41).to_bytes(4, "little")).retval
    return YES if value == 42 else no(f"the program's result was {value}, not 42")


def _ring(kernel: Kernel) -> Answer:
    with _only(kernel, "ft_ring") as found, closing(kernel.ring(found.maps["ring"])) as ring:
        found.programs["ft_ring"].test_run(_PACKET)
        records = ring.drain()
    return YES if records == [(0x46656174).to_bytes(4, "little")] else no(f"{len(records)} records came for one")


def _context(kernel: Kernel) -> Answer:
    with closing(kernel.load(objects.find(CONTEXT_OBJECT))) as found:
        value = found.programs["ft_context"].test_run(_PACKET).retval
    # test runs take the Ethernet header off for tc
    return YES if value in (1 + len(_PACKET), 1 + len(_PACKET) - 14) else no(f"the packet's length came as {value - 1}")


def _jit(kernel: Kernel) -> Answer:
    with _only(kernel, "ft_loop") as found:
        size = found.programs["ft_loop"].info().jited_bytes
    return YES if size else no("the kernel kept no machine code of a program")


def _memlock(kernel: Kernel) -> Answer:
    """A map of a megabyte with a limit of one page; the limit is put back."""
    kernel.create_map(MapSpec("probe", MapType.ARRAY, 4, 8, 1)).close()  # else the limit would be blamed for it
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    told = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (min(4096, hard) if hard >= 0 else 4096, hard))
    try:
        kernel.create_map(MapSpec("probe", MapType.ARRAY, 4, 1024, 1024)).close()
    except BpfError as error:
        return no(f"{error.why}; the limit is {told}")
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    return YES


def _mptcp() -> Answer:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, _MPTCP).close()
    except OSError as error:
        return no(error.strerror or str(error))
    return YES


def _conntrack() -> Answer:
    path = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")
    try:
        liberal = path.read_text(encoding="ascii").strip() != "0"
    except FileNotFoundError:
        return unknown("conntrack is not loaded")
    return YES if liberal else no("nf_conntrack_tcp_be_liberal is 0")


def _fionread(kernel: Kernel) -> Answer:
    """Ten bytes over an ordinary connection to a socket that is in a SOCKHASH with an sk_msg program only."""
    program = libbpf.program_load(ProgramType.SK_MSG, "probe", _PASS)
    if program < 0:
        raise from_errno("load an sk_msg program", -program)
    try:
        with closing(kernel.create_map(MapSpec("probe", MapType.SOCKHASH, 4, 8, 4))) as sockets, _pair() as (near, far):
            result = libbpf.attach(program, sockets.fd, _SK_MSG_VERDICT)
            if result < 0:
                raise from_errno("attach an sk_msg program", -result)
            sockets.update(bytes(4), near.fileno().to_bytes(8, "little"))
            far.sendall(bytes(10))
            if not select.select([near], [], [], _PATIENCE_S)[0]:
                return no("ten bytes never became readable")
            told = struct.unpack("i", fcntl.ioctl(near, termios.FIONREAD, bytes(4)))[0]
    finally:
        os.close(program)
    return YES if told == 10 else no(f"it said {told} of 10 bytes")


@contextmanager
def _pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname(), timeout=_PATIENCE_S)
        near, _ = listener.accept()
    with near, far:
        yield near, far


def _programs(kernel: Kernel) -> Answer:
    """The data path's own objects, loaded and pinned as an agent does, in a place of their own."""
    place = machine.bpffs() / f"underpass-probe-{os.getpid()}"
    try:
        found = programs.load(kernel, NodePaths("probe", place, place, place))
        count = len(found.programs)
        found.close()
    except (ObjectFileError, PermissionDeniedError) as error:
        return unknown(str(error))
    except BpfError as error:
        return no(str(error))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return _loaded(count)


# ---- hooks, on a stage ----


def _hooks(kernel: Kernel, cgroup: Path | None) -> dict[str, Answer]:
    """What is only seen when a real connection is made under the hooks."""
    keys = (
        "connect-hook", "set-retval", "socket-storage", "getpeername", "tcp-sock", "tc", "tcx", "checksum-state",
    )  # fmt: skip
    try:
        namespace = netns.fresh()
    except (BpfError, OSError) as error:
        return dict.fromkeys(keys, unknown(f"no network namespace to try in: {_told(error)}"))
    try:
        return _on_stage(kernel, cgroup or machine.cgroup2(), namespace)
    except (BpfError, OSError, ValueError, subprocess.SubprocessError) as error:
        return dict.fromkeys(keys, unknown(f"the trial did not end: {_told(error)}"))
    finally:
        os.close(namespace)


def _on_stage(kernel: Kernel, cgroup_root: Path, namespace: int) -> dict[str, Answer]:
    refused: dict[str, str] = {}
    found = _as_many_as_load(kernel, (*_HOOKS, *_DIRECTIONS), refused)
    held: list[Closable] = []
    try:
        with _cgroup(cgroup_root) as cgroup, netns.inside(namespace):
            _raise_lo()
            for name, kind in _HOOKS.items():
                if name not in refused:
                    try:
                        held.append(kernel.attach_cgroup(found.programs[name], cgroup, kind))
                    except BpfError as error:
                        refused[name] = _told(error)
            tcx = _attach_tc(kernel, found, refused, held)
            told = _act(cgroup)
        seen = [int.from_bytes(found.maps["seen"].lookup(n.to_bytes(4, "little")) or b"", "little") for n in range(8)]
    finally:
        for one in reversed(held):
            one.close()
        found.close()
    return {"tcx": tcx} | _concluded(told, seen, refused)


def _attach_tc(kernel: Kernel, found: Object, refused: dict[str, str], held: list[Closable]) -> Answer:
    """By links if there are such, else by filters, which end with the namespace."""
    answer = YES
    for name, kind in _DIRECTIONS.items():
        if name in refused:
            continue
        program = found.programs[name]
        try:
            held.append(kernel.attach_tcx(program, _LO, kind))
            continue
        except BpfError as error:
            answer = no(_told(error))
        try:
            kernel.attach_clsact(program, _LO, kind)
        except BpfError as error:
            refused[name] = _told(error)
    return answer if not all(name in refused for name in _DIRECTIONS) else no("no program is attached at interfaces")


def _act(cgroup: Path) -> dict[str, Any]:
    """Lets the actor connect, in the namespace that the calling thread is in. ValueError if it cannot."""
    command = [sys.executable, "-I", "-S", str(Path(actor.__file__))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            (cgroup / "cgroup.procs").write_text(str(process.pid), encoding="ascii")
            out, trouble = process.communicate(b"go\n", timeout=_PATIENCE_S)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise ValueError(trouble.decode(errors="replace").strip().rpartition("\n")[2] or f"status {process.returncode}")
    told = json.loads(out)
    assert isinstance(told, dict)
    return told


def _concluded(told: dict[str, Any], seen: list[int], refused: dict[str, str]) -> dict[str, Answer]:
    """From what the actor met and the hooks saw to answers."""

    def judged(works: bool, why: str, *needs: str) -> Answer:
        stopped = next((refused[name] for name in needs if name in refused), None)
        return no(stopped) if stopped is not None else YES if works else no(why)

    connected = told["arrived"] == len(actor.PAYLOAD)
    missed = f"a connect to {actor.REWRITTEN} ended with {_name(told['connected'])}"
    return {
        "connect-hook": judged(connected and seen[_CONNECT] > 0, missed, "ft_connect4"),
        "set-retval": judged(
            told["refused"] == errno.ECONNREFUSED,
            f"a refused connect ended with {_name(told['refused'])}, not ECONNREFUSED",
            "ft_connect4",
        ),
        "socket-storage": judged(
            seen[_ESTABLISHED] > 0, "sockops did not find the socket's mark", "ft_connect4", "ft_sockops"
        ),
        "getpeername": judged(
            told["peer"] == actor.REWRITTEN, f"it said {told['peer'] or 'nothing'}", "ft_connect4", "ft_getpeername4"
        ),
        "tcp-sock": judged(
            seen[_OFFSET] > 0 and seen[_SOCKET] > 0,
            f"read {seen[_SOCKET]} times at egress, {'once' if seen[_OFFSET] else 'never'} in sockops",
            "ft_sockops",
            "ft_egress",
        ),
        "tc": judged(
            seen[_EGRESS] > 0 and seen[_INGRESS] > 0,
            f"{seen[_EGRESS]} packets seen at egress, {seen[_INGRESS]} at ingress",
            *_DIRECTIONS,
        ),
        "checksum-state": judged(
            seen[_SUM] == _PARTIAL, f"ip_summed of a packet of TCP's was {seen[_SUM] - 1}, not 3", "ft_egress"
        ),
    }


def _name(number: int) -> str:
    return errno.errorcode.get(number, str(number)) if number else "success"


def _as_many_as_load(kernel: Kernel, names: tuple[str, ...], refused: dict[str, str]) -> Object:
    """One object with those programs, less those that the kernel refuses, which are told in `refused`."""
    path = objects.find(OBJECT)
    try:
        return kernel.load(path, LoadOptions(only=frozenset(names)))
    except BpfError:
        for name in names:
            try:
                kernel.load(path, LoadOptions(only=frozenset({name}))).close()
            except BpfError as error:
                refused[name] = _told(error)
    return kernel.load(path, LoadOptions(only=frozenset(names) - frozenset(refused)))


@contextmanager
def _only(kernel: Kernel, name: str) -> Iterator[Object]:
    with closing(kernel.load(objects.find(OBJECT), LoadOptions(only=frozenset({name})))) as found:
        yield found


@contextmanager
def _cgroup(root: Path) -> Iterator[Path]:
    """A cgroup below `root`, gone afterwards."""
    path = root / f"underpass-probe-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


def _raise_lo() -> None:
    """Sets lo of the calling thread's namespace up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        name, flags = _UP.unpack(fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _UP.pack(b"lo", 0)))
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _UP.pack(name, flags | _IFF_UP))
