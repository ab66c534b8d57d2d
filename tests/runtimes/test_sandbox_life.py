"""Killed at any moment, the driver's process takes everything with it, or leaves what ``clean`` finds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_tree import make_tree, needs_root

from bench.clean import clean
from bench.journal import read_journals

pytestmark = needs_root
HERE = Path(__file__).resolve().parent

VICTIM = """
import sys
sys.path[:0] = [{root!r}, {tests!r}, {here!r}]
from pathlib import Path
from small_tree import Rig, open_small_lab
from runtimes.container.driver import ContainerDriver
from runtimes.native import NativeDriver
import time
with open_small_lab(Path({state!r})) as lab:
    rigs = [Rig(driver(lab), Path({tree!r}), lab) for driver in (NativeDriver, ContainerDriver)]
    print("driving", flush=True)
    while True:
        instances = []
        for rig in rigs:
            network = rig.driver.kind == "container"
            instance = rig.shell("setsid sh -c 'setsid sleep 1000 &'; echo up; read wait", network=network)
            next(iter(instance.lines(30)))
            instances.append(instance)
        print("up", flush=True)
        {then}
        for instance in instances:
            instance.__exit__(None, None, None)
"""


def start_victim(tmp_path: Path, then: str) -> subprocess.Popen[str]:
    script = VICTIM.format(
        root=str(HERE.parents[1]), tests=str(HERE.parent), here=str(HERE), then=then,
        state=str(tmp_path / "state"), tree=str(make_tree(tmp_path / "tree")),
    )  # fmt: skip
    victim = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    assert victim.stdout.readline() == "driving\n"
    return victim


def marked(owner: str) -> list[int]:
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if f"ISOMARK_OWNER={owner}".encode() in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                found.append(int(name))
        except OSError:
            continue
    return found


def leftovers(owner: str) -> list[str]:
    groups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/isomark/{owner}")]
    namespaces = [str(path) for path in Path("/run/netns").glob(f"isomark-{owner}")]
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if owner in line]
    return groups + namespaces + mounts


def wait_until_gone(owner: str) -> None:
    deadline = time.monotonic() + 15
    while found := marked(owner):
        assert time.monotonic() < deadline, f"{found} live on"
        time.sleep(0.01)


def test_killing_the_driver_leaves_no_process_and_clean_removes_the_rest(tmp_path: Path) -> None:
    with start_victim(tmp_path, "time.sleep(1000)") as victim:
        assert victim.stdout.readline() == "up\n"
        (journal,) = read_journals(tmp_path / "state/owned")
        owner = journal.owner.id
        assert len(marked(owner)) == 6 + 1 - 1, "two helpers, two shells, two daemons"
        victim.kill()
    wait_until_gone(owner)
    assert leftovers(owner), "cgroups and the network are left, for clean"
    assert [removal.fault for removal in clean(tmp_path / "state/owned") if removal.fault] == []
    assert leftovers(owner) == []
    assert list((tmp_path / "state/scratch").iterdir()) == []
    assert list((tmp_path / "state/owned").iterdir()) == []


@pytest.mark.slow
def test_killing_the_driver_at_any_moment_leaves_nothing_that_clean_does_not_find(tmp_path: Path) -> None:
    for moment in range(12):
        directory = tmp_path / str(moment)
        directory.mkdir()
        with start_victim(directory, "pass") as victim:
            time.sleep(0.02 + 0.037 * moment)
            (journal,) = read_journals(directory / "state/owned")
            victim.send_signal(signal.SIGKILL)
        wait_until_gone(journal.owner.id)
        assert [removal.fault for removal in clean(directory / "state/owned") if removal.fault] == []
        assert leftovers(journal.owner.id) == []
        assert list((directory / "state/scratch").iterdir()) == []
