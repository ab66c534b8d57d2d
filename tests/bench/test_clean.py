"""A run is killed at random moments; ``isomark clean`` leaves nothing, and ``--resume`` completes it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.store import read_result

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for every driver")]

KILLS = int(os.environ.get("ISOMARK_KILLS", "2"))
ISOMARK = (sys.executable, "-m", "bench.cli")
REQUEST = ("run", "quick", "--workloads", "boot", "--trials", "4", "--drivers", "native,container,qemu")


def isomark(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ISOMARK, *arguments], capture_output=True, text=True, check=False, timeout=280)


def host_state() -> dict[str, set[str]]:
    """Everything a run could leave behind on the host."""
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    environments = Path("/proc").glob("[0-9]*/environ")
    domains = subprocess.run(
        ["virsh", "-q", "-c", "qemu:///system", "list", "--all", "--name"], capture_output=True, text=True, check=False
    )
    return {
        "mounts": {mount for mount in mounts if "isomark" in mount},
        "cgroups": {str(path) for path in Path("/sys/fs/cgroup").glob("*/isomark/*") if path.is_dir()},
        "machines": {str(path) for path in Path("/sys/fs/cgroup").glob("*/machine/*iso-*")},
        "interfaces": {name for name in os.listdir("/sys/class/net") if name.startswith("iso")},
        "namespaces": set(os.listdir("/run/netns")) if Path("/run/netns").exists() else set(),
        "processes": {path.parent.name for path in environments if b"ISOMARK_OWNER=" in _read(path)},
        "domains": set(filter(None, domains.stdout.split())),
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(KILLS))
def test_a_run_killed_at_a_random_moment_leaves_nothing_and_is_completed(number: int, tmp_path: Path) -> None:
    before = host_state()
    folder = tmp_path / "result"
    delay = random.Random(time.time_ns() + number).uniform(0.2, 12)
    run = subprocess.Popen([*ISOMARK, *REQUEST, "--out", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        run.wait(delay)
    except subprocess.TimeoutExpired:
        run.send_signal(signal.SIGKILL)
    run.communicate()
    cleaned = isomark("clean")
    assert cleaned.returncode == 0, f"killed after {delay:.2f} s: {cleaned.stdout}{cleaned.stderr}"
    assert host_state() == before, f"killed after {delay:.2f} s"
    if not (folder / "header.json").exists():
        return  # killed before the first trial: there is nothing to resume
    resumed = isomark("run", "--resume", str(folder))
    assert resumed.returncode == 0, f"killed after {delay:.2f} s: {resumed.stdout}{resumed.stderr}"
    assert read_result(folder).complete
    assert (folder / "report.html").exists()
    assert host_state() == before


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_removes_everything_and_keeps_its_trials(stop: signal.Signals, tmp_path: Path) -> None:
    before = host_state()
    folder = tmp_path / "result"
    run = subprocess.Popen([*ISOMARK, *REQUEST, "--out", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while not (folder / "trials.jsonl").exists() or not (folder / "trials.jsonl").stat().st_size:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    run.send_signal(stop)
    output = run.communicate(timeout=60)[0].decode()
    assert run.returncode == 1, output
    assert "--resume" in output
    assert host_state() == before
    kinds = [trial.outcome.kind for trial in read_result(folder).trials]
    assert kinds.count("aborted") <= 1
    assert kinds.count("ok") >= 1
