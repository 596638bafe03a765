"""What a kernel and its set-up can do for the data path, judged: from each probe's answer to what follows from it.

Pure: `nodeagent.node.probes` asks the kernel; this says what the answers mean. A feature that is required and that the
kernel was not *seen* to have stops the node, also when the probe itself failed: nothing runs on a guess.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nodeagent.errors import AgentError


class State(enum.StrEnum):
    """What a probe found. UNKNOWN: it could not be made."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class Need(enum.StrEnum):
    """What a feature is to the data path: nothing goes without it; there is a second way; or it is only told."""

    REQUIRED = "required"
    CHOICE = "choice"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Answer:
    """One probe's outcome. detail: where, which, or the reason why not."""

    state: State
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Feature:
    """What is probed. `yes` and `no` say what follows for the data path, `remedy` what to do about a no."""

    key: str
    need: Need
    title: str
    yes: str
    no: str
    remedy: str = ""


_KERNEL: Final = "use a kernel of at least 6.1 with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF, CONFIG_NET_CLS_BPF and BTF"
_STOPS: Final = "the node cannot run"

FEATURES: Final[tuple[Feature, ...]] = (
    Feature(
        "permissions",
        Need.REQUIRED,
        "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN",
        "programs may be loaded and attached in workloads' namespaces",
        _STOPS,
        "run as root, or give the process these capabilities; cat /sys/kernel/security/lockdown",
    ),
    Feature(
        "btf",
        Need.REQUIRED,
        "the kernel's BTF",
        "objects are fitted to this kernel's structures",
        _STOPS,
        "use a kernel with CONFIG_DEBUG_INFO_BTF",
    ),
    Feature(
        "bpffs",
        Need.REQUIRED,
        "a bpffs to pin in",
        "programs, maps and links outlive the agent",
        _STOPS,
        "mount -t bpf bpf /sys/fs/bpf (not inside `ip netns exec`, which hides it)",
    ),
    Feature(
        "cgroup2",
        Need.REQUIRED,
        "cgroup v2",
        "connect, getpeername and sockops programs see workloads",
        _STOPS,
        "mount -t cgroup2 none /sys/fs/cgroup/unified",
    ),
    Feature(
        "maps",
        Need.REQUIRED,
        "the map types in use",
        "the node's tables",
        _STOPS,
        _KERNEL,
    ),
    Feature(
        "ring-buffer",
        Need.REQUIRED,
        "ring buffer",
        "home hears at once of connections and empty stocks",
        _STOPS,
        _KERNEL,
    ),
    Feature(
        "spin-lock",
        Need.REQUIRED,
        "spin locks in hash values",
        "a wire is lent to one client at a time",
        _STOPS,
        _KERNEL,
    ),
    Feature(
        "bpf-loop",
        Need.REQUIRED,
        "bpf_loop",
        "heads are read and responses followed",
        _STOPS,
        _KERNEL,
    ),
    Feature(
        "test-run",
        Need.REQUIRED,
        "BPF_PROG_TEST_RUN of tc programs",
        "home speaks to the data path",
        _STOPS,
        _KERNEL,
    ),
    Feature(
        "connect-hook",
        Need.REQUIRED,
        "connect hooks rewrite the destination",
        "connections to services go home first",
        _STOPS,
        _KERNEL,
    ),
    Feature(
        "set-retval",
        Need.REQUIRED,
        "bpf_set_retval in connect hooks",
        "what nobody serves is refused with ECONNREFUSED, as without a mesh",
        _STOPS,
        _KERNEL,
    ),
    Feature(
        "socket-storage",
        Need.REQUIRED,
        "socket storage from cgroup hooks to sockops",
        "an established connection is recognised by what its connect left",
        _STOPS,
        _KERNEL,
    ),
    Feature(
        "getpeername",
        Need.REQUIRED,
        "getpeername hooks",
        "applications see the address that they asked for",
        _STOPS,
        _KERNEL,
    ),
    Feature(
        "tcp-sock",
        Need.REQUIRED,
        "tcp_sock from sockops and tc",
        "timestamps and sequence numbers are translated",
        _STOPS,
        _KERNEL,
    ),
    Feature(
        "tc",
        Need.REQUIRED,
        "programs at an interface's ingress and egress",
        "requests are seen and wires are lent",
        _STOPS,
        "modprobe sch_ingress cls_bpf, or use a kernel of at least 6.6, which has tcx",
    ),
    Feature(
        "checksum-state",
        Need.REQUIRED,
        "a packet's checksum state in tc",
        "changed packets leave with the right checksum",
        _STOPS,
        _KERNEL,
    ),
    Feature(
        "programs",
        Need.REQUIRED,
        "the data path's own programs",
        "the verifier takes all of them",
        _STOPS,
        "report the program, the verifier's words and `uname -r`",
    ),
    Feature(
        "tcx",
        Need.CHOICE,
        "tcx links",
        "programs at interfaces are links: pinned, replaced without a gap",
        "clsact filters are used: they need no pin, end with the interface, and other tools' `tc` can remove them",
        "nothing need be done; Linux 6.6 has them",
    ),
    Feature(
        "kernel-context",
        Need.CHOICE,
        "bpf_cast_to_kern_ctx in tc",
        "packets' kernel fields cost nothing: tc_workload.bpf.o",
        "each such field costs a helper call: tc_workload_old.bpf.o",
        "nothing need be done; Linux 6.2 has it",
    ),
    Feature(
        "jit",
        Need.NOTE,
        "programs are compiled",
        "full speed",
        "programs are interpreted: several times slower",
        "sysctl net.core.bpf_jit_enable=1",
    ),
    Feature(
        "memlock",
        Need.NOTE,
        "maps are not charged to RLIMIT_MEMLOCK",
        "memory cgroups bound them, no ulimit is needed",
        "the maps must fit into RLIMIT_MEMLOCK",
        "ulimit -l unlimited",
    ),
    Feature(
        "loop-state",
        Need.NOTE,
        "the verifier keeps state known before bpf_loop",
        "no kernel bug to step around",
        "branches would be deleted silently; the programs start all such state unknown",
        "nothing need be done: the data path does not depend on it",
    ),
    Feature(
        "test-run-syscall",
        Need.NOTE,
        "BPF_PROG_TEST_RUN of syscall programs",
        "the C core can be asked inside the kernel",
        "`underpass test equivalence` asks the C core in user space only",
        "",
    ),
    Feature(
        "sockmap-fionread",
        Need.NOTE,
        "FIONREAD is right in a SOCKHASH with sk_msg",
        "a local lane could leave what applications see of queues alone",
        "a local lane would hide queued bytes from FIONREAD, on which servers such as nginx stall",
        "nothing need be done: no socket of a workload is put into a SOCKHASH",
    ),
    Feature(
        "mptcp",
        Need.NOTE,
        "applications can have MPTCP sockets",
        "MPTCP connections are left as they are, not routed by request",
        "no connection is lost to MPTCP",
        "",
    ),
    Feature(
        "conntrack-liberal",
        Need.NOTE,
        "conntrack ignores sequence numbers here",
        "wires need no leniency: each is an honest connection to conntrack",
        "conntrack is strict here; wires are honest connections to it and pass",
        "",
    ),
)
"""In the order of being told. Keys are stable: scripts read them."""

BY_KEY: Final[Mapping[str, Feature]] = {feature.key: feature for feature in FEATURES}

NEWER_OBJECT: Final = "tc_workload.bpf.o"
OLDER_OBJECT: Final = "tc_workload_old.bpf.o"


class MissingFeaturesError(AgentError):
    """What the data path cannot do without is not there; `missing` are the keys."""

    def __init__(self, rows: Iterable[Row]) -> None:
        found = tuple(rows)
        self.missing = tuple(row.feature.key for row in found)
        # Without permission hardly anything can be tried: the one reason is worth more than all that follow from it.
        told = [row for row in found if row.answer.state is State.NO] or found
        why = "; ".join(f"{row.feature.key} ({row.answer.detail or row.feature.title})" for row in told)
        if len(told) < len(found):
            untried = ", ".join(row.feature.key for row in found if row.answer.state is State.UNKNOWN)
            why += f"; could not be tried: {untried}"
        remedies = dict.fromkeys(row.remedy for row in found if row.remedy)
        steps = (*remedies, "`underpass features` tells all of it")
        super().__init__("this machine cannot run the data path", f"missing: {why}", "; ".join(steps))


@dataclass(frozen=True, slots=True)
class Row:
    """A feature with its answer."""

    feature: Feature
    answer: Answer

    @property
    def fatal(self) -> bool:
        """Whether this alone keeps the node from running."""
        return self.feature.need is Need.REQUIRED and self.answer.state is not State.YES

    @property
    def means(self) -> str:
        """What follows for the data path."""
        if self.answer.state is State.YES:
            return self.feature.yes
        if self.answer.state is State.NO:
            return self.feature.no
        return f"it could not be tried: {_STOPS}" if self.fatal else "it could not be tried"

    @property
    def remedy(self) -> str:
        """What to do; empty when nothing is amiss, or when nobody knows what is."""
        return self.feature.remedy if self.answer.state is State.NO else ""


@dataclass(frozen=True, slots=True)
class Report:
    """All rows, in the order of FEATURES, and what follows from them together."""

    rows: tuple[Row, ...]

    @property
    def missing(self) -> tuple[Row, ...]:
        """What keeps the node from running."""
        return tuple(row for row in self.rows if row.fatal)

    @property
    def can_run(self) -> bool:
        """Whether the data path can run here."""
        return not self.missing

    @property
    def second_ways(self) -> tuple[Row, ...]:
        """Choices that fall on the second way."""
        return tuple(row for row in self.rows if row.feature.need is Need.CHOICE and row.answer.state is not State.YES)

    @property
    def attachment(self) -> str:
        """How programs are attached at interfaces: "tcx", "clsact" or "none"."""
        if self._has("tcx"):
            return "tcx"
        return "clsact" if self._has("tc") else "none"

    @property
    def workload_object(self) -> str:
        """Which build of the workload's programs is loaded, or "none"."""
        if not self._has("programs"):
            return "none"
        return NEWER_OBJECT if self._has("kernel-context") else OLDER_OBJECT

    def state_of(self, key: str) -> State:
        """A feature's state. KeyError."""
        return {row.feature.key: row.answer.state for row in self.rows}[key]

    def _has(self, key: str) -> bool:
        return self.state_of(key) is State.YES

    def require(self, *, but: Iterable[str] = ()) -> None:
        """Raises MissingFeaturesError when the data path cannot run; but: keys that are about to be tried otherwise."""
        later = frozenset(but)
        missing = [row for row in self.missing if row.feature.key not in later]
        if missing:
            raise MissingFeaturesError(missing)

    def summary(self, kernel: str) -> dict[str, Any]:
        """The short form for a status; kernel: its release."""
        return {
            "release": kernel,
            "attachment": self.attachment,
            "workload_object": self.workload_object,
            "second_ways": {row.feature.key: row.means for row in self.second_ways},
        }

    def document(self) -> dict[str, Any]:
        """As JSON: the verdict, the two choices, and each feature under its key."""
        return {
            "can_run": self.can_run,
            "missing": [row.feature.key for row in self.missing],
            "data_path": {"attachment": self.attachment, "workload_object": self.workload_object},
            "features": {
                row.feature.key: {
                    "title": row.feature.title,
                    "need": row.feature.need.value,
                    "state": row.answer.state.value,
                    "detail": row.answer.detail,
                    "means": row.means,
                    "next": row.remedy,
                }
                for row in self.rows
            },
        }


def judge(answers: Mapping[str, Answer]) -> Report:
    """The report of what the probes found. No answer: unknown. KeyError for an answer to no feature."""
    for key in answers:
        if key not in BY_KEY:
            raise KeyError(f"no feature {key!r}; there are {', '.join(BY_KEY)}")
    nothing = Answer(State.UNKNOWN, "not probed")
    return Report(tuple(Row(feature, answers.get(feature.key, nothing)) for feature in FEATURES))
