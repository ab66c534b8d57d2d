"""Thousands of starts in one process: nothing that it holds, and nothing on the host, grows.

``ISOMARK_ENGINE_STARTS`` is how many; 2,000 is what the engine promises.
"""

from __future__ import annotations

import gc
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from births import Born, House
from engine_rig import Engine, add_image, needs_root, require_cgroups
from small_tree import open_rig

from runtimes.container.driver import ContainerDriver
from runtimes.engine.container import Container
from runtimes.engine.journal import Journal
from runtimes.engine.launch import Launch
from runtimes.engine.place import Place

STARTS = int(os.environ.get("ISOMARK_ENGINE_STARTS", "150"))
WARM_UP = STARTS // 5
GROWTH_BYTES = 200
"""Bytes for each start that are noise of the allocator: a leaked descriptor's or container's record is larger."""
SLACK_BYTES = 256 << 10

pytestmark = [needs_root, pytest.mark.timeout(120 + STARTS // 4)]


class Holdings:
    """What a process and the host hold that could grow."""

    def __init__(self, pid: int, below: Path) -> None:
        """``below``: where the mounts are that count; others come and go on a host."""
        gc.collect()
        self.descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        self.threads = len(os.listdir(f"/proc/{pid}/task"))
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
        self.memory_bytes = int(status["Private_Dirty"].split()[0]) * 1024
        mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        self.mounts = sum(str(below) in line for line in mounts)

    def __str__(self) -> str:
        held = f"{self.descriptors} descriptors, {self.threads} threads, {self.mounts} mounts"
        return f"{held}, {self.memory_bytes >> 10} KiB"

    def check(self, before: Holdings, starts: int) -> None:
        """That nothing grew since ``before``."""
        assert (self.descriptors, self.threads, self.mounts) == (before.descriptors, before.threads, before.mounts)
        assert self.memory_bytes - before.memory_bytes < SLACK_BYTES + GROWTH_BYTES * starts


def endure(what: str, start: Callable[[], None], pids: Callable[[], list[int]], below: Path) -> None:
    """Start again and again; after a warm-up everything stays as it is."""
    for _ in range(WARM_UP):
        start()
    before = [Holdings(pid, below) for pid in pids()]
    threads = threading.active_count()
    for _ in range(STARTS - WARM_UP):
        start()
    after = [Holdings(pid, below) for pid in pids()]
    for was, now in zip(before, after, strict=True):
        print(f"{what}: {STARTS} starts: {was} -> {now}")
        now.check(was, STARTS - WARM_UP)
    assert threading.active_count() == threads


def groups_of(name: str) -> list[Path]:
    return [path for path in Path("/sys/fs/cgroup").glob("*/isomark/*") if path.name.startswith(name)]


def test_the_measuring_driver_holds_nothing_of_what_it_started(tmp_path: Path) -> None:
    with open_rig(ContainerDriver, tmp_path) as rig:

        def start() -> None:
            assert rig.output("echo x") == ["x"]

        def pids() -> list[int]:
            helper = rig.driver._spawner.pid
            assert helper is not None
            return [os.getpid(), helper]

        endure("driver", start, pids, tmp_path)
        owner = rig.lab.journal.owner.id
        assert all(list(path.glob("*/")) == [] for path in groups_of(owner))
    assert groups_of(owner) == []


def test_a_birth_leaves_nothing_in_the_process_that_bore(tmp_path: Path) -> None:
    house = House(tmp_path)

    def start() -> None:
        root = house.overlay()
        with Born(house.shell("echo x", root=root)) as born:
            born.go()
            assert born.rest() == ["x"]
        shutil.rmtree(Path(root[2]).parent)

    endure("birth", start, lambda: [os.getpid()], tmp_path)


def test_a_launch_leaves_nothing_in_the_process_that_launched(tmp_path: Path) -> None:
    """The way of the monitor: cgroup, namespaces, security, the end."""
    require_cgroups()
    state = tmp_path / "state"
    add_image(state, "busy:latest", {"Env": ["PATH=/bin"], "Cmd": ["true"]})
    engine = Engine(state)
    ident = engine.done("create", "--network", "none", "busy", "true")
    place = Place(str(state))
    container = Container(place, ident)
    with Journal(place.journals) as journal:

        def start() -> None:
            launch = Launch(container, journal)
            launch.start()
            os.waitpid(launch.pid, 0)
            assert launch.end() is None

        endure("launch", start, lambda: [os.getpid()], tmp_path)
    assert groups_of(ident) == []
    engine.clear()
    assert engine.leftovers() == []
