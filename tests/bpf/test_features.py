"""The probes on the kernel that the tests run on, and what is left of them afterwards: nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nodeagent.bpf import features as machine
from nodeagent.bpf.errors import UnsupportedFeatureError
from nodeagent.bpf.kernel import LinuxKernel
from nodeagent.node import probes
from nodeagent.node.features import BY_KEY, State

pytestmark = pytest.mark.needs("root", "bpf", "netns", "cgroup2")

WITHOUT = ["setpriv", "--bounding-set=-bpf,-sys_admin", "--"]
UNDERPASS = [sys.executable, "-m", "underpass.cli.app"]


def leftovers() -> list[Path]:
    mounts = (machine.bpffs(), machine.cgroup2())
    return [path for mount in mounts for path in mount.glob(f"underpass-probe-{os.getpid()}*")]


def test_this_kernel_can_run_the_data_path() -> None:
    ours = {info.id for info in LinuxKernel().links()}
    report = probes.survey(LinuxKernel())
    assert report.can_run, report.missing
    found = {row.feature.key: row.answer for row in report.rows}
    assert set(found) == set(BY_KEY)
    # On a kernel that runs the data path, and as root, there is nothing that cannot be tried, but conntrack's state.
    unknown = {key for key, answer in found.items() if answer.state is State.UNKNOWN}
    assert unknown <= {"conntrack-liberal"}, found
    assert found["cgroup2"].detail == str(machine.cgroup2())
    # The same as what a second, older way of asking says.
    assert (found["tcx"].state is State.YES) == _has_tcx()
    assert leftovers() == []
    assert {info.id for info in LinuxKernel().links() if info.ifindex == 0 and info.cgroup_id == 0} <= ours


def _has_tcx() -> bool:
    try:
        machine.tcx()
    except UnsupportedFeatureError:
        return False
    return True


def test_the_command_tells_it_to_programs() -> None:
    done = subprocess.run([*UNDERPASS, "features", "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["kind"] == "Features"
    assert told["can_run"] is True
    assert told["features"]["connect-hook"]["state"] == "yes"
    assert told["kernel"] == os.uname().release


def test_without_capabilities_it_names_them_and_fails() -> None:
    command = [*WITHOUT, *UNDERPASS, "features", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    assert told["can_run"] is False
    assert "permissions" in told["missing"]
    assert told["features"]["permissions"]["state"] == "no"
    assert told["data_path"]["attachment"] == "none"


def test_other_users_are_told_to_be_root() -> None:
    command = ["setpriv", "--reuid=65534", "--clear-groups", *UNDERPASS, "features"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "run as root" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_agent_without_capabilities_refuses_to_start(tmp_path: Path) -> None:
    """By name, before anything is loaded."""
    agent = [sys.executable, "-m", "nodeagent.app", "--node", f"nv-feat-{os.getpid()}", "--run-dir", str(tmp_path)]
    done = subprocess.run([*WITHOUT, *agent], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "permissions" in done.stderr
    assert "Traceback" not in done.stderr
