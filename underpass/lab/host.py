"""The lab's hands on the machine: namespaces, links, sysctls, cgroups, pins. Every failure is a LabError.

Nothing here decides; what to make comes from `topology`. What is taken away may be gone already: removing it again does
no harm, so that `lab down` can clean up after anything.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from underpass.lab.errors import CommandError, LabError
from underpass.lab.topology import Step, Sysctl, batches

NETNS_DIR = Path("/run/netns")
BPFFS = Path("/sys/fs/bpf")
TOOLS = ("ip", "nsenter", "unshare", "mount")


def run(arguments: Sequence[str], stdin: str | None = None, timeout: float = 30.0) -> str:
    """Run a program to its end and return what it printed. Raises CommandError with its own words."""
    try:
        done = subprocess.run(
            list(arguments), input=stdin, capture_output=True, text=True, timeout=timeout, check=False, errors="replace"
        )
    except FileNotFoundError as error:
        raise CommandError(f"cannot run {arguments[0]}", "it is not installed", "install it and try again") from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{' '.join(arguments)} hangs", f"no end within {timeout:.0f} s", "look at dmesg") from error
    if done.returncode:
        why = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise CommandError(f"{' '.join(arguments)} failed", why, "see the message")
    return done.stdout


def check_machine(mesh: bool) -> None:
    """Root, tools and file systems that a lab needs. Raises LabError naming the first that is missing."""
    if os.geteuid() != 0:
        raise LabError("the lab needs root", "it makes network namespaces and cgroups", "run it with sudo")
    for tool in TOOLS:
        if shutil.which(tool) is None:
            raise LabError(f"{tool} is missing", "the lab calls it", "install iproute2, util-linux and mount")
    cgroup_mount()
    if mesh:
        mount_bpffs()


def cgroup_mount() -> Path:
    """Where cgroup v2 is mounted: alone, or beside version 1. Raises LabError where it is not."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split(" ", 1)[0] == "cgroup2":
            return Path(fields.split(" ")[4].encode().decode("unicode_escape"))
    raise LabError("no cgroup v2 here", "it is not in the mount table", "mount -t cgroup2 none /sys/fs/cgroup")


def mount_bpffs() -> None:
    """Mount the BPF file system where everybody expects it, if nobody did."""
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    if not any(line.split(" ")[4] == str(BPFFS) and " - bpf " in line for line in mounts):
        run(["mount", "-t", "bpf", "bpf", str(BPFFS)])


# -- network -----------------------------------------------------------------------------------------------------------


def carry_out(steps: Sequence[Step]) -> None:
    """Run the steps in order, one `ip` process for each run of steps in one namespace."""
    for netns, lines in batches(steps):
        where = ["-n", netns] if netns else []
        try:
            run(["ip", *where, "-batch", "-"], stdin="\n".join(lines) + "\n")
        except CommandError as error:
            raise CommandError(
                f"the network {f'of {netns} ' if netns else ''}cannot be made", _explain(error.why, lines), "see dmesg"
            ) from error


def _explain(why: str, lines: Sequence[str]) -> str:
    """`ip -batch` says which line of its input failed; put the line itself there."""
    for part in why.splitlines():
        number = part.rpartition("Command failed -:")[2]
        if number.isdigit() and 0 < int(number) <= len(lines):
            return f"ip {lines[int(number) - 1]}: {why.splitlines()[0]}"
    return why


def add_namespaces(names: Iterable[str]) -> None:
    """Make named network namespaces."""
    run(["ip", "-batch", "-"], stdin="".join(f"netns add {name}\n" for name in names))


def namespace_exists(name: str) -> bool:
    """Whether a named network namespace is there."""
    return (NETNS_DIR / name).exists()


def delete_namespaces(names: Iterable[str]) -> None:
    """Remove named network namespaces; those that are gone are no error."""
    present = [name for name in names if namespace_exists(name)]
    if present:
        run(["ip", "-force", "-batch", "-"], stdin="".join(f"netns delete {name}\n" for name in present))


def delete_link(name: str) -> None:
    """Remove an interface of the machine's own namespace, if it is there."""
    if Path(f"/sys/class/net/{name}").exists():
        run(["ip", "link", "delete", name])


def delete_routes(steps: Sequence[Step]) -> None:
    """Take back those steps that added routes to the machine's own namespace and whose route is still there."""
    for step in steps:
        if not step.netns and " route add " in f" {step.arguments}":
            words = step.arguments.replace("route add", "route delete").split()
            subprocess.run(["ip", *words], capture_output=True, check=False)


def set_sysctls(sysctls: Sequence[Sysctl]) -> None:
    """Write the values, one process for each namespace."""
    by_netns: dict[str, list[Sysctl]] = {}
    for sysctl in sysctls:
        by_netns.setdefault(sysctl.netns, []).append(sysctl)
    for netns, values in by_netns.items():
        script = "set -e\n"
        for value in values:
            path = f"/proc/sys/net/{value.key}"
            guard = f"[ ! -e {path} ] || " if value.optional else ""
            script += f"{guard}echo {value.value} > {path}\n"
        run(["nsenter", f"--net={NETNS_DIR / netns}", "sh", "-c", script])


def own_routes() -> list[str]:
    """The destinations of the machine's own routes, as CIDR texts."""
    out = []
    for line in run(["ip", "-4", "route", "show", "table", "all"]).splitlines():
        words = line.split()
        if words and words[0] in ("local", "broadcast", "unreachable", "blackhole", "prohibit", "multicast", "throw"):
            words = words[1:]
        if words and words[0] != "default" and words[0][0].isdigit():
            out.append(words[0])
    return out


# -- cgroups and pins --------------------------------------------------------------------------------------------------


def make_cgroup(path: Path) -> None:
    """Make a cgroup and its parents."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(f"cannot make the cgroup {path}", error.strerror or "", "is cgroup v2 writable?") from error


def kill_cgroup(path: Path, timeout: float = 3.0) -> None:
    """End every process in the cgroup and below it, then remove it. A missing one is no error."""
    if not path.is_dir():
        return
    directories = [Path(root) for root, _, _ in os.walk(path)]
    for directory in directories:
        _kill_members(directory)
    deadline = time.monotonic() + timeout
    for directory in reversed(directories):
        while True:
            try:
                directory.rmdir()
                break
            except FileNotFoundError:
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise LabError(
                        f"cannot remove the cgroup {directory}", error.strerror or "", "look for processes in it"
                    ) from error
                _kill_members(directory)
                time.sleep(0.02)


def _kill_members(directory: Path) -> None:
    try:
        (directory / "cgroup.kill").write_text("1", encoding="ascii")  # Linux 5.14
        return
    except OSError:
        pass
    try:
        members = (directory / "cgroup.procs").read_text(encoding="ascii").split()
    except OSError:
        return
    for member in members:
        try:
            os.kill(int(member), 9)
        except ProcessLookupError:
            continue


def remove_empty(path: Path) -> None:
    """Remove a directory if nothing is in it (for cgroups: no child)."""
    try:
        path.rmdir()
    except OSError:
        return


def remove_pins(path: Path) -> None:
    """Remove a directory of the BPF file system with all pins in it: an unpinned link detaches its program."""
    if path.is_dir():
        shutil.rmtree(path)
