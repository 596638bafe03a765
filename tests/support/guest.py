"""Commands on another kernel: a little machine that boots one of /boot's kernels over this machine's root file system.

The kernel is emulated by QEMU (KVM would be quicker, but hangs on some hosts, and CI has none), the initial RAM disk is
virtme-ng's, and `guest_init.sh` is process 1. The root is read-only; the command writes to memory, and to one directory
that it shares with the caller. So it finds the same checkout, the same .venv and the same compiled objects there.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.tiers import Unavailable, repository

INIT = Path(__file__).with_name("guest_init.sh")
SHARED = "/run/shared"
#: How much slower than usual the guest may be before a test gives up waiting.
PATIENCE = 20
#: Debian 12's own kernel, and the one of Debian 13, which Debian 12 has, too.
DEBIANS = {"6.1": "linux-image-amd64", "6.12": "linux-image-6.12-amd64"}


@dataclass(frozen=True, slots=True)
class Image:
    """A kernel that can be booted: its release and its file."""

    release: str
    path: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command: its status (None: it never ended), what it and the kernel wrote, its seconds."""

    status: int | None
    output: str
    console: str
    seconds: float

    def told(self) -> str:
        """For a failing test: the output, and if there is none, the kernel's last words."""
        if self.output.strip():
            return self.output[-6000:]
        return "the command wrote nothing; the kernel's last words:\n" + self.console[-3000:]


def images(boot: Path = Path("/boot"), modules: Path = Path("/lib/modules")) -> list[Image]:
    """The kernels here whose modules are here, too, by ascending version."""
    found = [Image(path.name.removeprefix("vmlinuz-"), path) for path in boot.glob("vmlinuz-*")]
    return sorted((one for one in found if (modules / one.release).is_dir()), key=lambda one: _numbers(one.release))


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", release))


def newest(series: str, among: list[Image]) -> Image | None:
    """The newest kernel of a series such as "6.1"."""
    wanted = tuple(int(part) for part in series.split("."))
    return next((one for one in reversed(among) if _numbers(one.release)[: len(wanted)] == wanted), None)


def available(series: str) -> None:
    """Raises Unavailable unless a kernel of that series can be booted here. Not required: a CI may be offline."""
    if platform.machine() != "x86_64":
        raise Unavailable("guest", f"written for x86_64, this is {platform.machine()}", "none", required=False)
    if shutil.which("qemu-system-x86_64") is None:
        raise Unavailable("guest", "no qemu-system-x86_64", "apt-get install qemu-system-x86", required=False)
    try:
        from virtme import mkinitramfs
    except ImportError as error:
        raise Unavailable("guest", str(error), "pip install virtme-ng", required=False) from error
    if mkinitramfs.find_busybox(root="/", is_native=True) is None:
        raise Unavailable("guest", "no busybox", "apt-get install busybox-static", required=False)
    if newest(series, images()) is None:
        package = DEBIANS.get(series, f"linux-image-{series}-amd64")
        raise Unavailable(
            "guest", f"no kernel {series} in /boot with its modules", f"apt-get install {package}", required=False
        )


def _ramdisk(release: str, path: Path) -> None:
    """What finds the root file system: a busybox, and the modules that reach it."""
    from virtme import mkinitramfs, modfinder, virtmods

    config = mkinitramfs.Config()
    config.modfiles = modfinder.find_modules_from_install(virtmods.MODALIASES, kver=release)
    config.busybox = mkinitramfs.find_busybox(root="/", is_native=True)
    # Nobody changes the files meanwhile, or who does must expect this; without a cache each import is a hundred trips.
    config.access = "ro,cache=loose"
    with path.open("wb") as out:
        mkinitramfs.mkinitramfs(out, config)


def _command(image: Image, shared: Path, memory: str, cpus: int) -> list[str]:
    keep = " KEEP_TMP=1" if INIT.is_relative_to("/tmp") or Path(sys.prefix).is_relative_to("/tmp") else ""
    root = "local,id=root,path=/,security_model=none,multidevs=remap,readonly=on"
    return [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(cpus), "-m", memory,
        "-serial", f"file:{shared}/console",
        "-kernel", str(image.path), "-initrd", f"{shared}/ramdisk",
        "-append", f"console=ttyS0 panic=-1 loglevel=4 mitigations=off nokaslr audit=0 init={INIT}{keep}",
        "-fsdev", root, "-device", "virtio-9p-pci,fsdev=root,mount_tag=/dev/root",
        "-fsdev", f"local,id=shared,path={shared},security_model=none",
        "-device", "virtio-9p-pci,fsdev=shared,mount_tag=shared",
    ]  # fmt: skip


def run(
    image: Image, script: str, *, timeout: float, shared: Path | None = None, memory: str = "3G", cpus: int = 2
) -> Outcome:
    """Boots the kernel, runs the bash script, and is back when the machine is off, or has been for `timeout` seconds.

    shared: a directory that the script sees as /run/shared; by default one that is gone afterwards.
    """
    with contextlib.ExitStack() as stack:
        # Not below /tmp or /run, which are other places in there.
        place = shared or Path(
            stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp", prefix="underpass-guest-"))
        )
        (place / "command").write_text(script, encoding="utf-8")
        _ramdisk(image.release, place / "ramdisk")
        begun = time.monotonic()
        process = subprocess.Popen(
            _command(image, place, memory, cpus), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            said = b""
        finally:
            process.kill()
            process.wait()
        seconds = time.monotonic() - begun
        status = _read(place / "status").strip()
        console = _read(place / "console") + said.decode(errors="replace")
        return Outcome(int(status) if status else None, _read(place / "output"), console, seconds)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def script(module: str, *arguments: str) -> str:
    """A script that runs a module of this checkout in the guest, with this interpreter."""
    command = [sys.executable, "-m", module, *arguments]
    root = repository()
    return "\n".join(
        (
            # What may be skipped there is another question than what may be skipped here.
            "unset CI",
            f"export PYTHONDONTWRITEBYTECODE=1 UNDERPASS_TEST_PATIENCE={PATIENCE}",
            f"export PYTHONPATH={shlex.quote(str(root))} HYPOTHESIS_STORAGE_DIRECTORY=/run/tmp/hypothesis",
            f"cd {shlex.quote(str(root))}",
            shlex.join(command),
            "",
        )
    )


def pytest_script(*arguments: str) -> str:
    """The same for tests."""
    return script("pytest", "-p", "no:cacheprovider", *arguments)


def main() -> int:
    """`python -m tests.support.guest SERIES [PYTEST ARGUMENTS]`: a look at one's own tests on another kernel."""
    series, *arguments = sys.argv[1:] or ["6.1"]
    available(series)
    image = newest(series, images())
    assert image is not None
    print(f"booting {image.release}", flush=True)
    hours = float(os.environ.get("GUEST_TIMEOUT", "7200"))
    found = run(image, pytest_script(*(arguments or ["tests/bpf", "-m", "not slow"])), timeout=hours)
    print(found.output or found.told())
    print(f"status {found.status}, {found.seconds:.0f} s")
    return 1 if found.status is None else found.status


if __name__ == "__main__":
    sys.exit(main())
